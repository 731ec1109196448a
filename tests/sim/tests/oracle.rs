//! The oracle accepts what a right volume may hold after a crash, and nothing else.

use std::ops::Range;

use volmux_sim::history::{History, Moment, Shared, View};
use volmux_sim::pattern;
use volmux_sim::rng::Rng;
use volmux_sim::verify::judge;

const BLOCK: u64 = 4096;
const SIZE: u64 = 16 * BLOCK;

/// A volume's content, put together write by write.
struct Image(Vec<u8>);

impl Image {
    fn new() -> Self {
        Image(vec![0; SIZE as usize])
    }

    fn write(&mut self, id: u64, range: Range<u64>) {
        let data = pattern::fill(id, range.start, (range.end - range.start) as usize);
        self.0[range.start as usize..range.end as usize].copy_from_slice(&data);
    }
}

fn verdict(history: &History, image: &Image, view: View) -> Result<(), String> {
    let content = vec![(0, image.0.clone().into())];
    history.conclude(&judge(history, &content, view)?)
}

/// Three writes of a block each, one after the other, the first of them flushed.
fn three_writes() -> (History, Shared) {
    let mut history = History::default();
    let writer = history.begin_writer(1);
    {
        let mut group = writer.borrow_mut();
        for (n, block) in [(1, 0), (2, 1), (3, 2)] {
            let number = group.ask(n, block * BLOCK..(block + 1) * BLOCK, n * 10);
            group.end(number, n * 10 + 1, true);
            if n == 1 {
                group.flushed(12, 13).expect("nothing is lost");
            }
        }
    }
    (history, writer)
}

fn image_of(ids: &[u64]) -> Image {
    let mut image = Image::new();
    for id in ids {
        image.write(*id, (id - 1) * BLOCK..id * BLOCK);
    }
    image
}

#[test]
fn after_a_crash_a_prefix_with_all_that_was_flushed_is_right_and_nothing_else() {
    let cases: [(&[u64], bool); 8] = [
        (&[], false),
        (&[1], true),
        (&[2], false),
        (&[3], false),
        (&[1, 2], true),
        (&[1, 3], false),
        (&[2, 3], false),
        (&[1, 2, 3], true),
    ];
    for (ids, right) in cases {
        let (mut history, _) = three_writes();
        history.crash();
        let found = verdict(&history, &image_of(ids), View::reader(100));
        assert_eq!(found.is_ok(), right, "{ids:?}: {found:?}");
    }
}

#[test]
fn the_writer_itself_sees_all_that_was_answered() {
    let (history, _) = three_writes();
    let view = View::writer(100);
    assert_eq!(verdict(&history, &image_of(&[1, 2, 3]), view), Ok(()));
    for ids in [&[1, 2][..], &[1], &[]] {
        verdict(&history, &image_of(ids), view).expect_err("a write is not there");
    }
}

#[test]
fn what_was_seen_after_a_crash_is_not_lost_by_the_next() {
    let (mut history, _) = three_writes();
    history.crash();
    assert_eq!(
        verdict(&history, &image_of(&[1, 2]), View::reader(100)),
        Ok(())
    );
    verdict(&history, &image_of(&[1]), View::reader(101)).expect_err("write 2 was seen");
    assert_eq!(
        verdict(&history, &image_of(&[1, 2, 3]), View::reader(102)),
        Ok(())
    );
}

#[test]
fn a_snapshot_holds_what_was_flushed_and_nothing_that_came_later() {
    let (history, writer) = three_writes();
    let snapshot = history.derived(40);
    let number = writer.borrow_mut().ask(4, 3 * BLOCK..4 * BLOCK, 50);
    writer.borrow_mut().end(number, 51, true);
    let view = View::reader(100);
    for ids in [&[1][..], &[1, 2], &[1, 2, 3]] {
        assert_eq!(
            verdict(&snapshot.derived(1), &image_of(ids), view),
            Ok(()),
            "{ids:?}"
        );
    }
    verdict(&snapshot, &image_of(&[1, 2, 3, 4]), view).expect_err("write 4 came later");
    verdict(&snapshot, &image_of(&[]), view).expect_err("write 1 was flushed");
}

#[test]
fn a_flush_after_the_volume_was_taken_over_is_found_out() {
    let (mut history, old) = three_writes();
    let _new = history.begin_writer(60);
    let number = old.borrow_mut().ask(5, 0..BLOCK, 70);
    old.borrow_mut().end(number, 71, true);
    old.borrow_mut()
        .flushed(80, 81)
        .expect_err("the volume was another's");
    verdict(&history, &image_of(&[1, 2, 3, 5]), View::writer(90)).expect_err("it came too late");
}

#[test]
fn a_flush_of_what_is_known_to_be_lost_is_found_out() {
    let (mut history, old) = three_writes();
    let _new = history.begin_writer(60);
    let content = vec![(0, image_of(&[1]).0.into())];
    let found = judge(&history, &content, View::writer(61)).expect("a prefix");
    history.conclude(&found).expect("a prefix");
    history.settle(&found, SIZE, true);
    old.borrow_mut()
        .flushed(65, 66)
        .expect_err("write 2 was lost");
    verdict(&history, &image_of(&[1, 2]), View::writer(70)).expect_err("it came back");
}

#[test]
fn parts_of_blocks_zeros_and_other_volumes_content_are_told_apart() {
    let (history, _) = three_writes();
    let view = View::writer(100);
    let mut image = image_of(&[1, 2, 3]);
    image.0[(BLOCK + 100) as usize] ^= 1;
    verdict(&history, &image, view).expect_err("a byte is wrong");
    let mut image = image_of(&[1, 2, 3]);
    image.write(9, 6 * BLOCK..7 * BLOCK);
    let error = verdict(&history, &image, view).expect_err("nobody wrote that here");
    assert!(error.contains("write 9 instead of zeros"), "{error}");
    let mut image = image_of(&[1, 3]);
    image.0.copy_within(0..BLOCK as usize, BLOCK as usize);
    let error = verdict(&history, &image, view).expect_err("block 0 shows in block 1");
    assert!(error.contains("what no write put here"), "{error}");
}

/// A writer as the engine is one: each write takes effect at one moment while it is under way, and
/// a crash keeps a prefix of these moments.
struct Writer {
    rng: Rng,
    now: Moment,
    history: History,
    group: Shared,
    /// What took effect, in order.
    log: Vec<(u64, Range<u64>)>,
    flushed: usize,
    /// Asked for, and not yet answered: number, id, range, and whether it took effect.
    under_way: Vec<(usize, u64, Range<u64>, bool)>,
}

impl Writer {
    fn new(seed: u64) -> Self {
        let mut history = History::default();
        let group = history.begin_writer(1);
        Writer {
            rng: Rng::new(seed),
            now: 1,
            history,
            group,
            log: Vec::new(),
            flushed: 0,
            under_way: Vec::new(),
        }
    }

    fn step(&mut self, id: u64) {
        self.now += 1;
        let some = self.rng.below(self.under_way.len().clamp(1, 3) as u64) as usize;
        match self.rng.below(24) {
            0..8 => {
                let unit = *self.rng.pick(&[BLOCK, BLOCK, 100]);
                let start = self.rng.below(SIZE / unit) * unit;
                let end = (start + (1 + self.rng.below(3)) * unit).min(SIZE);
                let content = if self.rng.chance(200) { 0 } else { id };
                let number = self.group.borrow_mut().ask(content, start..end, self.now);
                self.under_way.push((number, content, start..end, false));
            }
            8..16 => {
                if let Some((_, id, range, effect @ false)) = self.under_way.get_mut(some) {
                    *effect = true;
                    self.log.push((*id, range.clone()));
                }
            }
            16..23 => {
                if self.under_way.get(some).is_some_and(|(.., effect)| *effect) {
                    let (number, ..) = self.under_way.remove(some);
                    self.group.borrow_mut().end(number, self.now, true);
                }
            }
            _ => {
                self.flushed = self.log.len();
                self.now += 1;
                let flushed = self.group.borrow_mut().flushed(self.now - 1, self.now);
                flushed.expect("nothing is lost");
            }
        }
    }

    fn image(&self, kept: &[(u64, Range<u64>)]) -> Image {
        let mut image = Image::new();
        for (id, range) in kept {
            image.write(*id, range.clone());
        }
        image
    }
}

#[test]
fn whatever_a_right_writer_leaves_behind_is_accepted() {
    for seed in 0..100 {
        let mut writer = Writer::new(seed);
        for id in 1..60 {
            writer.step(id);
            let image = writer.image(&writer.log);
            let found = verdict(&writer.history, &image, View::writer(writer.now));
            assert_eq!(found, Ok(()), "seed {seed}, write {id}");
        }
        writer.history.crash();
        let kept = writer.flushed as u64..=writer.log.len() as u64;
        let kept = writer.rng.within(kept) as usize;
        let image = writer.image(&writer.log[..kept]);
        let found = verdict(&writer.history, &image, View::reader(writer.now + 1));
        assert_eq!(found, Ok(()), "seed {seed}");
    }
}

#[test]
fn most_of_what_a_wrong_writer_leaves_behind_is_refused() {
    let (mut lost, mut holes, mut tried) = (0, 0, 0);
    for seed in 0..300 {
        let crashed = || {
            let mut writer = Writer::new(seed);
            (1..120).for_each(|id| writer.step(id));
            writer.history.crash();
            writer
        };
        let writer = crashed();
        let log = writer.log.len();
        if writer.flushed < 3 || log < writer.flushed + 6 {
            continue;
        }
        tried += 1;
        // One that was flushed is not there, or all but one of the rest.
        let mut kept = writer.log[..writer.flushed].to_vec();
        kept.remove(kept.len() - 2);
        let view = View::reader(writer.now + 1);
        lost += u32::from(verdict(&writer.history, &writer.image(&kept), view).is_err());
        let writer = crashed();
        let mut kept = writer.log[..writer.flushed].to_vec();
        kept.push(writer.log[log - 1].clone());
        holes += u32::from(verdict(&writer.history, &writer.image(&kept), view).is_err());
    }
    // The rest was overwritten, was zeros, or was under way at the same time.
    assert!(
        tried > 50 && lost * 4 > tried && holes * 12 > tried,
        "{lost} {holes} of {tried}"
    );
}
