//! iSCSI arrays, each on a target of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};

use async_trait::async_trait;
use volmux::iscsi::control::TargetControl;
use volmux::iscsi::control::lio::Lio;
use volmux::{Pool, Registry};
use volmux_iscsi_server::{Server, Setup};

use crate::lvm::{ScratchGroup, place_foreign};
use crate::scratch::LoopFs;
use crate::{Fixture, PoolSettings, Storage};

/// Arrays of a tgtd over directories on XFS.
#[derive(Debug)]
pub struct TgtStorage {
    // It has to go before what it has open.
    tgtd: Tgtd,
    fs: LoopFs,
    next: AtomicU64,
    registry: Registry,
    options: &'static str,
}

/// A tgtd of its own, which ends with the thread that started it.
#[derive(Debug)]
pub struct Tgtd(Server);

impl Tgtd {
    /// Starts one, in the mount namespace of this thread.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start() -> Tgtd {
        Tgtd(Setup::new().start())
    }

    /// Kills it, and starts it again. It has forgotten everything then.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self) {
        self.kill();
        self.0.start();
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.0.kill();
    }

    /// Breaks all connections of target number `id`.
    ///
    /// # Panics
    /// If tgtd does not tell them.
    pub fn break_connections(&self, id: u32) {
        let id = id.to_string();
        let connections = ["--mode", "conn", "--tid", &id];
        let admin = |arguments: &[&str]| self.0.admin(&[&connections, arguments].concat());
        let mut session = String::new();
        for line in admin(&["--op", "show"]).expect("connections").lines() {
            if let Some(number) = line.strip_prefix("Session: ") {
                number.clone_into(&mut session);
            } else if let Some(number) = line.trim_start().strip_prefix("Connection: ") {
                // It may have gone meanwhile.
                let _ = admin(&["--op", "delete", "--sid", &session, "--cid", number]);
            }
        }
    }

    /// Makes target number `id`, which shows `path` to everybody as logical unit 1, as a person would.
    ///
    /// # Panics
    /// If tgtd does not do it.
    pub fn show(&self, id: u32, target: &str, path: &Path) {
        // tgtd makes serial numbers of it.
        let id = id.to_string();
        let path = path.display().to_string();
        let unit = ["--lun", "1", "-b", &path];
        for (mode, op, more) in [
            ("target", "new", &["-T", target][..]),
            ("logicalunit", "new", &unit),
            ("target", "bind", &["-I", "ALL"]),
        ] {
            let which = ["--mode", mode, "--op", op, "--tid", &id];
            let done = self.0.admin(&[&which, more].concat());
            done.unwrap_or_else(|why| panic!("{mode} {op}: {why}"));
        }
    }

    /// The URL of a target that nobody controls.
    pub fn plain_url(&self, target: &str) -> String {
        format!("iscsi://{}/{target}", self.0.portal())
    }

    /// The URL of an array over the pool `store`.
    pub fn url(&self, target: &str, store: &str) -> String {
        let mut url = format!("iscsi://{}/{target}?control=tgt", self.0.portal());
        let socket = self.0.socket().display().to_string();
        let locks = self.0.directory().join("locks").display().to_string();
        for (key, value) in [("store", store), ("tgt_socket", &socket), ("locks", &locks)] {
            url.push_str(&format!("&{key}={}", escaped(value)));
        }
        url
    }
}

/// An address of this machine that nobody listens at: that spares looking for a free port.
fn unused_address() -> String {
    let random = volmux::VolumeId::random().to_string();
    let part = |at: usize| u8::from_str_radix(&random[at..at + 2], 16).expect("hexadecimal");
    let [a, b, c] = [0, 2, 4].map(|at| part(at) % 254 + 1);
    format!("127.{a}.{b}.{c}")
}

/// As a value in a URL's query.
pub fn escaped(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/".contains(&byte);
    let escape = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    value.bytes().map(escape).collect()
}

impl TgtStorage {
    /// A file system and a target.
    pub fn new() -> Self {
        TgtStorage::opened_by(volmux::registry(), "")
    }

    /// The same, with pools that `registry` opens, by URLs with these options more (`&key=value`).
    pub fn opened_by(registry: Registry, options: &'static str) -> Self {
        // Mounted first: the target sees what its thread sees.
        let fs = LoopFs::xfs(512 << 20);
        TgtStorage {
            tgtd: Tgtd::start(),
            fs,
            next: AtomicU64::new(0),
            registry,
            options,
        }
    }
}

impl Default for TgtStorage {
    fn default() -> Self {
        TgtStorage::new()
    }
}

#[async_trait]
impl Storage for TgtStorage {
    async fn make_pool(&self, settings: PoolSettings) -> Box<dyn Fixture> {
        let (store, root) = new_directory(&self.fs, &self.next, settings);
        let name = root.file_name().expect("a name").to_string_lossy();
        let target = format!("{TARGETS}{name}");
        let url = self.tgtd.url(&target, &store) + self.options;
        let registry = self.registry.clone();
        Box::new(ArrayFixture::new(registry, url, Place::Directory(root)).await)
    }
}

/// A new directory for a pool: the pool's URL, and where it is.
fn new_directory(fs: &LoopFs, next: &AtomicU64, settings: PoolSettings) -> (String, PathBuf) {
    let number = next.fetch_add(1, Ordering::Relaxed);
    let path = fs.path().join(format!("pool-{number}"));
    std::fs::create_dir(&path).expect("a directory on the scratch file system");
    // Foreign files may be there before the first volume.
    let url = format!("dir://{}?init=true", path.display());
    (url + &as_options(settings), path)
}

/// As options of a URL that has others before them.
fn as_options(settings: PoolSettings) -> String {
    let mut options = String::new();
    for (key, value) in [
        ("overcommit_limit", settings.overcommit_limit),
        ("warn_percent", settings.warn_percent),
        ("refuse_percent", settings.refuse_percent),
    ] {
        if let Some(value) = value {
            options.push_str(&format!("&{key}={value}"));
        }
    }
    options
}

/// Arrays of the kernel's target, LIO. They need the lab.
#[derive(Debug)]
pub struct LioStorage {
    portal: String,
    locks: tempfile::TempDir,
    store: Store,
    next: AtomicU64,
    targets: Mutex<Vec<String>>,
}

/// What the pools behind it are in.
#[derive(Debug)]
enum Store {
    Directories(LoopFs),
    /// Taken away when the storage is: pools and devices may live longer than the fixture.
    Groups(Mutex<Vec<ScratchGroup>>),
}

impl LioStorage {
    /// What a thin pool of the tests can hold.
    const THIN: u64 = 256 << 20;

    /// Over thin pools of LVM, each in a group of its own.
    ///
    /// # Panics
    /// If this is not the lab.
    pub fn lvm_thin() -> Self {
        load_lio();
        LioStorage::over(Store::Groups(Mutex::default()))
    }

    /// Over directories on XFS.
    ///
    /// # Panics
    /// If this is not the lab.
    pub fn xfs() -> Self {
        // Before this thread has mounts of its own.
        load_lio();
        LioStorage::over(Store::Directories(LoopFs::xfs(512 << 20)))
    }

    fn over(store: Store) -> Self {
        let locks = tempfile::Builder::new().prefix("volmux-lio-").tempdir();
        LioStorage {
            portal: format!("{}:3260", unused_address()),
            locks: locks.expect("a directory"),
            store,
            next: AtomicU64::new(0),
            targets: Mutex::default(),
        }
    }

    /// A new place for a pool: the pool's URL, what to call its targets by, and where it is.
    fn new_store(&self, settings: PoolSettings) -> (String, String, Place) {
        match &self.store {
            Store::Directories(fs) => {
                let (url, root) = new_directory(fs, &self.next, settings);
                let name = volmux::VolumeId::random().to_string();
                (url, name, Place::Directory(root))
            }
            Store::Groups(groups) => {
                let group = ScratchGroup::with_pool(LioStorage::THIN, 4 << 20);
                let name = group.name().to_owned();
                groups.lock().expect("not poisoned").push(group);
                let url = format!("lvm://{name}/pool?timeout=120{}", as_options(settings));
                (url, name.clone(), Place::Group(name))
            }
        }
    }
}

/// Has the kernel's target in place.
fn load_lio() {
    // Not on a machine whose targets somebody needs.
    assert!(Path::new("/run/lab").exists(), "run this in tests/lab/run");
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        run("modprobe configfs");
        if !Path::new("/sys/kernel/config/target").exists() {
            run("mount -t configfs configfs /sys/kernel/config");
        }
        run("modprobe -a target_core_mod iscsi_target_mod target_core_iblock target_core_file");
    });
}

/// Runs a program with words that have no spaces.
fn run(command: &str) {
    let mut words = command.split_ascii_whitespace();
    let done = Command::new(words.next().expect("a program"))
        .args(words)
        .output();
    let done = done.unwrap_or_else(|error| panic!("{command}: {error}"));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command}: {said}");
}

#[async_trait]
impl Storage for LioStorage {
    async fn make_pool(&self, settings: PoolSettings) -> Box<dyn Fixture> {
        let (store, name, place) = self.new_store(settings);
        let target = format!("{TARGETS}{name}");
        let locks = self.locks.path().display().to_string();
        let (store, locks) = (escaped(&store), escaped(&locks));
        let portal = &self.portal;
        let url = format!("iscsi://{portal}/{target}?control=lio&store={store}&locks={locks}");
        self.targets.lock().expect("not poisoned").push(target);
        Box::new(ArrayFixture::new(volmux::registry(), url, place).await)
    }
}

impl Drop for LioStorage {
    fn drop(&mut self) {
        // What a test that failed has left holds the volumes, and with them the store.
        let targets = std::mem::take(&mut *self.targets.lock().expect("not poisoned"));
        let lio = Lio::new(Vec::new());
        crate::on(async {
            for prefix in targets {
                let left = lio.list("drop", &format!("{prefix}:")).await;
                for left in left.unwrap_or_default() {
                    let _ = lio.unexport("drop", &left.target).await;
                }
            }
        });
    }
}

/// What the names of targets begin with.
const TARGETS: &str = "iqn.2026-11.org.volmux:";

struct ArrayFixture {
    registry: Registry,
    url: String,
    pool: Arc<dyn Pool>,
    place: Place,
    next: AtomicU64,
}

/// Where the volumes of an array are.
enum Place {
    Directory(PathBuf),
    Group(String),
}

impl ArrayFixture {
    async fn new(registry: Registry, url: String, place: Place) -> Self {
        let pool = registry.open(&url).await;
        ArrayFixture {
            registry,
            pool: pool.expect("an array opens"),
            url,
            place,
            next: AtomicU64::new(0),
        }
    }
}

#[async_trait]
impl Fixture for ArrayFixture {
    fn pool(&self) -> Arc<dyn Pool> {
        self.pool.clone()
    }

    async fn reopen(&self) -> Option<Arc<dyn Pool>> {
        let pool = self.registry.open(&self.url).await;
        Some(pool.expect("the array opens again"))
    }

    async fn place_foreign(&self, data: &[u8]) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        match &self.place {
            Place::Directory(root) => {
                let name = format!("foreign-{number}.img");
                std::fs::write(root.join(&name), data).expect("a foreign file");
                name
            }
            Place::Group(group) => {
                let name = format!("foreign-{number}");
                place_foreign(group, Some("pool"), &name, data);
                name
            }
        }
    }

    async fn settle(&self) {}
}
