//! Promises of the `BlockDevice` trait that no clause of the contract names by itself.

use super::*;
use bytes::Bytes;
use futures::future::join_all;
use volmux::{Access, ByteRange, ByteSize, ErrorKind, OpenOptions, ResizeOptions, ZeroOptions};

pub(crate) async fn device_says_what_it_is(ctx: &Ctx<'_>) {
    ctx.create("a", MIB).await;
    let reader = ctx.reader("a").await;
    let writer = ctx.writer("a").await;
    for (device, access) in [(&reader, Access::ReadOnly), (&writer, Access::ReadWrite)] {
        assert_eq!(device.name(), &n("a"));
        assert_eq!(device.size(), MIB);
        assert_eq!(device.access(), access);
    }
    let options = ResizeOptions::grow(ByteSize::new(2 * MIB));
    let grown = ctx.pool().resize_volume(&n("a"), options).await;
    grown.expect("grow");
    assert_eq!((reader.size(), writer.size()), (2 * MIB, 2 * MIB));
    let renamed = ctx.pool().rename_volume(&n("a"), &n("b")).await;
    renamed.expect("rename");
    assert_eq!(writer.name(), &n("a"), "the name when it was opened");
    assert_eq!(ctx.reader("b").await.name(), &n("b"));
}

pub(crate) async fn device_reads_back_what_was_written(ctx: &Ctx<'_>) {
    let size = MIB + ctx.expect.size_unit;
    ctx.create("a", size).await;
    let device = ctx.writer("a").await;
    let mut expected = vec![0; size as usize];
    let ranges = [
        (0, 1),
        (511, 2),
        (4095, 2),
        (4096, 4096),
        (10_000, 50_001),
        (9_999, 100),
        (size - 1, 1),
        (size - 513, 513),
        (0, size),
        (77, 1 << 18),
    ];
    for (i, (offset, length)) in ranges.into_iter().enumerate() {
        let data = pattern(i as u64, length as usize);
        let (start, end) = (offset as usize, (offset + length) as usize);
        expected[start..end].copy_from_slice(&data);
        device.write_at(offset, data.clone()).await.expect("write");
        let found = device.read_at(offset, length as usize).await;
        assert_same(&found.expect("read"), &data, "at once");
        let found = read_device(device.as_ref()).await;
        assert_same(&found, &expected, "the whole volume");
    }
    device.flush().await.expect("flush");
    drop(device);
    assert_same(&ctx.read("a").await, &expected, "opened again");
}

pub(crate) async fn device_takes_requests_of_no_length(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    let device = ctx.writer("a").await;
    for offset in [0, 1000, MIB] {
        let range = ByteRange::new(offset, 0);
        let read = device.read_at(offset, 0).await;
        assert!(read.expect("read").is_empty());
        let written = device.write_at(offset, Bytes::new()).await;
        written.expect("write");
        device.discard(range).await.expect("discard");
        for may_discard in [false, true] {
            let zeroed = device.write_zeroes(
                range,
                ZeroOptions {
                    may_discard,
                    ..ZeroOptions::default()
                },
            );
            zeroed.await.expect("write zeroes");
        }
        let extents = device.extents(range).await.expect("extents");
        let extents = extents.collect_joined().await;
        assert_eq!(extents.expect("extents"), []);
    }
    assert_same(&read_device(device.as_ref()).await, &data, "unchanged");
}

pub(crate) async fn device_serves_many_requests_at_once(ctx: &Ctx<'_>) {
    const LENGTH: u64 = 10_000;
    const REQUESTS: u64 = 64;
    let device = {
        ctx.create("a", LENGTH * REQUESTS).await;
        ctx.writer("a").await
    };
    let writes = (0..REQUESTS).map(|i| {
        let device = device.clone();
        tokio::spawn(async move {
            let data = pattern(i, LENGTH as usize);
            device.write_at(i * LENGTH, data).await.expect("write");
            device.flush().await.expect("flush");
        })
    });
    for write in join_all(writes).await {
        write.expect("a writer");
    }
    let reads = (0..REQUESTS).map(|i| device.read_at(i * LENGTH, LENGTH as usize));
    for (i, found) in join_all(reads).await.into_iter().enumerate() {
        let expected = pattern(i as u64, LENGTH as usize);
        assert_same(&found.expect("read"), &expected, "each its own");
    }
}

pub(crate) async fn device_flush_makes_writes_durable(ctx: &Ctx<'_>) {
    ctx.create("a", MIB).await;
    let other = ctx.other_handle().await;
    let device = ctx.writer("a").await;
    for i in 0..4u64 {
        let data = pattern(i, 9000);
        device.write_at(i * 9000, data).await.expect("write");
    }
    device.flush().await.expect("flush");
    device.flush().await.expect("flush with nothing to do");
    let found = read_all(other.as_ref(), &n("a")).await;
    for i in 0..4usize {
        let part = &found[i * 9000..(i + 1) * 9000];
        assert_same(part, &pattern(i as u64, 9000), "seen elsewhere");
    }
    ctx.reader("a")
        .await
        .flush()
        .await
        .expect("a reader's flush");
}

pub(crate) async fn device_keeps_overlapping_writes_in_order(ctx: &Ctx<'_>) {
    ctx.create("a", MIB).await;
    let device = ctx.writer("a").await;
    for i in 0..50u64 {
        let (offset, length) = (i * 100, 8000);
        let data = pattern(i, length);
        device.write_at(offset, data).await.expect("write");
    }
    let found = device.read_at(0, 12_900).await.expect("read");
    for i in 0..49usize {
        let part = &found[i * 100..(i + 1) * 100];
        assert_same(part, &pattern(i as u64, 8000)[..100], "the later one wins");
    }
    assert_same(&found[4900..], &pattern(49, 8000), "the last one");
}

pub(crate) async fn device_gives_discarded_space_back(ctx: &Ctx<'_>) {
    let size = 16 * MIB;
    ctx.filled("a", size, 1).await;
    let full = ctx.pool().usage().await.expect("usage").used.bytes();
    let device = ctx.writer("a").await;
    device
        .discard(ByteRange::new(100, size - 200))
        .await
        .expect("discard");
    device.flush().await.expect("flush");
    let extents = device.extents(ByteRange::new(0, size)).await;
    let extents = extents.expect("extents").collect_joined().await;
    let left: u64 = extents.expect("extents").iter().map(|e| e.length).sum();
    assert!(
        left <= 2 * ctx.expect.granularity,
        "{left} bytes are still allocated"
    );
    ctx.eventually("discarded space is freed", async || {
        let used = ctx.pool().usage().await.expect("usage").used.bytes();
        full.saturating_sub(used) > size / 2
    })
    .await;
}

pub(crate) async fn device_zeroes_fast_or_not_at_all(ctx: &Ctx<'_>) {
    let mut data = ctx.filled("a", MIB, 1).await.to_vec();
    let device = ctx.writer("a").await;
    let ranges = [(4096, 65536), (100, 200), (300_000, 123_457), (MIB - 1, 1)];
    for (i, (offset, length)) in ranges.into_iter().enumerate() {
        let options = ZeroOptions {
            may_discard: i % 2 == 1,
            fast_only: true,
        };
        let range = ByteRange::new(offset, length);
        let zeroed = device.write_zeroes(range, options).await;
        if ctx.expect.fast_zeroes {
            zeroed.expect("zero fast");
            data[offset as usize..range.end() as usize].fill(0);
        } else {
            assert_error(zeroed, ErrorKind::Unsupported, "write_zeroes", "a");
        }
        let found = read_device(device.as_ref()).await;
        assert_same(&found, &data, &format!("after {options:?} of {range:?}"));
    }
}

pub(crate) async fn device_refresh_finds_the_volume_by_what_it_is(ctx: &Ctx<'_>) {
    ctx.create("a", MIB).await;
    let other = ctx.other_handle().await;
    let writer = ctx.writer("a").await;
    let reader = ctx.reader("a").await;
    let renamed = other.rename_volume(&n("a"), &n("b")).await;
    renamed.expect("rename");
    assert_eq!(writer.refresh().await.expect("refresh"), MIB);
    let options = ctx.expect.volume(5 * MIB);
    let namesake = other.create_volume(&n("a"), options).await;
    namesake.expect("another volume of the old name");
    assert_eq!(writer.refresh().await.expect("refresh"), MIB);
    let options = ResizeOptions::grow(ByteSize::new(2 * MIB));
    let grown = other.resize_volume(&n("b"), options).await;
    grown.expect("grow");
    for device in [&writer, &reader] {
        assert_eq!(device.refresh().await.expect("refresh"), 2 * MIB);
        assert_eq!((device.size(), device.name()), (2 * MIB, &n("a")));
    }
    let back = other.rename_volume(&n("a"), &n("c")).await;
    back.expect("the old name is free");
    let back = other.rename_volume(&n("b"), &n("a")).await;
    back.expect("rename back");
    assert_eq!(reader.refresh().await.expect("refresh"), 2 * MIB);
}

pub(crate) async fn device_outlives_its_pool_handle(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    let other = ctx.other_handle().await;
    let device = other.open_volume(&n("a"), OpenOptions::read_write()).await;
    let device = device.expect("open");
    drop(other);
    device.write_at(0, pattern(2, 512)).await.expect("write");
    device.flush().await.expect("flush");
    let found = read_device(device.as_ref()).await;
    assert_same(&found[..512], &pattern(2, 512), "written");
    assert_same(&found[512..], &data[512..], "the rest");
}
