//! What the map costs; run with `--release -- --ignored --nocapture map::measure`.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;

use super::tree::tests::{Pages, Sink, block_on, object};
use super::{MOST_BLOCKS, Overlay, Page, PageStore, Place, View};
use super::{apply, changed, extents, lookup_cached, walk};
use crate::tip::{PagePtr, Root};

/// Blocks in 1 TiB.
const BLOCKS: u64 = 1 << 28;
/// Changes in a checkpoint.
const CHANGES: u64 = 500_000;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * u128::from(end)) >> 64) as u64
    }
}

/// Time on a processor, which does not depend on what else the machine does.
pub(super) fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let first = stat.split(' ').next().unwrap();
    Duration::from_nanos(first.parse().unwrap())
}

pub(super) fn timed<T>(what: &str, count: u64, run: impl FnOnce() -> T) -> T {
    let begun = cpu();
    let out = run();
    let took = cpu() - begun;
    println!(
        "{what}: {took:?}, {} ns each",
        took.as_nanos() / u128::from(count)
    );
    out
}

fn changes(pages: &Pages, round: u64, random: &mut Random) -> Overlay {
    let mut overlay = Overlay::default();
    for i in 0..CHANGES {
        let object = object(&pages.table, round * 1000 + i / 2000);
        let index = (i % 2000) as u32;
        overlay.insert(random.below(BLOCKS), 1, Some(Place { object, index }));
    }
    overlay
}

fn figures(pages: &Pages, root: &Root) {
    let (mut extents, mut leaves, mut memory, mut inner) = (0, 0, 0, 0);
    let mut leaf = |page: &Page| {
        extents += page.extents();
        leaves += 1;
        // With the counts of the Arc that it is held by.
        memory += page.memory() + 16;
    };
    block_on(walk(pages, root, &mut |_| true, &mut leaf)).unwrap();
    let mut enter = |at: &PagePtr| {
        let page = pages.cached(at).unwrap();
        if page.level() > 0 {
            inner += page.memory() + 16;
        }
        page.level() > 0
    };
    block_on(walk(pages, root, &mut enter, &mut |_| ())).unwrap();
    println!(
        "{extents} extents in {leaves} leaves: {:.1} bytes an extent, and {:.1} above the leaves",
        memory as f64 / extents as f64,
        inner as f64 / extents as f64,
    );
}

#[test]
#[ignore = "a measurement: run with --release --nocapture"]
fn measure() {
    let pages = Arc::new(Pages::in_memory());
    let mut random = Random(42);
    let mut root = Root::EMPTY;
    for round in 0..20 {
        let overlay = changes(&pages, round, &mut random);
        pages.keep(&root);
        let (count, bytes) = pages.written();
        let changes = overlay.iter();
        let new = async { apply(&*pages, &pages.table, &root, changes, &mut Sink(&pages)).await };
        let new = timed("500k random changes over 1 TiB", CHANGES, || block_on(new)).unwrap();
        let (new_count, new_bytes) = pages.written();
        println!(
            "{} pages, {} bytes written",
            new_count - count,
            new_bytes - bytes
        );
        if round == 19 {
            figures(&pages, &new);
            ranges(&pages, root, new);
        }
        root = new;
    }
    figures(&pages, &root);
    let wanted: Vec<u64> = (0..CHANGES).map(|_| random.below(BLOCKS)).collect();
    timed("cached lookup of a block", CHANGES, || {
        for block in wanted {
            let runs = lookup_cached(&*pages, &root, block, block + 1).unwrap();
            assert_eq!(runs.map(|runs| runs.len()), Some(1));
        }
    });
}

fn ranges(pages: &Arc<Pages>, before: Root, root: Root) {
    let view = |root| View {
        overlays: Vec::new(),
        root,
    };
    let all = extents(pages.clone(), view(root), 0..MOST_BLOCKS);
    let all = timed("extents", root.mapped, || {
        block_on(all.try_collect::<Vec<_>>())
    })
    .unwrap();
    println!("{} extents", all.len());
    let diff = changed(pages.clone(), view(before), view(root), 0..MOST_BLOCKS);
    let diff = timed("changed", CHANGES, || {
        block_on(diff.try_collect::<Vec<_>>())
    })
    .unwrap();
    println!("{} ranges", diff.len());
}
