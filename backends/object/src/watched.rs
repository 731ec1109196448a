//! A value that others wait to see change.
//!
//! As `tokio::sync::watch`, but those who wait are woken in the order in which they came. That one
//! picks at random, and a simulation that does would not be the same twice.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The value.
#[derive(Debug, Default)]
pub(crate) struct Watched<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T> Watched<T> {
    /// To begin with.
    pub(crate) fn new(value: T) -> Self {
        Watched {
            value: Mutex::new(value),
            changed: Notify::new(),
        }
    }

    /// The value as it is now. It can't change as long as this is held.
    pub(crate) fn now(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the value, and wakes all who wait.
    pub(crate) fn change(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.now());
        self.changed.notify_waiters();
    }

    /// Looks at the value, and again after each change, until there is something to return.
    pub(crate) async fn until<R>(&self, mut look: impl FnMut(&T) -> Option<R>) -> R {
        loop {
            // No change after this is missed, even before it is awaited.
            let changed = self.changed.notified();
            if let Some(found) = look(&self.now()) {
                return found;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn all_see_what_they_wait_for_in_the_order_in_which_they_came() {
        for _ in 0..20 {
            let number = Arc::new(Watched::new(0));
            let order = Arc::new(Mutex::new(Vec::new()));
            let waiting: Vec<_> = (0..10)
                .map(|who| {
                    let (number, order) = (number.clone(), order.clone());
                    tokio::spawn(async move {
                        let seen = number.until(|n| (*n >= 3).then_some(*n)).await;
                        order.lock().expect("no panic").push((who, seen));
                    })
                })
                .collect();
            for _ in 0..3 {
                tokio::task::yield_now().await;
                number.change(|n| *n += 1);
            }
            for one in waiting {
                one.await.expect("no panic");
            }
            let order = order.lock().expect("no panic");
            assert_eq!(*order, (0..10).map(|who| (who, 3)).collect::<Vec<_>>());
        }
    }
}
