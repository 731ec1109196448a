//! Serves a volume over NBD.
//!
//! ```sh
//! cargo run --example serve                            # a pool that is gone afterwards
//! cargo run --example serve -- dir:///srv/volumes      # any other pool
//! cargo run --example serve -- --self-test             # copies through it and ends
//! ```

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;
use volmux::{ByteSize, CreateOptions, OpenOptions, Pool, VolumeName};
use volmux_gateway::{ExportOptions, Exports, Limits, Listen, ServeOptions, Server, serve};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const SIZE: ByteSize = ByteSize::mib(16);
/// How long clients' last requests and the last flush may take.
const DRAIN_TIME: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Outcome {
    let argument = std::env::args().nth(1);
    let directory = tempfile::tempdir()?;
    std::fs::create_dir(directory.path().join("pool"))?;
    let own = format!("dir://{}/pool", directory.path().display());
    let self_test = argument.as_deref() == Some("--self-test");
    let url = argument.as_ref().filter(|_| !self_test).unwrap_or(&own);
    let pool = volmux::registry().open(url).await?;
    let name = VolumeName::new("served")?;
    pool.create_volume(&name, CreateOptions::thin(SIZE)).await?;

    let server = start(&pool, &name, directory.path()).await?;
    let uri = server.addresses()[0].uri(Some(&name), false);
    println!("{uri}");
    if self_test {
        copy_in(&uri, directory.path()).await?;
    } else {
        tokio::signal::ctrl_c().await?;
    }
    // Answers what is under way, flushes, and closes the volume: dropping the server would not.
    server.stop(DRAIN_TIME).await?;
    if self_test {
        compare(&pool, &name, directory.path()).await?;
        println!("serve: all as it should be");
    }
    Ok(())
}

async fn start(pool: &Arc<dyn Pool>, name: &VolumeName, directory: &Path) -> Outcome<Server> {
    let options = ServeOptions {
        exports: Exports::Volumes(vec![ExportOptions::read_write(name.clone())]),
        listen: vec![Listen::Unix(directory.join("socket"))],
        tls: None,
        statistics: None,
        limits: Limits::default(),
    };
    Ok(serve(pool.clone(), options).await?)
}

/// What the self-test writes: each block differs.
fn content() -> Vec<u8> {
    let words = (0..SIZE.bytes() as u32 / 4).map(|n| n.wrapping_mul(2_654_435_761));
    words.flat_map(u32::to_le_bytes).collect()
}

/// Copies a file into the volume with a client of libnbd's.
async fn copy_in(uri: &str, directory: &Path) -> Outcome {
    let file = directory.join("content");
    std::fs::write(&file, content())?;
    let copied = Command::new("nbdcopy").arg(&file).arg(uri).status().await?;
    assert!(copied.success(), "nbdcopy: {copied}");
    Ok(())
}

/// Reads the volume without a server.
async fn compare(pool: &Arc<dyn Pool>, name: &VolumeName, directory: &Path) -> Outcome {
    let device = pool.open_volume(name, OpenOptions::read_only()).await?;
    let found = device.read_at(0, SIZE.bytes() as usize).await?;
    assert!(found == content(), "the volume holds what was copied");
    assert!(!directory.join("socket").exists());
    Ok(())
}
