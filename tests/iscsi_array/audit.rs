//! What the target shows, held against what the store says.

use std::time::{Duration, Instant};

use volmux::{AuditOptions, Finding, FindingKind, OpenOptions};
use volmux_conformance::host::HostDisk;
use volmux_conformance::pattern;

use super::*;
use crate::writer::{Writer, check};

const LOOK: AuditOptions = AuditOptions { repair: false };
const REPAIR: AuditOptions = AuditOptions { repair: true };

async fn findings(pool: &dyn Pool, options: AuditOptions) -> Vec<Finding> {
    pool.audit(options).await.expect("an audit").findings
}

#[test]
fn after_a_restart_what_is_attached_is_shown_again() {
    let mut scene = Scene::new();
    on(async {
        let pool = scene.pool().await;
        create(pool.as_ref(), "a", MIB).await;
        let attached = pool.attach_volume(&n("a"), writing("host")).await;
        let attached = attached.expect("attach");
        assert!(findings(pool.as_ref(), LOOK).await.is_empty());
        scene.tgtd.restart();
        let found = findings(pool.as_ref(), LOOK).await;
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            (found[0].kind, found[0].repaired),
            (FindingKind::Unfinished, false)
        );
        assert_eq!(found[0].object, "a");
        let found = findings(pool.as_ref(), REPAIR).await;
        assert!(found.len() == 1 && found[0].repaired, "{found:?}");
        let disk = HostDisk::open(&attached).await;
        disk.write_at_start(pattern(1, 4096)).await;
        disk.close().await;
        assert!(findings(pool.as_ref(), LOOK).await.is_empty());
    });
}

#[test]
fn what_is_shown_to_nobody_is_taken_away() {
    let scene = Scene::new();
    on(async {
        let pool = scene.pool().await;
        create(pool.as_ref(), "a", MIB).await;
        let id = pool.volume(&n("a")).await.expect("volume").id;
        scene.tgtd.show(1, &format!("{ARRAY}:{id}"), &scene.data());
        scene.tgtd.show(2, &format!("{ARRAY}:disk"), &scene.data());
        let mut found = findings(pool.as_ref(), LOOK).await;
        found.sort_by(|a, b| a.object.cmp(&b.object));
        let kinds: Vec<FindingKind> = found.iter().map(|finding| finding.kind).collect();
        // A digit comes before a letter, but `d` may be one of both.
        assert_eq!(kinds.len(), 2, "{found:?}");
        assert!(kinds.contains(&FindingKind::Leftover) && kinds.contains(&FindingKind::Foreign));
        findings(pool.as_ref(), REPAIR).await;
        let left = findings(pool.as_ref(), LOOK).await;
        assert_eq!(left.len(), 1, "{left:?}");
        assert_eq!(left[0].kind, FindingKind::Foreign, "somebody else's stays");
    });
}

#[test]
fn a_volume_that_a_dead_process_had_open_is_free_after_a_while() {
    let scene = Scene::new();
    let url = scene.url();
    on(async {
        let pool = scene.pool().await;
        create(pool.as_ref(), "shared", 8 * MIB).await;
    });
    let mut process = Writer::start(&url, 0);
    process.until_flushed(3);
    on(async {
        let pool = scene.pool().await;
        let error = pool
            .open_volume(&n("shared"), OpenOptions::read_write())
            .await;
        assert_eq!(
            error.expect_err("it writes").kind(),
            volmux::ErrorKind::Busy
        );
    });
    let flushed = process.kill();
    on(async {
        let pool = scene.pool().await;
        let begun = Instant::now();
        let device = writer(pool.as_ref(), "shared").await;
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{:?}",
            begun.elapsed()
        );
        drop(device);
        check(&url, &[flushed]).await;
        assert!(findings(pool.as_ref(), LOOK).await.is_empty());
    });
}

#[test]
fn a_volume_that_cannot_be_read_keeps_its_target() {
    let scene = Scene::new();
    on(async {
        let pool = scene.pool().await;
        create(pool.as_ref(), "a", MIB).await;
        let attached = pool.attach_volume(&n("a"), writing("host")).await;
        let attached = attached.expect("attach");
        let record = scene.root().join("volumes").join("a.json");
        let whole = std::fs::read(&record).expect("its record");
        std::fs::write(&record, "{").expect("damage");
        let found = findings(pool.as_ref(), REPAIR).await;
        assert!(
            found.iter().any(|f| f.kind == FindingKind::Damaged),
            "{found:?}"
        );
        let disk = HostDisk::open(&attached).await;
        disk.write_at_start(pattern(1, 4096)).await;
        disk.close().await;
        std::fs::write(&record, whole).expect("its record");
        assert!(findings(pool.as_ref(), LOOK).await.is_empty());
    });
}
