//! How chains are merged and dropped, and when they are not.

use std::os::unix::fs::PermissionsExt;

use volmux::{ByteSize, ErrorKind, OpenOptions, ResizeOptions};
use volmux_conformance::chains::Chains;
use volmux_conformance::pattern;

use crate::scene::{KIB, MIB, Scene, assert_error, n, open};

#[tokio::test]
async fn what_is_in_use_is_not_merged() {
    let scene = Scene::new(256 * MIB).await;
    scene.create("a", 4 * MIB).await;
    scene.write("a", 0, pattern(1, 2 * MIB as usize)).await;
    scene.snapshot("a", "s").await;
    scene.write("a", MIB, pattern(2, 2 * MIB as usize)).await;
    scene.snapshot("a", "t").await;
    scene.write("a", 2 * MIB, pattern(3, 4096)).await;
    let (a, s, t) = (
        scene.read("a").await,
        scene.read("s").await,
        scene.read("t").await,
    );
    let other = open(&scene.root).await;
    let reader = other.open_volume(&n("t"), OpenOptions::read_only()).await;
    let reader = reader.expect("open");
    let snapshot = other.open_volume(&n("s"), OpenOptions::read_only()).await;
    let snapshot = snapshot.expect("open");
    scene.delete("s").await;
    assert_eq!(scene.collect().await, 0, "read by another process");
    let found = snapshot.read_at(0, 4 * MIB as usize).await;
    assert!(found.expect("read") == s, "deleted, and open all the same");
    drop(snapshot);
    assert_eq!(scene.collect().await, 0, "below a chain that is read");
    let found = reader.read_at(0, 4 * MIB as usize).await.expect("read");
    assert!(found == t);
    drop(reader);
    // Neither where a host may have it open.
    scene.attach("a").await;
    assert_eq!(scene.collect().await, 0, "attached");
    scene.detach("a").await;
    assert_eq!(scene.collect().await, 1);
    assert!(scene.read("a").await == a && scene.read("t").await == t);
    assert_eq!(scene.chains().files.len(), 2);
}

#[tokio::test]
async fn who_wants_a_volume_makes_its_merge_stop() {
    let scene = Scene::new(1024 * MIB).await;
    scene.create("a", 400 * MIB).await;
    scene.snapshot("a", "s").await;
    let device = scene.device("a").await;
    for i in 0..300 {
        let data = pattern(i, MIB as usize);
        device.write_at(i * MIB, data).await.expect("write");
    }
    device.flush().await.expect("flush");
    drop(device);
    scene.delete("s").await;
    let mut stopped = 0;
    for round in 0..20 {
        let pool = open(&scene.root).await;
        let collection = tokio::spawn(async move { pool.collect_garbage().await });
        tokio::time::sleep(std::time::Duration::from_millis(10 * round)).await;
        let device = scene.device("a").await;
        device
            .write_at(round * 4096, pattern(round, 4096))
            .await
            .expect("write");
        device.flush().await.expect("flush");
        drop(device);
        let collected = collection.await.expect("no panic").expect("collect");
        stopped += u64::from(collected.objects == 0);
        if collected.objects > 0 {
            break;
        }
    }
    assert!(stopped > 0, "a merge of 300 MiB was stopped at least once");
    let collected = scene.collect().await;
    assert!(collected <= 1);
    assert_eq!(scene.chains().files.len(), 1);
    for i in [1, 2, 150, 299] {
        let found = scene.read("a").await;
        let at = (i * MIB) as usize;
        assert!(
            found[at..at + MIB as usize] == pattern(i, MIB as usize),
            "{i}"
        );
    }
}

#[tokio::test]
async fn a_merge_that_was_noted_loses_nothing_that_was_written_since() {
    let scene = Scene::new(96 * MIB).await;
    scene.create("a", 4 * MIB).await;
    scene.write("a", 0, pattern(1, MIB as usize)).await;
    scene.snapshot("a", "s").await;
    scene.delete("s").await;
    let chains = Chains::of(&scene.root);
    let from = &chains.tops["a"];
    let into = chains.needed.iter().find(|file| file.ends_with(".raw"));
    let into = into.expect("a raw file").trim_end_matches(".raw");
    let json = format!("{{\"version\":2,\"from\":\"{from}\",\"into\":\"{into}\"}}");
    let note = format!("{json}\ncrc32 {:08x}\n", crc32fast::hash(json.as_bytes()));
    std::fs::write(scene.root.join("merge.json"), note).expect("write");
    scene.write("a", 2 * MIB, pattern(2, MIB as usize)).await;
    let before = scene.read("a").await;
    scene.collect().await;
    assert!(scene.read("a").await == before);
    assert!(!scene.root.join("merge.json").exists());
    assert_eq!(scene.chains().files.len(), 1);
}

#[tokio::test]
async fn a_merge_that_does_not_fit_is_refused() {
    let scene = Scene::new(96 * MIB).await;
    scene.create("a", 64 * MIB).await;
    scene.write("a", 0, pattern(1, 4096)).await;
    scene.snapshot("a", "s").await;
    scene.write("a", MIB, pattern(2, 32 * MIB as usize)).await;
    scene.delete("s").await;
    let free = scene.pool.usage().await.expect("usage").free.bytes();
    let filler = scene.root.join("../filler");
    std::fs::write(&filler, vec![1; (free - 20 * MIB) as usize]).expect("write");
    let before = scene.read("a").await;
    let refused = scene.pool.collect_garbage().await;
    assert_error(refused, ErrorKind::NoSpace, "wanted");
    assert_eq!(scene.chains().depth("a"), 2, "as it was");
    assert!(scene.read("a").await == before);
    std::fs::remove_file(&filler).expect("remove");
    assert_eq!(scene.collect().await, 1);
    assert!(scene.read("a").await == before);
}

#[tokio::test]
async fn a_larger_past_does_not_come_back() {
    let scene = Scene::new(128 * MIB).await;
    let size = 3 * MIB + 5 * 512;
    scene.create("a", size).await;
    scene.write("a", 0, pattern(1, size as usize)).await;
    scene.snapshot("a", "s").await;
    scene.write("a", MIB, pattern(2, 2 * MIB as usize)).await;
    let resize = async |size: u64| {
        let options = ResizeOptions {
            size: ByteSize::new(size),
            allow_shrink: true,
        };
        let resized = scene.pool.resize_volume(&n("a"), options).await;
        resized.expect("resize");
    };
    let mut data = scene.read("a").await.to_vec();
    for size in [
        MIB + 512,
        4 * MIB,
        700 * KIB + 512,
        800 * KIB,
        5 * MIB,
        512,
        3 * MIB,
    ] {
        resize(size).await;
        data.resize(size as usize, 0);
        assert!(scene.read("a").await == data, "{size}");
        let at = size - 512;
        scene.write("a", at, pattern(size, 512)).await;
        data[at as usize..].copy_from_slice(&pattern(size, 512));
        assert!(scene.read("a").await == data, "{size}, written");
    }
    scene.delete("s").await;
    scene.collect().await;
    assert!(scene.read("a").await == data, "merged");
    resize(6 * MIB).await;
    data.resize(6 << 20, 0);
    assert!(scene.read("a").await == data, "merged and grown");
    scene.chains();
}

/// Whoever froze the file that a volume goes on in, and was killed then, leaves it read-only.
#[tokio::test]
async fn a_frozen_top_that_is_read_elsewhere_is_deleted_later() {
    let scene = Scene::new(128 * MIB).await;
    scene.create("a", MIB).await;
    scene.write("a", 0, pattern(1, MIB as usize)).await;
    scene.snapshot("a", "s").await;
    scene.write("a", 0, pattern(2, 4096)).await;
    let top = scene.top("a");
    let frozen = std::fs::Permissions::from_mode(0o400);
    std::fs::set_permissions(&top, frozen).expect("chmod");
    let other = open(&scene.root).await;
    let reader = other.open_volume(&n("a"), OpenOptions::read_only()).await;
    let reader = reader.expect("open");
    let refused = scene.pool.delete_volume(&n("a")).await;
    assert_error(refused, ErrorKind::Busy, "used_by");
    let found = reader.read_at(0, 4096).await.expect("read");
    assert!(found == pattern(2, 4096));
    drop(reader);
    scene.delete("a").await;
    assert!(!top.exists());
    assert!(scene.read("s").await == pattern(1, MIB as usize));
}
