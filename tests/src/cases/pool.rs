//! Promises of the `Pool` trait that no clause of the contract names by itself.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::*;
use futures::StreamExt;
use volmux::{
    ByteSize, CreateOptions, ErrorKind, OriginKind, PoolExt, Provisioning, ResizeOptions,
};

pub(crate) async fn pool_volume_tells_all_of_a_volume(ctx: &Ctx<'_>) {
    let earliest = SystemTime::now() - Duration::from_secs(2);
    let made = ctx.create("a", MIB).await;
    assert_eq!(made.name, n("a"));
    assert_eq!(made.virtual_size.bytes(), MIB);
    assert_eq!(made.provisioning, ctx.expect.provisioning());
    assert_eq!(made.origin, None);
    assert!(!made.is_snapshot());
    let latest = SystemTime::now() + Duration::from_secs(2);
    assert!((earliest..latest).contains(&made.created));
    let found = ctx.volume("a").await;
    assert_eq!((&found.name, found.id), (&made.name, made.id));
    assert_eq!(found.created, made.created);
    ctx.write("a", 0, pattern(1, MIB as usize / 2)).await;
    let found = ctx.volume("a").await;
    let half = ByteSize::new(MIB / 2);
    assert!(found.allocated.is_none_or(|a| a >= half), "{found:?}");
    assert!(found.exclusive.is_none_or(|e| e >= half), "{found:?}");
    let other = ctx.other_handle().await.volume(&n("a")).await;
    assert_eq!(other.expect("there").created, made.created);
}

pub(crate) async fn pool_volume_tells_where_a_volume_came_from(ctx: &Ctx<'_>) {
    let a = ctx.create("a", MIB).await;
    let made = [
        (ctx.snapshot("a", "s").await, OriginKind::Snapshot),
        (ctx.clone_of("a", "c").await, OriginKind::Clone),
        (ctx.copy_of("a", "k").await, OriginKind::Copy),
    ];
    for (volume, kind) in made {
        let origin = volume.origin.clone().expect("origin");
        assert_eq!(origin.kind, kind);
        assert_eq!(origin.parent_id, a.id);
        assert_eq!(origin.parent_name, a.name);
        assert_eq!(volume.is_snapshot(), kind == OriginKind::Snapshot);
        assert_eq!(volume.virtual_size, a.virtual_size);
        let found = ctx.volume(volume.name.as_str()).await;
        assert_eq!((found.id, found.origin), (volume.id, volume.origin));
    }
}

pub(crate) async fn pool_ids_are_never_used_again(ctx: &Ctx<'_>) {
    let mut ids = BTreeSet::new();
    for round in 0..5 {
        for name in ["a", "b"] {
            assert!(
                ids.insert(ctx.create(name, BLOCK).await.id),
                "{name} {round}"
            );
        }
        assert!(ids.insert(ctx.copy_of("a", "k").await.id), "copy {round}");
        for name in ["a", "b", "k"] {
            ctx.delete(name).await;
        }
    }
}

pub(crate) async fn pool_ids_outlive_rename_and_resize(ctx: &Ctx<'_>) {
    let made = ctx.create("a", MIB).await;
    let renamed = ctx.pool().rename_volume(&n("a"), &n("b")).await;
    let renamed = renamed.expect("rename");
    assert_eq!((renamed.id, renamed.created), (made.id, made.created));
    assert_eq!(renamed.name, n("b"));
    let options = ResizeOptions::grow(ByteSize::new(2 * MIB));
    let grown = ctx.pool().resize_volume(&n("b"), options).await;
    let grown = grown.expect("grow");
    assert_eq!((grown.id, grown.created), (made.id, made.created));
    assert_eq!(ctx.volume("b").await.id, made.id);
}

pub(crate) async fn pool_rename_works_while_in_use(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    let writer = ctx.writer("a").await;
    let reader = ctx.reader("a").await;
    let renamed = ctx.pool().rename_volume(&n("a"), &n("b")).await;
    assert_eq!(renamed.expect("rename").name, n("b"));
    let missing = ctx.pool().volume(&n("a")).await;
    assert_error(missing, ErrorKind::NotFound, "volume", "a");
    assert_same(&read_device(reader.as_ref()).await, &data, "an old reader");
    writer
        .write_at(0, pattern(2, 512))
        .await
        .expect("an old writer");
    writer.flush().await.expect("flush");
    assert_same(
        &ctx.read("b").await[..512],
        &pattern(2, 512),
        "the new name",
    );
    let busy = ctx.pool().delete_volume(&n("b")).await;
    assert_error(busy, ErrorKind::Busy, "delete_volume", "b");
    // The old name is free for another volume, with which the handles have nothing to do.
    ctx.filled("a", MIB, 3).await;
    writer.write_at(0, pattern(4, 512)).await.expect("write");
    drop((writer, reader));
    assert_same(&ctx.read("a").await, &pattern(3, MIB as usize), "the other");
    assert_same(&ctx.read("b").await[..512], &pattern(4, 512), "the renamed");
}

pub(crate) async fn pool_rename_that_is_repeated_finds_nothing(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let renamed = ctx.pool().rename_volume(&n("a"), &n("b")).await;
    renamed.expect("rename");
    let before = ctx.state().await;
    let again = ctx.pool().rename_volume(&n("a"), &n("b")).await;
    ctx.refused(again, ErrorKind::NotFound, "rename_volume", "a", &before)
        .await;
}

pub(crate) async fn pool_a_renamed_volumes_snapshots_stay(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    let id = ctx.volume("a").await.id;
    ctx.snapshot("a", "s").await;
    let renamed = ctx.pool().rename_volume(&n("s"), &n("s2")).await;
    assert!(renamed.expect("rename a snapshot").is_snapshot());
    let renamed = ctx.pool().rename_volume(&n("a"), &n("b")).await;
    renamed.expect("rename");
    assert_same(&ctx.read("s2").await, &data, "the snapshot");
    let origin = ctx.volume("s2").await.origin.expect("origin");
    assert_eq!((origin.parent_id, origin.parent_name), (id, n("a")));
}

pub(crate) async fn pool_list_shows_every_volume_once(ctx: &Ctx<'_>) {
    assert!(ctx.names().await.is_empty());
    let mut expected = Vec::new();
    for i in 0..50 {
        let name = format!("v{i:02}");
        ctx.create(&name, BLOCK).await;
        expected.push(name);
    }
    ctx.snapshot("v07", "w").await;
    expected.push("w".into());
    assert_eq!(ctx.names().await, expected);
    for volume in ctx.pool().volumes().await.expect("list") {
        let found = ctx.volume(volume.name.as_str()).await;
        assert_eq!(volume.id, found.id);
        assert_eq!(volume.virtual_size, found.virtual_size);
        assert_eq!(volume.provisioning, found.provisioning);
        assert_eq!(volume.origin, found.origin);
        assert_eq!(volume.created, found.created);
    }
    for i in (0..50).step_by(2) {
        ctx.delete(&format!("v{i:02}")).await;
        expected.retain(|name| *name != format!("v{i:02}"));
    }
    assert_eq!(ctx.names().await, expected);
    let there = ctx.other_handle().await.volumes().await.expect("list");
    assert_eq!(there.len(), expected.len());
}

pub(crate) async fn pool_list_goes_on_while_volumes_change(ctx: &Ctx<'_>) {
    for i in 0..40 {
        ctx.create(&format!("v{i}"), BLOCK).await;
    }
    let mut listed = ctx.pool().list_volumes();
    let mut seen = Vec::new();
    let first = listed.next().await.expect("a first").expect("a volume");
    seen.push(String::from(first.name));
    for i in 0..40 {
        if i % 3 == 0 {
            ctx.delete(&format!("v{i}")).await;
        }
    }
    ctx.create("new", BLOCK).await;
    while let Some(volume) = listed.next().await {
        seen.push(
            volume
                .expect("no error for a volume that is gone")
                .name
                .into(),
        );
    }
    let unique: BTreeSet<&String> = seen.iter().collect();
    assert_eq!(unique.len(), seen.len(), "no volume appears twice");
    for i in (0..40).filter(|i| i % 3 != 0) {
        assert!(
            unique.contains(&format!("v{i}")),
            "v{i} was there all along"
        );
    }
    drop(ctx.pool().list_volumes());
}

pub(crate) async fn pool_find_volume_tells_missing_from_failed(ctx: &Ctx<'_>) {
    let made = ctx.create("a", BLOCK).await;
    let found = ctx.pool().find_volume(&n("a")).await.expect("find");
    assert_eq!(found.map(|v| v.id), Some(made.id));
    let found = ctx.pool().find_volume(&n("missing")).await.expect("find");
    assert!(found.is_none());
}

pub(crate) async fn pool_thick_volumes_reserve_their_space(ctx: &Ctx<'_>) {
    let size = 8 * MIB;
    let before = ctx.pool().usage().await.expect("usage");
    let options = CreateOptions::thick(ByteSize::new(size));
    let made = ctx.pool().create_volume(&n("a"), options).await;
    assert_eq!(made.expect("create").provisioning, Provisioning::Thick);
    assert_eq!(ctx.volume("a").await.provisioning, Provisioning::Thick);
    let free = || async { ctx.pool().usage().await.expect("usage").free.bytes() };
    let reserved = before.free.bytes() - free().await;
    assert!(reserved >= size / 2, "only {reserved} bytes are reserved");
    ctx.write("a", 0, pattern(1, size as usize)).await;
    let device = ctx.writer("a").await;
    let range = volmux::ByteRange::new(0, size);
    device.discard(range).await.expect("discard");
    device.flush().await.expect("flush");
    drop(device);
    let reserved = before.free.bytes() - free().await;
    assert!(
        reserved >= size / 2,
        "discarded, only {reserved} bytes are reserved"
    );
    assert_zeros(&ctx.read("a").await, "discarded");
}

pub(crate) async fn pool_adopts_what_is_there(ctx: &Ctx<'_>) {
    let data = pattern(1, MIB as usize + 512);
    let what = ctx.place_foreign(&data).await;
    let adopted = ctx.pool().adopt_volume(&what, &n("a")).await;
    let adopted = adopted.expect("adopt");
    let size = (data.len() as u64).next_multiple_of(ctx.expect.size_unit);
    assert_eq!(adopted.virtual_size.bytes(), size);
    assert_eq!(adopted.origin, None);
    let found = ctx.read("a").await;
    assert_same(&found[..data.len()], &data, "what was there");
    assert_zeros(&found[data.len()..], "the rest");
    ctx.write("a", 0, pattern(2, 512)).await;
    ctx.snapshot("a", "s").await;
    assert_eq!(ctx.names().await, ["a", "s"]);
}

pub(crate) async fn pool_says_what_it_is(ctx: &Ctx<'_>) {
    let pool = ctx.pool();
    assert!(!pool.to_string().is_empty());
    assert!(!format!("{pool:?}").is_empty());
    let settings = crate::PoolSettings {
        overcommit_limit: Some(2.5),
        warn_percent: Some(61.0),
        refuse_percent: Some(87.0),
    };
    let policy = ctx.with_settings(settings).await.pool().policy();
    assert_eq!(policy.overcommit_limit, Some(2.5));
    assert!((policy.warn_percent - 61.0).abs() < 1e-9);
    assert!((policy.refuse_percent - 87.0).abs() < 1e-9);
    assert_eq!(pool.policy(), volmux::ThinPolicy::default());
}
