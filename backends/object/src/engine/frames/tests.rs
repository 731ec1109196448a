//! Compressed pools, as others use them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::join_all;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use proptest::prelude::*;
use volmux_core::{
    BlockDevice, ByteSize, Control, CreateOptions, ErrorKind, OpenOptions, Pool, VolumeName,
};

use crate::catalog::tests::rough::Rough;
use crate::config::{Compression, Encryption, Location, ObjectConfig};
use crate::envelope::Kind;
use crate::frame::{FRAME, FRAME_BYTES};
use crate::keys::Named;
use crate::pool::ObjectPool;
use crate::seal::CONTENT;
use crate::secret::PoolKey;

const OBJECT: usize = 1 << 20;
const MIB: usize = 1 << 20;

fn name() -> VolumeName {
    VolumeName::new("v").expect("a name")
}

#[derive(Clone, Copy, Debug)]
struct Sort(Compression, bool);

const SORTS: [Sort; 3] = [
    Sort(Compression::Lz4, false),
    Sort(Compression::Zstd, false),
    Sort(Compression::Lz4, true),
];

impl Sort {
    fn config(self) -> ObjectConfig {
        ObjectConfig {
            compression: Some(self.0),
            encryption: self.1.then_some(Encryption::Aes256Gcm),
            key: self.1.then(|| PoolKey::new([7; 32])),
            object_size: Some(ByteSize::new(OBJECT as u64)),
            cache: Some(ByteSize::mib(64)),
            ..ObjectConfig::new(Location::Memory)
        }
    }

    /// A pool as another process would have it.
    async fn pool(self, store: &Arc<Rough>) -> Arc<ObjectPool> {
        opened(store, self.config()).await
    }
}

async fn opened(store: &Arc<Rough>, config: ObjectConfig) -> Arc<ObjectPool> {
    static SEED: AtomicU64 = AtomicU64::new(1 << 41);
    let seed = SEED.fetch_add(1, Relaxed);
    let store: Arc<dyn ObjectStore> = store.clone();
    let pool = ObjectPool::over(store, config, seed).await;
    pool.expect("it opens")
}

async fn writer(pool: &ObjectPool) -> Arc<dyn BlockDevice> {
    let size = ByteSize::mib(64);
    pool.create_volume(&name(), CreateOptions::thin(size))
        .await
        .expect("create");
    let opened = pool.open_volume(&name(), OpenOptions::read_write()).await;
    opened.expect("open for writing")
}

async fn reader(pool: &ObjectPool) -> Arc<dyn BlockDevice> {
    let opened = pool.open_volume(&name(), OpenOptions::read_only()).await;
    opened.expect("open for reading")
}

/// Writes and closes; then nothing is in a tail.
async fn written(pool: &ObjectPool, parts: &[(usize, Vec<u8>)]) {
    let device = writer(pool).await;
    for (offset, data) in parts {
        let data = Bytes::from(data.clone());
        device.write_at(*offset as u64, data).await.expect("write");
    }
    // It makes a checkpoint.
    pool.collect_garbage().await.expect("collect");
    drop(device);
    tokio::time::sleep(Duration::from_secs(1)).await;
}

fn text(seed: usize, length: usize) -> Vec<u8> {
    let mut text = Vec::new();
    for line in seed.. {
        if text.len() >= length {
            break;
        }
        let hash = line.wrapping_mul(2_654_435_761) >> 7;
        text.extend_from_slice(format!("line {line}: {hash} of a log file\n").as_bytes());
    }
    text.truncate(length);
    text
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    let mut noise: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| next()).collect();
    noise.truncate(length);
    noise
}

async fn content(device: &dyn BlockDevice, offset: usize, length: usize) -> Vec<u8> {
    let read = device.read_at(offset as u64, length).await;
    read.expect("read").to_vec()
}

/// Compressed objects, and others that hold blocks, with their bytes.
async fn data(store: &Rough) -> [Vec<(Path, Vec<u8>)>; 2] {
    let listed: Vec<_> = store.inner.list(None).try_collect().await.expect("list");
    let (mut framed, mut plain) = (Vec::new(), Vec::new());
    for meta in listed {
        let Ok(Named::Data(_)) = meta.location.as_ref().parse() else {
            continue;
        };
        let got = store.inner.get(&meta.location).await.expect("get");
        let bytes = got.bytes().await.expect("get").to_vec();
        match bytes[4] {
            kind if kind == Kind::FramedHeader as u8 => framed.push((meta.location, bytes)),
            kind if kind == Kind::DataHeader as u8 => plain.push((meta.location, bytes)),
            _ => {}
        }
    }
    [framed, plain]
}

async fn replace(store: &Rough, at: &Path, bytes: &[u8]) {
    let put = store.inner.put(at, bytes.to_vec().into()).await;
    put.expect("put");
}

#[tokio::test(start_paused = true)]
async fn what_can_be_compressed_is_put_with_fewer_bytes_and_reads_back() {
    for sort in SORTS {
        let store = Rough::new(1);
        let all = text(0, 4 * MIB);
        written(&*sort.pool(&store).await, &[(0, all.clone())]).await;
        let put = store.put_bytes.load(Relaxed);
        assert!(put < 4 * MIB * 6 / 10, "{sort:?} {put}");
        let [framed, plain] = data(&store).await;
        assert!(framed.len() >= 4 && plain.is_empty(), "{sort:?}");
        let device = reader(&*sort.pool(&store).await).await;
        assert!(content(&*device, 0, 4 * MIB).await == all, "{sort:?}");
        for (offset, length) in [
            (0, 1),
            (4095, 2),
            (65_530, 12),
            (MIB - 9, 18),
            (MIB, 70_000),
        ] {
            let read = content(&*device, offset, length).await;
            assert!(read == all[offset..offset + length], "{sort:?} {offset}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_compressed_is_stored_as_ever() {
    for sort in SORTS {
        let store = Rough::new(1);
        let all = noise(1, 4 * MIB);
        written(&*sort.pool(&store).await, &[(0, all.clone())]).await;
        let [framed, plain] = data(&store).await;
        assert!(framed.is_empty() && plain.len() >= 4, "{sort:?}");
        let device = reader(&*sort.pool(&store).await).await;
        assert!(content(&*device, 0, 4 * MIB).await == all, "{sort:?}");
        // A cold block is one GET, as it is without compression.
        let device = reader(&*sort.pool(&store).await).await;
        content(&*device, 0, CONTENT).await;
        let before = store.gets.load(Relaxed);
        content(&*device, 2 * MIB, CONTENT).await;
        assert_eq!(store.gets.load(Relaxed) - before, 1, "{sort:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cold_block_is_two_gets_the_first_time_and_then_one_a_frame() {
    for sort in SORTS {
        let store = Rough::new(1);
        let all = text(0, 4 * MIB);
        written(&*sort.pool(&store).await, &[(0, all.clone())]).await;
        let pool = sort.pool(&store).await;
        let device = writer(&pool).await;
        // Now the map is known.
        content(&*device, 3 * MIB, CONTENT).await;
        let gets = async |block: usize, expected: usize| {
            let before = store.gets.load(Relaxed);
            let at = block * CONTENT;
            let read = content(&*device, at, CONTENT).await;
            assert!(read == all[at..at + CONTENT], "{sort:?} {block}");
            let gets = store.gets.load(Relaxed) - before;
            assert_eq!(gets, expected, "{sort:?} {block}");
        };
        gets(5, 2).await;
        gets(100, 1).await;
        for block in 0..FRAME as usize {
            gets(block, 0).await;
        }
        // Many at once that want the same frame are one GET, with the table two.
        let before = store.gets.load(Relaxed);
        let blocks = (0..FRAME as usize).map(|block| 2 * MIB + block * CONTENT);
        join_all(blocks.map(|at| content(&*device, at, CONTENT))).await;
        let joined = store.gets.load(Relaxed) - before;
        assert!(joined <= 3, "{sort:?} {joined}");
    }
}

#[tokio::test(start_paused = true)]
async fn damage_is_found_named_and_kept_to_its_frame() {
    for sort in SORTS {
        let store = Rough::new(1);
        let all = text(0, MIB);
        written(&*sort.pool(&store).await, &[(0, all.clone())]).await;
        let [framed, _] = data(&store).await;
        let (at, bytes) = &framed[0];
        let frames = OBJECT / FRAME_BYTES - 2;
        // Of the header; somewhere in the middle; and what is cut off.
        let mut damages: Vec<Vec<u8>> = Vec::new();
        for byte in [9, 60, bytes.len() / 2, bytes.len() - 1] {
            let mut damaged = bytes.clone();
            damaged[byte] ^= 4;
            damages.push(damaged);
        }
        damages.push(bytes[..bytes.len() - 1].to_vec());
        damages.push(bytes[..bytes.len() / 2].to_vec());
        for (n, damaged) in damages.iter().enumerate() {
            replace(&store, at, damaged).await;
            let pool = sort.pool(&store).await;
            let report = pool.scrub(Control::default()).await.expect("scrub");
            assert!(!report.findings.is_empty(), "{sort:?} {n}");
            let object = at.to_string();
            for finding in &report.findings {
                assert!(
                    finding.detail.contains(&object),
                    "{sort:?} {n}: {finding:?}"
                );
                assert!(
                    n < 2 || finding.detail.contains("frame"),
                    "{sort:?} {n}: {finding:?}"
                );
            }
            let device = reader(&pool).await;
            let (mut good, mut bad) = (0, 0);
            for from in (0..MIB).step_by(CONTENT) {
                match device.read_at(from as u64, CONTENT).await {
                    Ok(read) => {
                        assert!(read == all[from..from + CONTENT], "{sort:?} {n}");
                        good += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Corrupt, "{sort:?} {n}");
                        assert_eq!(error.get("object"), Some(&*object), "{sort:?} {n}");
                        bad += 1;
                    }
                }
            }
            assert!(bad > 0, "{sort:?} {n}");
            if n == 2 || n == 3 {
                assert!(
                    bad <= FRAME && good >= frames as u32 * FRAME,
                    "{sort:?} {n}: {bad}"
                );
            }
        }
        replace(&store, at, bytes).await;
        let report = sort.pool(&store).await.scrub(Control::default()).await;
        assert_eq!(report.expect("scrub").findings, [], "{sort:?}");
    }
}

/// A table that is in memory must not hide that the one in the store is damaged.
#[tokio::test(start_paused = true)]
async fn scrub_reads_tables_that_are_in_memory() {
    let (sort, store) = (SORTS[0], Rough::new(1));
    written(&*sort.pool(&store).await, &[(0, text(0, MIB))]).await;
    let pool = sort.pool(&store).await;
    let device = reader(&pool).await;
    content(&*device, 0, MIB).await;
    let [framed, _] = data(&store).await;
    let (at, bytes) = &framed[0];
    let mut damaged = bytes.clone();
    damaged[60] ^= 1;
    replace(&store, at, &damaged).await;
    let report = pool.scrub(Control::default()).await.expect("scrub");
    assert!(!report.findings.is_empty());
}

#[tokio::test]
async fn the_disk_cache_holds_what_was_decompressed() {
    for sort in SORTS {
        let store = Rough::new(1);
        let all = text(0, 2 * MIB);
        written(&*sort.pool(&store).await, &[(0, all.clone())]).await;
        let dir = tempfile::tempdir().expect("a directory");
        let config = ObjectConfig {
            disk_cache: Some(dir.path().to_owned()),
            disk_cache_size: Some(ByteSize::mib(64)),
            ..sort.config()
        };
        let mut gets = Vec::new();
        // It is written in the background.
        for _ in 0..50 {
            let pool = opened(&store, config.clone()).await;
            let device = reader(&pool).await;
            let before = store.gets.load(Relaxed);
            assert!(content(&*device, 0, 2 * MIB).await == all, "{sort:?}");
            gets.push(store.gets.load(Relaxed) - before);
            if gets.last() < gets.first() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The map's page is all that has to be read, and whether there is a newer manifest.
        assert!(gets.last() <= Some(&3) && gets[0] > 4, "{sort:?} {gets:?}");
        let kept = std::fs::read_dir(dir.path()).expect("list").count();
        assert!(kept > 0, "{sort:?}");
    }
}

fn any_part() -> impl Strategy<Value = (usize, Vec<u8>)> {
    let data =
        (any::<u64>(), 1..200_000usize, 0..3u8).prop_map(|(seed, length, sort)| match sort {
            0 => noise(seed, length),
            1 => text(seed as usize % 1000, length),
            _ => vec![0; length],
        });
    (0..3 * MIB, data)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_written_is_read(
        parts in prop::collection::vec(any_part(), 1..20),
        sort in 0..3usize,
        small in any::<bool>(),
        failing in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let store = Rough::new(parts.len() as u64);
            let mut config = SORTS[sort].config();
            if small {
                config.object_size = Some(ByteSize::kib(96));
            }
            let mut model = vec![0; 4 * MIB];
            for (offset, data) in &parts {
                model[*offset..offset + data.len()].copy_from_slice(data);
            }
            let pool = opened(&store, config.clone()).await;
            let device = writer(&pool).await;
            store.failing.store(if failing { 20 } else { 0 }, Relaxed);
            for (offset, data) in &parts {
                let data = Bytes::from(data.clone());
                device.write_at(*offset as u64, data).await.expect("write");
                device.flush().await.expect("flush");
            }
            assert!(content(&*device, 0, 4 * MIB).await == model);
            drop(device);
            store.failing.store(0, Relaxed);
            tokio::time::sleep(Duration::from_secs(300)).await;
            let pool = opened(&store, config).await;
            let device = reader(&pool).await;
            assert!(content(&*device, 0, 4 * MIB).await == model);
            let report = pool.scrub(Control::default()).await.expect("scrub");
            assert_eq!(report.findings, []);
        });
    }
}
