//! Snapshots of several volumes of one moment, for programs without async.

use std::sync::Arc;
use std::thread;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::Pool;
use crate::group::{self, GroupOptions};
use crate::{Error, ErrorKind, Result, Volume, VolumeName};

const OP: &str = "snapshot_group";

/// As [`group::Freezer`], where each call returns when it is done.
///
/// Each is called in a thread of its own, in which calls of a pool or a device may be made. One that
/// does not return in time is not waited for: `thaw` may be called while `freeze` still runs, and
/// once more when that has returned, for it may have frozen something after all.
pub trait Freezer: Send + Sync + 'static {
    /// See [`group::Freezer::freeze`].
    ///
    /// # Errors
    /// As there.
    fn freeze(&self) -> Result<()>;

    /// See [`group::Freezer::thaw`].
    ///
    /// # Errors
    /// As there.
    fn thaw(&self) -> Result<()>;
}

/// A [`Freezer`] for async callers.
#[derive(Clone, Debug)]
pub struct FreezerThreads<F> {
    freezer: Arc<F>,
    running: TaskTracker,
}

impl<F: Freezer> FreezerThreads<F> {
    /// Of this freezer.
    pub fn new(freezer: F) -> Self {
        FreezerThreads {
            freezer: Arc::new(freezer),
            running: TaskTracker::new(),
        }
    }

    /// Once no call is under way, where none is begun any more.
    pub async fn ended(&self) {
        self.running.close();
        self.running.wait().await;
    }

    /// Calls a function, and another one after it if nobody waits for it any more.
    async fn call(&self, work: fn(&F) -> Result<()>, late: fn(&F) -> Result<()>) -> Result<()> {
        let (done, told) = oneshot::channel();
        let (freezer, token) = (self.freezer.clone(), self.running.token());
        let begun = thread::Builder::new()
            .name("volmux-freezer".into())
            .spawn(move || {
                let result = work(&freezer);
                if done.send(result).is_err()
                    && let Err(error) = late(&freezer)
                {
                    tracing::error!(%error, "what froze late can't be thawed");
                }
                drop((freezer, token));
            });
        begun.map_err(|error| Error::from_io(OP, error))?;
        told.await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Internal, OP).reason("the freezer panicked"))
        })
    }
}

#[async_trait]
impl<F: Freezer> group::Freezer for FreezerThreads<F> {
    async fn freeze(&self) -> Result<()> {
        self.call(F::freeze, F::thaw).await
    }

    async fn thaw(&self) -> Result<()> {
        self.call(F::thaw, |_| Ok(())).await
    }
}

/// As [`group::Member`].
#[derive(Clone, Debug)]
pub struct Member {
    /// Where it is.
    pub pool: Pool,
    /// The volume.
    pub volume: VolumeName,
    /// The snapshot to be made, in the same pool.
    pub snapshot: VolumeName,
}

/// See [`group::snapshot_group`]. It returns once no call of the freezer is under way any more.
///
/// # Errors
/// As there.
pub fn snapshot_group(
    members: &[Member],
    freezer: impl Freezer,
    options: GroupOptions,
) -> Result<Vec<Volume>> {
    for member in members {
        member.pool.threads.block_on(OP, std::future::ready(()))?;
    }
    let Some(first) = members.first() else {
        return Err(group::empty());
    };
    let inner = |member: &Member| group::Member {
        pool: member.pool.inner.clone(),
        volume: member.volume.clone(),
        snapshot: member.snapshot.clone(),
    };
    let members = members.iter().map(inner).collect();
    let freezer = Arc::new(FreezerThreads::new(freezer));
    first.pool.threads.block_on(OP, async {
        let done = group::snapshot_group(members, freezer.clone(), options).await;
        freezer.ended().await;
        done
    })?
}
