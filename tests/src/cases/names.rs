//! Clause 1: the caller picks names.

use super::*;
use volmux::{ErrorKind, Holder, Support, VolumeName};

/// Names at the edges of what is allowed, and such as a careless backend would trip over.
const ODD: [&str; 16] = [
    "_",
    "0",
    "a.",
    "a..b",
    "a+b",
    "a-b",
    "x.json",
    "x.raw",
    "pool.json",
    "lock",
    "volumes",
    "data",
    "tmp",
    "lost+found",
    "CON",
    "__-rf",
];

pub(crate) async fn c01_every_allowed_name_works(ctx: &Ctx<'_>) {
    let long = "x".repeat(ctx.expect.longest_name);
    let almost = format!("{}y", &long[1..]);
    let mut names: Vec<&str> = ODD.to_vec();
    names.extend([long.as_str(), almost.as_str()]);
    for (i, name) in names.iter().enumerate() {
        assert_eq!(ctx.create(name, BLOCK).await.name.as_str(), *name);
        ctx.write(name, 0, pattern(i as u64, 512)).await;
    }
    let mut sorted: Vec<&str> = names.clone();
    sorted.sort_unstable();
    assert_eq!(ctx.names().await, sorted);
    for (i, name) in names.iter().enumerate() {
        assert_same(&ctx.read(name).await[..512], &pattern(i as u64, 512), name);
    }
}

pub(crate) async fn c01_names_differ_by_case(ctx: &Ctx<'_>) {
    let lower = ctx.filled("disk", BLOCK, 1).await;
    let upper = ctx.filled("Disk", BLOCK, 2).await;
    assert_same(&ctx.read("disk").await, &lower, "disk");
    assert_same(&ctx.read("Disk").await, &upper, "Disk");
    ctx.delete("disk").await;
    assert_eq!(ctx.names().await, ["Disk"]);
}

pub(crate) async fn c01_a_name_that_begins_another_is_a_different_volume(ctx: &Ctx<'_>) {
    let longer = ctx.filled("web.1", BLOCK, 1).await;
    let missing = ctx.pool().volume(&n("web")).await;
    assert_error(missing, ErrorKind::NotFound, "volume", "web");
    ctx.filled("web", BLOCK, 2).await;
    ctx.delete("web").await;
    assert_eq!(ctx.names().await, ["web.1"]);
    assert_same(&ctx.read("web.1").await, &longer, "web.1");
}

/// Names that are allowed in general, but not in this store.
pub(crate) async fn c01_reserved_names_are_refused(ctx: &Ctx<'_>) {
    ctx.filled("a", BLOCK, 1).await;
    let longest = ctx.expect.longest_name;
    let mut reserved: Vec<String> = Vec::new();
    reserved.extend(ctx.expect.reserved_names.iter().map(|&name| name.into()));
    if longest < VolumeName::MAX_LEN {
        reserved.push("x".repeat(longest + 1));
    }
    let before = ctx.state().await;
    let (pool, a, kind) = (ctx.pool(), n("a"), ErrorKind::InvalidInput);
    for name in &reserved {
        let new = n(name);
        let result = pool.create_volume(&new, ctx.expect.volume(BLOCK)).await;
        ctx.refused(result, kind, "create_volume", name, &before)
            .await;
        let result = pool.rename_volume(&a, &new).await;
        assert_error(result, kind, "rename_volume", name);
        let result = pool.copy_volume(&a, &new, Default::default()).await;
        assert_error(result, kind, "copy_volume", name);
        if ctx.expect.capabilities.snapshot != Support::None {
            let result = pool.snapshot_volume(&a, &new, Default::default()).await;
            assert_error(result, kind, "snapshot_volume", name);
        }
        if ctx.expect.capabilities.clone != Support::None {
            let result = pool.clone_volume(&a, &new, Default::default()).await;
            assert_error(result, kind, "clone_volume", name);
        }
        // What can't be there is not there.
        let found = pool.volume(&new).await;
        assert_error(found, ErrorKind::NotFound, "volume", name);
        pool.delete_volume(&new).await.expect("it is not there");
    }
    let unreserved = ctx.pool().rename_volume(&a, &n("x_reserved")).await;
    unreserved.expect("other names are free");
    assert_eq!(ctx.names().await, ["x_reserved"]);
}

pub(crate) async fn c01_bad_names_do_nothing(ctx: &Ctx<'_>) {
    let before = ctx.state().await;
    let long = "x".repeat(VolumeName::MAX_LEN + 1);
    for bad in [
        "", ".", "..", "-rf", "+x", ".x", "a/b", "../x", "/x", "a b", "a\0", "a\n", "é", "a:b",
        "a*", "a\\b", "a'b", "$(x)", "%s", &long,
    ] {
        // A bad name has no type that a pool takes: it ends here, before the pool sees it. What a
        // backend takes as text beside names is `what` of adopt_volume, and holders.
        assert_error(
            VolumeName::new(bad),
            ErrorKind::InvalidInput,
            "volume_name",
            bad,
        );
        let adopted = ctx.pool().adopt_volume(bad, &n("adopted")).await;
        let error = adopted.expect_err("nothing of that name is there");
        let kinds = [
            ErrorKind::InvalidInput,
            ErrorKind::NotFound,
            ErrorKind::Unsupported,
        ];
        assert!(kinds.contains(&error.kind()), "{bad:?}: {error:?}");
    }
    for bad in ["", "a b", "é", "a\n", &"x".repeat(256)] {
        assert!(Holder::new(bad).is_err(), "{bad:?}");
    }
    assert_eq!(ctx.state().await, before);
}
