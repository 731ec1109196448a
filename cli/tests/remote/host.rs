//! The other host: an sshd of the test's own, on loopback.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::process::{Pid, Signal, kill_process};
use volmux::{Pool, VolumeName};
use volmux_iscsi::IscsiConfig;
use volmux_iscsi::open::Opener;
use volmux_iscsi::remote::{RemoteConfig, RemotePool};
use volmux_iscsi::transport::Native;

use crate::common::{Place, wait_until};

/// The program, as it is there.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_volmux");

/// A host with a directory pool. All of it ends with this.
#[derive(Debug)]
pub struct Host {
    pub place: Place,
    pub port: u16,
    sshd: Sshd,
}

/// The process. It ends with this.
#[derive(Debug)]
struct Sshd(Child);

impl Drop for Sshd {
    fn drop(&mut self) {
        // Both only fail if it is gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Host {
    pub fn start() -> Self {
        let place = Place::new();
        for key in ["host", "user", "stranger"] {
            make_key(&place.path(key));
        }
        fs::copy(place.path("user.pub"), place.path("authorized")).expect("authorized keys");
        fs::write(place.path("sshd_config"), configuration(&place)).expect("configuration");
        if rustix::process::geteuid().is_root() {
            // Its own service makes it where that runs; it is empty, and sshd insists on it.
            fs::create_dir_all("/run/sshd").expect("sshd's directory");
        }
        let (sshd, port) = start_sshd(&place);
        let host = Host { place, port, sshd };
        host.know("known_hosts", "host");
        host
    }

    /// Writes a file that says that this host has the key `key`.
    pub fn know(&self, file: &str, key: &str) {
        let public = fs::read_to_string(self.place.path(&format!("{key}.pub"))).expect("key");
        let line = format!("[127.0.0.1]:{} {public}", self.port);
        fs::write(self.place.path(file), line).expect("known hosts");
    }

    /// How to get at the pool there.
    pub fn config(&self) -> RemoteConfig {
        let mut config = RemoteConfig::new(user(), "127.0.0.1", self.place.url());
        config.port = self.port;
        config.key = Some(self.place.path("user"));
        config.known_hosts = Some(self.place.path("known_hosts"));
        config.program = PROGRAM.into();
        config
    }

    /// The pool there, from here.
    pub async fn pool(&self) -> RemotePool {
        open(self.config()).await.expect("remote pool")
    }

    /// The pool there, as somebody on that host has it.
    pub async fn there(&self) -> Arc<dyn Pool> {
        let registry = volmux::registry();
        registry.open(&self.place.url()).await.expect("pool there")
    }

    /// A program there that does `body` instead of what it is told, but for `pool info`.
    pub fn program(&self, body: &str) -> String {
        let path = self.place.path("program");
        let real = PROGRAM;
        let text = format!(
            "#!/bin/sh\ncase \" $* \" in *' pool info '*) exec '{real}' \"$@\" ;; esac\n{body}\n"
        );
        // Written aside, as a program that is open for writing can't be started.
        let aside = self.place.path("program.new");
        fs::write(&aside, text).expect("program");
        fs::set_permissions(&aside, fs::Permissions::from_mode(0o755)).expect("mode");
        fs::rename(&aside, &path).expect("program");
        path.to_str().expect("UTF-8").to_owned()
    }

    /// The pool there, by a program that does `body`.
    pub async fn pool_by(&self, body: &str) -> RemotePool {
        let mut config = self.config();
        config.program = self.program(body);
        open(config).await.expect("remote pool")
    }

    /// The processes that serve connections, and what they started.
    pub fn processes(&self) -> Vec<Pid> {
        let (mut all, mut next) = (Vec::new(), vec![self.sshd.0.id()]);
        while let Some(pid) = next.pop() {
            let children = children(pid);
            all.extend(
                children
                    .iter()
                    .filter_map(|&child| Pid::from_raw(child.cast_signed())),
            );
            next.extend(children);
        }
        all
    }

    /// The command lines of the ssh processes here that are connected to this host.
    pub fn connectors(&self) -> Vec<Vec<String>> {
        let port = self.port.to_string();
        let lines = children(std::process::id()).into_iter().map(command_line);
        let to_here = |line: &Vec<String>| line.windows(2).any(|w| w[0] == "-p" && w[1] == port);
        lines
            .filter(|line| line[0].ends_with("/ssh") && to_here(line))
            .collect()
    }

    /// Ends every connection, as if the network was gone.
    pub fn cut(&self) {
        for pid in self.processes() {
            // It may have ended just now.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Waits for a file that a program there writes, and gives its content.
    pub fn written(&self, name: &str) -> String {
        wait_until(name, || self.place.path(name).exists());
        fs::read_to_string(self.place.path(name)).expect(name)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.cut();
    }
}

pub async fn open(config: RemoteConfig) -> volmux::Result<RemotePool> {
    RemotePool::open(config, Arc::new(opener())).await
}

pub fn name(name: &str) -> VolumeName {
    VolumeName::new(name).expect("name")
}

fn children(pid: u32) -> Vec<u32> {
    // A process that has just ended has none.
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let lists = tasks.map(|task| fs::read_to_string(task.path().join("children")));
    let lists: Vec<String> = lists.map(Result::unwrap_or_default).collect();
    let pids = lists.iter().flat_map(|list| list.split_whitespace());
    pids.map(|pid| pid.parse().expect("pid")).collect()
}

/// The arguments of a process, or one that is empty once it has ended.
fn command_line(pid: u32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8(line).expect("UTF-8");
    text.split('\0').map(str::to_owned).collect()
}

fn user() -> String {
    let output = Command::new("id").arg("-un").output().expect("id");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.trim().to_owned()
}

fn make_key(path: &Path) {
    let status = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
        .arg(path)
        .status();
    assert!(status.expect("ssh-keygen").success());
}

fn configuration(place: &Place) -> String {
    format!(
        "ListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n\
         PermitRootLogin prohibit-password\nMaxStartups 100\nUseDNS no\n",
        place.text("host"),
        place.text("authorized"),
    )
}

/// On a port that is free: somebody else may take it meanwhile, then it is another one.
fn start_sshd(place: &Place) -> (Sshd, u16) {
    for _ in 0..20 {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("port");
        let port = free.local_addr().expect("address").port();
        drop(free);
        let log: PathBuf = place.path("sshd.log");
        let file = fs::File::create(&log).expect("log");
        let sshd = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f", &place.text("sshd_config")])
            .args(["-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn();
        let sshd = Sshd(sshd.expect("sshd (apt-get install openssh-server)"));
        let log = || fs::read_to_string(&log).expect("log");
        wait_until("sshd listens", || {
            let text = log();
            text.contains("Server listening on") || text.contains("Address already in use")
        });
        if log().contains("Server listening on") {
            return (sshd, port);
        }
    }
    panic!("no port is free");
}

/// For volumes that nobody opens here.
fn opener() -> Opener {
    let sessions = IscsiConfig::new("127.0.0.1", "iqn.2026-11.org.example:none").sessions();
    Opener::new(Arc::new(Native), sessions.expect("no secrets"))
}
