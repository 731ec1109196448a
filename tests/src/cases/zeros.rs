//! Clause 7: what was never written, or was discarded, reads as zeros.

use std::collections::BTreeSet;

use super::*;
use volmux::{ByteRange, ByteSize, CreateOptions, ResizeOptions, ZeroOptions};

/// Ranges of a volume of 1 MiB: empty, within a block, over a block's edge, whole blocks, huge.
const RANGES: [(u64, u64); 12] = [
    (0, 0),
    (1000, 0),
    (MIB, 0),
    (0, 4096),
    (8192, 65536),
    (100, 200),
    (12288, 512),
    (4000, 200),
    (70_000, 123_457),
    (0, 4095),
    (MIB - 5000, 5000),
    (0, MIB),
];

#[derive(Clone, Copy, Debug)]
enum How {
    Discard,
    Zero,
    ZeroAndDiscard,
}

/// Zeroes each range of a full volume and checks that it and nothing else is zeros.
async fn zero_ranges(ctx: &Ctx<'_>, how: How) {
    let data = ctx.filled("a", MIB, 1).await;
    for (offset, length) in RANGES {
        let device = ctx.writer("a").await;
        device.write_at(0, data.clone()).await.expect("write");
        let range = ByteRange::new(offset, length);
        let options = ZeroOptions {
            may_discard: matches!(how, How::ZeroAndDiscard),
            ..ZeroOptions::default()
        };
        let done = match how {
            How::Discard => device.discard(range).await,
            How::Zero | How::ZeroAndDiscard => device.write_zeroes(range, options).await,
        };
        done.expect("zero");
        device.flush().await.expect("flush");
        drop(device);
        let (start, end) = (offset as usize, (offset + length) as usize);
        let found = ctx.read("a").await;
        let what = format!("{how:?} {offset}+{length}");
        assert_same(&found[..start], &data[..start], &what);
        assert_zeros(&found[start..end], &what);
        assert_same(&found[end..], &data[end..], &what);
    }
}

pub(crate) async fn c07_a_new_volume_reads_as_zeros(ctx: &Ctx<'_>) {
    ctx.create("a", MIB + 512).await;
    assert_zeros(&ctx.read("a").await, "a new volume");
    ctx.write("a", 70_000, pattern(1, 100)).await;
    let found = ctx.read("a").await;
    assert_zeros(&found[..70_000], "before what was written");
    assert_same(&found[70_000..70_100], &pattern(1, 100), "what was written");
    assert_zeros(&found[70_100..], "after what was written");
}

pub(crate) async fn c07_a_new_thick_volume_reads_as_zeros(ctx: &Ctx<'_>) {
    ctx.filled("old", MIB, 1).await;
    ctx.delete("old").await;
    let options = CreateOptions::thick(ByteSize::new(MIB));
    let made = ctx.pool().create_volume(&n("a"), options).await;
    made.expect("create thick");
    assert_zeros(&ctx.read("a").await, "a new thick volume");
}

pub(crate) async fn c07_discarded_ranges_read_as_zeros(ctx: &Ctx<'_>) {
    zero_ranges(ctx, How::Discard).await;
}

pub(crate) async fn c07_zeroed_ranges_read_as_zeros(ctx: &Ctx<'_>) {
    zero_ranges(ctx, How::Zero).await;
}

pub(crate) async fn c07_zeroed_and_discarded_ranges_read_as_zeros(ctx: &Ctx<'_>) {
    zero_ranges(ctx, How::ZeroAndDiscard).await;
}

pub(crate) async fn c07_huge_ranges_can_be_discarded_and_zeroed(ctx: &Ctx<'_>) {
    let size = 1 << 40;
    ctx.create("a", size).await;
    let device = ctx.writer("a").await;
    let last = size - 8192;
    for round in 0..2 {
        for offset in [0, size / 2, last] {
            let data = pattern(offset + round, 8192);
            device.write_at(offset, data).await.expect("write");
        }
        let range = ByteRange::new(1, size - 2);
        let zeroed = if round == 0 {
            device.discard(range).await
        } else {
            let options = ZeroOptions {
                may_discard: true,
                ..ZeroOptions::default()
            };
            device.write_zeroes(range, options).await
        };
        zeroed.expect("zero a huge range");
        for offset in [0, size / 2, last] {
            let found = device.read_at(offset, 8192).await.expect("read");
            assert_zeros(&found[1..8191], "a huge range");
        }
        let first = device.read_at(0, 1).await.expect("read");
        assert_same(&first, &pattern(round, 8192)[..1], "before the range");
    }
}

pub(crate) async fn c07_what_was_discarded_can_be_written_again(ctx: &Ctx<'_>) {
    let mut data = ctx.filled("a", MIB, 1).await.to_vec();
    let device = ctx.writer("a").await;
    device
        .discard(ByteRange::new(0, MIB / 2))
        .await
        .expect("discard");
    data[..(MIB / 2) as usize].fill(0);
    device.write_at(5000, pattern(2, 7)).await.expect("write");
    data[5000..5007].copy_from_slice(&pattern(2, 7));
    assert_same(&read_device(device.as_ref()).await, &data, "written again");
}

pub(crate) async fn c07_the_grown_part_reads_as_zeros(ctx: &Ctx<'_>) {
    // The old end lies within a block, where sizes may.
    let old = MIB + ctx.expect.size_unit;
    let data = ctx.filled("a", old, 1).await;
    let options = ResizeOptions::grow(ByteSize::new(2 * MIB));
    let grown = ctx.pool().resize_volume(&n("a"), options).await;
    assert_eq!(grown.expect("grow").virtual_size.bytes(), 2 * MIB);
    let found = ctx.read("a").await;
    assert_same(&found[..old as usize], &data, "the old part");
    assert_zeros(&found[old as usize..], "the new part");
}

pub(crate) async fn c07_shrunk_and_grown_reads_as_zeros(ctx: &Ctx<'_>) {
    let unit = ctx.expect.size_unit;
    let kept = BTreeSet::from([unit, ctx.expect.rounded(4096), MIB / 2 + unit]);
    for keep in kept {
        let name = format!("a{keep}");
        let data = ctx.filled(&name, MIB, 1).await;
        for size in [keep, MIB] {
            let options = ResizeOptions {
                size: ByteSize::new(size),
                allow_shrink: true,
            };
            let resized = ctx.pool().resize_volume(&n(&name), options).await;
            assert_eq!(resized.expect("resize").virtual_size.bytes(), size);
        }
        let found = ctx.read(&name).await;
        assert_same(
            &found[..keep as usize],
            &data[..keep as usize],
            "what was kept",
        );
        assert_zeros(&found[keep as usize..], "what was cut off");
    }
}

pub(crate) async fn c07_no_data_of_a_deleted_volume_can_be_read(ctx: &Ctx<'_>) {
    for round in 0..4 {
        ctx.filled("a", 4 * MIB, 1 + round).await;
        ctx.delete("a").await;
        ctx.create("a", 4 * MIB).await;
        assert_zeros(&ctx.read("a").await, "a volume of the same name");
        ctx.create("b", 4 * MIB).await;
        // A small write must not bring up the rest of a recycled block.
        ctx.write("b", 100_000, pattern(9, 1)).await;
        let found = ctx.read("b").await;
        assert_zeros(&found[..100_000], "before a small write");
        assert_zeros(&found[100_001..], "after a small write");
        ctx.delete("a").await;
        ctx.delete("b").await;
    }
}

pub(crate) async fn c07_zeros_in_a_snapshot_are_zeros(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let device = ctx.writer("a").await;
    let range = ByteRange::new(1000, MIB / 2);
    device.discard(range).await.expect("discard");
    device.flush().await.expect("flush");
    ctx.snapshot("a", "s").await;
    device
        .write_at(0, pattern(2, MIB as usize))
        .await
        .expect("write");
    let found = ctx.read("s").await;
    let (start, end) = (range.offset as usize, range.end() as usize);
    assert_zeros(&found[start..end], "discarded before the snapshot");
    assert_same(
        &found[..start],
        &pattern(1, MIB as usize)[..start],
        "before",
    );
    assert_same(&found[end..], &pattern(1, MIB as usize)[end..], "after");
}
