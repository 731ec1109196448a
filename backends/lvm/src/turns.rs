//! Order among the requests of one disk that overlap.
//!
//! A write waits for those before it that touch a block of its own: one of them may be reading a
//! block in order to change a part of it. A read waits only for writes whose futures were dropped,
//! as nothing that starts after that may be overtaken by them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;
use volmux_core::ByteRange;

/// The writes that wait or are under way.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<Mutex<List>>);

#[derive(Debug, Default)]
struct List {
    last: u64,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    range: ByteRange,
    /// Its future was dropped.
    abandoned: bool,
    /// Closed once it is over. Made by the first who waits.
    over: Option<Arc<Semaphore>>,
}

/// A write's turn, which lasts until nobody holds it any more.
#[derive(Clone, Debug)]
pub struct Turn(Arc<Place>);

#[derive(Debug)]
struct Place {
    turns: Turns,
    id: u64,
}

/// A turn in the hands of the future that asked for it.
#[derive(Debug)]
pub struct Mine(Turn);

impl Turns {
    /// Waits for all earlier writes that overlap `range`.
    pub async fn write(&self, range: ByteRange) -> Mine {
        let (mine, earlier) = {
            let mut list = self.list();
            let earlier = list.over(|entry| overlaps(&entry.range, &range));
            list.last += 1;
            let id = list.last;
            list.entries.push(Entry {
                id,
                range,
                abandoned: false,
                over: None,
            });
            let turns = self.clone();
            (Mine(Turn(Arc::new(Place { turns, id }))), earlier)
        };
        all_over(earlier).await;
        mine
    }

    /// Waits for the writes that overlap `range` and have no future any more.
    pub async fn read(&self, range: ByteRange) {
        let earlier = self
            .list()
            .over(|entry| entry.abandoned && overlaps(&entry.range, &range));
        all_over(earlier).await;
    }

    fn list(&self) -> MutexGuard<'_, List> {
        // The list is whole between any two statements, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    /// What tells the end of each write that `matters`.
    fn over(&mut self, matters: impl Fn(&Entry) -> bool) -> Vec<Arc<Semaphore>> {
        let entries = self.entries.iter_mut().filter(|entry| matters(entry));
        let over = entries.map(|entry| {
            let over = entry
                .over
                .get_or_insert_with(|| Arc::new(Semaphore::new(0)));
            over.clone()
        });
        over.collect()
    }
}

async fn all_over(writes: Vec<Arc<Semaphore>>) {
    for over in writes {
        // It has no permits: this returns when it is closed.
        let _closed = over.acquire().await;
    }
}

fn overlaps(a: &ByteRange, b: &ByteRange) -> bool {
    !a.intersect(b).is_empty()
}

impl Mine {
    /// For what goes on even if the future is dropped.
    pub fn share(&self) -> Turn {
        self.0.clone()
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        let place = &self.0.0;
        if Arc::strong_count(place) == 1 {
            return;
        }
        let mut list = place.turns.list();
        if let Some(entry) = list.entries.iter_mut().find(|entry| entry.id == place.id) {
            entry.abandoned = true;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut list = self.turns.list();
        let found = list.entries.iter().position(|entry| entry.id == self.id);
        let entry = list
            .entries
            .swap_remove(found.expect("only this removes it"));
        drop(list);
        if let Some(over) = entry.over {
            over.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn range(from: u64, to: u64) -> ByteRange {
        ByteRange::from_to(from, to)
    }

    #[test]
    fn writes_that_overlap_wait_for_each_other_in_order() {
        let turns = Turns::default();
        let first = turns.write(range(0, 10)).now_or_never().expect("alone");
        let beside = turns.write(range(10, 20)).now_or_never();
        assert!(beside.is_some(), "does not overlap");
        let mut second = Box::pin(turns.write(range(5, 30)));
        assert!(second.as_mut().now_or_never().is_none());
        let mut third = Box::pin(turns.write(range(25, 30)));
        assert!(third.as_mut().now_or_never().is_none());
        drop(beside);
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        let second = second.as_mut().now_or_never().expect("its turn");
        assert!(third.as_mut().now_or_never().is_none());
        drop(second);
        assert!(third.as_mut().now_or_never().is_some());
        assert!(turns.read(range(0, u64::MAX)).now_or_never().is_some());
    }

    #[test]
    fn one_that_gives_up_waiting_is_not_waited_for() {
        let turns = Turns::default();
        let first = turns.write(range(0, 10)).now_or_never().expect("alone");
        let mut second = Box::pin(turns.write(range(0, 10)));
        assert!(second.as_mut().now_or_never().is_none());
        let mut third = Box::pin(turns.write(range(0, 10)));
        assert!(third.as_mut().now_or_never().is_none());
        drop(second);
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(third.as_mut().now_or_never().is_some());
    }

    #[test]
    fn reads_wait_for_abandoned_writes_alone() {
        let turns = Turns::default();
        let mine = turns.write(range(0, 10)).now_or_never().expect("alone");
        let goes_on = mine.share();
        assert!(turns.read(range(0, 1)).now_or_never().is_some());
        drop(mine);
        let mut read = Box::pin(turns.read(range(0, 1)));
        assert!(read.as_mut().now_or_never().is_none());
        assert!(turns.read(range(10, 20)).now_or_never().is_some());
        drop(goes_on);
        assert!(read.as_mut().now_or_never().is_some());
        assert!(turns.list().entries.is_empty());
    }
}
