//! How attachments end: by detaching, and by failing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::*;
use crate::attaching::attached;
use crate::server::Fault;

const WRITE: Access = Access::ReadWrite;

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_that_fails_leaves_nothing() {
    let server = Server::new().await;
    let mut config = server.config();
    config.chap_user = Some("host".into());
    config.chap_secret_file = Some(server.secret("chap", "canary-secret-1"));
    let pool = TargetdPool::open(config, Arc::new(Closed))
        .await
        .expect("open");
    create(&pool, "a", 4).await;
    server.fault(
        "initiator_set_auth",
        Fault::Error(-1, "RTSLibError: no".into()),
    );
    let failed = attached(&pool, "a", ONE, WRITE).await;
    fails(
        failed,
        ErrorKind::Unavailable,
        "attach_volume",
        &["a", "RTSLibError"],
    );
    assert!(server.calls("export_create").is_empty());
    for fault in [
        Fault::DoAndClose,
        Fault::CloseAfterRequest,
        Fault::Error(-1, "no".into()),
    ] {
        server.fault("export_create", fault);
        let failed = attached(&pool, "a", ONE, WRITE).await;
        fails(
            failed,
            ErrorKind::Unavailable,
            "attach_volume",
            &["a", "export_create"],
        );
        assert!(server.array().exports.is_empty());
    }
    // The volume went away after it was looked up.
    server.fault(
        "export_create",
        Fault::First(|array| {
            array.volumes.clear();
        }),
    );
    let failed = attached(&pool, "a", ONE, WRITE).await;
    fails(failed, ErrorKind::NotFound, "attach_volume", &["a"]);
    create(&pool, "a", 4).await;
    // The export did.
    server.fault("export_create", Fault::Then(|array| array.exports.clear()));
    let failed = attached(&pool, "a", ONE, WRITE).await;
    fails(
        failed,
        ErrorKind::Unavailable,
        "attach_volume",
        &["a", "gone already"],
    );
    attached(&pool, "a", ONE, WRITE).await.expect("attached");
    assert!(server.no_fault_left());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_back_is_named() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    create(&pool, "a", 4).await;
    server.fault(
        "export_create",
        Fault::First(|array| array.export(TWO, 3, "a")),
    );
    server.fault("export_destroy", Fault::Error(-1, "RTSLibError: no".into()));
    let lost = attached(&pool, "a", ONE, WRITE).await;
    let error = fails(lost, ErrorKind::Busy, "attach_volume", &["a", TWO]);
    assert!(
        error
            .get("left_behind")
            .is_some_and(|left| left.contains(ONE)),
        "{error}"
    );
    // Both have it now, and nobody is told that it is his.
    for initiator in [ONE, TWO] {
        let again = attached(&pool, "a", initiator, WRITE).await;
        fails(again, ErrorKind::Busy, "attach_volume", &["a"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn detaching_ends_every_export_to_the_holder() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    create(&pool, "a", 4).await;
    create(&pool, "b", 4).await;
    {
        let mut array = server.array();
        for lun in [3, 9] {
            array.export(ONE, lun, "a");
        }
        array.export(ONE, 4, "b");
        array.export(TWO, 3, "a");
    }
    pool.detach_volume(&n("a"), &holder(ONE))
        .await
        .expect("detached");
    let left: Vec<(String, String)> = server
        .array()
        .exports
        .iter()
        .map(|e| (e.initiator.clone(), e.volume.clone()))
        .collect();
    assert_eq!(left, [(ONE.into(), "b".into()), (TWO.into(), "a".into())]);
    // Gone between looking and taking away.
    server.fault(
        "export_destroy",
        Fault::First(|array| array.exports.clear()),
    );
    pool.detach_volume(&n("a"), &holder(TWO))
        .await
        .expect("detached");
    attached(&pool, "a", ONE, WRITE).await.expect("attached");
    server.fault("export_destroy", Fault::Error(-1, "RTSLibError: no".into()));
    let failed = pool.detach_volume(&n("a"), &holder(ONE)).await;
    fails(failed, ErrorKind::Unavailable, "detach_volume", &["a", ONE]);
    server.fault("export_destroy", Fault::DoAndClose);
    pool.detach_volume(&n("a"), &holder(ONE))
        .await
        .expect("it is gone");
    attached(&pool, "a", ONE, WRITE).await.expect("attached");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_detaching_does_not_meet_a_new_attachment() {
    let server = Server::new().await;
    let mut config = server.config();
    config.timeout = Some(1);
    let pool = TargetdPool::open(config, Arc::new(Closed))
        .await
        .expect("open");
    create(&pool, "a", 4).await;
    attached(&pool, "a", ONE, WRITE).await.expect("attached");
    let late = Arc::new(Notify::new());
    server.fault("export_destroy", Fault::HangUntil(late.clone()));
    let failed = pool.detach_volume(&n("a"), &holder(ONE)).await;
    fails(failed, ErrorKind::TimedOut, "detach_volume", &["a", ONE]);
    fails(
        attached(&pool, "a", ONE, WRITE).await,
        ErrorKind::Busy,
        "attach_volume",
        &["may do"],
    );
    pool.detach_volume(&n("a"), &holder(ONE))
        .await
        .expect("detached");
    fails(
        attached(&pool, "a", TWO, WRITE).await,
        ErrorKind::Busy,
        "attach_volume",
        &["may do"],
    );
    late.notify_one();
    tokio::time::sleep(Duration::from_millis(50)).await;
    late.notified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_exports_that_fails_is_told_with_its_cause() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    create(&pool, "a", 4).await;
    for _ in 0..2 {
        server.fault(
            "export_list",
            Fault::Error(-1, "AttributeError: 'NoneType'".into()),
        );
    }
    let error = fails(
        pool.volume(&n("a")).await,
        ErrorKind::Unavailable,
        "volume",
        &["a"],
    );
    assert!(
        error
            .context()
            .any(|(key, text)| key == "help" && text.contains("targetcli"))
    );
    let deleted = pool.delete_volume(&n("a")).await;
    fails(
        deleted,
        ErrorKind::Unavailable,
        "delete_volume",
        &["NoneType"],
    );
    assert!(server.array().volumes.contains_key("a"));
}
