//! Attachments: who gets in beside whom, under which number, and how they end.

use std::sync::Arc;

use volmux_core::{AttachTarget, ChapReference};

use super::*;
use crate::server::Fault;
use crate::tgt::TARGET;

const WRITE: Access = Access::ReadWrite;
const READ: Access = Access::ReadOnly;

async fn with_readers(server: &Server) -> Arc<TargetdPool> {
    let mut config = server.config();
    config.readers_from = Some(128);
    let pool = TargetdPool::open(config, Arc::new(Closed)).await;
    pool.expect("it opens")
}

pub async fn attached(
    pool: &TargetdPool,
    volume: &str,
    to: &str,
    access: Access,
) -> Result<Attachment> {
    pool.attach_volume(&n(volume), attach(to, access)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_tells_where_the_volume_is() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    let made = create(&pool, "a", 4).await;
    let attachment = attached(&pool, "a", ONE, WRITE).await.expect("attached");
    let uuid = server.array().volumes["a"].1.clone();
    assert_eq!((&attachment.volume, attachment.id), (&n("a"), made.id));
    assert_eq!(
        (attachment.holder.as_str(), attachment.access),
        (ONE, WRITE)
    );
    let expected = AttachTarget::Iscsi {
        portal: "127.0.0.1:3260".into(),
        target: TARGET.into(),
        lun: 0,
        serial: uuid,
        chap: None,
        mutual_chap: None,
    };
    assert_eq!(attachment.target, expected);
    let found = pool.volume(&n("a")).await.expect("there");
    assert_eq!(found.attachments, [attach(ONE, WRITE)]);
    assert_eq!(
        attached(&pool, "a", ONE, WRITE).await.expect("again"),
        attachment
    );
    assert_eq!(server.calls("export_create").len(), 1);
    assert!(server.calls("initiator_set_auth").is_empty());
    let deleted = pool.delete_volume(&n("a")).await;
    fails(deleted, ErrorKind::Busy, "delete_volume", &["a", ONE]);
    for _ in 0..2 {
        pool.detach_volume(&n("a"), &holder(ONE))
            .await
            .expect("detached");
    }
    // targetd leaves an initiator behind if it is asked for an export that is not there.
    assert_eq!(server.calls("export_destroy").len(), 1);
    pool.delete_volume(&n("a")).await.expect("deleted");
    pool.detach_volume(&n("a"), &holder(ONE))
        .await
        .expect("nothing to do");
    let missing = attached(&pool, "a", ONE, WRITE).await;
    fails(missing, ErrorKind::NotFound, "attach_volume", &["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn holders_are_initiators() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    create(&pool, "a", 4).await;
    for name in ["host-1", "iqn.2026-01.org.example:UPPER", "iqn.x", "eui.1"] {
        let wrong = attached(&pool, "a", name, WRITE).await;
        fails(wrong, ErrorKind::InvalidInput, "attach_volume", &[name]);
        let wrong = pool.detach_volume(&n("a"), &holder(name)).await;
        fails(wrong, ErrorKind::InvalidInput, "detach_volume", &[name]);
    }
    let shared = AttachOptions {
        sharing: Sharing::Shared,
        ..attach(ONE, WRITE)
    };
    let wrong = pool.attach_volume(&n("a"), shared).await;
    fails(wrong, ErrorKind::Unsupported, "attach_volume", &["a"]);
    for name in ["eui.0123456789abcdef", "naa.0123456789abcdef"] {
        attached(&pool, "a", name, WRITE).await.expect("attached");
        pool.detach_volume(&n("a"), &holder(name))
            .await
            .expect("detached");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_one_writer_and_every_export_is_one() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    create(&pool, "a", 4).await;
    attached(&pool, "a", ONE, READ).await.expect("attached");
    for access in [READ, WRITE] {
        let second = attached(&pool, "a", TWO, access).await;
        fails(second, ErrorKind::Busy, "attach_volume", &["a", ONE]);
    }
    assert_eq!(
        lun(&attached(&pool, "a", ONE, WRITE).await.expect("alone")),
        0
    );
    pool.detach_volume(&n("a"), &holder(TWO))
        .await
        .expect("nothing to do");
    assert_eq!(server.array().exports.len(), 1);
    pool.detach_volume(&n("a"), &holder(ONE))
        .await
        .expect("detached");
    // Made by another tool, for a name in whatever case.
    server
        .array()
        .export("iqn.2026-01.org.example:stranger", 7, "a");
    let second = attached(&pool, "a", TWO, WRITE).await;
    fails(second, ErrorKind::Busy, "attach_volume", &["a", "stranger"]);
    assert_eq!(server.calls("export_create").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_go_beside_a_writer_where_they_can_be_told() {
    let server = Server::new().await;
    let pool = with_readers(&server).await;
    create(&pool, "a", 4).await;
    let reader = "iqn.2026-01.org.example:reader";
    assert_eq!(
        lun(&attached(&pool, "a", reader, READ).await.expect("reader")),
        128
    );
    assert_eq!(
        lun(&attached(&pool, "a", ONE, WRITE).await.expect("writer")),
        0
    );
    assert_eq!(
        lun(&attached(&pool, "a", ONE, WRITE).await.expect("again")),
        0
    );
    let second = attached(&pool, "a", TWO, WRITE).await;
    fails(second, ErrorKind::Busy, "attach_volume", &["a", ONE]);
    assert_eq!(
        lun(&attached(&pool, "a", TWO, READ)
            .await
            .expect("a late reader")),
        128
    );
    let found = pool.volume(&n("a")).await.expect("there").attachments;
    assert_eq!(
        found,
        [attach(reader, READ), attach(ONE, WRITE), attach(TWO, READ)]
    );
    // A reader does not become a writer by itself.
    pool.detach_volume(&n("a"), &holder(ONE))
        .await
        .expect("detached");
    let more = attached(&pool, "a", TWO, WRITE).await;
    fails(
        more,
        ErrorKind::Busy,
        "attach_volume",
        &["a", "detach it first"],
    );
    pool.detach_volume(&n("a"), &holder(TWO))
        .await
        .expect("detached");
    attached(&pool, "a", TWO, WRITE).await.expect("alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_come_together_at_most_one_stays() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    create(&pool, "a", 4).await;
    // The other one came after we looked, and before our export.
    server.fault(
        "export_create",
        Fault::First(|array| array.export(TWO, 3, "a")),
    );
    let lost = attached(&pool, "a", ONE, WRITE).await;
    fails(lost, ErrorKind::Busy, "attach_volume", &["a", TWO]);
    assert_eq!(server.array().exports.len(), 1);
    server.array().exports.clear();
    // It came after our export: then it sees us, and goes.
    server.fault(
        "export_create",
        Fault::Then(|array| array.export(TWO, 3, "a")),
    );
    fails(
        attached(&pool, "a", ONE, WRITE).await,
        ErrorKind::Busy,
        "attach_volume",
        &[TWO],
    );
    server.array().exports.clear();
    // Two pools, as two processes have them.
    let other = super::pool(&server).await;
    for round in 0..20 {
        let both = tokio::join!(
            attached(&pool, "a", ONE, WRITE),
            attached(&other, "a", TWO, WRITE)
        );
        let won = [both.0, both.1].into_iter().filter(Result::is_ok).count();
        assert_eq!(server.array().exports.len(), won, "round {round}");
        assert!(won <= 1, "round {round}");
        for initiator in [ONE, TWO] {
            pool.detach_volume(&n("a"), &holder(initiator))
                .await
                .expect("detached");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_free_ones_of_the_initiator() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    for name in ["a", "b", "c"] {
        create(&pool, name, 4).await;
    }
    // In another pool, by another tool.
    server.array().elsewhere.push((ONE.into(), 0));
    assert_eq!(lun(&attached(&pool, "a", ONE, WRITE).await.expect("a")), 1);
    assert_eq!(lun(&attached(&pool, "b", ONE, WRITE).await.expect("b")), 2);
    assert_eq!(lun(&attached(&pool, "c", TWO, WRITE).await.expect("c")), 0);
    for name in ["a", "c"] {
        for initiator in [ONE, TWO] {
            pool.detach_volume(&n(name), &holder(initiator))
                .await
                .expect("detached");
        }
    }
    // Taken between looking and making.
    server.fault(
        "export_create",
        Fault::First(|array| array.elsewhere.push((ONE.into(), 1))),
    );
    assert_eq!(lun(&attached(&pool, "c", ONE, WRITE).await.expect("c")), 3);
    server.array().elsewhere = (0..=255).map(|lun| (TWO.into(), lun)).collect();
    let full = attached(&pool, "a", TWO, WRITE).await;
    fails(full, ErrorKind::NoSpace, "attach_volume", &["a", TWO]);
    // Many at once get one each.
    server.array().elsewhere.clear();
    let names: Vec<String> = (0..8).map(|i| format!("m{i}")).collect();
    for name in &names {
        create(&pool, name, 4).await;
    }
    let all = names.iter().map(|name| attached(&pool, name, TWO, WRITE));
    let all = futures::future::join_all(all).await;
    let mut luns: Vec<u64> = all
        .into_iter()
        .map(|a| lun(&a.expect("attached")))
        .collect();
    luns.sort_unstable();
    assert_eq!(luns, (0..8).collect::<Vec<u64>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn chap_is_set_before_the_unit_is_there_and_after() {
    let server = Server::new().await;
    let mut config = server.config();
    config.chap_user = Some("host".into());
    config.chap_secret_file = Some(server.secret("chap", "canary-secret-1"));
    config.mutual_chap_user = Some("array".into());
    config.mutual_chap_secret_file = Some(server.secret("mutual", "canary-secret-2"));
    let pool = TargetdPool::open(config.clone(), Arc::new(Closed))
        .await
        .expect("open");
    create(&pool, "a", 4).await;
    let attachment = attached(&pool, "a", ONE, WRITE).await.expect("attached");
    let set = ["initiator_set_auth", "export_create", "initiator_set_auth"];
    assert_eq!(server.changes()[1..], set);
    let AttachTarget::Iscsi {
        chap, mutual_chap, ..
    } = attachment.target
    else {
        panic!("{attachment:?}");
    };
    let reference = |user: &str, secret| {
        Some(ChapReference {
            user: user.into(),
            secret,
        })
    };
    assert_eq!(
        chap,
        reference("host", config.chap_secret_file.expect("a path"))
    );
    assert_eq!(
        mutual_chap,
        reference("array", config.mutual_chap_secret_file.expect("a path"))
    );
    let auth = server.array().auth[ONE].clone();
    assert_eq!(
        (&auth["in_user"], &auth["in_pass"]),
        (&"host".into(), &"canary-secret-1".into())
    );
    assert_eq!(
        (&auth["out_user"], &auth["out_pass"]),
        (&"array".into(), &"canary-secret-2".into())
    );
    // The last volume of the initiator is taken away meanwhile, and with it its secret.
    pool.detach_volume(&n("a"), &holder(ONE))
        .await
        .expect("detached");
    server.fault("export_create", Fault::First(|array| array.auth.clear()));
    attached(&pool, "a", ONE, WRITE).await.expect("attached");
    assert!(server.array().auth.contains_key(ONE));
}
