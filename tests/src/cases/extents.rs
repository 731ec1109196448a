//! Extents: which ranges hold data, and which changed.

use super::*;
use futures::StreamExt;
use volmux::{
    ByteRange, ByteSize, CreateOptions, ErrorKind, ExtentQuery, ExtentStream, Grade, ResizeOptions,
};

const SIZE: u64 = 4 * MIB;

/// What a volume should hold, block by block.
struct Model {
    data: Vec<u8>,
    allocated: Vec<bool>,
    unit: u64,
}

impl Model {
    fn new(size: u64, unit: u64) -> Model {
        Model {
            data: vec![0; size as usize],
            allocated: vec![false; size.div_ceil(unit) as usize],
            unit,
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        self.data[offset as usize..end as usize].copy_from_slice(data);
        let blocks = offset / self.unit..end.div_ceil(self.unit);
        self.allocated[blocks.start as usize..blocks.end as usize].fill(true);
    }

    fn discard(&mut self, range: ByteRange) {
        self.data[range.offset as usize..range.end() as usize].fill(0);
        let whole_end = if range.end() == self.data.len() as u64 {
            self.allocated.len() as u64
        } else {
            range.end() / self.unit
        };
        for block in range.offset.div_ceil(self.unit)..whole_end {
            self.allocated[block as usize] = false;
        }
    }

    fn allocated(&self) -> Vec<ByteRange> {
        self.ranges(|block| self.allocated[block])
    }

    fn changed_since(&self, older: &Model) -> Vec<ByteRange> {
        self.ranges(|block| {
            let start = block * self.unit as usize;
            let end = (start + self.unit as usize).min(self.data.len());
            (start..end).any(|at| self.data[at] != older.data.get(at).copied().unwrap_or(0))
        })
    }

    /// The blocks that `holds` picks, joined where they touch.
    fn ranges(&self, holds: impl Fn(usize) -> bool) -> Vec<ByteRange> {
        let size = self.data.len() as u64;
        let mut ranges: Vec<ByteRange> = Vec::new();
        for block in (0..self.allocated.len()).filter(|&block| holds(block)) {
            let start = block as u64 * self.unit;
            let end = (start + self.unit).min(size);
            match ranges.last_mut() {
                Some(last) if last.end() == start => last.length = end - last.offset,
                _ => ranges.push(ByteRange::from_to(start, end)),
            }
        }
        ranges
    }
}

/// Small numbers that look random and are always the same.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % bound
    }
}

/// Writes and discards at random places, and returns what the volume should hold.
async fn scribble(ctx: &Ctx<'_>, name: &str, model: &mut Model, seed: u64) {
    let mut numbers = Numbers(seed);
    let size = model.data.len() as u64;
    let device = ctx.writer(name).await;
    for _ in 0..40 {
        let offset = numbers.below(size);
        let length = (1 + numbers.below(60_000)).min(size - offset);
        if numbers.below(4) == 0 {
            let range = ByteRange::new(offset, length);
            device.discard(range).await.expect("discard");
            model.discard(range);
        } else {
            let data = pattern(numbers.below(1 << 30), length as usize);
            model.write(offset, &data);
            device.write_at(offset, data).await.expect("write");
        }
    }
    device.flush().await.expect("flush");
}

/// Asserts order and edges of a stream, and returns it joined.
async fn checked(mut stream: ExtentStream, within: ByteRange) -> Vec<ByteRange> {
    let unit = stream.granularity();
    let mut joined: Vec<ByteRange> = Vec::new();
    let mut end = within.offset;
    while let Some(extent) = stream.next().await {
        let extent = extent.expect("an extent");
        assert!(!extent.is_empty(), "an empty extent at {}", extent.offset);
        assert!(extent.offset >= end, "{extent:?} does not come after {end}");
        end = extent.end();
        assert!(end <= within.end(), "{extent:?} reaches out of {within:?}");
        for edge in [extent.offset, end] {
            let cut = edge == within.offset || edge == within.end();
            assert!(
                cut || edge.is_multiple_of(unit),
                "{edge} lies within a block"
            );
        }
        match joined.last_mut() {
            Some(last) if last.end() == extent.offset => last.length += extent.length,
            _ => joined.push(extent),
        }
    }
    joined
}

fn cut_to(ranges: &[ByteRange], within: ByteRange) -> Vec<ByteRange> {
    let cut = ranges.iter().map(|range| range.intersect(&within));
    cut.filter(|range| !range.is_empty()).collect()
}

/// Asserts that what was found fits the grade.
#[track_caller]
fn assert_graded(found: &[ByteRange], expected: &[ByteRange], grade: Grade) {
    if grade == Grade::Exact {
        assert_eq!(found, expected);
        return;
    }
    for range in expected {
        let covered = found
            .iter()
            .any(|f| f.offset <= range.offset && f.end() >= range.end());
        assert!(covered, "{range:?} is missing in {found:?}");
    }
}

/// Asks for the whole volume and for parts of it, and compares with what is expected.
async fn assert_extents(
    ctx: &Ctx<'_>,
    name: &str,
    query: ExtentQuery,
    expected: &[ByteRange],
    grade: Grade,
) {
    let size = ctx.volume(name).await.virtual_size.bytes();
    for range in [
        None,
        Some(ByteRange::new(0, size)),
        Some(ByteRange::new(0, 0)),
        Some(ByteRange::new(1000, 0)),
        Some(ByteRange::new(1000, 300_000)),
        Some(ByteRange::new(size / 2, 1)),
        Some(ByteRange::from_to(MIB - 4096, size - 4096)),
        Some(ByteRange::from_to(size - 1, size)),
    ] {
        let query = ExtentQuery {
            range,
            ..query.clone()
        };
        let within = range.unwrap_or(ByteRange::new(0, size));
        let stream = ctx.pool().extents(&n(name), query).await.expect("extents");
        assert_eq!(stream.grade(), grade);
        assert_eq!(stream.granularity(), ctx.expect.granularity);
        let found = checked(stream, within).await;
        assert_graded(&found, &cut_to(expected, within), grade);
    }
}

pub(crate) async fn extents_allocated_are_what_was_written(ctx: &Ctx<'_>) {
    let grade = ctx.expect.allocated;
    // The end lies within a block, where sizes may.
    for (name, size) in [("a", SIZE), ("b", SIZE + ctx.expect.size_unit)] {
        let mut model = Model::new(size, ctx.expect.granularity);
        ctx.create(name, size).await;
        let query = ExtentQuery::allocated();
        assert_extents(ctx, name, query.clone(), &[], grade).await;
        for round in 0..3 {
            scribble(ctx, name, &mut model, round).await;
            let expected = model.allocated();
            assert_extents(ctx, name, query.clone(), &expected, grade).await;
            let device = ctx.reader(name).await;
            let whole = ByteRange::new(0, size);
            let stream = device.extents(whole).await.expect("extents");
            assert_eq!(stream.grade(), grade);
            assert_graded(&checked(stream, whole).await, &expected, grade);
        }
    }
}

pub(crate) async fn extents_show_writes_before_a_flush(ctx: &Ctx<'_>) {
    ctx.create("a", SIZE).await;
    let device = ctx.writer("a").await;
    device.write_at(MIB, pattern(1, 8192)).await.expect("write");
    let length = 8192u64.next_multiple_of(ctx.expect.granularity);
    let expected = [ByteRange::new(MIB, length)];
    let found = ctx.extents("a", ExtentQuery::allocated()).await;
    assert_graded(&found, &expected, ctx.expect.allocated);
}

pub(crate) async fn extents_of_snapshots_and_clones_are_their_own(ctx: &Ctx<'_>) {
    let mut model = Model::new(SIZE, ctx.expect.granularity);
    ctx.create("a", SIZE).await;
    scribble(ctx, "a", &mut model, 1).await;
    let then = model.allocated();
    ctx.snapshot("a", "s").await;
    ctx.clone_of("s", "c").await;
    scribble(ctx, "a", &mut model, 2).await;
    let query = ExtentQuery::allocated;
    let grade = ctx.expect.allocated;
    assert_extents(ctx, "s", query(), &then, grade).await;
    assert_extents(ctx, "c", query(), &then, grade).await;
    assert_extents(ctx, "a", query(), &model.allocated(), grade).await;
}

pub(crate) async fn extents_of_a_thick_volume_hold_its_data(ctx: &Ctx<'_>) {
    let options = CreateOptions::thick(ByteSize::new(SIZE));
    let made = ctx.pool().create_volume(&n("a"), options).await;
    made.expect("create thick");
    ctx.write("a", MIB, pattern(1, 8192)).await;
    // How much of what is reserved shows up beside it is the backend's business.
    let found = ctx.extents("a", ExtentQuery::allocated()).await;
    assert_graded(&found, &[ByteRange::new(MIB, 8192)], Grade::Superset);
}

pub(crate) async fn extents_changed_are_what_differs(ctx: &Ctx<'_>) {
    let unit = ctx.expect.granularity;
    let grade = ctx.expect.changed;
    let mut model = Model::new(SIZE, unit);
    ctx.create("a", SIZE).await;
    scribble(ctx, "a", &mut model, 1).await;
    let mut history = Vec::new();
    for round in 0..4u64 {
        let snapshot = format!("s{round}");
        ctx.snapshot("a", &snapshot).await;
        let copy = Model {
            data: model.data.clone(),
            allocated: model.allocated.clone(),
            unit,
        };
        history.push((snapshot, copy));
        scribble(ctx, "a", &mut model, 100 + round).await;
    }
    for (snapshot, then) in &history {
        let query = ExtentQuery::changed_since(n(snapshot));
        let expected = model.changed_since(then);
        assert_extents(ctx, "a", query, &expected, grade).await;
    }
    // Between snapshots, in both directions.
    for ((older, then), (newer, now)) in history.iter().zip(&history[1..]) {
        let query = ExtentQuery::changed_since(n(older));
        assert_extents(ctx, newer, query, &now.changed_since(then), grade).await;
        let query = ExtentQuery::changed_since(n(newer));
        assert_extents(ctx, older, query, &then.changed_since(now), grade).await;
    }
}

pub(crate) async fn extents_changed_are_none_right_after_a_snapshot(ctx: &Ctx<'_>) {
    ctx.filled("a", SIZE, 1).await;
    ctx.snapshot("a", "s").await;
    ctx.clone_of("s", "c").await;
    let grade = ctx.expect.changed;
    for (name, since) in [("a", "s"), ("s", "a"), ("c", "s"), ("c", "a"), ("a", "a")] {
        let query = ExtentQuery::changed_since(n(since));
        assert_extents(ctx, name, query, &[], grade).await;
    }
}

pub(crate) async fn extents_changed_ignore_rewritten_data(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", SIZE, 1).await;
    ctx.snapshot("a", "s").await;
    ctx.write("a", 0, data.slice(..65536)).await;
    ctx.write("a", MIB, pattern(2, 1)).await;
    let expected = [ByteRange::new(MIB, ctx.expect.granularity)];
    let query = ExtentQuery::changed_since(n("s"));
    assert_extents(ctx, "a", query, &expected, ctx.expect.changed).await;
}

pub(crate) async fn extents_changed_of_a_clone_since_its_origin(ctx: &Ctx<'_>) {
    let unit = ctx.expect.granularity;
    let mut model = Model::new(SIZE, unit);
    ctx.create("a", SIZE).await;
    scribble(ctx, "a", &mut model, 1).await;
    let then = Model {
        data: model.data.clone(),
        allocated: model.allocated.clone(),
        unit,
    };
    ctx.snapshot("a", "s").await;
    ctx.clone_of("s", "c").await;
    scribble(ctx, "c", &mut model, 2).await;
    ctx.delete("a").await;
    let query = ExtentQuery::changed_since(n("s"));
    let expected = model.changed_since(&then);
    assert_extents(ctx, "c", query, &expected, ctx.expect.changed).await;
}

pub(crate) async fn extents_changed_with_different_sizes_count_the_rest_as_zeros(ctx: &Ctx<'_>) {
    let unit = ctx.expect.granularity;
    let grade = ctx.expect.changed;
    let size = SIZE - ctx.expect.size_unit;
    let mut small = Model::new(size, unit);
    ctx.create("a", size).await;
    let end = size - 5000;
    for (offset, length) in [(0, 10_000), (end, 5000)] {
        let data = pattern(offset, length);
        small.write(offset, &data);
        ctx.write("a", offset, data).await;
    }
    ctx.snapshot("a", "s").await;
    let options = ResizeOptions::grow(ByteSize::new(2 * SIZE));
    let grown = ctx.pool().resize_volume(&n("a"), options).await;
    grown.expect("grow");
    let mut large = Model::new(2 * SIZE, unit);
    large.data[..small.data.len()].copy_from_slice(&small.data);
    let since_small = || ExtentQuery::changed_since(n("s"));
    assert_extents(ctx, "a", since_small(), &[], grade).await;
    for offset in [4096, SIZE, SIZE + MIB] {
        let data = pattern(offset, 3000);
        large.write(offset, &data);
        ctx.write("a", offset, data).await;
    }
    let expected = large.changed_since(&small);
    assert_extents(ctx, "a", since_small(), &expected, grade).await;
    // Seen from the smaller one, what lies past its end does not exist.
    let expected = small.changed_since(&large);
    let query = ExtentQuery::changed_since(n("a"));
    assert_extents(ctx, "s", query, &expected, grade).await;
    // In the block that the smaller one ends in, or right behind it.
    let data = pattern(1, 100);
    large.write(size + 112, &data);
    ctx.write("a", size + 112, data).await;
    let expected = large.changed_since(&small);
    assert_extents(ctx, "a", since_small(), &expected, grade).await;
}

pub(crate) async fn extents_changed_past_the_end_do_not_count(ctx: &Ctx<'_>) {
    let end = SIZE + ctx.expect.size_unit;
    ctx.create("small", end).await;
    ctx.create("large", 2 * SIZE).await;
    for name in ["small", "large"] {
        ctx.write(name, 0, pattern(3, 512)).await;
    }
    ctx.write("large", end, pattern(1, 512)).await;
    let query = || ExtentQuery::changed_since(n("large"));
    assert_extents(ctx, "small", query(), &[], ctx.expect.changed).await;
    ctx.write("small", end - 512, pattern(2, 512)).await;
    let unit = ctx.expect.granularity;
    let tail = ByteRange::from_to((end - 1) / unit * unit, end);
    assert_extents(ctx, "small", query(), &[tail], ctx.expect.changed).await;
}

pub(crate) async fn extents_changed_since_what_is_missing_says_so(ctx: &Ctx<'_>) {
    ctx.filled("a", MIB, 1).await;
    let before = ctx.state().await;
    let query = ExtentQuery::changed_since(n("missing"));
    let result = ctx.pool().extents(&n("a"), query).await;
    ctx.refused(result, ErrorKind::NotFound, "extents", "missing", &before)
        .await;
    let query = ExtentQuery::changed_since(n("a"));
    let result = ctx.pool().extents(&n("missing"), query).await;
    ctx.refused(result, ErrorKind::NotFound, "extents", "missing", &before)
        .await;
}
