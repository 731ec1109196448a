//! Attached volumes are logged in to, read and written, over a tgtd.

use bytes::Bytes;
use volmux_core::{BlockDevice, ExtentQuery, OpenOptions, ResizeOptions};
use volmux_iscsi_initiator as initiator;

use super::*;
use crate::opener::{Device, Opener, log_in, reserve};

async fn attached(pool: &TargetdPool, to: &str) -> Attachment {
    let attached = pool
        .attach_volume(&n("a"), attach(to, Access::ReadWrite))
        .await;
    attached.expect("attached")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_attached_is_the_volume() {
    let server = Server::with_target().await;
    let pool = pool(&server).await;
    create(&pool, "a", 8).await;
    reserve(&server, ONE, 5);
    let attachment = attached(&pool, ONE).await;
    assert_eq!(lun(&attachment), 5);
    let device = Device::open(pool.clone(), &attachment)
        .await
        .expect("logged in");
    assert_eq!(device.size(), 8 * MIB);
    let data = Bytes::from(vec![7; MIB as usize]);
    device
        .write_at(3 * MIB, data.clone())
        .await
        .expect("written");
    device.flush().await.expect("flushed");
    assert_eq!(
        device.read_at(3 * MIB, MIB as usize).await.expect("read"),
        data
    );
    let file = {
        let array = server.array();
        array.tgt.as_ref().expect("a target").file("a")
    };
    let stored = std::fs::read(file).expect("the file");
    assert!(stored[3 * MIB as usize..4 * MIB as usize] == data[..]);
    assert!(stored[..3 * MIB as usize].iter().all(|byte| *byte == 0));
    // The volume grows while it is attached.
    let grow = ResizeOptions::grow(ByteSize::mib(16));
    let grown = pool.resize_volume(&n("a"), grow).await.expect("grown");
    assert_eq!(grown.virtual_size.bytes(), 16 * MIB);
    assert_eq!(grown.attachments, [attach(ONE, Access::ReadWrite)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_detached_reaches_nothing_any_more() {
    let server = Server::with_target().await;
    let pool = pool(&server).await;
    create(&pool, "a", 4).await;
    reserve(&server, ONE, 1);
    reserve(&server, TWO, 2);
    let attachment = attached(&pool, ONE).await;
    let (session, lun) = log_in(&attachment).await.expect("logged in");
    let mut stranger = attachment.clone();
    stranger.holder = holder(TWO);
    let error = log_in(&stranger).await.expect_err("not let in");
    assert_eq!(error.kind(), initiator::ErrorKind::NotFound, "{error}");
    pool.detach_volume(&n("a"), &holder(ONE))
        .await
        .expect("detached");
    let test_unit_ready = initiator::Command {
        cdb: vec![0; 6],
        timeout: Some(std::time::Duration::from_secs(3)),
        ..initiator::Command::default()
    };
    session
        .execute(lun, test_unit_ready)
        .await
        .expect_err("no more");
    log_in(&attachment).await.expect_err("no more");
    log_in(&attached(&pool, TWO).await)
        .await
        .expect("the next one is");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_prove_who_they_are() {
    let server = Server::with_target().await;
    let mut config = server.config();
    config.chap_user = Some("host".into());
    config.chap_secret_file = Some(server.secret("chap", "canary-secret-1"));
    config.mutual_chap_user = Some("array".into());
    config.mutual_chap_secret_file = Some(server.secret("mutual", "canary-secret-2"));
    let pool = TargetdPool::open(config, Arc::new(Closed))
        .await
        .expect("open");
    create(&pool, "a", 4).await;
    reserve(&server, ONE, 1);
    let attachment = attached(&pool, ONE).await;
    log_in(&attachment).await.expect("logged in");
    for (name, secret) in [("chap", "canary-secret-x"), ("mutual", "canary-secret-y")] {
        server.secret(name, secret);
        let error = log_in(&attachment).await.expect_err("a wrong secret");
        assert_eq!(
            error.kind(),
            initiator::ErrorKind::Unauthenticated,
            "{name}: {error}"
        );
        server.secret("chap", "canary-secret-1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_opened_by_one_writer() {
    let server = Arc::new(Server::with_target().await);
    let mut config = server.config();
    config.readers_from = Some(128);
    let pool = TargetdPool::open(config, Opener::new(&server))
        .await
        .expect("open");
    create(&pool, "a", 4).await;
    let a = n("a");
    let writer = pool
        .open_volume(&a, OpenOptions::read_write())
        .await
        .expect("opened");
    let second = pool.open_volume(&a, OpenOptions::read_write()).await;
    fails(second, ErrorKind::Busy, "attach_volume", &["a"]);
    let shown = pool.volume(&a).await.expect("there").attachments;
    assert_eq!(shown.len(), 1);
    fails(
        pool.delete_volume(&a).await,
        ErrorKind::Busy,
        "delete_volume",
        &["a"],
    );
    writer
        .write_at(0, Bytes::from(vec![1; 4096]))
        .await
        .expect("written");
    let extents = pool.extents(&a, ExtentQuery::allocated()).await;
    let extents = extents.expect("extents");
    // The reader that tells them is there for as long as they are read.
    assert_eq!(pool.volume(&a).await.expect("there").attachments.len(), 2);
    let extents = extents.collect_joined().await.expect("extents");
    assert_eq!(
        extents.iter().map(|extent| extent.length).sum::<u64>(),
        4 * MIB
    );
    drop(writer);
    for _ in 0..500 {
        if pool.delete_volume(&a).await.is_ok() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("it is still attached");
}
