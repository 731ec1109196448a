//! A story on a targetd of its own, where there is one: with LVM and LIO, so in a virtual machine.
//!
//! `VOLMUX_TARGETD` names a file with the pool's configuration, in JSON, with `clones` set. What
//! the pool holds is left alone. The test runs by `cargo test -p volmux-iscsi --test targetd --
//! --ignored real`.

use volmux_core::{
    AuditOptions, CopyOptions, ErrorKind, OpenOptions, PoolExt, ResizeOptions, transfer,
};
use volmux_iscsi::targetd::TargetdConfig;

use super::*;
use crate::copying::{closed, content, open, pattern};
use crate::opener::{Device, Opener};

fn config() -> TargetdConfig {
    let path = std::env::var_os("VOLMUX_TARGETD").expect("VOLMUX_TARGETD is set");
    let text = std::fs::read_to_string(path).expect("the configuration");
    serde_json::from_str(&text).expect("a configuration")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a targetd, with LVM and LIO: VOLMUX_TARGETD names a configuration for it"]
async fn a_real_targetd_does_all_that() {
    let mut config = config();
    config.readers_from = Some(128);
    let pool = TargetdPool::open(config.clone(), Opener::for_real())
        .await
        .expect("open");
    let [a, clone, copy] = ["vt-a", "vt-clone", "vt-copy_+.x"].map(n);
    let made = create(&pool, a.as_str(), 8).await;
    assert_eq!(create(&pool, a.as_str(), 8).await, made);
    fails(
        pool.create_volume(&a, thin(16)).await,
        ErrorKind::AlreadyExists,
        "create_volume",
        &[],
    );

    let attachment = pool
        .attach_volume(&a, attach(ONE, Access::ReadWrite))
        .await
        .expect("attach");
    let again = pool
        .attach_volume(&a, attach(ONE, Access::ReadWrite))
        .await
        .expect("again");
    assert_eq!(attachment, again);
    let second = pool.attach_volume(&a, attach(TWO, Access::ReadWrite)).await;
    fails(second, ErrorKind::Busy, "attach_volume", &[ONE]);
    fails(
        pool.delete_volume(&a).await,
        ErrorKind::Busy,
        "delete_volume",
        &[ONE],
    );
    let device = Device::open(pool.clone(), &attachment)
        .await
        .expect("logged in");
    let device: &dyn volmux_core::BlockDevice = &device;
    let empty = device.read_at(0, MIB as usize).await.expect("read");
    assert!(transfer::is_zero(&empty));
    transfer::write_all(device, 0, pattern(1, 8 * MIB))
        .await
        .expect("written");
    device.flush().await.expect("flushed");

    used(&pool, [&a, &clone, &copy], &made, &attachment).await;
    device
        .read_at(0, 4096)
        .await
        .map(drop)
        .expect_err("it is gone");

    config.password_file = config.ca_file.clone().expect("a file of authorities");
    let wrong = TargetdPool::open(config, Opener::for_real()).await;
    wrong.expect_err("a wrong password");
}

/// What is done to a volume while it is attached, and after it.
async fn used(
    pool: &Arc<TargetdPool>,
    [a, clone, copy]: [&VolumeName; 3],
    made: &Volume,
    attachment: &Attachment,
) {
    // While it is attached.
    pool.clone_volume(a, clone, Default::default())
        .await
        .expect("cloned");
    assert!(content(pool, clone.as_str()).await == pattern(1, 8 * MIB));
    pool.copy_volume(a, copy, CopyOptions::default())
        .await
        .expect("copied");
    let grow = ResizeOptions::grow(ByteSize::mib(13));
    let grown = pool.resize_volume(a, grow).await.expect("grown");
    assert_eq!((grown.virtual_size.bytes(), grown.id), (16 * MIB, made.id));
    let bigger = Device::open(pool.clone(), attachment).await;
    let bigger: Arc<dyn volmux_core::BlockDevice> = Arc::new(bigger.expect("a second session"));
    assert_eq!(bigger.size(), 16 * MIB);
    let grown_by = bigger.read_at(8 * MIB, MIB as usize).await.expect("read");
    assert!(transfer::is_zero(&grown_by));

    pool.detach_volume(a, &holder(ONE)).await.expect("detached");
    pool.detach_volume(a, &holder(ONE)).await.expect("again");
    pool.delete_volume(a).await.expect("deleted");
    assert!(content(pool, copy.as_str()).await == pattern(1, 8 * MIB));
    assert!(content(pool, clone.as_str()).await == pattern(1, 8 * MIB));
    let writer = open(pool, copy.as_str(), OpenOptions::read_write()).await;
    let busy = pool.open_volume(copy, OpenOptions::read_write()).await;
    fails(busy, ErrorKind::Busy, "attach_volume", &[]);
    drop(writer);
    closed(pool, copy.as_str()).await;
    let report = pool.audit(AuditOptions::default()).await.expect("audited");
    assert!(report.findings.is_empty(), "{report:?}");
    for name in [clone, copy, a] {
        pool.delete_volume(name).await.expect("deleted");
    }
    let left = pool.volumes().await.expect("listed");
    assert!(
        !left.iter().any(|v| v.name.as_str().starts_with("vt-")),
        "{left:?}"
    );
}
