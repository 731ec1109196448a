//! Reads: warm from memory, cold from the store.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use volmux::{BlockDevice, OpenOptions, VolumeName};
use volmux_bench::fio::{self, Job};
use volmux_bench::{Contender, Result, Server, contest, count, ratio_of_turns};

use super::store::Store;
use super::writes::fill;
use super::{BLOCK, GIB, KIB, MIB, Place, bare, ours};

const READ_QD1: Job = Job::new("randread", BLOCK, 1);
const READ_QD32: Job = Job::new("randread", BLOCK, 32);
const SEQUENTIAL_READ: Job = Job::new("read", MIB, 8);

pub fn warm(place: &Place) -> Result<()> {
    println!("info -- 4 KiB random reads of 1 GiB that is cached, against the volume in memory");
    let store = Store::start()?;
    let volmux = ours::server(place, "volmux", &store.url("warm", "cache=2GiB"), GIB)?;
    let memory = ours::server(place, "memory", "memory:", GIB)?;
    for server in [&volmux, &memory] {
        fill(server, GIB)?;
        // Longer reads go past the cache.
        let warm_up = Job::new("read", 128 * KIB, 8);
        fio::run(&warm_up, server.socket(), GIB, None)?;
    }
    let before = store.remote().counts()?;
    for (what, job) in [("randread-qd32", READ_QD32), ("randread-qd1", READ_QD1)] {
        let all = contest(
            place.repeats,
            vec![
                place.requests(&format!("{what}: volmux, warm"), &job, &volmux),
                place.requests(&format!("{what}: volmux memory:"), &job, &memory),
            ],
        )?;
        if what == "randread-qd32" {
            ratio_of_turns("object-randread-warm-vs-own-memory", &all[0], &all[1]);
        } else {
            let value = all[0].median() / all[1].median();
            println!("info {what}: {value:.3} of memory:");
        }
    }
    let asked = store.remote().counts()? - before;
    println!("info warm: {} gets during all of that", asked.get);
    Ok(())
}

/// The volume of the pool at `url`, served by a process that has read nothing yet.
fn cold_server(place: &Place, url: &str) -> Result<Server> {
    ours::server(place, "volmux", url, GIB)
}

pub fn cold(place: &Place) -> Result<()> {
    println!("info -- reads of 1 GiB that is not cached: a server that was just started");
    let runtime = Runtime::new()?;
    let store = Store::start()?;
    let url = store.url("cold", "cache=128MiB");
    let server = cold_server(place, &url)?;
    fill(&server, GIB)?;
    drop(server);
    let client = bare::client(&store)?;
    let objects = (GIB / bare::OBJECT, bare::OBJECT);
    runtime.block_on(bare::put(&client, GIB, bare::OBJECT, bare::UPLOADS))?;
    let gets = |length: u64, at_once: u64| {
        let got = bare::get(&client, objects, length, at_once, place.time);
        runtime.block_on(got)
    };
    let per_read = Cell::new(0.0);
    let all = contest(
        place.repeats,
        vec![
            Contender::new("randread-qd32: volmux, cold", "/s", || {
                let server = cold_server(place, &url)?;
                let before = store.remote().counts()?;
                let outcome = fio::run(&READ_QD32, server.socket(), GIB, Some(place.time))?;
                let asked = store.remote().counts()? - before;
                per_read.set(asked.get as f64 / outcome.requests as f64);
                Ok(outcome.requests_per_second)
            }),
            Contender::new("randread-qd32: bare get_range", "/s", || {
                gets(BLOCK + 4, 32)
            }),
        ],
    )?;
    ratio_of_turns("object-randread-cold-vs-bare-get", &all[0], &all[1]);
    println!(
        "info randread-qd32: {:.3} gets for each read, those of the map included",
        per_read.get()
    );
    let all = contest(
        place.repeats,
        vec![
            Contender::new("seqread: volmux, cold", "MB/s", || {
                let server = cold_server(place, &url)?;
                let outcome = fio::run(&SEQUENTIAL_READ, server.socket(), GIB, None)?;
                Ok(outcome.bytes_per_second / 1e6)
            }),
            Contender::new("seqread: bare get of 1 MiB, 8 in flight", "MB/s", || {
                Ok(gets(MIB, 8)? * MIB as f64 / 1e6)
            }),
        ],
    )?;
    ratio_of_turns("object-seqread-cold-vs-bare-get", &all[0], &all[1]);
    runtime.block_on(gets_per_miss(place, &store, &url))
}

/// Counted in this process, with the map loaded before and no block read twice.
async fn gets_per_miss(place: &Place, store: &Store, url: &str) -> Result<()> {
    let pool = ours::open(url).await?;
    let name = VolumeName::new(ours::VOLUME)?;
    let device = pool.open_volume(&name, OpenOptions::read_only()).await?;
    // Loads the map.
    for part in 0..GIB / MIB {
        device.read_at(part * MIB, BLOCK as usize).await?;
    }
    let reads = place.scaled(16_384);
    let before = store.remote().counts()?;
    read_once(&device, GIB, 0..reads).await?;
    let asked = store.remote().counts()? - before;
    // All requests: a look at who writes would cost as much as the block.
    let per_miss = asked.requests() as f64 / reads as f64;
    println!(
        "info {reads} cold misses: {} gets, {} lists",
        asked.get, asked.list
    );
    count("object-gets-per-cold-miss", format_args!("{per_miss:.4}"));
    Ok(())
}

/// Reads blocks that look chosen at random, 32 at once; those of a range of `numbers` are all
/// different, and none begins a mebibyte. Returns how long that took.
pub async fn read_once(
    device: &Arc<dyn BlockDevice>,
    size: u64,
    numbers: std::ops::Range<u64>,
) -> Result<Duration> {
    let next = Arc::new(AtomicU64::new(numbers.start));
    let start = Instant::now();
    let readers: Vec<_> = (0..32)
        .map(|_| {
            let (device, next) = (Arc::clone(device), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end {
                        return Ok(());
                    }
                    device
                        .read_at(scattered(number, size), BLOCK as usize)
                        .await?;
                }
            })
        })
        .collect();
    for reader in readers {
        let read: volmux::Result<()> = reader.await?;
        read?;
    }
    Ok(start.elapsed())
}

/// The offset of a block, another for each of the first `size` / 1 MiB * 255 numbers.
fn scattered(number: u64, size: u64) -> u64 {
    let parts = size / MIB;
    // Odd, and so prime to the power of two: a permutation of the parts.
    let part = (number % parts).wrapping_mul(0x9e37_79b1) % parts;
    let block = 1 + (number / parts).wrapping_mul(101) % 255;
    part * MIB + block * BLOCK
}
