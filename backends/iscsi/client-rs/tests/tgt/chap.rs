//! Who proves what to whom.

use volmux_iscsi::transport::Connector;
use volmux_iscsi_initiator::{Credentials, ErrorKind, Options};

use crate::server::{STRANGER, Setup};
use crate::{MIB, connectors, scsi, within};

fn own() -> Credentials {
    Credentials::new("initiator", "initiator-secret")
}

fn wrong() -> Credentials {
    Credentials::new("initiator", "guessed-secret")
}

async fn works(connector: &dyn Connector, options: Options) {
    let session = scsi::login(connector, options).await;
    scsi::good(&*session, 1, scsi::read(0, 1, 512)).await;
    session.logout().await.expect("logout");
}

async fn fails(connector: &dyn Connector, options: Options, kind: ErrorKind, why: &str) {
    let place = (options.portal.clone(), options.target.clone());
    let error = connector.login(options).await.expect_err(why);
    assert_eq!(error.kind(), kind, "{}: {why}: {error}", connector.name());
    let told = (error.portal(), error.target());
    assert_eq!(told, (place.0.as_str(), place.1.as_deref()), "{error}");
    for secret in [own(), wrong()].map(|credentials| credentials.secret) {
        let secret = String::from_utf8(secret.to_vec()).expect("text");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(&secret), "a secret is shown: {error}");
    }
}

#[tokio::test]
async fn a_target_may_want_to_know_who_logs_in() {
    for connector in connectors() {
        let connector = &*connector;
        let server = Setup::disk(MIB, 512).incoming(&own()).start();
        within(async {
            use ErrorKind::Unauthenticated;
            let mut options = server.options(1);
            fails(connector, options.clone(), Unauthenticated, "without CHAP").await;
            options.chap = Some(wrong());
            fails(connector, options.clone(), Unauthenticated, "wrong secret").await;
            options.chap = Some(Credentials::new("nobody", own().secret.to_vec()));
            fails(connector, options.clone(), Unauthenticated, "unknown name").await;
            options.chap = Some(own());
            works(connector, options).await;
        })
        .await;
    }
}

#[tokio::test]
async fn secrets_may_have_any_usual_length() {
    for length in [1, 12, 16, 100] {
        let account = Credentials::new("a", "s".repeat(length));
        let server = Setup::disk(MIB, 512).incoming(&account).start();
        for connector in connectors() {
            let mut options = server.options(1);
            options.chap = Some(account.clone());
            within(works(&*connector, options)).await;
        }
    }
}

#[tokio::test]
async fn a_target_that_does_not_ask_is_not_the_one_that_was_meant() {
    let server = Setup::disk(MIB, 512).start();
    for connector in connectors() {
        let mut options = server.options(1);
        options.chap = Some(own());
        let kind = ErrorKind::Unauthenticated;
        within(fails(&*connector, options, kind, "CHAP unwanted")).await;
    }
}

#[tokio::test]
async fn who_is_not_let_in_learns_why() {
    let server = Setup::new()
        .target(Some(crate::server::INITIATOR))
        .lun(MIB, 512);
    let server = server.start();
    for connector in connectors() {
        let connector = &*connector;
        within(async {
            let mut options = server.options(1);
            options.target = Some("iqn.2026-01.org.example:nobody".into());
            fails(connector, options, ErrorKind::NotFound, "no such target").await;
            let mut options = server.options(1);
            options.portal = server.closed_portal();
            fails(connector, options, ErrorKind::Lost, "nobody listens").await;
            let mut options = server.options(1);
            options.initiator = STRANGER.into();
            // tgtd says of what others may use that it is not there.
            fails(connector, options, ErrorKind::NotFound, "not for everybody").await;
            works(connector, server.options(1)).await;
        })
        .await;
    }
}
