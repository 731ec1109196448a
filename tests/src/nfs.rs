//! Pools in NFS exports, from the kernel's own server. The lab has it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_trait::async_trait;
use volmux::Pool;
use volmux::nfs::NfsConfig;

use crate::chains::Chains;
use crate::fixture::{Fixture, PoolSettings, Storage};

/// Where the server's exports are. A file system in memory, for the lab's root can't be exported.
const ROOT: &str = "/srv/nfs";
/// The options of all exports. Everything reaches the disk before it is answered.
const EXPORTED: &str = "rw,sync,no_root_squash,insecure,no_subtree_check";

/// Runs a program that must succeed, and returns what it printed.
///
/// # Panics
/// If it does not.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The kernel's NFS server, started by the first who needs it. The lab forgets it.
#[derive(Debug)]
pub struct Server {
    /// A shell that starts and stops it. It has no file of any export open: whatever is started by
    /// a process that has closes its copies of them, and for that waits for the server.
    shell: Mutex<Shell>,
}

#[derive(Debug)]
struct Shell {
    process: Child,
    answers: BufReader<ChildStdout>,
}

impl Server {
    /// The server, which runs.
    ///
    /// # Panics
    /// Outside the lab, and if it can't be started.
    pub fn running() -> &'static Server {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/lab/nfs-server");
            run(script, &[]);
            let shell = Command::new("sh")
                .args(["-c", "while read -r line; do eval \"$line\"; echo $?; done"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn();
            let mut process = shell.expect("a shell");
            let answers = process.stdout.take().expect("a pipe");
            Server {
                shell: Mutex::new(Shell {
                    process,
                    answers: BufReader::new(answers),
                }),
            }
        })
    }

    fn tell(&self, command: &str) {
        let mut shell = self.shell.lock().unwrap_or_else(PoisonError::into_inner);
        let commands = shell.process.stdin.as_mut().expect("a pipe");
        writeln!(commands, "{command}").expect("it reads");
        let mut status = String::new();
        shell.answers.read_line(&mut status).expect("it answers");
        assert_eq!(status.trim(), "0", "{command}");
    }

    /// Has it answer requests. Who had locks has ten seconds to say so, and all others wait.
    pub fn start(&self) {
        self.start_without("");
    }

    /// Has it answer requests, but not those of this version, if one is named.
    pub fn start_without(&self, version: &str) {
        let without = match version {
            "" => String::new(),
            version => format!("--no-nfs-version {version}"),
        };
        self.tell(&format!(
            "rpc.nfsd --grace-time 10 --lease-time 10 {without} 4"
        ));
    }

    /// Stops answering.
    pub fn stop(&self) {
        self.tell("rpc.nfsd 0");
    }
}

/// How often each of two hosts takes a volume from the other.
pub const ROUNDS: u64 = 12;

/// Exports a directory below [`ROOT`] to `whom`.
fn export(whom: &str, name: &str, options: &str) {
    let what = format!("{whom}:{}", Path::new(ROOT).join(name).display());
    run("exportfs", &["-o", options, &what]);
}

/// A file system of its own that the server exports. Dropping it takes it away.
#[derive(Debug)]
pub struct Export {
    name: String,
    number: u64,
    image: PathBuf,
}

/// exportfs and mount want to be alone.
static ONE: Mutex<()> = Mutex::new(());

impl Export {
    /// A file system of this kind (`xfs`, `ext4`) and size.
    ///
    /// # Panics
    /// If it can't be made.
    pub fn new(kind: &str, bytes: u64) -> Export {
        Export::mounted(kind, bytes, "loop")
    }

    /// XFS in which files of `uid` may take so many bytes.
    ///
    /// # Panics
    /// If it can't be made.
    pub fn with_quota(bytes: u64, uid: u32, quota: u64) -> Export {
        let export = Export::mounted("xfs", bytes.max(300 << 20), "loop,uquota");
        let path = export.path();
        let limit = format!("limit -u bhard={quota} {uid}");
        let path = path.to_str().expect("ASCII");
        run("/usr/sbin/xfs_quota", &["-x", "-c", &limit, path]);
        export
    }

    fn mounted(kind: &str, bytes: u64, options: &str) -> Export {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Server::running();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (name, image) = (
            format!("e{number}"),
            PathBuf::from(format!("/dev/shm/nfs{number}")),
        );
        let file = std::fs::File::create(&image).expect("a file in memory");
        file.set_len(bytes).expect("a sparse file");
        let quiet = if kind == "xfs" { "-q" } else { "-F" };
        let made = Export {
            name,
            number,
            image,
        };
        let shown = made.image.to_str().expect("a path of ASCII");
        run(&format!("/usr/sbin/mkfs.{kind}"), &[quiet, shown]);
        let path = made.path();
        std::fs::create_dir(&path).expect("a directory");
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        run(
            "mount",
            &["-o", options, shown, path.to_str().expect("ASCII")],
        );
        made.to("127.0.0.1");
        made
    }

    fn to(&self, whom: &str) {
        let options = format!("{EXPORTED},fsid={}", self.number + 10);
        export(whom, &self.name, &options);
    }

    /// Lets another host, or a network of them, have it too.
    ///
    /// # Panics
    /// If that fails.
    pub fn also_to(&self, whom: &str) {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        export(whom, "", &format!("{EXPORTED},fsid=0"));
        self.to(whom);
    }

    /// Loses what is not durable, as in a power cut, and comes back. The server has to be stopped.
    ///
    /// # Panics
    /// If that fails.
    pub fn lose_power(&self) {
        let (path, image) = (self.path(), &self.image);
        let (path, image) = (path.display(), image.display());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        Server::running().tell(&format!(
            "xfs_io -x -c shutdown {path} && exportfs -f && umount {path} && mount -o loop {image} {path}"
        ));
    }

    /// Where the server has it.
    pub fn path(&self) -> PathBuf {
        Path::new(ROOT).join(&self.name)
    }

    /// How a pool in its directory `directory` is reached by version `vers`.
    pub fn config(&self, directory: &str, vers: &str) -> NfsConfig {
        let name = Path::new(&self.name).join(directory);
        // Version 4 counts from the export with fsid=0.
        let path = match vers {
            "3" => Path::new(ROOT).join(name),
            _ => Path::new("/").join(name),
        };
        let mut config = NfsConfig::new("127.0.0.1", path.to_str().expect("ASCII"));
        config.vers = Some(vers.into());
        config
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path();
        let what = format!("127.0.0.1:{}", path.display());
        // The lab forgets what stays.
        let _ = Command::new("exportfs").args(["-u", &what]).status();
        // The server holds on to files that were used a moment ago.
        let _ = Command::new("exportfs").arg("-f").status();
        let _ = Command::new("umount").arg("-l").arg(&path).status();
        // The server's threads may keep the file system for a minute, and memory is short.
        let image = std::fs::File::options().write(true).open(&self.image);
        let _ = image.and_then(|image| image.set_len(0));
        let _ = std::fs::remove_file(&self.image);
    }
}

/// Pools in an export, each in its own directory.
#[derive(Debug)]
pub struct NfsStorage {
    export: Export,
    vers: &'static str,
    next: AtomicU64,
}

impl NfsStorage {
    /// Over a file system of this kind, by this version of the protocol.
    ///
    /// # Panics
    /// If there is no server.
    pub fn new(kind: &str, vers: &'static str) -> NfsStorage {
        NfsStorage {
            export: Export::new(kind, 512 << 20),
            vers,
            next: AtomicU64::new(0),
        }
    }
}

struct NfsFixture {
    config: NfsConfig,
    directory: PathBuf,
    pool: Arc<dyn Pool>,
    next: AtomicU64,
}

#[async_trait]
impl Storage for NfsStorage {
    async fn make_pool(&self, settings: PoolSettings) -> Box<dyn Fixture> {
        let name = format!("pool-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let directory = self.export.path().join(&name);
        std::fs::create_dir(&directory).expect("a directory on the server");
        let mut config = self.export.config(&name, self.vers);
        // Foreign files may be there before the first volume.
        config.init = true;
        config.overcommit_limit = settings.overcommit_limit;
        config.warn_percent = settings.warn_percent;
        config.refuse_percent = settings.refuse_percent;
        let pool = volmux::nfs::open(config.clone()).await;
        Box::new(NfsFixture {
            pool: pool.expect("a pool in an export opens"),
            config,
            directory,
            next: AtomicU64::new(0),
        })
    }
}

#[async_trait]
impl Fixture for NfsFixture {
    fn pool(&self) -> Arc<dyn Pool> {
        self.pool.clone()
    }

    async fn reopen(&self) -> Option<Arc<dyn Pool>> {
        let pool = volmux::nfs::open(self.config.clone()).await;
        Some(pool.expect("the pool opens a second time"))
    }

    async fn place_foreign(&self, data: &[u8]) -> String {
        let name = format!("foreign-{}.img", self.next.fetch_add(1, Ordering::Relaxed));
        std::fs::write(self.directory.join(&name), data).expect("a foreign file");
        name
    }

    async fn settle(&self) {
        let root = std::fs::File::open(&self.directory).expect("the pool's root");
        rustix::fs::syncfs(root).expect("syncfs");
    }

    fn check(&self) {
        Chains::closed(&self.directory).check();
    }
}
