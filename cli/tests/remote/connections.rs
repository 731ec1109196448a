//! Connections that can't be made, or break.

use std::fs::Permissions;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use volmux::{ByteSize, CreateOptions, ErrorKind, Pool};
use volmux_iscsi::remote::RemoteConfig;

use crate::common::wait_until;
use crate::host::{Host, PROGRAM, name, open};

/// Opening fails like that, and says so.
async fn refused(config: RemoteConfig, kind: ErrorKind, said: &str) {
    let error = open(config).await.expect_err(said);
    assert_eq!((error.kind(), error.op()), (kind, "open_pool"), "{error}");
    assert!(error.to_string().contains(said), "{said:?} in {error}");
    assert!(
        error.get("host").is_some() && error.get("help").is_some(),
        "{error}"
    );
}

#[tokio::test]
async fn a_host_has_to_prove_who_it_is() {
    let host = Host::start();
    let mut config = host.config();
    std::fs::write(host.place.path("empty"), "").expect("file");
    for file in ["empty", "missing"] {
        config.known_hosts = Some(host.place.path(file));
        let said = "ssh-keyscan";
        refused(config.clone(), ErrorKind::InvalidConfig, said).await;
        assert!(
            !host.place.path("missing").exists(),
            "nothing is learned by itself"
        );
    }
    host.know("changed", "stranger");
    config.known_hosts = Some(host.place.path("changed"));
    refused(config, ErrorKind::Unauthenticated, "find out why").await;
}

#[tokio::test]
async fn this_side_has_to_prove_who_it_is() {
    let host = Host::start();
    let mut config = host.config();
    config.key = Some(host.place.path("stranger"));
    refused(
        config.clone(),
        ErrorKind::Unauthenticated,
        "authorized_keys",
    )
    .await;
    config.key = Some(host.place.path("nothing"));
    refused(config.clone(), ErrorKind::InvalidConfig, "not accessible").await;
    let no_key = host.place.path("empty");
    std::fs::write(&no_key, "").expect("file");
    config.key = Some(no_key.clone());
    for (mode, said) in [(0o644, "chmod 600"), (0o600, "passphrase")] {
        std::fs::set_permissions(&no_key, Permissions::from_mode(mode)).expect("mode");
        refused(config.clone(), ErrorKind::InvalidConfig, said).await;
    }
    config = host.config();
    config.user = "nobody-like-that".into();
    refused(config, ErrorKind::Unauthenticated, "authorized_keys").await;
}

#[tokio::test]
async fn a_host_that_is_not_there_or_silent_is_unavailable() {
    let host = Host::start();
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("port");
    let mut config = host.config();
    config.port = free.local_addr().expect("address").port();
    config.deadline = Duration::from_secs(2);
    // Somebody listens, and says nothing.
    let error = open(config.clone()).await.expect_err("silent");
    let kinds = [ErrorKind::Unavailable, ErrorKind::TimedOut];
    assert!(kinds.contains(&error.kind()), "{error}");
    drop(free);
    config.deadline = Duration::from_secs(120);
    refused(config.clone(), ErrorKind::Unavailable, "refused").await;
    config.host = "no-such-host.invalid".into();
    let error = open(config.clone()).await.expect_err("name");
    let kinds = [ErrorKind::InvalidConfig, ErrorKind::Unavailable];
    assert!(kinds.contains(&error.kind()), "{error}");
    config = host.config();
    config.ssh = host.place.path("no-ssh");
    let error = open(config).await.expect_err("no ssh");
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("openssh-client"), "{error}");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told_of() {
    let host = Host::start();
    let mut config = host.config();
    for program in ["no-such-program", "/no/such/program"] {
        config.program = program.into();
        refused(config.clone(), ErrorKind::InvalidConfig, "install volmux").await;
    }
    config.program = host.place.text("known_hosts");
    refused(config.clone(), ErrorKind::InvalidConfig, "can't be started").await;
    config.program = "/bin/cat".into();
    refused(
        config.clone(),
        ErrorKind::InvalidConfig,
        "not an answer of volmux",
    )
    .await;
    config.program = "/bin/true".into();
    refused(config, ErrorKind::InvalidConfig, "says nothing").await;
}

#[tokio::test]
async fn a_list_that_breaks_off_ends_with_an_error() {
    let host = Host::start();
    let there = host.there().await;
    let made = there
        .create_volume(&name("web"), CreateOptions::thin(ByteSize::mib(1)))
        .await;
    made.expect("create");
    // It lists all, and then seems to have more.
    let body = format!("'{PROGRAM}' \"$@\"; exec cat >/dev/null");
    let here = host.pool_by(&body).await;
    let mut list = here.list_volumes();
    let first = list.next().await.expect("one").expect("volume");
    assert_eq!(first.name.as_str(), "web");
    host.cut();
    let error = list
        .next()
        .await
        .expect("not the end")
        .expect_err("an error");
    assert_eq!(
        (error.kind(), error.op()),
        (ErrorKind::Unavailable, "list_volumes")
    );
    assert!(list.next().await.is_none());
    // The next call makes a new connection.
    here.usage().await.expect("usage");
}

#[tokio::test]
async fn a_connection_that_broke_is_made_anew() {
    let host = Host::start();
    let here = host.pool().await;
    for _ in 0..3 {
        host.cut();
        wait_until("no connection", || host.processes().is_empty());
        let found = here.usage().await;
        // ssh may not have seen yet that the connection is gone.
        if let Err(error) = &found {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            here.usage().await.expect("usage");
        }
    }
    let made = here
        .create_volume(&name("web"), CreateOptions::thin(ByteSize::mib(1)))
        .await;
    made.expect("create");
}

#[tokio::test]
async fn nothing_is_left_when_the_pool_is_dropped() {
    let host = Host::start();
    let here = host.pool().await;
    let list = here.list_volumes();
    assert!(!host.processes().is_empty());
    let masters = host.connectors();
    let at = masters[0]
        .iter()
        .position(|arg| arg == "-S")
        .expect("socket");
    let socket = Path::new(&masters[0][at + 1]);
    let directory = socket.parent().expect("directory");
    assert!(socket.exists());
    let mode = directory.metadata().expect("metadata").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    drop((here, list));
    assert!(!directory.exists());
    wait_until("no connection", || host.processes().is_empty());
    wait_until("no ssh", || host.connectors().is_empty());
}
