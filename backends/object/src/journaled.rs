//! Volumes with journals, whose processes die: what was flushed must be there again, and nothing
//! else than what a power cut could have left.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::time::timeout;
use volmux_core::{
    BlockDevice, ByteRange, ByteSize, CreateOptions, ErrorKind, OpenOptions, Pool, VolumeName,
};

use crate::catalog::tests::rough::Rough;
use crate::config::{Flush, Location, ObjectConfig};
use crate::pool::ObjectPool;
use crate::tip::BLOCK;

const OP: &str = "test";
const BLOCKS: u64 = 64;

fn name(name: &str) -> VolumeName {
    VolumeName::new(name).expect("a name")
}

fn disk() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a directory")
}

async fn pool(store: &Arc<Rough>, journals: &Path, seed: u64) -> Arc<ObjectPool> {
    let config = ObjectConfig {
        object_size: Some(ByteSize::kib(64)),
        cache: Some(ByteSize::mib(8)),
        flush: Flush::Journal,
        journal: Some(journals.to_owned()),
        journal_size: Some(ByteSize::mib(8)),
        ..ObjectConfig::new(Location::Memory)
    };
    let pool = ObjectPool::over(store.clone(), config, seed).await;
    pool.expect("it opens")
}

async fn open(pool: &ObjectPool, volume: &str, options: OpenOptions) -> Arc<dyn BlockDevice> {
    let opened = pool.open_volume(&name(volume), options).await;
    opened.expect("it opens")
}

/// Runs something that dies after so many turns, if it has not come to its end by then.
fn die_after(turns: u64, life: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let death = async {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = death => {}
            () = life => {}
        }
    });
}

/// What the volume may hold.
#[derive(Clone)]
struct Model {
    before: Vec<u8>,
    /// Each with what is there after it.
    writes: Vec<(Range<u64>, u8)>,
    /// So many of them are flushed.
    flushed: usize,
    snapshots: BTreeMap<String, Vec<u8>>,
}

impl Model {
    fn after(&self, writes: usize) -> Vec<u8> {
        let mut content = self.before.clone();
        for (blocks, tag) in &self.writes[..writes] {
            content[blocks.start as usize..blocks.end as usize].fill(*tag);
        }
        content
    }

    /// What was found must be all up to some write; of the next one, any blocks may be there.
    fn settle(&mut self, found: &[u8], at_least: usize) {
        let fits = |writes: usize| {
            let before = self.after(writes);
            let after = self.after((writes + 1).min(self.writes.len()));
            let mut blocks = found.iter().zip(before.iter().zip(&after));
            blocks.all(|(found, (before, after))| found == before || found == after)
        };
        let all = self.writes.len();
        assert!(
            (at_least..=all).any(fits),
            "{found:?} after {at_least} to all of {:?}, before them {:?}",
            self.writes,
            self.before
        );
        self.before = found.to_vec();
        self.writes.clear();
        self.flushed = 0;
    }
}

async fn content(device: &dyn BlockDevice) -> Vec<u8> {
    let read = device.read_at(0, (BLOCKS * BLOCK) as usize).await;
    let read = read.expect("read");
    let blocks = read.chunks(BLOCK as usize);
    blocks
        .map(|block| {
            assert!(block.iter().all(|byte| *byte == block[0]), "half of one");
            block[0]
        })
        .collect()
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(11);
        (self.0 >> 33) % end
    }
}

/// One process: opens the volume, looks at it, and works on it.
async fn live(
    (store, disk, seed): (&Arc<Rough>, &Path, u64),
    model: &RefCell<Model>,
    is_lost: &Cell<bool>,
) {
    let mut dice = Dice(seed);
    store.failing.store(0, Relaxed);
    let pool = pool(store, disk, seed).await;
    let options = OpenOptions {
        take_over: is_lost.get(),
        ..OpenOptions::read_write()
    };
    let device = open(&pool, "a", options).await;
    let found = content(&*device).await;
    let flushed = model.borrow().flushed;
    let at_least = if is_lost.take() { 0 } else { flushed };
    model.borrow_mut().settle(&found, at_least);
    let snapshots = model.borrow().snapshots.clone();
    for (snapshot, expected) in snapshots {
        let opened = open(&pool, &snapshot, OpenOptions::read_only()).await;
        assert_eq!(content(&*opened).await, expected, "{snapshot}");
    }
    let mut last = 60;
    for step in 0..60 {
        if step == last {
            break;
        }
        let works = store.failing.load(Relaxed) < 200;
        match dice.below(12) {
            0..6 => {
                let from = dice.below(BLOCKS);
                let blocks = from..(from + 1 + dice.below(20)).min(BLOCKS);
                let tag = (dice.below(5) > 0).then(|| 1 + dice.below(250) as u8);
                let change = change(&*device, blocks, tag.unwrap_or(0), model);
                // It waits where there is no room for more that is not in the store.
                let patience = Duration::from_secs(if works { 60 } else { 1 });
                if timeout(patience, change).await.is_err() {
                    assert!(!works, "the store can be reached");
                    return;
                }
            }
            6..9 => {
                let all = model.borrow().writes.len();
                device.flush().await.expect("the journal works");
                model.borrow_mut().flushed = all;
            }
            9 if works => drop(pool.collect_garbage().await.expect("a collection")),
            10 if works && model.borrow().snapshots.len() < 4 => {
                let snapshot = format!("s{seed}-{step}");
                let now = model.borrow().after(model.borrow().writes.len());
                let (of, to) = (name("a"), name(&snapshot));
                let made = pool.snapshot_volume(&of, &to, Default::default()).await;
                made.expect("a snapshot");
                model.borrow_mut().snapshots.insert(snapshot, now);
            }
            // From now on the store can't be reached.
            11 if works && dice.below(4) == 0 => {
                store.failing.store(200, Relaxed);
                last = step + 6;
            }
            _ => {}
        }
    }
}

async fn change(device: &dyn BlockDevice, blocks: Range<u64>, tag: u8, model: &RefCell<Model>) {
    let range = ByteRange::from_to(blocks.start * BLOCK, blocks.end * BLOCK);
    model.borrow_mut().writes.push((blocks, tag));
    let done = match tag {
        0 => device.discard(range).await,
        _ => {
            let data = Bytes::from(vec![tag; range.length as usize]);
            device.write_at(range.offset, data).await
        }
    };
    done.expect("written");
}

#[test]
fn what_was_flushed_to_a_journal_is_there_after_any_death() {
    for seed in 0..40u64 {
        let (store, mut journals) = (Rough::new(seed), disk());
        let model = RefCell::new(Model {
            before: vec![0; BLOCKS as usize],
            writes: Vec::new(),
            flushed: 0,
            snapshots: BTreeMap::new(),
        });
        die_after(u64::MAX, async {
            let pool = pool(&store, journals.path(), seed << 40 | 1 << 60).await;
            let size = CreateOptions::thin(ByteSize::new(BLOCKS * BLOCK));
            let made = pool.create_volume(&name("a"), size).await;
            made.expect("create");
        });
        let mut dice = Dice(seed);
        let is_lost = Cell::new(false);
        for life in 0..6u64 {
            let turns = [0, 50, 300, 2000][dice.below(4) as usize];
            let turns = match life {
                5 => u64::MAX,
                _ => dice.below(turns + 1) + dice.below(20),
            };
            let seed = seed << 40 | (life + 2) << 8 | 1 << 60;
            die_after(
                turns,
                live((&store, journals.path(), seed), &model, &is_lost),
            );
            // The whole host may be lost, and its disk with it.
            if dice.below(5) == 0 {
                is_lost.set(true);
                journals = disk();
            }
        }
    }
}

/// Fills a new volume and flushes it, which ends in the journal, and dies.
fn flush_and_die(store: &Arc<Rough>, journals: &Path, seed: u64) {
    die_after(u64::MAX, async {
        let pool = pool(store, journals, seed).await;
        let size = CreateOptions::thin(ByteSize::new(BLOCKS * BLOCK));
        let made = pool.create_volume(&name("a"), size).await;
        made.expect("create");
        let device = open(&pool, "a", OpenOptions::read_write()).await;
        store.failing.store(200, Relaxed);
        let data = Bytes::from(vec![7; (BLOCKS * BLOCK) as usize]);
        device.write_at(0, data).await.expect("written");
        device.flush().await.expect("the journal works");
    });
    store.failing.store(0, Relaxed);
}

#[test]
fn a_log_that_was_retired_in_vain_still_has_its_journal() {
    let (store, journals) = (Rough::new(1), disk());
    let path = journals.path();
    flush_and_die(&store, path, 1 << 61);
    die_after(u64::MAX, async {
        // Somebody was about to delete it, and died.
        let pool = pool(&store, path, 1 << 62).await;
        let ready = pool.look(OP).await.expect("the store works");
        let ready = ready.expect("a pool");
        let entry = ready.entry(OP, &name("a")).expect("it is there");
        let log = entry.log.expect("no snapshot");
        let retired = ready.retire(OP, &entry, log, false).await;
        retired.expect("nobody writes it");
        let wanted = ready.retire(OP, &entry, log, true).await;
        assert_eq!(wanted.expect_err("it is wanted").kind(), ErrorKind::Busy);
    });
    die_after(u64::MAX, async {
        let pool = pool(&store, path, 1 << 63).await;
        let device = open(&pool, "a", OpenOptions::read_write()).await;
        assert_eq!(content(&*device).await, [7; BLOCKS as usize]);
    });
}

#[test]
fn what_is_in_a_journal_only_is_not_left_out_in_silence() {
    let (store, journals) = (Rough::new(1), disk());
    let path = journals.path();
    flush_and_die(&store, path, 1 << 59);
    die_after(u64::MAX, async {
        let pool = pool(&store, path, 3 << 59).await;
        let (of, to) = (name("a"), name("s"));
        let snapshot = async || pool.snapshot_volume(&of, &to, Default::default()).await;
        let refused = [
            snapshot().await.err(),
            pool.clone_volume(&of, &to, Default::default()).await.err(),
            pool.copy_volume(&of, &to, Default::default()).await.err(),
            pool.open_volume(&of, OpenOptions::read_only()).await.err(),
        ];
        for error in refused {
            let error = error.expect("not all is in the store");
            assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
            assert!(error.get("journal").is_some(), "{error}");
        }
        drop(open(&pool, "a", OpenOptions::read_write()).await);
        snapshot().await.expect("now it is whole");
        let snapshot = open(&pool, "s", OpenOptions::read_only()).await;
        assert_eq!(content(&*snapshot).await, [7; BLOCKS as usize]);
    });
}
