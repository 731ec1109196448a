//! Directory pools in places where they can't work, or only in part: one clear error that names
//! what and why, and nothing changed.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use volmux::nfs::{DirConfig, DirPool};
use volmux::{
    AuditOptions, ByteSize, CreateOptions, Error, ErrorKind, OpenOptions, Pool, PoolExt, Result,
};
use volmux_conformance::scratch::LoopFs;
use volmux_conformance::{State, checked_name as n, on, pattern, read_all};

mod tree;
use tree::Tree;

const MIB: u64 = 1 << 20;
/// Nobody in particular.
const OTHER_USER: u32 = 65534;

#[track_caller]
fn assert_error<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, names: &str) -> Error {
    let error = result.expect_err("it must be refused");
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(
        error.to_string().contains(names),
        "{names} is not in {error}"
    );
    assert!(error.get("reason").is_some(), "it says why: {error}");
    error
}

async fn create(pool: &dyn Pool, name: &str, size: u64) -> Result<()> {
    let options = CreateOptions::thin(ByteSize::new(size));
    pool.create_volume(&n(name), options).await.map(drop)
}

async fn write(pool: &dyn Pool, name: &str, data: bytes::Bytes) -> Result<()> {
    let device = pool
        .open_volume(&n(name), OpenOptions::read_write())
        .await?;
    device.write_at(0, data).await?;
    device.flush().await
}

#[test]
fn a_path_that_is_a_file_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("file");
    std::fs::write(&path, b"data").expect("a file");
    let before = Tree::of(dir.path());
    let opened = on(DirPool::open(DirConfig::new(&path)));
    assert_error(
        opened,
        ErrorKind::InvalidConfig,
        path.to_str().expect("UTF-8"),
    );
    assert_eq!(Tree::of(dir.path()), before);
}

#[test]
fn a_path_that_does_not_exist_is_refused_and_not_made() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("missing");
    let opened = on(DirPool::open(DirConfig::new(&path)));
    assert_error(opened, ErrorKind::NotFound, path.to_str().expect("UTF-8"));
    assert!(!path.exists());
}

#[test]
fn a_relative_path_is_refused() {
    for path in ["", "relative", "./x", "../x"] {
        let opened = on(DirPool::open(DirConfig::new(path)));
        assert_error(opened, ErrorKind::InvalidConfig, path);
    }
}

#[test]
fn wrong_urls_and_settings_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("UTF-8");
    for (url, names) in [
        (format!("dir://{path}?nonsense=1"), "nonsense"),
        (format!("dir://{path}?init=maybe"), "maybe"),
        (format!("dir://{path}?refuse_percent=101"), "refuse_percent"),
        (
            format!("dir://{path}?overcommit_limit=0"),
            "overcommit_limit",
        ),
        (format!("dir://{path}?path=/etc"), "path"),
        (format!("dir://host{path}"), "host"),
        ("dir:relative".into(), "absolute"),
        (format!("directory://{path}"), "known schemes"),
    ] {
        let opened = on(volmux::registry().open(&url));
        assert_error(opened, ErrorKind::InvalidConfig, names);
    }
    assert_eq!(Tree::of(dir.path()), Tree::default());
}

#[test]
fn a_directory_with_other_things_in_it_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("thesis.txt"), b"data").expect("a file");
    let before = Tree::of(dir.path());
    on(async {
        let pool = DirPool::open(DirConfig::new(dir.path()))
            .await
            .expect("open");
        let created = create(pool.as_ref(), "a", MIB).await;
        let error = assert_error(created, ErrorKind::InvalidConfig, "thesis.txt");
        assert!(error.get("help").is_some());
        assert!(pool.volumes().await.expect("list").is_empty());
        assert_eq!(Tree::of(dir.path()), before);

        let mut config = DirConfig::new(dir.path());
        config.init = true;
        let pool = DirPool::open(config).await.expect("open");
        create(pool.as_ref(), "a", MIB).await.expect("with leave");
    });
    let file = std::fs::read(dir.path().join("thesis.txt"));
    assert_eq!(file.expect("still there"), b"data");
}

#[test]
fn opening_and_looking_make_no_pool() {
    let dir = tempfile::tempdir().expect("a directory");
    on(async {
        let pool = DirPool::open(DirConfig::new(dir.path()))
            .await
            .expect("open");
        assert!(pool.volumes().await.expect("list").is_empty());
        pool.usage().await.expect("usage");
        pool.delete_volume(&n("missing")).await.expect("delete");
        let audit = pool.audit(AuditOptions { repair: true }).await;
        assert!(audit.expect("audit").is_clean());
    });
    assert_eq!(Tree::of(dir.path()), Tree::default());
}

/// Runs `open-pool` as another user and returns what it printed.
fn as_other_user(fs: &LoopFs, root: &Path) -> Vec<String> {
    // From a place that everybody can reach; the build's own folder may not be one.
    let program = fs.path().join("open-pool");
    // Written by another process: what this one writes, a child that another test starts at the
    // same time has open for writing too, and then it can't be run.
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_open-pool"))
        .arg(&program)
        .status();
    assert!(copied.expect("cp").success());
    for path in [fs.path(), &program] {
        let mode = PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, mode).expect("mode");
    }
    let output = Command::new(program)
        .arg(root)
        .current_dir("/")
        .uid(OTHER_USER)
        .gid(OTHER_USER)
        .output()
        .expect("open-pool runs");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(String::from).collect()
}

#[test]
fn a_directory_that_may_not_be_read_is_refused() {
    let fs = LoopFs::ext4(256 << 20);
    let root = fs.path().join("pool");
    std::fs::create_dir(&root).expect("a directory");
    std::fs::set_permissions(&root, PermissionsExt::from_mode(0o000)).expect("mode");
    let printed = as_other_user(&fs, &root);
    assert_eq!(printed.len(), 1, "{printed:?}");
    assert!(
        printed[0].starts_with("open PermissionDenied"),
        "{printed:?}"
    );
    assert!(
        printed[0].contains(root.to_str().expect("UTF-8")),
        "{printed:?}"
    );
}

#[test]
fn a_directory_that_may_not_be_written_can_be_listed() {
    let fs = LoopFs::ext4(256 << 20);
    let root = fs.path().join("pool");
    std::fs::create_dir(&root).expect("a directory");
    std::fs::set_permissions(&root, PermissionsExt::from_mode(0o755)).expect("mode");
    let printed = as_other_user(&fs, &root);
    assert_eq!(printed[..2], ["open Ok", "list Ok"]);
    assert!(
        printed[2].starts_with("create PermissionDenied"),
        "{printed:?}"
    );
    assert!(printed[2].contains("new"), "{printed:?}");
    assert_eq!(Tree::of(&root), Tree::default());
    // The same directory, once it belongs to that user, works.
    chown(&root, Some(OTHER_USER), Some(OTHER_USER)).expect("chown");
    let printed = as_other_user(&fs, &root);
    assert_eq!(printed, ["open Ok", "list Ok", "create Ok"]);
}

#[test]
fn a_read_only_file_system_can_be_read_and_nothing_else() {
    let fs = LoopFs::ext4(64 << 20);
    let root = fs.path().join("pool");
    std::fs::create_dir(&root).expect("a directory");
    on(async {
        let data = pattern(1, MIB as usize);
        let before = {
            let pool = DirPool::open(DirConfig::new(&root)).await.expect("open");
            create(pool.as_ref(), "a", MIB).await.expect("create");
            write(pool.as_ref(), "a", data.clone())
                .await
                .expect("write");
            State::of(pool.as_ref()).await
        };
        fs.remount(true);
        let pool = DirPool::open(DirConfig::new(&root)).await.expect("open");
        let kind = ErrorKind::PermissionDenied;
        assert_eq!(read_all(pool.as_ref(), &n("a")).await, data);
        assert_error(create(pool.as_ref(), "b", MIB).await, kind, "read-only");
        let (a, s) = (n("a"), n("s"));
        let made = pool.snapshot_volume(&a, &s, Default::default()).await;
        assert_error(made, kind, "read-only");
        assert_error(pool.delete_volume(&a).await, kind, "read-only");
        assert_error(pool.rename_volume(&a, &s).await, kind, "read-only");
        let opened = pool.open_volume(&a, OpenOptions::read_write()).await;
        assert_error(opened, kind, "read-only");
        assert_eq!(State::of(pool.as_ref()).await, before);
        pool.usage().await.expect("usage");
        let audit = pool.audit(AuditOptions { repair: false }).await;
        assert!(audit.expect("audit").is_clean());
        fs.remount(false);
        create(pool.as_ref(), "b", MIB)
            .await
            .expect("writable again");
    });
}

#[test]
fn a_pool_opened_read_only_refuses_changes() {
    let dir = tempfile::tempdir().expect("a directory");
    on(async {
        let pool = DirPool::open(DirConfig::new(dir.path()))
            .await
            .expect("open");
        create(pool.as_ref(), "a", MIB).await.expect("create");
        let mut config = DirConfig::new(dir.path());
        config.read_only = true;
        let before = Tree::of(dir.path());
        let pool = DirPool::open(config).await.expect("open");
        let kind = ErrorKind::PermissionDenied;
        assert_error(create(pool.as_ref(), "b", MIB).await, kind, "b");
        assert_error(pool.delete_volume(&n("a")).await, kind, "a");
        let opened = pool.open_volume(&n("a"), OpenOptions::read_write()).await;
        assert_error(opened, kind, "a");
        read_all(pool.as_ref(), &n("a")).await;
        assert_eq!(Tree::of(dir.path()), before);
    });
}

/// Fills a file system to its last block.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).expect("a filler");
    for length in [1 << 20, 4096] {
        let data = vec![1; length];
        // What was set aside for writing back is free again after a flush.
        while file.write_all(&data).is_ok() {
            while file.write_all(&data).is_ok() {}
            file.sync_all().expect("a filler that is really there");
        }
    }
}

#[test]
fn a_full_file_system_refuses_and_loses_nothing() {
    let fs = LoopFs::ext4(64 << 20);
    let root = fs.path().join("pool");
    std::fs::create_dir(&root).expect("a directory");
    on(async {
        let mut config = DirConfig::new(&root);
        // The pool's own mark would refuse long before.
        config.refuse_percent = Some(100.0);
        let pool = DirPool::open(config).await.expect("open");
        let pool = pool.as_ref();
        for name in ["a", "b"] {
            create(pool, name, 8 * MIB).await.expect("create");
        }
        let data = pattern(1, 8 * MIB as usize);
        write(pool, "a", data.clone()).await.expect("write");
        let filler = fs.path().join("filler");
        fill(&filler);

        let kind = ErrorKind::NoSpace;
        let (a, s, k) = (n("a"), n("s"), n("k"));
        let before = State::of(pool).await;
        let made = pool.snapshot_volume(&a, &s, Default::default());
        assert_error(made.await, kind, "s");
        let made = pool.copy_volume(&a, &k, Default::default());
        assert_error(made.await, kind, "k");
        let thick = CreateOptions::thick(ByteSize::mib(8));
        assert_error(pool.create_volume(&n("t"), thick).await, kind, "t");
        assert_eq!(State::of(pool).await, before);
        // A few more records may fit into what the file system keeps in reserve.
        let mut made = 0;
        let refused = loop {
            match create(pool, &format!("c{made}"), MIB).await {
                Ok(()) => made += 1,
                refused => break refused,
            }
        };
        assert_error(refused, kind, &format!("c{made}"));
        assert_eq!(pool.volumes().await.expect("list").len(), 2 + made);
        let written = write(pool, "b", data.clone()).await;
        assert_error(written, kind, "b");
        assert!(read_all(pool, &n("a")).await == data, "a is as it was");
        let audit = pool.audit(AuditOptions { repair: true }).await;
        assert!(audit.expect("audit").is_clean());

        std::fs::remove_file(filler).expect("free");
        write(pool, "b", data.clone()).await.expect("write again");
        let made = pool.snapshot_volume(&a, &s, Default::default());
        made.await.expect("snapshot again");
        assert!(read_all(pool, &n("b")).await == data, "b");
        assert!(read_all(pool, &n("s")).await == data, "s");
        let audit = pool.audit(AuditOptions { repair: false }).await;
        assert_eq!(audit.expect("audit").findings, []);
    });
}

#[test]
fn the_pools_own_mark_refuses_before_the_file_system_is_full() {
    let fs = LoopFs::ext4(64 << 20);
    let root = fs.path().join("pool");
    std::fs::create_dir(&root).expect("a directory");
    on(async {
        let pool = DirPool::open(DirConfig::new(&root)).await.expect("open");
        create(pool.as_ref(), "a", MIB).await.expect("create");
        fill(&fs.path().join("filler"));
        let refused = create(pool.as_ref(), "b", MIB).await;
        let error = assert_error(refused, ErrorKind::NoSpace, "refuse mark");
        assert!(error.get("help").is_some());
        pool.delete_volume(&n("a"))
            .await
            .expect("deleting is never refused");
    });
}
