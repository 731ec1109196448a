//! LVM pools that can't be, or can't be used: one clear error that names what and why, and nothing
//! changed. In the lab.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use volmux::lvm::{LvmConfig, LvmPool};
use volmux::{
    Access, AttachOptions, AttachTarget, ByteSize, CreateOptions, Error, ErrorKind, Holder,
    OpenOptions, Pool, PoolExt, ResizeOptions, Result, Sharing,
};
use volmux_conformance::lvm::{ScratchGroup, lvm};
use volmux_conformance::{checked_name as n, on};

const MIB: u64 = 1 << 20;
/// Nobody in particular.
const OTHER_USER: u32 = 65534;

fn open(config: LvmConfig) -> Result<Arc<LvmPool>> {
    on(LvmPool::open(config))
}

#[track_caller]
fn assert_error<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, names: &[&str]) -> Error {
    let error = result.expect_err("it must be refused");
    assert_eq!(error.kind(), kind, "{error:?}");
    for name in names {
        let text = error.to_string();
        assert!(text.contains(name), "{name} is not in {text}");
    }
    assert!(error.get("reason").is_some(), "it says why: {error}");
    error
}

/// What lvm2 knows of the group.
fn metadata(group: &ScratchGroup) -> String {
    let columns = "lv_name,lv_size,lv_tags,lv_attr,vg_seqno";
    lvm(&["lvs", "-a", "--noheadings", "-o", columns, group.name()])
}

#[test]
#[ignore = "needs device-mapper: tests/lab/run"]
fn groups_and_pools_that_are_not_there_are_refused() {
    let group = ScratchGroup::with_pool(16 * MIB, 2 * MIB);
    let name = group.name();
    lvm(&["lvcreate", "-y", "-L", "1m", "-n", "linear", name]);
    lvm(&[
        "lvcreate",
        "-y",
        "-V",
        "1m",
        "--thinpool",
        "pool",
        "-n",
        "thin",
        name,
    ]);
    let before = metadata(&group);
    for missing in [
        LvmConfig::thin("no-such-group", "pool"),
        LvmConfig::thick("no-such-group"),
    ] {
        assert_error(open(missing), ErrorKind::NotFound, &["no-such-group"]);
    }
    let missing = open(LvmConfig::thin(name, "no-such-pool"));
    assert_error(missing, ErrorKind::NotFound, &["no-such-pool", name]);
    for other in ["linear", "thin"] {
        let wrong = open(LvmConfig::thin(name, other));
        assert_error(wrong, ErrorKind::InvalidConfig, &[other, name]);
    }
    for odd in ["", ".", "..", "-x", "a/b", "a b", "$(x)", "a\nb"] {
        let wrong = open(LvmConfig::thin(odd, "pool"));
        assert_error(wrong, ErrorKind::InvalidConfig, &[]);
        let wrong = open(LvmConfig::thin(name, odd));
        assert_error(wrong, ErrorKind::InvalidConfig, &[]);
    }
    assert_eq!(metadata(&group), before);
}

#[test]
#[ignore = "needs device-mapper: tests/lab/run"]
fn a_pool_that_does_not_zero_is_refused() {
    let group = ScratchGroup::new(64 * MIB);
    group.make_pool("pool", 16 * MIB, 2 * MIB, &["--zero", "n"]);
    let mut config = LvmConfig::thin(group.name(), "pool");
    let refused = open(config.clone());
    let refused = assert_error(refused, ErrorKind::InvalidConfig, &["pool"]);
    let help = refused.get("help").expect("it says what to do");
    assert!(help.contains("single_tenant"), "{help}");
    config.single_tenant = true;
    open(config).expect("there is one tenant");
}

#[test]
#[ignore = "needs device-mapper: tests/lab/run"]
fn without_lvm2_it_says_so() {
    let empty = tempfile::tempdir().expect("a directory");
    let mut config = LvmConfig::thin("group", "pool");
    config.programs = Some(empty.path().to_owned());
    let refused = open(config);
    let path = empty.path().to_str().expect("UTF-8");
    let refused = assert_error(refused, ErrorKind::InvalidConfig, &[path, "not installed"]);
    let help = refused.get("help").expect("it says what to do");
    assert!(help.contains("apt-get install lvm2"), "{help}");
}

#[test]
#[ignore = "needs device-mapper: tests/lab/run"]
fn other_users_are_refused() {
    let group = ScratchGroup::with_pool(16 * MIB, 2 * MIB);
    let before = metadata(&group);
    let directory = tempfile::tempdir().expect("a directory");
    // From a place that everybody can reach; the build's own folder may not be one.
    let program = directory.path().join("open-pool");
    // Written by another process: a child of this one may have it open otherwise, and then it can't
    // be run.
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_open-pool"))
        .arg(&program)
        .status();
    assert!(copied.expect("cp").success());
    for path in [directory.path(), &program] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("mode");
    }
    for url in [
        format!("lvm://{}/pool", group.name()),
        format!("lvm://{}", group.name()),
    ] {
        let output = Command::new(&program)
            .arg(&url)
            .current_dir("/")
            .uid(OTHER_USER)
            .gid(OTHER_USER)
            .output()
            .expect("open-pool runs");
        let printed = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(printed.starts_with("open PermissionDenied"), "{printed}");
        assert!(printed.contains("root"), "it says who may: {printed}");
        assert_eq!(printed.lines().count(), 1, "{printed}");
    }
    assert_eq!(metadata(&group), before);
}

fn exclusive(host: &str) -> AttachOptions {
    AttachOptions {
        holder: Holder::new(host).expect("a holder"),
        access: Access::ReadWrite,
        sharing: Sharing::Exclusive,
    }
}

fn program(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

/// A volume that the host has mounted is in use, whatever volmux itself was told.
#[test]
#[ignore = "needs device-mapper: tests/lab/run"]
fn a_volume_that_is_mounted_is_busy() {
    let group = ScratchGroup::with_pool(64 * MIB, 4 * MIB);
    let pool = open(LvmConfig::thin(group.name(), "pool")).expect("open");
    let (a, host) = (n("a"), Holder::new("host").expect("a holder"));
    let mount = tempfile::tempdir().expect("a directory");
    let path = mount.path().to_str().expect("UTF-8");
    on(async {
        let size = ByteSize::mib(16);
        let made = pool.create_volume(&a, CreateOptions::thin(size)).await;
        made.expect("create");
        let attached = pool.attach_volume(&a, exclusive("host")).await;
        let AttachTarget::BlockDevice { path: device } = attached.expect("attach").target else {
            panic!("no block device");
        };
        program("mkfs.ext4", &["-q", device.to_str().expect("UTF-8")]);
        program("mount", &[device.to_str().expect("UTF-8"), path]);
        let detached = pool.detach_volume(&a, &host).await;
        assert_error(detached, ErrorKind::Busy, &["a", path]);
        let opened = pool.open_volume(&a, OpenOptions::read_write()).await;
        assert_error(opened, ErrorKind::Busy, &["a"]);
        let deleted = pool.delete_volume(&a).await;
        assert_error(deleted, ErrorKind::Busy, &["a"]);
        let shrunk = ResizeOptions {
            size: ByteSize::mib(8),
            allow_shrink: true,
        };
        let shrunk = pool.resize_volume(&a, shrunk).await;
        assert_error(shrunk, ErrorKind::Busy, &["a"]);
        std::fs::write(mount.path().join("file"), "kept").expect("the file system works");
        program("umount", &[path]);
        pool.detach_volume(&a, &host).await.expect("detach");
        // Mounted by hand, without volmux.
        let device = format!("/dev/{}/a", group.name());
        lvm(&["lvchange", "-ay", "-K", &format!("{}/a", group.name())]);
        program("mount", &[&device, path]);
        let kept = std::fs::read_to_string(mount.path().join("file"));
        assert_eq!(kept.expect("the file"), "kept");
        let opened = pool.open_volume(&a, OpenOptions::read_write()).await;
        assert_error(opened, ErrorKind::Busy, &["a"]);
        let attached = pool.attach_volume(&a, exclusive("other")).await;
        assert_error(attached, ErrorKind::Busy, &["a"]);
        let deleted = pool.delete_volume(&a).await;
        assert_error(deleted, ErrorKind::Busy, &["a"]);
        program("umount", &[path]);
        pool.delete_volume(&a).await.expect("delete");
        assert_eq!(pool.volumes().await.expect("list"), []);
    });
}
