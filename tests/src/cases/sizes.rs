//! Clause 8: sizes are bytes, rounded up, and a smaller one needs a flag.

use super::*;
use volmux::{ByteRange, ByteSize, CreateOptions, ErrorKind, ResizeOptions};

/// Sizes that no volume can have.
const WRONG: [u64; 4] = [0, i64::MAX as u64, 1 << 63, u64::MAX];

pub(crate) async fn c08_sizes_are_rounded_up_and_told(ctx: &Ctx<'_>) {
    let unit = ctx.expect.size_unit;
    for (i, size) in [1, unit - 1, unit, unit + 1, MIB - 1, MIB, MIB + 1]
        .into_iter()
        .enumerate()
    {
        let name = format!("a{i}");
        let made = ctx.create(&name, size).await.virtual_size.bytes();
        assert_eq!(made, size.next_multiple_of(unit), "asked for {size}");
        assert_eq!(ctx.volume(&name).await.virtual_size.bytes(), made);
        assert_eq!(ctx.reader(&name).await.size(), made);
        assert_eq!(ctx.read(&name).await.len() as u64, made);
    }
}

pub(crate) async fn c08_wrong_sizes_are_refused_at_creation(ctx: &Ctx<'_>) {
    let before = ctx.state().await;
    for size in WRONG {
        let size = ByteSize::new(size);
        for options in [CreateOptions::thin(size), CreateOptions::thick(size)] {
            let result = ctx.pool().create_volume(&n("a"), options).await;
            ctx.refused(
                result,
                ErrorKind::InvalidInput,
                "create_volume",
                "a",
                &before,
            )
            .await;
        }
    }
}

pub(crate) async fn c08_wrong_sizes_are_refused_at_resize(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let before = ctx.state().await;
    for size in WRONG {
        let options = ResizeOptions {
            size: ByteSize::new(size),
            allow_shrink: true,
        };
        let result = ctx.pool().resize_volume(&n("a"), options).await;
        ctx.refused(
            result,
            ErrorKind::InvalidInput,
            "resize_volume",
            "a",
            &before,
        )
        .await;
    }
}

pub(crate) async fn c08_large_volumes_work_to_their_last_byte(ctx: &Ctx<'_>) {
    let size = ctx.expect.large_size;
    assert_eq!(ctx.create("a", size).await.virtual_size.bytes(), size);
    let device = ctx.writer("a").await;
    let offset = size - 8000;
    device
        .write_at(offset, pattern(1, 8000))
        .await
        .expect("write at the end");
    let found = device.read_at(offset, 8000).await.expect("read at the end");
    assert_same(&found, &pattern(1, 8000), "the end");
    let extents = device.extents(ByteRange::new(0, size)).await;
    let extents = extents.expect("extents").collect_joined().await;
    let extents = extents.expect("extents");
    assert_eq!(extents.last().map(ByteRange::end), Some(size));
    let past = device.read_at(size - 1, 2).await;
    assert_error(past, ErrorKind::InvalidInput, "read_at", "a");
}

pub(crate) async fn c08_a_smaller_size_needs_the_flag(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let before = ctx.state().await;
    for size in [512, MIB / 2, MIB - ctx.expect.size_unit] {
        let options = ResizeOptions::grow(ByteSize::new(size));
        let result = ctx.pool().resize_volume(&n("a"), options).await;
        ctx.refused(
            result,
            ErrorKind::InvalidInput,
            "resize_volume",
            "a",
            &before,
        )
        .await;
    }
}

pub(crate) async fn c08_shrinking_keeps_what_lies_before(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    ctx.snapshot("a", "s").await;
    let id = ctx.volume("a").await.id;
    let options = ResizeOptions {
        size: ByteSize::new(MIB / 2 - 1),
        allow_shrink: true,
    };
    let made = ctx.pool().resize_volume(&n("a"), options).await;
    let made = made.expect("shrink");
    assert_eq!(made.id, id);
    let size = (MIB / 2 - 1).next_multiple_of(ctx.expect.size_unit);
    assert_eq!(made.virtual_size.bytes(), size);
    assert_same(&ctx.read("a").await, &data[..size as usize], "a");
    assert_same(&ctx.read("s").await, &data, "the snapshot");
    let past = ctx.reader("a").await.read_at(size, 1).await;
    assert_error(past, ErrorKind::InvalidInput, "read_at", "a");
}

pub(crate) async fn c08_growing_works_while_in_use(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    let writer = ctx.writer("a").await;
    let reader = ctx.reader("a").await;
    let options = ResizeOptions::grow(ByteSize::new(2 * MIB));
    let grown = ctx.pool().resize_volume(&n("a"), options).await;
    assert_eq!(grown.expect("grow").virtual_size.bytes(), 2 * MIB);
    assert_eq!(writer.size(), 2 * MIB, "the writer's size");
    assert_eq!(reader.size(), 2 * MIB, "the reader's size");
    writer
        .write_at(2 * MIB - 100, pattern(2, 100))
        .await
        .expect("write in the new part");
    let found = read_device(reader.as_ref()).await;
    assert_same(&found[..MIB as usize], &data, "the old part");
    assert_same(
        &found[2 * MIB as usize - 100..],
        &pattern(2, 100),
        "the end",
    );
}

pub(crate) async fn c08_growing_through_another_handle_is_seen(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    let other = ctx.other_handle().await;
    let writer = ctx.writer("a").await;
    let reader = ctx.reader("a").await;
    for device in [&writer, &reader] {
        assert_eq!(device.refresh().await.expect("refresh"), MIB);
    }
    let options = ResizeOptions::grow(ByteSize::new(2 * MIB));
    let grown = other.resize_volume(&n("a"), options).await;
    grown.expect("grow");
    for device in [&writer, &reader] {
        assert_eq!(device.refresh().await.expect("refresh"), 2 * MIB);
        assert_eq!(device.size(), 2 * MIB);
    }
    let written = writer.write_at(2 * MIB - 100, pattern(2, 100)).await;
    written.expect("write in the new part");
    let found = read_device(reader.as_ref()).await;
    assert_same(&found[..MIB as usize], &data, "the old part");
    let new = &found[2 * MIB as usize - 100..];
    assert_same(new, &pattern(2, 100), "the end");
}

pub(crate) async fn c08_thick_volumes_can_be_resized(ctx: &Ctx<'_>) {
    let options = CreateOptions::thick(ByteSize::new(MIB));
    let made = ctx.pool().create_volume(&n("a"), options).await;
    made.expect("create thick");
    ctx.write("a", 0, pattern(1, MIB as usize)).await;
    for size in [3 * MIB, 2 * MIB] {
        let options = ResizeOptions {
            size: ByteSize::new(size),
            allow_shrink: true,
        };
        let resized = ctx.pool().resize_volume(&n("a"), options).await;
        let resized = resized.expect("resize");
        assert_eq!(resized.virtual_size.bytes(), size);
        assert_eq!(resized.provisioning, volmux::Provisioning::Thick);
        let allocated = ctx.volume("a").await.allocated;
        let reserved = allocated.is_none_or(|a| a.bytes() >= size);
        assert!(reserved, "{size} bytes are reserved: {allocated:?}");
    }
    let found = ctx.read("a").await;
    assert_same(
        &found[..MIB as usize],
        &pattern(1, MIB as usize),
        "old part",
    );
    assert_zeros(&found[MIB as usize..], "new part");
}
