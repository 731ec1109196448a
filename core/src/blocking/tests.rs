use tokio::runtime::Builder;

use super::*;
use crate::memory::{MemoryBackend, MemoryPool};
use crate::{ByteSize, Error, ErrorKind, OriginKind};

fn name(name: &str) -> VolumeName {
    VolumeName::new(name).expect("the name is right")
}

fn pool() -> Pool {
    Pool::open(&Registry::new().with(MemoryBackend), "memory:").expect("open")
}

fn made(pool: &Pool, volume: &str) -> Device {
    let size = CreateOptions::thin(ByteSize::kib(64));
    pool.create_volume(&name(volume), size).expect("create");
    pool.open_volume(&name(volume), OpenOptions::read_write())
        .expect("open")
}

#[test]
fn the_life_of_a_volume() {
    let pool = pool();
    let (v, s, c, d) = (name("v"), name("s"), name("c"), name("d"));
    let device = made(&pool, "v");
    assert_eq!((device.name(), device.size()), (&v, 65536));
    assert_eq!(device.access(), Access::ReadWrite);
    device.write_at(0, vec![1; 8192]).expect("write");
    device.flush().expect("flush");
    assert_eq!(device.refresh().expect("refresh"), 65536);
    pool.snapshot_volume(&v, &s, Default::default())
        .expect("snapshot");
    device.discard(ByteRange::new(0, 4096)).expect("discard");
    let zeros = ByteRange::new(8192, 4096);
    device
        .write_zeroes(zeros, Default::default())
        .expect("zero");
    let allocated = device.extents(ByteRange::new(0, 65536)).expect("extents");
    assert_eq!(
        (allocated.grade(), allocated.granularity()),
        (Grade::Exact, 4096)
    );
    let allocated: Vec<_> = allocated.map(|e| e.expect("extent")).collect();
    assert_eq!(allocated.iter().map(|e| e.length).sum::<u64>(), 8192);
    let changed = pool
        .extents(&v, ExtentQuery::changed_since(s.clone()))
        .expect("extents");
    let changed: Vec<_> = changed.map(|e| e.expect("extent")).collect();
    assert_eq!(changed, [ByteRange::new(0, 4096)]);
    drop(device);

    pool.revert_volume(&v, &s, Default::default())
        .expect("revert");
    pool.clone_volume(&s, &c, Default::default())
        .expect("clone");
    let flat = pool.flatten_volume(&c, Default::default());
    assert_eq!(flat.expect("flatten"), pool.volume(&c).expect("volume"));
    pool.copy_volume(&v, &d, Default::default()).expect("copy");
    pool.rename_volume(&d, &name("e")).expect("rename");
    let grow = ResizeOptions::grow(ByteSize::kib(128));
    assert_eq!(
        pool.resize_volume(&v, grow).expect("resize").virtual_size,
        grow.size
    );
    let origin = pool.volume(&c).expect("volume").origin.expect("origin");
    assert_eq!(origin.kind, OriginKind::Clone);
    assert_eq!(pool.find_volume(&d).expect("find"), None);
    let names = pool
        .list_volumes()
        .map(|v| v.expect("volume").name.to_string());
    assert_eq!(names.collect::<Vec<_>>(), ["c", "e", "s", "v"]);
    assert_eq!(
        pool.audit(AuditOptions::default()).expect("audit").volumes,
        4
    );
    assert_eq!(pool.usage().expect("usage").used, ByteSize::new(4 * 4096));
    pool.delete_volume(&v).expect("delete");
    assert_eq!(
        pool.volume(&v).expect_err("gone").kind(),
        ErrorKind::NotFound
    );
    let clone = pool
        .open_volume(&c, OpenOptions::read_only())
        .expect("open");
    assert_eq!(clone.read_at(4096, 4096).expect("read"), vec![1; 4096]);
}

#[test]
fn pools_can_share_threads_and_copy_to_each_other() {
    let threads = Threads::new().expect("threads");
    let first = Pool::new(MemoryPool::unlimited(), &threads);
    let second = Pool::new(MemoryPool::unlimited(), &threads);
    drop(threads);
    made(&first, "v").write_at(0, vec![7; 10]).expect("write");
    let copied = first.copy_volume_to(&name("v"), &second, &name("w"), Default::default());
    assert_eq!(copied.expect("copy").allocated, Some(ByteSize::kib(4)));
    let holder = Holder::new("host").expect("holder");
    let detached = second.detach_volume(&name("w"), &holder);
    assert_eq!(
        detached.expect_err("unsupported").kind(),
        ErrorKind::Unsupported
    );
    assert_eq!(second.to_string(), "memory:");
    assert_eq!(second.capabilities(), second.inner().capabilities());
}

#[test]
fn threads_use_one_device_at_once() {
    let pool = pool();
    let device = made(&pool, "v");
    std::thread::scope(|scope| {
        for part in 0..8u8 {
            let device = device.clone();
            scope.spawn(move || {
                let offset = u64::from(part) * 8192;
                device.write_at(offset, vec![part; 8192]).expect("write");
            });
        }
    });
    for part in 0..8u8 {
        let data = device.read_at(u64::from(part) * 8192, 8192).expect("read");
        assert_eq!(data, vec![part; 8192]);
    }
}

#[test]
fn threads_are_shared_as_long_as_somebody_has_them() {
    let first = Threads::shared().expect("threads");
    let second = Threads::shared().expect("threads");
    assert!(!first.are_elsewhere());
    // Another test may have been asking at the same time, which gets its own.
    let pool = Pool::new(MemoryPool::unlimited(), &first);
    drop((first, second));
    pool.usage().expect("usage");
    let spawned = pool.threads().spawn("test", async { 7 }).expect("spawn");
    let seven = pool.threads().block_on("test", spawned).expect("wait");
    assert_eq!(seven.expect("no panic"), 7);
}

#[test]
fn calls_from_within_a_runtime_are_refused_and_harm_nothing() {
    let pool = pool();
    let device = made(&pool, "v");
    let outer = Builder::new_current_thread().build().expect("a runtime");
    outer.block_on(async {
        let refused = |error: Error, op| {
            assert_eq!((error.kind(), error.op()), (ErrorKind::InvalidInput, op));
            assert!(
                error
                    .get("reason")
                    .expect("reason")
                    .contains("async runtime")
            );
        };
        refused(pool.usage().expect_err("refused"), "usage");
        refused(device.flush().expect_err("refused"), "flush");
        let mut volumes = pool.list_volumes();
        let first = volumes.next().expect("an error");
        refused(first.expect_err("refused"), "list_volumes");
        assert!(volumes.next().is_none());
        let registry = Registry::new().with(MemoryBackend);
        refused(
            Pool::open(&registry, "memory:").expect_err("refused"),
            "open_pool",
        );
        // The last one of a pool may be dropped here too.
        drop(super::Pool::new(
            MemoryPool::unlimited(),
            &Threads::new().expect("threads"),
        ));
    });
    let there = pool.clone();
    let from_spawned = outer
        .block_on(async { tokio::task::spawn_blocking(move || there.usage().map(drop)).await });
    let error = from_spawned.expect("no panic").expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    pool.usage().expect("outside it works");
}

/// A program that freezes itself: it makes its device durable, by calls that wait.
struct Flushes {
    device: Device,
    calls: Arc<std::sync::Mutex<Vec<&'static str>>>,
    /// Freezing takes until it is thawed.
    late: bool,
}

impl Freezer for Flushes {
    fn freeze(&self) -> Result<()> {
        while self.late && self.calls.lock().expect("lock").is_empty() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.device.write_at(0, vec![7; 4096])?;
        self.device.flush()?;
        self.calls.lock().expect("lock").push("freeze");
        Ok(())
    }

    fn thaw(&self) -> Result<()> {
        self.calls.lock().expect("lock").push("thaw");
        Ok(())
    }
}

fn group_of(pool: &Pool, late: bool) -> (Vec<Member>, Flushes) {
    let device = made(pool, "root");
    made(pool, "data");
    let member = |volume: &str| Member {
        pool: pool.clone(),
        volume: name(volume),
        snapshot: name(&format!("{volume}-1")),
    };
    let calls = Arc::default();
    let freezer = Flushes {
        device,
        calls,
        late,
    };
    (vec![member("root"), member("data")], freezer)
}

#[test]
fn a_group_is_taken_by_functions_that_wait() {
    let pool = pool();
    let (members, freezer) = group_of(&pool, false);
    let calls = freezer.calls.clone();
    let taken = snapshot_group(&members, freezer, Default::default()).expect("taken");
    let names = [&taken[0].name, &taken[1].name].map(ToString::to_string);
    assert_eq!(names, ["root-1", "data-1"]);
    assert_eq!(*calls.lock().expect("lock"), ["freeze", "thaw"]);
    let image = pool.open_volume(&name("root-1"), OpenOptions::read_only());
    assert_eq!(image.expect("open").read_at(0, 1).expect("read")[0], 7);
    let none = snapshot_group(&[], group_of(&self::pool(), false).1, Default::default());
    assert_eq!(none.expect_err("no volume").kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_group_is_not_done_before_the_freezer_has_returned() {
    let pool = pool();
    let (members, freezer) = group_of(&pool, true);
    let calls = freezer.calls.clone();
    let options = crate::group::GroupOptions::within(std::time::Duration::from_millis(50));
    let error = snapshot_group(&members, freezer, options).expect_err("too late");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    // At once, while it still tries to freeze, and once it has.
    assert_eq!(*calls.lock().expect("lock"), ["thaw", "freeze", "thaw"]);
    assert!(pool.find_volume(&name("root-1")).expect("look").is_none());
}
