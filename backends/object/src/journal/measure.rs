//! What the journal costs; run with `--release -- --ignored --nocapture journal::measure`, and
//! `TMPDIR` on the disk in question.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::format::{Header, Records};
use super::*;
use crate::seal::tests::both;

const ROUNDS: usize = 40;
const EACH: usize = 50;

fn op(n: u64, data: &Bytes) -> Op {
    Op::Write {
        offset: n * 4096,
        data: data.clone(),
    }
}

/// Nanoseconds for which this process' threads had a processor.
fn worked() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let stats = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("schedstat")));
    let first = |stat: String| {
        stat.split_whitespace()
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    stats.map(|stat| first(stat.unwrap())).sum()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The same number of flushes by a bare loop and by the journal, by turns, since the speed of a
/// disk that others use as well changes from second to second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures the disk"]
async fn flushes_beside_append_and_fdatasync() {
    for seal in both(1, 1) {
        let dir = tempfile::tempdir().unwrap();
        let config = JournalConfig::new(dir.path().to_owned(), 1 << 30).unwrap();
        let log = LogId(Uuid::from_u128(5));
        let (journal, _) = Journal::open(&config, log, &seal, None).unwrap();
        let file = File::create(dir.path().join("bare")).unwrap();
        let data = Bytes::from(vec![0x5a; 4096]);
        let (mut bare, mut ours) = (Vec::new(), Vec::new());
        let (mut bare_total, mut ours_total) = (Duration::ZERO, Duration::ZERO);
        for round in 0..ROUNDS {
            let begun = Instant::now();
            for n in 0..EACH {
                let begun = Instant::now();
                file.write_all_at(&data, ((round * EACH + n) * 4096) as u64)
                    .unwrap();
                file.sync_data().unwrap();
                bare.push(begun.elapsed());
            }
            bare_total += begun.elapsed();
            let begun = Instant::now();
            for n in 0..EACH {
                let begun = Instant::now();
                journal.append(op(n as u64, &data)).unwrap();
                journal.sync().await.unwrap();
                ours.push(begun.elapsed());
            }
            ours_total += begun.elapsed();
        }
        println!(
            "encrypted: {}, flushes per second as a part of bare ones: {:.2}; medians {:?} and {:?}",
            seal.key().is_some(),
            bare_total.as_secs_f64() / ours_total.as_secs_f64(),
            median(ours),
            median(bare),
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures the disk"]
async fn appends_per_second() {
    for seal in both(1, 1) {
        let dir = tempfile::tempdir().unwrap();
        let config = JournalConfig::new(dir.path().to_owned(), 1 << 30).unwrap();
        let log = LogId(Uuid::from_u128(5));
        let (journal, _) = Journal::open(&config, log, &seal, None).unwrap();
        let data = Bytes::from(vec![0x5a; 4096]);
        for round in ["new files", "used files", "used files"] {
            let count = 200_000_u64;
            let (begun, work) = (Instant::now(), worked());
            for n in 0..count {
                if !journal.has_room(4096) {
                    // As if everything were committed at once.
                    journal.trim(journal.position());
                    journal.room(4096).await;
                }
                journal.append(op(n, &data)).unwrap();
            }
            journal.sync().await.unwrap();
            let took = begun.elapsed();
            println!(
                "encrypted: {}, {round}: {:.0} appends of 4 KiB per second, {} ns of work for each",
                seal.key().is_some(),
                count as f64 / took.as_secs_f64(),
                (worked() - work) / count,
            );
        }
        let count = 1_000_000_u64;
        let records = Records::new(
            &seal,
            &Header {
                pool: seal.pool(),
                log,
                journal: journal.id(),
                salt: journal.id(),
                generation: 1,
                first: 0,
                synced: 0,
            },
        );
        let records = records.unwrap();
        let mut out = Vec::with_capacity(1 << 20);
        let begun = Instant::now();
        for n in 0..count {
            if out.len() + 8192 > 1 << 20 {
                out.clear();
            }
            records.encode(n, 0, &op(n, &data), &mut out).unwrap();
        }
        let each = begun.elapsed().as_nanos() / u128::from(count);
        println!(
            "encrypted: {}, {each} ns for a record of 4 KiB",
            seal.key().is_some()
        );
        journal.trim(journal.position());
        let mark = (journal.id(), journal.position());
        for n in 0..16_000 {
            journal.append(op(n, &data)).unwrap();
        }
        journal.end(false).await;
        let begun = Instant::now();
        let (_journal, replay) = Journal::open(&config, log, &seal, Some(mark)).unwrap();
        let opened = begun.elapsed();
        let count = replay.filter(|item| item.is_ok()).count();
        println!(
            "opened with 64 MiB in {opened:?}, {count} read in {:?}",
            begun.elapsed()
        );
    }
}
