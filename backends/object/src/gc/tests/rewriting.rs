//! Giving up objects of which little is needed.

use super::*;

/// A volume whose every object is needed for one block in five, and what it holds.
pub(super) async fn sparse(pool: &ObjectPool, volume: &str) -> Vec<u8> {
    create(pool, volume).await;
    let device = writer(pool, volume).await;
    fill(&*device, 0..BLOCKS, 1).await;
    sparsen(&*device).await;
    drop(device);
    settle().await;
    expected()
}

/// Overwrites four blocks of five again and again, so that closing makes a checkpoint.
pub(super) async fn sparsen(device: &dyn BlockDevice) {
    for tag in 2..12 {
        fill(device, (0..BLOCKS).filter(|block| block % 5 != 0), tag).await;
    }
}

pub(super) fn expected() -> Vec<u8> {
    (0..BLOCKS)
        .map(|block| if block % 5 == 0 { 1 } else { 11 })
        .collect()
}

/// Bytes in objects of data and pages.
pub(super) async fn stored(store: &Rough) -> u64 {
    let all = everything(store).await;
    all.iter()
        .filter(|(name, _)| name.contains("/d/"))
        .map(|(_, bytes)| bytes)
        .sum()
}

pub(super) async fn collect_all(pool: &ObjectPool) -> volmux_core::Collected {
    pool.collect_garbage().await.expect("a collection")
}

/// What 64 blocks occupy, with headers, pages and a little more.
pub(super) const WHOLE: u64 = BLOCKS * BLOCK * 5 / 4;

#[tokio::test(start_paused = true)]
async fn a_closed_volume_takes_little_more_than_it_holds() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    let expected = sparse(&pool, "a").await;
    collect(&pool).await;
    let before = stored(&store).await;
    assert!(before > WHOLE * 5 / 4, "{before}");
    let done = collect_all(&pool).await;
    assert!(done.objects > 4, "{done:?}");
    let after = stored(&store).await;
    assert!(after < WHOLE, "{before} became {after}");
    assert_eq!(content(&pool, "a").await, expected);
    // Written on as if nothing had been, and then there is nothing to do.
    filled(&pool, "a", 3..5, 77).await;
    let fresh = super::pool(&store).await;
    let mut now = expected;
    now[3..5].fill(77);
    assert_eq!(content(&fresh, "a").await, now);
    let again = everything(&store).await.len();
    collect_all(&fresh).await;
    assert!(again.abs_diff(everything(&store).await.len()) < 5);
    assert_eq!(content(&fresh, "a").await, now);
}

#[tokio::test(start_paused = true)]
async fn compressed_objects_are_given_up_too() {
    let store = Rough::new(1);
    let lz4 = async || pool_compressed(&store, ByteSize::mib(1), Compression::Lz4).await;
    let pool = lz4().await;
    let expected = sparse(&pool, "a").await;
    collect(&pool).await;
    let objects = async || {
        let all = everything(&store).await;
        all.iter().filter(|(name, _)| name.contains("/d/")).count()
    };
    let sparse = objects().await;
    let done = collect_all(&pool).await;
    assert!(done.objects > 4, "{done:?}");
    assert!(objects().await < sparse, "{sparse} objects");
    for pool in [pool, lz4().await] {
        assert_eq!(content(&pool, "a").await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn what_volumes_share_they_still_share() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    let expected = sparse(&pool, "a").await;
    for snapshot in ["s1", "s2"] {
        pool_snapshot(&pool, "a", snapshot).await;
        filled(&pool, "a", 0..1, 50).await;
    }
    for number in 0..20 {
        let clone = name(&format!("c{number}"));
        pool.clone_volume(&name("s1"), &clone, Default::default())
            .await
            .expect("clone");
    }
    filled(&pool, "c3", 7..9, 60).await;
    collect(&pool).await;
    let put = store.put_bytes.load(Relaxed);
    collect_all(&pool).await;
    let put = store.put_bytes.load(Relaxed) as u64 - put as u64;
    assert!(
        put < WHOLE / 2,
        "{put} bytes were put for a fifth of {WHOLE}"
    );
    let after = stored(&store).await;
    assert!(after < WHOLE * 5 / 4, "{after}");
    let bases = {
        let ready = ready(&pool).await;
        let bases = ready.catalog.read(|state| {
            state
                .iter()
                .map(|entry| Arc::as_ptr(&entry.base))
                .collect::<Vec<_>>()
        });
        bases
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    };
    assert!(bases <= 4, "{bases} tips of 23 volumes");
    let fresh = super::pool(&store).await;
    let mut a = expected.clone();
    assert_eq!(content(&fresh, "s1").await, a);
    assert_eq!(content(&fresh, "c7").await, a);
    a[7..9].fill(60);
    assert_eq!(content(&fresh, "c3").await, a);
    let mut a = expected;
    a[0] = 50;
    assert_eq!(content(&fresh, "s2").await, a);
    assert_eq!(content(&fresh, "a").await, a);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_is_written_here_goes_on_from_the_new_place() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    create(&pool, "a").await;
    let device = writer(&pool, "a").await;
    fill(&*device, 0..BLOCKS, 1).await;
    sparsen(&*device).await;
    let mut expected = expected();
    for round in 0..3u8 {
        collect_all(&pool).await;
        let after = stored(&store).await;
        assert!(
            after < WHOLE + u64::from(round) * BLOCK * 4,
            "{round}: {after}"
        );
        let read = device
            .read_at(0, (BLOCKS * BLOCK) as usize)
            .await
            .expect("read");
        let firsts: Vec<u8> = read.iter().step_by(BLOCK as usize).copied().collect();
        assert_eq!(firsts, expected);
        let blocks = u64::from(round) * 7..u64::from(round) * 7 + 3;
        fill(&*device, blocks.clone(), 90 + round).await;
        expected[blocks.start as usize..blocks.end as usize].fill(90 + round);
    }
    // What was flushed is there, wherever it is read from.
    let fresh = super::pool(&store).await;
    assert_eq!(content(&fresh, "a").await, expected);
    drop(device);
    settle().await;
    collect_all(&fresh).await;
    assert_eq!(content(&fresh, "a").await, expected);
}

#[tokio::test(start_paused = true)]
async fn what_others_write_or_read_is_left_where_it_is() {
    let store = Rough::new(1);
    let (ours, theirs) = (pool(&store).await, pool(&store).await);
    let expected = sparse(&theirs, "a").await;
    let snapshot = pool_snapshot(&theirs, "a", "s").await;
    let read_only = theirs
        .open_volume(&snapshot, OpenOptions::read_only())
        .await;
    let read_only = read_only.expect("open for reading");
    let written = writer(&theirs, "a").await;
    collect(&ours).await;
    let before = stored(&store).await;
    collect_all(&ours).await;
    assert_eq!(stored(&store).await, before);
    // The writer goes; the reader keeps the blocks where he found them.
    drop(written);
    settle().await;
    collect_all(&ours).await;
    let read = read_only
        .read_at(0, (BLOCKS * BLOCK) as usize)
        .await
        .expect("read");
    let firsts: Vec<u8> = read.iter().step_by(BLOCK as usize).copied().collect();
    assert_eq!(firsts, expected);
    drop(read_only);
    settle().await;
    collect_all(&ours).await;
    assert!(stored(&store).await < WHOLE);
    // Their pool has the snapshot's old place in memory.
    assert_eq!(content(&theirs, "s").await, expected);
    assert_eq!(content(&ours, "s").await, expected);
}

pub(super) async fn pool_snapshot(pool: &ObjectPool, of: &str, snapshot: &str) -> VolumeName {
    let snapshot = name(snapshot);
    pool.snapshot_volume(&name(of), &snapshot, Default::default())
        .await
        .expect("snapshot");
    snapshot
}

#[tokio::test(start_paused = true)]
async fn a_reader_who_leaves_no_mark_finds_what_was_moved() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    let expected = sparse(&pool, "a").await;
    let snapshot = pool_snapshot(&pool, "a", "s").await;
    let mut config = ObjectConfig::new(Location::Memory);
    config.read_only = true;
    let reader = ObjectPool::over(store.clone(), config, 1 << 51)
        .await
        .expect("it opens");
    let device = reader
        .open_volume(&snapshot, OpenOptions::read_only())
        .await;
    let device = device.expect("open for reading");
    let first = device.read_at(0, BLOCK as usize).await.expect("read");
    assert_eq!(first[0], 1);
    collect_all(&pool).await;
    assert!(stored(&store).await < WHOLE);
    let read = device
        .read_at(0, (BLOCKS * BLOCK) as usize)
        .await
        .expect("read");
    let firsts: Vec<u8> = read.iter().step_by(BLOCK as usize).copied().collect();
    assert_eq!(firsts, expected);
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_damaged_stays_where_it_is() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    let expected = sparse(&pool, "a").await;
    collect(&pool).await;
    let (log, _) = tip_of(&pool, "a").await;
    let object = ObjectKey {
        log,
        epoch: 1,
        seq: 0,
    }
    .to_string();
    let path = Path::from(object.as_str());
    let got = store.inner.get(&path).await.expect("there");
    let mut bytes = got.bytes().await.expect("there").to_vec();
    // Its first block, which is needed, behind the header.
    bytes[4100 + 100] ^= 1;
    put(&store, &object, bytes).await;
    collect_all(&pool).await;
    assert!(
        everything(&store).await.contains_key(&object),
        "there is no other copy"
    );
    let device = writer(&pool, "a").await;
    let error = device.read_at(0, 4096).await.expect_err("it is damaged");
    assert_eq!(error.get("object"), Some(object.as_str()), "{error}");
    let rest = device.read_at(BLOCK * 15, 4096).await.expect("it is whole");
    assert_eq!(rest[0], expected[15]);
}

#[tokio::test(start_paused = true)]
async fn at_most_twice_what_was_written_is_put() {
    const LARGE: u64 = 1024;
    let store = Rough::new(1);
    let pool = pool(&store).await;
    let options = CreateOptions::thin(ByteSize::new(LARGE * BLOCK));
    pool.create_volume(&name("a"), options)
        .await
        .expect("create");
    let device = writer(&pool, "a").await;
    let mut expected = vec![0u8; LARGE as usize];
    let (mut written, mut dice) = (0, 1u64);
    for round in 0..40u64 {
        for _ in 0..32 {
            dice = dice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(round);
            let (block, tag) = ((dice >> 33) % (LARGE - 8), (dice >> 20) as u8);
            let content = Bytes::from(vec![tag; 8 * BLOCK as usize]);
            written += content.len() as u64;
            let wrote = device.write_at(block * BLOCK, content).await;
            wrote.expect("write");
            expected[block as usize..block as usize + 8].fill(tag);
        }
        device.flush().await.expect("flush");
        collect_all(&pool).await;
    }
    let put = store.put_bytes.load(Relaxed) as u64;
    assert!(put < 2 * written, "{put} bytes for {written}");
    let there = stored(&store).await;
    assert!(there < 2 * LARGE * BLOCK, "{there} bytes");
    let read = device.read_at(0, (LARGE * BLOCK) as usize).await;
    let read = read.expect("read");
    let firsts: Vec<u8> = read.iter().step_by(BLOCK as usize).copied().collect();
    assert_eq!(firsts, expected);
}

#[tokio::test(start_paused = true)]
async fn what_was_overwritten_since_the_last_checkpoint_goes_once_the_volume_is_closed() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    create(&pool, "a").await;
    let device = writer(&pool, "a").await;
    for tag in 1..8 {
        // As much as fits into one object.
        fill(&*device, 0..12, tag).await;
    }
    device
        .discard(ByteRange::new(0, BLOCK))
        .await
        .expect("discard");
    let before = stored(&store).await;
    assert!(before > 7 * 12 * BLOCK, "{before}");
    collect(&pool).await;
    drop(device);
    settle().await;
    let (old, closed) = tip_of(&pool, "a").await;
    assert!(closed.tip.tail.len() > 6, "{:?}", closed.tip.tail.len());
    collect_all(&pool).await;
    let after = stored(&store).await;
    assert!(after < 14 * BLOCK, "{before} became {after}");
    let mut expected = vec![0; BLOCKS as usize];
    expected[1..12].fill(7);
    assert_eq!(content(&pool, "a").await, expected);
    let log = ready(&pool).await.entry(OP, &name("a"));
    assert_ne!(log.expect("it is there").log, Some(old));
    // There is nothing more to gain.
    let put = store.put_bytes.load(Relaxed);
    collect_all(&pool).await;
    assert_eq!(store.put_bytes.load(Relaxed), put);
    filled(&pool, "a", 3..4, 9).await;
    expected[3] = 9;
    assert_eq!(content(&pool, "a").await, expected);
}
