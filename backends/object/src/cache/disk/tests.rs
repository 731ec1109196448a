use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::keys::LogId;
use crate::seal::tests::both;

const LIMIT: u64 = 20 << 20;

fn object(seq: u64) -> ObjectKey {
    ObjectKey {
        log: LogId(Uuid::from_u128(4)),
        epoch: 3,
        seq,
    }
}

/// Slots as the store would have them.
fn slots(seal: &Seal, object: &ObjectKey, blocks: Range<u32>) -> Bytes {
    let mut out = Vec::new();
    for index in blocks {
        let start = out.len();
        out.resize(start + CONTENT, (index as u64 + object.seq) as u8);
        out.resize(start + seal.stride(), 0);
        seal.blocks(object).seal(index, &mut out[start..]).unwrap();
    }
    out.into()
}

async fn settled(cache: &DiskCache) {
    while cache.shared.queued.load(Ordering::Relaxed) > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn put(cache: &DiskCache, seal: &Seal, object: &ObjectKey, blocks: Range<u32>) {
    cache.put(object, blocks.start, slots(seal, object, blocks));
    settled(cache).await;
}

fn open(dir: &TempDir, seal: &Seal) -> DiskCache {
    DiskCache::open(dir.path(), LIMIT, seal).unwrap()
}

#[tokio::test]
async fn what_was_put_is_there_also_after_a_restart() {
    for seal in both(1, 1) {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(&dir, &seal);
        let at = object(7);
        assert_eq!(cache.get(&at, 0..1).await, None);
        put(&cache, &seal, &at, 60..200).await;
        put(&cache, &seal, &at, 10..20).await;
        for cache in [cache, open(&dir, &seal)] {
            for blocks in [60..200, 60..61, 199..200, 63..65, 100..150, 10..20] {
                let expected = slots(&seal, &at, blocks.clone());
                assert_eq!(cache.get(&at, blocks).await, Some(expected));
            }
            for blocks in [59..61, 199..201, 15..65, 20..21, 0..1] {
                assert_eq!(cache.get(&at, blocks).await, None);
            }
            assert_eq!(cache.get(&object(8), 60..61).await, None);
            assert!(cache.counts().0 >= 6);
        }
    }
}

#[tokio::test]
async fn it_stays_within_its_limit_and_keeps_what_came_last() {
    let [seal, _] = both(1, 1);
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir, &seal);
    for seq in 0..200 {
        put(&cache, &seal, &object(seq), 0..64).await;
    }
    let file = cache.shared.file.metadata().unwrap();
    assert!(file.len() <= LIMIT);
    let mut there = 0;
    for seq in 0..200 {
        if let Some(found) = cache.get(&object(seq), 0..64).await {
            assert_eq!(found, slots(&seal, &object(seq), 0..64));
            there += 1;
        }
    }
    // 76 units of 64 blocks fit if they spread evenly.
    assert!((50..=76).contains(&there), "{there}");
    assert!(cache.get(&object(199), 0..64).await.is_some());
}

#[tokio::test]
async fn whatever_becomes_of_the_file_nothing_wrong_is_read() {
    for seal in both(1, 1) {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(&dir, &seal);
        let at = object(1);
        put(&cache, &seal, &at, 0..1).await;
        let good = slots(&seal, &at, 0..1);
        let shared = &cache.shared;
        let set = shared.set(&at, 0);
        let entry = row_place(set, 0)..row_place(set, 0) + ENTRY as u64;
        let content = shared.place(set, 0, 0)..shared.place(set, 0, 0) + CONTENT as u64;
        for place in entry.chain(content.step_by(37)) {
            let mut byte = [0];
            shared.file.read_exact_at(&mut byte, place).unwrap();
            shared.file.write_all_at(&[byte[0] ^ 0x20], place).unwrap();
            let found = shared.read(&at, 0..1).unwrap();
            match found {
                // The last bytes of a tail of 4 bytes are not used.
                Some(Found::Slots(slots)) => assert_eq!(slots, good),
                Some(Found::Damaged(index)) => assert_eq!(index, 0),
                None => {}
            }
            shared.file.write_all_at(&byte, place).unwrap();
        }
        assert_eq!(cache.get(&at, 0..1).await, Some(good.clone()));
        // What is damaged is dropped, and can be put again.
        shared
            .file
            .write_all_at(&[0xff; 100], shared.place(set, 0, 0))
            .unwrap();
        assert_eq!(cache.get(&at, 0..1).await, None);
        while shared
            .way(&shared.rows(set, &(0..1)).unwrap(), &name(&at, 0))
            .is_some()
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        put(&cache, &seal, &at, 0..1).await;
        assert_eq!(cache.get(&at, 0..1).await, Some(good));
    }
}

#[tokio::test]
async fn an_encrypted_pools_blocks_stay_encrypted() {
    let [_, seal] = both(1, 1);
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir, &seal);
    put(&cache, &seal, &object(0x5a), 0..64).await;
    let mut bytes = vec![0; LIMIT as usize];
    let length = cache.shared.file.read_at(&mut bytes, 0).unwrap();
    // Each block is one byte repeated, and none of them is zero.
    let repeated = |chunk: &[u8]| chunk[0] != 0 && chunk.iter().all(|byte| *byte == chunk[0]);
    assert!(!bytes[..length].chunks_exact(16).any(repeated));
    let used = bytes[..length]
        .chunks_exact(16)
        .filter(|chunk| chunk[0] != 0);
    assert!(used.count() > 64 * 200);
}

#[tokio::test]
async fn another_pool_reads_nothing_of_it() {
    let ([seal, _], [other, _]) = (both(1, 1), both(2, 1));
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir, &seal);
    put(&cache, &seal, &object(1), 0..5).await;
    let file = cache.shared.file.try_clone().unwrap();
    let theirs = DiskCache::start(file, String::new(), cache.shared.sets, &other).unwrap();
    assert_eq!(theirs.get(&object(1), 0..5).await, None);
}

#[tokio::test]
async fn a_disk_that_fails_is_left_alone_for_a_while() {
    let [seal, _] = both(1, 1);
    // Reads as zeros, and is full.
    let full = File::options()
        .read(true)
        .write(true)
        .open("/dev/full")
        .unwrap();
    let cache = DiskCache::start(full, "full".into(), 10, &seal).unwrap();
    assert_eq!(cache.get(&object(1), 0..9).await, None);
    assert!(!cache.shared.is_paused());
    put(&cache, &seal, &object(1), 0..9).await;
    assert!(cache.shared.is_paused());
    assert_eq!(cache.get(&object(1), 0..9).await, None);
    let missing = Path::new("/nonexistent/of/volmux");
    assert!(DiskCache::open(missing, LIMIT, &seal).is_err());
}

#[test]
fn parts_end_where_units_do() {
    let all = |range| parts(range).collect::<Vec<_>>();
    assert!(all(0..64).into_iter().eq(std::iter::once(0..64)));
    assert_eq!(all(63..130), [63..64, 64..128, 128..130]);
    assert_eq!(all(5..5), []);
    assert_eq!(
        all(u32::MAX - 65..u32::MAX),
        [u32::MAX - 65..u32::MAX - 63, u32::MAX - 63..u32::MAX]
    );
}
