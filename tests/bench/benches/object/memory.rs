//! Memory: a process that writes and reads 1 TiB with ten million extents.

use std::env;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use futures::TryStreamExt;
use tokio::runtime::Runtime;
use volmux::{BlockDevice, ByteRange, OpenOptions, VolumeName};
use volmux_bench::{Result, count, peak_rss_bytes, rss_bytes};

use super::ours::Numbers;
use super::store::Store;
use super::{BLOCK, MIB, Place, TIB, ours};

const WRITE: &str = "write-and-tell-memory";
const WALK: &str = "walk-and-tell-memory";
/// What the pool may use.
const BUDGET: u64 = 256 * MIB;
const EXTENTS: u64 = 10_000_000;
const WORKERS: usize = 32;
/// A read comes after so many writes. Nearly each is a GET, and more of them take more minutes.
const READ_EVERY: usize = 64;
/// Where an extent may lie: places 64 KiB apart.
const PLACES: u64 = 1 << 24;

pub fn memory(place: &Place) -> Result<()> {
    let extents = place.scaled(EXTENTS);
    println!(
        "info -- memory of a process that writes {extents} extents into 1 TiB, and reads them"
    );
    let store = Store::compressed()?;
    let run = |what: &str, options: &str| -> Result<()> {
        let url = store.url("memory", options);
        let status = Command::new(env::current_exe()?)
            .args([what, &url, &extents.to_string()])
            .status()?;
        if !status.success() {
            return Err(format!("{what}: {status}").into());
        }
        Ok(())
    };
    run(WRITE, &format!("cache={}MiB", BUDGET / MIB))?;
    run(WALK, "cache=2GiB")
}

/// Does the work of the processes that [`memory`] starts, if `arguments` ask for that.
pub fn if_asked(arguments: &[String]) -> Option<Result<()>> {
    let [what, url, extents] = arguments else {
        return None;
    };
    let work = || -> Result<()> {
        let (extents, runtime) = (extents.parse()?, Runtime::new()?);
        if what == WRITE {
            runtime.block_on(write_and_read(url, extents))
        } else {
            runtime.block_on(walk(url, extents))
        }
    };
    (what == WRITE || what == WALK).then(work)
}

async fn write_and_read(url: &str, extents: u64) -> Result<()> {
    let pool = ours::open(url).await?;
    let (_, device) = ours::make_and_open(&*pool, ours::VOLUME, TIB).await?;
    let start = Instant::now();
    let workers: Vec<_> = (0..WORKERS as u64)
        .map(|first| tokio::spawn(worker(Arc::clone(&device), first, extents)))
        .collect();
    for worker in workers {
        worker.await??;
    }
    device.flush().await?;
    let peak = peak_rss_bytes()?;
    println!(
        "info {extents} writes and {} reads in {:.0} s; at most {} MiB resident, budget {} MiB",
        extents / READ_EVERY as u64,
        start.elapsed().as_secs_f64(),
        peak / MIB,
        BUDGET / MIB
    );
    let over = peak.saturating_sub(BUDGET) as f64 / MIB as f64;
    count("object-rss-over-budget-mib", format_args!("{over:.1}"));
    Ok(())
}

/// Writes the blocks of every so-manieth number, and now and then reads one that it wrote before.
async fn worker(device: Arc<dyn BlockDevice>, first: u64, extents: u64) -> Result<(), String> {
    let described = |error: volmux::Error| format!("{error:?}");
    let mut numbers = Numbers(first);
    for (written, number) in (first..extents).step_by(WORKERS).enumerate() {
        let data = content(number).into();
        let write = device.write_at(offset(number), data).await;
        write.map_err(described)?;
        if written % READ_EVERY == READ_EVERY - 1 {
            let earlier = first + numbers.next() % written as u64 * WORKERS as u64;
            let read = device.read_at(offset(earlier), BLOCK as usize).await;
            if read.map_err(described)? != content(earlier) {
                return Err(format!("extent {earlier} does not read as it was written"));
            }
        }
    }
    Ok(())
}

/// Odd, and so prime to the power of two: another place for each number.
fn offset(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b1) % PLACES * (TIB / PLACES)
}

fn content(number: u64) -> Vec<u8> {
    (number + 1).to_le_bytes().repeat(BLOCK as usize / 8)
}

/// What the map takes in memory once all of it was looked at, as far as this process has grown.
async fn walk(url: &str, extents: u64) -> Result<()> {
    let pool = ours::open(url).await?;
    let name = VolumeName::new(ours::VOLUME)?;
    let before = rss_bytes()?;
    let start = Instant::now();
    let device = pool.open_volume(&name, OpenOptions::read_only()).await?;
    let opened = start.elapsed();
    let found = device.extents(ByteRange::new(0, TIB)).await?;
    let found = found
        .try_fold(0_u64, |n, _| async move { Ok(n + 1) })
        .await?;
    let grown = rss_bytes()?.saturating_sub(before);
    println!(
        "info opened in {:.1} ms; all {found} extents listed in {:.1} s, {} MiB more resident",
        opened.as_secs_f64() * 1e3,
        start.elapsed().as_secs_f64(),
        grown / MIB
    );
    if found < extents {
        return Err(format!("{found} extents, not {extents}").into());
    }
    let each = grown as f64 / found as f64;
    count("object-map-bytes-per-extent", format_args!("{each:.1}"));
    Ok(())
}
