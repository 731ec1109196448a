//! Options that are wrong, or come at the wrong time: each is refused, and the next one is read.

use crate::common::client::Client;
use crate::common::server::{MIB, Setup, TestServer};
use crate::common::wire::{self, Mode, info, opt, rep};

fn server() -> TestServer {
    Setup::memory().volume("vol", MIB).start()
}

/// Each of `datas` is refused in this way, on as many connections as the server wants.
#[track_caller]
fn each_refused(server: &TestServer, mode: Mode, option: u32, datas: &[Vec<u8>], kind: u32) {
    for some in datas.chunks(60) {
        let mut client = server.greeted();
        client.negotiate(mode);
        for data in some {
            client.refused(option, data, kind);
        }
        goes_on(client);
    }
}

/// The next option is read as it should be.
#[track_caller]
fn goes_on(mut client: Client) {
    assert_eq!(client.list(), ["vol"]);
    client.go("vol");
    assert_eq!(client.read(0, 2).expect("read"), [0; 2]);
    client.disconnect();
}

#[test]
fn an_unknown_option_is_unsupported_with_data_or_without() {
    let server = server();
    let mut client = server.greeted();
    for option in [
        0,
        opt::PEEK_EXPORT,
        12,
        13,
        255,
        1 << 16,
        u32::MAX,
        rep::ERR_UNSUP,
    ] {
        for data in [&b""[..], b"x", &[0xff; 4096]] {
            client.refused(option, data, rep::ERR_UNSUP);
        }
    }
    goes_on(client);
}

#[test]
fn an_option_that_has_no_data_is_invalid_with_data() {
    let server = server();
    let mut client = server.greeted();
    for option in [opt::LIST, opt::STRUCTURED_REPLY, opt::EXTENDED_HEADERS] {
        for data in [&b"x"[..], &[0; 8], &[0xff; 4000]] {
            client.refused(option, data, rep::ERR_INVALID);
        }
    }
    // None of them took effect.
    assert_eq!(client.mode, Mode::Simple);
    goes_on(client);
}

#[test]
fn info_and_go_with_wrong_lengths_are_invalid() {
    let server = server();
    let good = wire::go("vol", &[info::NAME, info::BLOCK_SIZE]);
    let mut bad: Vec<Vec<u8>> = (0..good.len())
        .map(|length| good[..length].to_vec())
        .collect();
    bad.push([&good[..], &[0]].concat());
    for length in [4u32, 255, 1 << 16, 1 << 31, u32::MAX] {
        bad.push([&length.to_be_bytes(), &good[4..]].concat());
    }
    for count in [0u16, 1, 3, u16::MAX] {
        bad.push([&good[..7], &count.to_be_bytes(), &good[9..]].concat());
    }
    for option in [opt::INFO, opt::GO] {
        each_refused(&server, Mode::Structured, option, &bad, rep::ERR_INVALID);
    }
}

#[test]
fn a_name_that_is_no_text_is_refused() {
    let server = server();
    let mut client = server.greeted();
    for bad in [&b"\xff\xfe"[..], b"vol\0", b"\0", b"vo\xc3", &[b'x'; 4097]] {
        let mut data = (bad.len() as u32).to_be_bytes().to_vec();
        data.extend(bad);
        data.extend([0, 0]);
        for option in [opt::INFO, opt::GO] {
            let replies = client.option(option, &data);
            let kind = replies.last().expect("a reply").kind;
            assert!(
                [rep::ERR_INVALID, rep::ERR_UNKNOWN].contains(&kind),
                "{kind:#x}"
            );
        }
    }
    goes_on(client);
}

#[test]
fn information_that_the_server_does_not_know_is_left_out() {
    let server = server();
    let mut client = server.greeted();
    let asked = [9, info::BLOCK_SIZE, 0xffff, 4];
    let told = client.option(opt::INFO, &wire::go("vol", &asked));
    let told = crate::common::client::parse_info(&told);
    assert_eq!(told.block_size, Some([1, 4096, 32 << 20]));
    assert_eq!(told.size, MIB);
    let told = client.option(opt::INFO, &wire::go("vol", &[]));
    assert_eq!(crate::common::client::parse_info(&told).size, MIB);
    goes_on(client);
}

#[test]
fn structured_replies_may_be_asked_for_twice() {
    let server = server();
    let mut client = server.greeted();
    client.negotiate(Mode::Structured);
    let again = client.option(opt::STRUCTURED_REPLY, &[]);
    assert!(
        [rep::ACK, rep::ERR_INVALID].contains(&again[0].kind),
        "{again:?}"
    );
    goes_on(client);
}

#[test]
fn extended_headers_come_before_or_after_structured_replies_and_win() {
    let server = server();
    let mut client = server.greeted();
    client.negotiate(Mode::Structured);
    client.negotiate(Mode::Extended);
    client.refused(opt::STRUCTURED_REPLY, &[], rep::ERR_EXT_HEADER_REQD);
    let again = client.option(opt::EXTENDED_HEADERS, &[]);
    assert!(
        [rep::ACK, rep::ERR_INVALID].contains(&again[0].kind),
        "{again:?}"
    );
    goes_on(client);
}

#[test]
fn without_certificates_tls_is_refused_and_never_asked_for() {
    let server = server();
    let mut client = server.greeted();
    for data in [&b""[..], b"data"] {
        let kind = client.option(opt::STARTTLS, data)[0].kind;
        let allowed = [rep::ERR_UNSUP, rep::ERR_POLICY, rep::ERR_INVALID];
        assert!(allowed.contains(&kind), "{kind:#x}");
    }
    goes_on(client);
}

#[test]
fn metadata_contexts_need_structured_replies() {
    let server = server();
    let mut client = server.greeted();
    let asked = wire::meta("vol", &["base:allocation"]);
    client.refused(opt::SET_META_CONTEXT, &asked, rep::ERR_INVALID);
    client.refused(opt::LIST_META_CONTEXT, &asked, rep::ERR_INVALID);
    client.negotiate(Mode::Structured);
    assert_eq!(
        client.select("vol", &["base:allocation"]),
        ["base:allocation"]
    );
    goes_on(client);
}

#[test]
fn metadata_options_with_wrong_lengths_are_invalid() {
    let server = server();
    let good = wire::meta("vol", &["base:allocation", "base:"]);
    let mut bad: Vec<Vec<u8>> = (0..good.len())
        .map(|length| good[..length].to_vec())
        .collect();
    bad.push([&good[..], b"x"].concat());
    for count in [0u32, 1, 3, 1 << 20, 1 << 31, u32::MAX] {
        bad.push([&good[..7], &count.to_be_bytes(), &good[11..]].concat());
    }
    for length in [0u32, 14, 16, 1 << 31, u32::MAX] {
        bad.push([&good[..11], &length.to_be_bytes(), &good[15..]].concat());
    }
    for option in [opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
        each_refused(&server, Mode::Extended, option, &bad, rep::ERR_INVALID);
    }
}

#[test]
fn metadata_contexts_of_an_unknown_export_are_refused() {
    let server = server();
    let mut client = server.greeted();
    client.negotiate(Mode::Structured);
    for option in [opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
        let text = client.refused(option, &wire::meta("nothing", &[]), rep::ERR_UNKNOWN);
        assert!(text.contains("nothing"), "{text}");
    }
    server.log.expect_warning(&["export=nothing", "peer="]);
    goes_on(client);
}

#[test]
fn an_option_longer_than_the_limit_is_not_taken_in() {
    let server = Setup::memory()
        .volume("vol", MIB)
        .limits(|l| l.option_length = 4096)
        .start();
    // One that fits to the byte.
    let mut client = server.greeted();
    client.refused(99, &[0xaa; 4096], rep::ERR_UNSUP);
    goes_on(client);
    // The length alone decides: nothing of the data was sent.
    for length in [1 << 20, 1 << 31, u32::MAX] {
        let mut client = server.greeted();
        client.send(&wire::option_claiming(opt::GO, length, &[]));
        // A reply that says so may come first.
        client.stream().end_writing().expect("shutdown");
        let rest = client.rest();
        let too_big = rep::ERR_TOO_BIG.to_be_bytes();
        assert!(rest.is_empty() || rest[12..16] == too_big, "{rest:02x?}");
    }
    // One byte too many.
    let mut client = server.greeted();
    client.send(&wire::option(99, &[0xaa; 4097]));
    client.stream().end_writing().expect("shutdown");
    let rest = client.rest();
    assert!(
        rest.is_empty() || rest[12..16] == rep::ERR_TOO_BIG.to_be_bytes(),
        "{rest:02x?}"
    );
    server
        .log
        .expect_warning(&["peer=", "an option of 2147483648 bytes"]);
    goes_on(server.greeted());
}

#[test]
fn many_queries_do_not_make_many_replies() {
    let server = server();
    let mut client = server.greeted();
    client.negotiate(Mode::Structured);
    // As many as fit an option.
    let queries = vec!["base:allocation"; 400];
    let listed = client.list_contexts("vol", &queries);
    assert_eq!(listed, ["base:allocation"]);
    let replies = client.option(opt::SET_META_CONTEXT, &wire::meta("vol", &queries));
    assert!(replies.len() <= 2, "one context once: {}", replies.len());
    goes_on(client);
}
