//! What a flush costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use tokio::runtime::Runtime;
use volmux::BlockDevice;
use volmux_bench::fio::{self, Job};
use volmux_bench::{Contender, Result, Samples, contest, count, ratio_of_turns};

use super::ours::Numbers;
use super::store::Store;
use super::{BLOCK, GIB, Place, bare, ours};

/// Writes 4 KiB and flushes, again and again for `time`; how often a second.
async fn write_and_flush(device: &Arc<dyn BlockDevice>, time: Duration) -> Result<f64> {
    let mut numbers = Numbers(3);
    let data = numbers.bytes(BLOCK);
    let (start, mut done) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        device.write_at(numbers.offset(GIB), data.clone()).await?;
        device.flush().await?;
        done += 1;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

pub fn flush_journal(place: &Place) -> Result<()> {
    println!("info -- 4 KiB written and flushed, one after the other: flush=journal, same disk");
    let runtime = Runtime::new()?;
    let store = Store::start()?;
    let options = |name: &str| -> Result<String> {
        let journal = place.directory(name)?;
        Ok(format!("flush=journal&journal={}", journal.display()))
    };
    let device = runtime.block_on(async {
        let pool = ours::open(&store.url("flush-journal", &options("journal")?)).await?;
        let (_, device) = ours::make_and_open(&*pool, "volume", GIB).await?;
        Ok::<_, Box<dyn std::error::Error>>(device)
    })?;
    let url = store.url("flush-journal-nbd", &options("journal-nbd")?);
    let served = ours::server(place, "volmux", &url, GIB)?;
    let job = Job::new("randwrite", BLOCK, 1).flush_every(1);
    let time = place.time;
    let all = contest(
        place.repeats,
        vec![
            Contender::new("flush: volmux, in this process", "/s", || {
                runtime.block_on(write_and_flush(&device, time))
            }),
            Contender::new("flush: append and fdatasync", "/s", || {
                bare::append_and_sync(place, time)
            }),
            Contender::new("flush: volmux, over NBD", "/s", || {
                let outcome = fio::run(&job, served.socket(), GIB, Some(time))?;
                Ok(outcome.requests_per_second)
            }),
        ],
    )?;
    ratio_of_turns("object-flush-journal-vs-append-fdatasync", &all[0], &all[1]);
    runtime.block_on(async { drop(device) });
    Ok(())
}

pub fn flush_store(place: &Place) -> Result<()> {
    const LATENCY: Duration = Duration::from_millis(20);
    println!("info -- 4 KiB written and flushed: flush=store, 20 ms for every request");
    let runtime = Runtime::new()?;
    let store = Store::start()?;
    let trips = |samples: &Samples| samples.median().as_secs_f64() / LATENCY.as_secs_f64();
    runtime.block_on(async {
        let pool = ours::open(&store.url("flush-store", "")).await?;
        let (_, device) = ours::make_and_open(&*pool, "volume", GIB).await?;
        let mut numbers = Numbers(4);
        let data = numbers.bytes(BLOCK);
        device.write_at(0, data.clone()).await?;
        device.flush().await?;
        store.remote().latency(None, LATENCY)?;

        let rounds = place.scaled(64);
        let mut alone = Samples::new("flush: one write, one flush");
        for _ in 0..rounds {
            device.write_at(numbers.offset(GIB), data.clone()).await?;
            let start = Instant::now();
            device.flush().await?;
            alone.add(start.elapsed());
        }
        let mut together = Samples::new("flush: 16 at once, each after a write of its own");
        let before = store.remote().counts()?;
        for _ in 0..rounds {
            let offsets: Vec<u64> = (0..16).map(|_| numbers.offset(GIB)).collect();
            let start = Instant::now();
            try_join_all(offsets.into_iter().map(|offset| {
                let (device, data) = (&device, data.clone());
                async move {
                    device.write_at(offset, data).await?;
                    device.flush().await
                }
            }))
            .await?;
            together.add(start.elapsed());
        }
        let asked = store.remote().counts()? - before;
        store.remote().order("heal")?;
        alone.print();
        together.print();
        count(
            "object-flush-store-round-trips",
            format_args!("{:.3}", trips(&alone)),
        );
        count(
            "object-flush-store-16-at-once-round-trips",
            format_args!("{:.3}", trips(&together)),
        );
        let puts = asked.puts() as f64 / (16 * rounds) as f64;
        count(
            "object-flush-store-16-at-once-puts-each",
            format_args!("{puts:.3}"),
        );
        drop(device);
        store.settle()
    })
}
