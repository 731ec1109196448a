//! Work that goes on to its end when its caller goes away.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::runtime::Handle;

use crate::ranges::Place;

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A future that changes a range of a volume. Dropped while it is under way, it goes on in a task of
/// its own, and whoever comes next to that range waits for it.
pub struct ToItsEnd<T: Send + 'static> {
    work: Option<Work<T>>,
    begun: bool,
    place: Arc<Place>,
    /// That of the caller: who drops it may have none.
    runtime: Option<Handle>,
}

impl<T: Send + 'static> ToItsEnd<T> {
    /// `work` within `place`, which it gives up at its end.
    pub fn new(place: Place, work: impl Future<Output = T> + Send + 'static) -> Self {
        let place = Arc::new(place);
        let kept = place.clone();
        ToItsEnd {
            work: Some(Box::pin(async move {
                let done = work.await;
                drop(kept);
                done
            })),
            begun: false,
            place,
            runtime: Handle::try_current().ok(),
        }
    }
}

impl<T: Send + 'static> Future for ToItsEnd<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        self.begun = true;
        let Some(work) = &mut self.work else {
            return Poll::Pending;
        };
        let done = std::task::ready!(work.as_mut().poll(cx));
        self.work = None;
        Poll::Ready(done)
    }
}

impl<T: Send + 'static> Drop for ToItsEnd<T> {
    fn drop(&mut self) {
        let Some(work) = self.work.take().filter(|_| self.begun) else {
            return;
        };
        // Without a runtime nothing goes on that could be waited for.
        if let Some(runtime) = &self.runtime {
            self.place.leave();
            runtime.spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use futures::FutureExt;
    use tokio::sync::oneshot;
    use tokio::time::timeout;
    use volmux_core::ByteRange;

    use super::*;
    use crate::ranges::{Doing, Ranges};

    #[tokio::test]
    async fn what_was_begun_goes_on_and_is_waited_for() {
        let ranges = Arc::new(Ranges::default());
        let range = ByteRange::new(0, 8);
        let (go_on, wait) = oneshot::channel::<()>();
        let done = Arc::new(AtomicBool::new(false));
        let at_the_end = done.clone();
        let place = ranges.enter(range, Doing::Whole).await;
        let mut work = ToItsEnd::new(place, async move {
            wait.await.expect("told to go on");
            at_the_end.store(true, Ordering::SeqCst);
        });
        assert!((&mut work).now_or_never().is_none());
        drop(work);
        let blocked = timeout(Duration::from_millis(20), ranges.settled(range)).await;
        assert!(blocked.is_err());
        go_on.send(()).expect("somebody waits");
        ranges.settled(range).await;
        assert!(done.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn what_was_not_begun_never_is() {
        let ranges = Arc::new(Ranges::default());
        let range = ByteRange::new(0, 8);
        let place = ranges.enter(range, Doing::Whole).await;
        drop(ToItsEnd::new(place, async {
            unreachable!("nobody polled it")
        }));
        ranges.settled(range).await;
        drop(ranges.enter(range, Doing::Part).await);
    }
}
