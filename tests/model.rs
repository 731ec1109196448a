//! Random sequences of operations, right and wrong ones, on a pool and on the reference backend in
//! step: the same results, the same volumes, the same content and the same extents.

use std::future::Future;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use volmux::layers::{Deadline, Limits, Traced};
use volmux::{
    AuditOptions, BlockDevice, ByteRange, ByteSize, CreateOptions, ErrorKind, ExtentQuery, Grade,
    OpenOptions, OriginKind, Pool, PoolExt, Provisioning, ResizeOptions, Result, Volume,
    VolumeName, ZeroOptions,
};
use volmux_conformance::scratch::LoopFs;
use volmux_conformance::{
    DirStorage, MemoryStorage, PoolSettings, Storage, checked_name, pattern, read_all,
};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

#[derive(Clone, Debug)]
enum Op {
    Create {
        name: usize,
        size: u64,
        thick: bool,
    },
    Resize {
        name: usize,
        size: u64,
        shrink: bool,
    },
    Rename {
        name: usize,
        to: usize,
    },
    Delete {
        name: usize,
    },
    Derive {
        kind: OriginKind,
        source: usize,
        name: usize,
    },
    Revert {
        name: usize,
        snapshot: usize,
    },
    Open {
        name: usize,
        write: bool,
    },
    Close,
    Write {
        offset: u64,
        length: u64,
        seed: u64,
    },
    Zero {
        offset: u64,
        length: u64,
        discard: bool,
    },
    Read {
        offset: u64,
        length: u64,
    },
    Flush,
    Changed {
        name: usize,
        since: usize,
    },
    Audit,
}

fn name() -> impl Strategy<Value = usize> {
    0..NAMES.len()
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![
        10 => 1..=300_000u64,
        3 => Just(65_536),
        1 => Just(0),
        1 => Just(u64::MAX),
    ]
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        8 => (0..70_000u64, 0..20_000u64),
        2 => (0..20u64, 1..10u64).prop_map(|(offset, length)| (offset * 4096, length * 4096)),
        1 => (0..400_000u64, 0..100_000u64),
        1 => Just((u64::MAX, 1)),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![
        Just(OriginKind::Snapshot),
        Just(OriginKind::Clone),
        Just(OriginKind::Copy)
    ];
    prop_oneof![
        5 => (name(), size(), prop::bool::weighted(0.15))
            .prop_map(|(name, size, thick)| Op::Create { name, size, thick }),
        2 => (name(), size(), any::<bool>())
            .prop_map(|(name, size, shrink)| Op::Resize { name, size, shrink }),
        1 => (name(), name()).prop_map(|(name, to)| Op::Rename { name, to }),
        2 => name().prop_map(|name| Op::Delete { name }),
        5 => (kind, name(), name())
            .prop_map(|(kind, source, name)| Op::Derive { kind, source, name }),
        2 => (name(), name()).prop_map(|(name, snapshot)| Op::Revert { name, snapshot }),
        5 => (name(), prop::bool::weighted(0.8)).prop_map(|(name, write)| Op::Open { name, write }),
        2 => Just(Op::Close),
        8 => (range(), any::<u64>())
            .prop_map(|((offset, length), seed)| Op::Write { offset, length, seed }),
        3 => (range(), any::<bool>())
            .prop_map(|((offset, length), discard)| Op::Zero { offset, length, discard }),
        2 => range().prop_map(|(offset, length)| Op::Read { offset, length }),
        1 => Just(Op::Flush),
        2 => (name(), name()).prop_map(|(name, since)| Op::Changed { name, since }),
        1 => Just(Op::Audit),
    ]
}

/// What can be compared of an operation's result.
#[derive(Debug, PartialEq)]
enum Outcome {
    Failed(ErrorKind),
    Volume(Seen),
    Data(bytes::Bytes),
    Extents(Vec<ByteRange>),
    Done,
}

/// What can be compared of a volume: ids, times and space are the pool's own.
#[derive(Debug, PartialEq)]
struct Seen {
    name: VolumeName,
    size: ByteSize,
    provisioning: Provisioning,
    origin: Option<(OriginKind, VolumeName)>,
}

impl From<Volume> for Seen {
    fn from(volume: Volume) -> Seen {
        Seen {
            name: volume.name,
            size: volume.virtual_size,
            provisioning: volume.provisioning,
            origin: volume.origin.map(|o| (o.kind, o.parent_name)),
        }
    }
}

/// A pool and the one volume of it that is open.
struct Side {
    pool: Arc<dyn Pool>,
    open: Option<Arc<dyn BlockDevice>>,
}

async fn outcome<T>(result: impl Future<Output = Result<T>>, of: fn(T) -> Outcome) -> Outcome {
    match result.await {
        Ok(value) => of(value),
        Err(error) => Outcome::Failed(error.kind()),
    }
}

fn volume(volume: Volume) -> Outcome {
    Outcome::Volume(volume.into())
}

fn done<T>(_: T) -> Outcome {
    Outcome::Done
}

impl Side {
    async fn run(&mut self, op: &Op) -> Outcome {
        let pool = self.pool.clone();
        let n = |index: usize| checked_name(NAMES[index]);
        match *op {
            Op::Create { name, size, thick } => {
                let size = ByteSize::new(size);
                let options = if thick {
                    CreateOptions::thick(size)
                } else {
                    CreateOptions::thin(size)
                };
                outcome(pool.create_volume(&n(name), options), volume).await
            }
            Op::Resize { name, size, shrink } => {
                let options = ResizeOptions {
                    size: ByteSize::new(size),
                    allow_shrink: shrink,
                };
                outcome(pool.resize_volume(&n(name), options), volume).await
            }
            Op::Rename { name, to } => outcome(pool.rename_volume(&n(name), &n(to)), volume).await,
            Op::Delete { name } => outcome(pool.delete_volume(&n(name)), done).await,
            Op::Derive { kind, source, name } => derive(&*pool, kind, &n(source), &n(name)).await,
            Op::Revert { name, snapshot } => {
                let (name, snapshot) = (n(name), n(snapshot));
                let call = pool.revert_volume(&name, &snapshot, Default::default());
                outcome(call, volume).await
            }
            Op::Open { name, write } => {
                let options = if write {
                    OpenOptions::read_write()
                } else {
                    OpenOptions::read_only()
                };
                match pool.open_volume(&n(name), options).await {
                    Ok(device) => {
                        self.open = Some(device);
                        Outcome::Done
                    }
                    Err(error) => Outcome::Failed(error.kind()),
                }
            }
            Op::Close => {
                self.open = None;
                Outcome::Done
            }
            Op::Changed { name, since } => self.changed(&n(name), &n(since)).await,
            Op::Audit => outcome(pool.audit(AuditOptions { repair: true }), done).await,
            Op::Write { .. } | Op::Zero { .. } | Op::Read { .. } | Op::Flush => {
                match self.open.clone() {
                    Some(device) => run_on(device.as_ref(), op).await,
                    None => Outcome::Done,
                }
            }
        }
    }

    async fn changed(&self, name: &VolumeName, since: &VolumeName) -> Outcome {
        let query = ExtentQuery::changed_since(since.clone());
        let extents = async { self.pool.extents(name, query).await?.collect_joined().await };
        outcome(extents, Outcome::Extents).await
    }

    async fn flush(&self) {
        if let Some(device) = &self.open {
            device.flush().await.expect("flush");
        }
    }

    async fn volumes(&self) -> Vec<Seen> {
        let volumes = self.pool.volumes().await.expect("list");
        volumes.into_iter().map(Seen::from).collect()
    }

    async fn allocated(&self, name: &VolumeName) -> Vec<ByteRange> {
        let stream = self.pool.extents(name, ExtentQuery::allocated()).await;
        let extents = stream.expect("extents").collect_joined().await;
        extents.expect("extents")
    }
}

async fn derive(
    pool: &dyn Pool,
    kind: OriginKind,
    source: &VolumeName,
    name: &VolumeName,
) -> Outcome {
    match kind {
        OriginKind::Snapshot => {
            let call = pool.snapshot_volume(source, name, Default::default());
            outcome(call, volume).await
        }
        OriginKind::Clone => {
            let call = pool.clone_volume(source, name, Default::default());
            outcome(call, volume).await
        }
        OriginKind::Copy => {
            let call = pool.copy_volume(source, name, Default::default());
            outcome(call, volume).await
        }
    }
}

async fn run_on(device: &dyn BlockDevice, op: &Op) -> Outcome {
    match *op {
        Op::Write {
            offset,
            length,
            seed,
        } => {
            let data = pattern(seed, length as usize);
            outcome(device.write_at(offset, data), done).await
        }
        Op::Zero {
            offset,
            length,
            discard,
        } => {
            let range = ByteRange::new(offset, length);
            if discard {
                return outcome(device.discard(range), done).await;
            }
            // Without leave to discard, what stays allocated is the backend's choice.
            let options = ZeroOptions {
                may_discard: true,
                ..ZeroOptions::default()
            };
            outcome(device.write_zeroes(range, options), done).await
        }
        Op::Read { offset, length } => {
            outcome(device.read_at(offset, length as usize), Outcome::Data).await
        }
        _ => outcome(device.flush(), done).await,
    }
}

/// Which names a volume may have that was reserved, or was made from one. A file system may count
/// reserved space that was read as data, and a copy takes that over.
fn of_reserved(ops: &[Op]) -> [bool; NAMES.len()] {
    let mut found = [false; NAMES.len()];
    for op in ops {
        match *op {
            Op::Create { name, thick, .. } => found[name] |= thick,
            Op::Rename { name, to } => found[to] |= found[name],
            Op::Derive { source, name, .. } => found[name] |= found[source],
            _ => {}
        }
    }
    found
}

fn index_of(name: &VolumeName) -> usize {
    let found = NAMES.iter().position(|known| *known == name.as_str());
    found.expect("a name of the test")
}

/// Runs the operations on both and compares.
async fn in_step(
    pool: Arc<dyn Pool>,
    model: Arc<dyn Pool>,
    allocated: Grade,
    ops: &[Op],
) -> std::result::Result<(), TestCaseError> {
    let mut pool = Side { pool, open: None };
    let mut model = Side {
        pool: model,
        open: None,
    };
    for (i, op) in ops.iter().enumerate() {
        let (found, expected) = (pool.run(op).await, model.run(op).await);
        prop_assert_eq!(found, expected, "operation {}: {:?}", i, op);
    }
    // A file system may count cached pages of zeros as data until they are written back.
    for side in [&pool, &model] {
        side.flush().await;
    }
    let volumes = model.volumes().await;
    prop_assert_eq!(&pool.volumes().await, &volumes);
    let of_reserved = of_reserved(ops);
    for volume in &volumes {
        let name = &volume.name;
        let found = read_all(pool.pool.as_ref(), name).await;
        let expected = read_all(model.pool.as_ref(), name).await;
        prop_assert!(found == expected, "content of {}", name);
        // What is reserved and not written shows or not, as the backend likes.
        if volumes.iter().all(|v| v.provisioning == Provisioning::Thin) {
            let (found, expected) = (pool.allocated(name).await, model.allocated(name).await);
            let covered = expected
                .iter()
                .all(|e| found.iter().any(|f| f.intersect(e) == *e));
            let superset = allocated == Grade::Superset || of_reserved[index_of(name)];
            let right = found == expected || (superset && covered);
            prop_assert!(
                right,
                "allocated extents of {}: {:?}, not {:?}",
                name,
                found,
                expected
            );
        }
        for other in &volumes {
            let found = pool.changed(name, &other.name).await;
            let expected = model.changed(name, &other.name).await;
            prop_assert_eq!(found, expected, "{} since {}", name, &other.name);
        }
    }
    let report = pool.pool.audit(AuditOptions { repair: false }).await;
    let report = report.expect("audit");
    prop_assert!(report.findings.is_empty(), "{:?}", report.findings);
    Ok(())
}

async fn make(storage: &dyn Storage) -> Arc<dyn Pool> {
    storage.make_pool(PoolSettings::default()).await.pool()
}

/// Runs `cases` random sequences on pools that `wrap` makes of those of `storage`.
fn check(
    storage: &dyn Storage,
    cases: u32,
    allocated: Grade,
    wrap: fn(Arc<dyn Pool>) -> Arc<dyn Pool>,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..Config::default()
    };
    let sequences = prop::collection::vec(op(), 1..80);
    let tested = TestRunner::new(config).run(&sequences, |ops| {
        runtime.block_on(async {
            let pool = wrap(make(storage).await);
            in_step(pool, make(&MemoryStorage).await, allocated, &ops).await
        })
    });
    if let Err(error) = tested {
        panic!("{error}");
    }
}

#[test]
fn a_directory_on_ext4_does_what_the_model_does() {
    let storage = DirStorage::new(LoopFs::ext4(512 << 20));
    check(&storage, 120, Grade::Superset, |pool| pool);
}

#[test]
fn a_directory_on_xfs_does_what_the_model_does() {
    let storage = DirStorage::new(LoopFs::xfs(512 << 20));
    // Once something was read beside blocks that were copied on write, XFS counts cached zeros as
    // data: it keeps unwritten blocks in reserve there.
    check(&storage, 120, Grade::Superset, |pool| pool);
}

#[test]
fn layers_change_nothing() {
    check(&MemoryStorage, 200, Grade::Exact, |pool| {
        Deadline::new(Traced::new(pool), Limits::default())
    });
}
