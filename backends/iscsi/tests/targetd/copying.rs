//! Full copies over a real target, and what is left when they fail.

use bytes::Bytes;
use volmux_core::transfer::write_all;
use volmux_core::{AuditOptions, BlockDevice, Control, CopyOptions, OpenOptions, PoolExt};

use super::*;
use crate::opener::Opener;
use crate::server::Fault;

pub fn pattern(seed: u64, length: u64) -> Bytes {
    let words = (0..length / 8).map(|i| (i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

pub async fn open(pool: &TargetdPool, name: &str, options: OpenOptions) -> Arc<dyn BlockDevice> {
    let opened = pool.open_volume(&n(name), options).await;
    opened.expect("opened")
}

/// A pool with a volume of 8 MiB that holds a pattern.
async fn filled(server: &Arc<Server>) -> Arc<TargetdPool> {
    let pool = TargetdPool::open(server.config(), Opener::new(server)).await;
    let pool = pool.expect("it opens");
    create(&pool, "a", 8).await;
    let device = open(&pool, "a", OpenOptions::read_write()).await;
    write_all(device.as_ref(), 0, pattern(1, 8 * MIB))
        .await
        .expect("written");
    device.flush().await.expect("flushed");
    drop(device);
    closed(&pool, "a").await;
    pool
}

/// Waits until a volume is detached, which happens by itself.
pub async fn closed(pool: &TargetdPool, name: &str) {
    for _ in 0..500 {
        let volume = pool.volume(&n(name)).await.expect("there");
        if volume.attachments.is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{name} is still attached");
}

pub async fn content(pool: &TargetdPool, name: &str) -> Vec<u8> {
    let device = open(pool, name, OpenOptions::read_only()).await;
    let mut content = Vec::new();
    for offset in (0..device.size()).step_by(MIB as usize) {
        let read = device.read_at(offset, MIB as usize).await;
        content.extend_from_slice(&read.expect("read"));
    }
    drop(device);
    closed(pool, name).await;
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_full_and_of_its_own() {
    let server = Arc::new(Server::with_target().await);
    let pool = filled(&server).await;
    // A writer elsewhere is not in its way.
    reserve_far(&server);
    let attached = pool
        .attach_volume(&n("a"), attach(ONE, Access::ReadWrite))
        .await;
    attached.expect("attached");
    let made = pool
        .copy_volume(&n("a"), &n("b"), CopyOptions::default())
        .await
        .expect("copied");
    assert_eq!(made.virtual_size.bytes(), 8 * MIB);
    assert!(content(&pool, "b").await == pattern(1, 8 * MIB));
    let names: Vec<String> = server.array().volumes.keys().cloned().collect();
    assert_eq!(names, ["a", "b"]);
    let again = pool
        .copy_volume(&n("a"), &n("b"), CopyOptions::default())
        .await;
    assert_eq!(again.expect("again"), made);
    assert!(
        pool.audit(AuditOptions::default())
            .await
            .expect("audit")
            .findings
            .is_empty()
    );
    // What came to be came from what was filled, at the end.
    let copies = server.calls("vol_copy");
    let (first, last) = (&copies[0].params, &copies[1].params);
    assert_eq!(
        (&first["vol_orig"], &last["vol_new"]),
        (&"a".into(), &"b".into())
    );
    assert_eq!(copies.len(), 2);
    let filled = server.calls("vol_create");
    assert_eq!(filled[1].params["name"], last["vol_orig"]);
}

/// Numbers that nobody else gets.
fn reserve_far(server: &Server) {
    crate::opener::reserve(server, ONE, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_fails_or_is_cancelled_leaves_nothing() {
    let server = Arc::new(Server::with_target().await);
    let pool = filled(&server).await;
    for (method, fault) in [
        (
            "vol_copy",
            Fault::Error(-303, "Failed to copy volume".into()),
        ),
        ("vol_create", Fault::Error(-1, "LVMError: no".into())),
        ("export_create", Fault::Error(-1, "RTSLibError: no".into())),
        ("vol_create", Fault::CloseAfterRequest),
    ] {
        server.fault(method, fault);
        let copied = pool
            .copy_volume(&n("a"), &n("b"), CopyOptions::default())
            .await;
        let error = copied.expect_err("it fails");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert_eq!(
            server.array().volumes.keys().collect::<Vec<_>>(),
            ["a"],
            "{method}"
        );
        assert!(server.no_fault_left() && server.array().exports.is_empty());
    }
    let control = Control::new();
    let stop = control.clone();
    let control = control.with_progress(move |progress| {
        if progress.done > 0 {
            stop.cancel();
        }
    });
    let copied = pool
        .copy_volume(&n("a"), &n("b"), CopyOptions { control })
        .await;
    fails(copied, ErrorKind::TimedOut, "copy_volume", &["b"]);
    assert_eq!(server.array().volumes.keys().collect::<Vec<_>>(), ["a"]);
    // Whoever goes away stops it too.
    server.fault(
        "export_create",
        Fault::Delay(std::time::Duration::from_millis(500)),
    );
    let (source, name) = (n("a"), n("b"));
    let dropped = pool.copy_volume(&source, &name, CopyOptions::default());
    let late = tokio::time::timeout(std::time::Duration::from_millis(300), dropped).await;
    late.expect_err("it takes longer");
    let made = pool
        .copy_volume(&n("a"), &n("b"), CopyOptions::default())
        .await;
    made.expect("calling again converges");
    assert!(content(&pool, "b").await == pattern(1, 8 * MIB));
    assert_eq!(
        server.array().volumes.keys().collect::<Vec<_>>(),
        ["a", "b"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_copy_cannot_remove_is_named() {
    let server = Arc::new(Server::with_target().await);
    let pool = filled(&server).await;
    server.fault("vol_create", Fault::Error(-1, "LVMError: no".into()));
    server.fault("vol_destroy", Fault::Error(-1, "LVMError: nor this".into()));
    let copied = pool
        .copy_volume(&n("a"), &n("b"), CopyOptions::default())
        .await;
    let error = fails(copied, ErrorKind::Unavailable, "copy_volume", &["b"]);
    let left = error.get("left_behind").expect("it is named").to_owned();
    assert!(server.array().volumes.contains_key(&left), "{left}");
    assert_eq!(pool.volumes().await.expect("listed").len(), 1);
    // And can be deleted by hand.
    pool.delete_volume(&n(&left)).await.expect("deleted");
    assert_eq!(server.array().volumes.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_starts_with_the_content_and_goes_its_own_way() {
    let server = Arc::new(Server::with_target().await);
    let pool = filled(&server).await;
    pool.clone_volume(&n("a"), &n("b"), Default::default())
        .await
        .expect("cloned");
    let device = open(&pool, "b", OpenOptions::read_write()).await;
    device.write_at(0, pattern(2, MIB)).await.expect("written");
    device.flush().await.expect("flushed");
    drop(device);
    closed(&pool, "b").await;
    assert!(content(&pool, "a").await == pattern(1, 8 * MIB));
    let clone = content(&pool, "b").await;
    assert!(clone[..MIB as usize] == pattern(2, MIB));
    assert!(clone[MIB as usize..] == pattern(1, 8 * MIB)[MIB as usize..]);
}
