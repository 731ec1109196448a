//! Our side: pools in this process, and NBD servers, which are this program, started again.

use std::env;
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Runtime;
use volmux::{BlockDevice, ByteSize, CreateOptions, OpenOptions, Pool, VolumeName};
use volmux_bench::{Result, Server};
use volmux_gateway::{ExportOptions, Exports, Limits, Listen, ServeOptions, serve};

use super::{BLOCK, Place, path};

/// The volume that is served.
pub const VOLUME: &str = "volume";

const SERVE: &str = "serve-volume";

/// A server of the volume [`VOLUME`] of the pool at `url`; it is made if it is not there.
pub fn server(place: &Place, name: &str, url: &str, size: u64) -> Result<Server> {
    let socket = place.socket(name);
    if socket.exists() {
        std::fs::remove_file(&socket)?;
    }
    let arguments = [SERVE, path(&socket), url, &size.to_string()].map(String::from);
    Server::start(env::current_exe()?, arguments, &socket)
}

/// Serves until it is killed, if `arguments` ask for that.
pub fn if_asked(arguments: &[String]) -> Option<Result<()>> {
    let [what, socket, url, size] = arguments else {
        return None;
    };
    let work = async || -> Result<()> {
        let pool = volmux::registry().open(url).await?;
        make(&*pool, VOLUME, size.parse()?).await?;
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
    (what == SERVE).then(|| Runtime::new()?.block_on(work()))
}

/// The thin volume `name` of `size` bytes, new or there already.
pub async fn make(pool: &dyn Pool, name: &str, size: u64) -> Result<VolumeName> {
    let name = VolumeName::new(name)?;
    let options = CreateOptions::thin(ByteSize::new(size));
    pool.create_volume(&name, options).await?;
    Ok(name)
}

/// Opens the pool at `url` in this process.
pub async fn open(url: &str) -> Result<Arc<dyn Pool>> {
    Ok(volmux::registry().open(url).await?)
}

/// Makes a volume, and opens it for writing.
pub async fn make_and_open(
    pool: &dyn Pool,
    name: &str,
    size: u64,
) -> Result<(VolumeName, Arc<dyn BlockDevice>)> {
    let name = make(pool, name, size).await?;
    let device = pool.open_volume(&name, OpenOptions::read_write()).await?;
    Ok((name, device))
}

/// A sequence of numbers that looks random and is always the same (SplitMix64).
#[derive(Clone, Debug)]
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The offset of some block of a volume of `size` bytes.
    pub fn offset(&mut self, size: u64) -> u64 {
        self.next() % (size / BLOCK) * BLOCK
    }

    /// `length` bytes that no compression makes shorter.
    pub fn bytes(&mut self, length: u64) -> Bytes {
        let words = (0..length / 8).flat_map(|_| self.next().to_le_bytes());
        words.collect()
    }
}
