//! How space is counted, and what a full pool refuses.

use super::*;

#[tokio::test]
async fn a_full_pool_refuses_writes_and_changes_nothing() {
    let pool = pool_of_blocks(4);
    let device = thin(&pool, "a", 100).await;
    device.write_at(0, filled(1, 3)).await.expect("write");
    assert_eq!(
        kind(device.write_at(2 * BLOCK, filled(2, 3)).await),
        ErrorKind::NoSpace
    );
    let whole = ByteRange::new(0, device.size());
    let zeroed = device.write_zeroes(whole, ZeroOptions::default()).await;
    assert_eq!(kind(zeroed), ErrorKind::NoSpace);
    assert_eq!(used(&pool).await, 3);
    assert_eq!(
        device
            .read_at(2 * BLOCK, BLOCK as usize)
            .await
            .expect("read"),
        filled(1, 1)
    );

    device
        .write_at(2 * BLOCK, filled(2, 2))
        .await
        .expect("the last block");
    device
        .write_at(0, filled(3, 4))
        .await
        .expect("no block more");
    snapshot(&pool, "a", "s").await;
    assert_eq!(
        kind(device.write_at(0, filled(4, 1)).await),
        ErrorKind::NoSpace
    );
    device
        .discard(whole)
        .await
        .expect("discard frees nothing yet");
    assert_eq!(used(&pool).await, 4);
    pool.delete_volume(&name("s")).await.expect("delete");
    assert_eq!(used(&pool).await, 0);
}

#[tokio::test]
async fn zeros_that_are_written_count_and_can_be_overwritten_in_a_full_pool() {
    let pool = pool_of_blocks(8);
    let device = thin(&pool, "a", 8).await;
    let whole = ByteRange::new(0, device.size());
    device
        .write_zeroes(whole, ZeroOptions::default())
        .await
        .expect("zero");
    assert_eq!(used(&pool).await, 8);
    device.write_at(100, filled(1, 2)).await.expect("write");
    assert_eq!(used(&pool).await, 8);
    let freed = device
        .write_zeroes(
            whole,
            ZeroOptions {
                may_discard: true,
                ..ZeroOptions::default()
            },
        )
        .await;
    freed.expect("free");
    assert_eq!(used(&pool).await, 0);
}

#[tokio::test]
async fn a_thick_volume_has_its_space() {
    let pool = pool_of_blocks(10);
    let thick = CreateOptions::thick(ByteSize::new(6 * BLOCK));
    pool.create_volume(&name("thick"), thick)
        .await
        .expect("create");
    assert_eq!(used(&pool).await, 6);
    assert_eq!(
        kind(pool.create_volume(&name("more"), thick).await),
        ErrorKind::NoSpace
    );

    let other = thin(&pool, "other", 100).await;
    other.write_at(0, filled(1, 4)).await.expect("write");
    assert_eq!(
        kind(other.write_at(4 * BLOCK, filled(1, 1)).await),
        ErrorKind::NoSpace
    );
    let device = open(&pool, "thick").await;
    device
        .write_at(0, filled(2, 6))
        .await
        .expect("the space is there");
    device
        .discard(ByteRange::new(0, 6 * BLOCK))
        .await
        .expect("discard");
    assert_eq!(used(&pool).await, 10);
    device
        .write_at(0, filled(2, 6))
        .await
        .expect("the space is still there");
    let grown = ResizeOptions::grow(ByteSize::new(7 * BLOCK));
    assert_eq!(
        kind(pool.resize_volume(&name("thick"), grown).await),
        ErrorKind::NoSpace
    );
}

#[tokio::test]
async fn a_thick_volume_whose_blocks_are_shared_cannot_discard_into_a_full_pool() {
    let pool = pool_of_blocks(4);
    let thick = CreateOptions::thick(ByteSize::new(4 * BLOCK));
    pool.create_volume(&name("a"), thick).await.expect("create");
    let device = open(&pool, "a").await;
    device.write_at(0, filled(1, 4)).await.expect("write");
    snapshot(&pool, "a", "s").await;
    let range = ByteRange::new(0, BLOCK);
    assert_eq!(kind(device.discard(range).await), ErrorKind::NoSpace);
    assert_eq!(
        device.read_at(0, BLOCK as usize).await.expect("read"),
        filled(1, 1)
    );
    pool.delete_volume(&name("s")).await.expect("delete");
    device.discard(range).await.expect("nobody shares it now");
    assert_eq!(used(&pool).await, 4);
}

#[tokio::test]
async fn a_copy_shares_nothing_and_a_cancelled_one_leaves_nothing() {
    let pool = MemoryPool::unlimited();
    let device = thin(&pool, "a", 10_000).await;
    device.write_at(5, filled(1, 1000)).await.expect("write");
    let zeros = ByteRange::new(4096 * BLOCK, 4096 * BLOCK);
    device
        .write_zeroes(zeros, ZeroOptions::default())
        .await
        .expect("zero");
    let before = used(&pool).await;

    let control = Control::new();
    let stop = control.clone();
    let control = control.with_progress(move |progress| {
        if progress.done > 0 {
            stop.cancel();
        }
    });
    let copied = pool
        .copy_volume(&name("a"), &name("b"), CopyOptions { control })
        .await;
    assert_eq!(kind(copied), ErrorKind::TimedOut);
    assert_eq!(used(&pool).await, before);

    let (a, b) = (name("a"), name("b"));
    let mut dropped = pool.copy_volume(&a, &b, CopyOptions::default());
    for _ in 0..3 {
        assert!(futures::poll!(&mut dropped).is_pending());
    }
    drop(dropped);
    assert_eq!(used(&pool).await, before);

    let copied = pool
        .copy_volume(&name("a"), &name("b"), CopyOptions::default())
        .await;
    copied.expect("copy");
    assert_eq!(used(&pool).await, 2 * before);
    let volume = pool.volume(&name("b")).await.expect("volume");
    assert_eq!(volume.exclusive, Some(ByteSize::new(before * BLOCK)));
    let query = ExtentQuery::changed_since(name("a"));
    let changed = pool.extents(&name("b"), query).await.expect("extents");
    assert_eq!(changed.collect_joined().await.expect("extents"), []);
}

#[tokio::test]
async fn marks_and_limits_are_applied() {
    let pool = MemoryPool::new(MemoryConfig {
        overcommit_limit: Some(2.0),
        ..MemoryConfig::with_total(ByteSize::new(100 * BLOCK))
    })
    .expect("the configuration is right");
    let device = thin(&pool, "a", 120).await;
    snapshot_fails(&pool).await;
    pool.resize_volume(&name("a"), ResizeOptions::grow(ByteSize::new(150 * BLOCK)))
        .await
        .expect("grow");
    device.write_at(0, filled(1, 95)).await.expect("write");
    let create = CreateOptions::thin(ByteSize::new(BLOCK));
    assert_eq!(
        kind(pool.create_volume(&name("b"), create).await),
        ErrorKind::NoSpace
    );
    device
        .write_at(0, filled(1, 100))
        .await
        .expect("writes go on");
}

async fn snapshot_fails(pool: &MemoryPool) {
    let options = SnapshotOptions::default();
    let made = pool.snapshot_volume(&name("a"), &name("s"), options).await;
    assert_eq!(kind(made), ErrorKind::NoSpace);
}

/// Writers, readers, snapshots and clones at once: every block that is read is whole, and at the
/// end the count is right.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn everything_at_once_counts_right() {
    let pool = MemoryPool::unlimited();
    let mut tasks = tokio::task::JoinSet::new();
    for volume in ["a", "b"] {
        let device = thin(&pool, volume, 200).await;
        for part in 0..3u8 {
            tasks.spawn(change_all_the_time(device.clone(), part));
        }
        tasks.spawn(derive_all_the_time(pool.clone(), volume));
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("no task panics");
    }
    let mut walked = std::collections::BTreeSet::new();
    for volume in pool.volumes().await.expect("volumes") {
        let volume = pool.find("test", &volume.name).expect("volume");
        volume.read().tree.identities(&mut walked);
    }
    assert_eq!(used(&pool).await, walked.len() as u64);
}

async fn change_all_the_time(device: Arc<dyn BlockDevice>, part: u8) {
    let range = ByteRange::new(50 * BLOCK, 100 * BLOCK);
    for round in 1..=100u8 {
        match (part, round % 4) {
            (0, 3) => device.discard(range).await.expect("discard"),
            (1, 3) => {
                let options = ZeroOptions::default();
                device.write_zeroes(range, options).await.expect("zero");
            }
            _ => {
                let offset = u64::from(round) * BLOCK;
                let data = filled(round, 40);
                device.write_at(offset, data).await.expect("write");
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn derive_all_the_time(pool: Arc<MemoryPool>, volume: &str) {
    for round in 0..100 {
        let (s, c) = (
            format!("{volume}-s{round}"),
            name(&format!("{volume}-c{round}")),
        );
        snapshot(&pool, volume, &s).await;
        let cloned = pool
            .clone_volume(&name(&s), &c, CloneOptions::default())
            .await;
        cloned.expect("clone");
        let clone = open(&pool, c.as_str()).await;
        clone.write_at(BLOCK, filled(7, 60)).await.expect("write");
        let data = clone.read_at(0, 200 * BLOCK as usize).await.expect("read");
        let whole = |block: &[u8]| block.iter().all(|byte| *byte == block[0]);
        assert!(data.chunks(BLOCK as usize).all(whole));
        drop(clone);
        pool.delete_volume(&name(&s)).await.expect("delete");
        if round % 2 == 0 {
            pool.delete_volume(&c).await.expect("delete");
        }
    }
}

#[tokio::test]
async fn only_a_copy_of_a_thick_volume_is_thick() {
    let pool = pool_of_blocks(10);
    let thick = CreateOptions::thick(ByteSize::new(4 * BLOCK));
    let a = name("a");
    pool.create_volume(&a, thick).await.expect("create");
    let device = open(&pool, "a").await;
    device.write_at(0, filled(1, 3)).await.expect("write");
    snapshot(&pool, "a", "s").await;
    let cloned = pool
        .clone_volume(&a, &name("c"), CloneOptions::default())
        .await;
    assert_eq!(cloned.expect("clone").provisioning, Provisioning::Thin);
    assert_eq!(used(&pool).await, 4);
    let copied = pool
        .copy_volume(&a, &name("d"), CopyOptions::default())
        .await;
    let copied = copied.expect("copy");
    assert_eq!(copied.provisioning, Provisioning::Thick);
    assert_eq!(copied.allocated, Some(ByteSize::new(4 * BLOCK)));
    assert_eq!(used(&pool).await, 8);
    let copied = pool
        .copy_volume(&a, &name("e"), CopyOptions::default())
        .await;
    assert_eq!(kind(copied), ErrorKind::NoSpace);
    assert_eq!(used(&pool).await, 8);
    let (s, f) = (name("s"), name("f"));
    let copied = pool.copy_volume(&s, &f, CopyOptions::default()).await;
    assert_eq!(kind(copied), ErrorKind::NoSpace);
    pool.delete_volume(&name("d")).await.expect("delete");
    assert_eq!(used(&pool).await, 4);
}
