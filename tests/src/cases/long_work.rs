//! Progress and cancellation of work that moves data.

use std::sync::{Arc, Mutex};

use super::*;
use volmux::{
    CloneOptions, Control, CopyOptions, ErrorKind, PoolExt, Progress, SnapshotOptions, Support,
};

const SIZE: u64 = 16 * MIB;

/// A control that writes down what it is told.
fn watched() -> (Control, Arc<Mutex<Vec<Progress>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let control = Control::new().with_progress({
        let seen = seen.clone();
        move |progress| seen.lock().expect("not poisoned").push(progress)
    });
    (control, seen)
}

/// A control that cancels itself as soon as something was moved.
fn cancelled_midway() -> Control {
    let token = tokio_util::sync::CancellationToken::new();
    let control = Control::new().with_cancel(token.clone());
    control.with_progress(move |progress| {
        if progress.done > 0 {
            token.cancel();
        }
    })
}

#[track_caller]
fn assert_progress(seen: &Mutex<Vec<Progress>>, total: u64) {
    let seen = seen.lock().expect("not poisoned");
    let last = seen.last().expect("progress is told");
    assert_eq!(
        (last.done, last.total),
        (total, total),
        "it ends at its total"
    );
    for (earlier, later) in seen.iter().zip(&seen[1..]) {
        assert!(earlier.done <= later.done, "{earlier:?} then {later:?}");
        assert_eq!(earlier.total, later.total);
    }
}

pub(crate) async fn progress_of_a_copy_is_told(ctx: &Ctx<'_>) {
    // Only the data counts, not the holes, where there are any.
    let (size, middle) = if ctx.expect.thin() && ctx.expect.holes {
        (64 * SIZE, 32 * SIZE)
    } else {
        (SIZE, SIZE / 2)
    };
    ctx.create("a", size).await;
    ctx.write("a", 0, pattern(1, (SIZE / 2) as usize)).await;
    ctx.write("a", middle, pattern(2, (SIZE / 2) as usize))
        .await;
    let (control, seen) = watched();
    let options = CopyOptions { control };
    let made = ctx.pool().copy_volume(&n("a"), &n("k"), options).await;
    made.expect("copy");
    assert_progress(&seen, SIZE);
}

pub(crate) async fn progress_stopped_in_a_copy_leaves_nothing(ctx: &Ctx<'_>) {
    ctx.filled("a", SIZE, 1).await;
    let before = ctx.state().await;
    let early = Control::new();
    early.cancel();
    for control in [early, cancelled_midway()] {
        let options = CopyOptions { control };
        let result = ctx.pool().copy_volume(&n("a"), &n("k"), options).await;
        ctx.refused(result, ErrorKind::TimedOut, "copy_volume", "k", &before)
            .await;
        let report = ctx.pool().audit(Default::default()).await.expect("audit");
        assert_eq!(report.findings, [], "a cancelled copy cleans up");
    }
    ctx.copy_of("a", "k").await;
    assert_same(&ctx.read("k").await, &pattern(1, SIZE as usize), "again");
}

pub(crate) async fn progress_of_a_copy_into_another_pool_is_told(ctx: &Ctx<'_>) {
    let (size, start) = if ctx.expect.thin() && ctx.expect.holes {
        (64 * SIZE, MIB)
    } else {
        (SIZE, 0)
    };
    ctx.create("a", size).await;
    ctx.write("a", start, pattern(1, SIZE as usize)).await;
    let there = ctx.with_settings(Default::default()).await;
    let (control, seen) = watched();
    let options = CopyOptions { control };
    let made = ctx
        .pool()
        .copy_volume_to(&n("a"), there.pool(), &n("k"), options)
        .await;
    assert_eq!(made.expect("copy").virtual_size.bytes(), size);
    assert_progress(&seen, SIZE);
    let found = there.reader("k").await;
    let data = found.read_at(start, SIZE as usize).await.expect("read");
    assert_same(&data, &pattern(1, SIZE as usize), "there");
    let taken = there.pool().usage().await.expect("usage").used.bytes();
    drop(found);
    there.delete("k").await;
    let options = CopyOptions {
        control: cancelled_midway(),
    };
    let result = ctx
        .pool()
        .copy_volume_to(&n("a"), there.pool(), &n("k"), options)
        .await;
    assert_error(result, ErrorKind::TimedOut, "copy_volume", "k");
    assert!(there.names().await.is_empty(), "nothing is left there");
    assert!(taken > 0);
}

pub(crate) async fn progress_of_an_emulated_snapshot_is_told(ctx: &Ctx<'_>) {
    ctx.filled("a", SIZE, 1).await;
    let (control, seen) = watched();
    let options = SnapshotOptions { control };
    let made = ctx.pool().snapshot_volume(&n("a"), &n("s"), options).await;
    made.expect("snapshot");
    if ctx.expect.capabilities.snapshot == Support::Emulated {
        assert_progress(&seen, SIZE);
    }
    let before = ctx.state().await;
    let control = Control::new();
    control.cancel();
    let options = SnapshotOptions { control };
    let result = ctx.pool().snapshot_volume(&n("a"), &n("t"), options).await;
    ctx.refused(result, ErrorKind::TimedOut, "snapshot_volume", "t", &before)
        .await;
    ctx.snapshot("a", "t").await;
}

pub(crate) async fn progress_of_an_emulated_clone_is_told(ctx: &Ctx<'_>) {
    ctx.filled("a", SIZE, 1).await;
    let (control, seen) = watched();
    let options = CloneOptions { control };
    let made = ctx.pool().clone_volume(&n("a"), &n("c"), options).await;
    made.expect("clone");
    if ctx.expect.capabilities.clone == Support::Emulated {
        assert_progress(&seen, SIZE);
    }
    let before = ctx.state().await;
    let control = Control::new();
    control.cancel();
    let options = CloneOptions { control };
    let result = ctx.pool().clone_volume(&n("a"), &n("d"), options).await;
    ctx.refused(result, ErrorKind::TimedOut, "clone_volume", "d", &before)
        .await;
    ctx.clone_of("a", "d").await;
}
