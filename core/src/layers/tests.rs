use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;

use super::*;
use crate::memory::MemoryPool;
use crate::{
    Access, AttachOptions, BlockDevice, ByteSize, CreateOptions, ErrorKind, ExtentQuery, Holder,
    OpenOptions, PoolExt, ResizeOptions, Sharing, ZeroOptions,
};

/// Every method of a pool that takes time.
const POOL_OPS: [&str; 18] = [
    "usage",
    "create_volume",
    "volume",
    "list_volumes",
    "resize_volume",
    "rename_volume",
    "delete_volume",
    "snapshot_volume",
    "clone_volume",
    "copy_volume",
    "revert_volume",
    "flatten_volume",
    "adopt_volume",
    "open_volume",
    "extents",
    "attach_volume",
    "detach_volume",
    "audit",
];

/// Every method of an open volume that takes time.
const DEVICE_OPS: [&str; 7] = [
    "refresh",
    "read_at",
    "write_at",
    "flush",
    "discard",
    "write_zeroes",
    "extents",
];

/// What shows in the pool afterwards.
const WITH_EFFECT: [&str; 11] = [
    "create_volume",
    "resize_volume",
    "rename_volume",
    "delete_volume",
    "snapshot_volume",
    "clone_volume",
    "copy_volume",
    "revert_volume",
    "write_at",
    "discard",
    "write_zeroes",
];

fn name(name: &str) -> VolumeName {
    VolumeName::new(name).expect("the name is right")
}

fn every_op() -> impl Iterator<Item = (bool, &'static str)> {
    let pool = POOL_OPS.into_iter().map(|op| (false, op));
    pool.chain(DEVICE_OPS.into_iter().map(|op| (true, op)))
}

/// A pool with a volume that has a snapshot and has changed since, and a counter around it.
async fn counted() -> (Arc<MemoryPool>, Arc<Faulty>) {
    let memory = MemoryPool::unlimited();
    let size = CreateOptions::thin(ByteSize::kib(64));
    memory
        .create_volume(&name("v"), size)
        .await
        .expect("create");
    let device = memory
        .open_volume(&name("v"), OpenOptions::read_write())
        .await
        .expect("open");
    device
        .write_at(0, vec![1; 8192].into())
        .await
        .expect("write");
    memory
        .snapshot_volume(&name("v"), &name("s"), Default::default())
        .await
        .expect("snapshot");
    device
        .write_at(0, vec![2; 4096].into())
        .await
        .expect("write");
    (memory.clone(), Faulty::new(memory, FaultPlan::none()))
}

/// Everything that can be seen of the pool.
async fn state(pool: &MemoryPool) -> String {
    let mut seen = format!("{:?}", pool.usage().await.expect("usage"));
    for volume in pool.volumes().await.expect("volumes") {
        let device = pool
            .open_volume(&volume.name, OpenOptions::read_only())
            .await;
        let device = device.expect("open");
        let data = device.read_at(0, device.size() as usize).await;
        seen += &format!("{volume:?} {:?}", data.expect("read"));
    }
    seen
}

async fn open(pool: &dyn Pool) -> Arc<dyn BlockDevice> {
    pool.open_volume(&name("v"), OpenOptions::read_write())
        .await
        .expect("open")
}

async fn perform(pool: &dyn Pool, data: bool, op: &str) -> Result<()> {
    if data {
        return perform_data(open(pool).await.as_ref(), op).await;
    }
    let (v, s, new) = (name("v"), name("s"), name("new"));
    let size = ByteSize::kib(128);
    let holder = Holder::new("host").expect("the holder is right");
    match op {
        "usage" => pool.usage().await.map(drop),
        "create_volume" => {
            let made = pool.create_volume(&new, CreateOptions::thin(size)).await;
            made.map(drop)
        }
        "volume" => pool.volume(&v).await.map(drop),
        "list_volumes" => pool.list_volumes().try_collect::<Vec<_>>().await.map(drop),
        "resize_volume" => {
            let resized = pool.resize_volume(&v, ResizeOptions::grow(size)).await;
            resized.map(drop)
        }
        "rename_volume" => pool.rename_volume(&v, &new).await.map(drop),
        "delete_volume" => pool.delete_volume(&v).await,
        "snapshot_volume" => {
            let made = pool.snapshot_volume(&v, &new, Default::default()).await;
            made.map(drop)
        }
        "clone_volume" => {
            let made = pool.clone_volume(&v, &new, Default::default()).await;
            made.map(drop)
        }
        "copy_volume" => {
            let made = pool.copy_volume(&v, &new, Default::default()).await;
            made.map(drop)
        }
        "revert_volume" => {
            let reverted = pool.revert_volume(&v, &s, Default::default()).await;
            reverted.map(drop)
        }
        "flatten_volume" => {
            let flattened = pool.flatten_volume(&v, Default::default()).await;
            flattened.map(drop)
        }
        "adopt_volume" => pool.adopt_volume("something", &v).await.map(drop),
        "open_volume" => {
            let opened = pool.open_volume(&v, OpenOptions::read_only()).await;
            opened.map(drop)
        }
        "extents" => pool.extents(&v, ExtentQuery::allocated()).await.map(drop),
        "attach_volume" => {
            let options = AttachOptions {
                holder,
                access: Access::ReadOnly,
                sharing: Sharing::Exclusive,
            };
            pool.attach_volume(&v, options).await.map(drop)
        }
        "detach_volume" => pool.detach_volume(&v, &holder).await,
        "audit" => pool.audit(Default::default()).await.map(drop),
        _ => panic!("{op} is missing here"),
    }
}

async fn perform_data(device: &dyn BlockDevice, op: &str) -> Result<()> {
    let range = ByteRange::new(0, 4096);
    match op {
        "refresh" => device.refresh().await.map(drop),
        "read_at" => device.read_at(0, 4096).await.map(drop),
        "write_at" => device.write_at(0, vec![9; 4096].into()).await,
        "flush" => device.flush().await,
        "discard" => device.discard(range).await,
        "write_zeroes" => device.write_zeroes(range, ZeroOptions::default()).await,
        "extents" => device.extents(range).await.map(drop),
        _ => panic!("{op} is missing here"),
    }
}

#[tokio::test]
async fn without_a_fault_every_call_passes_through_once() {
    for (data, op) in every_op() {
        let (memory, counter) = counted().await;
        let limits = Deadline::new(counter.clone(), Limits::default());
        let pool = Traced::new(Faulty::new(limits, FaultPlan::none()));
        let before = state(&memory).await;
        let result = perform(pool.as_ref(), data, op).await;
        let unsupported = ["adopt_volume", "attach_volume", "detach_volume"].contains(&op);
        match result {
            Ok(()) => assert!(!unsupported, "{op}"),
            Err(error) => assert!(
                unsupported && error.kind() == ErrorKind::Unsupported,
                "{op}"
            ),
        }
        assert_eq!(counter.calls_of(op), 1, "{op}");
        assert_eq!(counter.calls(), 1 + u64::from(data), "{op}");
        let changed = state(&memory).await != before;
        assert_eq!(changed, WITH_EFFECT.contains(&op), "{op}");
        assert_eq!(pool.capabilities(), memory.capabilities());
        assert_eq!(pool.policy(), memory.policy());
        assert_eq!(pool.to_string(), memory.to_string());
    }
}

/// How often a counter within counts a call that goes wrong.
fn reached(op: &str, when: When) -> u64 {
    // A listing begins when it is first asked for an item, and its start is lost before that.
    u64::from(when == When::After && op != "list_volumes")
}

#[tokio::test]
async fn a_fault_before_the_effect_prevents_it_and_one_after_does_not() {
    for (data, op) in every_op() {
        for when in [When::Before, When::After] {
            let (memory, counter) = counted().await;
            let fault = Fault::fail(1, when).of(op).with_kind(ErrorKind::Corrupt);
            let pool = Faulty::new(counter.clone(), FaultPlan::explicit([fault]));
            let before = state(&memory).await;
            let error = perform(pool.as_ref(), data, op).await.expect_err(op);
            assert_eq!((error.kind(), error.op()), (ErrorKind::Corrupt, op));
            let number = (1 + u64::from(data)).to_string();
            assert_eq!(error.get("injected_call"), Some(number.as_str()));
            assert_eq!(counter.calls_of(op), reached(op, when), "{op} {when:?}");
            let changed = state(&memory).await != before;
            let expected = when == When::After && WITH_EFFECT.contains(&op);
            assert_eq!(changed, expected, "{op} {when:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_call_never_answers_and_a_deadline_ends_it() {
    for (data, op) in every_op() {
        for when in [When::Before, When::After] {
            let (memory, counter) = counted().await;
            let plan = FaultPlan::explicit([Fault::cut(1, when).of(op)]);
            let cut = Faulty::new(counter.clone(), plan.clone());
            let before = state(&memory).await;
            let year = Duration::from_secs(365 * 86400);
            let call = perform(cut.as_ref(), data, op);
            tokio::time::timeout(year, call).await.expect_err(op);
            assert_eq!(counter.calls_of(op), reached(op, when), "{op} {when:?}");
            let changed = state(&memory).await != before;
            let expected = when == When::After && WITH_EFFECT.contains(&op);
            assert_eq!(changed, expected, "{op} {when:?}");

            let cut = Faulty::new(counted().await.1, plan);
            let second = Duration::from_secs(1);
            let limits = Limits {
                control: second,
                data: 2 * second,
                stall: 3 * second,
            };
            let pool = Deadline::new(cut, limits);
            let start = Instant::now();
            let error = perform(pool.as_ref(), data, op).await.expect_err(op);
            assert_eq!((error.kind(), error.op()), (ErrorKind::TimedOut, op));
            let long = [
                "snapshot_volume",
                "clone_volume",
                "copy_volume",
                "revert_volume",
                "flatten_volume",
            ];
            let limit = match (data, long.contains(&op)) {
                (true, _) => 2,
                (_, true) => 3,
                _ => 1,
            };
            assert_eq!(
                error.get("limit"),
                Some(format!("{limit}s").as_str()),
                "{op}"
            );
            assert_eq!(start.elapsed().as_secs(), limit, "{op}");
            let volume = !["usage", "list_volumes", "audit"].contains(&op);
            assert_eq!(error.get("volume").is_some(), volume, "{op}");
        }
    }
}

#[tokio::test]
async fn faults_are_counted_over_all_calls_or_one_method() {
    let (_, counter) = counted().await;
    let plan = FaultPlan::explicit([
        Fault::fail(2, When::Before),
        Fault::fail(2, When::Before)
            .of("audit")
            .with_kind(ErrorKind::Busy),
    ]);
    let pool = Faulty::new(counter, plan);
    let mut kinds = Vec::new();
    for op in ["usage", "audit", "volume", "audit", "audit"] {
        let result = perform(pool.as_ref(), false, op).await;
        kinds.push(result.err().map(|error| error.kind()));
    }
    let expected = [
        None,
        Some(ErrorKind::Unavailable),
        None,
        Some(ErrorKind::Busy),
        None,
    ];
    assert_eq!(kinds, expected);
    assert_eq!(
        (pool.calls(), pool.calls_of("audit"), pool.calls_of("none")),
        (5, 3, 0)
    );
}

async fn faults_of(random: RandomFaults, calls: u64) -> Vec<String> {
    let pool = Faulty::new(counted().await.1, FaultPlan::random(random));
    let mut seen = Vec::new();
    for _ in 0..calls {
        let call = perform(pool.as_ref(), false, "usage");
        let outcome = tokio::time::timeout(Duration::from_secs(1), call).await;
        seen.push(match outcome {
            Err(_) => "cut".to_owned(),
            Ok(result) => format!("{result:?}"),
        });
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_faults() {
    let random = |seed| RandomFaults {
        seed,
        fail: 0.2,
        cut: 0.1,
    };
    let first = faults_of(random(7), 400).await;
    assert_eq!(first, faults_of(random(7), 400).await);
    assert_ne!(first, faults_of(random(8), 400).await);
    let cut = first.iter().filter(|s| *s == "cut").count();
    let failed = first.iter().filter(|s| s.starts_with("Err")).count();
    assert!((20..=60).contains(&cut), "{cut} of 400 were cut");
    assert!((50..=110).contains(&failed), "{failed} of 400 failed");
    let plan = FaultPlan::random(random(7));
    let after = (1..=400).filter_map(|n| plan.fault("usage", n, n));
    let after = after.filter(|(when, _)| *when == When::After).count();
    assert!(
        (40..=80).contains(&after),
        "{after} of {} after",
        cut + failed
    );
}

#[test]
fn split_mix_gives_the_published_numbers() {
    // The first three for seed 1234567, as they are widely published.
    let numbers = [1, 2, 3].map(|n| faulty::split_mix(1_234_567, n));
    assert_eq!(
        numbers,
        [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn long_work_may_take_its_time_while_it_makes_progress() {
    let limits = Limits::default();
    let outer = Control::new();
    let mut control = outer.clone();
    let call = Call::new("copy_volume", &"pool".into()).watching(&mut control);
    let steady = async {
        for step in 0..5 {
            tokio::time::sleep(Duration::from_secs(40)).await;
            control.report(step, 5);
        }
        Ok(())
    };
    limits.around(&call, steady).await.expect("it goes on");

    let mut control = outer.clone();
    let call = Call::new("copy_volume", &"pool".into()).watching(&mut control);
    let start = Instant::now();
    let stalls = async {
        tokio::time::sleep(Duration::from_secs(40)).await;
        control.report(1, 5);
        std::future::pending::<Result<()>>().await
    };
    let error = limits.around(&call, stalls).await.expect_err("it stalls");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(start.elapsed(), Duration::from_secs(100));
    assert!(control.is_cancelled(), "the work is told");
    assert!(!outer.is_cancelled(), "the caller's control is left alone");
}

#[tokio::test(start_paused = true)]
async fn each_item_of_a_stream_has_its_limit() {
    let items = stream::iter([1, 2])
        .then(|item| async move {
            tokio::time::sleep(Duration::from_secs(40)).await;
            Ok(item)
        })
        .chain(stream::pending());
    let call = Call::new("list_volumes", &"pool".into());
    let seen: Vec<_> = each_item(Arc::new(Limits::default()), call, items.boxed())
        .map(|item| item.map_err(|error| error.kind()))
        .collect()
        .await;
    assert_eq!(seen, [Ok(1), Ok(2), Err(ErrorKind::TimedOut)]);
}

#[tokio::test]
async fn a_limit_without_end_is_none() {
    let limits = Limits {
        control: Duration::MAX,
        data: Duration::MAX,
        stall: Duration::MAX,
    };
    let pool = Deadline::new(counted().await.1, limits);
    perform(pool.as_ref(), false, "usage").await.expect("usage");
}

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        lock(&self.0).extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn tracing_tells_operation_volume_and_error_and_never_data() {
    let output = Output::default();
    let writer = output.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let plan = FaultPlan::explicit([
        Fault::fail(1, When::Before).of("flush"),
        Fault::cut(1, When::Before).of("audit"),
    ]);
    let pool = Traced::new(Faulty::new(counted().await.1, plan));
    let device = open(pool.as_ref()).await;
    let canary = Bytes::from_static(b"canary-canary");
    device.write_at(4096, canary).await.expect("write");
    device.read_at(4096, 13).await.expect("read");
    device.flush().await.expect_err("injected");
    let audit = pool.audit(Default::default());
    assert!(futures::poll!(audit).is_pending());
    drop(guard);

    let output = String::from_utf8(lock(&output.0).clone()).expect("text");
    for expected in [
        r#"op="open_volume""#,
        r#"op="write_at" pool=memory: volume=v offset=4096 length=13"#,
        "duration=",
        r#"kind="Unavailable""#,
        "dropped before it was done",
    ] {
        assert!(output.contains(expected), "{expected} is not in {output}");
    }
    assert!(!output.contains("canary"), "{output}");
    assert!(
        !output.contains(&format!("{:?}", b"canary")[1..20]),
        "{output}"
    );
}
