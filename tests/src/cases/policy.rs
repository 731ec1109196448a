//! How full a pool is, and the marks at which it refuses.

use super::*;
use crate::PoolSettings;
use volmux::{
    ByteRange, ByteSize, CreateOptions, ErrorKind, Pressure, ResizeOptions, Support, Usage,
};

async fn usage(ctx: &Ctx<'_>) -> Usage {
    ctx.pool().usage().await.expect("usage")
}

pub(crate) async fn usage_moves_in_the_right_direction(ctx: &Ctx<'_>) {
    let size = 16 * MIB;
    let empty = usage(ctx).await;
    assert!(empty.total > ByteSize::ZERO);
    assert!(empty.used.bytes() + empty.free.bytes() <= empty.total.bytes());
    assert_eq!(empty.provisioned, ByteSize::ZERO);
    ctx.create("a", size).await;
    let made = usage(ctx).await;
    assert_eq!(made.provisioned.bytes(), size);
    ctx.write("a", 0, pattern(1, size as usize)).await;
    let written = usage(ctx).await;
    // A thick volume takes its space when it is made.
    let before = if ctx.expect.thin() { made } else { empty };
    let taken = written.used.bytes().saturating_sub(before.used.bytes());
    assert!(taken >= size / 2, "writing {size} bytes took {taken}");
    assert!(written.free < before.free);
    assert_eq!(written.total, empty.total);
    ctx.delete("a").await;
    assert_eq!(usage(ctx).await.provisioned, ByteSize::ZERO);
    ctx.eventually("deleted data is freed", async || {
        let used = usage(ctx).await.used.bytes();
        written.used.bytes().saturating_sub(used) >= size / 2
    })
    .await;
}

pub(crate) async fn usage_counts_every_volume_as_provisioned(ctx: &Ctx<'_>) {
    let provisioned = async || usage(ctx).await.provisioned.bytes();
    ctx.create("a", MIB).await;
    ctx.copy_of("a", "k").await;
    assert_eq!(provisioned().await, 2 * MIB);
    let options = ResizeOptions::grow(ByteSize::new(3 * MIB));
    let grown = ctx.pool().resize_volume(&n("k"), options).await;
    grown.expect("grow");
    assert_eq!(provisioned().await, 4 * MIB);
    ctx.delete("a").await;
    assert_eq!(provisioned().await, 3 * MIB);
}

pub(crate) async fn usage_counts_snapshots_and_clones_as_provisioned(ctx: &Ctx<'_>) {
    ctx.create("a", MIB).await;
    ctx.snapshot("a", "s").await;
    ctx.clone_of("s", "c").await;
    assert_eq!(usage(ctx).await.provisioned.bytes(), 3 * MIB);
    ctx.delete("s").await;
    assert_eq!(usage(ctx).await.provisioned.bytes(), 2 * MIB);
}

/// Waits until a deleted volume's space is back.
async fn wait_for_room(ctx: &Ctx<'_>) {
    ctx.eventually("below the refuse mark", async || {
        let now = usage(ctx).await;
        ctx.pool().policy().pressure(&now) < Pressure::Refuse
    })
    .await;
}

/// Waits until what was written counts.
async fn wait_for_pressure(ctx: &Ctx<'_>) {
    ctx.eventually("past the refuse mark", async || {
        let now = usage(ctx).await;
        ctx.pool().policy().pressure(&now) == Pressure::Refuse
    })
    .await;
}

/// Asserts that everything that takes space is refused, and what frees it is not.
async fn assert_refuses(ctx: &Ctx<'_>) {
    let before = ctx.state().await;
    let (pool, a, new) = (ctx.pool(), n("a"), n("new"));
    let kind = ErrorKind::NoSpace;
    // Each asks for more than what any limit leaves.
    let options = ctx
        .expect
        .volume(usage(ctx).await.total.bytes() / 512 * 1024);
    let result = pool.create_volume(&new, options).await;
    ctx.refused(result, kind, "create_volume", "new", &before)
        .await;
    let result = pool
        .resize_volume(&a, ResizeOptions::grow(options.size))
        .await;
    ctx.refused(result, kind, "resize_volume", "a", &before)
        .await;
    let result = pool.copy_volume(&a, &new, Default::default()).await;
    ctx.refused(result, kind, "copy_volume", "new", &before)
        .await;
    let capabilities = ctx.expect.capabilities;
    if capabilities.snapshot != Support::None {
        let result = pool.snapshot_volume(&a, &new, Default::default()).await;
        ctx.refused(result, kind, "snapshot_volume", "new", &before)
            .await;
    }
    if capabilities.clone != Support::None {
        let result = pool.clone_volume(&a, &new, Default::default()).await;
        ctx.refused(result, kind, "clone_volume", "new", &before)
            .await;
    }
    // What exists can be had again, written and freed.
    let size = ctx.volume("a").await.virtual_size.bytes();
    ctx.create("a", size).await;
    ctx.write("a", 0, pattern(7, 4096)).await;
    assert_same(
        &ctx.read_part("a", 4096).await,
        &pattern(7, 4096),
        "written",
    );
}

pub(crate) async fn policy_overcommit_limit_is_kept(ctx: &Ctx<'_>) {
    let settings = PoolSettings {
        overcommit_limit: Some(1.0),
        ..PoolSettings::default()
    };
    let ctx = &ctx.with_settings(settings).await;
    let total = usage(ctx).await.total.bytes();
    ctx.create("a", total * 6 / 10 / 512 * 512).await;
    assert_refuses(ctx).await;
    ctx.create("b", total / 10 / 512 * 512).await;
    ctx.delete("a").await;
    ctx.create("c", total / 2 / 512 * 512).await;
}

pub(crate) async fn policy_refuse_mark_is_kept(ctx: &Ctx<'_>) {
    const MARK: f64 = 50.0;
    let settings = PoolSettings {
        refuse_percent: Some(MARK),
        warn_percent: Some(40.0),
        ..PoolSettings::default()
    };
    let ctx = &ctx.with_settings(settings).await;
    ctx.create("a", 32 * MIB).await;
    ctx.create("spare", MIB).await;
    let now = usage(ctx).await;
    assert_eq!(ctx.pool().policy().pressure(&now), Pressure::Normal);
    // A thick volume that ends just below the mark, and one that would pass it.
    let can = now.used.bytes() + now.free.bytes();
    let below = (can as f64 * MARK / 100.0) as u64 - now.used.bytes() - 8 * MIB;
    let before = ctx.state().await;
    let past = CreateOptions::thick(ByteSize::new(below + 16 * MIB));
    let result = ctx.pool().create_volume(&n("thick"), past).await;
    ctx.refused(
        result,
        ErrorKind::NoSpace,
        "create_volume",
        "thick",
        &before,
    )
    .await;
    let fits = CreateOptions::thick(ByteSize::new(below / 512 * 512));
    let made = ctx.pool().create_volume(&n("thick"), fits).await;
    made.expect("a thick volume below the mark");
    let now = usage(ctx).await;
    assert_eq!(ctx.pool().policy().pressure(&now), Pressure::Warn);
    ctx.create("warned", MIB).await;
    // Writes are never refused, even past the mark.
    ctx.write("a", 0, pattern(1, 32 * MIB as usize)).await;
    wait_for_pressure(ctx).await;
    assert_refuses(ctx).await;
    ctx.delete("spare").await;
    let device = ctx.writer("a").await;
    device
        .discard(ByteRange::new(0, 16 * MIB))
        .await
        .expect("discard");
    drop(device);
    ctx.delete("thick").await;
    wait_for_room(ctx).await;
    ctx.create("again", MIB).await;
}

pub(crate) async fn policy_refuse_mark_counts_what_is_written(ctx: &Ctx<'_>) {
    let now = usage(ctx).await;
    let (total, used) = (now.total.bytes(), now.used.bytes());
    let mark = (used + 24 * MIB) as f64 / total as f64 * 100.0;
    // An empty thin pool of LVM has a tenth of its metadata in use.
    let mark = match now.metadata {
        Some(_) => mark.max(now.metadata_percent() + 5.0),
        None => mark,
    };
    let size = (total as f64 * mark / 100.0) as u64 - used + 8 * MIB;
    let size = size.next_multiple_of(MIB);
    let settings = PoolSettings {
        refuse_percent: Some(mark),
        ..PoolSettings::default()
    };
    let ctx = &ctx.with_settings(settings).await;
    ctx.create("a", size).await;
    ctx.write("a", 0, pattern(1, size as usize)).await;
    wait_for_pressure(ctx).await;
    assert_refuses(ctx).await;
    ctx.delete("a").await;
    wait_for_room(ctx).await;
    ctx.create("again", MIB).await;
}

pub(crate) async fn policy_refuses_a_revert_too(ctx: &Ctx<'_>) {
    let settings = PoolSettings {
        refuse_percent: Some(50.0),
        ..PoolSettings::default()
    };
    let ctx = &ctx.with_settings(settings).await;
    ctx.create("a", 32 * MIB).await;
    ctx.snapshot("a", "s").await;
    let now = usage(ctx).await;
    let half = (now.used.bytes() + now.free.bytes()) / 2;
    let below = half - now.used.bytes() - 8 * MIB;
    let options = CreateOptions::thick(ByteSize::new(below / 512 * 512));
    let made = ctx.pool().create_volume(&n("thick"), options).await;
    made.expect("a thick volume below the mark");
    ctx.write("a", 0, pattern(1, 32 * MIB as usize)).await;
    wait_for_pressure(ctx).await;
    let before = ctx.state().await;
    let result = ctx
        .pool()
        .revert_volume(&n("a"), &n("s"), Default::default())
        .await;
    ctx.refused(result, ErrorKind::NoSpace, "revert_volume", "a", &before)
        .await;
    ctx.delete("thick").await;
    wait_for_room(ctx).await;
    let reverted = ctx
        .pool()
        .revert_volume(&n("a"), &n("s"), Default::default())
        .await;
    reverted.expect("revert once there is room");
    assert_zeros(&ctx.read("a").await, "reverted");
}

pub(crate) async fn policy_off_refuses_nothing(ctx: &Ctx<'_>) {
    let settings = PoolSettings {
        overcommit_limit: None,
        warn_percent: Some(0.0),
        refuse_percent: Some(100.0),
    };
    let ctx = &ctx.with_settings(settings).await;
    let now = usage(ctx).await;
    assert_eq!(ctx.pool().policy().pressure(&now), Pressure::Warn);
    let size = now.total.bytes().min(1 << 40) * 4 / 512 * 512;
    for name in ["a", "b", "c"] {
        ctx.create(name, size).await;
    }
    ctx.copy_of("a", "k").await;
    assert!(usage(ctx).await.overcommit() > 2.0);
}
