//! Our servers: this program, started again with other arguments.

use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Runtime;
use volmux::memory::MemoryPool;
use volmux::nfs::{DirConfig, DirPool};
use volmux::{ByteSize, CreateOptions, Pool, VolumeName};
use volmux_bench::{Result, Server};
use volmux_gateway::{ExportOptions, Exports, Limits, Listen, ServeOptions, serve};

/// The volume that is served.
pub const VOLUME: &str = "volume";

const MEMORY: &str = "serve-memory";
const DIRECTORY: &str = "serve-directory";

/// A server of a new volume of `size` bytes in memory, on a socket in `directory`.
pub fn memory(directory: &Path, size: u64) -> Result<Server> {
    let socket = directory.join("volmux");
    let arguments = [MEMORY, super::path(&socket), &size.to_string()].map(String::from);
    Server::start(std::env::current_exe()?, arguments, &socket)
}

/// A server of the volume of the directory pool `pool`, on a socket in `directory`.
pub fn dir(directory: &Path, pool: &Path) -> Result<Server> {
    let socket = directory.join("volmux");
    let arguments = [DIRECTORY, super::path(&socket), super::path(pool)];
    Server::start(std::env::current_exe()?, arguments, &socket)
}

/// What a server lets its clients have under way, for the reader.
pub fn budgets() -> String {
    let limits = Limits::default();
    format!(
        "in flight at most: {} requests and {} MiB on a connection, {} MiB in all",
        limits.in_flight_requests,
        limits.in_flight_per_connection >> 20,
        limits.in_flight_total >> 20
    )
}

/// Serves until it is killed, if `arguments` ask for that.
pub fn if_asked(arguments: &[String]) -> Option<Result<()>> {
    let [what, socket, of] = arguments else {
        return None;
    };
    let work = async || -> Result<()> {
        let pool: Arc<dyn Pool> = if what == MEMORY {
            let pool = MemoryPool::unlimited();
            let options = CreateOptions::thin(ByteSize::new(of.parse()?));
            pool.create_volume(&VolumeName::new(VOLUME)?, options)
                .await?;
            pool
        } else {
            DirPool::open(DirConfig::new(of)).await?
        };
        let options = ServeOptions {
            exports: Exports::Volumes(vec![ExportOptions::read_write(VolumeName::new(VOLUME)?)]),
            listen: vec![Listen::Unix(socket.into())],
            tls: None,
            statistics: None,
            limits: Limits::default(),
        };
        let _server = serve(pool, options).await?;
        std::future::pending().await
    };
    let asked = what == MEMORY || what == DIRECTORY;
    asked.then(|| Runtime::new()?.block_on(work()))
}
