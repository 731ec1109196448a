//! Servers inside the test's process, each with threads and a log of its own.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Runtime;
use volmux_core::layers::{FaultPlan, Faulty};
use volmux_core::memory::MemoryPool;
use volmux_core::{
    Access, BlockDevice, ByteSize, CreateOptions, OpenOptions, Pool, Result, Sharing, Volume,
    VolumeName,
};
use volmux_gateway::{
    Address, ExportOptions, Exports, Limits, Listen, ServeOptions, Server, Status, Tls,
};
use volmux_nfs::{DirConfig, DirPool};
use volmux_object::{Location, ObjectConfig, ObjectPool};

use super::client::{Client, PATIENCE};
use super::log::Log;
use super::program::eventually;
use super::wire::Mode;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;

/// A volume's name.
pub fn name(name: &str) -> VolumeName {
    VolumeName::new(name).expect("the name is right")
}

/// What a directory holds a pool as.
#[derive(Clone, Copy, Debug)]
enum Stored {
    Directory,
    Objects,
}

/// What is to be served, and how.
#[derive(Debug)]
pub struct Setup {
    stored: Option<Stored>,
    pub pool: Arc<dyn Pool>,
    pub runtime: Runtime,
    pub log: Log,
    listed: Vec<ExportOptions>,
    every: Option<Exports>,
    limits: Limits,
    tls: Option<Tls>,
    tcp: bool,
    statistics: bool,
    dir: TempDir,
}

impl Setup {
    /// A pool in memory.
    pub fn memory() -> Setup {
        Setup::over(MemoryPool::unlimited())
    }

    /// A directory pool in a directory of its own.
    pub fn dir() -> Setup {
        Setup::in_directory(Stored::Directory)
    }

    /// An object pool in memory.
    pub fn objects() -> Setup {
        let mut setup = Setup::memory();
        let config = ObjectConfig::new(Location::Memory);
        let opened = setup.runtime.block_on(ObjectPool::open(config));
        setup.pool = opened.expect("a pool");
        setup
    }

    /// An object pool in a directory of its own.
    pub fn objects_in_dir() -> Setup {
        Setup::in_directory(Stored::Objects)
    }

    /// One on each kind of pool. The last knows less than the others of what changed.
    pub fn each() -> [Setup; 4] {
        [
            Setup::memory(),
            Setup::objects(),
            Setup::objects_in_dir(),
            Setup::dir(),
        ]
    }

    fn in_directory(stored: Stored) -> Setup {
        let mut setup = Setup::memory();
        setup.stored = Some(stored);
        let opened = open_pool(stored, &setup.dir);
        setup.pool = setup.runtime.block_on(opened);
        setup
    }

    /// A pool in memory that goes wrong by `plan`.
    pub fn faulty(plan: FaultPlan) -> (Setup, Arc<Faulty>) {
        let pool = Faulty::new(MemoryPool::unlimited(), plan);
        (Setup::over(pool.clone()), pool)
    }

    /// Any pool.
    pub fn over(pool: Arc<dyn Pool>) -> Setup {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        Setup {
            stored: None,
            pool,
            log: Log::of(runtime.handle()),
            runtime,
            listed: Vec::new(),
            every: None,
            limits: Limits {
                // Who waits for the end of a connection must not take this for it.
                handshake_time: Duration::from_secs(3600),
                ..Limits::default()
            },
            tls: None,
            tcp: false,
            statistics: false,
            dir: tempfile::tempdir().expect("a directory"),
        }
    }

    /// Makes a volume, and serves it for writing.
    pub fn volume(self, volume: &str, size: u64) -> Setup {
        let made = self.unlisted(volume, size);
        made.export(ExportOptions::read_write(name(volume)))
    }

    /// Makes a volume.
    pub fn unlisted(self, volume: &str, size: u64) -> Setup {
        let options = CreateOptions::thin(ByteSize::new(size));
        let made = self
            .runtime
            .block_on(self.pool.create_volume(&name(volume), options));
        assert_eq!(made.expect("create").virtual_size.bytes(), size);
        self
    }

    /// Serves this too.
    pub fn export(mut self, export: ExportOptions) -> Setup {
        self.listed.push(export);
        self
    }

    /// Serves every volume for writing, to one client at a time.
    pub fn every_volume(self) -> Setup {
        self.every(Access::ReadWrite, Sharing::Exclusive)
    }

    /// Serves every volume.
    pub fn every(mut self, access: Access, sharing: Sharing) -> Setup {
        self.every = Some(Exports::EveryVolume { access, sharing });
        self
    }

    /// Changes the limits.
    pub fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Setup {
        change(&mut self.limits);
        self
    }

    pub fn tls(mut self, tls: Tls) -> Setup {
        self.tls = Some(tls);
        self
    }

    /// Listens on 127.0.0.1, not on a Unix socket.
    pub fn tcp(mut self) -> Setup {
        self.tcp = true;
        self
    }

    /// With a statistics socket.
    pub fn statistics(mut self) -> Setup {
        self.statistics = true;
        self
    }

    /// Starts the server.
    #[track_caller]
    pub fn start(self) -> TestServer {
        self.try_start().map_err(|(_, error)| error).expect("serve")
    }

    /// Starts the server, or says why not.
    pub fn try_start(mut self) -> std::result::Result<TestServer, (Log, volmux_core::Error)> {
        let listed = Exports::Volumes(std::mem::take(&mut self.listed));
        let socket = |name| Listen::Unix(self.dir.path().join(name));
        let local = "127.0.0.1:0".parse().expect("an address");
        let options = ServeOptions {
            exports: self.every.take().unwrap_or(listed),
            listen: vec![if self.tcp {
                Listen::Tcp(local)
            } else {
                socket("nbd")
            }],
            tls: self.tls.take(),
            statistics: self.statistics.then(|| socket("statistics")),
            limits: self.limits,
        };
        let served = volmux_gateway::serve(self.pool.clone(), options);
        match self.runtime.block_on(served) {
            Ok(server) => Ok(TestServer {
                address: server.addresses()[0].clone(),
                server: Some(server),
                runtime: Some(self.runtime),
                stored: self.stored,
                pool: self.pool,
                log: self.log,
                dir: self.dir,
            }),
            Err(error) => Err((self.log, error)),
        }
    }
}

async fn open_pool(stored: Stored, dir: &TempDir) -> Arc<dyn Pool> {
    let path = dir.path().join("pool");
    // It may be there.
    let _ = std::fs::create_dir(&path);
    match stored {
        Stored::Directory => DirPool::open(DirConfig::new(path)).await.expect("a pool"),
        Stored::Objects => {
            let config = ObjectConfig::new(Location::Directory(path));
            ObjectPool::open(config).await.expect("a pool")
        }
    }
}

/// A server.
#[derive(Debug)]
pub struct TestServer {
    stored: Option<Stored>,
    pub address: Address,
    pub pool: Arc<dyn Pool>,
    pub log: Log,
    server: Option<Server>,
    runtime: Option<Runtime>,
    dir: TempDir,
}

impl TestServer {
    /// A connection that is ready for requests.
    #[track_caller]
    pub fn open(&self, export: &str, mode: Mode) -> Client {
        Client::open(&self.address, export, mode)
    }

    /// A connection that is ready for requests, with metadata contexts.
    #[track_caller]
    pub fn open_with(&self, export: &str, mode: Mode, contexts: &[&str]) -> Client {
        Client::open_with(&self.address, export, mode, contexts)
    }

    /// A connection that is ready for options.
    pub fn greeted(&self) -> Client {
        Client::greeted(&self.address)
    }

    /// Runs `work` on the server's threads.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime
            .as_ref()
            .expect("until it is dropped")
            .block_on(work)
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("until it is stopped")
    }

    pub fn status(&self) -> Status {
        self.server().status()
    }

    /// Where files of the test may be.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// A second pool object, as another process has, on the directory of one in a directory.
    pub fn another_pool(&self) -> Arc<dyn Pool> {
        let stored = self.stored.expect("the pool is in a directory");
        self.block_on(open_pool(stored, &self.dir))
    }

    /// Opens a volume of the pool past the server.
    pub fn device(&self, volume: &str, options: OpenOptions) -> Result<Arc<dyn BlockDevice>> {
        self.block_on(self.pool.open_volume(&name(volume), options))
    }

    /// What a volume holds, read past the server.
    pub fn content(&self, volume: &str) -> Vec<u8> {
        let device = self.device(volume, OpenOptions::read_only()).expect("open");
        let size = usize::try_from(device.size()).expect("a small volume");
        self.block_on(device.read_at(0, size))
            .expect("read")
            .to_vec()
    }

    /// Takes a snapshot, past the server.
    pub fn snapshot(&self, volume: &str, snapshot: &str) -> Volume {
        let (volume, snapshot) = (name(volume), name(snapshot));
        let made = self
            .pool
            .snapshot_volume(&volume, &snapshot, Default::default());
        self.block_on(made).expect("snapshot")
    }

    /// Waits until all connections are gone.
    #[track_caller]
    pub fn wait_until_idle(&self) {
        eventually("all connections are gone", || self.connections() == 0);
    }

    /// Number of connections.
    pub fn connections(&self) -> u64 {
        self.status().connections
    }

    /// Stops it in good order.
    pub fn stop(&mut self, within: Duration) -> Result<()> {
        let server = self.server.take().expect("it is stopped once");
        self.block_on(server.stop(within))
    }

    /// Stops it in good order, in the background.
    pub fn begin_to_stop(&mut self, within: Duration) -> tokio::task::JoinHandle<Result<()>> {
        let server = self.server.take().expect("it is stopped once");
        let runtime = self.runtime.as_ref().expect("until it is dropped");
        runtime.spawn(server.stop(within))
    }

    /// Ends it at once.
    pub fn end(&mut self) {
        drop(self.server.take());
    }

    /// An NBD URI.
    pub fn uri(&self, export: &str) -> String {
        match &self.address {
            Address::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
            Address::Tcp(address) => format!("nbd://{address}/{export}"),
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.end();
        if let Some(runtime) = self.runtime.take() {
            // A test that failed may leave work behind that never ends.
            runtime.shutdown_timeout(if std::thread::panicking() {
                Duration::ZERO
            } else {
                PATIENCE
            });
        }
    }
}
