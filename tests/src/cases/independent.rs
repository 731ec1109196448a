//! Clause 3: snapshots, clones and copies stand on their own.

use super::*;
use volmux::ByteRange;

pub(crate) async fn c03_deleting_the_source_harms_nobody(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    ctx.snapshot("a", "s").await;
    ctx.clone_of("a", "c").await;
    ctx.clone_of("s", "cs").await;
    ctx.copy_of("a", "k").await;
    ctx.delete("a").await;
    // What takes the freed space must not show up in them.
    ctx.filled("new", 2 * MIB, 9).await;
    for name in ["s", "c", "cs", "k"] {
        assert_same(&ctx.read(name).await, &data, name);
        let origin = ctx.volume(name).await.origin.expect("an origin");
        let parent = if name == "cs" { "s" } else { "a" };
        assert_eq!(origin.parent_name.as_str(), parent, "history stays");
    }
}

pub(crate) async fn c03_deleting_a_snapshot_harms_nobody(ctx: &Ctx<'_>) {
    let first = ctx.filled("a", MIB, 1).await;
    ctx.snapshot("a", "s1").await;
    ctx.write("a", 0, pattern(2, (MIB / 2) as usize)).await;
    ctx.snapshot("a", "s2").await;
    let second = ctx.read("a").await;
    ctx.write("a", MIB / 4, pattern(3, (MIB / 2) as usize))
        .await;
    let third = ctx.read("a").await;
    ctx.clone_of("s2", "c").await;
    ctx.delete("s2").await;
    ctx.filled("new", 2 * MIB, 9).await;
    assert_same(&ctx.read("s1").await, &first, "the older snapshot");
    assert_same(&ctx.read("a").await, &third, "the volume");
    assert_same(&ctx.read("c").await, &second, "the snapshot's clone");
    ctx.delete("s1").await;
    assert_same(&ctx.read("a").await, &third, "the volume");
    assert_same(&ctx.read("c").await, &second, "the snapshot's clone");
}

pub(crate) async fn c03_every_order_of_deletion_works(ctx: &Ctx<'_>) {
    let names = ["a", "s", "c", "cs"];
    for order in permutations(names.len()) {
        let a = ctx.filled("a", 64 << 10, 1).await;
        ctx.snapshot("a", "s").await;
        ctx.clone_of("s", "c").await;
        ctx.write("c", 0, pattern(2, 4096)).await;
        let c = ctx.read("c").await;
        ctx.snapshot("c", "cs").await;
        let contents = [&a, &a, &c, &c];
        for (done, &index) in order.iter().enumerate() {
            ctx.delete(names[index]).await;
            for &left in &order[done + 1..] {
                let found = ctx.read(names[left]).await;
                let what = format!("{} after deletions in order {order:?}", names[left]);
                assert_same(&found, contents[left], &what);
            }
        }
        assert!(ctx.names().await.is_empty());
    }
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let insert_everywhere = |shorter: Vec<usize>| {
        (0..n).map(move |at| {
            let mut longer = shorter.clone();
            longer.insert(at, n - 1);
            longer
        })
    };
    permutations(n - 1)
        .into_iter()
        .flat_map(insert_everywhere)
        .collect()
}

pub(crate) async fn c03_chains_of_thirty_hold(ctx: &Ctx<'_>) {
    const DEPTH: u64 = 30;
    let mut content = ctx.filled("v0", 256 << 10, 1).await.to_vec();
    let mut contents = vec![content.clone()];
    for i in 1..=DEPTH {
        let (before, snapshot, name) = (format!("v{}", i - 1), format!("s{i}"), format!("v{i}"));
        ctx.snapshot(&before, &snapshot).await;
        ctx.clone_of(&snapshot, &name).await;
        let offset = i * 8192 - 1000;
        let data = pattern(100 + i, 3000);
        ctx.write(&name, offset, data.clone()).await;
        content[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
        contents.push(content.clone());
    }
    for i in (0..=DEPTH).step_by(2) {
        ctx.delete(&format!("v{i}")).await;
    }
    for i in 1..=DEPTH {
        let (snapshot, name) = (format!("s{i}"), format!("v{i}"));
        let parent = &contents[i as usize - 1];
        assert_same(&ctx.read(&snapshot).await, parent, &snapshot);
        if i % 2 == 1 {
            assert_same(&ctx.read(&name).await, &contents[i as usize], &name);
        }
    }
}

pub(crate) async fn c03_a_clone_and_its_source_go_their_own_ways(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    ctx.clone_of("a", "c").await;
    ctx.write("c", 1000, pattern(2, 5000)).await;
    assert_same(&ctx.read("a").await, &data, "the source");
    let in_clone = ctx.read("c").await;
    assert_same(
        &in_clone[1000..6000],
        &pattern(2, 5000),
        "written in the clone",
    );
    assert_same(&in_clone[6000..], &data[6000..], "the clone's rest");
    ctx.write("a", 0, pattern(3, MIB as usize)).await;
    assert_same(&ctx.read("c").await, &in_clone, "the clone");
    let device = ctx.writer("c").await;
    device
        .discard(ByteRange::new(0, MIB))
        .await
        .expect("discard");
    drop(device);
    assert_zeros(&ctx.read("c").await, "the discarded clone");
    assert_same(
        &ctx.read("a").await,
        &pattern(3, MIB as usize),
        "the source",
    );
}

pub(crate) async fn c03_a_clone_can_be_resized_alone(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    ctx.snapshot("a", "s").await;
    ctx.clone_of("s", "c").await;
    let options = volmux::ResizeOptions::grow(volmux::ByteSize::new(2 * MIB));
    let resized = ctx.pool().resize_volume(&n("c"), options).await;
    assert_eq!(resized.expect("grow").virtual_size.bytes(), 2 * MIB);
    let grown = ctx.read("c").await;
    assert_same(&grown[..MIB as usize], &data, "the clone");
    assert_zeros(&grown[MIB as usize..], "the new part");
    for name in ["a", "s"] {
        assert_same(&ctx.read(name).await, &data, name);
    }
}

pub(crate) async fn c03_a_copy_is_independent(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    ctx.snapshot("a", "s").await;
    for source in ["a", "s"] {
        let copy = format!("{source}.copy");
        let made = ctx.copy_of(source, &copy).await;
        assert!(!made.is_snapshot(), "a copy is writable");
        assert_eq!(made.virtual_size.bytes(), MIB);
        ctx.write(&copy, 0, pattern(5, 4096)).await;
        let content = ctx.read(&copy).await;
        assert_same(&content[..4096], &pattern(5, 4096), "written in the copy");
        assert_same(&content[4096..], &data[4096..], "the copy's rest");
    }
    for name in ["a", "s"] {
        assert_same(&ctx.read(name).await, &data, name);
    }
    ctx.delete("a").await;
    ctx.delete("s").await;
    assert_same(
        &ctx.read("s.copy").await[4096..],
        &data[4096..],
        "left alone",
    );
}

pub(crate) async fn c03_a_snapshot_of_a_snapshot_works(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    let first = ctx.snapshot("a", "s").await;
    ctx.write("a", 0, pattern(2, MIB as usize)).await;
    let second = ctx.snapshot("s", "ss").await;
    assert_eq!(second.origin.expect("origin").parent_id, first.id);
    ctx.delete("s").await;
    assert_same(&ctx.read("ss").await, &data, "the snapshot's snapshot");
}
