//! Revert: clauses 3 and 6, and the promises of `revert_volume`.

use super::*;
use volmux::{ByteSize, Control, ErrorKind, ResizeOptions, Result, RevertOptions, Volume};

async fn revert(ctx: &Ctx<'_>, name: &str, snapshot: &str) -> Result<Volume> {
    let (name, snapshot) = (n(name), n(snapshot));
    let call = ctx
        .pool()
        .revert_volume(&name, &snapshot, Default::default());
    call.await
}

pub(crate) async fn revert_puts_content_and_size_back(ctx: &Ctx<'_>) {
    let small = ctx.filled("a", MIB, 1).await;
    let made = ctx.volume("a").await;
    ctx.snapshot("a", "small").await;
    let options = ResizeOptions::grow(ByteSize::new(2 * MIB));
    let grown = ctx.pool().resize_volume(&n("a"), options).await;
    grown.expect("grow");
    ctx.write("a", 0, pattern(2, 2 * MIB as usize)).await;
    let large = ctx.read("a").await;
    ctx.snapshot("a", "large").await;
    for (snapshot, content) in [("small", &small), ("large", &large), ("small", &small)] {
        let reverted = revert(ctx, "a", snapshot).await.expect("revert");
        assert_eq!(reverted.virtual_size.bytes(), content.len() as u64);
        let now = ctx.volume("a").await;
        assert_eq!((now.id, now.created), (made.id, made.created));
        assert_eq!(now.origin, None);
        assert_same(&ctx.read("a").await, content, snapshot);
    }
    ctx.write("a", 0, pattern(3, 4096)).await;
    assert_same(&ctx.read("small").await, &small, "the snapshot stays");
    assert_same(&ctx.read("large").await, &large, "the later one stays too");
}

pub(crate) async fn revert_harms_no_snapshot_and_no_clone(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    ctx.snapshot("a", "s1").await;
    ctx.clone_of("s1", "c1").await;
    ctx.write("a", 0, pattern(2, MIB as usize)).await;
    ctx.snapshot("a", "s2").await;
    ctx.clone_of("a", "c2").await;
    revert(ctx, "a", "s1").await.expect("revert");
    ctx.filled("new", 2 * MIB, 9).await;
    for name in ["a", "s1", "c1"] {
        assert_same(&ctx.read(name).await, &data, name);
    }
    for name in ["s2", "c2"] {
        assert_same(&ctx.read(name).await, &pattern(2, MIB as usize), name);
    }
    // The later snapshot can still be used for going forwards again.
    revert(ctx, "a", "s2").await.expect("revert forwards");
    assert_same(&ctx.read("a").await, &pattern(2, MIB as usize), "forwards");
    ctx.delete("s1").await;
    ctx.delete("s2").await;
    assert_same(&ctx.read("a").await, &pattern(2, MIB as usize), "alone");
}

pub(crate) async fn revert_takes_only_the_volumes_own_snapshots(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    ctx.filled("other", MIB, 2).await;
    ctx.snapshot("a", "s").await;
    ctx.snapshot("s", "ss").await;
    ctx.snapshot("other", "os").await;
    ctx.clone_of("a", "c").await;
    ctx.copy_of("a", "k").await;
    let before = ctx.state().await;
    for wrong in ["os", "ss", "c", "k", "other", "a"] {
        let result = revert(ctx, "a", wrong).await;
        ctx.refused(
            result,
            ErrorKind::InvalidInput,
            "revert_volume",
            "a",
            &before,
        )
        .await;
    }
    let result = revert(ctx, "a", "missing").await;
    ctx.refused(
        result,
        ErrorKind::NotFound,
        "revert_volume",
        "missing",
        &before,
    )
    .await;
    let result = revert(ctx, "missing", "s").await;
    ctx.refused(
        result,
        ErrorKind::NotFound,
        "revert_volume",
        "missing",
        &before,
    )
    .await;
}

pub(crate) async fn revert_knows_a_snapshot_by_identity_and_not_by_name(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    ctx.snapshot("a", "s").await;
    let renamed = ctx.pool().rename_volume(&n("a"), &n("b")).await;
    renamed.expect("rename");
    ctx.filled("a", MIB, 2).await;
    let before = ctx.state().await;
    let result = revert(ctx, "a", "s").await;
    ctx.refused(
        result,
        ErrorKind::InvalidInput,
        "revert_volume",
        "a",
        &before,
    )
    .await;
    ctx.write("b", 0, pattern(3, 4096)).await;
    revert(ctx, "b", "s").await.expect("by its new name");
    assert_same(&ctx.read("b").await, &data, "b");
    assert_same(&ctx.read("a").await, &pattern(2, MIB as usize), "a");
}

pub(crate) async fn revert_of_a_volume_in_use_is_busy(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    ctx.snapshot("a", "s").await;
    ctx.write("a", 0, pattern(2, 4096)).await;
    let before = ctx.state().await;
    for writing in [true, false] {
        let device = if writing {
            ctx.writer("a").await
        } else {
            ctx.reader("a").await
        };
        let result = revert(ctx, "a", "s").await;
        ctx.refused(result, ErrorKind::Busy, "revert_volume", "a", &before)
            .await;
        drop(device);
    }
    let reader = ctx.reader("s").await;
    revert(ctx, "a", "s")
        .await
        .expect("only the snapshot is open");
    drop(reader);
    assert_same(&ctx.read("a").await, &data, "a");
}

pub(crate) async fn revert_that_is_cancelled_changes_nothing(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    ctx.snapshot("a", "s").await;
    ctx.write("a", 0, pattern(2, MIB as usize)).await;
    let before = ctx.state().await;
    let options = RevertOptions {
        control: Control::new(),
    };
    options.control.cancel();
    let result = ctx.pool().revert_volume(&n("a"), &n("s"), options).await;
    ctx.refused(result, ErrorKind::TimedOut, "revert_volume", "a", &before)
        .await;
    revert(ctx, "a", "s")
        .await
        .expect("calling again converges");
}
