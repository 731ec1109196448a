//! Many callers at once: exactly one wins where only one can, and the pool stays whole.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use futures::future::join_all;
use volmux::{ErrorKind, OpenOptions, Pool, Result};

const CALLERS: u64 = 16;

/// Runs `call` in that many tasks, half of them on another handle, and returns what each got.
async fn at_once<T, F>(ctx: &Ctx<'_>, call: impl Fn(Arc<dyn Pool>, u64) -> F) -> Vec<Result<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let other = ctx.other_handle().await;
    let tasks: Vec<_> = (0..CALLERS)
        .map(|i| {
            let pool = if i % 2 == 0 {
                ctx.shared_pool()
            } else {
                other.clone()
            };
            tokio::spawn(call(pool, i))
        })
        .collect();
    let done = join_all(tasks).await;
    done.into_iter().map(|d| d.expect("a caller")).collect()
}

/// The results that succeeded; the others must all be of `kind`.
fn winners<T: std::fmt::Debug>(results: Vec<Result<T>>, kind: ErrorKind) -> Vec<T> {
    let won = results.into_iter().filter_map(|result| match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert_eq!(error.kind(), kind, "{error:?}");
            None
        }
    });
    won.collect()
}

pub(crate) async fn concurrent_same_creates_make_one_volume(ctx: &Ctx<'_>) {
    let options = ctx.expect.volume(MIB);
    let results = at_once(ctx, |pool, _| async move {
        pool.create_volume(&n("a"), options).await
    })
    .await;
    let ids: BTreeSet<_> = results
        .into_iter()
        .map(|made| made.expect("the same call succeeds").id)
        .collect();
    assert_eq!(ids.len(), 1, "one volume");
    assert_eq!(ids.first(), Some(&ctx.volume("a").await.id));
}

pub(crate) async fn concurrent_different_creates_have_one_winner(ctx: &Ctx<'_>) {
    let expect = ctx.expect;
    let results = at_once(ctx, |pool, i| async move {
        let options = expect.volume((i + 1) * MIB);
        pool.create_volume(&n("a"), options).await
    })
    .await;
    let won = winners(results, ErrorKind::AlreadyExists);
    assert_eq!(won.len(), 1, "one wins");
    let volume = ctx.volume("a").await;
    assert_eq!(volume.id, won[0].id);
    assert_eq!(volume.virtual_size, won[0].virtual_size);
}

pub(crate) async fn concurrent_renames_onto_one_name_have_one_winner(ctx: &Ctx<'_>) {
    for i in 0..CALLERS {
        ctx.filled(&format!("v{i}"), 64 << 10, i).await;
    }
    let results = at_once(ctx, |pool, i| async move {
        let from = n(&format!("v{i}"));
        let renamed = pool.rename_volume(&from, &n("target")).await;
        renamed.map(|_| i)
    })
    .await;
    let won = winners(results, ErrorKind::AlreadyExists);
    assert_eq!(won.len(), 1, "one wins");
    assert_same(
        &ctx.read("target").await,
        &pattern(won[0], 64 << 10),
        "target",
    );
    assert_eq!(ctx.names().await.len() as u64, CALLERS);
    for i in (0..CALLERS).filter(|i| *i != won[0]) {
        let name = format!("v{i}");
        assert_same(&ctx.read(&name).await, &pattern(i, 64 << 10), &name);
    }
}

pub(crate) async fn concurrent_writers_are_one(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let results = at_once(ctx, |pool, _| async move {
        pool.open_volume(&n("a"), OpenOptions::read_write()).await
    })
    .await;
    let won = winners(results, ErrorKind::Busy);
    assert_eq!(won.len(), 1, "one writer");
    drop(won);
    drop(ctx.writer("a").await);
}

pub(crate) async fn concurrent_snapshots_and_deletes_leave_a_whole_pool(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    let results = at_once(ctx, |pool, i| async move {
        let (a, own, same) = (n("a"), n(&format!("s{i}")), n("same"));
        pool.snapshot_volume(&a, &own, Default::default()).await?;
        pool.snapshot_volume(&a, &same, Default::default()).await?;
        let clone = n(&format!("c{i}"));
        pool.clone_volume(&own, &clone, Default::default()).await?;
        pool.delete_volume(&own).await?;
        pool.volume(&clone).await
    })
    .await;
    let made = results.into_iter().map(|made| made.expect("each succeeds"));
    assert_eq!(made.count() as u64, CALLERS);
    let names = ctx.names().await;
    assert_eq!(names.len() as u64, CALLERS + 2, "{names:?}");
    for name in names {
        assert_same(&ctx.read(&name).await, &data, &name);
    }
}

pub(crate) async fn concurrent_creates_and_deletes_of_one_name_settle(ctx: &Ctx<'_>) {
    let options = ctx.expect.volume(MIB);
    let results = at_once(ctx, |pool, i| async move {
        for _ in 0..10 {
            if i % 4 < 2 {
                pool.create_volume(&n("a"), options).await?;
            } else {
                pool.delete_volume(&n("a")).await?;
            }
        }
        Ok(())
    })
    .await;
    for result in results {
        result.expect("neither can fail");
    }
    ctx.delete("a").await;
    assert!(ctx.names().await.is_empty());
    ctx.create("a", 2 * MIB).await;
    assert_zeros(&ctx.read("a").await, "a new volume");
}
