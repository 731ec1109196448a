//! Long histories, and clones.

use volmux::{ByteRange, ErrorKind, ExtentQuery, ZeroOptions};
use volmux_conformance::pattern;

use crate::scene::{CLUSTER, MIB, Scene, assert_error, n};

#[tokio::test]
async fn a_long_history_is_made_and_thinned_out() {
    const SNAPSHOTS: usize = 200;
    let scene = Scene::new(512 * MIB).await;
    scene.create("a", 8 * MIB + 512).await;
    let mut data = vec![0; (8 * MIB + 512) as usize];
    let mut history = Vec::new();
    for i in 0..SNAPSHOTS as u64 {
        // Parts of clusters, across their ends, and now and then zeros.
        let (offset, length) = (i * 41_111 % (8 * MIB), 1 + i * 7919 % 20_000);
        let end = (offset + length).min(data.len() as u64);
        let length = end - offset;
        let part = offset as usize..end as usize;
        if i % 9 == 8 {
            let device = scene.device("a").await;
            let range = ByteRange::new(offset / 4, 3 * CLUSTER);
            let options = ZeroOptions::default();
            device.write_zeroes(range, options).await.expect("zeros");
            device.flush().await.expect("flush");
            data[range.offset as usize..range.end() as usize].fill(0);
        } else {
            let written = pattern(i, length as usize);
            data[part].copy_from_slice(&written);
            scene.write("a", offset, written).await;
        }
        scene.snapshot("a", &format!("s{i}")).await;
        history.push(data.clone());
    }
    let volume = scene.pool.volume(&n("a")).await.expect("volume");
    assert_eq!(volume.depth, Some(SNAPSHOTS as u64 + 1));
    assert_eq!(scene.chains().depth("a"), SNAPSHOTS + 1);
    assert!(scene.read("a").await == data, "through all of them");
    // What changed since the last but one is what its writing touched, and not a byte more.
    let query = ExtentQuery::changed_since(n("s198"));
    let changed = scene
        .pool
        .extents(&n("s199"), query)
        .await
        .expect("extents");
    let changed: Vec<ByteRange> = futures::TryStreamExt::try_collect(changed)
        .await
        .expect("all");
    let differ = |range: &ByteRange| {
        let part = range.offset as usize..range.end() as usize;
        history[198][part.clone()] != history[199][part]
    };
    assert!(
        !changed.is_empty() && changed.iter().all(differ),
        "{changed:?}"
    );

    let before = scene.used().await;
    let keep = |i: usize| i % 20 == 7;
    for i in (0..SNAPSHOTS).filter(|i| !keep(*i)) {
        scene.delete(&format!("s{i}")).await;
    }
    assert_eq!(
        scene.chains().depth("a"),
        SNAPSHOTS + 1,
        "nothing is merged yet"
    );
    scene.collect().await;
    let chains = scene.chains();
    assert_eq!(chains.files, chains.needed);
    let kept = (0..SNAPSHOTS).filter(|i| keep(*i)).count();
    assert_eq!(chains.depth("a"), kept + 1);
    assert!(scene.used().await < before / 2, "room is given back");
    assert!(scene.read("a").await == data, "the volume");
    for i in (0..SNAPSHOTS).filter(|i| keep(*i)) {
        assert!(scene.read(&format!("s{i}")).await == history[i], "s{i}");
    }
    for i in (0..SNAPSHOTS).filter(|i| keep(*i)) {
        scene.delete(&format!("s{i}")).await;
    }
    scene.collect().await;
    let chains = scene.chains();
    assert_eq!(
        chains.files.len(),
        1,
        "a volume without snapshots is one file: {chains:?}"
    );
    assert!(chains.tops["a"].ends_with(".raw"), "{chains:?}");
    assert!(scene.read("a").await == data, "the volume");
    scene.write("a", 0, pattern(1, 4096)).await;
}

#[tokio::test]
async fn a_chain_has_an_end() {
    let scene = Scene::new(256 * MIB).await;
    scene.create("a", MIB).await;
    scene.write("a", 0, pattern(1, 4096)).await;
    for i in 0..255 {
        scene.snapshot("a", &format!("s{i}")).await;
    }
    let (a, more) = (n("a"), n("more"));
    let refused = scene.pool.snapshot_volume(&a, &more, Default::default());
    assert_error(refused.await, ErrorKind::Unsupported, "256");
    let refused = scene.pool.clone_volume(&a, &more, Default::default());
    assert_error(refused.await, ErrorKind::Unsupported, "256");
    // Further down there is room, and a flat volume begins anew.
    scene.clone_of("s100", "c").await;
    assert!(scene.read("c").await == scene.read("a").await);
    let flat = scene.pool.flatten_volume(&a, Default::default()).await;
    flat.expect("flatten");
    assert_eq!(scene.pool.volume(&a).await.expect("volume").depth, Some(1));
    scene.snapshot("a", "more").await;
    assert_eq!(&scene.read("more").await[..4096], &pattern(1, 4096)[..]);
}

#[tokio::test]
async fn clones_share_what_is_below_them() {
    let scene = Scene::new(256 * MIB).await;
    scene.create("golden", 16 * MIB).await;
    scene
        .write("golden", 0, pattern(1, 12 * MIB as usize))
        .await;
    scene.snapshot("golden", "s").await;
    let golden = scene.read("s").await;
    let before = scene.used().await;
    for i in 0..20 {
        scene.clone_of("s", &format!("c{i}")).await;
        scene
            .write(&format!("c{i}"), i * CLUSTER, pattern(i, 512))
            .await;
    }
    let taken = scene.used().await - before;
    assert!(taken < 20 * MIB, "20 clones of 12 MiB took {taken} bytes");
    scene.delete("golden").await;
    scene.delete("s").await;
    scene.collect().await;
    let chains = scene.chains();
    assert_eq!(chains.files.len(), 21, "one file below twenty: {chains:?}");
    for i in 0..20 {
        let mut data = golden.to_vec();
        let at = (i * CLUSTER) as usize;
        data[at..at + 512].copy_from_slice(&pattern(i, 512));
        assert!(scene.read(&format!("c{i}")).await == data, "c{i}");
    }
    // The last one has it for itself.
    for i in 1..20 {
        scene.delete(&format!("c{i}")).await;
    }
    scene.collect().await;
    assert_eq!(scene.chains().files.len(), 1);
    let mut data = golden.to_vec();
    data[..512].copy_from_slice(&pattern(0, 512));
    assert!(scene.read("c0").await == data, "c0");
}
