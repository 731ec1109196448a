//! Snapshots of several volumes of one moment, while what writes them stands still.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::{
    Control, Error, ErrorKind, Pool, PoolExt, Result, SnapshotOptions, Volume, VolumeName,
};

const OP: &str = "snapshot_group";
/// How long one try to thaw may take, and how often it is tried.
const THAW: Duration = Duration::from_secs(30);
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);

/// Makes what writes the volumes stand still: a guest's file systems by its agent
/// (`guest-fsfreeze-freeze` of QEMU's, `virsh domfsfreeze`), a data base, a guest's processors.
#[async_trait]
pub trait Freezer: Send + Sync + 'static {
    /// Flushes, and holds all writing until [`thaw`](Self::thaw).
    ///
    /// # Errors
    /// Its own. What did freeze is thawed then.
    async fn freeze(&self) -> Result<()>;

    /// Lets writing go on. It is called after every [`freeze`](Self::freeze), also one that failed or
    /// was given up, and again if it fails.
    ///
    /// # Errors
    /// Its own; also if something had gone on by itself before, as Windows does after ten seconds:
    /// the snapshots are then not of one moment.
    async fn thaw(&self) -> Result<()>;
}

/// A volume that belongs to a group, and its snapshot's name.
#[derive(Clone, Debug)]
pub struct Member {
    /// Where it is. A machine's disks may be in several pools.
    pub pool: Arc<dyn Pool>,
    /// The volume.
    pub volume: VolumeName,
    /// The snapshot to be made, in the same pool.
    pub snapshot: VolumeName,
}

/// How to take snapshots of a group.
#[derive(Clone, Debug)]
pub struct GroupOptions {
    /// How long writing may stand still, from when it begins to freeze. Ten seconds, which is what
    /// Windows grants, unless told otherwise.
    pub deadline: Duration,
    /// Cancellation: what is frozen is thawed then. It tells of no progress.
    pub control: Control,
}

impl Default for GroupOptions {
    fn default() -> Self {
        GroupOptions {
            deadline: Duration::from_secs(10),
            control: Control::new(),
        }
    }
}

impl GroupOptions {
    /// With this deadline.
    pub fn within(deadline: Duration) -> Self {
        GroupOptions {
            deadline,
            ..GroupOptions::default()
        }
    }
}

/// Freezes, takes a snapshot of every member, all at once, and thaws. The snapshots come back in the
/// members' order.
///
/// From when it begins to freeze, writing stands still until the deadline at most; then it is thawed,
/// whatever the pools do. What can be found wrong before is found before. If anything fails, no snapshot
/// is left that was made here. It goes on to its end, the thaw included, if this future is dropped;
/// a process that dies leaves it frozen. Must be called in a Tokio runtime. The snapshots' names must be
/// this call's alone: one that another makes meanwhile of the same volume would be taken for its own.
///
/// # Errors
/// `InvalidInput` for no member or a snapshot that is named twice; `AlreadyExists` if one is there;
/// `TimedOut` if the deadline came first, and if it was cancelled; those of the pools and of the freezer.
/// `left_behind` names snapshots that could not be removed.
pub async fn snapshot_group(
    members: Vec<Member>,
    freezer: Arc<dyn Freezer>,
    options: GroupOptions,
) -> Result<Vec<Volume>> {
    let work = async move { run(&members, freezer.as_ref(), &options).await };
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::new(ErrorKind::Internal, OP)
            .reason("the task ended before it was done")
            .with_source(error)),
    }
}

async fn run(
    members: &[Member],
    freezer: &dyn Freezer,
    options: &GroupOptions,
) -> Result<Vec<Volume>> {
    options.control.check(OP)?;
    check(members).await?;
    let end = Instant::now() + options.deadline;
    let frozen = tokio::select! {
        biased;
        frozen = freezer.freeze() => frozen,
        error = options.over(end, "it was not frozen") => Err(error),
    };
    if let Err(error) = frozen {
        return after_thaw(freezer, error).await;
    }
    let control = Control::new().with_cancel(options.control.child_cancellation());
    let mut taking = pin!(join_all(members.iter().map(|m| take(m, &control))));
    let in_time = tokio::select! {
        biased;
        taken = &mut taking => Ok(taken),
        error = options.over(end, "the pools did not take the snapshots") => Err(error),
    };
    control.cancel();
    let thawed = thaw(freezer).await;
    let (taken, stopped) = match in_time {
        Ok(taken) => (taken, None),
        // A pool that is dropped in the middle might make the snapshot later.
        Err(error) => (taking.await, Some(error)),
    };
    match thawed.err().or(stopped) {
        None if taken.iter().all(Result::is_ok) => taken.into_iter().collect(),
        failed => undo(members, taken, failed).await,
    }
}

impl GroupOptions {
    /// Why it does not go on, as soon as it must not.
    async fn over(&self, end: Instant, what: &str) -> Error {
        let error = Error::new(ErrorKind::TimedOut, OP);
        tokio::select! {
            biased;
            () = self.control.cancelled() => error
                .reason("cancelled by the caller")
                .help("nothing was changed; call again to start over"),
            () = sleep_until(end) => error
                .reason(format!("{what} within {} s", self.deadline.as_secs_f64()))
                .help("nothing was changed; give it more time, or find out what is slow"),
        }
    }
}

pub(crate) fn empty() -> Error {
    Error::new(ErrorKind::InvalidInput, OP).reason("the group has no volume")
}

/// Finds what would fail, while nothing stands still yet.
async fn check(members: &[Member]) -> Result<()> {
    if members.is_empty() {
        return Err(empty());
    }
    for (at, member) in members.iter().enumerate() {
        let named = |error: Error| error.with("snapshot", &member.snapshot);
        let twice = members[..at].iter().any(|other| {
            other.snapshot == member.snapshot && Arc::ptr_eq(&other.pool, &member.pool)
        });
        if twice {
            let error = Error::new(ErrorKind::InvalidInput, OP);
            return Err(named(error.reason("two snapshots have this name")));
        }
        member.pool.volume(&member.volume).await?;
        if member.pool.find_volume(&member.snapshot).await?.is_some() {
            let error = Error::new(ErrorKind::AlreadyExists, OP);
            return Err(named(error.reason("the name is taken")));
        }
    }
    Ok(())
}

async fn take(member: &Member, control: &Control) -> Result<Volume> {
    let options = SnapshotOptions {
        control: control.clone(),
    };
    let Member {
        pool,
        volume,
        snapshot,
    } = member;
    pool.snapshot_volume(volume, snapshot, options).await
}

/// Tries hard: a guest that stays frozen is worse than any error here.
async fn thaw(freezer: &dyn Freezer) -> Result<()> {
    let mut tries = 1;
    loop {
        let error = match timeout(THAW, freezer.thaw()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => Error::new(ErrorKind::TimedOut, OP).with("seconds", THAW.as_secs()),
        };
        if tries == TRIES {
            return Err(error
                .with("state", "perhaps still frozen")
                .help("thaw it by other means, and look whether it writes"));
        }
        tracing::warn!(%error, tries, "thawing failed, and is tried again");
        tries += 1;
        sleep(PAUSE).await;
    }
}

async fn after_thaw(freezer: &dyn Freezer, error: Error) -> Result<Vec<Volume>> {
    match thaw(freezer).await {
        Ok(()) => Err(error),
        Err(frozen) => Err(frozen.with("before", error)),
    }
}

/// Removes what was made, and gives back `error`, or else the first one of the pools.
async fn undo(
    members: &[Member],
    taken: Vec<Result<Volume>>,
    mut error: Option<Error>,
) -> Result<Vec<Volume>> {
    let mut left = Vec::new();
    for (member, taken) in members.iter().zip(taken) {
        match taken {
            Ok(_) => {
                if let Err(why) = member.pool.delete_volume(&member.snapshot).await {
                    left.push(format!("{} ({why})", member.snapshot));
                }
            }
            Err(failed) => error = error.or(Some(failed)),
        }
    }
    // There is one: it is called for no other reason.
    let error = error.unwrap_or_else(|| Error::new(ErrorKind::Internal, OP));
    Err(match left.is_empty() {
        true => error,
        false => error.with("left_behind", left.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::layers::{Call, Fault, FaultPlan, Faulty, Hook, Layer, When};
    use crate::memory::MemoryPool;
    use crate::{ByteSize, CreateOptions};

    const SECOND: Duration = Duration::from_secs(1);

    fn within(deadline: Duration) -> GroupOptions {
        GroupOptions::within(deadline)
    }

    /// Notes what it is asked for.
    #[derive(Default)]
    struct Noted {
        calls: Mutex<Vec<&'static str>>,
        freeze_takes: Duration,
        freeze_fails: bool,
        thaws_that_fail: Mutex<u32>,
    }

    impl Noted {
        fn calls(&self) -> Vec<&'static str> {
            self.calls.lock().expect("lock").clone()
        }
    }

    fn broken() -> Error {
        Error::new(ErrorKind::Unavailable, "agent")
    }

    #[async_trait]
    impl Freezer for Noted {
        async fn freeze(&self) -> Result<()> {
            self.calls.lock().expect("lock").push("freeze");
            sleep(self.freeze_takes).await;
            match self.freeze_fails {
                true => Err(broken()),
                false => Ok(()),
            }
        }

        async fn thaw(&self) -> Result<()> {
            self.calls.lock().expect("lock").push("thaw");
            let mut left = self.thaws_that_fail.lock().expect("lock");
            if *left > 0 {
                *left -= 1;
                return Err(broken());
            }
            Ok(())
        }
    }

    /// Snapshots take a minute, whatever they are told.
    #[derive(Debug)]
    struct Slow;

    impl Hook for Slow {
        const EACH_ITEM: bool = false;

        async fn around<T: Send>(
            &self,
            call: &Call,
            work: impl Future<Output = Result<T>> + Send,
        ) -> Result<T> {
            if call.op == "snapshot_volume" {
                sleep(60 * SECOND).await;
            }
            work.await
        }
    }

    fn name(name: &str) -> VolumeName {
        VolumeName::new(name).expect("a name")
    }

    async fn pool(plan: FaultPlan) -> Arc<Faulty> {
        let pool = Faulty::new(MemoryPool::unlimited(), plan);
        for volume in ["root", "data"] {
            let size = CreateOptions::thin(ByteSize::mib(1));
            let made = pool.create_volume(&name(volume), size).await;
            made.expect("create");
        }
        pool
    }

    fn members(pool: &Arc<Faulty>) -> Vec<Member> {
        let of = |volume: &str| Member {
            pool: Arc::clone(pool) as Arc<dyn Pool>,
            volume: name(volume),
            snapshot: name(&format!("{volume}-1")),
        };
        vec![of("root"), of("data")]
    }

    async fn names(pool: &Arc<Faulty>) -> Vec<String> {
        let volumes = pool.volumes().await.expect("volumes");
        volumes
            .iter()
            .map(|volume| volume.name.to_string())
            .collect()
    }

    async fn fails(pool: &Arc<Faulty>, freezer: Noted, kind: ErrorKind) -> (Arc<Noted>, Error) {
        let freezer = Arc::new(freezer);
        let done = snapshot_group(members(pool), freezer.clone(), within(10 * SECOND)).await;
        let error = done.expect_err("it fails");
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(names(pool).await, ["data", "root"]);
        (freezer, error)
    }

    #[tokio::test]
    async fn a_group_is_taken_between_freezing_and_thawing() {
        let pool = pool(FaultPlan::none()).await;
        let freezer = Arc::new(Noted::default());
        let done = snapshot_group(members(&pool), freezer.clone(), within(SECOND)).await;
        let taken: Vec<_> = done
            .expect("taken")
            .iter()
            .map(|v| v.name.to_string())
            .collect();
        assert_eq!(taken, ["root-1", "data-1"]);
        assert_eq!(freezer.calls(), ["freeze", "thaw"]);
    }

    #[tokio::test]
    async fn what_is_wrong_before_freezes_nothing() {
        let pool = pool(FaultPlan::none()).await;
        let of = |volume: &str, snapshot: &str| Member {
            pool: pool.clone(),
            volume: name(volume),
            snapshot: name(snapshot),
        };
        for (group, kind) in [
            (vec![], ErrorKind::InvalidInput),
            (
                vec![of("root", "a"), of("data", "a")],
                ErrorKind::InvalidInput,
            ),
            (vec![of("root", "a"), of("nix", "b")], ErrorKind::NotFound),
            (vec![of("root", "data")], ErrorKind::AlreadyExists),
        ] {
            let freezer = Arc::new(Noted::default());
            let done = snapshot_group(group, freezer.clone(), within(SECOND)).await;
            assert_eq!(done.expect_err("wrong").kind(), kind);
            assert!(freezer.calls().is_empty());
        }
        assert_eq!(names(&pool).await, ["data", "root"]);
    }

    #[tokio::test]
    async fn if_one_fails_none_is_left() {
        let second = Fault::fail(2, When::Before).of("snapshot_volume");
        let pool = pool(FaultPlan::explicit([second])).await;
        let (freezer, _) = fails(&pool, Noted::default(), ErrorKind::Unavailable).await;
        assert_eq!(freezer.calls(), ["freeze", "thaw"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_freezer_that_is_late_is_thawed() {
        let pool = pool(FaultPlan::none()).await;
        let slow = Noted {
            freeze_takes: 11 * SECOND,
            ..Noted::default()
        };
        let start = tokio::time::Instant::now();
        let (freezer, _) = fails(&pool, slow, ErrorKind::TimedOut).await;
        assert_eq!(start.elapsed(), 10 * SECOND);
        assert_eq!(freezer.calls(), ["freeze", "thaw"]);
        assert_eq!(pool.calls_of("snapshot_volume"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_is_thawed_too() {
        let pool = pool(FaultPlan::none()).await;
        let failing = Noted {
            freeze_fails: true,
            thaws_that_fail: Mutex::new(2),
            ..Noted::default()
        };
        let (freezer, error) = fails(&pool, failing, ErrorKind::Unavailable).await;
        assert_eq!(freezer.calls(), ["freeze", "thaw", "thaw", "thaw"]);
        assert_eq!(error.get("state"), None, "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_t_be_thawed_is_told_of() {
        let pool = pool(FaultPlan::none()).await;
        let stuck = Noted {
            thaws_that_fail: Mutex::new(9),
            ..Noted::default()
        };
        let (_, error) = fails(&pool, stuck, ErrorKind::Unavailable).await;
        assert_eq!(error.get("state"), Some("perhaps still frozen"));
    }

    #[tokio::test(start_paused = true)]
    async fn it_thaws_also_if_nobody_waits_any_more() {
        let pool = pool(FaultPlan::none()).await;
        let freezer = Arc::new(Noted {
            freeze_takes: SECOND,
            ..Noted::default()
        });
        let call = snapshot_group(members(&pool), freezer.clone(), within(10 * SECOND));
        assert!(timeout(SECOND / 2, call).await.is_err(), "dropped");
        assert_eq!(freezer.calls(), ["freeze"]);
        sleep(SECOND).await;
        while freezer.calls().len() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(freezer.calls(), ["freeze", "thaw"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_that_is_late_does_not_keep_the_guest_frozen() {
        let pool = pool(FaultPlan::none()).await;
        let freezer = Arc::new(Noted::default());
        let slow: Arc<dyn Pool> = Layer::around(pool.clone(), Slow);
        let mut group = members(&pool);
        group[1].pool = slow;
        let start = tokio::time::Instant::now();
        let watched = freezer.clone();
        let thawed_at = tokio::spawn(async move {
            while watched.calls().len() < 2 {
                sleep(SECOND / 10).await;
            }
            start.elapsed()
        });
        let done = snapshot_group(group, freezer, within(10 * SECOND)).await;
        assert_eq!(done.expect_err("late").kind(), ErrorKind::TimedOut);
        let thawed_at = thawed_at.await.expect("thawed");
        assert!(thawed_at <= 11 * SECOND, "{thawed_at:?}");
        assert_eq!(names(&pool).await, ["data", "root"], "none is left");
    }

    #[tokio::test(start_paused = true)]
    async fn who_cancels_it_has_it_thawed_at_once() {
        for (freeze_takes, calls) in [(5 * SECOND, 0), (Duration::ZERO, 2)] {
            let pool = pool(FaultPlan::none()).await;
            let freezer = Arc::new(Noted {
                freeze_takes,
                ..Noted::default()
            });
            let mut group = members(&pool);
            for member in &mut group {
                member.pool = Layer::around(pool.clone(), Slow);
            }
            let options = GroupOptions::default();
            let control = options.control.clone();
            let start = Instant::now();
            let call = tokio::spawn(snapshot_group(group, freezer.clone(), options));
            sleep(SECOND).await;
            control.cancel();
            while freezer.calls().len() < 2 {
                tokio::task::yield_now().await;
            }
            assert_eq!(start.elapsed(), SECOND);
            let done = call.await.expect("no panic");
            assert_eq!(done.expect_err("cancelled").kind(), ErrorKind::TimedOut);
            assert_eq!(freezer.calls(), ["freeze", "thaw"]);
            assert_eq!(pool.calls_of("snapshot_volume"), calls);
            assert_eq!(names(&pool).await, ["data", "root"], "none is left");
        }
    }

    #[tokio::test]
    async fn what_was_cancelled_before_freezes_nothing() {
        let pool = pool(FaultPlan::none()).await;
        let freezer = Arc::new(Noted::default());
        let options = GroupOptions::default();
        options.control.cancel();
        let done = snapshot_group(members(&pool), freezer.clone(), options).await;
        assert_eq!(done.expect_err("cancelled").kind(), ErrorKind::TimedOut);
        assert!(freezer.calls().is_empty());
    }
}
