use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;
use volmux_core::{Error, ErrorKind};

use super::super::{
    MOST_BLOCKS, ObjectInfo, ObjectTable, Overlay, PageSink, Place, View, apply, changed, extents,
    lookup, lookup_cached,
};
use super::*;
use crate::keys::{LogId, ObjectKey};

pub(in super::super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future)
}

/// Pages in memory, of which some count as cached.
#[derive(Debug, Default)]
pub(in super::super) struct Pages {
    pub(in super::super) table: ObjectTable,
    bodies: Mutex<HashMap<PagePtr, Vec<u8>>>,
    cached: Mutex<HashMap<PagePtr, Arc<Page>>>,
    pub(in super::super) loads: AtomicUsize,
    next: AtomicUsize,
    /// How often a page that was loaded is kept: in one of so many cases.
    keep: usize,
}

impl Pages {
    fn keeping(keep: usize) -> Arc<Self> {
        Arc::new(Pages {
            keep,
            ..Pages::default()
        })
    }

    /// With all that was ever loaded kept.
    pub(in super::super) fn in_memory() -> Self {
        Pages {
            keep: 1,
            ..Pages::default()
        }
    }

    fn page(&self, at: &PagePtr) -> Arc<Page> {
        let bodies = self.bodies.lock().unwrap();
        Arc::new(Page::decode(&bodies[at], &self.table).unwrap())
    }

    /// Forgets all pages but those of one tree.
    pub(in super::super) fn keep(&self, root: &Root) {
        let mut kept = BTreeSet::new();
        let mut enter = |at: &PagePtr| kept.insert(*at);
        block_on(walk(self, root, &mut enter, &mut |_| ())).unwrap();
        let kept = |at: &PagePtr| kept.contains(at);
        self.bodies.lock().unwrap().retain(|at, _| kept(at));
        self.cached.lock().unwrap().retain(|at, _| kept(at));
    }

    /// Pages there are, and their bytes.
    pub(in super::super) fn written(&self) -> (usize, usize) {
        let bodies = self.bodies.lock().unwrap();
        (bodies.len(), bodies.values().map(Vec::len).sum())
    }
}

#[async_trait]
impl PageStore for Pages {
    async fn load(&self, at: &PagePtr) -> Result<Arc<Page>> {
        let loads = self.loads.fetch_add(1, Ordering::Relaxed) + 1;
        if self.keep > 0 && loads.is_multiple_of(self.keep) {
            self.cached.lock().unwrap().insert(*at, self.page(at));
        }
        Ok(self.page(at))
    }

    fn cached(&self, at: &PagePtr) -> Option<Arc<Page>> {
        self.cached.lock().unwrap().get(at).cloned()
    }
}

fn key(seq: u64) -> ObjectKey {
    ObjectKey {
        log: LogId(Uuid::from_u128(u128::from(seq % 2))),
        epoch: seq % 3,
        seq,
    }
}

/// Puts pages into a [`Pages`].
pub(in super::super) struct Sink<'a>(pub(in super::super) &'a Pages);

#[async_trait]
impl PageSink for Sink<'_> {
    async fn place(&mut self, body: Vec<u8>) -> Result<PagePtr> {
        let count = self.0.next.fetch_add(1, Ordering::Relaxed);
        let at = PagePtr {
            object: key(count as u64 / 100),
            offset: (count % 100 * 5000) as u32,
            length: body.len() as u32,
        };
        self.0.bodies.lock().unwrap().insert(at, body);
        Ok(at)
    }
}

pub(in super::super) fn object(table: &ObjectTable, seq: u64) -> super::super::ObjectId {
    let info = ObjectInfo {
        key: key(1_000_000 + seq),
        start: 1,
        framed: false,
    };
    table.intern(&info).unwrap()
}

/// A map as it should be, in runs.
type Model = Overlay;

fn write(model: &mut Model, run: &Run) {
    match run.place {
        Some(_) => model.insert(run.start, run.blocks, run.place),
        None => model.clear(run.start, run.blocks),
    }
}

fn model_of(view: &[&Model], base: &Model) -> Model {
    let mut model = base.clone();
    for overlay in view.iter().rev() {
        overlay.iter().for_each(|run| write(&mut model, &run));
    }
    model
}

fn covering(model: &Model, start: u64, end: u64) -> Vec<Run> {
    let mut out = Vec::new();
    for span in model.cover(start, end) {
        let place = span.found.flatten();
        let (start, blocks) = (span.start, span.blocks);
        push(
            &mut out,
            Run {
                start,
                blocks,
                place,
            },
        );
    }
    out
}

/// Block by block where it is short, else by the ends of runs.
fn differing(a: &Model, b: &Model, range: &std::ops::Range<u64>) -> Vec<std::ops::Range<u64>> {
    let mut ends: BTreeSet<u64> = BTreeSet::from([range.start, range.end]);
    for run in a.iter().chain(b.iter()) {
        ends.extend(
            [run.start, run.end()]
                .iter()
                .filter(|at| range.contains(at)),
        );
    }
    let ends: Vec<u64> = ends.into_iter().collect();
    let mut out: Vec<std::ops::Range<u64>> = Vec::new();
    for pair in ends.windows(2) {
        if a.get(pair[0]) != b.get(pair[0]) {
            match out.last_mut() {
                Some(last) if last.end == pair[0] => last.end = pair[1],
                _ => out.push(pair[0]..pair[1]),
            }
        }
    }
    out
}

/// Blocks that are close together in one of some places far from each other.
fn any_block() -> impl Strategy<Value = u64> {
    let far = prop_oneof![
        Just(0u64),
        Just(2048 * 512 - 3000),
        Just(1 << 29),
        Just((1 << 38) - 1000),
        Just(1 << 47),
        Just(MOST_BLOCKS - 6000),
    ];
    (far, 0..6000u64).prop_map(|(far, near)| far + near)
}

fn any_run() -> impl Strategy<Value = (u64, u64, Option<(u64, u32)>)> {
    let blocks = prop_oneof![6 => 1..8u64, 3 => 1..5000u64, 1 => 1..300_000u64];
    let hole = prop_oneof![4 => 1..5000u64, 1 => 1..1u64 << 40, 1 => Just(MOST_BLOCKS)];
    let place = (0..3u64, 0..4000u32);
    prop_oneof![
        3 => (any_block(), blocks, place).prop_map(|(start, n, place)| (start, n, Some(place))),
        1 => (any_block(), hole).prop_map(|(start, n)| (start, n, None)),
    ]
}

type Batch = Vec<(u64, u64, Option<(u64, u32)>)>;

fn overlay_of(table: &ObjectTable, batch: &Batch) -> Overlay {
    let mut overlay = Overlay::default();
    for (start, blocks, place) in batch {
        let blocks = (*blocks).min(MOST_BLOCKS - start);
        let place = place.map(|(seq, index)| Place {
            object: object(table, seq),
            index,
        });
        overlay.insert(*start, blocks, place);
    }
    overlay
}

async fn read_tree(pages: &Arc<Pages>, root: &Root, model: &Model) {
    let all = extents(pages.clone(), view(&[], root), 0..MOST_BLOCKS);
    let all: Vec<Run> = all.try_collect().await.unwrap();
    let wanted: Vec<Run> = model.iter().collect();
    assert_eq!(all, wanted);
    assert_eq!(
        root.mapped,
        wanted.iter().map(|run| run.blocks).sum::<u64>()
    );
    assert_eq!(root.page.is_none(), wanted.is_empty());
}

fn view(overlays: &[&Overlay], root: &Root) -> View {
    View {
        overlays: overlays.iter().map(|overlay| (*overlay).clone()).collect(),
        root: *root,
    }
}

/// Trees made one from the other, and what they should say.
async fn grow(pages: &Arc<Pages>, batches: &[Batch]) -> Vec<(Root, Model)> {
    let mut trees = vec![(Root::EMPTY, Model::default())];
    for batch in batches {
        let changes = overlay_of(&pages.table, batch);
        let (root, model) = trees.last().unwrap();
        let mut sink = Sink(pages);
        let new = apply(&**pages, &pages.table, root, changes.iter(), &mut sink).await;
        let model = model_of(&[&changes], model);
        trees.push((new.unwrap(), model));
    }
    trees
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn trees_say_what_was_written_to_them(
        batches in vec(vec(any_run(), 0..40), 1..6),
        looks in vec((any_block(), 1..9000u64), 10),
        keep in 0..4usize,
    ) {
        block_on(async {
            let pages = Pages::keeping(keep);
            let trees = grow(&pages, &batches).await;
            // Old trees are as they were.
            for (root, model) in &trees {
                read_tree(&pages, root, model).await;
                for (start, blocks) in &looks {
                    let (start, end) = (*start, (start + blocks).min(MOST_BLOCKS));
                    let wanted = covering(model, start, end);
                    let quick = lookup_cached(&*pages, root, start, end).unwrap();
                    let found = lookup(&*pages, root, start, end).await.unwrap();
                    assert_eq!(&found, &wanted);
                    assert!(quick.is_none_or(|quick| quick == wanted));
                }
            }
        });
    }

    #[test]
    fn what_differs_is_told_exactly(
        batches in vec(vec(any_run(), 0..30), 1..5),
        a in (any::<prop::sample::Index>(), vec(vec(any_run(), 0..20), 0..3)),
        b in (any::<prop::sample::Index>(), vec(vec(any_run(), 0..20), 0..3)),
        part in (any_block(), 1..1u64 << 40),
    ) {
        block_on(async {
            let pages = Pages::keeping(3);
            let trees = grow(&pages, &batches).await;
            let side = |(at, batches): &(prop::sample::Index, Vec<Batch>)| {
                let (root, model) = &trees[at.index(trees.len())];
                let overlays: Vec<Overlay> =
                    batches.iter().map(|batch| overlay_of(&pages.table, batch)).collect();
                let overlays: Vec<&Overlay> = overlays.iter().collect();
                (view(&overlays, root), model_of(&overlays, model))
            };
            let ((a, a_model), (b, b_model)) = (side(&a), side(&b));
            let part = part.0..(part.0 + part.1).min(MOST_BLOCKS);
            for range in [0..MOST_BLOCKS, part] {
                let found = changed(pages.clone(), a.clone(), b.clone(), range.clone());
                let found: Vec<_> = found.try_collect().await.unwrap();
                assert_eq!(found, differing(&a_model, &b_model, &range));
                let found = extents(pages.clone(), a.clone(), range.clone());
                let found: Vec<Run> = found.try_collect().await.unwrap();
                let mut wanted = covering(&a_model, range.start, range.end);
                wanted.retain(|run| run.place.is_some());
                assert_eq!(found, wanted);
            }
        });
    }

    #[test]
    fn a_walk_shows_each_page_once(batches in vec(vec(any_run(), 0..30), 1..5)) {
        block_on(async {
            let pages = Pages::keeping(0);
            let trees = grow(&pages, &batches).await;
            let mut seen = BTreeSet::new();
            for (root, model) in &trees {
                let (mut blocks, mut entered) = (0, BTreeSet::new());
                let mut enter = |at: &PagePtr| { assert!(entered.insert(*at)); true };
                let mut leaf = |page: &Page| blocks += page.mapped();
                walk(&*pages, root, &mut enter, &mut leaf).await.unwrap();
                assert_eq!(blocks, root.mapped);
                assert_eq!(blocks, model.iter().map(|run| run.blocks).sum::<u64>());
                // Pages that another tree showed are not read again.
                let before = pages.loads.load(Ordering::Relaxed);
                let new = entered.difference(&seen).count();
                let mut enter = |at: &PagePtr| seen.insert(*at);
                walk(&*pages, root, &mut enter, &mut |_| ()).await.unwrap();
                assert_eq!(pages.loads.load(Ordering::Relaxed) - before, new);
            }
            assert_eq!(seen.len(), pages.written().0.min(seen.len()));
        });
    }
}

/// A tree of `leaves` leaves with a block in each, one further in each round.
async fn even(pages: &Arc<Pages>, leaves: u64, rounds: u64) -> Vec<Root> {
    let mut roots = vec![Root::EMPTY];
    for round in 0..rounds {
        let mut overlay = Overlay::default();
        for leaf in 0..leaves {
            let object = object(&pages.table, round);
            let index = leaf as u32;
            overlay.insert(leaf * 2048 + round * 2, 1, Some(Place { object, index }));
        }
        let mut sink = Sink(pages);
        let root = roots.last().unwrap();
        let root = apply(&**pages, &pages.table, root, overlay.iter(), &mut sink).await;
        roots.push(root.unwrap());
    }
    roots
}

fn loads_of<T>(pages: &Pages, run: impl Future<Output = T>) -> (usize, T) {
    let before = pages.loads.load(Ordering::Relaxed);
    let out = block_on(run);
    (pages.loads.load(Ordering::Relaxed) - before, out)
}

#[test]
fn only_what_is_needed_is_read_and_written() {
    let pages = Pages::keeping(0);
    let roots = block_on(even(&pages, 1500, 1));
    let root = roots[1];
    // 1,500 leaves, 3 pages above them, and the topmost.
    assert_eq!((pages.written().0, root.level), (1504, 2));
    let (loads, _) = loads_of(&pages, lookup(&*pages, &root, 2048 * 1000, 2048 * 1000 + 1));
    assert_eq!(loads, 3);
    let written = pages.written().0;
    let run = |block, place| Run {
        start: block,
        blocks: 1,
        place,
    };
    let object = object(&pages.table, 77);
    let place = Some(Place { object, index: 1 });
    let changes = [
        run(5 * 2048, place),
        run(1400 * 2048 + 7, place),
        run(1400 * 2048 + 9, None),
    ];
    let apply = |changes: Vec<Run>| {
        let pages = pages.clone();
        async move {
            let changes = changes.iter().copied();
            apply(&*pages, &pages.table, &root, changes, &mut Sink(&pages)).await
        }
    };
    let (loads, new) = loads_of(&pages, apply(changes.to_vec()));
    assert_eq!((loads, pages.written().0 - written), (5, 5));
    let diff = changed(
        pages.clone(),
        view(&[], &root),
        view(&[], &new.unwrap()),
        0..MOST_BLOCKS,
    );
    let (loads, diff) = loads_of(&pages, diff.try_collect::<Vec<_>>());
    assert_eq!(loads, 10);
    let wanted = vec![5 * 2048..5 * 2048 + 1, 1400 * 2048 + 7..1400 * 2048 + 8];
    assert_eq!(diff.unwrap(), wanted);
    // What changes nothing writes nothing, and what goes as a whole is not read.
    let (loads, same) = loads_of(&pages, apply(vec![run(2048 + 7, None)]));
    assert_eq!(
        (loads, same.unwrap(), pages.written().0 - written),
        (3, root, 5)
    );
    let all = Run {
        start: 0,
        blocks: MOST_BLOCKS,
        place: None,
    };
    let (loads, empty) = loads_of(&pages, apply(vec![all]));
    assert_eq!((loads, empty.unwrap()), (1, Root::EMPTY));
    let cut = Run {
        start: 2048 * 512 + 2048,
        ..all
    };
    let (loads, cut) = loads_of(&pages, apply(vec![cut]));
    assert_eq!((loads, cut.unwrap().mapped), (2, 513));
}

#[test]
fn a_difference_between_equal_trees_reads_nothing() {
    let pages = Pages::keeping(0);
    let roots = block_on(even(&pages, 100, 2));
    let mut overlay = Overlay::default();
    overlay.insert(50 * 2048, 1, None);
    let (a, b) = (view(&[], &roots[2]), view(&[&overlay], &roots[2]));
    let diff = changed(pages.clone(), a.clone(), a.clone(), 0..MOST_BLOCKS);
    assert_eq!(loads_of(&pages, diff.count()), (0, 0));
    let diff = changed(pages.clone(), a, b, 0..MOST_BLOCKS);
    let (loads, diff) = loads_of(&pages, diff.try_collect::<Vec<_>>());
    let diff = diff.unwrap();
    assert_eq!((loads, diff.len()), (4, 1));
    assert_eq!(diff[0], 50 * 2048..50 * 2048 + 1);
}

#[test]
fn a_page_of_another_place_is_not_believed() {
    let pages = Pages::keeping(0);
    let roots = block_on(even(&pages, 600, 1));
    let top = pages.page(&roots[1].page.unwrap());
    let child = top.children().nth(1).unwrap();
    let wrong = Root {
        page: Some(child.page),
        level: 1,
        mapped: child.mapped,
    };
    for root in [
        wrong,
        Root {
            level: 5,
            ..roots[1]
        },
    ] {
        let error: Error = block_on(lookup(&*pages, &root, 0, 10)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}

/// Pages that are loaded one at a time, each for a while.
#[derive(Debug)]
struct Slow(Arc<Pages>, tokio::sync::Mutex<()>);

#[async_trait]
impl PageStore for Slow {
    async fn load(&self, at: &PagePtr) -> Result<Arc<Page>> {
        let _turn = self.1.lock().await;
        tokio::task::yield_now().await;
        Ok(self.0.page(at))
    }

    fn cached(&self, _: &PagePtr) -> Option<Arc<Page>> {
        None
    }
}

/// Looks something up each time it gets a page.
struct Busy(Arc<Slow>, Root);

impl Busy {
    async fn look(&self) {
        let look = lookup(&*self.0, &self.1, 2048 * 20, 2048 * 20 + 1);
        look.await.unwrap();
    }
}

#[async_trait]
impl PageSink for Busy {
    async fn place(&mut self, body: Vec<u8>) -> Result<PagePtr> {
        self.look().await;
        Sink(&self.0.0).place(body).await
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_load_that_was_left_half_done() {
    let all = tokio::time::timeout(std::time::Duration::from_secs(60), read_and_write());
    all.await.expect("someone waits for ever");
}

async fn read_and_write() {
    let pages = Pages::keeping(0);
    let roots = even(&pages, 1200, 1).await;
    let slow = Arc::new(Slow(pages.clone(), tokio::sync::Mutex::default()));
    let mut busy = Busy(slow.clone(), roots[1]);
    let mut all = extents(slow.clone(), view(&[], &roots[1]), 0..MOST_BLOCKS);
    for _ in 0..100 {
        all.try_next().await.unwrap();
        busy.look().await;
    }
    let mut diff = changed(
        slow.clone(),
        View::EMPTY,
        view(&[], &roots[1]),
        0..MOST_BLOCKS,
    );
    for _ in 0..100 {
        diff.try_next().await.unwrap();
        busy.look().await;
    }
    let mut overlay = Overlay::default();
    let object = object(&pages.table, 5);
    let place = Some(Place { object, index: 5 });
    (0..1200).for_each(|leaf| overlay.insert(leaf * 2048 + 9, 1, place));
    let (root, changes) = (roots[1], overlay.iter());
    apply(&*slow, &pages.table, &root, changes, &mut busy)
        .await
        .unwrap();
}
