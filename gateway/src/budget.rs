//! Memory of requests under way, of all connections together.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

/// Memory of requests under way, of all connections together.
#[derive(Debug)]
pub(crate) struct Budget {
    most: u64,
    taken: AtomicU64,
    /// Who was refused and wants to try again.
    waiting: Mutex<Vec<Waker>>,
    somebody_waits: AtomicBool,
}

impl Budget {
    pub(crate) fn new(most: u64) -> Self {
        Budget {
            most,
            taken: AtomicU64::new(0),
            waiting: Mutex::default(),
            somebody_waits: AtomicBool::new(false),
        }
    }

    /// What is taken now.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Takes `bytes`, however much is taken already.
    pub(crate) fn take(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Takes `bytes` if there is room. If not, `waker` is woken when something was given back.
    pub(crate) fn try_take(&self, bytes: u64, waker: &Waker) -> bool {
        if self.fits(bytes) {
            return true;
        }
        {
            let mut waiting = self.lock();
            if !waiting.iter().any(|other| other.will_wake(waker)) {
                waiting.push(waker.clone());
            }
            self.somebody_waits.store(true, Ordering::SeqCst);
        }
        // What was given back between the two looks woke nobody.
        self.fits(bytes)
    }

    /// Gives `bytes` back.
    pub(crate) fn give_back(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.taken.fetch_sub(bytes, Ordering::SeqCst);
        if self.somebody_waits.load(Ordering::SeqCst) {
            let waiting = {
                let mut waiting = self.lock();
                self.somebody_waits.store(false, Ordering::SeqCst);
                std::mem::take(&mut *waiting)
            };
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    fn fits(&self, bytes: u64) -> bool {
        self.taken
            .try_update(Ordering::SeqCst, Ordering::SeqCst, |taken| {
                let taken = taken.checked_add(bytes)?;
                (taken <= self.most).then_some(taken)
            })
            .is_ok()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Calls(AtomicUsize);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn who_was_refused_is_woken_once_when_something_comes_back() {
        let budget = Budget::new(100);
        let calls = Arc::new(Calls::default());
        let waker = Waker::from(calls.clone());
        assert!(budget.try_take(70, &waker));
        assert!(!budget.try_take(31, &waker));
        assert!(!budget.try_take(40, &waker));
        budget.give_back(10);
        assert_eq!(calls.0.load(Ordering::SeqCst), 1);
        assert!(budget.try_take(40, &waker));
        assert_eq!(budget.taken(), 100);
        budget.give_back(100);
        assert_eq!(calls.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_must_be_taken_may_go_past_the_limit() {
        let budget = Budget::new(100);
        budget.take(150);
        assert!(!budget.try_take(1, Waker::noop()));
        budget.give_back(150);
        assert!(budget.try_take(100, Waker::noop()));
    }
}
