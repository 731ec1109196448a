//! Pools in volume groups. They need device-mapper: the lab has it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use volmux::Pool;
use volmux::lvm::{LvmConfig, LvmPool};

use crate::fixture::{Fixture, PoolSettings, Storage};

/// The unit of sizes of the groups made here, and of the chunks of their thin pools.
pub const UNIT: u64 = 64 << 10;

/// A volume group on a loop device on a sparse file in memory. Dropping it takes all of it away,
/// whatever is in it.
#[derive(Debug)]
pub struct ScratchGroup {
    name: String,
    image: PathBuf,
    device: String,
}

impl ScratchGroup {
    /// A group of about `bytes`, with a name that no other process uses. All these names are
    /// equally long.
    ///
    /// # Panics
    /// If it can't be made; the message says what is missing.
    pub fn new(bytes: u64) -> ScratchGroup {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vm{:06}n{number:03}", std::process::id() % 1_000_000);
        let image = PathBuf::from(format!("/dev/shm/{name}"));
        let file = std::fs::File::create(&image).expect("a file in memory");
        file.set_len(bytes).expect("a sparse file");
        let shown = image.to_str().expect("a path of ASCII");
        run("modprobe", &["loop"]);
        let device = run("losetup", &["--find", "--show", shown]);
        let group = ScratchGroup {
            name,
            image,
            device: device.trim_end().to_owned(),
        };
        let unit = format!("{UNIT}b");
        // Room for the tags of more than a thousand volumes.
        let metadata = ["--metadatasize", "8m"];
        let start = ["vgcreate", "-y", "--physicalextentsize", &unit];
        lvm(&[&start[..], &metadata, &[&group.name, &group.device]].concat());
        group
    }

    /// A group as [`new`](Self::new), with a thin pool called `pool` of `bytes` in it.
    ///
    /// # Panics
    /// As `new`.
    pub fn with_pool(bytes: u64, metadata: u64) -> ScratchGroup {
        let group = ScratchGroup::new(bytes + 2 * metadata + (16 << 20));
        group.make_pool("pool", bytes, metadata, &[]);
        group
    }

    /// Makes a thin pool, with further options of `lvcreate`.
    ///
    /// # Panics
    /// If that fails.
    pub fn make_pool(&self, name: &str, bytes: u64, metadata: u64, options: &[&str]) {
        let (bytes, metadata) = (format!("{bytes}b"), format!("{metadata}b"));
        let unit = format!("{UNIT}b");
        let start = ["lvcreate", "-y", "--type", "thin-pool"];
        let sizes = ["-L", &bytes, "--poolmetadatasize", &metadata];
        let more = ["--poolmetadataspare", "n", "--chunksize", &unit];
        let end = ["-n", name, &self.name];
        lvm(&[&start[..], &sizes, &more, options, &end].concat());
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for ScratchGroup {
    fn drop(&mut self) {
        // A test that failed may have left all sorts of things, so each step is tried.
        let _ = try_run("lvm", &["vgremove", "-ff", "-y", &self.name]);
        let _ = try_run("losetup", &["--detach", &self.device]);
        let _ = std::fs::remove_file(&self.image);
    }
}

/// Runs an lvm2 command and returns what it printed.
///
/// # Panics
/// If it fails.
pub fn lvm(args: &[&str]) -> String {
    run("lvm", args)
}

fn run(program: &str, args: &[&str]) -> String {
    let done = try_run(program, args);
    done.unwrap_or_else(|why| {
        panic!("{program} {args:?}: {why}; it needs device-mapper: tests/lab/run")
    })
}

fn try_run(program: &str, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(format!("/usr/sbin/{program}"));
    command.args(args).env("LC_ALL", "C");
    // Descriptors of the test are none of lvm2's business.
    command.env("LVM_SUPPRESS_FD_WARNINGS", "1");
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// LVM pools, each in a volume group of its own.
#[derive(Debug)]
pub struct LvmStorage {
    thin: bool,
    groups: Mutex<Vec<ScratchGroup>>,
}

impl LvmStorage {
    /// What a thin pool of the tests can hold.
    const THIN: u64 = 256 << 20;
    /// Volumes are zeroed when they are made, hence less of them.
    const THICK: u64 = 160 << 20;

    /// Thin pools.
    pub fn thin() -> Self {
        LvmStorage {
            thin: true,
            groups: Mutex::default(),
        }
    }

    /// Groups of thick volumes.
    pub fn thick() -> Self {
        LvmStorage {
            thin: false,
            ..LvmStorage::thin()
        }
    }
}

#[async_trait]
impl Storage for LvmStorage {
    async fn make_pool(&self, settings: PoolSettings) -> Box<dyn Fixture> {
        let group = if self.thin {
            ScratchGroup::with_pool(LvmStorage::THIN, 4 << 20)
        } else {
            ScratchGroup::new(LvmStorage::THICK)
        };
        // Taken away when the storage is: pools and devices may live longer than the fixture.
        let mut config = if self.thin {
            LvmConfig::thin(group.name(), "pool")
        } else {
            LvmConfig::thick(group.name())
        };
        self.groups.lock().expect("not poisoned").push(group);
        config.overcommit_limit = settings.overcommit_limit;
        config.warn_percent = settings.warn_percent;
        config.refuse_percent = settings.refuse_percent;
        let pool = LvmPool::open(config.clone()).await;
        Box::new(LvmFixture {
            pool: pool.expect("an LVM pool opens"),
            config,
            next: AtomicU64::new(0),
        })
    }
}

struct LvmFixture {
    pool: Arc<LvmPool>,
    config: LvmConfig,
    next: AtomicU64,
}

#[async_trait]
impl Fixture for LvmFixture {
    fn pool(&self) -> Arc<dyn Pool> {
        self.pool.clone()
    }

    async fn reopen(&self) -> Option<Arc<dyn Pool>> {
        let pool = LvmPool::open(self.config.clone()).await;
        Some(pool.expect("the LVM pool opens a second time"))
    }

    async fn place_foreign(&self, data: &[u8]) -> String {
        let name = format!("foreign-{}", self.next.fetch_add(1, Ordering::Relaxed));
        place_foreign(&self.config.group, self.config.pool.as_deref(), &name, data);
        name
    }

    async fn settle(&self) {}
}

/// Makes a logical volume as an administrator does, with `data` in it and zeros after that. It
/// stays active.
///
/// # Panics
/// If that fails.
pub fn place_foreign(group: &str, pool: Option<&str>, name: &str, data: &[u8]) {
    let size = (data.len() as u64).next_multiple_of(UNIT);
    let shown = format!("{size}b");
    let start = ["lvcreate", "-y", "-n", name];
    let rest = match pool {
        Some(pool) => vec!["-V", &shown, "--thinpool", pool],
        None => vec!["-L", &shown],
    };
    lvm(&[&start[..], &rest, &[group]].concat());
    let path = Path::new("/dev").join(group).join(name);
    let file = std::fs::File::options().write(true).open(&path);
    let mut file = file.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut whole = data.to_vec();
    whole.resize(size as usize, 0);
    std::io::Write::write_all(&mut file, &whole).expect("the data");
    file.sync_all().expect("the data is written");
}
