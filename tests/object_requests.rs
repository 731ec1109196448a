//! What object pools ask of their store: requests and bytes, counted by an S3 server in memory.
//! These numbers do not depend on the machine.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::try_join_all;
use tempfile::NamedTempFile;
use volmux::{
    BlockDevice, ByteRange, ByteSize, CloneOptions, CreateOptions, OpenOptions, Pool,
    SnapshotOptions, VolumeName,
};
use volmux_s3_server::{Counts, Options, Server};

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

/// A store, and what it takes to open pools in it.
struct Lab {
    server: Server,
    credentials: NamedTempFile,
}

impl Lab {
    fn new() -> Self {
        let mut credentials = NamedTempFile::new().expect("a temporary file");
        credentials
            .write_all(b"AWS_ACCESS_KEY_ID=test\nAWS_SECRET_ACCESS_KEY=test\n")
            .expect("write");
        Lab {
            server: Server::start(Options::default()).expect("a server"),
            credentials,
        }
    }

    /// A pool that knows nothing yet of what others did, as in another process.
    async fn pool(&self) -> Arc<dyn Pool> {
        let url = format!(
            "s3://bucket/pool?region=us-east-1&endpoint={}&credentials_file={}",
            self.server.endpoint(),
            self.credentials.path().display()
        );
        volmux::registry().open(&url).await.expect("open the pool")
    }

    fn counts(&self) -> Counts {
        self.server.counts()
    }

    /// Waits until nobody asks anything any more: a volume is closed in the background.
    async fn settle(&self) {
        let mut before = self.counts();
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = self.counts();
            if now == before {
                return;
            }
            before = now;
        }
    }

    /// A pool as [`pool`](Self::pool) gives, that has found out by now that the store is fit to be
    /// written to.
    async fn writing_pool(&self) -> Arc<dyn Pool> {
        let pool = self.pool().await;
        drop(make(&*pool, "another", MIB).await);
        self.settle().await;
        pool
    }

    /// What `work` asked of the store, with the requests in the message of a failing test.
    async fn asked<T>(&self, work: impl Future<Output = volmux::Result<T>>) -> (T, Asked) {
        self.server.record(true);
        let before = self.counts();
        let done = work.await.expect("the work succeeds");
        let counts = self.counts() - before;
        let requests = self
            .server
            .record(false)
            .iter()
            .map(|r| format!("{} {} {:?} {:?}\n", r.kind, r.key, r.range, r.bytes))
            .collect();
        (done, Asked { counts, requests })
    }
}

struct Asked {
    counts: Counts,
    requests: String,
}

fn name(name: &str) -> VolumeName {
    VolumeName::new(name).expect("the name is right")
}

async fn make(pool: &dyn Pool, volume: &str, size: u64) -> Arc<dyn BlockDevice> {
    let options = CreateOptions::thin(ByteSize::new(size));
    pool.create_volume(&name(volume), options)
        .await
        .expect("create");
    open(pool, volume).await
}

async fn open(pool: &dyn Pool, volume: &str) -> Arc<dyn BlockDevice> {
    let options = OpenOptions::read_write();
    pool.open_volume(&name(volume), options)
        .await
        .expect("open")
}

/// Bytes that no other number gives, and that don't compress.
fn noise(number: u64, length: u64) -> Bytes {
    let mut state = number;
    let mut words = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 27)).to_le_bytes()
    };
    (0..length / 8).flat_map(|_| words()).collect()
}

/// The blocks of a volume of `blocks` (a power of two), in an order that looks random.
fn shuffled(blocks: u64) -> impl Iterator<Item = u64> {
    (0..blocks).map(move |n| n.wrapping_mul(0x9e37_79b1) % blocks * BLOCK)
}

/// A pool with a volume of 32 MiB that is written in full and closed.
async fn written(lab: &Lab) {
    let pool = lab.pool().await;
    let device = make(&*pool, "v", 32 * MIB).await;
    for part in 0..32 {
        device
            .write_at(part * MIB, noise(part, MIB))
            .await
            .expect("write");
    }
    device.flush().await.expect("flush");
}

#[tokio::test]
async fn a_cold_block_costs_one_get_and_a_warm_one_none() {
    let lab = Lab::new();
    written(&lab).await;
    let pool = lab.pool().await;
    let device = open(&*pool, "v").await;
    device.read_at(0, 512).await.expect("the map is loaded");
    let offsets: Vec<u64> = shuffled(32 * MIB / BLOCK).skip(1).step_by(31).collect();
    let read_all = async || -> volmux::Result<()> {
        for &offset in &offsets {
            let read = device.read_at(offset, BLOCK as usize).await?;
            let (part, within) = (offset / MIB, (offset % MIB) as usize);
            let block = within..within + BLOCK as usize;
            assert_eq!(read, noise(part, MIB)[block], "at {offset}");
        }
        Ok(())
    };
    let ((), cold) = lab.asked(read_all()).await;
    assert_eq!(cold.counts.get, offsets.len() as u64, "{}", cold.requests);
    assert_eq!(cold.counts.requests(), cold.counts.get, "{}", cold.requests);
    let bytes = cold.counts.bytes_out;
    assert!(bytes <= cold.counts.get * (BLOCK + 16), "{bytes} bytes");
    let ((), warm) = lab.asked(read_all()).await;
    assert_eq!(warm.counts, Counts::default(), "{}", warm.requests);
}

#[tokio::test]
async fn a_reader_asks_the_store_no_more_than_a_writer() {
    let lab = Lab::new();
    written(&lab).await;
    let pool = lab.pool().await;
    let options = OpenOptions::read_only();
    let device = pool.open_volume(&name("v"), options).await.expect("open");
    let read_all = async || -> volmux::Result<()> {
        for offset in shuffled(32 * MIB / BLOCK).step_by(31) {
            device.read_at(offset, BLOCK as usize).await?;
        }
        Ok(())
    };
    let ((), cold) = lab.asked(read_all()).await;
    let ((), warm) = lab.asked(read_all()).await;
    let reads = 32 * MIB / BLOCK / 31 + 1;
    // The map, and now and then a look whether somebody has written.
    let spare = 16;
    assert!(cold.counts.requests() <= reads + spare, "{:?}", cold.counts);
    assert!(warm.counts.requests() <= spare, "{:?}", warm.counts);
}

#[tokio::test]
async fn who_reads_in_sequence_finds_what_was_read_ahead() {
    let lab = Lab::new();
    written(&lab).await;
    let pool = lab.pool().await;
    let device = open(&*pool, "v").await;
    let sequence = async {
        for block in 0..16 * MIB / BLOCK {
            device.read_at(block * BLOCK, BLOCK as usize).await?;
        }
        Ok(())
    };
    let ((), asked) = lab.asked(sequence).await;
    // The first few one by one, then more and more at once.
    assert!(asked.counts.get <= 24, "{}", asked.requests);
    // No more than the last window is read in vain.
    let most = (16 + 4) * MIB * 4100 / 4096 + MIB;
    assert!(asked.counts.bytes_out <= most, "{}", asked.requests);
}

#[tokio::test]
async fn readers_of_one_cold_block_share_its_get() {
    let lab = Lab::new();
    written(&lab).await;
    let pool = lab.pool().await;
    let device = open(&*pool, "v").await;
    device.read_at(0, 512).await.expect("the map is loaded");
    lab.server.latency(None, Duration::from_millis(30));
    let many = (0..40).map(|n| device.read_at(9 * MIB + n * 64, 64));
    let (_, asked) = lab.asked(try_join_all(many)).await;
    assert_eq!(asked.counts.get, 1, "{}", asked.requests);
}

#[tokio::test]
async fn a_long_read_is_one_get() {
    let lab = Lab::new();
    written(&lab).await;
    let pool = lab.pool().await;
    let device = open(&*pool, "v").await;
    device.read_at(0, 512).await.expect("the map is loaded");
    let (read, asked) = lab.asked(device.read_at(17 * MIB, MIB as usize)).await;
    assert_eq!(read, noise(17, MIB));
    // It may lie in two objects.
    assert!(asked.counts.get <= 2, "{}", asked.requests);
}

#[tokio::test]
async fn what_was_just_written_is_read_without_a_request() {
    let lab = Lab::new();
    let pool = lab.pool().await;
    let device = make(&*pool, "v", 32 * MIB).await;
    let work = async {
        device.write_at(MIB, noise(1, 4 * BLOCK)).await?;
        device.read_at(MIB, 4 * BLOCK as usize).await
    };
    let (read, asked) = lab.asked(work).await;
    assert_eq!(read, noise(1, 4 * BLOCK));
    assert_eq!(asked.counts, Counts::default(), "{}", asked.requests);
}

#[tokio::test]
async fn a_flush_is_two_puts_and_one_of_nothing_is_none() {
    let lab = Lab::new();
    let pool = lab.pool().await;
    let device = make(&*pool, "v", 32 * MIB).await;
    for round in 0..5 {
        let work = async {
            device.write_at(round * MIB, noise(round, BLOCK)).await?;
            device.flush().await
        };
        let ((), asked) = lab.asked(work).await;
        assert_eq!(asked.counts.puts(), 2, "{}", asked.requests);
        assert_eq!(asked.counts.requests(), 2, "{}", asked.requests);
        assert!(asked.counts.bytes_in < 4 * BLOCK, "{}", asked.requests);
        let ((), again) = lab.asked(device.flush()).await;
        assert_eq!(again.counts, Counts::default(), "{}", again.requests);
    }
    let discard = async {
        device.discard(ByteRange::new(MIB, MIB)).await?;
        device.flush().await
    };
    let ((), asked) = lab.asked(discard).await;
    assert!(asked.counts.requests() <= 2, "{}", asked.requests);
}

#[tokio::test]
async fn flushes_at_the_same_time_share_their_puts() {
    let lab = Lab::new();
    let pool = lab.pool().await;
    let device = make(&*pool, "v", 32 * MIB).await;
    device.write_at(0, noise(0, BLOCK)).await.expect("write");
    device.flush().await.expect("flush");
    lab.server.latency(None, Duration::from_millis(30));
    let many = (0..64).map(|n| {
        let device = &device;
        async move {
            device.write_at(n * MIB / 2, noise(n, BLOCK)).await?;
            device.flush().await
        }
    });
    let (_, asked) = lab.asked(try_join_all(many)).await;
    // Those that come first, and all the others together.
    assert!(asked.counts.puts() <= 6, "{}", asked.requests);
}

#[tokio::test]
async fn a_snapshot_is_two_puts_and_a_clone_one() {
    let lab = Lab::new();
    let pool = lab.pool().await;
    let device = make(&*pool, "v", 32 * MIB).await;
    for part in 0..16 {
        device
            .write_at(part * 2 * MIB, noise(part, BLOCK))
            .await
            .expect("write");
    }
    device.flush().await.expect("flush");
    let snapshot = async |made: &str| {
        let options = SnapshotOptions::default();
        pool.snapshot_volume(&name("v"), &name(made), options).await
    };
    let (_, asked) = lab.asked(snapshot("clean")).await;
    assert!(asked.counts.puts() <= 2, "{}", asked.requests);
    device.write_at(MIB, noise(99, BLOCK)).await.expect("write");
    let (_, asked) = lab.asked(snapshot("dirty")).await;
    assert!(asked.counts.puts() <= 3, "{}", asked.requests);
    let clone = async |source: &str| {
        let (source, made) = (name(source), name(&format!("clone-of-{source}")));
        let options = CloneOptions::default();
        let clone = pool.clone_volume(&source, &made, options);
        let (_, asked) = lab.asked(clone).await;
        assert_eq!(asked.counts.puts(), 1, "{}", asked.requests);
    };
    clone("clean").await;
    clone("dirty").await;
    clone("v").await;
    drop(device);
    lab.settle().await;
    clone("clone-of-clean").await;
}

#[tokio::test]
async fn ten_thousand_volumes_are_listed_in_a_hundred_requests() {
    let lab = Lab::new();
    let pool = lab.pool().await;
    drop(make(&*pool, "base", 32 * MIB).await);
    for number in 1..10_000 {
        let made = name(&format!("clone-{number:05}"));
        pool.clone_volume(&name("base"), &made, CloneOptions::default())
            .await
            .expect("clone");
    }
    let list = async {
        let pool = lab.pool().await;
        pool.list_volumes().try_collect::<Vec<_>>().await
    };
    let (found, asked) = lab.asked(list).await;
    assert_eq!(found.len(), 10_000);
    let requests = asked.counts.requests();
    assert!(requests <= 100, "{requests}:\n{}", asked.requests);
}

#[tokio::test]
async fn a_volume_of_16_tib_opens_with_a_few_small_reads() {
    let lab = Lab::new();
    let pool = lab.pool().await;
    let device = make(&*pool, "v", 16 * TIB).await;
    let offset = |n: u64| n.wrapping_mul(0x9e37_79b1) % (1 << 20) * (16 * MIB);
    for number in 0..20_000 {
        device
            .write_at(offset(number), noise(number, BLOCK))
            .await
            .expect("write");
    }
    device.flush().await.expect("flush");
    drop(device);
    let later = lab.writing_pool().await;
    let (device, asked) = lab.asked(async { Ok(open(&*later, "v").await) }).await;
    let requests = asked.counts.requests();
    assert!(requests <= 16, "{requests}:\n{}", asked.requests);
    let bytes = asked.counts.bytes_out;
    assert!(bytes <= 2 * MIB, "{bytes} bytes:\n{}", asked.requests);
    let (read, asked) = lab
        .asked(device.read_at(offset(12_345), BLOCK as usize))
        .await;
    assert_eq!(read, noise(12_345, BLOCK));
    assert!(asked.counts.get <= 5, "{}", asked.requests);
}

#[tokio::test]
async fn random_writes_are_put_once_and_little_else() {
    let lab = Lab::new();
    let pool = lab.pool().await;
    let device = make(&*pool, "v", 64 * MIB).await;
    let write = async {
        for offset in shuffled(64 * MIB / BLOCK) {
            device.write_at(offset, noise(offset, BLOCK)).await?;
        }
        device.flush().await
    };
    let ((), asked) = lab.asked(write).await;
    let amplification = asked.counts.bytes_in as f64 / (64 * MIB) as f64;
    assert!(
        amplification <= 1.15,
        "{amplification}:\n{}",
        asked.requests
    );
    assert_eq!(asked.counts.get, 0, "{}", asked.requests);
    // Objects of 8 MiB, and a manifest now and then.
    assert!(asked.counts.puts() <= 40, "{}", asked.requests);
}

#[tokio::test]
async fn deleting_a_volume_costs_the_same_whatever_it_holds() {
    let lab = Lab::new();
    written(&lab).await;
    let pool = lab.writing_pool().await;
    let volume = name("v");
    let (_, asked) = lab.asked(pool.delete_volume(&volume)).await;
    // That its writers are to stop, and that it is gone.
    assert!(asked.counts.puts() <= 2, "{}", asked.requests);
    assert!(asked.counts.requests() <= 8, "{}", asked.requests);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_vanishes_for_a_minute_costs_a_minute_and_nothing_else() {
    let lab = Lab::new();
    let pool = lab.pool().await;
    let device = make(&*pool, "v", 32 * MIB).await;
    for part in 0..4 {
        device
            .write_at(part * MIB, noise(part, MIB))
            .await
            .expect("write");
    }
    device.flush().await.expect("flush");
    let start = Instant::now();
    lab.server.outage(Duration::from_secs(60));
    for part in 4..8 {
        device
            .write_at(part * MIB, noise(part, MIB))
            .await
            .expect("written to memory");
    }
    let read = device.read_at(5 * MIB, MIB as usize).await.expect("read");
    assert_eq!(read, noise(5, MIB));
    device.flush().await.expect("flush once the store is back");
    assert!(start.elapsed() >= Duration::from_secs(59), "it was gone");
    for part in 8..12 {
        device
            .write_at(part * MIB, noise(part, MIB))
            .await
            .expect("write");
    }
    device.flush().await.expect("flush");
    drop(device);
    lab.settle().await;
    let device = open(&*lab.pool().await, "v").await;
    for part in 0..12 {
        let read = device.read_at(part * MIB, MIB as usize).await;
        assert_eq!(read.expect("read"), noise(part, MIB), "part {part}");
    }
}
