//! A tgtd of its own, as the target behind a server. It has one target, which maps no unit to one
//! initiator alone: tests see to it that numbers differ.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub const TARGET: &str = "iqn.2026-01.org.example:array";
const PORT: u16 = 13270;

/// It is gone when this is dropped, and when the thread ends that started it.
#[derive(Debug)]
pub struct Tgt {
    dir: TempDir,
    address: String,
    process: Child,
    authenticated: bool,
    initiators: BTreeSet<String>,
}

impl Tgt {
    pub fn start() -> Tgt {
        let dir = tempfile::Builder::new().prefix("volmux-targetd-").tempdir();
        let dir = dir.expect("a directory");
        // An address of its own spares looking for a free port, which others could take again.
        let mut random = [0; 3];
        getrandom::fill(&mut random).expect("random bytes");
        let [a, b, c] = random.map(|byte| byte % 254 + 1);
        let address = format!("127.{a}.{b}.{c}");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.path().join("log"));
        let log = log.expect("a log file");
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(["tgtd", "-f", "-C", "0", "--iscsi"])
            .arg(format!("portal={address}:{PORT}"))
            .env("TGT_IPC_SOCKET", dir.path().join("control"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second descriptor"))
            .stderr(log);
        let process = command.spawn();
        let process = process.unwrap_or_else(|e| panic!("{command:?}: {e}; run .ci/setup"));
        let mut tgt = Tgt {
            dir,
            address,
            process,
            authenticated: false,
            initiators: BTreeSet::new(),
        };
        let start = Instant::now();
        while let Err(why) = tgt.admin(&["--mode", "target", "--op", "show"]) {
            let ended = tgt.process.try_wait().expect("its status");
            assert!(ended.is_none(), "tgtd: {ended:?}; it must be run as root");
            assert!(start.elapsed() < Duration::from_secs(30), "tgtd: {why}");
            std::thread::sleep(Duration::from_millis(10));
        }
        tgt.must(&[
            "--mode", "target", "--op", "new", "--tid", "1", "-T", TARGET,
        ]);
        tgt
    }

    pub fn portal(&self) -> String {
        format!("{}:{PORT}", self.address)
    }

    pub fn file(&self, volume: &str) -> PathBuf {
        self.dir.path().join(format!("volume-{volume}"))
    }

    pub fn make_volume(&self, name: &str, size: u64) {
        let file = File::create_new(self.file(name)).expect("a new file");
        file.set_len(size).expect("a sparse file");
    }

    pub fn copy_volume(&self, from: &str, to: &str) {
        fs::copy(self.file(from), self.file(to)).expect("copied");
    }

    pub fn resize_volume(&self, name: &str, size: u64) {
        let file = OpenOptions::new().write(true).open(self.file(name));
        file.expect("the file").set_len(size).expect("longer");
    }

    pub fn delete_volume(&self, name: &str) {
        fs::remove_file(self.file(name)).expect("removed");
    }

    /// tgt's accounts are those of the target: whoever sets them sets the same.
    pub fn authenticate(&mut self, params: &Value) {
        if std::mem::replace(&mut self.authenticated, true) {
            return;
        }
        for (user, password, outgoing) in [
            ("in_user", "in_pass", None),
            ("out_user", "out_pass", Some("--outgoing")),
        ] {
            let Some(user) = params[user].as_str() else {
                continue;
            };
            let password = params[password].as_str().expect("a password");
            let account = ["--mode", "account", "--user", user];
            self.must(&[&account[..], &["--op", "new", "--password", password]].concat());
            let bind = [
                &account[..],
                &["--op", "bind", "--tid", "1"],
                outgoing.as_slice(),
            ];
            self.must(&bind.concat());
        }
    }

    pub fn export(&mut self, volume: &str, initiator: &str, lun: u64, serial: &str) {
        let (lun, file) = (lun.to_string(), self.file(volume));
        let unit = ["--mode", "logicalunit", "--tid", "1", "--lun", &lun];
        let file = file.to_str().expect("text");
        let new = ["--op", "new", "--backing-store", file];
        self.must(&[&unit[..], &new].concat());
        let serial = format!("scsi_sn={serial}");
        self.must(&[&unit[..], &["--op", "update", "--params", &serial]].concat());
        if self.initiators.insert(initiator.to_owned()) {
            self.must(&[
                "--mode",
                "target",
                "--op",
                "bind",
                "--tid",
                "1",
                "--initiator-name",
                initiator,
            ]);
        }
    }

    pub fn unexport(&mut self, initiator: &str, lun: u64, more: bool) {
        if !more && self.initiators.remove(initiator) {
            let unbind = ["--mode", "target", "--op", "unbind", "--tid", "1"];
            self.must(&[&unbind[..], &["--initiator-name", initiator]].concat());
            self.end_sessions(initiator);
        }
        let lun = lun.to_string();
        self.must(&[
            "--mode",
            "logicalunit",
            "--op",
            "delete",
            "--tid",
            "1",
            "--lun",
            &lun,
            "--force",
        ]);
    }

    fn end_sessions(&self, initiator: &str) {
        let shown = self.must(&["--mode", "conn", "--op", "show", "--tid", "1"]);
        let mut session = None;
        let mut connection = None;
        for line in shown.lines().map(str::trim) {
            if let Some(number) = line.strip_prefix("Session:") {
                session = Some(number.trim().to_owned());
            } else if let Some(number) = line.strip_prefix("Connection:") {
                connection = Some(number.trim().to_owned());
            } else if line == format!("Initiator: {initiator}") {
                let sid = session.clone().expect("a session");
                let cid = connection.clone().expect("a connection");
                let end = ["--mode", "conn", "--op", "delete", "--tid", "1"];
                // It may have ended by itself.
                let _ = self.admin(&[&end[..], &["--sid", &sid, "--cid", &cid]].concat());
            }
        }
    }

    fn must(&self, arguments: &[&str]) -> String {
        self.admin(arguments)
            .unwrap_or_else(|why| panic!("{arguments:?}: {why}"))
    }

    /// Has tgtadm do something. If that fails: why.
    fn admin(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("tgtadm");
        command.args(["-C", "0", "--lld", "iscsi"]).args(arguments);
        let output = command
            .env("TGT_IPC_SOCKET", self.dir.path().join("control"))
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output();
        let output = output.unwrap_or_else(|e| panic!("{command:?}: {e}; run .ci/setup"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }
}

impl Drop for Tgt {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log"));
            eprintln!("tgtd says:\n{}", log.unwrap_or_default());
        }
        // Fails only if it ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
