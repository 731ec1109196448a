//! What a volume may hold.
//!
//! Each write is an interval: from when it was asked for until it was answered. Writes of one writer
//! form a group; those of a later writer come after all of an earlier one. What may be found in a
//! volume is the outcome of a set of its writes such that
//! - the set holds every write that was answered before a flush was asked for that succeeded,
//! - with a write it holds each that was answered before that one was asked for, of the same writer,
//! - while the writer is alive it holds, for the writer, each that was answered,
//!
//! applied in an order that fits the intervals. A write of several blocks counts as one a block.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use crate::pattern;
use crate::runs::Runs;

/// A moment: the number of an event.
pub type Moment = u64;

const NEVER: Moment = Moment::MAX;
const BLOCK: u64 = 4096;

/// A write, or zeros that were asked for.
#[derive(Clone, Debug)]
pub struct Write {
    /// Its content's id; 0 for zeros.
    pub id: u64,
    /// Where.
    pub range: Range<u64>,
    /// When it was asked for.
    pub asked: Moment,
    /// When it was answered, failed or given up.
    pub ended: Moment,
    /// Whether the answer was that it is done.
    pub done: bool,
    /// Where it has been seen to have outlived its writer.
    kept: Vec<Range<u64>>,
}

impl Write {
    fn covers(&self, piece: &Range<u64>) -> bool {
        self.range.start <= piece.start && self.range.end >= piece.end
    }

    fn is_kept(&self, piece: &Range<u64>) -> bool {
        self.kept
            .iter()
            .any(|kept| kept.start <= piece.start && kept.end >= piece.end)
    }
}

/// The writes of one writer.
#[derive(Clone, Debug, Default)]
pub struct Group {
    writes: Vec<Write>,
    /// When each flush that succeeded was answered, and when it had been asked for.
    flushes: Vec<(Moment, Moment)>,
    /// Whether the writer still has it.
    alive: bool,
    /// When another writer had it for certain.
    superseded: Option<Moment>,
    /// Whether its process is gone, with all that was only in memory.
    gone: bool,
    /// The earliest answer to a write that turned out not to be there.
    lost: Option<Moment>,
}

/// A group as its writer and its volume share it.
pub type Shared = Rc<RefCell<Group>>;

impl Group {
    /// Of a new writer.
    pub fn begin() -> Shared {
        Rc::new(RefCell::new(Group {
            alive: true,
            ..Group::default()
        }))
    }

    /// A write is asked for. Gives its number.
    pub fn ask(&mut self, id: u64, range: Range<u64>, asked: Moment) -> usize {
        self.writes.push(Write {
            id,
            range,
            asked,
            ended: NEVER,
            done: false,
            kept: Vec::new(),
        });
        self.writes.len() - 1
    }

    /// A write has ended.
    pub fn end(&mut self, number: usize, ended: Moment, done: bool) {
        let write = &mut self.writes[number];
        (write.ended, write.done) = (ended, done);
    }

    /// A flush succeeded. What it promised must not be known to be lost.
    pub fn flushed(&mut self, asked: Moment, ended: Moment) -> Result<(), String> {
        if self.lost.is_some_and(|lost| lost < asked) {
            return Err("a flush succeeded, and a write before it is known to be lost".into());
        }
        if let Some(superseded) = self.superseded {
            // Zeros where there were some already are no change that would have to be flushed.
            let late = |w: &Write| w.done && w.id != 0 && w.asked > superseded && w.ended < asked;
            if self.writes.iter().any(late) {
                return Err("a flush of writes succeeded after the volume was taken over".into());
            }
        }
        self.flushes.push((ended, asked));
        Ok(())
    }

    /// The writer is gone; what was not flushed may be lost.
    pub fn close(&mut self) {
        self.alive = false;
    }

    /// Another writer has had the volume since `when`.
    pub fn supersede(&mut self, when: Moment) {
        self.alive = false;
        self.superseded = self.superseded.or(Some(when));
    }

    /// The writer's process is gone, and with it what was only in memory.
    pub fn crash(&mut self) {
        (self.alive, self.gone) = (false, true);
    }

    /// Whether its writer has it.
    pub fn is_alive(&self) -> bool {
        self.alive
    }

    /// Until when writes had to be answered to be durable for those who came at `when`.
    fn durable(&self, when: Moment) -> Moment {
        let before = self.flushes.iter().filter(|(ended, _)| *ended <= when);
        before.map(|(_, asked)| *asked).max().unwrap_or(0)
    }

    fn visible(&self, write: &Write) -> bool {
        self.superseded.is_none_or(|when| write.asked < when)
    }
}

/// Who looks at a volume, and since when.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// What was flushed by then must be seen.
    pub flushed_by: Moment,
    /// The writer itself looks: what was answered by then must be seen.
    pub answered_by: Option<Moment>,
}

impl View {
    /// Of somebody who opens the volume for reading at `when`.
    pub fn reader(when: Moment) -> Self {
        View {
            flushed_by: when,
            answered_by: None,
        }
    }

    /// Of the writer, who asks at `when`: what is written, and flushed, after that may be seen or
    /// not.
    pub fn writer(when: Moment) -> Self {
        View {
            flushed_by: when,
            answered_by: Some(when),
        }
    }
}

/// What a volume may hold.
#[derive(Clone, Debug, Default)]
pub struct History {
    base: Runs,
    groups: Vec<Shared>,
}

/// Where a piece's content is from: the group and the write.
type Place = Option<(usize, usize)>;

/// What a whole look at a volume tells of each group.
#[derive(Debug, Default)]
pub struct Verdict {
    seen: Runs,
    sides: Vec<Side>,
}

/// What a whole look at a volume tells of one group.
#[derive(Clone, Debug, Default)]
struct Side {
    /// Which writes are there, and where.
    there: Vec<(usize, Range<u64>)>,
    /// The last asking of a write that is there.
    last: Option<(Moment, u64)>,
    /// The first answer of a write that is not there.
    missing: Option<(Moment, u64)>,
    /// The same of data only: zeros where there were some already are no change.
    lost: Option<Moment>,
}

impl History {
    /// A new writer begins. The one before is superseded, if it was still there.
    pub fn begin_writer(&mut self, now: Moment) -> Shared {
        for group in &self.groups {
            group.borrow_mut().supersede(now);
        }
        let group = Group::begin();
        self.groups.push(group.clone());
        group
    }

    /// The process of every writer is gone.
    pub fn crash(&mut self) {
        for group in &self.groups {
            group.borrow_mut().crash();
        }
    }

    /// What a snapshot or clone holds that was asked for at `asked` and is there by now.
    pub fn derived(&self, asked: Moment) -> History {
        let groups = self.groups.iter().map(|group| {
            let group = group.borrow();
            let durable = group.durable(asked);
            let writes = group.writes.iter().filter(|write| group.visible(write));
            Rc::new(RefCell::new(Group {
                writes: writes.cloned().collect(),
                flushes: vec![(0, durable)],
                gone: true,
                ..Group::default()
            }))
        });
        History {
            base: self.base.clone(),
            groups: groups.collect(),
        }
    }

    /// What came after `size` is zeros from now on. Nobody writes the volume.
    pub fn cut(&mut self, size: u64) {
        self.base.set(size..u64::MAX, 0);
        let mut group = Group::default();
        let write = group.ask(0, size..u64::MAX, 1);
        group.end(write, 2, true);
        group.flushes.push((3, 3));
        if !self.groups.is_empty() {
            self.groups.push(Rc::new(RefCell::new(group)));
        }
    }

    /// Whether it is known exactly.
    pub fn is_settled(&self) -> bool {
        self.groups.is_empty()
    }

    /// The ranges below `size` that may hold something else than zeros.
    pub fn touched(&self, size: u64) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = self.base.within(0..size).map(|(r, _)| r).collect();
        for group in &self.groups {
            let group = group.borrow();
            let clipped = group
                .writes
                .iter()
                .map(|w| w.range.start..w.range.end.min(size));
            ranges.extend(clipped.filter(|range| !range.is_empty()));
        }
        ranges.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match joined.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        joined
    }

    /// Whether `bytes`, read at `offset`, may be there.
    pub fn check(&self, offset: u64, bytes: &[u8], view: View) -> Result<(), String> {
        self.look(offset, bytes, view, &mut Verdict::default())
    }

    /// The same, as part of a look at the whole volume.
    pub fn look(
        &self,
        offset: u64,
        bytes: &[u8],
        view: View,
        verdict: &mut Verdict,
    ) -> Result<(), String> {
        verdict.sides.resize(self.groups.len(), Side::default());
        let end = offset + bytes.len() as u64;
        let mut cuts = vec![offset, end];
        for (run, _) in self.base.within(offset..end) {
            cuts.extend([run.start, run.end]);
        }
        for group in &self.groups {
            for write in &group.borrow().writes {
                cuts.extend([write.range.start, write.range.end]);
            }
        }
        cuts.retain(|cut| (offset..=end).contains(cut));
        cuts.sort_unstable();
        cuts.dedup();
        for pair in cuts.windows(2) {
            let piece = pair[0]..pair[1];
            let content = &bytes[(piece.start - offset) as usize..(piece.end - offset) as usize];
            self.look_at_piece(piece, content, view, verdict)?;
        }
        Ok(())
    }

    /// A piece that each write covers wholly or not at all.
    fn look_at_piece(
        &self,
        piece: Range<u64>,
        content: &[u8],
        view: View,
        verdict: &mut Verdict,
    ) -> Result<(), String> {
        let places = self.candidates(&piece, view);
        let mut at = piece.start;
        // Usually all of it is from one write; otherwise each block is for itself.
        let whole = places
            .iter()
            .any(|(_, id)| pattern::is_from(*id, at, content));
        while at < piece.end {
            let next = if whole {
                piece.end
            } else {
                (at / BLOCK + 1) * BLOCK
            }
            .min(piece.end);
            let part = &content[(at - piece.start) as usize..(next - piece.start) as usize];
            let fits = |(_, id): &&(Place, u64)| pattern::is_from(*id, at, part);
            let fitting: Vec<(Place, u64)> = places.iter().filter(fits).copied().collect();
            let Some(&(place, id)) = fitting.first() else {
                return Err(self.wrong(at, part, &places, view));
            };
            verdict.seen.set(at..next, id);
            self.note(&(at..next), place, fitting.len() == 1, verdict);
            at = next;
        }
        Ok(())
    }

    /// Where the piece's content may be from, the latest first.
    fn candidates(&self, piece: &Range<u64>, view: View) -> Vec<(Place, u64)> {
        let mut places = Vec::new();
        for (g, group) in self.groups.iter().enumerate().rev() {
            let group = group.borrow();
            let durable = group.durable(view.flushed_by);
            let answered = view.answered_by.filter(|_| group.alive).unwrap_or(0);
            let there =
                |w: &Write| w.is_kept(piece) || w.done && (w.ended < durable || w.ended < answered);
            let writes = group.writes.iter().filter(|write| write.covers(piece));
            let last = writes.filter(|w| there(w)).map(|w| w.asked).max();
            let mut here: Vec<(Moment, usize, u64)> = Vec::new();
            for (w, write) in group.writes.iter().enumerate() {
                let open = group.visible(write) && last.is_none_or(|last| write.ended >= last);
                if write.covers(piece) && open {
                    here.push((write.ended, w, write.id));
                }
            }
            here.sort_unstable_by_key(|(ended, w, _)| std::cmp::Reverse((*ended, *w)));
            places.extend(here.into_iter().map(|(_, w, id)| (Some((g, w)), id)));
            if last.is_some() {
                return places;
            }
        }
        places.push((None, self.base.at(piece.start)));
        places
    }

    /// Notes which writes to the piece are there and which are not, given where its content is from.
    fn note(&self, piece: &Range<u64>, place: Place, certain: bool, verdict: &mut Verdict) {
        for (g, group) in self.groups.iter().enumerate() {
            let group = group.borrow();
            let seen = match place {
                Some((of, w)) if of == g => Some((w, &group.writes[w])),
                Some((of, _)) if of > g => continue,
                _ => None,
            };
            let side = &mut verdict.sides[g];
            if let (Some((w, seen)), true) = (seen, certain) {
                side.last = side.last.max(Some((seen.asked, seen.id)));
                side.there.push((w, piece.clone()));
            }
            let after = seen.map_or(0, |(_, seen)| seen.ended);
            for write in group.writes.iter().filter(|write| write.covers(piece)) {
                if write.done && write.asked > after && group.visible(write) {
                    let ended = (write.ended, write.id);
                    side.missing = Some(side.missing.map_or(ended, |first| first.min(ended)));
                    if write.id != 0 {
                        side.lost = Some(side.lost.map_or(ended.0, |first| first.min(ended.0)));
                    }
                }
            }
        }
    }

    fn wrong(&self, at: u64, part: &[u8], places: &[(Place, u64)], view: View) -> String {
        let ids: Vec<String> = places.iter().map(|(_, id)| name(*id)).collect();
        let mut text = format!(
            "at {at} (block {}), {} bytes: {} instead of {}",
            at / BLOCK,
            part.len(),
            pattern::describe(at, part),
            ids.join(" or "),
        );
        for (g, group) in self.groups.iter().enumerate() {
            let group = group.borrow();
            let durable = group.durable(view.flushed_by);
            for w in group.writes.iter().filter(|w| w.range.contains(&at)) {
                let kept = if w.done && w.ended < durable {
                    ", flushed"
                } else {
                    ""
                };
                let ended = if w.ended == NEVER {
                    "-".into()
                } else {
                    w.ended.to_string()
                };
                let (id, done) = (name(w.id), if w.done { "" } else { ", not acknowledged" });
                text += &format!("\n    writer {g}: {id} in {}..{ended}{done}{kept}", w.asked);
            }
        }
        text + &format!("\n    before them: {}", name(self.base.at(at)))
    }

    /// Ends a look at the whole volume: what was seen must be a prefix of what each writer wrote.
    pub fn conclude(&self, verdict: &Verdict) -> Result<(), String> {
        for (group, side) in self.groups.iter().zip(&verdict.sides) {
            if let (Some((asked, seen)), Some((ended, lost))) = (side.last, side.missing)
                && ended < asked
            {
                return Err(format!(
                    "no prefix: {} is there (asked for at {asked}), and {}, which was acknowledged \
                     at {ended}, is not",
                    name(seen),
                    name(lost),
                ));
            }
            let mut group = group.borrow_mut();
            if !group.gone && group.superseded.is_none() {
                // It may have been in memory that it was seen.
                continue;
            }
            // Seen once, never lost again.
            group.flushes.extend(side.last.map(|(asked, _)| (0, asked)));
            for (w, range) in &side.there {
                group.writes[*w].kept.push(range.clone());
            }
        }
        Ok(())
    }

    /// After a look at the whole volume, to `size`: what was seen is what it holds, if nothing can
    /// change that any more. `forever` says that of the writers that are gone.
    pub fn settle(&mut self, verdict: &Verdict, size: u64, forever: bool) {
        let firm = |group: &Group| {
            let durable = group.durable(NEVER);
            group.writes.iter().all(|write| write.ended < durable)
        };
        let alive = self.groups.iter().position(|group| group.borrow().alive);
        let live_is_firm = alive.is_none_or(|live| firm(&self.groups[live].borrow()));
        if !forever || !live_is_firm {
            return;
        }
        for (group, side) in self.groups.iter().zip(&verdict.sides) {
            let mut group = group.borrow_mut();
            if let Some(ended) = side.lost {
                group.lost = Some(group.lost.map_or(ended, |lost| lost.min(ended)));
            }
        }
        let mut base = Runs::default();
        for (run, id) in verdict.seen.within(0..size) {
            base.set(run, id);
        }
        self.base = base;
        self.groups.retain(|group| group.borrow().alive);
        for group in &self.groups {
            let mut group = group.borrow_mut();
            group.writes.clear();
        }
    }

    /// The exact content, where it is known.
    pub fn exact(&self) -> Option<&Runs> {
        self.groups.is_empty().then_some(&self.base)
    }
}

/// A write's name for people.
pub fn name(id: u64) -> String {
    match id & 0xff_ffff_ffff {
        0 => "zeros".into(),
        number => format!("write {number}"),
    }
}
