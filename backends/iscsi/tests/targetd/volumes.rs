//! Volumes: making, growing, cloning, deleting; names, sizes, and what can't be done.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::Notify;
use volmux_core::{PoolExt, Provisioning, ResizeOptions};

use super::*;
use crate::server::Fault;

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_made_and_told() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    let made = create(&pool, "web-1.disk+2", 5).await;
    assert_eq!(made.virtual_size.bytes(), 8 * MIB);
    assert_eq!(made.provisioning, Provisioning::Thin);
    assert_eq!((made.origin.clone(), made.attachments.len()), (None, 0));
    assert_eq!(pool.volume(&n("web-1.disk+2")).await.expect("there"), made);
    let other = create(&pool, "_", 4).await;
    assert_ne!(other.id, made.id);
    assert_eq!(pool.volumes().await.expect("listed"), [other, made]);
    let missing = pool.volume(&n("web")).await;
    fails(missing, ErrorKind::NotFound, "volume", &["web", "vg/pool"]);
    let params = &server.calls("vol_create")[0].params;
    assert_eq!(
        *params,
        json!({"pool": "vg/pool", "name": "web-1.disk+2", "size": 8 * MIB})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn making_again_is_the_same_or_refused() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    let made = create(&pool, "a", 6).await;
    assert_eq!(create(&pool, "a", 6).await, made);
    assert_eq!(create(&pool, "a", 8).await, made, "both round up to it");
    let other = pool.create_volume(&n("a"), thin(9)).await;
    fails(
        other,
        ErrorKind::AlreadyExists,
        "create_volume",
        &["a", "8388608"],
    );
    assert_eq!(server.changes(), ["vol_create"]);
    // Somebody comes between looking and making.
    server.fault("vol_create", Fault::First(|array| array.add("b", 8 * MIB)));
    assert_eq!(create(&pool, "b", 8).await.virtual_size.bytes(), 8 * MIB);
    server.fault("vol_create", Fault::First(|array| array.add("c", 4 * MIB)));
    let other = pool.create_volume(&n("c"), thin(8)).await;
    fails(other, ErrorKind::AlreadyExists, "create_volume", &["c"]);
    assert!(server.no_fault_left());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_array_that_rounds_more_is_told_of() {
    let server = Server::new().await;
    let mut config = server.config();
    config.granularity = Some(ByteSize::mib(16));
    let pool = TargetdPool::open(config, Arc::new(Closed))
        .await
        .expect("open");
    assert_eq!(create(&pool, "a", 1).await.virtual_size.bytes(), 16 * MIB);
    create(&pool, "a", 16).await;
    let other = pool.create_volume(&n("a"), thin(17)).await;
    fails(
        other,
        ErrorKind::AlreadyExists,
        "create_volume",
        &["granularity"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_names_and_sizes_change_nothing() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    for name in [
        "snapshot1",
        "pvmove",
        "a_tmeta",
        "_volmux-copy-1-2",
        &"x".repeat(127),
    ] {
        let wrong = pool.create_volume(&n(name), thin(4)).await;
        fails(wrong, ErrorKind::InvalidInput, "create_volume", &[name]);
        let wrong = pool
            .clone_volume(&n("a"), &n(name), Default::default())
            .await;
        fails(wrong, ErrorKind::InvalidInput, "clone_volume", &[name]);
        let wrong = pool
            .copy_volume(&n("a"), &n(name), Default::default())
            .await;
        fails(wrong, ErrorKind::InvalidInput, "copy_volume", &[name]);
    }
    for size in [0, u64::MAX, 1 << 63] {
        let options = CreateOptions::thin(ByteSize::new(size));
        let wrong = pool.create_volume(&n("a"), options).await;
        fails(wrong, ErrorKind::InvalidInput, "create_volume", &["a"]);
    }
    let thick = CreateOptions::thick(ByteSize::mib(4));
    let wrong = pool.create_volume(&n("a"), thick).await;
    fails(wrong, ErrorKind::Unsupported, "create_volume", &["thin"]);
    assert!(server.changes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_was_made_elsewhere_is_told_loudly() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    server.array().falls_back = true;
    let lost = pool.create_volume(&n("a"), thin(4)).await;
    let error = fails(lost, ErrorKind::Corrupt, "create_volume", &["a"]);
    assert!(
        error
            .get("help")
            .is_some_and(|help| help.contains("lvremove vg/a")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_grow_and_do_not_shrink() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    let made = create(&pool, "a", 4).await;
    let grow = |mib| ResizeOptions::grow(ByteSize::mib(mib));
    let grown = pool.resize_volume(&n("a"), grow(9)).await.expect("grown");
    assert_eq!((grown.virtual_size.bytes(), grown.id), (12 * MIB, made.id));
    for same in [9, 12] {
        pool.resize_volume(&n("a"), grow(same))
            .await
            .expect("no change");
    }
    let smaller = pool.resize_volume(&n("a"), grow(4)).await;
    fails(smaller, ErrorKind::InvalidInput, "resize_volume", &["a"]);
    let shrink = ResizeOptions {
        allow_shrink: true,
        ..grow(4)
    };
    let smaller = pool.resize_volume(&n("a"), shrink).await;
    fails(smaller, ErrorKind::Unsupported, "resize_volume", &["a"]);
    let nothing = pool.resize_volume(&n("a"), grow(0)).await;
    fails(nothing, ErrorKind::InvalidInput, "resize_volume", &["a"]);
    let missing = pool.resize_volume(&n("b"), grow(4)).await;
    fails(missing, ErrorKind::NotFound, "resize_volume", &["b"]);
    assert_eq!(server.changes(), ["vol_create", "vol_resize"]);
    // Somebody had it grow as far, or further, meanwhile.
    for size in [16 * MIB, 24 * MIB] {
        server.fault(
            "vol_resize",
            Fault::First(|array| {
                let (size, _) = array.volumes.get_mut("a").expect("a volume");
                *size = if *size < 16 * MIB { 16 * MIB } else { 24 * MIB };
            }),
        );
        let grown = pool
            .resize_volume(&n("a"), ResizeOptions::grow(ByteSize::new(size)))
            .await;
        assert_eq!(grown.expect("grown").virtual_size.bytes(), size);
    }
    server.fault(
        "vol_resize",
        Fault::Error(-303, "has insufficient free space".into()),
    );
    let full = pool.resize_volume(&n("a"), grow(100)).await;
    fails(full, ErrorKind::NoSpace, "resize_volume", &["a"]);
    assert!(server.no_fault_left());
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_are_made_once() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    create(&pool, "a", 8).await;
    let clone = |from: &'static str, to: &'static str| {
        let pool = pool.clone();
        async move {
            pool.clone_volume(&n(from), &n(to), Default::default())
                .await
        }
    };
    let made = clone("a", "b").await.expect("cloned");
    assert_eq!(
        (made.name.as_str(), made.virtual_size.bytes()),
        ("b", 8 * MIB)
    );
    assert_eq!(clone("a", "b").await.expect("cloned"), made);
    let params = &server.calls("vol_copy")[0].params;
    assert_eq!(
        *params,
        json!({"pool": "vg/pool", "vol_orig": "a", "vol_new": "b"})
    );
    create(&pool, "c", 4).await;
    fails(
        clone("a", "c").await,
        ErrorKind::AlreadyExists,
        "clone_volume",
        &["c"],
    );
    fails(
        clone("x", "y").await,
        ErrorKind::NotFound,
        "clone_volume",
        &["x", "y"],
    );
    fails(
        clone("a", "a").await,
        ErrorKind::InvalidInput,
        "clone_volume",
        &["a"],
    );
    assert_eq!(server.calls("vol_copy").len(), 1);
    // Source and clone go in any order.
    pool.delete_volume(&n("a")).await.expect("deleted");
    assert_eq!(pool.volume(&n("b")).await.expect("there"), made);
    server.fault(
        "vol_copy",
        Fault::First(|array| {
            array.volumes.remove("b");
        }),
    );
    fails(
        clone("b", "d").await,
        ErrorKind::NotFound,
        "clone_volume",
        &["b"],
    );
    assert!(server.no_fault_left());
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_is_idempotent() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    pool.delete_volume(&n("a")).await.expect("nothing there");
    assert!(server.changes().is_empty());
    create(&pool, "a", 4).await;
    server.fault(
        "vol_destroy",
        Fault::First(|array| {
            array.volumes.remove("a");
        }),
    );
    pool.delete_volume(&n("a")).await.expect("gone already");
    create(&pool, "a", 4).await;
    server.fault(
        "vol_destroy",
        Fault::Error(-303, "Unexpected exit code 5".into()),
    );
    let failed = pool.delete_volume(&n("a")).await;
    fails(
        failed,
        ErrorKind::Unavailable,
        "delete_volume",
        &["a", "exit code 5"],
    );
    let dependent = "Volume a on x has dependent clones and cannot be destroyed.";
    server.fault("vol_destroy", Fault::Error(-32602, dependent.into()));
    fails(
        pool.delete_volume(&n("a")).await,
        ErrorKind::Busy,
        "delete_volume",
        &["a"],
    );
    pool.delete_volume(&n("a")).await.expect("deleted");
    assert!(server.array().volumes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_deletion_does_not_meet_another_volume() {
    let server = Server::new().await;
    let mut config = server.config();
    config.timeout = Some(1);
    let pool = TargetdPool::open(config, Arc::new(Closed))
        .await
        .expect("open");
    create(&pool, "a", 4).await;
    let late = Arc::new(Notify::new());
    server.fault("vol_destroy", Fault::HangUntil(late.clone()));
    fails(
        pool.delete_volume(&n("a")).await,
        ErrorKind::TimedOut,
        "delete_volume",
        &["a"],
    );
    // This one is done, and the other may be yet.
    pool.delete_volume(&n("a")).await.expect("deleted");
    let made = pool.create_volume(&n("a"), thin(4)).await;
    fails(made, ErrorKind::Busy, "create_volume", &["a", "may do"]);
    create(&pool, "b", 4).await;
    let cloned = pool
        .clone_volume(&n("b"), &n("a"), Default::default())
        .await;
    fails(cloned, ErrorKind::Busy, "clone_volume", &["a"]);
    late.notify_one();
    tokio::time::sleep(Duration::from_millis(50)).await;
    late.notified().await;
    assert_eq!(server.array().volumes.keys().collect::<Vec<_>>(), ["b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_call_is_done_and_calling_again_converges() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    server.fault("vol_create", Fault::Delay(Duration::from_millis(300)));
    let volume = n("a");
    let dropped = pool.create_volume(&volume, thin(4));
    let late = tokio::time::timeout(Duration::from_millis(100), dropped).await;
    late.expect_err("it takes longer");
    create(&pool, "a", 4).await;
    assert_eq!(server.changes(), ["vol_create"]);
}
