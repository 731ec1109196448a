//! TLS: what was asked for and not agreed on is a refusal, not a fallback.

use std::io::ErrorKind as Io;

use volmux_core::ErrorKind;
use volmux_gateway::{ClientCertificates, Tls};

use crate::common::certificates::Certificates;
use crate::common::client::Client;
use crate::common::server::{MIB, Setup, TestServer};
use crate::common::wire::{self, Mode, Request, cmd, errno, info, opt, rep};

fn server(certificates: &Certificates, clients: ClientCertificates) -> TestServer {
    let tls = Tls::from_directory(&certificates.server(), clients).expect("certificates");
    Setup::memory().volume("vol", MIB).tls(tls).start()
}

fn any_client(certificates: &Certificates) -> TestServer {
    server(certificates, ClientCertificates::NotAsked)
}

fn secure(server: &TestServer, certificates: &Certificates) -> Client {
    let client = server
        .greeted()
        .start_tls(certificates.config(false), "localhost");
    client.expect("TLS begins")
}

#[test]
fn a_client_without_tls_is_shown_nothing() {
    let certificates = Certificates::new();
    let server = any_client(&certificates);
    let mut client = server.greeted();
    for (option, data) in [
        (opt::LIST, vec![]),
        (opt::INFO, wire::go("vol", &[info::NAME])),
        (opt::GO, wire::go("vol", &[])),
        (opt::GO, wire::go("nothing", &[])),
        (opt::GO, vec![0xff; 3]),
        (opt::STRUCTURED_REPLY, vec![]),
        (opt::EXTENDED_HEADERS, vec![]),
        (
            opt::SET_META_CONTEXT,
            wire::meta("vol", &["base:allocation"]),
        ),
        (opt::LIST_META_CONTEXT, wire::meta("vol", &[])),
        (opt::PEEK_EXPORT, vec![1]),
        (999, vec![]),
    ] {
        let text = client.refused(option, &data, rep::ERR_TLS_REQD);
        assert!(!text.contains("vol"), "{text}");
    }
    server.log.expect_warning(&["peer=", "TLS"]);
    client.acknowledged(opt::ABORT, &[]);
    client.expect_end();
    let mut client = server.greeted();
    client.send(&wire::option(opt::EXPORT_NAME, b"vol"));
    client.expect_end();
}

#[test]
fn everything_works_with_tls_in_every_mode() {
    let certificates = Certificates::new();
    let server = any_client(&certificates);
    for mode in Mode::ALL {
        let mut client = secure(&server, &certificates);
        assert_eq!(client.list(), ["vol"]);
        client.negotiate(mode);
        if mode != Mode::Simple {
            client.select("vol", &["base:allocation"]);
        }
        client.go("vol");
        let data: Vec<u8> = (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect();
        client.write(1000, &data).expect("write");
        assert!(client.read(1000, 300_000).expect("read") == data);
        client.flush().expect("flush");
        client.zero(0, MIB, 0).expect("zero");
        client.trim(0, MIB).expect("trim");
        assert_eq!(client.read(0, MIB).expect("read"), vec![0; MIB as usize]);
        assert_eq!(client.read(MIB, 1), Err(errno::EINVAL));
        for i in 0..200 {
            client.submit(Request::write(mode, i * 512, &[9; 512]));
        }
        for _ in 0..200 {
            assert_eq!(client.next_done().error, 0);
        }
        if mode != Mode::Simple {
            client.status("base:allocation", 0, 4096).expect("status");
        }
        client.send(&Request::new(cmd::DISC, 0, 0).encode(mode));
        client.expect_tls_end();
    }
}

#[test]
fn both_versions_of_tls_are_spoken() {
    let certificates = Certificates::new();
    let server = any_client(&certificates);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = certificates.config_of(false, &[version]);
        let mut client = server
            .greeted()
            .start_tls(config, "localhost")
            .expect("TLS");
        client.negotiate(Mode::Structured);
        client.go("vol");
        client.write(0, b"secure").expect("write");
        client.disconnect();
    }
}

#[test]
fn tls_begins_once_and_without_data() {
    let certificates = Certificates::new();
    let server = any_client(&certificates);
    let mut client = server.greeted();
    client.refused(opt::STARTTLS, b"data", rep::ERR_INVALID);
    let config = certificates.config(false);
    let mut client = client.start_tls(config, "localhost").expect("TLS");
    client.refused(opt::STARTTLS, &[], rep::ERR_INVALID);
    // No option is answered with TLS_REQD from here on.
    client.refused(999, &[], rep::ERR_UNSUP);
    client.refused(opt::GO, &wire::go("nothing", &[]), rep::ERR_UNKNOWN);
    client.go("vol");
    client.disconnect();
}

/// CVE-2021-3716: an attacker in the middle sends options in plain text ahead of the client's TLS.
#[test]
fn what_is_injected_before_tls_is_never_answered_within_it() {
    let certificates = Certificates::new();
    let server = any_client(&certificates);
    for injected in [
        wire::option(opt::LIST, &[]),
        wire::option(opt::STRUCTURED_REPLY, &[]),
        wire::option(opt::GO, &wire::go("vol", &[])),
        vec![0; 16],
    ] {
        let mut client = server.greeted();
        let mut bytes = wire::option(opt::STARTTLS, &[]);
        bytes.extend(&injected);
        client.send(&bytes);
        let ack = client.option_replies(opt::STARTTLS);
        assert_eq!(ack[0].kind, rep::ACK);
        // Either the TLS handshake fails on the garbage, or it was thrown away.
        let begun = client.begin_tls(certificates.config(false), "localhost");
        if let Ok(mut client) = begun {
            client.refused(12_345, &[], rep::ERR_UNSUP);
            client.negotiate(Mode::Structured);
            client.go("vol");
            client.disconnect();
        }
        server.wait_until_idle();
    }
    secure(&server, &certificates).acknowledged(opt::ABORT, &[]);
}

#[test]
fn plain_text_after_the_acknowledgement_ends_the_connection() {
    let certificates = Certificates::new();
    let server = any_client(&certificates);
    let mut client = server.greeted();
    client.acknowledged(opt::STARTTLS, &[]);
    client.send(&wire::option(opt::GO, &wire::go("vol", &[])));
    // An alert of TLS may come, an NBD reply may not.
    let rest = client.rest();
    assert!(rest.len() < 64, "{rest:02x?}");
    assert!(
        !rest
            .windows(8)
            .any(|w| w == wire::OPTION_REPLY.to_be_bytes())
    );
    server.log.expect_warning(&["peer=", "handshake"]);
}

#[test]
fn a_client_without_the_certificate_that_is_required_gets_nowhere() {
    let certificates = Certificates::new();
    let server = server(&certificates, ClientCertificates::Required);
    refused(&server, certificates.config(false));
    // Signed by somebody else.
    let strangers = Certificates::new();
    let both = certificates.trusting_but_showing(&strangers);
    refused(&server, both);
    server.log.expect_warning(&["peer=", "handshake"]);
    let config = certificates.config(true);
    let mut client = server
        .greeted()
        .start_tls(config, "localhost")
        .expect("TLS");
    client.go("vol");
    client.write(0, b"a known client").expect("write");
    client.disconnect();
}

/// With TLS 1.3 a client learns of it only when it reads.
fn refused(server: &TestServer, config: std::sync::Arc<rustls::ClientConfig>) {
    let begun = server.greeted().start_tls(config, "localhost");
    if let Ok(mut client) = begun {
        let sent = client.try_send(&wire::option(opt::LIST, &[]));
        if sent.is_ok() {
            let answer = client.try_receive();
            assert!(answer.is_err(), "{answer:?}");
        }
    }
}

#[test]
fn a_client_that_does_not_trust_the_server_goes_away() {
    let certificates = Certificates::new();
    let server = any_client(&certificates);
    let strangers = Certificates::new().config(false);
    let error = server
        .greeted()
        .start_tls(strangers, "localhost")
        .expect_err("not trusted");
    assert_eq!(error.kind(), Io::InvalidData);
    let config = certificates.config(false);
    server
        .greeted()
        .start_tls(config, "example.org")
        .expect_err("another name");
    server.log.expect_warning(&["peer=", "handshake"]);
    secure(&server, &certificates).acknowledged(opt::ABORT, &[]);
}

#[test]
fn a_tls_connection_cut_off_at_any_time_does_no_harm() {
    let certificates = Certificates::new();
    let server = any_client(&certificates);
    for cut in 0..12 {
        let mut client = secure(&server, &certificates);
        if cut > 3 {
            client.go("vol");
            let bytes = Request::write(Mode::Simple, 0, &[0xff; 5000]).encode(Mode::Simple);
            client.send(&bytes[..bytes.len() - 300 * cut]);
        }
    }
    server.wait_until_idle();
    assert_eq!(server.content("vol"), vec![0; MIB as usize]);
}

#[test]
fn a_handshake_of_tls_that_takes_too_long_is_cut_off() {
    let certificates = Certificates::new();
    let tls = Tls::from_directory(&certificates.server(), ClientCertificates::NotAsked);
    let setup = Setup::memory()
        .volume("vol", MIB)
        .tls(tls.expect("certificates"));
    let short = std::time::Duration::from_millis(200);
    let server = setup.limits(|l| l.handshake_time = short).start();
    let mut client = server.greeted();
    client.acknowledged(opt::STARTTLS, &[]);
    client.expect_end();
    server.log.expect_warning(&["peer=", "handshake"]);
}

#[test]
fn certificates_that_are_missing_or_wrong_are_named() {
    let certificates = Certificates::new();
    let dir = certificates.server();
    for (file, clients) in [
        ("server-cert.pem", ClientCertificates::NotAsked),
        ("server-key.pem", ClientCertificates::NotAsked),
        ("ca-cert.pem", ClientCertificates::Required),
    ] {
        let good = std::fs::read(dir.join(file)).expect("a file");
        for content in [None, Some("no PEM at all"), Some("")] {
            match content {
                None => std::fs::remove_file(dir.join(file)).expect("remove"),
                Some(text) => std::fs::write(dir.join(file), text).expect("write"),
            }
            let error = Tls::from_directory(&dir, clients).expect_err(file);
            let kinds = [ErrorKind::InvalidConfig, ErrorKind::NotFound];
            assert!(kinds.contains(&error.kind()), "{error}");
            assert!(error.to_string().contains(file), "{error}");
        }
        std::fs::write(dir.join(file), good).expect("write");
    }
    // The key of another certificate.
    let key = std::fs::read(Certificates::new().server().join("server-key.pem"));
    std::fs::write(dir.join("server-key.pem"), key.expect("a key")).expect("write");
    let error = Tls::from_directory(&dir, ClientCertificates::NotAsked).expect_err("no fit");
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
}

#[test]
fn the_key_is_never_shown() {
    let certificates = Certificates::new();
    let key = std::fs::read_to_string(certificates.server().join("server-key.pem"));
    let key = key.expect("a key");
    let canary = key.lines().nth(1).expect("a PEM file has lines");
    let tls = Tls::from_directory(&certificates.server(), ClientCertificates::Required);
    assert!(!format!("{tls:?}").contains(canary));
    let server = server(&certificates, ClientCertificates::Required);
    refused(&server, certificates.config(false));
    assert!(!format!("{:?}", server.server()).contains(canary));
    assert!(!server.log.lines().join("\n").contains(canary));
}
