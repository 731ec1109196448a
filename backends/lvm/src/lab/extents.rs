use futures::{StreamExt, TryStreamExt};
use volmux_core::{ErrorKind, Result};

use super::*;
use crate::reserved::{Place, Reserved};

const ALL: ByteRange = ByteRange::new(0, 1 << 40);

async fn allocated(lab: &Lab, name: &str, within: ByteRange) -> Result<Vec<ByteRange>> {
    let metadata = lab.metadata();
    let stream = metadata.allocated("extents", lab.id(name), within).await?;
    stream.try_collect().await
}

async fn changed(lab: &Lab, now: &str, then: &str, within: ByteRange) -> Result<Vec<ByteRange>> {
    let metadata = lab.metadata();
    let stream = metadata.changed("extents", lab.id(now), lab.id(then), within);
    stream.await?.try_collect().await
}

fn chunks(extents: &[ByteRange]) -> Vec<(u64, u64)> {
    let chunk = 64 * KIB;
    extents
        .iter()
        .map(|e| (e.offset / chunk, e.length / chunk))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs device-mapper: run in tests/lab/run"]
async fn extents_are_what_was_written() {
    let lab = Lab::new("written", 64 * KIB, "");
    lab.thin("a", "16M");
    let disk = lab.open("a");
    assert_eq!(allocated(&lab, "a", ALL).await.expect("empty"), []);
    let write = async |chunk: u64, count: u64, seed: u8| {
        let data = pattern(seed, count * lab.chunk);
        disk.write_at(chunk * lab.chunk, data).await.expect("write");
    };
    write(3, 2, 1).await;
    write(5, 1, 1).await;
    write(100, 1, 1).await;
    // Complete, but not flushed.
    let found = allocated(&lab, "a", ALL).await.expect("extents");
    assert_eq!(chunks(&found), [(3, 3), (100, 1)]);
    assert_eq!(lab.state().held_root, None);

    lab.snapshot("a", "s");
    assert_eq!(changed(&lab, "a", "s", ALL).await.expect("none"), []);
    write(4, 1, 2).await;
    write(200, 3, 2).await;
    disk.discard(range(100 * lab.chunk, 101 * lab.chunk))
        .await
        .expect("discard");
    let found = changed(&lab, "a", "s", ALL).await.expect("extents");
    assert_eq!(chunks(&found), [(4, 1), (100, 1), (200, 3)]);
    let cut = range(100 * lab.chunk + 5, 201 * lab.chunk + 9);
    let found = changed(&lab, "a", "s", cut).await.expect("extents");
    assert_eq!(
        found,
        [
            range(cut.offset, 101 * lab.chunk),
            range(200 * lab.chunk, cut.end())
        ]
    );
    let found = allocated(&lab, "s", range(0, 4 * lab.chunk))
        .await
        .expect("extents");
    assert_eq!(chunks(&found), [(3, 1)]);

    let usage = lab.metadata().usage("usage").await.expect("usage");
    let of = |name: &str| usage[&lab.id(name)];
    assert_eq!(
        (of("a").mapped, of("a").exclusive),
        (6 * lab.chunk, 4 * lab.chunk)
    );
    assert_eq!(
        (of("s").mapped, of("s").exclusive),
        (4 * lab.chunk, 2 * lab.chunk)
    );
    assert_eq!(usage.len(), 2);

    let metadata = lab.metadata();
    let missing = metadata
        .allocated("extents", 999, ALL)
        .await
        .expect("a stream");
    let error = missing
        .try_collect::<Vec<_>>()
        .await
        .expect_err("no such device");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    let missing = metadata
        .changed("extents", lab.id("a"), 999, ALL)
        .await
        .expect("a stream");
    let error = missing
        .try_collect::<Vec<_>>()
        .await
        .expect_err("no such device");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    assert_eq!(lab.state().held_root, None);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs device-mapper: run in tests/lab/run"]
async fn changes_are_never_missed() {
    let lab = Lab::new("changes", 64 * KIB, "");
    lab.thin("a", "8M");
    let disk = lab.open("a");
    let count = 128;
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut before = vec![0u8; 8 << 20];
    for round in 0..4u8 {
        let name = format!("s{round}");
        lab.snapshot("a", &name);
        let mut now = before.clone();
        for step in 0..30u8 {
            let (at, length) = (next(count * 64 * KIB), 1 + next(200 * KIB));
            let within = range(at, (at + length).min(8 * MIB));
            let bytes = &mut now[within.offset as usize..within.end() as usize];
            if next(3) == 0 {
                disk.discard(within).await.expect("discard");
                bytes.fill(0);
            } else {
                let data = pattern(round * 30 + step, within.length);
                bytes.copy_from_slice(&data);
                disk.write_at(at, data).await.expect("write");
            }
        }
        let found = changed(&lab, "a", &name, ALL).await.expect("extents");
        let mapped = allocated(&lab, "a", ALL).await.expect("extents");
        for chunk in 0..count {
            let bytes = range(chunk * lab.chunk, (chunk + 1) * lab.chunk);
            let at = bytes.offset as usize..bytes.end() as usize;
            let listed = |list: &[ByteRange]| list.iter().any(|e| !e.intersect(&bytes).is_empty());
            let differs = before[at.clone()] != now[at.clone()];
            assert!(
                !differs || listed(&found),
                "chunk {chunk} changed in round {round}"
            );
            let holds_data = now[at].iter().any(|&byte| byte != 0);
            assert!(!holds_data || listed(&mapped), "chunk {chunk} holds data");
        }
        let mapped: u64 = mapped.iter().map(|extent| extent.length).sum();
        let usage = lab.metadata().usage("usage").await.expect("usage");
        assert_eq!(usage[&lab.id("a")].mapped, mapped, "exact");
        before = now;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs device-mapper: run in tests/lab/run"]
async fn the_snapshot_is_released_whatever_happens() {
    let lab = Lab::new("released", 64 * KIB, "");
    lab.thin("a", "16M");
    let disk = lab.open("a");
    for i in 0..50 {
        disk.write_at(i * 2 * lab.chunk, pattern(1, 4096))
            .await
            .expect("write");
    }
    let (device, _) = dm::pool_status(&lab.group, Lab::POOL)
        .expect("status")
        .expect("active");
    let (metadata, id) = (lab.metadata(), lab.id("a"));
    // Dropped before its end.
    for read in [0, 1] {
        let stream = metadata
            .allocated("extents", id, ALL)
            .await
            .expect("a stream");
        let first: Vec<_> = stream.take(read).try_collect().await.expect("extents");
        assert_eq!(first.len(), read);
        while lab.state().held_root.is_some() {
            tokio::task::yield_now().await;
        }
    }
    // Left behind, with our mark: at once.
    let lock = format!("/run/lock/lab/{}.metadata", lab.group);
    std::fs::write(&lock, "12345").expect("write");
    dm::message(&device, "reserve_metadata_snap").expect("reserve");
    disk.write_at(101 * lab.chunk, pattern(1, 4096))
        .await
        .expect("write");
    let begun = std::time::Instant::now();
    let found = allocated(&lab, "a", ALL).await.expect("extents");
    println!("with one left behind: {:?}", begun.elapsed());
    assert_eq!(
        chunks(&found).last(),
        Some(&(101, 1)),
        "a new one was reserved"
    );
    assert_eq!(lab.state().held_root, None);
    assert_eq!(std::fs::read(&lock).expect("read"), b"");
    // Somebody else's is waited for.
    dm::message(&device, "reserve_metadata_snap").expect("reserve");
    let other = std::thread::spawn({
        let device = device.clone();
        move || {
            std::thread::sleep(std::time::Duration::from_millis(700));
            dm::message(&device, "release_metadata_snap").expect("nobody else did");
        }
    });
    allocated(&lab, "a", ALL).await.expect("extents");
    other.join().expect("it was still there");
    // Nobody's, as after a boot: not for ever.
    dm::message(&device, "reserve_metadata_snap").expect("reserve");
    let place = Place {
        group: lab.group.clone(),
        pool: Lab::POOL.into(),
        lock: lock.into(),
        patience: std::time::Duration::from_secs(1),
    };
    let reserved = Reserved::new("extents", &place).await.expect("in the end");
    let error = Reserved::new("extents", &place)
        .await
        .expect_err("one at a time");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    reserved.release().await;
    assert_eq!(lab.state().held_root, None);
    // Many at once take turns.
    let all = (0..4).map(|_| allocated(&lab, "a", ALL));
    for found in futures::future::join_all(all).await {
        assert_eq!(found.expect("extents").len(), 51);
    }
    assert_eq!(lab.state().held_root, None);
}

#[test]
#[ignore = "needs device-mapper: run in tests/lab/run"]
fn the_snapshot_is_released_when_the_runtime_ends() {
    let lab = Lab::new("runtime", 64 * KIB, "");
    lab.thin("a", "8M");
    let id = lab.id("a");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let stream = runtime.block_on(lab.metadata().allocated("extents", id, ALL));
    let _stream = stream.expect("a stream");
    drop(runtime);
    assert_eq!(lab.state().held_root, None);
}
