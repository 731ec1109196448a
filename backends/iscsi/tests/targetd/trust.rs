//! Whom the client trusts, and what it does when the service is not there.

use std::time::Duration;

use tokio::net::TcpListener;
use volmux_core::Error;
use volmux_iscsi::targetd::TargetdConfig;

use super::*;
use crate::certificates::Certificates;
use crate::server::{Fault, PASSWORD};

async fn refused(config: TargetdConfig, kind: ErrorKind) -> Error {
    let opened = TargetdPool::open(config, Arc::new(Closed)).await;
    fails(opened, kind, "open_pool", &["vg/pool"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_the_right_certificate_is_trusted() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    assert_eq!(
        pool.to_string(),
        format!("targetd://localhost:{}/vg/pool", server.port())
    );
    assert_eq!(server.calls("pool_list").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_authority_is_refused_and_gets_no_password() {
    let server = Server::new().await;
    let other = tempfile::tempdir().expect("a directory");
    let mut config = server.config();
    config.ca_file = Some(Certificates::new(other.path(), &["localhost"]).ca_file());
    let error = refused(config.clone(), ErrorKind::Unauthenticated).await;
    assert_eq!(error.get("method"), Some("pool_list"));
    assert!(
        error
            .get("help")
            .is_some_and(|help| help.contains("ca_file"))
    );
    assert!(
        format!("{error:?}").contains("invalid peer certificate"),
        "{error:?}"
    );
    // The system's store does not have it either.
    config.ca_file = None;
    refused(config, ErrorKind::Unauthenticated).await;
    assert_eq!(server.calls("pool_list").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_host_is_refused() {
    let server = Server::start(true, &["array.example"], None).await;
    let error = refused(server.config(), ErrorKind::Unauthenticated).await;
    assert!(
        format!("{error:?}").contains("not valid for name"),
        "{error:?}"
    );
    assert_eq!(
        (server.connections(), server.calls("pool_list").len()),
        (1, 0)
    );
    // Addresses are names too.
    let server = Server::start(true, &["127.0.0.1"], None).await;
    let mut config = server.config();
    config.url = format!("https://127.0.0.1:{}", server.port());
    let opened = TargetdPool::open(config, Arc::new(Closed)).await;
    opened.expect("it opens");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_signed_itself_is_trusted_where_it_is_named() {
    let server = Server::self_signed(&["localhost"], [2020, 2090]).await;
    pool(&server).await;
    // Not another one of the same name.
    let other = Server::self_signed(&["localhost"], [2020, 2090]).await;
    let mut config = server.config();
    config.ca_file = Some(other.certificates.ca_file());
    refused(config, ErrorKind::Unauthenticated).await;
    // Not for another host, nor for ever.
    let server = Server::self_signed(&["array.example"], [2020, 2090]).await;
    let error = refused(server.config(), ErrorKind::Unauthenticated).await;
    assert!(
        format!("{error:?}").contains("not valid for name"),
        "{error:?}"
    );
    let server = Server::self_signed(&["localhost"], [2020, 2021]).await;
    let error = refused(server.config(), ErrorKind::Unauthenticated).await;
    assert!(format!("{error:?}").contains("expired"), "{error:?}");
    let server = Server::self_signed(&["localhost"], [2080, 2081]).await;
    refused(server.config(), ErrorKind::Unauthenticated).await;
    assert!(server.calls("pool_list").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tls_only_this_machine_is_asked() {
    let server = Server::plain().await;
    pool(&server).await;
    let mut config = server.config();
    for host in ["array.example", "10.0.0.1", "127.0.0.1.example"] {
        config.url = format!("http://{host}:{}", server.port());
        refused(config.clone(), ErrorKind::InvalidConfig).await;
    }
    // TLS towards a service without it, and the other way round.
    config.url = format!("https://localhost:{}", server.port());
    config.timeout = Some(2);
    let error = refused(config, ErrorKind::Unavailable).await;
    assert!(
        error
            .get("help")
            .is_some_and(|help| help.contains("ssl: true")),
        "{error:?}"
    );
    let encrypted = Server::new().await;
    let mut config = encrypted.config();
    config.url = format!("http://localhost:{}", encrypted.port());
    refused(config, ErrorKind::Unavailable).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_and_not_tried_again() {
    let server = Server::new().await;
    let mut config = server.config();
    config.password_file = server.secret("wrong", "canary-wrong-password");
    let error = refused(config.clone(), ErrorKind::Unauthenticated).await;
    assert!(!format!("{error:?}").contains("canary"), "{error:?}");
    config.password_file = server.secret("right", PASSWORD);
    config.user = "somebody".into();
    refused(config.clone(), ErrorKind::Unauthenticated).await;
    assert_eq!(server.connections(), 2);
    config.user = "admin".into();
    config.url = format!("https://localhost:{}/elsewhere", server.port());
    refused(config, ErrorKind::InvalidConfig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_not_there_is_told_with_those_that_are() {
    let server = Server::new().await;
    let mut config = server.config();
    config.pool = "vg/other".into();
    let opened = TargetdPool::open(config.clone(), Arc::new(Closed)).await;
    let error = fails(opened, ErrorKind::NotFound, "open_pool", &["vg/other"]);
    assert!(
        error
            .get("help")
            .is_some_and(|help| help.contains("vg/pool")),
        "{error}"
    );
    config.pool = "/mnt/btrfs".into();
    let opened = TargetdPool::open(config, Arc::new(Closed)).await;
    fails(
        opened,
        ErrorKind::InvalidConfig,
        "open_pool",
        &["/mnt/btrfs"],
    );
    // One that went away is not an empty one.
    let pool = pool(&server).await;
    server.array().pool = "vg/renamed".into();
    let found = pool.volume(&n("a")).await;
    fails(found, ErrorKind::InvalidConfig, "volume", &["Invalid pool"]);
    let deleted = pool.delete_volume(&n("a")).await;
    fails(deleted, ErrorKind::InvalidConfig, "delete_volume", &[]);
    fails(
        pool.usage().await,
        ErrorKind::NotFound,
        "usage",
        &["vg/pool"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_listens_is_unavailable() {
    let server = Server::new().await;
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        listener.local_addr().expect("an address").port()
    };
    let mut config = server.config();
    config.url = format!("https://localhost:{port}");
    let error = refused(config, ErrorKind::Unavailable).await;
    assert!(
        error
            .get("service")
            .is_some_and(|s| s.contains(&port.to_string()))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let server = Server::new().await;
    let mut config = server.config();
    config.timeout = Some(1);
    server.fault("pool_list", Fault::Hang);
    refused(config.clone(), ErrorKind::TimedOut).await;
    assert_eq!(server.calls("pool_list").len(), 1);
    // Nor does it say anything of TLS.
    let port = silent.local_addr().expect("an address").port();
    config.url = format!("https://localhost:{port}");
    refused(config.clone(), ErrorKind::Unavailable).await;
    // A late answer in time is one.
    config.url = server.config().url;
    server.fault("pool_list", Fault::Delay(Duration::from_millis(300)));
    TargetdPool::open(config, Arc::new(Closed))
        .await
        .expect("it opens");
}
