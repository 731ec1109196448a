//! Clause 10: after a dropped future, calling again converges.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use super::retried::exclusive;
use super::*;
use volmux::{
    ByteRange, ByteSize, CreateOptions, ErrorKind, OpenOptions, PoolExt, ResizeOptions, Result,
};

/// Each operation is dropped after 0, 1, ... up to this many polls. Work that goes on in another
/// thread after the first poll is caught in whatever it happens to do.
const MOST_POLLS: usize = 6;

/// Polls `future` at most `polls` times and drops it then.
pub(crate) async fn cut<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Calls again as long as the failure is a passing one: the dropped call may still hold what the
/// new one needs, for as long as it takes to notice.
async fn converge<T, F>(mut call: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    for _ in 0..500 {
        match call().await {
            Err(error) if error.is_retryable() => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            done => return done,
        }
    }
    call().await
}

pub(crate) async fn c10_dropped_creates_converge(ctx: &Ctx<'_>) {
    for polls in 0..=MOST_POLLS {
        for thick in [false, true] {
            let name = n(&format!("a{polls}{thick}"));
            let size = ByteSize::new(MIB);
            let options = if thick && ctx.expect.capabilities.thick != volmux::Support::None {
                CreateOptions::thick(size)
            } else {
                ctx.expect.volume(MIB)
            };
            cut(polls, ctx.pool().create_volume(&name, options)).await;
            let made = converge(|| ctx.pool().create_volume(&name, options)).await;
            let made = made.expect("create again");
            assert_eq!(made.provisioning, options.provisioning);
            assert_zeros(&ctx.read(name.as_str()).await, "a new volume");
            assert_eq!(ctx.volume(name.as_str()).await.id, made.id);
        }
    }
}

pub(crate) async fn c10_dropped_snapshots_converge(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    for polls in 0..=MOST_POLLS {
        let name = n(&format!("d{polls}"));
        let source = n("a");
        let call = || {
            ctx.pool()
                .snapshot_volume(&source, &name, Default::default())
        };
        cut(polls, call()).await;
        let made = converge(call).await.expect("snapshot again");
        assert!(made.is_snapshot());
        assert_same(&ctx.read(name.as_str()).await, &data, name.as_str());
    }
    assert_same(&ctx.read("a").await, &data, "the source");
}

pub(crate) async fn c10_dropped_clones_converge(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    for polls in 0..=MOST_POLLS {
        let name = n(&format!("d{polls}"));
        let source = n("a");
        let call = || ctx.pool().clone_volume(&source, &name, Default::default());
        cut(polls, call()).await;
        converge(call).await.expect("clone again");
        assert_same(&ctx.read(name.as_str()).await, &data, name.as_str());
    }
    assert_same(&ctx.read("a").await, &data, "the source");
}

pub(crate) async fn c10_dropped_copies_converge(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", 4 * MIB, 1).await;
    for polls in 0..=MOST_POLLS {
        let name = n(&format!("d{polls}"));
        let source = n("a");
        let call = || ctx.pool().copy_volume(&source, &name, Default::default());
        cut(polls, call()).await;
        converge(call).await.expect("copy again");
        assert_same(&ctx.read(name.as_str()).await, &data, name.as_str());
        ctx.delete(name.as_str()).await;
    }
    assert_eq!(ctx.names().await, ["a"]);
}

pub(crate) async fn c10_dropped_reverts_converge(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    ctx.snapshot("a", "s").await;
    for polls in 0..=MOST_POLLS {
        let device = converge(|| ctx.open("a", OpenOptions::read_write())).await;
        let device = device.expect("open");
        let written = device.write_at(0, pattern(2, MIB as usize)).await;
        written.expect("write");
        drop(device);
        let (name, snapshot) = (n("a"), n("s"));
        let call = || {
            ctx.pool()
                .revert_volume(&name, &snapshot, Default::default())
        };
        cut(polls, call()).await;
        converge(call).await.expect("revert again");
        assert_same(&ctx.read("a").await, &data, "reverted");
    }
    assert_same(&ctx.read("s").await, &data, "the snapshot");
}

pub(crate) async fn c10_dropped_resizes_converge(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    for polls in 0..=MOST_POLLS {
        for size in [2 * MIB, MIB] {
            let options = ResizeOptions {
                size: ByteSize::new(size),
                allow_shrink: true,
            };
            let name = n("a");
            let call = || ctx.pool().resize_volume(&name, options);
            cut(polls, call()).await;
            let made = converge(call).await.expect("resize again");
            assert_eq!(made.virtual_size.bytes(), size);
            let found = ctx.read("a").await;
            assert_same(&found[..MIB as usize], &data, "the old part");
            assert_zeros(&found[MIB as usize..], "the new part");
        }
    }
}

pub(crate) async fn c10_dropped_renames_converge(ctx: &Ctx<'_>) {
    let data = ctx.filled("a0", MIB, 1).await;
    let id = ctx.volume("a0").await.id;
    for polls in 0..=MOST_POLLS {
        let (from, to) = (format!("a{polls}"), format!("a{}", polls + 1));
        let (source, target) = (n(&from), n(&to));
        let call = || ctx.pool().rename_volume(&source, &target);
        cut(polls, call()).await;
        match converge(call).await {
            Ok(renamed) => assert_eq!(renamed.id, id),
            // The dropped call has done it; that is documented.
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}"),
        }
        assert_eq!(ctx.names().await, std::slice::from_ref(&to));
        assert_eq!(ctx.volume(&to).await.id, id);
        assert_same(&ctx.read(&to).await, &data, &to);
    }
}

pub(crate) async fn c10_dropped_deletes_converge(ctx: &Ctx<'_>) {
    for polls in 0..=MOST_POLLS {
        ctx.filled("a", MIB, 1).await;
        let name = n("a");
        cut(polls, ctx.pool().delete_volume(&name)).await;
        let deleted = converge(|| ctx.pool().delete_volume(&name)).await;
        deleted.expect("delete again");
        assert!(ctx.names().await.is_empty());
        // A late part of the dropped call must not hit the next volume of that name.
        ctx.filled("a", MIB, 2).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_same(&ctx.read("a").await, &pattern(2, MIB as usize), "the next");
        ctx.delete("a").await;
    }
}

pub(crate) async fn c10_dropped_adoptions_converge(ctx: &Ctx<'_>) {
    for polls in 0..=MOST_POLLS {
        let data = pattern(polls as u64, MIB as usize);
        let what = ctx.place_foreign(&data).await;
        let name = n(&format!("a{polls}"));
        let call = || ctx.pool().adopt_volume(&what, &name);
        cut(polls, call()).await;
        match converge(call).await {
            Ok(adopted) => assert_eq!(adopted.name, name),
            // As with rename: done by the dropped call, and the source is gone.
            Err(error) => {
                let kinds = [ErrorKind::NotFound, ErrorKind::AlreadyExists];
                assert!(kinds.contains(&error.kind()), "{error:?}");
            }
        }
        assert_same(&ctx.read(name.as_str()).await, &data, name.as_str());
    }
}

pub(crate) async fn c10_dropped_opens_leave_the_volume_free(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let name = n("a");
    for polls in 0..=MOST_POLLS {
        let options = OpenOptions::read_write();
        drop(cut(polls, ctx.pool().open_volume(&name, options)).await);
        let opened = converge(|| ctx.pool().open_volume(&name, options)).await;
        drop(opened.expect("open again"));
    }
    let deleted = converge(|| ctx.pool().delete_volume(&name)).await;
    deleted.expect("nobody holds it");
}

pub(crate) async fn c10_dropped_attaches_converge(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let name = n("a");
    let options = exclusive("iqn.2026-11.org.volmux:host-1");
    for polls in 0..=MOST_POLLS {
        cut(polls, ctx.pool().attach_volume(&name, options.clone())).await;
        let attached = converge(|| ctx.pool().attach_volume(&name, options.clone())).await;
        assert_eq!(attached.expect("attach again").volume, name);
        cut(polls, ctx.pool().detach_volume(&name, &options.holder)).await;
        let detached = converge(|| ctx.pool().detach_volume(&name, &options.holder)).await;
        detached.expect("detach again");
        drop(ctx.writer("a").await);
    }
}

pub(crate) async fn c10_dropped_looks_change_nothing(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    ctx.filled("b", MIB, 2).await;
    let before = ctx.state().await;
    let name = n("a");
    for polls in 0..=MOST_POLLS {
        cut(polls, ctx.pool().usage()).await;
        cut(polls, ctx.pool().volume(&name)).await;
        cut(polls, ctx.pool().volumes()).await;
        cut(
            polls,
            ctx.pool().audit(volmux::AuditOptions { repair: true }),
        )
        .await;
        cut(polls, ctx.extents("a", volmux::ExtentQuery::allocated())).await;
        let reader = ctx.reader("a").await;
        cut(polls, reader.read_at(0, MIB as usize)).await;
        let found = reader.read_at(0, MIB as usize).await.expect("read again");
        assert_same(&found, &data, "read again");
        cut(polls, reader.refresh()).await;
        assert_eq!(reader.refresh().await.expect("refresh again"), MIB);
    }
    assert_eq!(ctx.state().await, before);
}

pub(crate) async fn c10_a_dropped_write_never_overtakes_a_later_one(ctx: &Ctx<'_>) {
    ctx.create("a", 4 * MIB).await;
    let device = ctx.writer("a").await;
    for round in 0..60usize {
        let polls = 1 + round % 3;
        let offset = (round * 4096) as u64;
        cut(polls, device.write_at(offset, pattern(1, MIB as usize))).await;
        let later = pattern(1000 + round as u64, 64 << 10);
        device
            .write_at(offset, later)
            .await
            .expect("the later write");
        let found = device.read_at(offset, 64 << 10).await.expect("read");
        assert_same(&found, &pattern(1000 + round as u64, 64 << 10), "at once");
    }
    device.flush().await.expect("flush");
    tokio::time::sleep(Duration::from_millis(50)).await;
    for round in 0..60usize {
        let found = device.read_at((round * 4096) as u64, 4096).await;
        let expected = pattern(1000 + round as u64, 64 << 10);
        assert_same(&found.expect("read"), &expected[..4096], "in the end");
    }
}

pub(crate) async fn c10_a_dropped_discard_never_overtakes_a_later_write(ctx: &Ctx<'_>) {
    let size = 4 * MIB;
    ctx.filled("a", size, 1).await;
    let device = ctx.writer("a").await;
    for round in 0..30u64 {
        let polls = 3 - (round % 3) as usize;
        cut(polls, device.discard(ByteRange::new(0, size))).await;
        let later = pattern(1000 + round, MIB as usize);
        device.write_at(0, later.clone()).await.expect("write");
        let found = device.read_at(0, MIB as usize).await.expect("read");
        assert_same(&found, &later, "at once");
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let found = device.read_at(0, MIB as usize).await.expect("read");
    assert_same(&found, &pattern(1029, MIB as usize), "in the end");
}

pub(crate) async fn c10_a_dropped_write_does_not_reach_the_next_holder(ctx: &Ctx<'_>) {
    ctx.create("a", MIB).await;
    for round in 0..20u64 {
        let polls = 1 + (round % 3) as usize;
        let device = converge(|| ctx.open("a", OpenOptions::read_write())).await;
        let device = device.expect("open");
        cut(polls, device.write_at(0, pattern(1, MIB as usize))).await;
        drop(device);
        let next = converge(|| ctx.open("a", OpenOptions::read_write())).await;
        let next = next.expect("the next holder");
        let data = pattern(100 + round, MIB as usize);
        next.write_at(0, data.clone()).await.expect("write");
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_same(
            &read_device(next.as_ref()).await,
            &data,
            "the next holder's",
        );
    }
}
