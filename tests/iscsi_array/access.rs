//! Who is let in.

use volmux::{Attachment, ErrorKind, OpenOptions};
use volmux_conformance::host::HostDisk;
use volmux_conformance::pattern;
use volmux_iscsi_initiator::{Credentials, ErrorKind as Initiator, Options, Session};

use super::*;

/// What somebody gets who says that he is `initiator`.
async fn log_in(
    attached: &Attachment,
    initiator: &Holder,
    chap: Option<Credentials>,
) -> Result<Session, Initiator> {
    let volmux::AttachTarget::Iscsi { portal, target, .. } = &attached.target else {
        panic!("not a logical unit: {attached:?}");
    };
    let mut options = Options::new(portal, initiator.as_str());
    options.target = Some(target.clone());
    options.chap = chap;
    Session::login(options).await.map_err(|error| error.kind())
}

#[test]
fn only_the_holder_is_let_in_and_only_with_the_secret() {
    let mut scene = Scene::new();
    let secret = scene.fs.path().join("secret");
    let other = scene.fs.path().join("other");
    std::fs::write(&secret, "canary-of-chap\n").expect("a secret");
    std::fs::write(&other, "canary-of-mutual\n").expect("a secret");
    scene.options = format!(
        "&chap_user=volmux&chap_file={}&mutual_user=array&mutual_file={}",
        secret.display(),
        other.display()
    );
    on(async {
        let pool = scene.pool().await;
        create(pool.as_ref(), "a", MIB).await;
        // volmux itself has to prove who it is as well.
        let device = writer(pool.as_ref(), "a").await;
        device.write_at(0, pattern(1, 4096)).await.expect("write");
        device.flush().await.expect("flush");
        drop(device);
        let attached = pool.attach_volume(&n("a"), writing("host")).await;
        let attached = attached.expect("attach");
        let chap = || Some(Credentials::new("volmux", "canary-of-chap"));
        let wrong = Some(Credentials::new("volmux", "canary-of-guess"));
        let refused = log_in(&attached, &host("stranger"), chap()).await;
        assert!(refused.is_err(), "another initiator");
        let refused = log_in(&attached, &host("host"), wrong).await;
        assert_eq!(refused.expect_err("a guess"), Initiator::Unauthenticated);
        let refused = log_in(&attached, &host("host"), None).await;
        assert!(refused.is_err(), "without a secret");
        let disk = HostDisk::open(&attached).await;
        assert_eq!(disk.read_all().await[..4096], pattern(1, 4096));
        disk.write_at_start(pattern(2, 4096)).await;

        // Somebody who is logged in is not detached.
        let error = pool.detach_volume(&n("a"), &host("host")).await;
        let error = error.expect_err("it is in use");
        assert_eq!(error.kind(), ErrorKind::Busy, "{}", told(&error));
        let sessions = error.get("sessions").expect("who it is");
        assert!(
            sessions.contains("org.volmux.test:host from 127."),
            "{sessions}"
        );
        disk.close().await;
        let detached = pool.detach_volume(&n("a"), &host("host")).await;
        detached.expect("nobody is logged in");
        let refused = log_in(&attached, &host("host"), chap()).await;
        assert!(refused.is_err(), "after the end");

        let debug = format!("{pool:?} {attached:?} {}", told(&error));
        assert!(!debug.contains("canary"), "{debug}");
    });
}

#[test]
fn the_target_that_cannot_prove_who_it_is_is_refused() {
    let mut scene = Scene::new();
    let secret = scene.fs.path().join("secret");
    std::fs::write(&secret, "canary-of-chap\n").expect("a secret");
    let store = format!("dir://{}?init=true", scene.root().display());
    let plain = scene.tgtd.url(ARRAY, &store);
    scene.options = format!("&chap_user=volmux&chap_file={}", secret.display());
    on(async {
        let pool = scene.pool().await;
        create(pool.as_ref(), "a", MIB).await;
        let attached = pool.attach_volume(&n("a"), writing("host")).await;
        let attached = attached.expect("attach");
        let mut options = {
            let volmux::AttachTarget::Iscsi { portal, target, .. } = &attached.target else {
                panic!("not a logical unit: {attached:?}");
            };
            let mut options = Options::new(portal, host("host").as_str());
            options.target = Some(target.clone());
            options
        };
        options.chap = Some(Credentials::new("volmux", "canary-of-chap"));
        options.mutual_chap = Some(Credentials::new("array", "canary-of-mutual"));
        let refused = Session::login(options).await.expect_err("it has no secret");
        assert_eq!(refused.kind(), Initiator::Unauthenticated);
        pool.detach_volume(&n("a"), &host("host"))
            .await
            .expect("detach");
        // Without secrets in its configuration an array asks for none.
        let open = volmux::registry().open(&plain).await.expect("it opens");
        let device = open.open_volume(&n("a"), OpenOptions::read_only()).await;
        device.expect("a session without CHAP");
    });
}

#[test]
fn holders_are_names_of_initiators() {
    let scene = Scene::new();
    on(async {
        let pool = scene.pool().await;
        create(pool.as_ref(), "a", MIB).await;
        let options = AttachOptions {
            holder: Holder::new("host-1").expect("a holder"),
            ..writing("x")
        };
        let error = pool.attach_volume(&n("a"), options).await;
        let error = error.expect_err("not an initiator's name");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(
            told(&error).contains("initiatorname.iscsi"),
            "{}",
            told(&error)
        );
        let volume = pool.volume(&n("a")).await.expect("volume");
        assert!(volume.attachments.is_empty(), "{volume:?}");
    });
}

#[test]
fn a_reader_and_a_writer_on_two_hosts_have_targets_of_their_own() {
    let scene = Scene::new();
    on(async {
        let pool = scene.pool().await;
        create(pool.as_ref(), "a", MIB).await;
        let attached = pool.attach_volume(&n("a"), writing("one")).await;
        let writer = HostDisk::open(&attached.expect("attach")).await;
        let reading = AttachOptions {
            access: Access::ReadOnly,
            ..writing("two")
        };
        let attached = pool.attach_volume(&n("a"), reading).await.expect("attach");
        let reader = HostDisk::open(&attached).await;
        writer.write_at_start(pattern(5, 4096)).await;
        assert_eq!(reader.read_all().await[..4096], pattern(5, 4096));
        let (a, s) = (n("a"), n("s"));
        let snapshot = pool.snapshot_volume(&a, &s, Default::default());
        snapshot.await.expect("a snapshot of what is in use");
        writer.write_at_start(pattern(6, 4096)).await;
        let device = pool.open_volume(&n("s"), OpenOptions::read_only()).await;
        let found = device.expect("open").read_at(0, 4096).await.expect("read");
        assert_eq!(found, pattern(5, 4096));
        writer.close().await;
        reader.close().await;
        for holder in ["one", "two"] {
            let detached = pool.detach_volume(&n("a"), &host(holder)).await;
            detached.expect("detach");
        }
        pool.delete_volume(&n("a")).await.expect("delete");
    });
}

#[test]
fn wrong_arrays_are_told() {
    let mut scene = Scene::new();
    on(async {
        let url = scene.url();
        let open = |url: String| async move { volmux::registry().open(&url).await };
        let error = open(url.replace("dir%3A", "memory%3A")).await;
        let error = error.expect_err("nobody can reach it");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{}", told(&error));
        let error = open(url.clone() + "&transport=pigeon").await;
        let error = error.expect_err("there is none");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(told(&error).contains("native"), "{}", told(&error));
        let error = open(url.clone() + "&chap_user=a&chap_file=/nonexistent").await;
        let error = error.expect_err("no secret");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        scene.tgtd.kill();
        let error = open(url).await.expect_err("tgtd is down");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", told(&error));
    });
}

#[test]
fn two_arrays_over_one_store_take_nothing_from_each_other() {
    let scene = Scene::new();
    on(async {
        let pool = scene.pool().await;
        create(pool.as_ref(), "a", MIB).await;
        let device = pool.open_volume(&n("a"), OpenOptions::read_write()).await;
        let device = device.expect("open");
        let second = scene.url().replacen(ARRAY, &format!("{ARRAY}-2"), 1);
        let second = volmux::registry().open(&second).await.expect("it opens");
        for take_over in [false, true] {
            let options = OpenOptions {
                take_over,
                ..OpenOptions::read_write()
            };
            let error = second.open_volume(&n("a"), options).await;
            let error = error.expect_err("it is open by way of the first");
            assert_eq!(error.kind(), ErrorKind::Busy, "{}", told(&error));
            assert!(told(&error).contains("volmux.open"), "{}", told(&error));
        }
        let report = second.audit(volmux::AuditOptions { repair: true }).await;
        report.expect("an audit");
        device
            .write_at(0, pattern(1, 4096))
            .await
            .expect("it is still open");
        device.flush().await.expect("flush");
    });
}
