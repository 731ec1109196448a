//! Real object stores, each started once by a test program and gone when that ends.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The bucket or container of every pool; each has a prefix of its own in it.
pub const BUCKET: &str = "volmux";

/// The user of SeaweedFS and s3s-fs who may do everything.
pub const OWNER: Credentials = Credentials("AWS_ACCESS_KEY_ID=owner\nAWS_SECRET_ACCESS_KEY=owns\n");
/// The user of SeaweedFS who may only read.
pub const READER: Credentials =
    Credentials("AWS_ACCESS_KEY_ID=reader\nAWS_SECRET_ACCESS_KEY=reads\n");
/// Nobody at SeaweedFS and s3s-fs.
pub const STRANGER: Credentials =
    Credentials("AWS_ACCESS_KEY_ID=owner\nAWS_SECRET_ACCESS_KEY=canary-guesses\n");
/// Azurite's user; the key is published and the same everywhere.
pub const AZURE: Credentials = Credentials(
    "AZURE_STORAGE_ACCOUNT_KEY=\
     Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==\n",
);
/// Nobody at Azurite.
pub const AZURE_STRANGER: Credentials = Credentials(
    "AZURE_STORAGE_ACCOUNT_KEY=\
     CanaryM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==\n",
);

/// What `credentials_file` holds.
#[derive(Clone, Copy, Debug)]
pub struct Credentials(&'static str);

/// How long a server may take to start.
const START: Duration = Duration::from_secs(90);

/// A server that was started.
#[derive(Debug)]
pub struct Server {
    scheme: &'static str,
    options: String,
    dir: PathBuf,
    /// Reads from this program until that is gone.
    _keeper: Child,
}

/// SeaweedFS: S3, with conditional puts as they must be.
pub static SEAWEED: LazyLock<Server> = LazyLock::new(seaweed);
/// Azurite: Azure Blob Storage.
pub static AZURITE: LazyLock<Server> = LazyLock::new(azurite);
/// s3s-fs: S3, but two conditional puts at once may both succeed.
pub static CARELESS: LazyLock<Server> = LazyLock::new(careless);

impl Server {
    /// The URL of a place that no other test uses, for that user. Options can be added after `&`.
    pub fn place(&self, credentials: Credentials) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.url(BUCKET, &format!("pools/{number}"), credentials)
    }

    /// The URL of a certain place.
    pub fn url(&self, bucket: &str, prefix: &str, credentials: Credentials) -> String {
        let Server {
            scheme, options, ..
        } = self;
        let file = self.credentials_file(credentials);
        let file = file.display();
        format!("{scheme}://{bucket}/{prefix}?{options}&credentials_file={file}")
    }

    fn credentials_file(&self, Credentials(text): Credentials) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("credentials-{number}"));
        fs::write(&path, "").expect("a new file");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("mode set");
        fs::write(&path, text).expect("written");
        path
    }
}

fn seaweed() -> Server {
    const USERS: &str = r#"{"identities": [
        {"name": "owner", "credentials": [{"accessKey": "owner", "secretKey": "owns"}],
         "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
        {"name": "reader", "credentials": [{"accessKey": "reader", "secretKey": "reads"}],
         "actions": ["Read", "List"]}]}"#;
    let dir = new_dir();
    let (users, data) = (dir.join("users.json"), dir.join("data"));
    fs::write(&users, USERS).expect("written");
    fs::create_dir(&data).expect("a new directory");
    let names = ["s3", "filer", "master", "volume", "admin"];
    let ports = free_ports(2 * names.len());
    let mut args = vec![
        "mini".to_owned(),
        format!("-dir={}", data.display()),
        format!("-s3.config={}", users.display()),
    ];
    let fixed = "-ip=127.0.0.1 -ip.bind=127.0.0.1 -master.telemetry=false -webdav=false \
                 -admin.ui=false -s3.port.lance=0 -s3.port.iceberg=0";
    args.extend(fixed.split_whitespace().map(str::to_owned));
    for (name, ports) in names.iter().zip(ports.chunks_exact(2)) {
        args.push(format!("-{name}.port={}", ports[0]));
        args.push(format!("-{name}.port.grpc={}", ports[1]));
    }
    let keeper = start(&dir, &installed("weed"), &args);
    let (s3, filer) = (ports[0], ports[2]);
    // The bucket is a directory of the file system below; what is put there needs every part.
    until(&dir, || {
        let made = request(filer, "POST", &format!("/buckets/{BUCKET}/"))?;
        Ok((200..300).contains(&made))
    });
    until(&dir, || Ok(request(s3, "GET", "/")? == 403));
    Server {
        scheme: "s3",
        options: format!("endpoint=http://127.0.0.1:{s3}"),
        dir,
        _keeper: keeper,
    }
}

fn azurite() -> Server {
    // Signed with Azurite's published key.
    const MAKE_CONTAINER: &str = "restype=container&sv=2021-12-02&ss=b&srt=sco&sp=rwdlac\
        &se=2100-01-01T00%3A00%3A00Z&sig=GR2RDXoeNzulMj8SpEk8Z%2BdRPT7W8lPhZDov%2Ft%2BCyEs%3D";
    const ACCOUNT: &str = "devstoreaccount1";
    let dir = new_dir();
    let port = free_ports(1)[0];
    let program = installed("azurite").join("node_modules/azurite/dist/src/blob/main.js");
    let fixed = "--blobHost 127.0.0.1 --silent --disableTelemetry --skipApiVersionCheck";
    let mut args = vec![program.display().to_string()];
    args.extend(fixed.split_whitespace().map(str::to_owned));
    args.extend(["--blobPort".to_owned(), port.to_string()]);
    args.extend([
        "--location".to_owned(),
        dir.join("data").display().to_string(),
    ]);
    let keeper = start(&dir, &installed("node"), &args);
    until(&dir, || {
        let path = format!("/{ACCOUNT}/{BUCKET}?{MAKE_CONTAINER}");
        Ok(matches!(request(port, "PUT", &path)?, 201 | 409))
    });
    Server {
        scheme: "az",
        options: format!("endpoint=http://127.0.0.1:{port}/{ACCOUNT}&account={ACCOUNT}"),
        dir,
        _keeper: keeper,
    }
}

fn careless() -> Server {
    let dir = new_dir();
    let data = dir.join("data");
    fs::create_dir_all(data.join(BUCKET)).expect("a new directory");
    let port = free_ports(1)[0];
    let fixed = format!("--host 127.0.0.1 --port {port} --access-key owner --secret-key owns");
    let mut args: Vec<String> = fixed.split_whitespace().map(str::to_owned).collect();
    args.push(data.display().to_string());
    let keeper = start(&dir, &installed("bin/s3s-fs"), &args);
    until(&dir, || request(port, "GET", "/").map(|status| status > 0));
    Server {
        scheme: "s3",
        options: format!("endpoint=http://127.0.0.1:{port}"),
        dir,
        _keeper: keeper,
    }
}

/// What `make servers` installed.
fn installed(name: &str) -> PathBuf {
    let program = std::env::current_exe().expect("this program's path");
    let found = program
        .ancestors()
        .map(|dir| dir.join("servers"))
        .find(|dir| dir.join("ready").exists());
    let found = found.unwrap_or_else(|| panic!("{name} is missing: run `make servers`"));
    found.join(name)
}

/// A directory that the server's keeper removes.
fn new_dir() -> PathBuf {
    let dir = tempfile::Builder::new().prefix("volmux-server-").tempdir();
    dir.expect("a directory").keep()
}

/// Ports that nobody listens on.
fn free_ports(count: usize) -> Vec<u16> {
    // Held until all are found, so that none is found twice.
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"))
        .collect();
    let port = |held: &TcpListener| held.local_addr().expect("an address").port();
    held.iter().map(port).collect()
}

/// Starts a server with a shell as its keeper, which ends it and removes its directory as soon as
/// this program is gone, however it ends: its end of the pipe is closed then. It outlives signals
/// that are sent to all of a terminal's processes, to have the time for that.
fn start(dir: &Path, program: &Path, args: &[String]) -> Child {
    const KEEPER: &str = r#"trap '' HUP INT TERM
        dir=$1; shift
        "$@" </dev/null >"$dir/log" 2>&1 & server=$!
        read -r _
        kill -9 $server; wait $server
        rm -rf -- "$dir""#;
    let log = || fs::File::create(dir.join("keeper.log")).expect("a new file");
    Command::new("/bin/sh")
        .args(["-c", KEEPER, "keeper"])
        .arg(dir)
        .arg(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(log())
        .stderr(log())
        .spawn()
        .expect("a shell starts")
}

/// Waits until the server is ready.
fn until(dir: &Path, mut ready: impl FnMut() -> io::Result<bool>) {
    let start = Instant::now();
    while !ready().unwrap_or(false) {
        if start.elapsed() > START {
            let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
            let from = log.len().saturating_sub(4000);
            let log = String::from_utf8_lossy(&log.as_bytes()[from..]).into_owned();
            panic!("the server did not start within {START:?}; it says:\n{log}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The status that a request is answered with.
fn request(port: u16, method: &str, path: &str) -> io::Result<u16> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n"
    )?;
    // "HTTP/1.1 200"
    let mut line = [0; 12];
    stream.read_exact(&mut line)?;
    let status = std::str::from_utf8(&line[9..]).ok();
    let status = status.and_then(|status| status.parse().ok());
    status.ok_or_else(|| io::Error::other("not HTTP"))
}
