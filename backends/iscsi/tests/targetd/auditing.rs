//! What an audit finds, and what it leaves alone.

use volmux_core::{AuditOptions, Finding, FindingKind, PoolExt};

use super::*;

const OLD: &str = "_volmux-copy-5f000000-0123456789ab";

async fn audit(pool: &TargetdPool, repair: bool) -> Vec<Finding> {
    let report = pool.audit(AuditOptions { repair }).await.expect("audited");
    let mut findings = report.findings;
    findings.sort_by(|a, b| a.object.cmp(&b.object));
    findings
}

fn kinds(findings: &[Finding]) -> Vec<(&str, FindingKind, bool)> {
    let kinds = findings.iter();
    kinds
        .map(|f| (f.object.as_str(), f.kind, f.repaired))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_in_order_is_clean() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    create(&pool, "a", 4).await;
    pool.attach_volume(&n("a"), attach(ONE, Access::ReadWrite))
        .await
        .expect("attached");
    server.array().elsewhere.push((ONE.into(), 9));
    let report = pool
        .audit(AuditOptions { repair: true })
        .await
        .expect("audited");
    assert!(
        report.is_clean() && report.findings.is_empty(),
        "{report:?}"
    );
    assert_eq!((report.volumes, server.array().exports.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_copies_left_is_removed_once_it_is_old() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    let young = format!(
        "_volmux-copy-{:x}-0123456789ab",
        now.expect("a time").as_secs()
    );
    for name in [OLD, &young] {
        server.array().add(name, 4 * MIB);
    }
    server.array().export(ONE, 0, OLD);
    server.array().export(TWO, 0, &young);
    assert!(pool.volumes().await.expect("listed").is_empty());
    let hidden = pool.volume(&n(OLD)).await;
    fails(hidden, ErrorKind::NotFound, "volume", &[OLD]);
    let leftover = FindingKind::Leftover;
    let looked = [(OLD, leftover, false), (young.as_str(), leftover, false)];
    assert_eq!(kinds(&audit(&pool, false).await), looked);
    assert_eq!(server.array().volumes.len(), 2);
    let found = audit(&pool, true).await;
    assert_eq!(
        kinds(&found),
        [(OLD, leftover, true), (young.as_str(), leftover, false)]
    );
    assert_eq!(found[0].bytes, Some(ByteSize::mib(4)));
    assert_eq!(server.array().volumes.keys().collect::<Vec<_>>(), [&young]);
    assert_eq!(server.array().exports.len(), 1);
    server.array().add(OLD, 4 * MIB);
    assert_eq!(pool.collect_garbage().await.expect("collected").objects, 1);
    assert_eq!(pool.collect_garbage().await.expect("collected").objects, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_did_is_told_and_left_alone() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    create(&pool, "both", 4).await;
    create(&pool, "twice", 4).await;
    {
        let mut array = server.array();
        array.add("nested/name", 4 * MIB);
        array.export(ONE, 0, "both");
        array.export(TWO, 0, "both");
        array.export(ONE, 1, "twice");
        array.export(ONE, 2, "twice");
        array.export(ONE, 3, "vanished");
    }
    let expected = [
        ("both", FindingKind::Unfinished, false),
        ("nested/name", FindingKind::Foreign, false),
        ("twice", FindingKind::Unfinished, false),
        ("vanished", FindingKind::Foreign, false),
    ];
    let changes = server.changes().len();
    assert_eq!(kinds(&audit(&pool, true).await), expected);
    assert_eq!(server.changes().len(), changes);
    let listed = pool.volumes().await.expect("listed");
    let names: Vec<&str> = listed.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["both", "twice"]);
}
