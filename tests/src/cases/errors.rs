//! Clause 12: every failure is a typed error that names the operation and the volume.

use super::retried::{exclusive, holder};
use super::*;
use volmux::{
    Access, AttachOptions, ByteRange, ByteSize, CreateOptions, ErrorKind, ExtentQuery, OpenOptions,
    ResizeOptions, ZeroOptions,
};

pub(crate) async fn c12_every_operation_on_a_missing_volume_says_so(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let before = ctx.state().await;
    let (pool, missing, new) = (ctx.pool(), n("missing"), n("new"));
    let kind = ErrorKind::NotFound;
    let name = "missing";
    let result = pool.volume(&missing).await;
    ctx.refused(result, kind, "volume", name, &before).await;
    let options = ResizeOptions::grow(ByteSize::new(MIB));
    let result = pool.resize_volume(&missing, options).await;
    ctx.refused(result, kind, "resize_volume", name, &before)
        .await;
    let result = pool.rename_volume(&missing, &new).await;
    ctx.refused(result, kind, "rename_volume", name, &before)
        .await;
    let result = pool.flatten_volume(&missing, Default::default()).await;
    ctx.refused(result, kind, "flatten_volume", name, &before)
        .await;
    let result = pool.copy_volume(&missing, &new, Default::default()).await;
    ctx.refused(result, kind, "copy_volume", name, &before)
        .await;
    for options in [OpenOptions::read_only(), OpenOptions::read_write()] {
        let result = pool.open_volume(&missing, options).await;
        ctx.refused(result, kind, "open_volume", name, &before)
            .await;
    }
    let result = pool.extents(&missing, ExtentQuery::allocated()).await;
    ctx.refused(result, kind, "extents", name, &before).await;
}

pub(crate) async fn c12_a_missing_source_is_named(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let before = ctx.state().await;
    let (pool, missing, new) = (ctx.pool(), n("missing"), n("new"));
    let kind = ErrorKind::NotFound;
    let result = pool
        .snapshot_volume(&missing, &new, Default::default())
        .await;
    ctx.refused(result, kind, "snapshot_volume", "missing", &before)
        .await;
    let result = pool.clone_volume(&missing, &new, Default::default()).await;
    ctx.refused(result, kind, "clone_volume", "missing", &before)
        .await;
}

pub(crate) async fn c12_attaching_a_missing_volume_says_so(ctx: &Ctx<'_>) {
    let before = ctx.state().await;
    let options = AttachOptions {
        access: Access::ReadOnly,
        ..exclusive("iqn.2026-11.org.volmux:host-1")
    };
    let result = ctx.pool().attach_volume(&n("missing"), options).await;
    ctx.refused(
        result,
        ErrorKind::NotFound,
        "attach_volume",
        "missing",
        &before,
    )
    .await;
    let detached = ctx
        .pool()
        .detach_volume(&n("missing"), &holder("iqn.2026-11.org.volmux:host-1"))
        .await;
    detached.expect("detaching what is gone");
}

pub(crate) async fn c12_a_volume_cannot_be_made_from_itself(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let before = ctx.state().await;
    let (pool, a) = (ctx.pool(), n("a"));
    let kind = ErrorKind::InvalidInput;
    let result = pool.snapshot_volume(&a, &a, Default::default()).await;
    ctx.refused(result, kind, "snapshot_volume", "a", &before)
        .await;
    let result = pool.clone_volume(&a, &a, Default::default()).await;
    ctx.refused(result, kind, "clone_volume", "a", &before)
        .await;
    let result = pool.copy_volume(&a, &a, Default::default()).await;
    ctx.refused(result, kind, "copy_volume", "a", &before).await;
}

pub(crate) async fn c12_a_rename_onto_another_volume_is_refused(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    ctx.filled("b", MIB, 2).await;
    let before = ctx.state().await;
    let result = ctx.pool().rename_volume(&n("a"), &n("b")).await;
    ctx.refused(
        result,
        ErrorKind::AlreadyExists,
        "rename_volume",
        "b",
        &before,
    )
    .await;
}

pub(crate) async fn c12_ranges_past_the_end_are_refused(ctx: &Ctx<'_>) {
    let size = MIB + ctx.expect.size_unit;
    ctx.filled("a", size, 1).await;
    let device = ctx.writer("a").await;
    let before = ctx.state().await;
    let kind = ErrorKind::InvalidInput;
    for (offset, length) in [
        (size, 1),
        (size - 1, 2),
        (0, size + 1),
        (size + 512, 512),
        (u64::MAX, 1),
        (u64::MAX - 511, 512),
        (i64::MAX as u64, 512),
    ] {
        let range = ByteRange::new(offset, length);
        let read = device.read_at(offset, length as usize).await;
        ctx.refused(read, kind, "read_at", "a", &before).await;
        let data = pattern(2, length as usize);
        let written = device.write_at(offset, data).await;
        ctx.refused(written, kind, "write_at", "a", &before).await;
        let discarded = device.discard(range).await;
        ctx.refused(discarded, kind, "discard", "a", &before).await;
        let zeroed = device.write_zeroes(range, ZeroOptions::default()).await;
        ctx.refused(zeroed, kind, "write_zeroes", "a", &before)
            .await;
        let extents = device.extents(range).await;
        ctx.refused(extents, kind, "extents", "a", &before).await;
        let query = ExtentQuery::allocated().within(range);
        let extents = ctx.pool().extents(&n("a"), query).await;
        ctx.refused(extents, kind, "extents", "a", &before).await;
    }
}

pub(crate) async fn c12_absurd_lengths_take_no_memory(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let device = ctx.writer("a").await;
    let before = ctx.state().await;
    let kind = ErrorKind::InvalidInput;
    for length in [usize::MAX, usize::MAX / 2, 1 << 50] {
        let read = device.read_at(0, length).await;
        ctx.refused(read, kind, "read_at", "a", &before).await;
        let range = ByteRange::new(4096, length as u64);
        let discarded = device.discard(range).await;
        ctx.refused(discarded, kind, "discard", "a", &before).await;
    }
}

pub(crate) async fn c12_more_than_the_pool_holds_is_refused(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let before = ctx.state().await;
    let usage = ctx.pool().usage().await.expect("usage");
    let size = ByteSize::new(usage.total.bytes() * 2);
    let kind = ErrorKind::NoSpace;
    let options = CreateOptions::thick(size);
    let result = ctx.pool().create_volume(&n("b"), options).await;
    ctx.refused(result, kind, "create_volume", "b", &before)
        .await;
    let options = CreateOptions::thick(ByteSize::new(MIB));
    let made = ctx.pool().create_volume(&n("b"), options).await;
    made.expect("a thick volume that fits");
    let before = ctx.state().await;
    let result = ctx
        .pool()
        .resize_volume(&n("b"), ResizeOptions::grow(size))
        .await;
    ctx.refused(result, kind, "resize_volume", "b", &before)
        .await;
}

pub(crate) async fn c12_adopting_what_is_not_there_says_so(ctx: &Ctx<'_>) {
    let what = ctx.place_foreign(&pattern(1, MIB as usize)).await;
    ctx.filled("a", MIB, 2).await;
    let before = ctx.state().await;
    let result = ctx.pool().adopt_volume("missing-file", &n("new")).await;
    ctx.refused(result, ErrorKind::NotFound, "adopt_volume", "new", &before)
        .await;
    let result = ctx.pool().adopt_volume(&what, &n("a")).await;
    ctx.refused(
        result,
        ErrorKind::AlreadyExists,
        "adopt_volume",
        "a",
        &before,
    )
    .await;
    let adopted = ctx.pool().adopt_volume(&what, &n("b")).await;
    adopted.expect("it is still there to be adopted");
}
