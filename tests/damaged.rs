//! Directory pools whose files were damaged or replaced: one clear error that names the file, the
//! other volumes go on, and nothing outside the pool is read or changed.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tempfile::TempDir;
use volmux::nfs::{DirConfig, DirPool};
use volmux::{
    AuditOptions, ByteSize, CreateOptions, ErrorKind, FindingKind, OpenOptions, Pool, Result,
    Volume,
};
use volmux_conformance::{checked_name as n, pattern, read_all};

mod tree;
use tree::Tree;

const MIB: u64 = 1 << 20;

fn on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let limited = async { tokio::time::timeout(Duration::from_secs(60), future).await };
    let done = runtime.block_on(limited);
    // A call that waits for ever must not hold up the test as well.
    runtime.shutdown_background();
    done.expect("it does not wait for ever")
}

/// A pool with two volumes beside a directory that must never change.
struct Scene {
    dir: TempDir,
    pool: Arc<dyn Pool>,
    outside: Tree,
}

impl Scene {
    async fn new() -> Scene {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["pool", "outside"] {
            std::fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        let victim = dir.path().join("outside/victim.raw");
        std::fs::write(victim, pattern(99, MIB as usize)).expect("a victim");
        let pool = DirPool::open(DirConfig::new(dir.path().join("pool"))).await;
        let pool = pool.expect("open");
        for (name, seed) in [("a", 1), ("b", 2)] {
            let options = CreateOptions::thin(ByteSize::new(MIB));
            let made = pool.create_volume(&n(name), options).await;
            made.expect("create");
            let device = pool.open_volume(&n(name), OpenOptions::read_write()).await;
            let device = device.expect("open");
            let written = device.write_at(0, pattern(seed, MIB as usize)).await;
            written.expect("write");
            device.flush().await.expect("flush");
        }
        let outside = Tree::of(&dir.path().join("outside"));
        Scene { dir, pool, outside }
    }

    fn path(&self, below_root: &str) -> PathBuf {
        self.dir.path().join("pool").join(below_root)
    }

    fn victim(&self) -> PathBuf {
        self.dir.path().join("outside/victim.raw")
    }

    fn record(&self) -> PathBuf {
        self.path("volumes/a.json")
    }

    /// The data file of volume a.
    fn data(&self) -> PathBuf {
        let json = json_of(&std::fs::read(self.record()).expect("a record"));
        let id = json.split("\"data\":\"").nth(1).expect("a data id");
        let id = id.split('"').next().expect("split yields one");
        self.path(&format!("data/{id}.raw"))
    }

    fn tree(&self) -> Tree {
        Tree::of(&self.path(""))
    }

    /// Asserts that volume a fails with `kind` and names `file`, that b works, that looking at
    /// them changes nothing, and that an audit tells and leaves everything as it is.
    async fn assert_damaged(&self, kind: ErrorKind, file: &Path, what: &str) {
        let before = self.tree();
        let (a, s) = (n("a"), n("s"));
        for options in [OpenOptions::read_only(), OpenOptions::read_write()] {
            let opened = self.pool.open_volume(&a, options).await;
            assert_error(opened, kind, file, what);
        }
        let made = self.pool.snapshot_volume(&a, &s, Default::default()).await;
        assert_error(made, kind, file, what);
        self.assert_b_works(what).await;
        let audit = self.pool.audit(AuditOptions { repair: true }).await;
        let audit = audit.expect("audit");
        let damaged = |f: &&volmux::Finding| f.kind == FindingKind::Damaged;
        assert_eq!(
            audit.findings.iter().filter(damaged).count(),
            1,
            "{what}: {audit:?}"
        );
        assert!(!audit.is_clean(), "{what}");
        assert_eq!(self.tree(), before, "{what}");
        self.assert_outside_is_untouched(what);
    }

    async fn assert_b_works(&self, what: &str) {
        let listed: Vec<Result<Volume>> = self.pool.list_volumes().collect().await;
        let good: Vec<&str> = listed
            .iter()
            .filter_map(|v| v.as_ref().ok())
            .map(|v| v.name.as_str())
            .collect();
        assert!(good.contains(&"b"), "{what}: the list goes on: {listed:?}");
        let found = read_all(self.pool.as_ref(), &n("b")).await;
        assert!(found == pattern(2, MIB as usize), "{what}: b");
    }

    fn assert_outside_is_untouched(&self, what: &str) {
        let now = Tree::of(&self.dir.path().join("outside"));
        assert_eq!(now, self.outside, "{what}: outside");
    }
}

#[track_caller]
fn assert_error<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, file: &Path, what: &str) {
    let error = result.expect_err(what);
    assert_eq!(error.kind(), kind, "{what}: {error:?}");
    let file = file.file_name().expect("a file").to_str().expect("UTF-8");
    assert!(
        error.to_string().contains(file),
        "{what}: {file} is not in {error}"
    );
    assert!(
        error.get("reason").is_some(),
        "{what}: it says why: {error}"
    );
}

/// The JSON of a record, without its checksum.
fn json_of(record: &[u8]) -> String {
    let text = String::from_utf8(record.to_vec()).expect("UTF-8");
    text.lines().next().expect("a line").to_owned()
}

/// A record whose checksum fits.
fn record_of(json: &str) -> Vec<u8> {
    let crc = crc32fast::hash(json.as_bytes());
    format!("{json}\ncrc32 {crc:08x}\n").into_bytes()
}

/// Ways to damage a record, each with what it is.
fn damages(good: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let json = json_of(good);
    let mut flipped = good.to_vec();
    flipped[good.len() / 2] ^= 1;
    let unknown = json.replacen('{', "{\"unknown\":1,", 1);
    vec![
        ("empty", Vec::new()),
        ("cut", good[..good.len() / 2].to_vec()),
        ("without its last byte", good[..good.len() - 1].to_vec()),
        ("without its checksum", json.clone().into_bytes()),
        ("with a flipped bit", flipped),
        ("garbage", pattern(3, 5000).to_vec()),
        ("zeros", vec![0; 4096]),
        ("huge", vec![b' '; 8 << 20]),
        ("with an unknown field", record_of(&unknown)),
        ("another thing", record_of("[1,2,3]")),
        ("no thing", record_of("null")),
        ("nested deeply", record_of(&"[".repeat(30_000))),
    ]
}

#[test]
fn a_damaged_volume_record_harms_only_its_volume() {
    on(async {
        let scene = Scene::new().await;
        let good = std::fs::read(scene.record()).expect("a record");
        for (what, bytes) in damages(&good) {
            std::fs::write(scene.record(), &bytes).expect("damage");
            let looked = scene.pool.volume(&n("a")).await;
            assert_error(looked, ErrorKind::Corrupt, &scene.record(), what);
            let listed: Vec<Result<Volume>> = scene.pool.list_volumes().collect().await;
            let failed: Vec<_> = listed.into_iter().filter_map(Result::err).collect();
            assert_eq!(failed.len(), 1, "{what}");
            assert_eq!(failed[0].kind(), ErrorKind::Corrupt, "{what}");
            let options = CreateOptions::thin(ByteSize::new(MIB));
            let created = scene.pool.create_volume(&n("a"), options).await;
            assert_error(created, ErrorKind::Corrupt, &scene.record(), what);
            scene
                .assert_damaged(ErrorKind::Corrupt, &scene.record(), what)
                .await;
            assert!(std::fs::read(scene.record()).expect("still there") == bytes);
        }
        std::fs::write(scene.record(), good).expect("put back");
        let found = read_all(scene.pool.as_ref(), &n("a")).await;
        assert!(found == pattern(1, MIB as usize), "nothing was lost");
    });
}

#[test]
fn a_volume_record_with_impossible_content_is_refused() {
    on(async {
        let scene = Scene::new().await;
        let good = json_of(&std::fs::read(scene.record()).expect("a record"));
        let size = format!("\"virtual_size\":{MIB}");
        assert!(good.contains(&size), "{good}");
        for size_instead in ["0", "511", "18446744073709551615", "-1", "1e30", "\"1\""] {
            let json = good.replace(&size, &format!("\"virtual_size\":{size_instead}"));
            std::fs::write(scene.record(), record_of(&json)).expect("damage");
            let what = format!("size {size_instead}");
            let looked = scene.pool.volume(&n("a")).await;
            let error = looked.expect_err(&what);
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error:?}");
            scene.assert_b_works(&what).await;
        }
        let id = scene_data_id(&good);
        for data_instead in ["../../outside/victim", "/etc/passwd", "", "x"] {
            let json = good.replace(&id, data_instead);
            std::fs::write(scene.record(), record_of(&json)).expect("damage");
            let what = format!("data {data_instead:?}");
            scene
                .assert_damaged(ErrorKind::Corrupt, &scene.record(), &what)
                .await;
        }
    });
}

fn scene_data_id(json: &str) -> String {
    let id = json.split("\"data\":\"").nth(1).expect("a data id");
    id.split('"').next().expect("split yields one").to_owned()
}

#[test]
fn a_volume_record_of_a_newer_version_is_left_alone() {
    on(async {
        let scene = Scene::new().await;
        let good = json_of(&std::fs::read(scene.record()).expect("a record"));
        assert!(good.contains("\"version\":1"), "{good}");
        for more in ["", "\"of_the_future\":true,"] {
            let newer = good.replace("\"version\":1,", &format!("\"version\":3,{more}"));
            std::fs::write(scene.record(), record_of(&newer)).expect("write");
            let before = scene.tree();
            let looked = scene.pool.volume(&n("a")).await;
            assert_error(looked, ErrorKind::InvalidConfig, &scene.record(), "newer");
            let deleted = scene.pool.delete_volume(&n("a")).await;
            deleted.expect_err("it is not known what to delete");
            scene.assert_b_works("newer").await;
            let audit = scene.pool.audit(AuditOptions { repair: true }).await;
            audit.expect("audit");
            assert_eq!(scene.tree(), before, "its data is kept");
        }
    });
}

#[test]
fn a_damaged_pool_record_is_told_and_not_replaced() {
    on(async {
        let scene = Scene::new().await;
        let record = scene.path("pool.json");
        let good = std::fs::read(&record).expect("a record");
        for (what, bytes) in damages(&good) {
            std::fs::write(&record, &bytes).expect("damage");
            let before = scene.tree();
            let opened = DirPool::open(DirConfig::new(scene.path(""))).await;
            assert_error(opened, ErrorKind::Corrupt, &record, what);
            assert_eq!(scene.tree(), before, "{what}");
        }
        let newer = json_of(&good).replace("\"version\":1", "\"version\":3");
        std::fs::write(&record, record_of(&newer)).expect("write");
        let opened = DirPool::open(DirConfig::new(scene.path(""))).await;
        assert_error(opened, ErrorKind::InvalidConfig, &record, "newer");
        std::fs::write(&record, good).expect("put back");
        let opened = DirPool::open(DirConfig::new(scene.path(""))).await;
        let found = read_all(opened.expect("open").as_ref(), &n("a")).await;
        assert!(found == pattern(1, MIB as usize), "nothing was lost");
    });
}

#[test]
fn a_pool_that_lacks_a_directory_is_told() {
    on(async {
        let scene = Scene::new().await;
        for name in ["volumes", "data", "tmp"] {
            let (path, aside) = (scene.path(name), scene.path("aside"));
            std::fs::rename(&path, &aside).expect("move");
            let opened = DirPool::open(DirConfig::new(scene.path(""))).await;
            assert_error(opened, ErrorKind::Corrupt, &path, name);
            std::fs::rename(&aside, &path).expect("move back");
        }
        let opened = DirPool::open(DirConfig::new(scene.path(""))).await;
        opened.expect("open");
    });
}

#[test]
fn missing_and_short_data_is_told() {
    on(async {
        let scene = Scene::new().await;
        let (data, aside) = (scene.data(), scene.dir.path().join("aside"));
        std::fs::rename(&data, &aside).expect("move");
        scene
            .assert_damaged(ErrorKind::Corrupt, &data, "missing")
            .await;
        std::fs::rename(&aside, &data).expect("move back");
        let file = std::fs::File::options().write(true).open(&data);
        let file = file.expect("the data");
        for length in [0, 512, MIB - 1] {
            file.set_len(length).expect("cut");
            let what = format!("cut to {length}");
            scene.assert_damaged(ErrorKind::Corrupt, &data, &what).await;
        }
        file.set_len(MIB).expect("put back");
        read_all(scene.pool.as_ref(), &n("a")).await;
    });
}

/// Replaces `path` by `put` for the time of `check`.
async fn replaced(path: &Path, put: impl FnOnce(&Path), check: impl Future) {
    let aside = path.with_extension("aside");
    std::fs::rename(path, &aside).expect("move");
    put(path);
    check.await;
    if path.is_dir() && !path.is_symlink() {
        std::fs::remove_dir(path).expect("remove");
    } else {
        std::fs::remove_file(path).expect("remove");
    }
    std::fs::rename(&aside, path).expect("move back");
}

#[test]
fn what_is_no_regular_file_is_never_taken_for_one() {
    on(async {
        let scene = Scene::new().await;
        let kind = ErrorKind::Corrupt;
        for path in [scene.data(), scene.record()] {
            let aside_is_foreign = |what: &'static str| {
                let (pool, path) = (&scene.pool, &path);
                async move {
                    let opened = pool.open_volume(&n("a"), OpenOptions::read_only()).await;
                    assert_error(opened, kind, path, what);
                    let opened = pool.open_volume(&n("a"), OpenOptions::read_write()).await;
                    assert_error(opened, kind, path, what);
                }
            };
            let victim = scene.victim();
            let link = |path: &Path| symlink(&victim, path).expect("a link");
            replaced(&path, link, aside_is_foreign("link")).await;
            let relative = |path: &Path| {
                symlink("../../outside/victim.raw", path).expect("a link");
            };
            replaced(&path, relative, aside_is_foreign("relative link")).await;
            let dir = |path: &Path| std::fs::create_dir(path).expect("a directory");
            replaced(&path, dir, aside_is_foreign("directory")).await;
            replaced(&path, make_fifo, aside_is_foreign("fifo")).await;
            scene.assert_b_works("replaced").await;
            scene.assert_outside_is_untouched("replaced");
        }
        let found = read_all(scene.pool.as_ref(), &n("a")).await;
        assert!(found == pattern(1, MIB as usize), "nothing was lost");
    });
}

fn make_fifo(path: &Path) {
    let status = std::process::Command::new("/usr/bin/mkfifo")
        .arg("--")
        .arg(path)
        .status();
    assert!(status.expect("mkfifo").success());
}

#[test]
fn deleting_a_volume_with_a_planted_link_deletes_nothing_outside() {
    on(async {
        let scene = Scene::new().await;
        let data = scene.data();
        std::fs::remove_file(&data).expect("remove");
        symlink(scene.victim(), &data).expect("a link");
        // Whether this is refused or removes the link is left open.
        let _ = scene.pool.delete_volume(&n("a")).await;
        scene.assert_outside_is_untouched("delete");
        let audit = scene.pool.audit(AuditOptions { repair: true }).await;
        audit.expect("audit");
        scene.assert_outside_is_untouched("audit");
        scene.assert_b_works("delete").await;
    });
}

#[test]
fn planted_links_in_place_of_directories_are_not_followed() {
    on(async {
        let scene = Scene::new().await;
        let outside = scene.dir.path().join("outside");
        for name in ["volumes", "data", "tmp"] {
            let put = |path: &Path| symlink(&outside, path).expect("a link");
            let path = scene.path(name);
            replaced(&path, put, async {
                let opened = DirPool::open(DirConfig::new(scene.path(""))).await;
                assert_error(opened, ErrorKind::Corrupt, &path, name);
                scene.assert_outside_is_untouched(name);
            })
            .await;
        }
        // The same before there is a pool.
        for name in ["volumes", "data", "tmp", "lock", "pool.json"] {
            let root = scene.dir.path().join(format!("new-{name}"));
            std::fs::create_dir(&root).expect("a directory");
            symlink(&outside, root.join(name)).expect("a link");
            let made = match DirPool::open(DirConfig::new(&root)).await {
                Ok(pool) => {
                    let options = CreateOptions::thin(ByteSize::new(MIB));
                    pool.create_volume(&n("a"), options).await.map(drop)
                }
                Err(error) => Err(error),
            };
            made.expect_err(name);
            scene.assert_outside_is_untouched(name);
        }
    });
}

#[test]
fn only_regular_files_below_the_root_can_be_adopted() {
    on(async {
        let scene = Scene::new().await;
        std::fs::create_dir(scene.path("images")).expect("a directory");
        symlink(scene.victim(), scene.path("link.raw")).expect("a link");
        symlink("../outside", scene.path("linked")).expect("a link");
        symlink("..", scene.path("images/up")).expect("a link");
        std::fs::write(scene.path("images/odd.raw"), [1; 100]).expect("a file");
        std::fs::write(scene.path("images/empty.raw"), []).expect("a file");
        make_fifo(&scene.path("images/fifo"));
        let absolute = scene.victim();
        let data = scene.data();
        let data = data.file_name().expect("a file").to_str().expect("UTF-8");
        let data = format!("data/{data}");
        let before = scene.tree();
        for what in [
            "link.raw",
            "linked/victim.raw",
            "images/up/link.raw",
            "../outside/victim.raw",
            "images/../../outside/victim.raw",
            "..",
            ".",
            "",
            "/",
            absolute.to_str().expect("UTF-8"),
            "images",
            "images/fifo",
            "images/odd.raw",
            "images/empty.raw",
            "images/missing.raw",
            "a\0b",
            "pool.json",
            "lock",
            "volumes/a.json",
            data.as_str(),
            "images/../volumes/a.json",
        ] {
            let adopted = scene.pool.adopt_volume(what, &n("adopted")).await;
            let error = adopted.expect_err(what);
            let kinds = [ErrorKind::InvalidInput, ErrorKind::NotFound];
            assert!(kinds.contains(&error.kind()), "{what:?}: {error:?}");
            assert_eq!(scene.tree(), before, "{what:?}");
            scene.assert_outside_is_untouched(what);
        }
        std::fs::write(scene.path("images/-rf"), pattern(5, 4096)).expect("a file");
        let adopted = scene.pool.adopt_volume("images/-rf", &n("adopted")).await;
        adopted.expect("a file with a strange name is a file");
        let found = read_all(scene.pool.as_ref(), &n("adopted")).await;
        assert!(found == pattern(5, 4096), "adopted");
    });
}
