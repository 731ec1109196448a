//! Clause 6, as far as a living process can show it: what is done is done for every handle, and
//! normal work leaves nothing for an audit to find. `tests/crash.rs` kills processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use volmux::{AuditOptions, ByteSize, ResizeOptions};

/// A bit of everything.
async fn work(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    ctx.snapshot("a", "s").await;
    ctx.clone_of("s", "c").await;
    ctx.copy_of("a", "k").await;
    ctx.write("c", 5000, pattern(2, 100_000)).await;
    ctx.write("a", 0, pattern(3, 4096)).await;
    let reverted = ctx
        .pool()
        .revert_volume(&n("a"), &n("s"), Default::default())
        .await;
    reverted.expect("revert");
    let options = ResizeOptions::grow(ByteSize::new(2 * MIB));
    let grown = ctx.pool().resize_volume(&n("k"), options).await;
    grown.expect("grow");
    let renamed = ctx.pool().rename_volume(&n("k"), &n("k2")).await;
    renamed.expect("rename");
    ctx.filled("gone", MIB, 4).await;
    ctx.snapshot("gone", "gone.s").await;
    ctx.delete("gone").await;
    ctx.delete("gone.s").await;
}

pub(crate) async fn c06_another_handle_sees_every_effect(ctx: &Ctx<'_>) {
    let other = ctx.other_handle().await;
    work(ctx).await;
    let here = ctx.state().await;
    assert_eq!(here.names(), ["a", "c", "k2", "s"]);
    assert_eq!(State::of(other.as_ref()).await, here, "an older handle");
    let new = ctx.other_handle().await;
    assert_eq!(State::of(new.as_ref()).await, here, "a newer handle");
}

pub(crate) async fn c06_normal_work_leaves_nothing_for_an_audit(ctx: &Ctx<'_>) {
    work(ctx).await;
    let report = ctx.pool().audit(AuditOptions { repair: false }).await;
    let report = report.expect("audit");
    assert_eq!(report.findings, [], "after normal work");
    assert_eq!(report.volumes, 4);
}

pub(crate) async fn c06_an_audit_changes_no_volume(ctx: &Ctx<'_>) {
    work(ctx).await;
    let device = ctx.writer("a").await;
    device.write_at(0, pattern(8, 4096)).await.expect("write");
    let before = ctx.state().await;
    for repair in [false, true] {
        let report = ctx.pool().audit(AuditOptions { repair }).await;
        assert_eq!(report.expect("audit").volumes, 4);
        assert_eq!(ctx.state().await, before, "repair {repair}");
    }
    device.write_at(0, pattern(9, 4096)).await.expect("write");
}

pub(crate) async fn c06_an_audit_beside_running_work_takes_nothing_away(ctx: &Ctx<'_>) {
    let (done, audits) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let auditor = tokio::spawn({
        let (pool, done, audits) = (ctx.shared_pool(), done.clone(), audits.clone());
        async move {
            while !done.load(Ordering::SeqCst) {
                let report = pool.audit(AuditOptions { repair: true }).await;
                report.expect("audit");
                audits.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
        }
    });
    for round in 0..10u64 {
        let (name, snapshot) = (format!("v{round}"), format!("s{round}"));
        let data = ctx.filled(&name, MIB, round).await;
        ctx.snapshot(&name, &snapshot).await;
        // At least one audit that began after this work.
        let seen = audits.load(Ordering::SeqCst);
        ctx.eventually("two more audits", async || {
            audits.load(Ordering::SeqCst) >= seen + 2 || auditor.is_finished()
        })
        .await;
        assert_same(&ctx.read(&name).await, &data, &name);
        assert_same(&ctx.read(&snapshot).await, &data, &snapshot);
    }
    done.store(true, Ordering::SeqCst);
    auditor.await.expect("auditor");
    for round in 0..10u64 {
        let data = pattern(round, MIB as usize);
        for name in [format!("v{round}"), format!("s{round}")] {
            assert_same(&ctx.read(&name).await, &data, &name);
        }
    }
}
