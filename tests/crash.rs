//! A process that works on a directory pool is killed hundreds of times. Each time the pool must
//! open, hold exactly what the process was told is done, and be cleared of leftovers by an audit.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::NamedTempFile;
use volmux::nfs::{DirConfig, DirPool};
use volmux::{AuditOptions, FindingKind, Pool};
use volmux_conformance::crash::{Images, Op};
use volmux_conformance::scratch::LoopFs;

/// How often each file system's pool is killed.
const KILLS: u64 = 160;

#[test]
fn a_pool_on_ext4_survives_every_kill() {
    kill_again_and_again(&LoopFs::ext4(256 << 20));
}

#[test]
fn a_pool_on_xfs_survives_every_kill() {
    kill_again_and_again(&LoopFs::xfs(320 << 20));
}

fn kill_again_and_again(fs: &LoopFs) {
    let root = fs.path().join("pool");
    std::fs::create_dir(&root).expect("the pool's directory");
    // Several threads, so that what blocks does not hold up the rest.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut images = Images::default();
    let mut in_flight = 0;
    for seed in 0..KILLS {
        let log = work_until_killed(&root, seed);
        let (before, after, op) = replay(&images, &log);
        let check = check(&root, &before, &after, op.as_ref());
        in_flight += u64::from(op.is_some());
        images = runtime.block_on(check);
    }
    // A kill between operations proves little: most must have hit one.
    assert!(
        in_flight > KILLS / 2,
        "only {in_flight} kills hit an operation"
    );
}

/// Starts a worker, kills it at a moment that nobody can foresee, and returns its log.
fn work_until_killed(root: &Path, seed: u64) -> String {
    let log = NamedTempFile::new().expect("a log");
    let mut worker = Command::new(env!("CARGO_BIN_EXE_crash-worker"))
        .arg(root)
        .arg(log.path())
        .arg(seed.to_string())
        .stdin(Stdio::null())
        .spawn()
        .expect("the worker starts");
    // From the first operation on, else a slow start would be all that is ever hit.
    while std::fs::metadata(log.path()).expect("the log").len() == 0 {
        assert!(
            worker.try_wait().expect("wait").is_none(),
            "the worker died"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_micros(seed * 7919 % 90_000));
    worker.kill().expect("kill");
    let status = worker.wait().expect("wait");
    let log = std::fs::read_to_string(log.path()).expect("the log");
    assert!(status.code().is_none(), "seed {seed}: {status}\n{log}");
    log
}

/// What the log says the pool held before and would hold after the operation in flight.
fn replay(start: &Images, log: &str) -> (Images, Images, Option<Op>) {
    let mut images = start.clone();
    let mut in_flight = None;
    for line in log.lines() {
        if let Some(op) = line.strip_prefix("begin ") {
            in_flight = Some(op.parse::<Op>().expect("an operation"));
        } else {
            assert_eq!(
                line, "done",
                "an operation that must succeed failed:\n{log}"
            );
            images.apply(&in_flight.take().expect("done with what was begun"));
        }
    }
    let mut after = images.clone();
    if let Some(op) = &in_flight {
        after.apply(op);
    }
    (images, after, in_flight)
}

/// Asserts that the pool is in one of the two states and can be cleaned, and returns in which.
async fn check(root: &Path, before: &Images, after: &Images, op: Option<&Op>) -> Images {
    let pool = DirPool::open(DirConfig::new(root)).await;
    let pool = pool.expect("the pool opens after a kill");
    let found = Images::of(pool.as_ref()).await;
    assert_one_of(&found, before, after, op);
    let first = audit(pool.as_ref(), false).await;
    assert_eq!(Images::of(pool.as_ref()).await, found, "looking changed it");
    if first.is_empty() {
        assert_tidy(root, &found);
    }
    let repaired = audit(pool.as_ref(), true).await;
    assert_eq!(first.len(), repaired.len(), "{first:?} {repaired:?}");
    assert_eq!(audit(pool.as_ref(), false).await, Vec::<String>::new());
    remove_foreign(root);
    assert_eq!(Images::of(pool.as_ref()).await, found, "repair changed it");
    assert_tidy(root, &found);
    found
}

fn assert_one_of(found: &Images, before: &Images, after: &Images, op: Option<&Op>) {
    if found == before || found == after {
        return;
    }
    // Of a write or discard that was not acknowledged, any part may have happened.
    if let Some(Op::Write { name, .. } | Op::Discard { name, .. }) = op {
        let mut rest = found.clone();
        let torn = rest.0.remove(name).expect("the volume is there");
        let old = &before.0[name].data;
        let new = &after.0[name].data;
        let old_or_new = torn.data.len() == old.len()
            && (0..old.len()).all(|i| torn.data[i] == old[i] || torn.data[i] == new[i]);
        assert!(old_or_new, "{op:?} left {name} neither old nor new");
        let mut expected = before.clone();
        expected.0.remove(name);
        assert_eq!(names(&rest), names(&expected), "{op:?}");
        assert!(rest == expected, "{op:?} changed another volume");
        return;
    }
    assert_eq!(names(found), names(before), "{op:?}: volumes");
    for (name, image) in &found.0 {
        assert!(*image == before.0[name], "{op:?}: content of {name}");
    }
}

fn names(images: &Images) -> Vec<&str> {
    images.0.keys().map(String::as_str).collect()
}

/// What an audit finds, apart from what volmux did not make.
async fn audit(pool: &dyn Pool, repair: bool) -> Vec<String> {
    let report = pool.audit(AuditOptions { repair }).await.expect("audit");
    let findings = report.findings.into_iter();
    let own = findings.filter(|f| f.kind != FindingKind::Foreign);
    own.map(|finding| {
        assert_eq!(finding.repaired, repair, "{finding:?}");
        format!("{:?} {}", finding.kind, finding.object)
    })
    .collect()
}

/// Removes what was placed for an adoption that did not happen.
fn remove_foreign(root: &Path) {
    for entry in files(root) {
        if entry.starts_with("foreign-") {
            std::fs::remove_file(root.join(entry)).expect("remove");
        }
    }
}

fn files(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).expect("a directory of the pool");
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.expect("an entry").file_name();
        name.into_string().expect("a name that volmux made")
    };
    entries.map(name).collect()
}

/// Asserts that the pool's directory holds its volumes and not a byte more.
fn assert_tidy(root: &Path, images: &Images) {
    let mut own = files(root);
    own.retain(|name| !name.starts_with("foreign-"));
    let expected = ["data", "lock", "pool.json", "tmp", "volumes"];
    let expected = BTreeSet::from(expected.map(String::from));
    if images.0.is_empty() && own != expected {
        // Killed while the directory became a pool.
        assert!(own.is_subset(&expected), "{own:?}");
        return;
    }
    assert_eq!(own, expected);
    assert!(files(&root.join("tmp")).is_empty(), "tmp is empty");
    let records = files(&root.join("volumes"));
    let expected = images.0.keys().map(|name| format!("{name}.json"));
    assert_eq!(records, expected.collect());
    let data = records.iter().map(|record| {
        let text = std::fs::read_to_string(root.join("volumes").join(record));
        let text = text.expect("a record");
        let id = text.split("\"data\":").nth(1).expect("a data id");
        let id = id.split('"').nth(1).expect("a quoted data id");
        format!("{id}.raw")
    });
    assert_eq!(files(&root.join("data")), data.collect());
}
