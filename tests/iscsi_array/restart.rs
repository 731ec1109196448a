//! The target is killed and started again.

use std::time::{Duration, Instant};

use bytes::Bytes;
use volmux::{ErrorKind, OpenOptions};
use volmux_conformance::pattern;

use super::*;

#[test]
fn what_was_flushed_before_the_target_died_is_there_afterwards() {
    let mut scene = Scene::new();
    on(async {
        let pool = scene.pool().await;
        create(pool.as_ref(), "a", 8 * MIB).await;
        let device = writer(pool.as_ref(), "a").await;
        let work = tokio::spawn(async move {
            let begun = Instant::now();
            let mut rounds = 0u64;
            // Until after the last restart.
            while rounds < 200 || begun.elapsed() < Duration::from_secs(6) {
                let offset = rounds % 128 * 65536;
                let write = device.write_at(offset, pattern(rounds, 65536)).await;
                write.expect("a write goes on once the target is back");
                device.flush().await.expect("a flush, too");
                rounds += 1;
            }
            rounds
        });
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            scene.tgtd.kill();
            tokio::time::sleep(Duration::from_millis(300)).await;
            scene.tgtd.restart();
        }
        let rounds = work.await.expect("no panic");
        let reader = pool.open_volume(&n("a"), OpenOptions::read_only()).await;
        let reader = reader.expect("open for reading");
        for round in rounds - 128..rounds {
            let found = reader.read_at(round % 128 * 65536, 65536).await;
            assert_eq!(found.expect("read"), pattern(round, 65536), "round {round}");
        }
    });
}

#[test]
fn what_was_confirmed_and_lost_with_the_targets_cache_is_written_again() {
    let mut scene = Scene::new();
    on(async {
        let pool = scene.pool().await;
        create(pool.as_ref(), "a", MIB).await;
        let device = writer(pool.as_ref(), "a").await;
        device.write_at(0, pattern(1, 8192)).await.expect("write");
        device.flush().await.expect("flush");
        let before = std::fs::read(scene.data()).expect("the store's file");
        // Overlapping, in this order, and zeros in one of them.
        device
            .write_at(4096, pattern(2, 16384))
            .await
            .expect("write");
        device
            .write_at(8192, pattern(3, 4096))
            .await
            .expect("write");
        let range = volmux::ByteRange::new(0, 4096);
        device
            .write_zeroes(range, Default::default())
            .await
            .expect("zero");
        scene.tgtd.kill();
        // As after a power cut: nothing that was not flushed is there.
        std::fs::write(scene.data(), &before).expect("the file as it was");
        scene.tgtd.restart();
        // Seen at once, and durable after the flush.
        let mut wanted = vec![0; 4096];
        wanted.extend_from_slice(&pattern(2, 16384));
        wanted[8192..12288].copy_from_slice(&pattern(3, 4096));
        let found = device.read_at(0, 20480).await.expect("read");
        assert!(found == wanted, "a read sees what was confirmed");
        device.flush().await.expect("flush");
        let stored = std::fs::read(scene.data()).expect("the store's file");
        assert!(stored[..20480] == wanted, "and so does the store");
    });
}

#[test]
fn another_unit_in_the_place_of_the_old_one_is_never_written_to() {
    let mut scene = Scene::new();
    on(async {
        let pool = scene.pool().await;
        create(pool.as_ref(), "a", MIB).await;
        let device = writer(pool.as_ref(), "a").await;
        device.write_at(0, pattern(1, 4096)).await.expect("write");
        let id = pool.volume(&n("a")).await.expect("volume").id;
        scene.tgtd.kill();
        scene.tgtd.restart();
        let strange = scene.fs.path().join("strange");
        std::fs::write(&strange, vec![7; MIB as usize]).expect("another disk");
        scene.tgtd.show(1, &format!("{ARRAY}:{id}"), &strange);
        let error = device.write_at(4096, pattern(2, 4096)).await;
        let error = error.expect_err("it is another disk");
        assert_eq!(error.kind(), ErrorKind::Fenced, "{}", told(&error));
        assert!(told(&error).contains("another one"), "{}", told(&error));
        let error = device.flush().await.expect_err("for good");
        assert_eq!(error.kind(), ErrorKind::Fenced);
        drop(device);
        let found = std::fs::read(&strange).expect("the other disk");
        assert!(
            found.iter().all(|&byte| byte == 7),
            "nothing was written to it"
        );
    });
}

#[test]
fn a_target_that_stays_away_is_told_in_time() {
    let mut scene = Scene::new();
    scene.options = "&timeout=8".into();
    on(async {
        let pool = scene.pool().await;
        create(pool.as_ref(), "a", MIB).await;
        let device = writer(pool.as_ref(), "a").await;
        device.write_at(0, pattern(1, 4096)).await.expect("write");
        scene.tgtd.kill();
        let begun = Instant::now();
        let data = Bytes::from(vec![0; 4096]);
        let (read, write, flush) = tokio::join!(
            device.read_at(0, 4096),
            device.write_at(0, data),
            device.flush()
        );
        for error in [read.map(drop), write, flush].map(|done| done.expect_err("nobody is there")) {
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{}", told(&error));
            assert_eq!(error.get("volume"), Some("a"), "{}", told(&error));
        }
        assert!(
            begun.elapsed() < Duration::from_secs(25),
            "{:?}",
            begun.elapsed()
        );
        let error = pool.open_volume(&n("a"), OpenOptions::read_only()).await;
        let error = error.expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", told(&error));
        scene.tgtd.restart();
        // What failed may be done or not; the handle is good again, once it has tried again.
        let begun = Instant::now();
        while let Err(error) = device.write_at(0, pattern(2, 4096)).await {
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{}", told(&error));
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{}",
                told(&error)
            );
        }
        device.flush().await.expect("flush");
        let found = device.read_at(0, 4096).await.expect("read");
        assert_eq!(found, pattern(2, 4096));
    });
}

#[test]
fn what_a_shared_writer_wrote_before_is_not_written_over_what_another_wrote_since() {
    let mut scene = Scene::new();
    on(async {
        let pool = scene.pool().await;
        create(pool.as_ref(), "a", MIB).await;
        let shared = OpenOptions {
            access: Access::ReadWrite,
            sharing: Sharing::Shared,
            take_over: false,
        };
        let one = pool.open_volume(&n("a"), shared).await.expect("open");
        let other = pool.open_volume(&n("a"), shared).await.expect("open");
        one.write_at(0, pattern(1, 4096)).await.expect("write");
        other.write_at(0, pattern(2, 4096)).await.expect("write");
        other.flush().await.expect("flush");
        scene.tgtd.restart();
        one.write_at(8192, pattern(3, 4096)).await.expect("write");
        one.flush().await.expect("flush");
        for device in [&one, &other] {
            let found = device.read_at(0, 4096).await.expect("read");
            assert_eq!(found, pattern(2, 4096), "the later one's");
        }
    });
}
