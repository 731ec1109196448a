//! Writes one block after the other to a volume, each flushed before the next,
//! and prints how far it came. Takes the volume over. Started by `tests/fencing.rs`.

use std::io::Write;

use volmux::{ErrorKind, OpenOptions, Pool, Result};
use volmux_conformance::{checked_name, pattern};

/// Bytes in a block.
const BLOCK: u64 = 4096;

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever listens may have gone.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Never returns `Ok`: it goes on until it is stopped.
async fn write(pool: &dyn Pool, volume: &str, writer: u64, blocks: u64) -> Result<()> {
    let options = OpenOptions {
        take_over: true,
        ..OpenOptions::read_write()
    };
    let device = pool.open_volume(&checked_name(volume), options).await?;
    say("open");
    for number in 0.. {
        let data = pattern(writer << 32 | number, BLOCK as usize);
        let block = writer * blocks + number % blocks;
        device.write_at(block * BLOCK, data).await?;
        device.flush().await?;
        say(&format!("flushed {number}"));
    }
    Ok(())
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, url, volume, writer, blocks] = &args[..] else {
        panic!("usage: object-writer URL VOLUME WRITER BLOCKS");
    };
    let (writer, blocks) = (
        writer.parse().expect("a number"),
        blocks.parse().expect("a number"),
    );
    let pool = volmux::registry().open(url).await.expect("the pool opens");
    match write(&*pool, volume, writer, blocks).await {
        Err(error) if error.kind() == ErrorKind::Fenced => say("fenced"),
        other => panic!("writer {writer}: {other:?}"),
    }
}
