//! Work on threads that may block, and how it is stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::stream::{self, Stream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use volmux_core::{Control, Error, ErrorKind, Result};

/// Tells long work to stop: the caller cancelled, or dropped the future.
#[derive(Clone, Debug)]
pub struct Stop {
    control: Control,
    dropped: Arc<AtomicBool>,
}

impl Stop {
    /// Fails once the work is to stop.
    pub fn check(&self, op: &'static str) -> Result<()> {
        self.control.check(op)?;
        if self.dropped.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::TimedOut, op).reason("the caller went away"));
        }
        Ok(())
    }

    /// Tells how far the work is.
    pub fn report(&self, done: u64, total: u64) {
        self.control.report(done, total);
    }
}

/// Runs `work` on a thread that may block. Dropping the future keeps work that has not begun from
/// beginning, and asks work that has to stop.
pub async fn run<T: Send + 'static>(
    op: &'static str,
    control: Control,
    work: impl FnOnce(Stop) -> Result<T> + Send + 'static,
) -> Result<T> {
    struct OnDrop {
        dropped: Arc<AtomicBool>,
        abort: tokio::task::AbortHandle,
    }
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.dropped.store(true, Ordering::Relaxed);
            self.abort.abort();
        }
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let stop = Stop {
        control,
        dropped: dropped.clone(),
    };
    let task = tokio::task::spawn_blocking(move || work(stop));
    let _on_drop = OnDrop {
        dropped,
        abort: task.abort_handle(),
    };
    task.await
        .unwrap_or_else(|error| Err(Error::new(ErrorKind::Internal, op).with_source(error)))
}

/// What `workers` send, as a stream. Ends with an error if one of them did not come to its own end:
/// a list that just stops would look complete.
pub fn received<T: Send + 'static>(
    op: &'static str,
    source: mpsc::Receiver<Result<T>>,
    workers: Vec<JoinHandle<()>>,
) -> impl Stream<Item = Result<T>> + Send + 'static {
    stream::unfold(
        (source, workers),
        move |(mut source, mut workers)| async move {
            if let Some(item) = source.recv().await {
                return Some((item, (source, workers)));
            }
            while let Some(worker) = workers.pop() {
                if let Err(error) = worker.await {
                    let error = Error::new(ErrorKind::Internal, op).with_source(error);
                    return Some((Err(error), (source, workers)));
                }
            }
            None
        },
    )
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_stream_whose_worker_panicked_does_not_just_end() {
        let (sink, source) = mpsc::channel(4);
        let whole = tokio::task::spawn_blocking({
            let sink = sink.clone();
            move || sink.blocking_send(Ok(1)).expect("somebody listens")
        });
        let broken = tokio::task::spawn_blocking(move || {
            sink.blocking_send(Ok(2)).expect("somebody listens");
            panic!("meant to happen in this test");
        });
        let items: Vec<Result<u32>> = received("list", source, vec![whole, broken])
            .collect()
            .await;
        let good: u32 = items.iter().flatten().sum();
        let errors: Vec<ErrorKind> = items
            .iter()
            .filter_map(|i| Some(i.as_ref().err()?.kind()))
            .collect();
        assert_eq!((good, errors), (3, vec![ErrorKind::Internal]));
    }
}
