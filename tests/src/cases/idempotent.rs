//! Clause 2: a repeated call returns what is there, a different one is refused.

use super::*;
use volmux::{ByteSize, CreateOptions, ErrorKind, OriginKind, ResizeOptions, Result, Volume};

pub(crate) async fn c02_create_again_returns_the_same(ctx: &Ctx<'_>) {
    let first = ctx.create("a", MIB).await;
    ctx.write("a", 0, pattern(1, 512)).await;
    let again = ctx.create("a", MIB).await;
    assert_eq!(again.id, first.id);
    assert_eq!(again.created, first.created);
    assert_same(&ctx.read("a").await[..512], &pattern(1, 512), "a");
    let rounded_the_same = ctx.create("a", MIB - ctx.expect.size_unit + 1).await;
    assert_eq!(rounded_the_same.id, first.id);
    assert_eq!(ctx.names().await, ["a"]);
}

pub(crate) async fn c02_create_with_another_size_is_refused(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let before = ctx.state().await;
    for size in [MIB / 2, MIB - ctx.expect.size_unit, MIB + 1, 2 * MIB] {
        let options = ctx.expect.volume(size);
        let result = ctx.pool().create_volume(&n("a"), options).await;
        ctx.refused(
            result,
            ErrorKind::AlreadyExists,
            "create_volume",
            "a",
            &before,
        )
        .await;
    }
}

pub(crate) async fn c02_create_with_another_provisioning_is_refused(ctx: &Ctx<'_>) {
    ctx.filled("thin", MIB, 1).await;
    let thick = CreateOptions::thick(ByteSize::new(MIB));
    let made = ctx.pool().create_volume(&n("thick"), thick).await;
    let again = ctx.pool().create_volume(&n("thick"), thick).await;
    assert_eq!(made.expect("thick").id, again.expect("again").id);
    let before = ctx.state().await;
    let result = ctx.pool().create_volume(&n("thin"), thick).await;
    ctx.refused(
        result,
        ErrorKind::AlreadyExists,
        "create_volume",
        "thin",
        &before,
    )
    .await;
    let thin = CreateOptions::thin(ByteSize::new(MIB));
    let result = ctx.pool().create_volume(&n("thick"), thin).await;
    ctx.refused(
        result,
        ErrorKind::AlreadyExists,
        "create_volume",
        "thick",
        &before,
    )
    .await;
}

/// Snapshot, clone or copy.
async fn derive(ctx: &Ctx<'_>, kind: OriginKind, source: &str, name: &str) -> Result<Volume> {
    let (source, name) = (n(source), n(name));
    match kind {
        OriginKind::Snapshot => {
            let call = ctx
                .pool()
                .snapshot_volume(&source, &name, Default::default());
            call.await
        }
        OriginKind::Clone => {
            let call = ctx.pool().clone_volume(&source, &name, Default::default());
            call.await
        }
        OriginKind::Copy => {
            let call = ctx.pool().copy_volume(&source, &name, Default::default());
            call.await
        }
    }
}

fn op(kind: OriginKind) -> &'static str {
    match kind {
        OriginKind::Snapshot => "snapshot_volume",
        OriginKind::Clone => "clone_volume",
        OriginKind::Copy => "copy_volume",
    }
}

/// What snapshot, clone and copy have in common.
async fn derive_again(ctx: &Ctx<'_>, kind: OriginKind) {
    let data = ctx.filled("a", MIB, 1).await;
    let first = derive(ctx, kind, "a", "d").await.expect("the first");
    ctx.write("a", 0, pattern(2, 8192)).await;
    let again = derive(ctx, kind, "a", "d").await.expect("again");
    assert_eq!(again.id, first.id);
    assert_eq!(again.created, first.created);
    assert_eq!(again.origin, first.origin);
    assert_same(&ctx.read("d").await, &data, "not made anew");

    let renamed = ctx.pool().rename_volume(&n("a"), &n("b")).await;
    renamed.expect("rename");
    let again = derive(ctx, kind, "b", "d").await.expect("by its new name");
    assert_eq!(again.id, first.id);
    ctx.pool()
        .rename_volume(&n("b"), &n("a"))
        .await
        .expect("rename");
    ctx.delete("a").await;
    let again = derive(ctx, kind, "a", "d").await.expect("source is gone");
    assert_eq!(again.id, first.id);
    assert_same(&ctx.read("d").await, &data, "source is gone");
}

/// A taken name, whatever took it, is refused.
async fn derive_otherwise(ctx: &Ctx<'_>, kind: OriginKind) {
    ctx.filled("a", MIB, 1).await;
    ctx.filled("other", MIB, 2).await;
    ctx.create("plain", MIB).await;
    ctx.copy_of("a", "copied").await;
    derive(ctx, kind, "a", "d").await.expect("the first");
    let before = ctx.state().await;
    let op = op(kind);
    let exists = ErrorKind::AlreadyExists;
    let result = derive(ctx, kind, "other", "d").await;
    ctx.refused(result, exists, op, "d", &before).await;
    let result = derive(ctx, kind, "a", "plain").await;
    ctx.refused(result, exists, op, "plain", &before).await;
    if kind != OriginKind::Copy {
        let result = derive(ctx, kind, "a", "copied").await;
        ctx.refused(result, exists, op, "copied", &before).await;
        let result = derive(ctx, OriginKind::Copy, "a", "d").await;
        ctx.refused(result, exists, "copy_volume", "d", &before)
            .await;
    }
    let result = derive(ctx, kind, "missing", "d").await;
    ctx.refused(result, exists, op, "d", &before).await;
    let result = ctx
        .pool()
        .create_volume(&n("d"), ctx.expect.volume(MIB))
        .await;
    ctx.refused(result, exists, "create_volume", "d", &before)
        .await;

    // A new volume in the source's place is another source.
    ctx.delete("a").await;
    ctx.create("a", MIB).await;
    let before = ctx.state().await;
    let result = derive(ctx, kind, "a", "d").await;
    ctx.refused(result, exists, op, "d", &before).await;
}

pub(crate) async fn c02_snapshot_again_returns_the_same(ctx: &Ctx<'_>) {
    derive_again(ctx, OriginKind::Snapshot).await;
}

pub(crate) async fn c02_clone_again_returns_the_same(ctx: &Ctx<'_>) {
    derive_again(ctx, OriginKind::Clone).await;
}

pub(crate) async fn c02_copy_again_returns_the_same(ctx: &Ctx<'_>) {
    derive_again(ctx, OriginKind::Copy).await;
}

pub(crate) async fn c02_snapshot_over_something_else_is_refused(ctx: &Ctx<'_>) {
    derive_otherwise(ctx, OriginKind::Snapshot).await;
}

pub(crate) async fn c02_clone_over_something_else_is_refused(ctx: &Ctx<'_>) {
    derive_otherwise(ctx, OriginKind::Clone).await;
}

pub(crate) async fn c02_copy_over_something_else_is_refused(ctx: &Ctx<'_>) {
    derive_otherwise(ctx, OriginKind::Copy).await;
}

pub(crate) async fn c02_delete_missing_succeeds(ctx: &Ctx<'_>) {
    ctx.create("other", BLOCK).await;
    ctx.delete("missing").await;
    ctx.create("a", BLOCK).await;
    ctx.delete("a").await;
    ctx.delete("a").await;
    assert_eq!(ctx.names().await, ["other"]);
}

pub(crate) async fn c02_resize_to_the_same_size_changes_nothing(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    let before = ctx.state().await;
    for size in [MIB, MIB - ctx.expect.size_unit + 1] {
        let options = ResizeOptions::grow(ByteSize::new(size));
        let resized = ctx.pool().resize_volume(&n("a"), options).await;
        assert_eq!(resized.expect("resize").virtual_size.bytes(), MIB);
    }
    assert_eq!(ctx.state().await, before);
    assert_same(&ctx.read("a").await, &data, "a");
}

pub(crate) async fn c02_rename_to_itself_changes_nothing(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let before = ctx.state().await;
    let renamed = ctx.pool().rename_volume(&n("a"), &n("a")).await;
    assert_eq!(renamed.expect("rename").name.as_str(), "a");
    assert_eq!(ctx.state().await, before);
}

pub(crate) async fn c02_revert_can_be_repeated(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    ctx.snapshot("a", "s").await;
    ctx.write("a", 0, pattern(2, 4096)).await;
    for _ in 0..2 {
        let reverted = ctx
            .pool()
            .revert_volume(&n("a"), &n("s"), Default::default())
            .await;
        reverted.expect("revert");
        assert_same(&ctx.read("a").await, &data, "reverted");
    }
}
