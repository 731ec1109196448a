//! Damage is told, and nothing is opened or changed.

use std::fs::File;
use std::os::unix::fs::FileExt;

use volmux::nfs::{DirConfig, DirPool};
use volmux::{AuditOptions, ErrorKind, FindingKind, OpenOptions};
use volmux_conformance::chains::Chains;
use volmux_conformance::{pattern, read_all};

use crate::scene::{MIB, Scene, assert_error, n, open};

#[tokio::test]
async fn damage_is_told_and_nothing_is_opened() {
    let scene = Scene::new(128 * MIB).await;
    for name in ["a", "b"] {
        scene.create(name, MIB).await;
        scene.write(name, 0, pattern(1, MIB as usize)).await;
        scene.snapshot(name, &format!("{name}-s")).await;
    }
    let top = scene.top("a");
    let good = std::fs::read(&top).expect("read");
    let at = |offset: usize| u64::from_be_bytes(good[offset..offset + 8].try_into().expect("8"));
    let name_at = at(8) as usize;
    let changes: [(&str, usize, &[u8]); 7] = [
        ("no qcow2 image", 0, b"NONE"),
        ("no data file of this pool", name_at, b"/etc/passwd"),
        ("outside", 79, &[4]),
        ("encrypted", 35, &[1]),
        ("corrupt", 79, &[2]),
        ("L1 table", 36, &[0xff; 4]),
        ("reference counts", 48, &[0xff; 8]),
    ];
    for (says, offset, bytes) in changes {
        let mut bad = good.clone();
        bad[offset..offset + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&top, &bad).expect("write");
        assert_damaged(&scene, says).await;
        std::fs::write(&top, &good).expect("write");
    }
    // The file below is gone; or leads in a circle.
    let below = scene.top("a-s");
    let aside = scene.root.join("aside");
    std::fs::rename(&below, &aside).expect("rename");
    assert_damaged(&scene, "missing").await;
    std::fs::rename(&aside, &below).expect("rename");
    scene.snapshot("a", "t").await;
    let (upper, lower) = (scene.top("a"), scene.top("t"));
    let mut circle = std::fs::read(&lower).expect("read");
    let own = lower
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name");
    let name_at = u64::from_be_bytes(circle[8..16].try_into().expect("8")) as usize;
    circle[name_at..name_at + own.len()].copy_from_slice(own.as_bytes());
    circle[16..20].copy_from_slice(&(own.len() as u32).to_be_bytes());
    circle[120..125].copy_from_slice(b"qcow2");
    circle[119] = 5;
    let whole = std::fs::read(&lower).expect("read");
    std::fs::write(&lower, &circle).expect("write");
    let refused = scene
        .pool
        .open_volume(&n("a"), OpenOptions::read_only())
        .await;
    assert_error(refused.map(|_| ()), ErrorKind::Corrupt, "circle");
    std::fs::write(&lower, &whole).expect("write");
    assert!(upper.exists());
    assert!(
        scene.read("a").await == pattern(1, MIB as usize),
        "all is well again"
    );
    scene.collect().await;
    scene.chains();
}

/// Volume `a` can't be used, for what `says`; `b` can; an audit tells, and nothing is changed.
async fn assert_damaged(scene: &Scene, says: &str) {
    let listing = || {
        let chains = std::fs::read_dir(scene.root.join("data")).expect("list");
        chains.count()
    };
    let before = listing();
    for options in [OpenOptions::read_only(), OpenOptions::read_write()] {
        let refused = scene.pool.open_volume(&n("a"), options).await;
        assert_error(refused.map(|_| ()), ErrorKind::Corrupt, says);
    }
    let (a, x) = (n("a"), n("x"));
    let refused = scene.pool.snapshot_volume(&a, &x, Default::default());
    assert_error(refused.await, ErrorKind::Corrupt, says);
    let refused = scene.pool.clone_volume(&a, &x, Default::default());
    assert_error(refused.await, ErrorKind::Corrupt, says);
    let refused = scene.pool.copy_volume(&a, &x, Default::default());
    assert_error(refused.await, ErrorKind::Corrupt, says);
    let refused = scene.pool.flatten_volume(&a, Default::default());
    assert_error(refused.await, ErrorKind::Corrupt, says);
    let refused = scene.pool.collect_garbage().await;
    assert_error(refused, ErrorKind::Corrupt, "a");
    let report = scene.pool.audit(AuditOptions { repair: true }).await;
    let report = report.expect("audit");
    let damaged = |f: &&volmux::Finding| f.kind == FindingKind::Damaged;
    let damaged: Vec<_> = report.findings.iter().filter(damaged).collect();
    assert!(!damaged.is_empty(), "{says}: {report:?}");
    assert!(
        damaged.iter().any(|f| f.detail.contains(says)),
        "{says}: {damaged:?}"
    );
    assert_eq!(listing(), before, "{says}: nothing is made or removed");
    assert!(scene.read("b").await == pattern(1, MIB as usize), "{says}");
}

#[tokio::test]
async fn what_was_not_closed_is_told_of_where_nothing_can_be_written() {
    let scene = Scene::new(128 * MIB).await;
    scene.create("a", MIB).await;
    scene.snapshot("a", "s").await;
    scene.write("a", 0, pattern(1, MIB as usize)).await;
    let top = Chains::closed(&scene.root).tops["a"].clone();
    let path = scene.root.join("data").join(&top);
    let file = File::options().write(true).open(path).expect("open");
    file.write_all_at(&[1], 79).expect("write");
    drop(file);
    let Scene { pool, root, fs } = scene;
    drop(pool);
    fs.remount(true);
    let config = DirConfig {
        read_only: true,
        ..DirConfig::new(&root)
    };
    let pool = DirPool::open(config).await.expect("open");
    let report = pool.audit(AuditOptions { repair: false }).await;
    let report = report.expect("an audit that writes nothing");
    let [finding] = &report.findings[..] else {
        panic!("one finding: {report:?}");
    };
    assert_eq!(finding.kind, FindingKind::Unfinished, "{finding:?}");
    assert_eq!(finding.object, format!("data/{top}"));
    let found = read_all(pool.as_ref(), &n("a")).await;
    assert!(found == pattern(1, MIB as usize));
    drop(pool);
    fs.remount(false);
    let pool = open(&root).await;
    for repaired in [vec![true], vec![]] {
        let report = pool.audit(AuditOptions { repair: true }).await;
        let found = report.expect("audit").findings.into_iter();
        assert_eq!(found.map(|f| f.repaired).collect::<Vec<_>>(), repaired);
    }
}
