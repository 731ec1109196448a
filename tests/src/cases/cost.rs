//! Clause 5: snapshots and clones cost no room of their own, or the pool says that it emulates.

use super::*;
use volmux::Support;

const DATA: u64 = 16 * MIB;

async fn used(ctx: &Ctx<'_>) -> u64 {
    // A file system may count what it is about to write, or to forget.
    ctx.settle().await;
    ctx.pool().usage().await.expect("usage").used.bytes()
}

/// Asserts how much room `make` takes, given how it is supported.
async fn assert_cost(ctx: &Ctx<'_>, support: Support, what: &str, make: impl Future) {
    let before = used(ctx).await;
    make.await;
    let taken = used(ctx).await.saturating_sub(before);
    match support {
        Support::Native => assert!(taken < DATA / 4, "a native {what} took {taken} bytes"),
        _ => assert!(
            taken > DATA / 2,
            "an emulated {what} took only {taken} bytes"
        ),
    }
}

pub(crate) async fn c05_a_native_snapshot_takes_no_room(ctx: &Ctx<'_>) {
    ctx.filled("a", DATA, 1).await;
    let support = ctx.expect.capabilities.snapshot;
    assert_cost(ctx, support, "snapshot", ctx.snapshot("a", "s")).await;
}

pub(crate) async fn c05_a_native_clone_takes_no_room(ctx: &Ctx<'_>) {
    ctx.filled("a", DATA, 1).await;
    let support = ctx.expect.capabilities.clone;
    assert_cost(ctx, support, "clone", ctx.clone_of("a", "c")).await;
}

pub(crate) async fn c05_a_copy_takes_room_of_its_own(ctx: &Ctx<'_>) {
    ctx.filled("a", DATA, 1).await;
    assert_cost(ctx, Support::Emulated, "copy", ctx.copy_of("a", "k")).await;
}

pub(crate) async fn c05_an_empty_volume_takes_no_room(ctx: &Ctx<'_>) {
    let before = used(ctx).await;
    ctx.create("a", 64 * DATA).await;
    ctx.copy_of("a", "k").await;
    let taken = used(ctx).await.saturating_sub(before);
    assert!(taken < DATA / 4, "empty thin volumes took {taken} bytes");
}
