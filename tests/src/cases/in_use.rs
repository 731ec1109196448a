//! Clause 4: snapshots of volumes in use, and that a snapshot never changes.

use super::*;
use volmux::{
    Access, AttachOptions, ByteRange, ByteSize, ErrorKind, Holder, OpenOptions, OriginKind,
    ResizeOptions, Sharing,
};

pub(crate) async fn c04_a_snapshot_in_use_holds_what_was_flushed(ctx: &Ctx<'_>) {
    let mut data = ctx.filled("a", MIB, 1).await.to_vec();
    let device = ctx.writer("a").await;
    for i in 0..8u64 {
        let written = pattern(10 + i, 5000);
        let offset = (i * 100_000) as usize;
        device
            .write_at(offset as u64, written.clone())
            .await
            .expect("write");
        data[offset..offset + written.len()].copy_from_slice(&written);
        device.flush().await.expect("flush");
        let name = format!("s{i}");
        ctx.snapshot("a", &name).await;
        assert_same(&ctx.read(&name).await, &data, &name);
    }
    drop(device);
    assert_same(&ctx.read("a").await, &data, "the volume");
}

pub(crate) async fn c04_later_writes_do_not_show_in_a_snapshot(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    let device = ctx.writer("a").await;
    ctx.snapshot("a", "s").await;
    device
        .write_at(0, pattern(2, MIB as usize))
        .await
        .expect("write");
    assert_same(&ctx.read("s").await, &data, "after a write");
    device.flush().await.expect("flush");
    assert_same(&ctx.read("s").await, &data, "after a flush");
    device
        .discard(ByteRange::new(0, MIB))
        .await
        .expect("discard");
    device.flush().await.expect("flush");
    drop(device);
    assert_same(&ctx.read("s").await, &data, "after a discard");
    assert_zeros(&ctx.read("a").await, "the volume");
}

pub(crate) async fn c04_unflushed_writes_are_whole_or_absent_by_block(ctx: &Ctx<'_>) {
    let old = ctx.filled("a", MIB, 1).await;
    let new = pattern(2, MIB as usize);
    let device = ctx.writer("a").await;
    for start in (0..MIB as usize).step_by(64 << 10) {
        let part = new.slice(start..start + (64 << 10));
        device.write_at(start as u64, part).await.expect("write");
    }
    ctx.snapshot("a", "s").await;
    let found = ctx.read("s").await;
    for (i, block) in found.chunks(512).enumerate() {
        let range = i * 512..i * 512 + 512;
        let one_of_both = *block == old[range.clone()] || *block == new[range];
        assert!(one_of_both, "sector {i} is neither old nor new");
    }
}

pub(crate) async fn c04_a_snapshot_taken_while_writes_run_is_a_moment(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let device = ctx.writer("a").await;
    let writer = tokio::spawn(async move {
        for i in 0..64u64 {
            let written = pattern(50 + i, BLOCK as usize);
            device.write_at(i * BLOCK, written).await.expect("write");
            device.flush().await.expect("flush");
        }
    });
    let mut taken = 0;
    loop {
        let last = writer.is_finished();
        let name = format!("s{taken}");
        ctx.snapshot("a", &name).await;
        taken += 1;
        let found = ctx.read(&name).await;
        // Each write was flushed before the next began, so those that show are the first ones.
        let shows = |i: u64| {
            let range = (i * BLOCK) as usize..((i + 1) * BLOCK) as usize;
            found[range] == pattern(50 + i, BLOCK as usize)
        };
        let first_missing = (0..64).find(|&i| !shows(i)).unwrap_or(64);
        assert!(
            (first_missing..64).all(|i| !shows(i)),
            "write {first_missing} is missing and a later one shows"
        );
        if last {
            assert_eq!(first_missing, 64, "in the end all are there");
            break;
        }
    }
    writer.await.expect("writer");
}

pub(crate) async fn c04_a_clone_of_a_volume_in_use_holds_what_was_flushed(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let device = ctx.writer("a").await;
    device
        .write_at(4000, pattern(2, 9000))
        .await
        .expect("write");
    device.flush().await.expect("flush");
    let data = ctx.read("a").await;
    ctx.clone_of("a", "c").await;
    ctx.copy_of("a", "k").await;
    device
        .write_at(0, pattern(3, MIB as usize))
        .await
        .expect("write");
    for name in ["c", "k"] {
        assert_same(&ctx.read(name).await, &data, name);
    }
}

pub(crate) async fn c04_a_snapshot_is_seen_by_another_handle(ctx: &Ctx<'_>) {
    let other = ctx.other_handle().await;
    ctx.filled("a", MIB, 1).await;
    let device = ctx.writer("a").await;
    device.write_at(0, pattern(2, 4096)).await.expect("write");
    device.flush().await.expect("flush");
    let data = ctx.read("a").await;
    ctx.snapshot("a", "s").await;
    device.write_at(0, pattern(3, 4096)).await.expect("write");
    assert_same(&read_all(other.as_ref(), &n("s")).await, &data, "there");
}

pub(crate) async fn c04_a_snapshot_is_read_only(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let snapshot = ctx.snapshot("a", "s").await;
    assert!(snapshot.is_snapshot());
    ctx.snapshot("s", "ss").await;
    let before = ctx.state().await;
    let kind = ErrorKind::InvalidInput;

    for sharing in [Sharing::Exclusive, Sharing::Shared] {
        let options = OpenOptions {
            sharing,
            ..OpenOptions::read_write()
        };
        let result = ctx.open("s", options).await;
        let help = result.as_ref().err().and_then(|e| e.get("help"));
        assert!(help.is_some(), "it says what to do: {result:?}");
        ctx.refused(result, kind, "open_volume", "s", &before).await;
    }
    for size in [MIB / 2, 2 * MIB] {
        let options = ResizeOptions {
            size: ByteSize::new(size),
            allow_shrink: true,
        };
        let result = ctx.pool().resize_volume(&n("s"), options).await;
        ctx.refused(result, kind, "resize_volume", "s", &before)
            .await;
    }
    let result = ctx
        .pool()
        .revert_volume(&n("s"), &n("ss"), Default::default())
        .await;
    ctx.refused(result, kind, "revert_volume", "s", &before)
        .await;
    let reader = ctx.reader("s").await;
    let result = reader.write_at(0, pattern(2, 512)).await;
    ctx.refused(result, kind, "write_at", "s", &before).await;
}

pub(crate) async fn c04_a_snapshot_cannot_be_attached_for_writing(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    ctx.snapshot("a", "s").await;
    let before = ctx.state().await;
    let options = |access| AttachOptions {
        holder: Holder::new("iqn.2026-11.org.volmux:host-1").expect("holder"),
        access,
        sharing: Sharing::Exclusive,
    };
    let result = ctx
        .pool()
        .attach_volume(&n("s"), options(Access::ReadWrite))
        .await;
    ctx.refused(
        result,
        ErrorKind::InvalidInput,
        "attach_volume",
        "s",
        &before,
    )
    .await;
    let attached = ctx
        .pool()
        .attach_volume(&n("s"), options(Access::ReadOnly))
        .await;
    assert_eq!(attached.expect("attach").access, Access::ReadOnly);
    let holder = Holder::new("iqn.2026-11.org.volmux:host-1").expect("holder");
    let detached = ctx.pool().detach_volume(&n("s"), &holder).await;
    detached.expect("detach");
}

pub(crate) async fn c04_a_snapshot_survives_all_that_happens_to_its_source(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    let made = ctx.snapshot("a", "s").await;
    let unchanged = async |what: &str| {
        assert_same(&ctx.read("s").await, &data, what);
        let now = ctx.volume("s").await;
        assert_eq!((now.id, now.created), (made.id, made.created), "{what}");
        assert_eq!(now.origin, made.origin, "{what}");
        assert_eq!(now.virtual_size, made.virtual_size, "{what}");
    };
    ctx.write("a", 0, pattern(2, MIB as usize)).await;
    unchanged("source overwritten").await;
    let options = ResizeOptions::grow(ByteSize::new(2 * MIB));
    let resized = ctx.pool().resize_volume(&n("a"), options).await;
    resized.expect("grow");
    unchanged("source grown").await;
    let renamed = ctx.pool().rename_volume(&n("a"), &n("b")).await;
    renamed.expect("rename");
    unchanged("source renamed").await;
    ctx.clone_of("s", "c").await;
    ctx.write("c", 0, pattern(3, MIB as usize)).await;
    unchanged("clone overwritten").await;
    ctx.delete("b").await;
    unchanged("source deleted").await;
    ctx.filled("a", MIB, 4).await;
    unchanged("another volume in the source's place").await;
    let origin = made.origin.as_ref().expect("origin");
    assert_eq!(origin.kind, OriginKind::Snapshot);
}
