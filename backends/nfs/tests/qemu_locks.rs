//! volmux and QEMU keep out of each other's way on the same file.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use volmux_core::{
    Access, AttachOptions, AttachTarget, ByteSize, CreateOptions, ErrorKind, Holder, OpenOptions,
    Pool, ResizeOptions, RevertOptions, Sharing, SnapshotOptions, VolumeName,
};
use volmux_nfs::{DirConfig, DirPool};

fn name(name: &str) -> VolumeName {
    VolumeName::new(name).expect("a good name")
}

/// A pool with volume `disk`, and the path of its data.
async fn pool() -> (tempfile::TempDir, Arc<dyn Pool>, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let pool = DirPool::open(DirConfig::new(dir.path()))
        .await
        .expect("open the pool");
    let disk = name("disk");
    pool.create_volume(&disk, CreateOptions::thin(ByteSize::mib(1)))
        .await
        .expect("create");
    let AttachTarget::File { path } = target(&pool).await else {
        panic!("a new volume is a raw file")
    };
    (dir, pool, path)
}

/// What a host gets of volume `disk`.
async fn target(pool: &Arc<dyn Pool>) -> AttachTarget {
    let (disk, holder) = (name("disk"), Holder::new("test").expect("a good holder"));
    let options = AttachOptions {
        holder: holder.clone(),
        access: Access::ReadOnly,
        sharing: Sharing::Exclusive,
    };
    let attached = pool.attach_volume(&disk, options).await.expect("attach");
    pool.detach_volume(&disk, &holder).await.expect("detach");
    attached.target
}

fn format(path: &Path) -> &str {
    let format = path.extension().and_then(|format| format.to_str());
    format.expect("a data file has one")
}

/// A qemu-io that has an image open until it is dropped.
struct QemuIo(Child);

impl QemuIo {
    fn open(path: &Path, args: &[&str]) -> QemuIo {
        let mut child = Command::new("/usr/bin/qemu-io")
            .args(["-f", format(path)])
            .args(args)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io, from Debian's qemu-utils");
        // Its answer shows that the image is open.
        let stdin = child.stdin.as_mut().expect("piped");
        stdin
            .write_all(b"length\n")
            .and_then(|()| stdin.flush())
            .expect("ask");
        let stdout = child.stdout.as_mut().expect("piped");
        let mut answer = String::new();
        while !answer.contains("MiB") {
            answer.clear();
            let read = BufReader::new(&mut *stdout)
                .read_line(&mut answer)
                .expect("answer");
            assert_ne!(read, 0, "qemu-io ended before it had the image open");
        }
        QemuIo(child)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ended = self.0.wait();
    }
}

/// Whether QEMU can open the image for writing.
fn qemu_can_write(path: &Path) -> bool {
    let run = Command::new("/usr/bin/qemu-io")
        .args(["-f", "raw", "-c", "write 0 4k"])
        .arg(path)
        .output()
        .expect("qemu-io, from Debian's qemu-utils");
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(
        run.status.success() || said.contains("lock"),
        "another failure: {said}"
    );
    run.status.success()
}

#[tokio::test]
async fn what_a_guest_writes_is_busy() {
    let (_dir, pool, _) = pool().await;
    let (disk, snap) = (name("disk"), name("snap"));
    pool.snapshot_volume(&disk, &snap, SnapshotOptions::default())
        .await
        .expect("snapshot");
    let (path, chain) = match target(&pool).await {
        AttachTarget::File { path } => (path, false),
        AttachTarget::Qcow2 { path } => (path, true),
        other => panic!("{other:?}"),
    };
    let guest = QemuIo::open(&path, &[]);

    let open = pool.open_volume(&disk, OpenOptions::read_write()).await;
    let error = open.expect_err("QEMU writes it");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(
        error
            .get("used_by")
            .is_some_and(|by| by.contains("qemu-io")),
        "{error}"
    );
    let shrink = ResizeOptions {
        size: ByteSize::kib(512),
        allow_shrink: true,
    };
    for busy in [
        pool.delete_volume(&disk).await.err(),
        pool.revert_volume(&disk, &snap, RevertOptions::default())
            .await
            .err(),
        pool.resize_volume(&disk, shrink).await.err(),
    ] {
        assert_eq!(busy.expect("QEMU uses it").kind(), ErrorKind::Busy);
    }
    let read = pool.open_volume(&disk, OpenOptions::read_only()).await;
    if chain {
        // It would not see QEMU's tables.
        assert_eq!(read.expect_err("QEMU writes it").kind(), ErrorKind::Busy);
        let more = name("more");
        let again = pool.snapshot_volume(&disk, &more, SnapshotOptions::default());
        assert_eq!(
            again.await.expect_err("behind its back").kind(),
            ErrorKind::Busy
        );
    } else {
        read.expect("reading goes together");
    }

    drop(guest);
    pool.open_volume(&disk, OpenOptions::read_write())
        .await
        .expect("the guest is gone");
}

#[tokio::test]
async fn what_volmux_writes_a_guest_cannot() {
    let (_dir, pool, path) = pool().await;
    let writer = pool
        .open_volume(&name("disk"), OpenOptions::read_write())
        .await
        .expect("open");
    assert!(!qemu_can_write(&path));
    drop(writer);
    assert!(qemu_can_write(&path));
}

#[tokio::test]
async fn a_reader_keeps_nobody_from_writing() {
    let (_dir, pool, path) = pool().await;
    let _reader = pool
        .open_volume(&name("disk"), OpenOptions::read_only())
        .await
        .expect("open");
    assert!(qemu_can_write(&path));
}

#[tokio::test]
async fn detach_waits_for_the_guest() {
    let (_dir, pool, path) = pool().await;
    let (disk, holder) = (name("disk"), Holder::new("guest").expect("a good holder"));
    let options = AttachOptions {
        holder: holder.clone(),
        access: Access::ReadWrite,
        sharing: Sharing::Exclusive,
    };
    pool.attach_volume(&disk, options).await.expect("attach");
    let guest = QemuIo::open(&path, &[]);
    let error = pool
        .detach_volume(&disk, &holder)
        .await
        .expect_err("the guest runs");
    assert_eq!(error.kind(), ErrorKind::Busy);
    let open = pool.open_volume(&disk, OpenOptions::read_write()).await;
    assert_eq!(open.expect_err("still attached").kind(), ErrorKind::Busy);
    drop(guest);
    pool.detach_volume(&disk, &holder)
        .await
        .expect("the guest is gone");
}
