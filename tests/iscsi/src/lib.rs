//! A tgtd of its own for each test: an iSCSI target in user space that others wrote, on loopback.
//!
//! It runs as root, and needs the Debian package `tgt`. Servers don't know of each other: each has
//! an address, a control socket and a directory of its own, and is gone with what started it.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use volmux_iscsi_initiator::{Credentials, Options};

/// The initiator that [`Server::options`] names.
pub const INITIATOR: &str = "iqn.2026-01.org.example:initiator";
/// Another initiator.
pub const STRANGER: &str = "iqn.2026-01.org.example:stranger";

/// Below the ports that connections get for their own end: a client that tries again and again
/// while tgtd is down could be connected with itself, and then tgtd could not listen.
const PORT: u16 = 13260;
/// There tgtd listens until its targets are complete.
const NOWHERE: u16 = 13261;
/// Where the LUNs are, in the server's directory.
const STORE: &str = "store";

/// What a server is to have. Targets and LUNs are numbered from 1, in their order.
#[derive(Debug)]
pub struct Setup {
    dir: PathBuf,
    keeper: Child,
    steps: Vec<Vec<String>>,
    targets: usize,
    luns: usize,
    files: Vec<(PathBuf, u64)>,
    room: Option<u64>,
}

/// A tgtd. It is gone when this is dropped, and when this process ends, however it does.
#[derive(Debug)]
pub struct Server {
    setup: Setup,
    address: String,
    process: Option<Child>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup::new()
    }
}

impl Setup {
    /// No target.
    ///
    /// # Panics
    /// As everything here, if something does not work: these are tests.
    pub fn new() -> Setup {
        let dir = tempfile::Builder::new().prefix("volmux-tgt-").tempdir();
        let dir = dir.expect("a directory").keep();
        let keeper = keep(&dir);
        fs::create_dir(dir.join(STORE)).expect("a directory");
        Setup {
            dir,
            keeper,
            steps: Vec::new(),
            targets: 0,
            luns: 0,
            files: Vec::new(),
            room: None,
        }
    }

    /// All LUNs are stored on a file system with room for so many bytes, in memory. It is gone when
    /// tgtd ends.
    pub fn room(mut self, bytes: u64) -> Setup {
        self.room = Some(bytes);
        self
    }

    /// One disk, for everybody.
    pub fn disk(size: u64, block: u32) -> Setup {
        Setup::new().target(None).lun(size, block)
    }

    /// One more target: for everybody, or for one initiator.
    pub fn target(mut self, initiator: Option<&str>) -> Setup {
        (self.targets, self.luns) = (self.targets + 1, 0);
        let tid = self.targets.to_string();
        let name = target_name(self.targets);
        let bind = match initiator {
            Some(name) => ["--initiator-name", name],
            None => ["--initiator-address", "ALL"],
        };
        self.step(&[
            "--mode", "target", "--op", "new", "--tid", &tid, "-T", &name,
        ]);
        self.step(
            &[
                &["--mode", "target", "--op", "bind", "--tid", &tid],
                &bind[..],
            ]
            .concat(),
        );
        self
    }

    /// A thin LUN of the last target, over a sparse file.
    pub fn lun(self, size: u64, block: u32) -> Setup {
        self.thick_lun(size, block).update("thin_provisioning=1")
    }

    /// A LUN of the last target that can't unmap, over a sparse file.
    pub fn thick_lun(mut self, size: u64, block: u32) -> Setup {
        self.luns += 1;
        let path = lun_file(&self.dir, self.targets, self.luns);
        let file = File::create_new(&path).expect("a new file");
        file.set_len(size).expect("a sparse file");
        let (name, block) = (path.display().to_string(), block.to_string());
        let new = ["--op", "new", "--backing-store", &name, "--blocksize"];
        let which = self.last_lun();
        self.step(&[&as_strs(&which)[..], &new, &[&block]].concat());
        self.files.push((path, size));
        self
    }

    /// Parameters of the last LUN, as tgtadm has them: `readonly=1`, `scsi_sn=…`.
    pub fn update(mut self, parameters: &str) -> Setup {
        let which = self.last_lun();
        let update = ["--op", "update", "--params", parameters];
        self.step(&[&as_strs(&which)[..], &update].concat());
        self
    }

    fn last_lun(&self) -> Vec<String> {
        which_lun(self.targets, self.luns)
    }

    /// A parameter of the last target's sessions.
    pub fn parameter(mut self, name: &str, value: &str) -> Setup {
        let tid = self.targets.to_string();
        let which = ["--mode", "target", "--op", "update", "--tid", &tid];
        self.step(&[&which[..], &["--name", name, "--value", value]].concat());
        self
    }

    /// Who may log in to the last target.
    pub fn incoming(self, account: &Credentials) -> Setup {
        let tid = self.targets.to_string();
        self.account(account, &["--tid", &tid])
    }

    /// How the last target proves who it is.
    pub fn outgoing(self, account: &Credentials) -> Setup {
        let tid = self.targets.to_string();
        self.account(account, &["--tid", &tid, "--outgoing"])
    }

    /// Who may ask for the targets.
    pub fn for_discovery(self, account: &Credentials) -> Setup {
        self.account(account, &[])
    }

    fn account(mut self, account: &Credentials, of: &[&str]) -> Setup {
        let mode = ["--mode", "account", "--user", &account.name];
        let secret = String::from_utf8(account.secret.to_vec()).expect("text");
        self.step(&[&mode[..], &["--op", "new", "--password", &secret]].concat());
        self.step(&[&mode[..], &["--op", "bind"], of].concat());
        self
    }

    fn step(&mut self, arguments: &[&str]) {
        let step = arguments.iter().map(|argument| (*argument).to_owned());
        self.steps.push(step.collect());
    }

    /// Starts it.
    pub fn start(self) -> Server {
        // An address of its own spares looking for a free port, which others could take again.
        let mut random = [0; 3];
        getrandom::fill(&mut random).expect("random bytes");
        let [a, b, c] = random.map(|byte| byte % 254 + 1);
        let mut server = Server {
            setup: self,
            address: format!("127.{a}.{b}.{c}"),
            process: None,
        };
        server.start();
        server
    }
}

impl Server {
    /// Where its targets are.
    pub fn portal(&self) -> String {
        format!("{}:{PORT}", self.address)
    }

    /// The unix socket by which it is controlled.
    pub fn socket(&self) -> PathBuf {
        // It adds the number that it has by `-C`.
        self.setup.dir.join("control.0")
    }

    /// A directory that goes with it.
    pub fn directory(&self) -> &Path {
        &self.setup.dir
    }

    /// Whether it has not ended by itself.
    pub fn runs(&mut self) -> bool {
        let process = self.process.as_mut().expect("it was started");
        process.try_wait().expect("its status").is_none()
    }

    /// A portal where nobody listens.
    pub fn closed_portal(&self) -> String {
        format!("{}:{}", self.address, PORT + 2)
    }

    /// For a session with a target.
    pub fn options(&self, target: usize) -> Options {
        let mut options = Options::new(self.portal(), INITIATOR);
        options.target = Some(target_name(target));
        options
    }

    /// What a LUN is stored in. While tgtd runs, this is what it has before it.
    pub fn file(&self, target: usize, lun: usize) -> PathBuf {
        let path = lun_file(&self.setup.dir, target, lun);
        match &self.process {
            Some(process) if self.setup.room.is_some() => {
                let root = format!("/proc/{}/root", process.id());
                Path::new(&root).join(path.strip_prefix("/").expect("it is absolute"))
            }
            _ => path,
        }
    }

    /// The connections that a target has.
    pub fn connections(&self, target: usize) -> usize {
        let tid = target.to_string();
        let shown = self.admin(&["--mode", "conn", "--op", "show", "--tid", &tid]);
        let shown = shown.expect("connections");
        shown.matches("Connection:").count()
    }

    /// Starts it as it was set up; clients find it when it is complete. The process ends with the
    /// thread that calls this.
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log());
        let log = log.expect("a log file");
        let mut command = Command::new("setpriv");
        let nowhere = format!("portal={}:{NOWHERE}", self.address);
        command.args(["--pdeathsig", "KILL", "--"]);
        if let Some(bytes) = self.setup.room {
            self.with_room(&mut command, bytes);
        }
        command
            .args(["tgtd", "-f", "-C", "0", "--iscsi", &nowhere])
            .envs(self.environment())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second descriptor"))
            .stderr(log);
        let process = command.spawn();
        let process = process.unwrap_or_else(|e| panic!("{command:?}: {e}; run .ci/setup"));
        self.process = Some(process);
        let start = Instant::now();
        while self.admin(&["--mode", "target", "--op", "show"]).is_err() {
            let process = self.process.as_mut().expect("it was started");
            let ended = process.try_wait().expect("its status");
            assert!(ended.is_none(), "tgtd: {ended:?}; it must be run as root");
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "tgtd does not answer"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let portal = format!("portal={}", self.portal());
        let portal = ["--mode", "portal", "--op", "new", "--param", &portal];
        let portal = portal.map(str::to_owned).to_vec();
        for step in self.setup.steps.iter().chain([&portal]) {
            self.admin(&as_strs(step))
                .unwrap_or_else(|why| panic!("{step:?}: {why}"));
        }
    }

    /// What follows sees another file system where the LUNs are stored, with empty LUNs.
    fn with_room(&self, command: &mut Command, bytes: u64) {
        const SCRIPT: &str = r#"
            mount -t tmpfs -o "size=$1" volmux-test "$2" && shift 2
            while [ "$1" != -- ]; do truncate -s "$1" -- "$2" && shift 2 || exit; done
            shift
            exec "$@""#;
        command
            .args(["unshare", "--mount", "--propagation", "private", "--"])
            .args(["/bin/sh", "-ec", SCRIPT, "store", &bytes.to_string()])
            .arg(self.setup.dir.join(STORE));
        for (path, size) in &self.setup.files {
            command.arg(size.to_string()).arg(path);
        }
        command.arg("--");
    }

    /// Makes a LUN anew, with as many bytes: tgt can't make one larger or smaller. Sessions stay.
    pub fn resize(&self, target: usize, lun: usize, size: u64) {
        let which = which_lun(target, lun);
        let delete = [&as_strs(&which)[..], &["--op", "delete"]].concat();
        self.admin(&delete).expect("the LUN is deleted");
        let file = OpenOptions::new().write(true).open(self.file(target, lun));
        file.and_then(|file| file.set_len(size))
            .expect("another size");
        let of_lun = |step: &&Vec<String>| step.starts_with(&which);
        for step in self.setup.steps.iter().filter(of_lun) {
            self.admin(&as_strs(step))
                .unwrap_or_else(|why| panic!("{step:?}: {why}"));
        }
    }

    /// Ends it at once, as if it had crashed.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("killed");
            process.wait().expect("its status");
        }
    }

    /// Has it do nothing, until it is told to go on.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Has it go on.
    pub fn go_on(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let process = self.process.as_ref().expect("it runs");
        let mut command = Command::new("kill");
        let status = command.args([signal, &process.id().to_string()]).status();
        assert!(status.expect("kill is there").success(), "{command:?}");
    }

    /// Has tgtadm do something, and returns what it prints. If that fails: why.
    ///
    /// # Errors
    /// What tgtadm says.
    pub fn admin(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("tgtadm");
        command.args(["-C", "0", "--lld", "iscsi"]).args(arguments);
        let output = command
            .envs(self.environment())
            .stdin(Stdio::null())
            .output();
        let output = output.unwrap_or_else(|e| panic!("{command:?}: {e}; run .ci/setup"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    /// Where both programs find the control socket; the number of `-C` is then no longer unique.
    fn environment(&self) -> [(&'static str, PathBuf); 2] {
        let socket = self.setup.dir.join("control");
        [("TGT_IPC_SOCKET", socket), ("LC_ALL", "C".into())]
    }

    fn log(&self) -> PathBuf {
        self.setup.dir.join("log")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "tgtd says:\n{}",
                fs::read_to_string(self.log()).unwrap_or_default()
            );
        }
        if let Some(process) = &mut self.process {
            // Fails only if it ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Starts a shell that removes `dir` as soon as this process is gone, however it ends: its end of
/// the pipe is closed then.
fn keep(dir: &Path) -> Child {
    const KEEPER: &str = r#"trap '' HUP INT TERM; read -r _; rm -rf -- "$1""#;
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", KEEPER, "keeper"])
        .arg(dir)
        .stdin(Stdio::piped());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("a shell starts")
}

/// How a target is called.
pub fn target_name(target: usize) -> String {
    format!("iqn.2026-01.org.example:target-{target}")
}

fn which_lun(target: usize, lun: usize) -> Vec<String> {
    let (tid, lun) = (target.to_string(), lun.to_string());
    ["--mode", "logicalunit", "--tid", &tid, "--lun", &lun]
        .map(str::to_owned)
        .to_vec()
}

fn as_strs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

fn lun_file(dir: &Path, target: usize, lun: usize) -> PathBuf {
    dir.join(STORE).join(format!("target-{target}-lun-{lun}"))
}
