//! A process that works on a directory pool is killed hundreds of times. Each time the pool must
//! open, hold exactly what the process was told is done, and be cleared of leftovers by an audit.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use volmux::nfs::{DirConfig, DirPool};
use volmux_conformance::chains::Chains;
use volmux_conformance::crash::Images;
use volmux_conformance::killed::{self, Expected, Worker};
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
        let expected = Expected::new(&images, &log);
        in_flight += u64::from(expected.op.is_some());
        images = runtime.block_on(check(&root, &expected));
    }
    // A kill between operations proves little: most must have hit one.
    assert!(
        in_flight > KILLS / 2,
        "only {in_flight} kills hit an operation"
    );
}

/// Starts a worker, kills it at a moment that nobody can foresee, and returns its log.
fn work_until_killed(root: &Path, seed: u64) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_crash-worker"));
    let root = root.to_str().expect("a path of ASCII");
    let worker = Worker::start(program, root, seed, "v");
    std::thread::sleep(Duration::from_micros(seed * 7919 % 90_000));
    worker.kill()
}

/// Asserts that the pool is in one of the two states and can be cleaned, and returns in which.
async fn check(root: &Path, expected: &Expected) -> Images {
    let pool = DirPool::open(DirConfig::new(root)).await;
    let pool = pool.expect("the pool opens after a kill");
    let tidy = |images: &Images| assert_tidy(root, images);
    let found = killed::check(pool.as_ref(), expected, tidy).await;
    remove_foreign(root);
    if !root.join("data").exists() {
        // Killed while the directory became a pool.
        return found;
    }
    pool.collect_garbage().await.expect("collect");
    assert!(
        Images::of(pool.as_ref()).await == found,
        "a collection changed it"
    );
    assert!(!files(root).contains("merge.json"), "no merge is left");
    let data = Chains::of(root);
    assert_eq!(data.files, data.needed, "what no volume needs is collected");
    data.check();
    found
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
    // A merge that was cut short is ended by the next collection.
    own.retain(|name| !name.starts_with("foreign-") && name != "merge.json");
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
    let data = Chains::of(root);
    assert!(data.needed.is_subset(&data.files), "{data:?}");
    for file in data.files.difference(&data.needed) {
        let metadata = std::fs::metadata(root.join("data").join(file)).expect("a data file");
        // Such is left to a collection.
        assert_eq!(metadata.permissions().mode() & 0o777, 0o400, "{file}");
    }
}
