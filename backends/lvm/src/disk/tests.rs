use std::future::Future;
use std::os::unix::fs::FileExt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::*;
use crate::ring::Delayed;

const CHUNK: u64 = 64 << 10;
const SIZE: u64 = 1 << 20;

fn thin() -> Kind {
    Kind::Thin {
        chunk: CHUNK,
        group: "vg".into(),
        pool: "pool".into(),
    }
}

fn file(size: u64) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a file");
    file.as_file().set_len(size).expect("a size");
    file
}

fn opened(file: &NamedTempFile, kind: Kind, engine: Engine) -> Disk {
    let mut disk = Disk::open(file.path(), true, kind).expect("O_DIRECT works here");
    disk.engine = engine;
    disk
}

fn engines() -> [Engine; 2] {
    [Engine::of_process(), Engine::Threads]
}

fn pattern(seed: u8, length: usize) -> Bytes {
    (0..length)
        .map(|i| seed ^ (i % 251) as u8)
        .collect::<Vec<u8>>()
        .into()
}

/// Polls once and drops the future.
fn start_and_drop<T>(future: impl Future<Output = T>) -> bool {
    let future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    matches!(future.poll(&mut context), Poll::Ready(_))
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize, u8),
    DroppedWrite(u64, usize, u8),
    Zero(u64, u64),
    Discard(u64, u64),
    DroppedDiscard(u64, u64),
    Read(u64, usize),
}

fn place() -> impl Strategy<Value = u64> + Clone {
    prop_oneof![
        0..SIZE,
        (0..SIZE / 512).prop_map(|n| n * 512),
        (0..SIZE / 4096).prop_map(|n| n * 4096),
        (0..SIZE / CHUNK).prop_map(|n| n * CHUNK),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let range = (place(), place()).prop_map(|(a, b)| (a.min(b), a.abs_diff(b)));
    let short = (
        place(),
        prop_oneof![0..5000usize, Just(512), Just(4096), Just(8192)],
    );
    prop_oneof![
        (short.clone(), any::<u8>()).prop_map(|((at, n), seed)| Step::Write(at, n, seed)),
        (range.clone(), any::<u8>()).prop_map(|((at, n), s)| Step::Write(at, n as usize, s)),
        (range.clone(), any::<u8>()).prop_map(|((at, n), s)| Step::DroppedWrite(at, n as usize, s)),
        range.clone().prop_map(|(at, n)| Step::Zero(at, n)),
        range.clone().prop_map(|(at, n)| Step::Discard(at, n)),
        range
            .clone()
            .prop_map(|(at, n)| Step::DroppedDiscard(at, n)),
        short.prop_map(|(at, n)| Step::Read(at, n)),
        range.prop_map(|(at, n)| Step::Read(at, n as usize)),
    ]
}

async fn overwrite(disk: &Disk, model: &mut [u8], at: u64, data: Bytes) {
    model[at as usize..at as usize + data.len()].copy_from_slice(&data);
    disk.write_at(at, data).await.expect("write");
}

async fn check(disk: &Disk, model: &[u8], at: u64, length: usize) {
    let found = disk.read_at(at, length).await.expect("read");
    let expected = &model[at as usize..at as usize + length];
    let differ = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!((differ, found.len()), (None, length), "read at {at}");
}

async fn play(disk: &Disk, model: &mut [u8], step: Step) {
    let clip = |at: u64, length: usize| length.min((SIZE - at) as usize);
    match step {
        Step::Write(at, length, seed) => {
            overwrite(disk, model, at, pattern(seed, clip(at, length))).await;
        }
        Step::DroppedWrite(at, length, seed) => {
            let length = clip(at, length);
            start_and_drop(disk.write_at(at, pattern(!seed, length)));
            overwrite(disk, model, at, pattern(seed, length)).await;
            check(disk, model, at, length).await;
        }
        Step::DroppedDiscard(at, length) => {
            start_and_drop(disk.discard(ByteRange::new(at, length)));
            overwrite(disk, model, at, pattern(9, length as usize)).await;
            check(disk, model, at, length as usize).await;
        }
        Step::Zero(at, length) | Step::Discard(at, length) => {
            let range = ByteRange::new(at, length);
            if matches!(step, Step::Zero(..)) {
                let zeroed = disk.write_zeroes(range, ZeroOptions::default()).await;
                zeroed.expect("zeros");
            } else {
                disk.discard(range).await.expect("discard");
            }
            model[at as usize..(at + length) as usize].fill(0);
        }
        Step::Read(at, length) => check(disk, model, at, clip(at, length)).await,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_disk_is_like_memory(
        steps in prop::collection::vec(step(), 1..40), threads: bool, is_thin: bool
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
        runtime.expect("a runtime").block_on(async {
            let file = file(SIZE);
            let kind = if is_thin { thin() } else { Kind::Thick };
            let disk = opened(&file, kind, engines()[usize::from(threads)]);
            let mut model = vec![0; SIZE as usize];
            for step in steps {
                play(&disk, &mut model, step).await;
            }
            disk.flush().await.expect("flush");
            check(&disk, &model, 0, SIZE as usize).await;
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_to_parts_of_a_block_at_once_lose_nothing() {
    for engine in engines() {
        let file = file(SIZE);
        let disk = opened(&file, Kind::Thick, engine);
        let writes = (0..1000u64).map(|i| disk.write_at(i * 17, pattern(i as u8, 17)));
        for written in futures::future::join_all(writes).await {
            written.expect("write");
        }
        for i in 0..1000u64 {
            let found = disk.read_at(i * 17, 17).await.expect("read");
            assert_eq!(found, pattern(i as u8, 17), "{engine:?} {i}");
        }
    }
}

#[tokio::test]
async fn dropped_writes_are_waited_for_by_all_that_overlap() {
    let delayed: &Delayed = Box::leak(Box::default());
    let file = file(SIZE);
    let disk = opened(&file, Kind::Thick, Engine::Delayed(delayed));
    let mut context = Context::from_waker(Waker::noop());
    assert!(!start_and_drop(disk.write_at(8192, pattern(1, 8192))));
    let mut read = Box::pin(disk.read_at(16_000, 10));
    let mut write = Box::pin(disk.write_at(4096, pattern(2, 8192)));
    let mut beside = Box::pin(disk.write_at(16_384, pattern(3, 4096)));
    assert!(read.as_mut().poll(&mut context).is_pending());
    assert!(write.as_mut().poll(&mut context).is_pending());
    assert!(beside.as_mut().poll(&mut context).is_pending());
    let parts = [
        disk.write_at(8195, pattern(4, 5)),
        disk.write_at(8200, pattern(5, 5)),
    ];
    let mut parts = Box::pin(futures::future::join_all(parts));
    assert!(parts.as_mut().poll(&mut context).is_pending());
    assert_eq!(delayed.count(), 2, "the dropped one and the one beside it");
    delayed.run();
    beside.await.expect("write");
    assert!(read.as_mut().poll(&mut context).is_pending());
    assert!(write.as_mut().poll(&mut context).is_pending());
    assert_eq!(delayed.count(), 2, "it is their turn");
    delayed.run();
    let old = pattern(1, 8192);
    let found = read.await.expect("read");
    assert_eq!(found, old[16_000 - 8192..][..10]);
    write.await.expect("write");
    for written in parts.await {
        written.expect("write");
    }
    let mut expected = pattern(2, 8192).to_vec();
    expected.extend_from_slice(&old[4096..]);
    expected[4099..4104].copy_from_slice(&pattern(4, 5));
    expected[4104..4109].copy_from_slice(&pattern(5, 5));
    let mut found = vec![0; 12_288];
    file.as_file()
        .read_exact_at(&mut found, 4096)
        .expect("read");
    assert!(found == expected);
}

#[tokio::test]
async fn a_write_that_is_under_way_keeps_no_read_waiting() {
    let delayed: &Delayed = Box::leak(Box::default());
    let file = file(SIZE);
    let disk = opened(&file, Kind::Thick, Engine::Delayed(delayed));
    let mut context = Context::from_waker(Waker::noop());
    let mut write = Box::pin(disk.write_at(0, pattern(1, 8192)));
    let mut read = Box::pin(disk.read_at(0, 10));
    assert!(write.as_mut().poll(&mut context).is_pending());
    assert!(read.as_mut().poll(&mut context).is_pending());
    assert_eq!(delayed.count(), 2);
    delayed.run();
    read.await.expect("read");
    write.await.expect("write");
}

/// Tells when it is dropped.
struct Held(Arc<AtomicBool>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_disk_stays_held_until_its_last_write_is_done() {
    const LENGTH: usize = 8 << 20;
    for engine in engines() {
        let file = file(LENGTH as u64);
        let mut dropped = 0;
        for round in 0..10u8 {
            let released = Arc::new(AtomicBool::new(false));
            let disk = opened(&file, Kind::Thick, engine);
            disk.hold(Held(released.clone()));
            // It may be done already where this thread had to wait for its turn.
            dropped += u8::from(!start_and_drop(disk.write_at(0, pattern(1, LENGTH))));
            drop(disk);
            while !released.load(Ordering::SeqCst) {
                tokio::task::yield_now().await;
            }
            let next = pattern(100 + round, 4096);
            file.as_file().write_all_at(&next, 0).expect("write");
            tokio::time::sleep(Duration::from_millis(2)).await;
            let mut found = vec![0; 4096];
            file.as_file().read_exact_at(&mut found, 0).expect("read");
            assert_eq!(found, next, "{engine:?} {round}");
        }
        assert!(dropped > 0, "so long a write takes a while");
    }
}

#[tokio::test]
async fn who_has_the_answer_holds_the_disk_alone() {
    for engine in engines() {
        let file = file(SIZE);
        for _ in 0..200 {
            let released = Arc::new(AtomicBool::new(false));
            let disk = opened(&file, Kind::Thick, engine);
            disk.hold(Held(released.clone()));
            disk.write_at(0, pattern(1, 4096)).await.expect("write");
            disk.write_at(5, pattern(1, 9)).await.expect("write");
            disk.read_at(3, 5000).await.expect("read");
            disk.flush().await.expect("flush");
            drop(disk);
            assert!(released.load(Ordering::SeqCst), "{engine:?}");
        }
    }
}

#[tokio::test]
async fn what_is_not_mapped_stays_so_at_the_edges_of_a_discard() {
    use std::os::unix::fs::MetadataExt;
    let file = file(SIZE);
    let disk = opened(&file, thin(), Engine::of_process());
    let range = ByteRange::from_to(1000, SIZE - 1000);
    disk.discard(range).await.expect("discard");
    disk.write_zeroes(range, ZeroOptions::default())
        .await
        .expect("zeros");
    disk.write_zeroes(ByteRange::new(7, 9), ZeroOptions::default())
        .await
        .expect("zeros");
    assert_eq!(file.as_file().metadata().expect("metadata").blocks(), 0);
    let whole = pattern(3, SIZE as usize);
    disk.write_at(0, whole.clone()).await.expect("write");
    disk.discard(range).await.expect("discard");
    let blocks = file.as_file().metadata().expect("metadata").blocks();
    assert_eq!(blocks, 2 * CHUNK / 512);
    let found = disk.read_at(0, SIZE as usize).await.expect("read");
    assert_eq!(found[..1000], whole[..1000]);
    assert!(
        found[1000..SIZE as usize - 1000]
            .iter()
            .all(|&byte| byte == 0)
    );
    assert_eq!(found[SIZE as usize - 1000..], whole[SIZE as usize - 1000..]);
}

#[tokio::test]
async fn errors_say_what_is_wrong() {
    let file = file(SIZE);
    let missing = Disk::open(Path::new("/nowhere/at-all"), true, Kind::Thick);
    assert_eq!(missing.expect_err("missing").kind(), ErrorKind::NotFound);
    let reader = Disk::open(file.path(), false, Kind::Thick).expect("open");
    let error = reader
        .write_at(0, pattern(1, 4096))
        .await
        .expect_err("read-only");
    assert_eq!(
        (error.kind(), error.op()),
        (ErrorKind::InvalidInput, "write_at")
    );
    reader.flush().await.expect("nothing to do");
    assert_eq!(reader.device_size().expect("size"), SIZE);
    let past = reader
        .read_at(SIZE - 10, 20)
        .await
        .expect_err("past the end");
    assert_eq!(past.kind(), ErrorKind::Unavailable, "{past:?}");
    let much = reader
        .read_at(0, usize::MAX / 2)
        .await
        .expect_err("too much");
    assert_eq!(much.kind(), ErrorKind::InvalidInput, "{much:?}");
    assert!(
        reader
            .read_at(u64::MAX, 0)
            .await
            .expect("nothing")
            .is_empty()
    );
}

#[tokio::test]
async fn a_full_thin_pool_is_said_to_be_full() {
    let file = file(SIZE);
    let disk = opened(&file, thin(), Engine::Threads);
    let full = io::Error::from_raw_os_error(libc::ENOSPC);
    let error = disk.open.error("write_at", ByteRange::new(0, 1), full);
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(
        error.get("help").expect("help").contains("lvextend"),
        "{error:?}"
    );
    let broken = io::Error::from_raw_os_error(libc::EIO);
    let error = disk.open.error("read_at", ByteRange::new(0, 1), broken);
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn no_flush_is_believed_after_one_that_failed() {
    let file = file(SIZE);
    let disk = opened(&file, thin(), Engine::Threads);
    disk.flush().await.expect("flush");
    let set = disk.open.flush_failed.set(ErrorKind::Corrupt);
    set.expect("the first");
    for _ in 0..2 {
        let error = disk.flush().await.expect_err("lost");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(
            error
                .get("reason")
                .expect("reason")
                .contains("earlier flush"),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn only_a_disk_that_can_zeroes_fast() {
    let file = file(SIZE);
    let fast = ZeroOptions {
        may_discard: true,
        fast_only: true,
    };
    for kind in [thin(), Kind::Thick] {
        let mut disk = opened(&file, kind, Engine::Threads);
        disk.write_zeroes(ByteRange::new(0, SIZE), fast)
            .await
            .expect("fast");
        let open = Arc::get_mut(&mut disk.open).expect("nobody else has it");
        (open.limits.discards, open.limits.zeroes) = (false, false);
        let error = disk.write_zeroes(ByteRange::new(0, SIZE), fast).await;
        assert_eq!(error.expect_err("slow").kind(), ErrorKind::Unsupported);
        disk.write_at(0, pattern(1, 70_000)).await.expect("write");
        disk.discard(ByteRange::new(10, 65_536))
            .await
            .expect("by writing");
        let found = disk.read_at(0, 70_000).await.expect("read");
        assert!(found[10..65_546].iter().all(|&byte| byte == 0));
        assert_eq!(found[65_546..], pattern(1, 70_000)[65_546..]);
    }
}
