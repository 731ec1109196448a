//! Commands that are not answered in time. One task looks after all of them: a timer for each would
//! cost a good part of what the command does.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use crate::error::{Error, ErrorKind};
use crate::shared::Shared;
use crate::tasks::{Task, Tasks};

/// Nobody answered in time.
pub fn late(why: &str) -> Error {
    Error::new(
        ErrorKind::TimedOut,
        format!("the target did not answer in time; {why}"),
    )
}

impl Shared {
    pub async fn watch(self: Arc<Self>) {
        loop {
            let next = self.end_late();
            let sooner = self.sooner.notified();
            match next {
                // Either way it looks again.
                Some(next) => drop(timeout_at(next, sooner).await),
                None => sooner.await,
            }
        }
    }

    /// Lets those know whose time is over. When the next one's is.
    fn end_late(&self) -> Option<Instant> {
        let mut state = self.lock();
        let now = Instant::now();
        for tag in state.tasks.late(now) {
            match state.tasks.scsi(tag) {
                // Who waits for it has it aborted.
                Some(scsi) => scsi.waiter = None,
                None => {
                    if let Some(Task::Scsi(mut scsi)) = state.tasks.remove(tag) {
                        scsi.tell(Err(late("it takes no more commands")));
                    }
                }
            }
        }
        state.watched = state.tasks.first_until();
        state.watched
    }
}

impl Tasks {
    /// Commands that somebody waits for, and their time.
    fn times(&self) -> impl Iterator<Item = (u32, Instant)> {
        self.all().filter_map(|(tag, task)| match task {
            Task::Scsi(scsi) if scsi.waiter.is_some() => Some((tag, scsi.until)),
            _ => None,
        })
    }

    fn late(&self, now: Instant) -> Vec<u32> {
        let late = self.times().filter(|(_, until)| *until <= now);
        late.map(|(tag, _)| tag).collect()
    }

    fn first_until(&self) -> Option<Instant> {
        self.times().map(|(_, until)| until).min()
    }
}
