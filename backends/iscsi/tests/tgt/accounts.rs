//! Who proves what to whom.

use std::path::Path;

use volmux_core::ErrorKind;
use volmux_iscsi::control::{Export, TargetControl};
use volmux_iscsi_initiator::{Credentials, ErrorKind as Refusal, Options, Session};

use crate::scsi;
use crate::server::Server;
use crate::{MIB, ONE, OP, TARGET, export, within};

const OTHER: &str = "iqn.2026-01.org.example:other";

fn own() -> Credentials {
    Credentials::new("initiator", "initiator-secret")
}

fn theirs() -> Credentials {
    Credentials::new("target", "secret-of,target=1")
}

fn with(path: &Path, chap: Option<Credentials>, mutual_chap: Option<Credentials>) -> Export {
    Export {
        chap,
        mutual_chap,
        ..export(path, MIB)
    }
}

fn options(server: &Server, chap: Option<Credentials>, mutual: Option<Credentials>) -> Options {
    let mut options = server.options(TARGET, ONE);
    (options.chap, options.mutual_chap) = (chap, mutual);
    options
}

async fn works(server: &Server, chap: Option<Credentials>, mutual: Option<Credentials>) {
    let session = scsi::login(options(server, chap, mutual)).await;
    scsi::good(&session, scsi::read(0, 1)).await;
    session.logout().await.expect("logout");
}

async fn refused(server: &Server, chap: Option<Credentials>, mutual: Option<Credentials>) {
    let error = Session::login(options(server, chap, mutual)).await;
    let error = error.expect_err("a login");
    assert_eq!(error.kind(), Refusal::Unauthenticated, "{error}");
}

/// The accounts that tgtd has, but for the neighbours of others.
fn accounts(server: &Server) -> Vec<String> {
    let shown = server.admin("--mode account --op show");
    let mut names: Vec<String> = shown
        .lines()
        .skip(1)
        .map(|line| line.trim().into())
        .collect();
    let all = names.len();
    names.retain(|name| !name.starts_with("volmux-mark:"));
    assert_eq!(all, 2 * names.len(), "one neighbour each: {shown}");
    names.sort();
    names
}

#[tokio::test]
async fn initiators_and_targets_prove_who_they_are() {
    let server = Server::start();
    let control = server.control();
    let path = server.file("disk", MIB);
    within(async {
        control
            .export(OP, &with(&path, Some(own()), None))
            .await
            .expect("CHAP");
        works(&server, Some(own()), None).await;
        refused(&server, None, None).await;
        let guessed = Credentials::new(own().name, "guessed-secret");
        refused(&server, Some(guessed.clone()), None).await;
        refused(&server, Some(own()), Some(theirs())).await;
        control
            .export(OP, &with(&path, Some(own()), Some(theirs())))
            .await
            .expect("both ways");
        works(&server, Some(own()), Some(theirs())).await;
        refused(&server, Some(own()), Some(guessed)).await;
        assert_eq!(accounts(&server), ["initiator", "target"]);
        control
            .export(OP, &with(&path, None, None))
            .await
            .expect("no CHAP");
        works(&server, None, None).await;
        control.unexport(OP, TARGET).await.expect("it goes");
        assert_eq!(accounts(&server), [""; 0]);
    })
    .await;
}

#[tokio::test]
async fn a_session_is_kept_where_nothing_changes() {
    let server = Server::start();
    let control = server.control();
    let path = server.file("disk", MIB);
    within(async {
        let export = with(&path, Some(own()), Some(theirs()));
        control.export(OP, &export).await.expect("both ways");
        let session = scsi::login(options(&server, Some(own()), Some(theirs()))).await;
        // Another process knows as much.
        server
            .control()
            .export(OP, &export)
            .await
            .expect("the same");
        scsi::good(&session, scsi::read(0, 1)).await;
        assert_eq!(session.nexus(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_new_secret_takes_the_place_of_the_old_one() {
    let server = Server::start();
    let control = server.control();
    let path = server.file("disk", MIB);
    let new = Credentials::new(own().name, "another-secret");
    within(async {
        control
            .export(OP, &with(&path, Some(own()), None))
            .await
            .expect("the old one");
        control
            .export(OP, &with(&path, Some(new.clone()), None))
            .await
            .expect("the new one");
        works(&server, Some(new.clone()), None).await;
        refused(&server, Some(own()), None).await;
        assert_eq!(accounts(&server), ["initiator"]);
        // One that others need is left as it is, and so is the target.
        let mut other = with(&server.file("other", MIB), Some(new.clone()), None);
        other.target = OTHER.into();
        control
            .export(OP, &other)
            .await
            .expect("a second one with it");
        let error = control.export(OP, &with(&path, Some(own()), None)).await;
        let error = error.expect_err("another secret");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        assert!(!format!("{error:?}").contains("secret-"), "{error:?}");
        works(&server, Some(new.clone()), None).await;
        control.unexport(OP, TARGET).await.expect("it goes");
        assert_eq!(accounts(&server), ["initiator"], "the other one needs it");
        control
            .export(OP, &with(&path, Some(new.clone()), None))
            .await
            .expect("again");
        works(&server, Some(new), None).await;
        control.unexport(OP, OTHER).await.expect("it goes");
        control.unexport(OP, TARGET).await.expect("it goes");
        assert_eq!(accounts(&server), [""; 0]);
    })
    .await;
}

/// What a process leaves that is killed meanwhile, and what administrators do.
#[tokio::test]
async fn accounts_are_put_right_whatever_there_is() {
    let server = Server::start();
    let control = server.control();
    let path = server.file("disk", MIB);
    let mark = "volmux-mark:initiator:0123456789abcdef01234567";
    let account = |name: &str, secret: &str| {
        format!("--mode account --op new --user {name} --password {secret}")
    };
    let states = [
        vec![account("initiator", "unknown-secret")],
        vec![account(mark, "nothing")],
        vec![
            account(mark, "nothing"),
            account("initiator", "unknown-secret"),
        ],
        vec![
            account("initiator", "unknown-secret"),
            format!("--mode target --op new --tid 7 --targetname {TARGET}"),
            "--mode account --op bind --user initiator --tid 7".into(),
        ],
        vec![
            account("a", "unknown-secret"),
            account("b", "unknown-secret"),
            format!("--mode target --op new --tid 7 --targetname {TARGET}"),
            "--mode account --op bind --user a --tid 7".into(),
            "--mode account --op bind --user b --tid 7".into(),
            "--mode account --op bind --user a --tid 7 --outgoing".into(),
        ],
    ];
    within(async {
        for state in states {
            for step in &state {
                server.admin(step);
            }
            let export = with(&path, Some(own()), None);
            control
                .export(OP, &export)
                .await
                .unwrap_or_else(|e| panic!("{state:?}: {e}"));
            works(&server, Some(own()), None).await;
            refused(&server, None, None).await;
            control.unexport(OP, TARGET).await.expect("it goes");
            let shown = server.admin("--mode account --op show");
            assert!(!shown.contains("initiator"), "{shown}");
        }
    })
    .await;
}

#[tokio::test]
async fn accounts_of_others_are_left_alone() {
    let server = Server::start();
    let control = server.control();
    let path = server.file("disk", MIB);
    within(async {
        server.admin("--mode account --op new --user initiator --password their-secret");
        server.admin("--mode account --op bind --user initiator");
        let export = with(&path, Some(own()), None);
        let error = control
            .export(OP, &export)
            .await
            .expect_err("discovery needs it");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        server.admin("--mode account --op unbind --user initiator");
        server.admin("--mode target --op new --tid 7 --targetname iqn.2026-01.org.example:theirs");
        server.admin("--mode account --op bind --user initiator --tid 7");
        let error = control
            .export(OP, &export)
            .await
            .expect_err("a target needs it");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        assert!(error.to_string().contains("example:theirs"), "{error}");
        assert_eq!(control.list(OP, TARGET).await.expect("a list"), []);
        control.unexport(OP, TARGET).await.expect("there is none");
        assert!(
            server
                .admin("--mode account --op show")
                .contains("initiator")
        );
    })
    .await;
}
