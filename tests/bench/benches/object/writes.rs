//! Writes: acknowledged, sustained, sequential, and what they cost in bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime::Runtime;
use volmux::BlockDevice;
use volmux_bench::fio::{self, Job};
use volmux_bench::{Contender, Result, Server, contest, count, ratio_of_turns};

use super::ours::Numbers;
use super::rivals::{S3backer, qemu_nbd};
use super::store::Store;
use super::{BLOCK, GIB, MIB, Place, bare, ours};

pub const WRITE_QD32: Job = Job::new("randwrite", BLOCK, 32);
pub const SEQUENTIAL_WRITE: Job = Job::new("write", MIB, 8);

/// Writes a served volume in full.
pub fn fill(server: &Server, size: u64) -> Result<()> {
    let job = SEQUENTIAL_WRITE.flush_at_end();
    fio::run(&job, server.socket(), size, None).map(drop)
}

pub fn acknowledged(place: &Place) -> Result<()> {
    println!("info -- 4 KiB random writes, 32 in flight, acknowledged; volumes of 1 GiB");
    println!("info flush=journal; s3backer's volume was not written before, the others were");
    let (store, their_store) = (Store::start()?, Store::start()?);
    let journal = place.directory("journal")?;
    let options = format!("flush=journal&journal={}", journal.display());
    let volmux = ours::server(place, "volmux", &store.url("writes", &options), GIB)?;
    let memory = ours::server(place, "memory", "memory:", GIB)?;
    let qcow2 = qemu_nbd(place, GIB)?;
    let s3backer = S3backer::start(place, &their_store, "4k", GIB)?;
    for server in [&volmux, &memory, &qcow2] {
        fill(server, GIB)?;
    }
    // What is left to be uploaded after a turn must not slow the next one's down.
    let run = |server: &Server, store: Option<&Store>| -> Result<f64> {
        let outcome = fio::run(&WRITE_QD32, server.socket(), GIB, Some(place.time))?;
        store.map_or(Ok(()), Store::settle)?;
        Ok(outcome.requests_per_second)
    };
    store.settle()?;
    let what = |name| format!("randwrite-qd32: {name}");
    let all = contest(
        place.repeats,
        vec![
            Contender::new(what("volmux"), "/s", || run(&volmux, Some(&store))),
            Contender::new(what("volmux memory:"), "/s", || run(&memory, None)),
            Contender::new(what("qemu-nbd qcow2"), "/s", || run(&qcow2, None)),
            Contender::new(what("s3backer 4k"), "/s", || {
                run(s3backer.server(), Some(&their_store))
            }),
        ],
    )?;
    let name = |rival| format!("object-randwrite-journal-vs-{rival}");
    ratio_of_turns(&name("s3backer-4k"), &all[0], &all[3]);
    ratio_of_turns(&name("qemu-nbd-qcow2"), &all[0], &all[2]);
    ratio_of_turns(&name("own-memory"), &all[0], &all[1]);
    Ok(())
}

pub fn sustained(place: &Place) -> Result<()> {
    println!("info -- writes past every cache: 1 GiB and a flush, as fast as the store takes it");
    let runtime = Runtime::new()?;
    let store = Store::start()?;
    let client = bare::client(&store)?;
    let size = place.scaled(GIB);
    let volmux = ours::server(place, "volmux", &store.url("sustained", ""), GIB)?;
    let job = SEQUENTIAL_WRITE.flush_at_end();
    let random = WRITE_QD32.flush_at_end();
    let all = contest(
        place.repeats,
        vec![
            Contender::new("sustained: volmux, 1 MiB writes", "MB/s", || {
                let outcome = fio::run(&job, volmux.socket(), size, None)?;
                Ok(outcome.bytes_per_second / 1e6)
            }),
            Contender::new("sustained: bare puts of 8 MiB", "MB/s", || {
                runtime.block_on(bare::put(&client, size, bare::OBJECT, bare::UPLOADS))
            }),
            Contender::new("sustained: volmux, 4 KiB at random", "MB/s", || {
                let outcome = fio::run(&random, volmux.socket(), size / 4, None)?;
                Ok(outcome.bytes_per_second / 1e6)
            }),
        ],
    )?;
    ratio_of_turns("object-sustained-write-vs-bare-put", &all[0], &all[1]);
    Ok(())
}

pub fn sequential(place: &Place) -> Result<()> {
    println!("info -- sequential writes of 1 MiB, 8 in flight, and a flush, against s3backer");
    let (store, their_store) = (Store::start()?, Store::start()?);
    let size = place.scaled(512 * MIB);
    let volmux = ours::server(place, "volmux", &store.url("sequential", ""), size)?;
    let s3backer = S3backer::start(place, &their_store, "128k", size)?;
    let job = SEQUENTIAL_WRITE.flush_at_end();
    let run = |server: &Server, store: &Store| -> Result<f64> {
        let outcome = fio::run(&job, server.socket(), size, None)?;
        store.settle()?;
        Ok(outcome.bytes_per_second / 1e6)
    };
    let all = contest(
        place.repeats,
        vec![
            Contender::new("seqwrite: volmux", "MB/s", || run(&volmux, &store)),
            Contender::new("seqwrite: s3backer 128k", "MB/s", || {
                run(s3backer.server(), &their_store)
            }),
        ],
    )?;
    ratio_of_turns("object-seqwrite-vs-s3backer-128k", &all[0], &all[1]);
    Ok(())
}

/// Writes blocks of 4 KiB at random, 32 in flight, with a flush after so many and at the end;
/// others in each round.
async fn write_at_random(
    device: &Arc<dyn BlockDevice>,
    size: u64,
    blocks: u64,
    (round, flush_every): (u64, u64),
) -> Result<()> {
    let done = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..32)
        .map(|seed| {
            let (device, done) = (Arc::clone(device), Arc::clone(&done));
            tokio::spawn(async move {
                let mut numbers = Numbers(round << 8 | seed);
                loop {
                    let number = done.fetch_add(1, Ordering::Relaxed);
                    if number >= blocks {
                        return Ok(());
                    }
                    let offset = numbers.offset(size);
                    device.write_at(offset, numbers.bytes(BLOCK)).await?;
                    if number % flush_every == flush_every - 1 {
                        device.flush().await?;
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        let written: volmux::Result<()> = writer.await?;
        written?;
    }
    Ok(device.flush().await?)
}

pub fn amplification(place: &Place) -> Result<()> {
    println!("info -- bytes put for each byte written, 4 KiB at random");
    let runtime = Runtime::new()?;
    let store = Store::start()?;
    let measure = |name: &str, rounds: u64, size: u64, blocks: u64, flush_every: u64| {
        runtime.block_on(async {
            let pool = ours::open(&store.url(name, "")).await?;
            let (_, device) = ours::make_and_open(&*pool, "volume", size).await?;
            let before = store.remote().counts()?;
            for round in 0..rounds {
                write_at_random(&device, size, blocks, (round, flush_every)).await?;
                if rounds > 1 {
                    pool.collect_garbage().await?;
                }
            }
            drop(device);
            store.settle()?;
            let asked = store.remote().counts()? - before;
            let written = rounds * blocks * BLOCK;
            println!(
                "info {name}: {} MiB written, {} MiB put in {} puts; {} gets, {} requests to delete",
                written / MIB,
                asked.bytes_in / MIB,
                asked.puts(),
                asked.get,
                asked.delete + asked.delete_many
            );
            Ok::<_, Box<dyn std::error::Error>>(asked.bytes_in as f64 / written as f64)
        })
    };
    let blocks = place.scaled(512 * MIB) / BLOCK;
    let plain = measure("without-gc", 1, GIB, blocks, u64::MAX)?;
    count("object-write-amplification", format_args!("{plain:.3}"));
    let flushed = measure("flush-every-256", 1, GIB, blocks / 4, 256)?;
    println!("info with a flush after every 256 writes (1 MiB): {flushed:.3}");

    let (size, rounds) = (256 * MIB, place.scaled(16));
    let before = store.remote().stored()?;
    // A quarter of the volume is overwritten between two collections.
    let with_gc = measure("with-gc", rounds, size, size / BLOCK / 4, u64::MAX)?;
    let kept = store.remote().stored()?.bytes - before.bytes;
    count(
        "object-write-amplification-with-gc",
        format_args!("{with_gc:.3}"),
    );
    println!(
        "info with-gc: {} MiB are in the store for a volume of {} MiB after {rounds} collections",
        kept / MIB,
        size / MIB,
    );
    Ok(())
}
