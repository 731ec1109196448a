//! Clause 9: one writer, and what "in use" keeps others from.

use super::retried::{attach, detach, exclusive};
use super::*;
use volmux::{
    Access, AttachOptions, ByteRange, ByteSize, ErrorKind, OpenOptions, ResizeOptions, Sharing,
    Support, ZeroOptions,
};

const SHARED: OpenOptions = OpenOptions {
    access: Access::ReadWrite,
    sharing: Sharing::Shared,
    take_over: false,
};

pub(crate) async fn c09_a_second_writer_is_refused(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let first = ctx.writer("a").await;
    let other = ctx.other_handle().await;
    let before = ctx.state().await;
    for options in [OpenOptions::read_write(), SHARED] {
        let result = ctx.open("a", options).await;
        ctx.refused(result, ErrorKind::Busy, "open_volume", "a", &before)
            .await;
        let result = other.open_volume(&n("a"), options).await;
        ctx.refused(result, ErrorKind::Busy, "open_volume", "a", &before)
            .await;
    }
    first
        .write_at(0, pattern(2, 512))
        .await
        .expect("the first goes on");
    drop(first);
    drop(ctx.writer("a").await);
    let there = other.open_volume(&n("a"), OpenOptions::read_write()).await;
    let there = there.expect("free again, there too");
    let result = ctx.open("a", OpenOptions::read_write()).await;
    assert_error(result, ErrorKind::Busy, "open_volume", "a");
    drop(there);
    drop(ctx.writer("a").await);
}

pub(crate) async fn c09_readers_go_together_with_a_writer(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    let other = ctx.other_handle().await;
    let early = ctx.reader("a").await;
    let writer = ctx.writer("a").await;
    let late = ctx.reader("a").await;
    let there = other.open_volume(&n("a"), OpenOptions::read_only()).await;
    let there = there.expect("a reader elsewhere");
    writer.write_at(0, pattern(2, 512)).await.expect("write");
    writer.flush().await.expect("flush");
    for reader in [early, late, there] {
        let found = read_device(reader.as_ref()).await;
        assert_same(&found[..512], &pattern(2, 512), "what was flushed");
        assert_same(&found[512..], &data[512..], "the rest");
    }
}

pub(crate) async fn c09_a_reader_cannot_write(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let before = ctx.state().await;
    let reader = ctx.reader("a").await;
    assert_eq!(reader.access(), Access::ReadOnly);
    let range = ByteRange::new(0, 512);
    let kind = ErrorKind::InvalidInput;
    let result = reader.write_at(0, pattern(2, 512)).await;
    ctx.refused(result, kind, "write_at", "a", &before).await;
    let result = reader.discard(range).await;
    ctx.refused(result, kind, "discard", "a", &before).await;
    for may_discard in [false, true] {
        let result = reader
            .write_zeroes(
                range,
                ZeroOptions {
                    may_discard,
                    ..ZeroOptions::default()
                },
            )
            .await;
        ctx.refused(result, kind, "write_zeroes", "a", &before)
            .await;
    }
}

pub(crate) async fn c09_shared_writers_go_together(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let other = ctx.other_handle().await;
    let first = ctx.open("a", SHARED).await.expect("shared");
    let second = ctx.open("a", SHARED).await.expect("shared too");
    let third = other.open_volume(&n("a"), SHARED).await;
    let third = third.expect("shared elsewhere");
    let writers = [first, second, third];
    for (i, writer) in writers.iter().enumerate() {
        let data = pattern(10 + i as u64, 512);
        writer.write_at(i as u64 * 512, data).await.expect("write");
        writer.flush().await.expect("flush");
    }
    for reader in &writers {
        for i in 0..3u64 {
            let found = reader.read_at(i * 512, 512).await.expect("read");
            assert_same(&found, &pattern(10 + i, 512), "of each writer");
        }
    }
    let [first, second, third] = writers;
    for closed in [Some(second), Some(third), None] {
        let result = ctx.open("a", OpenOptions::read_write()).await;
        assert_error(result, ErrorKind::Busy, "open_volume", "a");
        drop(closed);
    }
    drop(first);
    drop(ctx.writer("a").await);
}

pub(crate) async fn c09_a_closed_handle_frees_the_volume(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    for _ in 0..3 {
        let writer = ctx.writer("a").await;
        let same = writer.clone();
        drop(writer);
        let result = ctx.open("a", OpenOptions::read_write()).await;
        assert_error(result, ErrorKind::Busy, "open_volume", "a");
        drop(same);
    }
    drop(ctx.reader("a").await);
    ctx.delete("a").await;
}

pub(crate) async fn c09_a_volume_in_use_cannot_be_deleted(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let other = ctx.other_handle().await;
    for writing in [true, false] {
        let device = if writing {
            ctx.writer("a").await
        } else {
            ctx.reader("a").await
        };
        let before = ctx.state().await;
        for pool in [ctx.pool(), other.as_ref()] {
            let result = pool.delete_volume(&n("a")).await;
            ctx.refused(result, ErrorKind::Busy, "delete_volume", "a", &before)
                .await;
        }
        drop(device);
    }
    ctx.delete("a").await;
    assert!(ctx.names().await.is_empty());
}

pub(crate) async fn c09_a_volume_in_use_cannot_be_shrunk(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let before = ctx.state().await;
    let options = ResizeOptions {
        size: ByteSize::new(MIB / 2),
        allow_shrink: true,
    };
    for writing in [true, false] {
        let device = if writing {
            ctx.writer("a").await
        } else {
            ctx.reader("a").await
        };
        let result = ctx.pool().resize_volume(&n("a"), options).await;
        ctx.refused(result, ErrorKind::Busy, "resize_volume", "a", &before)
            .await;
        assert_eq!(device.size(), MIB);
    }
    let resized = ctx.pool().resize_volume(&n("a"), options).await;
    resized.expect("shrink once it is free");
}

pub(crate) async fn c09_attached_excludes_writers(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    ctx.snapshot("a", "s").await;
    attach(ctx, "a", "iqn.2026-11.org.volmux:host-1")
        .await
        .expect("attach");
    let before = ctx.state().await;
    let busy = ErrorKind::Busy;
    let result = ctx.open("a", OpenOptions::read_write()).await;
    let text = format!("{result:?}");
    assert!(
        text.contains("iqn.2026-11.org.volmux:host-1"),
        "it names the holder: {text}"
    );
    ctx.refused(result, busy, "open_volume", "a", &before).await;
    let result = attach(ctx, "a", "iqn.2026-11.org.volmux:host-2").await;
    ctx.refused(result, busy, "attach_volume", "a", &before)
        .await;
    let result = ctx.pool().delete_volume(&n("a")).await;
    ctx.refused(result, busy, "delete_volume", "a", &before)
        .await;
    let result = ctx
        .pool()
        .revert_volume(&n("a"), &n("s"), Default::default())
        .await;
    ctx.refused(result, busy, "revert_volume", "a", &before)
        .await;
    let options = ResizeOptions {
        size: ByteSize::new(MIB / 2),
        allow_shrink: true,
    };
    let result = ctx.pool().resize_volume(&n("a"), options).await;
    ctx.refused(result, busy, "resize_volume", "a", &before)
        .await;
    drop(ctx.reader("a").await);
    detach(ctx, "a", "iqn.2026-11.org.volmux:host-1").await;
    drop(ctx.writer("a").await);
}

pub(crate) async fn c09_a_writer_excludes_attachments(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let writer = ctx.writer("a").await;
    let before = ctx.state().await;
    for sharing in [Sharing::Exclusive, Sharing::Shared] {
        let options = AttachOptions {
            sharing,
            ..exclusive("iqn.2026-11.org.volmux:host-1")
        };
        let result = ctx.pool().attach_volume(&n("a"), options).await;
        ctx.refused(result, ErrorKind::Busy, "attach_volume", "a", &before)
            .await;
    }
    drop(writer);
    attach(ctx, "a", "iqn.2026-11.org.volmux:host-1")
        .await
        .expect("free again");
    detach(ctx, "a", "iqn.2026-11.org.volmux:host-1").await;
}

pub(crate) async fn c09_read_only_attachments_go_with_a_writer(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let writer = ctx.writer("a").await;
    let reading = |host| AttachOptions {
        access: Access::ReadOnly,
        ..exclusive(host)
    };
    for host in [
        "iqn.2026-11.org.volmux:host-1",
        "iqn.2026-11.org.volmux:host-2",
    ] {
        let attached = ctx.pool().attach_volume(&n("a"), reading(host)).await;
        assert_eq!(attached.expect("beside a writer").access, Access::ReadOnly);
    }
    writer
        .write_at(0, pattern(2, 512))
        .await
        .expect("the writer goes on");
    drop(writer);
    drop(ctx.writer("a").await);
    for host in [
        "iqn.2026-11.org.volmux:host-1",
        "iqn.2026-11.org.volmux:host-2",
    ] {
        let before = ctx.state().await;
        let result = ctx.pool().delete_volume(&n("a")).await;
        ctx.refused(result, ErrorKind::Busy, "delete_volume", "a", &before)
            .await;
        detach(ctx, "a", host).await;
    }
    ctx.delete("a").await;
}

pub(crate) async fn c09_attachments_can_be_shared(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let shared = |host| AttachOptions {
        sharing: Sharing::Shared,
        ..exclusive(host)
    };
    for host in [
        "iqn.2026-11.org.volmux:host-1",
        "iqn.2026-11.org.volmux:host-2",
    ] {
        let attached = ctx.pool().attach_volume(&n("a"), shared(host)).await;
        assert_eq!(attached.expect("shared").holder.as_str(), host);
    }
    let result = attach(ctx, "a", "iqn.2026-11.org.volmux:host-3").await;
    assert_error(result, ErrorKind::Busy, "attach_volume", "a");
    detach(ctx, "a", "iqn.2026-11.org.volmux:host-1").await;
    let result = attach(ctx, "a", "iqn.2026-11.org.volmux:host-3").await;
    assert_error(result, ErrorKind::Busy, "attach_volume", "a");
    detach(ctx, "a", "iqn.2026-11.org.volmux:host-2").await;
    attach(ctx, "a", "iqn.2026-11.org.volmux:host-3")
        .await
        .expect("free again");
    detach(ctx, "a", "iqn.2026-11.org.volmux:host-3").await;
}

pub(crate) async fn c09_taking_over_fences_the_old_writer(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let old = ctx.writer("a").await;
    old.write_at(0, pattern(2, 512)).await.expect("write");
    old.flush().await.expect("flush");
    let options = OpenOptions {
        take_over: true,
        ..OpenOptions::read_write()
    };
    let new = ctx.open("a", options).await.expect("take over");
    let before = ctx.state().await;
    let kind = ErrorKind::Fenced;
    let range = ByteRange::new(0, 512);
    let result = old.write_at(0, pattern(3, 512)).await;
    ctx.refused(result, kind, "write_at", "a", &before).await;
    ctx.refused(old.flush().await, kind, "flush", "a", &before)
        .await;
    let result = old.discard(range).await;
    ctx.refused(result, kind, "discard", "a", &before).await;
    let result = old.write_zeroes(range, ZeroOptions::default()).await;
    ctx.refused(result, kind, "write_zeroes", "a", &before)
        .await;
    let result = old.read_at(0, 512).await;
    ctx.refused(result, kind, "read_at", "a", &before).await;
    ctx.refused(old.refresh().await, kind, "refresh", "a", &before)
        .await;
    new.write_at(0, pattern(4, 512))
        .await
        .expect("the new one writes");
    drop(old);
    let result = ctx.open("a", OpenOptions::read_write()).await;
    assert_error(result, ErrorKind::Busy, "open_volume", "a");
    drop(new);
    let again = ctx.open("a", options).await;
    drop(again.expect("taking over from nobody"));
    assert_same(
        &ctx.read("a").await[..512],
        &pattern(4, 512),
        "the new one's",
    );
}

pub(crate) async fn c09_taking_over_without_fencing_is_refused(ctx: &Ctx<'_>) {
    let supported = ctx.expect.capabilities.fencing != Support::None;
    ctx.filled("a", MIB, 1).await;
    let old = ctx.writer("a").await;
    let before = ctx.state().await;
    let options = OpenOptions {
        take_over: true,
        ..OpenOptions::read_write()
    };
    let result = ctx.open("a", options).await;
    if supported {
        drop(result.expect("take over"));
        let fenced = old.flush().await;
        assert_error(fenced, ErrorKind::Fenced, "flush", "a");
    } else {
        ctx.refused(result, ErrorKind::Unsupported, "open_volume", "a", &before)
            .await;
        old.write_at(0, pattern(2, 512))
            .await
            .expect("the old one goes on");
    }
}
