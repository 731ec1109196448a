//! NFS pools that can't be, or can't be used: one clear error that names what and why, and nothing
//! changed. Where a mount comes from, and that it goes away. In the lab.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use volmux::nfs::NfsConfig;
use volmux::{
    Access, AttachOptions, AttachTarget, AuditOptions, ByteSize, CreateOptions, Error, ErrorKind,
    FindingKind, Holder, OpenOptions, Pool, PoolExt, Provisioning, Result, Sharing,
};
use volmux_conformance::nfs::{Export, run};
use volmux_conformance::{checked_name as n, on, pattern};

const MIB: u64 = 1 << 20;
/// Whom a server takes root for that squashes it.
const NOBODY: u32 = 65534;

fn open(config: &NfsConfig) -> Result<Arc<dyn Pool>> {
    let config = config.clone();
    on(async { volmux::nfs::open(config).await })
}

fn export(kind: &str, bytes: u64) -> (Export, NfsConfig) {
    let export = Export::new(kind, bytes);
    fs::create_dir(export.path().join("pool")).expect("a directory on the server");
    let config = export.config("pool", "4.2");
    (export, config)
}

#[track_caller]
fn assert_error<T>(result: Result<T>, kinds: &[ErrorKind], names: &[&str]) -> Error {
    let Err(error) = result else {
        panic!("it must be refused");
    };
    assert!(kinds.contains(&error.kind()), "{error:?}");
    for name in names {
        let text = error.to_string();
        assert!(text.contains(name), "{name} is not in {text}");
    }
    assert!(error.get("reason").is_some(), "it says why: {error:?}");
    error
}

/// Where this export is mounted.
fn mounts(config: &NfsConfig) -> Vec<String> {
    let source = format!(" {}:{} ", config.host, config.export);
    let text = fs::read_to_string("/proc/self/mountinfo").expect("it is there");
    let lines = text.lines().filter(|line| line.contains(&source));
    let path = |line: &str| line.split(' ').nth(4).map(str::to_owned);
    lines.filter_map(path).collect()
}

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn servers_and_exports_that_are_not_there_are_told() {
    use ErrorKind::{NotFound, PermissionDenied, Unavailable};
    let (export, good) = export("ext4", 64 * MIB);
    let with = |change: &dyn Fn(&mut NfsConfig)| {
        let mut config = good.clone();
        change(&mut config);
        config
    };
    // The lab has no name server that could know.
    fs::write("/etc/nsswitch.conf", "hosts: files\n").expect("a file of the lab's");
    let no_host = open(&with(&|c| c.host = "no-such-host.invalid".into()));
    assert_error(no_host, &[NotFound], &["no-such-host.invalid"]);
    let no_export = open(&with(&|c| c.export = "/no-such-export".into()));
    assert_error(no_export, &[NotFound], &["/no-such-export"]);
    let refused = open(&with(&|c| {
        c.export = "/root".into();
        c.vers = Some("3".into());
    }));
    assert_error(refused, &[PermissionDenied], &["/root"]);
    let no_server = open(&with(&|c| c.port = Some(1)));
    assert_error(no_server, &[Unavailable], &["127.0.0.1"]);
    let nobody = open(&with(&|c| {
        c.host = "192.0.2.1".into(); // RFC 5737: no such host anywhere
        c.timeout = Some(3);
    }));
    assert_error(nobody, &[Unavailable], &["192.0.2.1"]);
    let a_file = Path::new(&good.export).join("file");
    fs::write(export.path().join("pool/file"), b"x").expect("a file on the server");
    let no_directory = open(&with(&|c| c.export = a_file.display().to_string()));
    assert_error(
        no_directory,
        &[NotFound, Unavailable, ErrorKind::InvalidConfig],
        &["pool/file"],
    );
    assert!(mounts(&good).is_empty());
    assert!(!export.path().join("pool/volumes").exists());
}

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn a_mount_is_shared_and_taken_away_by_the_last() {
    let (_export, config) = export("ext4", 64 * MIB);
    on(async {
        let first = volmux::nfs::open(config.clone()).await.expect("open");
        assert_eq!(
            first.to_string(),
            format!("nfs://127.0.0.1{}", config.export)
        );
        let [place] = &mounts(&config)[..] else {
            panic!("{:?}", mounts(&config));
        };
        assert!(place.starts_with("/run/volmux/nfs/"), "{place}");
        let mode = fs::metadata("/run/volmux/nfs")
            .expect("it is there")
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o700);
        let second = volmux::nfs::open(config.clone()).await.expect("open");
        assert_eq!(mounts(&config).len(), 1);
        let made = first
            .create_volume(&n("a"), CreateOptions::thin(ByteSize::new(MIB)))
            .await;
        made.expect("create");
        let device = second.open_volume(&n("a"), OpenOptions::read_write()).await;
        let device = device.expect("open the volume");
        drop((first, second));
        assert_eq!(mounts(&config).len(), 1, "a volume is open");
        device.write_at(0, pattern(1, 4096)).await.expect("write");
        device.flush().await.expect("flush");
        drop(device);
        assert!(mounts(&config).is_empty());
        assert!(!Path::new(place).exists());
    });
}

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn a_mount_that_is_there_is_used_if_it_is_good_enough() {
    let (_export, config) = export("ext4", 64 * MIB);
    let source = format!("{}:{}", config.host, config.export);
    fs::create_dir_all("/mnt/there").expect("a directory");
    let mount = |options: &str| {
        run(
            "mount",
            &["-t", "nfs", "-o", options, &source, "/mnt/there"],
        )
    };
    let used = |config: &NfsConfig| {
        let pool = open(config).expect("open");
        let mounts = mounts(config);
        drop(pool);
        assert_eq!(
            fs::read_dir("/mnt/there").map(Iterator::count).ok(),
            Some(0),
            "still there"
        );
        mounts == ["/mnt/there"]
    };
    mount("vers=4.2,hard");
    assert!(used(&config));
    let mut older = config.clone();
    older.vers = Some("4.1".into());
    assert!(!used(&older));
    run("umount", &["/mnt/there"]);

    mount("vers=4.2,soft,timeo=100");
    assert!(!used(&config));
    let mut forced = config.clone();
    forced.force = true;
    assert!(used(&forced));
    run("umount", &["/mnt/there"]);
    assert!(mounts(&config).is_empty());
}

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn an_export_that_is_read_only_is_only_read() {
    let (export, config) = export("ext4", 64 * MIB);
    let options = CreateOptions::thin(ByteSize::new(MIB));
    on(async {
        let pool = volmux::nfs::open(config.clone()).await.expect("open");
        pool.create_volume(&n("a"), options).await.expect("create");
    });
    let what = format!("127.0.0.1:{}", export.path().display());
    run(
        "exportfs",
        &[
            "-o",
            "ro,sync,no_root_squash,insecure,no_subtree_check,fsid=99",
            &what,
        ],
    );
    on(async {
        let pool = volmux::nfs::open(config.clone()).await.expect("open");
        let made = pool.create_volume(&n("b"), options).await;
        assert_error(made, &[ErrorKind::PermissionDenied], &["b", "read-only"]);
        let device = pool.open_volume(&n("a"), OpenOptions::read_only()).await;
        let found = device.expect("open").read_at(0, 10).await.expect("read");
        assert_eq!(found, [0; 10][..]);
        assert_eq!(pool.volumes().await.expect("list").len(), 1);
    });
}

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn a_full_export_loses_nothing_that_was_flushed() {
    let (_export, config) = export("ext4", 24 * MIB);
    on(async {
        let pool = volmux::nfs::open(config.clone()).await.expect("open");
        let options = CreateOptions::thin(ByteSize::new(64 * MIB));
        pool.create_volume(&n("a"), options).await.expect("create");
        let device = pool.open_volume(&n("a"), OpenOptions::read_write()).await;
        let device = device.expect("open");
        let mut flushed = 0;
        let error = loop {
            let data = pattern(flushed, MIB as usize);
            let written = device.write_at(flushed * MIB, data).await;
            match written {
                Ok(()) => match device.flush().await {
                    Ok(()) => flushed += 1,
                    Err(error) => break error,
                },
                Err(error) => break error,
            }
        };
        assert_error::<()>(Err(error), &[ErrorKind::NoSpace], &["a", "full"]);
        assert!(flushed > 4);
        let thick = CreateOptions {
            size: ByteSize::new(64 * MIB),
            provisioning: Provisioning::Thick,
        };
        let refused = pool.create_volume(&n("b"), thick).await;
        assert_error(refused, &[ErrorKind::NoSpace], &["b"]);
        drop(device);
        let device = pool.open_volume(&n("a"), OpenOptions::read_only()).await;
        let device = device.expect("open");
        for part in 0..flushed {
            let found = device
                .read_at(part * MIB, MIB as usize)
                .await
                .expect("read");
            assert_eq!(found, pattern(part, MIB as usize), "MiB {part}");
        }
        drop(device);
        pool.delete_volume(&n("a"))
            .await
            .expect("it gives its room back");
        let small = CreateOptions::thin(ByteSize::new(MIB));
        // The server keeps files open for some seconds after a client has closed them.
        let end = Instant::now() + Duration::from_secs(60);
        while let Err(error) = pool.create_volume(&n("c"), small).await {
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
            assert!(Instant::now() < end, "there is room again: {error:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let report = pool.audit(AuditOptions::default()).await.expect("audit");
        assert!(report.findings.is_empty(), "{report:?}");
    });
}

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn a_server_that_squashes_root_gives_what_nobody_may_have() {
    let (export, config) = export("ext4", 64 * MIB);
    let what = format!("127.0.0.1:{}", export.path().display());
    run(
        "exportfs",
        &[
            "-o",
            "rw,sync,root_squash,insecure,no_subtree_check,fsid=98",
            &what,
        ],
    );
    let directory = export.path().join("pool");
    let options = CreateOptions::thin(ByteSize::new(MIB));
    on(async {
        let pool = volmux::nfs::open(config.clone()).await.expect("open");
        let refused = pool.create_volume(&n("a"), options).await;
        assert_error(refused, &[ErrorKind::PermissionDenied], &["a"]);
        assert_eq!(fs::read_dir(&directory).expect("list").count(), 0);
    });
    std::os::unix::fs::chown(&directory, Some(NOBODY), Some(NOBODY)).expect("chown");
    on(async {
        let pool = volmux::nfs::open(config.clone()).await.expect("open");
        pool.create_volume(&n("a"), options).await.expect("create");
        let device = pool.open_volume(&n("a"), OpenOptions::read_write()).await;
        let device = device.expect("open");
        device
            .write_at(0, Bytes::from_static(b"mine"))
            .await
            .expect("write");
        device.flush().await.expect("flush");
    });
    for file in fs::read_dir(directory.join("data")).expect("list") {
        let mode = file
            .expect("a file")
            .metadata()
            .expect("stat")
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }
}

/// Whose a directory is that a server gives neither root nor nobody.
const OWNER: u32 = 4321;

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn a_pool_is_used_as_who_owns_it() {
    // Where it clones, and where snapshots are chains of files of which some are never written again.
    for version in ["4.2", "3"] {
        used_as_who_owns_it(version);
    }
}

fn used_as_who_owns_it(version: &str) {
    let export = Export::with_quota(64 * MIB, OWNER, 8 * MIB);
    let directory = export.path().join("pool");
    fs::create_dir(&directory).expect("a directory on the server");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).expect("chmod");
    std::os::unix::fs::chown(&directory, Some(OWNER), Some(OWNER)).expect("chown");
    let what = format!("127.0.0.1:{}", export.path().display());
    let squashed = format!(
        "rw,sync,root_squash,insecure,no_subtree_check,fsid={}",
        90 + version.len()
    );
    run("exportfs", &["-o", &squashed, &what]);
    let mut config = export.config("pool", version);
    // Root is nobody there.
    assert_error(
        open(&config),
        &[ErrorKind::PermissionDenied],
        &["no_root_squash"],
    );
    (config.uid, config.gid) = (Some(OWNER), Some(OWNER));
    let holder = Holder::new("host-1").expect("a holder");
    on(async {
        let pool = volmux::nfs::open(config.clone()).await.expect("open");
        let options = CreateOptions::thin(ByteSize::new(16 * MIB));
        pool.create_volume(&n("a"), options).await.expect("create");
        let device = pool.open_volume(&n("a"), OpenOptions::read_write()).await;
        let device = device.expect("open");
        device.write_at(0, pattern(1, 4096)).await.expect("write");
        device.flush().await.expect("flush");
        let (a, s, c) = (n("a"), n("s"), n("c"));
        let made = pool.snapshot_volume(&a, &s, Default::default()).await;
        made.expect("snapshot");
        device.write_at(0, pattern(2, 4096)).await.expect("write");
        device.flush().await.expect("flush");
        drop(device);
        let made = pool.clone_volume(&s, &c, Default::default()).await;
        made.expect("clone");
        assert_eq!(pool.volumes().await.expect("list").len(), 3);
        let attach = AttachOptions {
            holder: holder.clone(),
            access: Access::ReadWrite,
            sharing: Sharing::Exclusive,
        };
        pool.attach_volume(&c, attach).await.expect("attach");
        pool.detach_volume(&c, &holder).await.expect("detach");
        pool.delete_volume(&s).await.expect("delete");
        let report = pool.audit(AuditOptions { repair: true }).await;
        assert!(report.expect("audit").is_clean());
        pool.collect_garbage().await.expect("collect");
        let report = pool.audit(AuditOptions { repair: true }).await;
        assert!(report.expect("audit").is_clean());
        // Its quota is what there is room for.
        let device = pool.open_volume(&a, OpenOptions::read_write()).await;
        let device = device.expect("open");
        let mut written = 0;
        let full = loop {
            let data = pattern(written, MIB as usize);
            let at = written * MIB;
            match device.write_at(at, data).await {
                Ok(()) => match device.flush().await {
                    Ok(()) => written += 1,
                    Err(error) => break error,
                },
                Err(error) => break error,
            }
            assert!(written < 16, "a quota of 8 MiB");
        };
        assert_eq!(full.kind(), ErrorKind::NoSpace, "{full:?}");
        assert!(written >= 4, "{written}");
        drop(device);
        let device = pool.open_volume(&a, OpenOptions::read_only()).await;
        let device = device.expect("open");
        for number in 0..written {
            let found = device.read_at(number * MIB, MIB as usize).await;
            assert!(found.expect("read") == pattern(number, MIB as usize));
        }
    });
    for place in ["data", "volumes"] {
        for file in fs::read_dir(directory.join(place)).expect("list") {
            use std::os::unix::fs::MetadataExt;
            let metadata = file.expect("a file").metadata().expect("stat");
            assert_eq!((metadata.uid(), metadata.gid()), (OWNER, OWNER));
            assert_eq!(metadata.mode() & 0o077, 0);
        }
    }
}

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn what_the_server_lost_is_told() {
    let (export, config) = export("ext4", 64 * MIB);
    let directory = export.path().join("pool");
    let options = CreateOptions::thin(ByteSize::new(MIB));
    on(async {
        let pool = volmux::nfs::open(config.clone()).await.expect("open");
        for name in ["a", "b"] {
            pool.create_volume(&n(name), options).await.expect("create");
        }
        let device = pool.open_volume(&n("b"), OpenOptions::read_only()).await;
        let device = device.expect("open");
        for file in fs::read_dir(directory.join("data")).expect("list") {
            let path = file.expect("a file").path();
            let file = fs::File::options().write(true).open(path).expect("open");
            file.set_len(MIB / 2).expect("cut");
        }
        let opened = pool.open_volume(&n("a"), OpenOptions::read_only()).await;
        assert_error(opened.map(drop), &[ErrorKind::Corrupt], &["a", "524288"]);
        drop(device);
        fs::remove_dir_all(&directory).expect("the server's files go");
        fs::create_dir(&directory).expect("and others come");
        let gone = pool.volume(&n("a")).await;
        let kinds = [ErrorKind::Unavailable];
        assert_error(gone, &kinds, &["stale handle", "open the pool again"]);
    });
}

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn what_a_lost_host_had_open_and_removed_is_found() {
    let (export, config) = export("ext4", 64 * MIB);
    let lost = export.path().join("pool/data/.nfs000000000000008300000001");
    on(async {
        let pool = volmux::nfs::open(config.clone()).await.expect("open");
        let options = CreateOptions::thin(ByteSize::new(MIB));
        pool.create_volume(&n("a"), options).await.expect("create");
        fs::write(&lost, pattern(1, MIB as usize)).expect("a file on the server");
        for (repair, findings) in [(false, 1), (true, 1), (false, 0)] {
            let report = pool.audit(AuditOptions { repair }).await.expect("audit");
            assert_eq!(report.findings.len(), findings, "{report:?}");
            for finding in report.findings {
                assert_eq!(finding.kind, FindingKind::Leftover);
                assert_eq!(finding.repaired, repair);
            }
        }
    });
    assert!(!lost.exists());
}

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn an_attached_volume_keeps_the_mount() {
    let (_export, config) = export("ext4", 64 * MIB);
    let holder = || Holder::new("host-1").expect("a good holder");
    let path = on(async {
        let pool = volmux::nfs::open(config.clone()).await.expect("open");
        let options = CreateOptions::thin(ByteSize::new(MIB));
        pool.create_volume(&n("a"), options).await.expect("create");
        let options = AttachOptions {
            holder: holder(),
            access: Access::ReadWrite,
            sharing: Sharing::Exclusive,
        };
        let attached = pool.attach_volume(&n("a"), options).await;
        let AttachTarget::File { path } = attached.expect("attach").target else {
            panic!("a file");
        };
        path
    });
    assert_eq!(mounts(&config).len(), 1);
    fs::write(&path, pattern(1, MIB as usize)).expect("it can be written");
    on(async {
        let pool = volmux::nfs::open(config.clone()).await.expect("open");
        let refused = pool.open_volume(&n("a"), OpenOptions::read_write()).await;
        assert_error(refused.map(drop), &[ErrorKind::Busy], &["host-1"]);
        pool.detach_volume(&n("a"), &holder())
            .await
            .expect("detach");
        let device = pool.open_volume(&n("a"), OpenOptions::read_only()).await;
        let found = device.expect("open").read_at(0, 4096).await.expect("read");
        assert_eq!(found, pattern(1, MIB as usize)[..4096]);
    });
    assert!(mounts(&config).is_empty());
}
