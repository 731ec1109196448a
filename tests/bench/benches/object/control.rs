//! Snapshots and clones.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use tokio::runtime::Runtime;
use tokio::time::{MissedTickBehavior, interval};
use volmux::{BlockDevice, CloneOptions, OpenOptions, Pool, SnapshotOptions, VolumeName};
use volmux_bench::{Result, Samples, count, ratio};

use super::ours::Numbers;
use super::store::Store;
use super::{BLOCK, GIB, MIB, Place, TIB, ours};

/// An open volume of a pool.
struct Source<'a> {
    pool: &'a dyn Pool,
    store: &'a Store,
    name: VolumeName,
    device: Arc<dyn BlockDevice>,
}

impl<'a> Source<'a> {
    async fn make(pool: &'a dyn Pool, store: &'a Store, name: &str, size: u64) -> Result<Self> {
        let (name, device) = ours::make_and_open(pool, name, size).await?;
        Ok(Source {
            pool,
            store,
            name,
            device,
        })
    }

    /// Takes a snapshot and removes it again; returns its time and its puts.
    async fn snapshot(&self) -> Result<(Duration, u64)> {
        let made = VolumeName::new("made")?;
        let before = self.store.remote().counts()?;
        let (start, options) = (Instant::now(), SnapshotOptions::default());
        self.pool
            .snapshot_volume(&self.name, &made, options)
            .await?;
        let time = start.elapsed();
        let asked = self.store.remote().counts()? - before;
        self.pool.delete_volume(&made).await?;
        Ok((time, asked.puts()))
    }

    /// The same of a volume that was written to since the last flush.
    async fn dirty_snapshot(&self, data: &bytes::Bytes) -> Result<(Duration, u64)> {
        self.device.write_at(0, data.clone()).await?;
        self.snapshot().await
    }
}

pub fn snapshots(place: &Place) -> Result<()> {
    println!("info -- snapshots of an open volume with one block that is not flushed");
    let runtime = Runtime::new()?;
    // A million extents are 4 GiB.
    let store = Store::compressed()?;
    runtime.block_on(async {
        let pool = ours::open(&store.url("snapshots", "")).await?;
        let small = Source::make(&*pool, &store, "small", GIB).await?;
        let huge = Source::make(&*pool, &store, "huge", 10 * TIB).await?;
        let names = ["of 1 GiB virtual", "of 10 TiB virtual"];
        let [one, other] = compare(place, names, [&small, &huge]).await?;
        ratio("object-snapshot-10tib-vs-1gib", &other, &one);

        let pieces = Source::make(&*pool, &store, "pieces", 16 * GIB).await?;
        let extents = place.scaled(1_000_000);
        scatter(&pieces.device, extents).await?;
        println!("info {extents} extents written");
        let names = ["of 1 extent", "of 1,000,000 extents"];
        let [one, other] = compare(place, names, [&small, &pieces]).await?;
        ratio("object-snapshot-1m-extents-vs-1", &other, &one);

        pieces.device.flush().await?;
        store.settle()?;
        let mut puts = 0;
        for _ in 0..5 {
            puts = puts.max(pieces.snapshot().await?.1);
        }
        count("object-snapshot-puts", puts);
        clone_puts(&pieces).await?;
        stalls(place, &pieces).await
    })
}

/// Snapshots of the one and the other in turns.
async fn compare(
    place: &Place,
    names: [&str; 2],
    sources: [&Source<'_>; 2],
) -> Result<[Samples; 2]> {
    let mut samples = names.map(|name| Samples::new(format!("snapshot {name}")));
    let data = Numbers(6).bytes(BLOCK);
    let mut puts = [0; 2];
    for round in 0..place.scaled(80) as usize {
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let (time, made) = sources[which].dirty_snapshot(&data).await?;
            samples[which].add(time);
            puts[which] = made.max(puts[which]);
        }
    }
    for (samples, puts) in samples.iter().zip(puts) {
        samples.print();
        println!("info     with {puts} puts at most, the dirty block's included");
    }
    Ok(samples)
}

/// Writes so many blocks that do not touch each other, 32 at once.
async fn scatter(device: &Arc<dyn BlockDevice>, extents: u64) -> Result<()> {
    let writers: Vec<_> = (0..32)
        .map(|writer| {
            let device = Arc::clone(device);
            tokio::spawn(async move {
                for number in (writer..extents).step_by(32) {
                    let data = number.to_le_bytes().repeat(BLOCK as usize / 8);
                    // Odd, and so a permutation of the 2^20 places, which are 16 KiB apart.
                    let place = number.wrapping_mul(0x9e37_79b1) % (1 << 20);
                    device.write_at(place * 4 * BLOCK, data.into()).await?;
                }
                device.flush().await
            })
        })
        .collect();
    for writer in writers {
        writer.await??;
    }
    Ok(())
}

async fn clone_puts(source: &Source<'_>) -> Result<()> {
    let made = VolumeName::new("made")?;
    let (mut puts, mut times) = (0, Samples::new("clone of 1,000,000 extents"));
    for _ in 0..9 {
        let before = source.store.remote().counts()?;
        let (start, options) = (Instant::now(), CloneOptions::default());
        source
            .pool
            .clone_volume(&source.name, &made, options)
            .await?;
        times.add(start.elapsed());
        puts = puts.max((source.store.remote().counts()? - before).puts());
        source.pool.delete_volume(&made).await?;
    }
    times.print();
    count("object-clone-puts", puts);
    Ok(())
}

/// How long a writer waits, with and without snapshots beside it.
async fn stalls(place: &Place, source: &Source<'_>) -> Result<()> {
    println!("info -- a writer of 4 KiB, 4,000 a second, with 10 snapshots a second beside it");
    let quiet = writer(&source.device, place.time).await?;
    let work = async {
        let mut ticks = interval(Duration::from_millis(100));
        let (start, mut taken) = (Instant::now(), 0);
        while start.elapsed() < place.time {
            ticks.tick().await;
            source.snapshot().await?;
            taken += 1;
        }
        Ok(taken)
    };
    let device = Arc::clone(&source.device);
    let time = place.time;
    let beside =
        tokio::spawn(async move { writer(&device, time).await.map_err(|e| e.to_string()) });
    let taken: Result<u32> = work.await;
    let stalled = beside.await??;
    for (name, times) in [("alone", &quiet), ("beside snapshots", &stalled)] {
        println!(
            "info a writer {name}: p50 {:.0} us, p99 {:.0} us, longest {:.0} us, n {}",
            at(times, 0.5),
            at(times, 0.99),
            at(times, 1.0),
            times.len()
        );
    }
    println!("info {} snapshots were taken", taken?);
    let p99 = at(&stalled, 0.99);
    count("object-snapshot-stall-p99-us", format_args!("{p99:.0}"));
    Ok(())
}

/// In microseconds, the part `part` of the times is shorter.
fn at(times: &[Duration], part: f64) -> f64 {
    let last = times.len() - 1;
    times[(last as f64 * part) as usize].as_secs_f64() * 1e6
}

/// The times of single writes, sorted.
async fn writer(device: &Arc<dyn BlockDevice>, time: Duration) -> Result<Vec<Duration>> {
    let (mut numbers, mut times) = (Numbers(7), Vec::new());
    let data = numbers.bytes(BLOCK);
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let start = Instant::now();
    while start.elapsed() < time {
        ticks.tick().await;
        for _ in 0..4 {
            let offset = numbers.offset(GIB);
            let began = Instant::now();
            device.write_at(offset, data.clone()).await?;
            times.push(began.elapsed());
        }
    }
    times.sort_unstable();
    Ok(times)
}

pub fn clones(place: &Place) -> Result<()> {
    let number = place.scaled(10_000);
    println!("info -- {number} clones of one base in one pool");
    let runtime = Runtime::new()?;
    let store = Store::start()?;
    let url = store.url("clones", "");
    runtime.block_on(async {
        let pool = ours::open(&url).await?;
        let (base, device) = ours::make_and_open(&*pool, "base", GIB).await?;
        device.write_at(0, Numbers(8).bytes(MIB)).await?;
        device.flush().await?;
        drop(device);
        store.settle()?;
        let (before, start) = (store.remote().counts()?, Instant::now());
        for clone in 0..number {
            let name = VolumeName::new(format!("clone-{clone:05}"))?;
            pool.clone_volume(&base, &name, CloneOptions::default())
                .await?;
        }
        let asked = store.remote().counts()? - before;
        println!(
            "info created in {:.1} s, one after the other: {:.2} requests and {:.0} bytes put each",
            start.elapsed().as_secs_f64(),
            asked.requests() as f64 / number as f64,
            asked.bytes_in as f64 / number as f64,
        );
        listed(&store, &url, number).await?;
        let mut times = Samples::new("open one of the clones, read and write a block, close it");
        for clone in 0..20 {
            let name = VolumeName::new(format!("clone-{clone:05}"))?;
            let (start, options) = (Instant::now(), OpenOptions::read_write());
            let device = pool.open_volume(&name, options).await?;
            let data = device.read_at(0, BLOCK as usize).await?;
            device.write_at(MIB, data).await?;
            device.flush().await?;
            drop(device);
            times.add(start.elapsed());
        }
        times.print();
        Ok(())
    })
}

async fn listed(store: &Store, url: &str, number: u64) -> Result<()> {
    let mut times = Samples::new("list, by a pool that was just opened");
    let mut requests = 0;
    for _ in 0..5 {
        let before = store.remote().counts()?;
        let start = Instant::now();
        let pool = ours::open(url).await?;
        let all = pool.list_volumes();
        let found = all.try_fold(0, |n, _| async move { Ok(n + 1) }).await?;
        times.add(start.elapsed());
        if found != number + 1 {
            return Err(format!("{found} volumes found").into());
        }
        requests = (store.remote().counts()? - before).requests();
    }
    times.print();
    let per_thousand = requests as f64 / (number as f64 / 1000.0);
    println!("info {requests} requests for a list of {number}, opening the pool included");
    count(
        "object-list-requests-per-1000",
        format_args!("{per_thousand:.2}"),
    );
    Ok(())
}
