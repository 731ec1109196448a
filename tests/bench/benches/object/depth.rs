//! Reads of a clone of a clone of a clone….

use std::sync::Arc;

use tokio::runtime::Runtime;
use volmux::{BlockDevice, CloneOptions, OpenOptions, Pool, VolumeName};
use volmux_bench::{Contender, Result, contest, ratio_of_turns};

use super::ours::Numbers;
use super::reads::read_once;
use super::store::Store;
use super::{BLOCK, MIB, Place, ours};

const SIZE: u64 = 256 * MIB;
const DEPTH: usize = 100;

pub fn depth(place: &Place) -> Result<()> {
    println!("info -- 4 KiB random reads of 256 MiB: a clone {DEPTH} generations deep, and none");
    let runtime = Runtime::new()?;
    let store = Store::start()?;
    let url = store.url("depth", "cache=512MiB");
    let [deep, flat] = runtime.block_on(make(&url))?;
    let reads = place.scaled(32_768);
    let cold = |name: &VolumeName| {
        runtime.block_on(async {
            let (_pool, device) = fresh(&url, name).await?;
            Ok(read_once(&device, SIZE, 0..reads).await?.as_secs_f64() * 1e3)
        })
    };
    let all = contest(
        place.repeats.max(3),
        vec![
            Contender::new("depth 100, cold", "ms", || cold(&deep)),
            Contender::new("depth 0, cold", "ms", || cold(&flat)),
        ],
    )?;
    ratio_of_turns("object-read-time-depth100-vs-depth0", &all[0], &all[1]);
    let (_pools, devices) = runtime.block_on(async {
        let (one, deep) = fresh(&url, &deep).await?;
        let (other, flat) = fresh(&url, &flat).await?;
        for device in [&deep, &flat] {
            read_once(device, SIZE, 0..reads).await?;
        }
        Ok::<_, Box<dyn std::error::Error>>(([one, other], [deep, flat]))
    })?;
    let warm = |device: &Arc<dyn BlockDevice>| {
        let time = runtime.block_on(read_once(device, SIZE, 0..reads))?;
        Ok(time.as_secs_f64() * 1e3)
    };
    let all = contest(
        place.repeats.max(3),
        vec![
            Contender::new("depth 100, warm", "ms", || warm(&devices[0])),
            Contender::new("depth 0, warm", "ms", || warm(&devices[1])),
        ],
    )?;
    let value = all[0].median() / all[1].median();
    println!("info warm: depth 100 takes {value:.3} of the time of depth 0");
    runtime.block_on(async { drop((devices, _pools)) });
    Ok(())
}

/// The volume, opened by a pool that has read nothing yet.
async fn fresh(url: &str, name: &VolumeName) -> Result<(Arc<dyn Pool>, Arc<dyn BlockDevice>)> {
    let pool = ours::open(url).await?;
    let device = pool.open_volume(name, OpenOptions::read_only()).await?;
    Ok((pool, device))
}

/// Two volumes of the same content: one that came about over all generations, each of which wrote
/// to some blocks, and one that was written at once.
async fn make(url: &str) -> Result<[VolumeName; 2]> {
    let pool = ours::open(url).await?;
    let mut numbers = Numbers(5);
    let (mut name, mut device) = ours::make_and_open(&*pool, "generation-0", SIZE).await?;
    for part in 0..SIZE / MIB {
        device.write_at(part * MIB, numbers.bytes(MIB)).await?;
    }
    for generation in 1..=DEPTH {
        device.flush().await?;
        drop(device);
        let clone = VolumeName::new(format!("generation-{generation}"))?;
        let options = CloneOptions::default();
        pool.clone_volume(&name, &clone, options).await?;
        name = clone;
        device = pool.open_volume(&name, OpenOptions::read_write()).await?;
        for _ in 0..64 {
            let offset = numbers.offset(SIZE);
            device.write_at(offset, numbers.bytes(BLOCK)).await?;
        }
    }
    device.flush().await?;
    let (flat, copy) = ours::make_and_open(&*pool, "flat", SIZE).await?;
    for part in 0..SIZE / MIB {
        let data = device.read_at(part * MIB, MIB as usize).await?;
        copy.write_at(part * MIB, data).await?;
    }
    copy.flush().await?;
    Ok([name, flat])
}
