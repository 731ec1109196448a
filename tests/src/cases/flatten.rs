//! Flatten: the promises of `flatten_volume`, whether or not there is anything to do.

use super::*;
use volmux::{ErrorKind, Result, Volume};

async fn flatten(ctx: &Ctx<'_>, name: &str) -> Result<Volume> {
    let name = n(name);
    let call = ctx.pool().flatten_volume(&name, Default::default());
    call.await
}

/// Flattens `name`, and asserts that it stays what it is and stands on data of its own.
async fn flattened(ctx: &Ctx<'_>, name: &str) {
    let (before, made) = (ctx.state().await, ctx.volume(name).await);
    for what in ["flattened", "flattened again"] {
        let returned = flatten(ctx, name).await.expect(what);
        for now in [&returned, &ctx.volume(name).await] {
            assert_eq!((&now.name, now.id), (&made.name, made.id), "{what}");
            assert_eq!(now.virtual_size, made.virtual_size, "{what}");
            assert_eq!(now.provisioning, made.provisioning, "{what}");
            assert_eq!(now.created, made.created, "{what}");
            assert_eq!(now.origin, made.origin, "{what}");
        }
        let depth = ctx.volume(name).await.depth;
        assert!(matches!(depth, None | Some(1)), "{what}: {depth:?}");
        assert_eq!(ctx.state().await, before, "{name} {what}");
    }
}

pub(crate) async fn flatten_keeps_content_and_identity(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    flattened(ctx, "a").await;
    ctx.snapshot("a", "s1").await;
    ctx.write("a", BLOCK, pattern(2, BLOCK as usize)).await;
    ctx.snapshot("a", "s2").await;
    ctx.write("a", 4 * BLOCK, pattern(3, BLOCK as usize)).await;
    ctx.clone_of("s1", "c").await;
    ctx.write("c", 2 * BLOCK, pattern(4, BLOCK as usize)).await;
    let (a, s2, c) = (
        ctx.read("a").await,
        ctx.read("s2").await,
        ctx.read("c").await,
    );

    flattened(ctx, "a").await;
    flattened(ctx, "c").await;
    let expected = [("a", &a), ("s1", &data), ("s2", &s2), ("c", &c)];
    for (name, content) in expected {
        assert_same(&ctx.read(name).await, content, name);
    }

    // Nothing reaches the others any more, whoever is written or goes.
    ctx.write("a", 0, pattern(5, MIB as usize)).await;
    ctx.write("c", 0, pattern(6, MIB as usize)).await;
    assert_same(&ctx.read("s1").await, &data, "both are written");
    assert_same(&ctx.read("s2").await, &s2, "both are written");
    ctx.snapshot("a", "s3").await;
    ctx.delete("s1").await;
    ctx.delete("s2").await;
    for (name, seed) in [("a", 5), ("s3", 5), ("c", 6)] {
        assert_same(&ctx.read(name).await, &pattern(seed, MIB as usize), name);
    }
}

pub(crate) async fn flatten_takes_no_snapshot(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    ctx.snapshot("a", "s1").await;
    ctx.write("a", 0, pattern(2, BLOCK as usize)).await;
    ctx.snapshot("a", "s2").await;
    ctx.snapshot("s1", "s3").await;
    let before = ctx.state().await;
    for name in ["s1", "s2", "s3"] {
        let result = flatten(ctx, name).await;
        let help = result.as_ref().err().and_then(|e| e.get("help"));
        assert!(help.is_some(), "it says what to do: {result:?}");
        let kind = ErrorKind::InvalidInput;
        ctx.refused(result, kind, "flatten_volume", name, &before)
            .await;
    }
}
