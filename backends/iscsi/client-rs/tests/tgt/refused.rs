//! What the transport can't do is said beforehand, and refused before anything is sent.

use std::time::Duration;

use tokio::net::TcpListener;
use volmux_iscsi::transport::{Connector, Native};
use volmux_iscsi_client_rs::ClientRs;
use volmux_iscsi_initiator::{ChapAlgorithm, Credentials, Error, ErrorKind, Options};

use crate::server::Setup;
use crate::{MIB, scsi, within};

fn is_refused(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.reason().contains("transport=native"), "{error}");
    assert!(!error.sent());
}

fn options(listener: &TcpListener) -> Options {
    let portal = listener.local_addr().expect("an address").to_string();
    let mut options = Options::new(portal, "iqn.2026-01.org.example:me");
    options.target = Some("iqn.2026-01.org.example:target".into());
    options.chap = Some(Credentials::new("me", "my-secret"));
    options.login_timeout = Duration::from_secs(10);
    options
}

/// Whether somebody has connected.
async fn is_called(listener: &TcpListener) -> bool {
    let accepted = tokio::time::timeout(Duration::from_millis(300), listener.accept());
    accepted.await.is_ok()
}

#[tokio::test]
async fn nothing_is_sent_for_what_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    within(async {
        let mut mutual = options(&listener);
        mutual.mutual_chap = Some(Credentials::new("target", "other-secret"));
        let error = ClientRs.login(mutual).await.expect_err("mutual CHAP");
        is_refused(&error);
        assert!(error.reason().contains("mutual"), "{error}");

        let mut algorithms = options(&listener);
        algorithms.chap_algorithms = vec![ChapAlgorithm::Sha256];
        is_refused(&ClientRs.login(algorithms).await.expect_err("SHA-256"));

        let mut secret = options(&listener);
        secret.chap = Some(Credentials::new("me", [0xff, 0xfe, 0xfd]));
        is_refused(&ClientRs.login(secret).await.expect_err("no text"));

        let error = ClientRs.discover(&options(&listener)).await;
        is_refused(&error.expect_err("discovery"));

        let mut nameless = options(&listener);
        nameless.target = None;
        let error = ClientRs.login(nameless).await.expect_err("no target");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(!is_called(&listener).await, "somebody has connected");
    })
    .await;
}

/// Otherwise the test above proves nothing.
#[tokio::test]
async fn what_is_not_refused_is_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let options = options(&listener);
    let login = tokio::spawn(async move { ClientRs.login(options).await });
    let (connection, _) = within(listener.accept()).await.expect("a connection");
    drop(connection);
    let error = within(login)
        .await
        .expect("no panic")
        .expect_err("no target");
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
}

#[tokio::test]
async fn a_login_that_is_not_answered_ends_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mut options = options(&listener);
    options.login_timeout = Duration::from_millis(500);
    let error = within(ClientRs.login(options)).await.expect_err("silence");
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
}

#[tokio::test]
async fn a_target_that_negotiates_longer_is_refused() {
    // tgtd tells of segments that are not of the default length, and waits for another request.
    let setup = Setup::disk(MIB, 512).parameter("MaxRecvDataSegmentLength", "4608");
    let server = setup.start();
    within(async {
        let error = ClientRs
            .login(server.options(1))
            .await
            .expect_err("two requests");
        is_refused(&error);
        scsi::login(&Native, server.options(1)).await;
    })
    .await;
}

#[tokio::test]
async fn abilities_tell_what_is_refused() {
    let (native, other) = (Native.abilities(), ClientRs.abilities());
    assert!(native.discovery && native.mutual_chap && native.reset);
    assert!(!other.discovery && !other.mutual_chap && !other.reset);
    assert!(other.digests && other.reconnect);
    assert_eq!(
        (Native.name(), ClientRs.name()),
        ("native", "iscsi-client-rs")
    );
    let server = Setup::disk(MIB, 512).start();
    within(async {
        let session = scsi::login(&ClientRs, server.options(1)).await;
        let error = session.reset_lun(1).await.expect_err("no resets");
        is_refused(&error);
        assert_eq!(error.lun(), Some(1));
        let found = Native.discover(&server.options(1)).await.expect("targets");
        assert_eq!(Some(&found[0].name), server.options(1).target.as_ref());
    })
    .await;
}
