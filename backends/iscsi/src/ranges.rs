//! Order among the requests of one open volume: what overlaps and must not run side by side.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use volmux_core::ByteRange;

/// What a request does with its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Writes whole blocks. Several may do so at once: their callers want no order.
    Whole,
    /// Reads blocks, changes a part of them and writes them: alone.
    Part,
}

/// The requests that change something, in the order in which they came.
#[derive(Debug, Default)]
pub struct Ranges {
    list: Mutex<List>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct List {
    next: u64,
    entries: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    range: ByteRange,
    doing: Doing,
    /// Its caller went away while it was under way.
    left: bool,
}

impl Entry {
    fn overlaps(&self, range: ByteRange) -> bool {
        !self.range.intersect(&range).is_empty()
    }
}

/// A place in the order, given up when dropped.
pub struct Place {
    ranges: Arc<Ranges>,
    number: u64,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Ranges {
    /// Takes a place for `range`, and waits until nothing before it is in the way.
    pub async fn enter(self: &Arc<Self>, range: ByteRange, doing: Doing) -> Place {
        let place = {
            let mut list = self.lock();
            let number = list.next;
            list.next += 1;
            list.entries.push_back(Entry {
                number,
                range,
                doing,
                left: false,
            });
            Place {
                ranges: self.clone(),
                number,
            }
        };
        self.wait(|list| {
            let before = list.entries.iter().take_while(|e| e.number < place.number);
            let in_the_way = |e: &Entry| e.left || e.doing == Doing::Part || doing == Doing::Part;
            before
                .into_iter()
                .any(|e| e.overlaps(range) && in_the_way(e))
        })
        .await;
        place
    }

    /// Waits until nothing that its caller has left goes on in `range`.
    pub async fn settled(&self, range: ByteRange) {
        self.wait(|list| list.entries.iter().any(|e| e.left && e.overlaps(range)))
            .await;
    }

    async fn wait(&self, blocked: impl Fn(&List) -> bool) {
        loop {
            if !blocked(&self.lock()) {
                return;
            }
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before looking again, so that no change is missed.
            changed.as_mut().enable();
            if !blocked(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        // The list is whole between any two statements.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Says that the caller has left, and the work goes on without him.
    pub fn leave(&self) {
        let mut list = self.ranges.lock();
        if let Some(entry) = list.entries.iter_mut().find(|e| e.number == self.number) {
            entry.left = true;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.ranges
            .lock()
            .entries
            .retain(|entry| entry.number != self.number);
        self.ranges.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    fn range(from: u64, to: u64) -> ByteRange {
        ByteRange::from_to(from, to)
    }

    #[tokio::test]
    async fn whole_blocks_go_side_by_side_and_parts_alone() {
        let ranges = Arc::new(Ranges::default());
        let first = ranges.enter(range(0, 8), Doing::Whole).await;
        let second = ranges.enter(range(4, 12), Doing::Whole).await;
        let elsewhere = ranges.enter(range(12, 16), Doing::Part).await;
        let part = ranges.enter(range(0, 4), Doing::Part);
        tokio::pin!(part);
        assert!(timeout(SOON, part.as_mut()).await.is_err());
        let behind = ranges.enter(range(2, 3), Doing::Whole);
        tokio::pin!(behind);
        assert!(timeout(SOON, behind.as_mut()).await.is_err(), "in order");
        drop((second, elsewhere));
        assert!(part.as_mut().now_or_never().is_none());
        drop(first);
        drop(part.await);
        drop(behind.await);
        assert!(ranges.lock().entries.is_empty());
    }

    #[tokio::test]
    async fn what_was_left_is_waited_for_by_all() {
        let ranges = Arc::new(Ranges::default());
        let left = ranges.enter(range(0, 8), Doing::Whole).await;
        ranges.settled(range(0, 100)).await;
        left.leave();
        ranges.settled(range(8, 100)).await;
        assert!(timeout(SOON, ranges.settled(range(7, 9))).await.is_err());
        let later = ranges.enter(range(0, 1), Doing::Whole);
        assert!(timeout(SOON, later).await.is_err());
        drop(left);
        ranges.settled(range(0, 100)).await;
        assert!(ranges.lock().entries.is_empty(), "also of who gave up");
    }

    #[tokio::test]
    async fn many_at_once_end() {
        let ranges = Arc::new(Ranges::default());
        let tasks: Vec<_> = (0..200u64)
            .map(|i| {
                let ranges = ranges.clone();
                tokio::spawn(async move {
                    let doing = if i % 3 == 0 {
                        Doing::Part
                    } else {
                        Doing::Whole
                    };
                    let place = ranges.enter(range(i % 7, i % 7 + 4), doing).await;
                    tokio::task::yield_now().await;
                    drop(place);
                })
            })
            .collect();
        for task in tasks {
            timeout(Duration::from_secs(10), task)
                .await
                .expect("in time")
                .expect("no panic");
        }
        assert!(ranges.lock().entries.is_empty());
    }
}
