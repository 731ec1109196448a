//! The store without us: `object_store` against the same S3 server, and a file on the disk.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use tokio::runtime::Runtime;
use volmux_bench::{Figures, Result};

use super::ours::Numbers;
use super::store::Store;
use super::{BLOCK, BUCKET, MIB, Place};

/// What our pools put at a time, and how many at once, as they come.
pub const OBJECT: u64 = 8 * MIB;
pub const UPLOADS: usize = 4;

/// A client such as our pools use.
pub fn client(store: &Store) -> Result<Arc<AmazonS3>> {
    let client = AmazonS3Builder::new()
        .with_access_key_id("bench")
        .with_secret_access_key("bench")
        .with_endpoint(store.endpoint())
        .with_region("us-east-1")
        .with_bucket_name(BUCKET)
        .with_allow_http(true)
        // As our pools do on loopback: hashing what is put would be half of the work.
        .with_unsigned_payload(true)
        .build()?;
    Ok(Arc::new(client))
}

fn key(number: u64) -> Path {
    Path::from(format!("bare/{number}"))
}

/// Puts `bytes` in objects of `size` each, `at_once` in flight; MB/s.
pub async fn put(client: &AmazonS3, bytes: u64, size: u64, at_once: usize) -> Result<f64> {
    let data = Numbers(1).bytes(size);
    let objects = bytes / size;
    let start = Instant::now();
    let mut puts = stream::iter(0..objects)
        .map(|number| {
            let payload = PutPayload::from_bytes(data.clone());
            async move { client.put(&key(number), payload).await }
        })
        .buffer_unordered(at_once);
    while let Some(put) = puts.next().await {
        put?;
    }
    Ok((objects * size) as f64 / 1e6 / start.elapsed().as_secs_f64())
}

/// Reads `length` bytes at random out of what [`put`] has put (`objects` of `size`), `at_once` in
/// flight, for `time`; requests a second.
pub async fn get(
    client: &Arc<AmazonS3>,
    (objects, size): (u64, u64),
    length: u64,
    at_once: u64,
    time: Duration,
) -> Result<f64> {
    let start = Instant::now();
    let readers: Vec<_> = (0..at_once)
        .map(|seed| {
            let client = Arc::clone(client);
            tokio::spawn(async move {
                let (mut numbers, mut done) = (Numbers(seed), 0_u64);
                while start.elapsed() < time {
                    let offset = numbers.next() % (size - length + 1);
                    let key = key(numbers.next() % objects);
                    client.get_range(&key, offset..offset + length).await?;
                    done += 1;
                }
                Ok::<_, object_store::Error>(done)
            })
        })
        .collect();
    let mut done = 0;
    for reader in readers {
        done += reader.await??;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

/// What the S3 server and its client can do, so that the rest can be judged.
pub fn figures(place: &Place) -> Result<()> {
    println!("info -- the bare client (object_store) against the S3 server");
    let runtime = Runtime::new()?;
    let store = Store::start()?;
    let client = client(&store)?;
    let mut rates = Vec::new();
    for (name, unit) in [
        ("bare GET 4 KiB, 1 in flight", "/s"),
        ("bare GET 4 KiB, 32 in flight", "/s"),
        ("bare GET 1 MiB, 1 in flight", "MB/s"),
        ("bare GET 1 MiB, 8 in flight", "MB/s"),
        ("bare PUT 1 MiB, 1 in flight", "MB/s"),
        ("bare PUT 8 MiB, 4 in flight", "MB/s"),
    ] {
        rates.push(Figures::new(name, unit));
    }
    let megabytes = MIB as f64 / 1e6;
    let time = place.time / 3;
    for _ in 0..place.repeats {
        let amount = place.scaled(1024 * MIB);
        rates[5].add(runtime.block_on(put(&client, amount, OBJECT, UPLOADS))?);
        let there = (amount / OBJECT, OBJECT);
        for (rate, length, at_once, unit) in [
            (0, BLOCK, 1, 1.0),
            (1, BLOCK, 32, 1.0),
            (2, MIB, 1, megabytes),
            (3, MIB, 8, megabytes),
        ] {
            let got = runtime.block_on(get(&client, there, length, at_once, time))?;
            rates[rate].add(got * unit);
        }
        rates[4].add(runtime.block_on(put(&client, amount / 4, MIB, 1))?);
    }
    rates.iter().for_each(Figures::print);
    Ok(())
}

/// Appends 4 KiB and has them written to the disk, again and again for `time`; how often a second.
pub fn append_and_sync(place: &Place, time: Duration) -> Result<f64> {
    let mut file = File::create(place.disk.path().join("appended"))?;
    let data = Numbers(2).bytes(BLOCK);
    let (start, mut done) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        file.write_all(&data)?;
        file.sync_data()?;
        done += 1;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}
