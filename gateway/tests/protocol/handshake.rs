//! How a connection begins: greeting, client flags, the old and the new way to an export.

use std::time::Duration;

use volmux_core::OpenOptions;
use volmux_gateway::ExportOptions;

use crate::common::client::Client;
use crate::common::program::eventually;
use crate::common::server::{KIB, MIB, Setup, TestServer, name};
use crate::common::wire::{self, Mode, Request, can, cmd, info, opt, rep};

fn server() -> TestServer {
    Setup::memory().volume("vol", MIB).start()
}

/// The server still does its work.
fn serves(server: &TestServer) {
    let mut client = server.open("vol", Mode::Structured);
    client.write(0, b"still here").expect("write");
    assert_eq!(client.read(0, 10).expect("read"), b"still here");
    client.disconnect();
}

#[test]
fn unknown_client_flags_end_the_connection() {
    let server = server();
    for flags in [4, 1 << 31, 3 | 1 << 2, u32::MAX] {
        let mut client = Client::connect(&server.address);
        client.client_flags(flags);
        client.expect_end();
    }
    server.log.expect_warning(&["peer=", "flags"]);
    serves(&server);
}

#[test]
fn the_old_way_pads_unless_told_otherwise() {
    let server = server();
    for flags in [0, 1, 2, 3] {
        let mut client = Client::connect(&server.address);
        client.client_flags(flags);
        client.export_name("vol", flags & wire::NO_ZEROES != 0);
        assert_eq!(client.export.size, MIB);
        assert_eq!(
            client.export.flags & can::DF,
            0,
            "DF needs structured replies"
        );
        client.write(5, b"old").expect("write");
        assert_eq!(client.read(4, 5).expect("read"), b"\0old\0");
        client.disconnect();
    }
}

#[test]
fn the_old_way_goes_together_with_structured_replies() {
    let server = server();
    let mut client = server.greeted();
    client.negotiate(Mode::Structured);
    client.export_name("vol", true);
    assert_ne!(client.export.flags & can::DF, 0);
    assert_eq!(client.read(0, 4).expect("read"), [0; 4]);
    client.disconnect();
}

#[test]
fn the_old_way_to_an_unknown_volume_ends_the_connection() {
    let server = server();
    for export in ["nothing", "vol2", "../vol", "\u{e9}", " vol"] {
        let mut client = server.greeted();
        client.send(&wire::option(opt::EXPORT_NAME, export.as_bytes()));
        client.expect_end();
    }
    server
        .log
        .expect_warning(&["export=nothing", "peer=", "error="]);
    serves(&server);
}

#[test]
fn the_old_way_with_extended_headers_ends_the_connection() {
    let server = server();
    let mut client = server.greeted();
    client.negotiate(Mode::Extended);
    client.send(&wire::option(opt::EXPORT_NAME, b"vol"));
    client.expect_end();
    server.log.expect_warning(&["peer="]);
    serves(&server);
}

#[test]
fn a_single_volume_is_the_default_export_too() {
    let server = server();
    let mut client = server.open("", Mode::Extended);
    assert_eq!(client.export.size, MIB);
    client.write(0, b"by no name").expect("write");
    client.disconnect();
    let mut client = server.greeted();
    client.export_name("", true);
    assert_eq!(client.read(0, 10).expect("read"), b"by no name");
    client.disconnect();
    let mut client = server.greeted();
    assert_eq!(
        client.info("").name.as_deref(),
        Some("vol"),
        "the canonical name"
    );
}

#[test]
fn of_two_volumes_none_is_the_default_export() {
    let server = Setup::memory()
        .volume("a", MIB)
        .volume("b", 2 * MIB)
        .start();
    let mut client = server.greeted();
    client.refused(opt::GO, &wire::go("", &[]), rep::ERR_UNKNOWN);
    client.refused(opt::INFO, &wire::go("", &[]), rep::ERR_UNKNOWN);
    client.go("b");
    assert_eq!(client.export.size, 2 * MIB);
    client.disconnect();
    let mut client = server.greeted();
    client.send(&wire::option(opt::EXPORT_NAME, b""));
    client.expect_end();
}

#[test]
fn every_volume_is_served_by_name_and_one_made_later_too() {
    let setup = Setup::memory().unlisted("a", MIB).every_volume();
    let server = setup.start();
    server.open("a", Mode::Simple).disconnect();
    let options = volmux_core::CreateOptions::thin(volmux_core::ByteSize::kib(64));
    server
        .block_on(server.pool.create_volume(&name("later"), options))
        .expect("create");
    let client = server.open("later", Mode::Simple);
    assert_eq!(client.export.size, 64 * KIB);
    client.disconnect();
    let mut listed = server.greeted().list();
    listed.sort();
    assert_eq!(listed, ["a", "later"]);
}

#[test]
fn the_list_holds_what_is_served_and_nothing_else() {
    let setup = Setup::memory()
        .volume("a", MIB)
        .volume("b", MIB)
        .unlisted("hidden", MIB);
    let server = setup.start();
    let mut client = server.greeted();
    let mut listed = client.list();
    listed.sort();
    assert_eq!(listed, ["a", "b"]);
    client.refused(opt::GO, &wire::go("hidden", &[]), rep::ERR_UNKNOWN);
    client.acknowledged(opt::ABORT, &[]);
    client.expect_end();
}

#[test]
fn go_and_info_tell_the_same_of_an_export() {
    let server = server();
    for mode in Mode::ALL {
        let mut client = server.greeted();
        client.negotiate(mode);
        let told = client.info("vol");
        assert_eq!(told.size, MIB);
        assert_eq!(told.block_size, Some([1, 4096, 32 << 20]));
        client.go("vol");
        assert_eq!(
            (client.export.size, client.export.flags),
            (told.size, told.flags)
        );
        client.disconnect();
    }
}

#[test]
fn the_flags_tell_what_can_be_done() {
    let setup = Setup::memory().volume("vol", MIB).unlisted("fixed", MIB);
    let server = setup
        .export(ExportOptions::read_only(name("fixed")))
        .start();
    let all = can::HAS_FLAGS
        | can::FLUSH
        | can::FUA
        | can::TRIM
        | can::WRITE_ZEROES
        | can::MULTI_CONN
        | can::CACHE
        | can::FAST_ZERO;
    for mode in Mode::ALL {
        let of_mode = if mode == Mode::Simple { 0 } else { can::DF };
        // The specification: not without a metadata context.
        let client = server.open("vol", mode);
        assert_eq!(
            client.export.flags & !can::BLOCK_STATUS_PAYLOAD,
            all | of_mode,
            "{mode:?}"
        );
        client.disconnect();
        let client = server.open("fixed", mode);
        let flags = client.export.flags;
        let always = can::HAS_FLAGS | can::READ_ONLY | can::MULTI_CONN | of_mode;
        assert_eq!(flags & always, always, "{mode:?}");
        client.disconnect();
    }
    let client = server.open_with("vol", Mode::Extended, &["base:allocation"]);
    assert_ne!(client.export.flags & can::BLOCK_STATUS_PAYLOAD, 0);
    client.disconnect();
    let client = server.open_with("vol", Mode::Structured, &["base:allocation"]);
    assert_eq!(client.export.flags & can::BLOCK_STATUS_PAYLOAD, 0);
    client.disconnect();
}

#[test]
fn an_unknown_export_is_refused_by_name_and_the_connection_lives_on() {
    let server = server();
    let mut client = server.greeted();
    for option in [opt::INFO, opt::GO] {
        let text = client.refused(option, &wire::go("nothing", &[]), rep::ERR_UNKNOWN);
        assert!(text.contains("nothing"), "{text}");
    }
    server
        .log
        .expect_warning(&["export=nothing", "peer=", "error="]);
    // What could never be a volume's name.
    for export in [
        "../vol",
        "a/b",
        "vol\n",
        "\u{2028}",
        "vol ",
        &"x".repeat(128),
    ] {
        client.refused(opt::GO, &wire::go(export, &[]), rep::ERR_UNKNOWN);
    }
    client.go("vol");
    assert_eq!(client.read(0, 1).expect("read"), [0]);
    client.disconnect();
}

#[test]
fn a_name_from_outside_does_not_forge_lines_of_the_log() {
    let server = server();
    let mut client = server.greeted();
    let forged = "x\nWARN forged export=vol error=none";
    let text = client.option(opt::GO, &wire::go(forged, &[]))[0].text();
    assert!(!text.contains('\n'), "{text:?}");
    server.log.expect_warning(&["forged"]);
    assert!(
        server.log.lines().iter().all(|line| !line.contains('\n')),
        "one line for each"
    );
    client.go("vol");
    client.disconnect();
}

#[test]
fn abort_is_acknowledged_with_data_or_without() {
    let server = server();
    for data in [&b""[..], b"goodbye"] {
        let mut client = server.greeted();
        client.acknowledged(opt::ABORT, data);
        client.expect_end();
    }
    // A client that does not wait for the reply.
    let mut client = server.greeted();
    client.send(&wire::option(opt::ABORT, &[]));
    drop(client);
    server.wait_until_idle();
    serves(&server);
}

#[test]
fn garbage_instead_of_an_option_ends_the_connection() {
    let server = server();
    let mut client = server.greeted();
    client.send(&[0x47; 16]);
    client.expect_end();
    // The magic number that belongs to replies.
    let mut client = server.greeted();
    let mut bytes = wire::option(opt::LIST, &[]);
    bytes[..8].copy_from_slice(&wire::OPTION_REPLY.to_be_bytes());
    client.send(&bytes);
    client.expect_end();
    // Another protocol altogether.
    let mut client = Client::connect(&server.address);
    client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.expect_end();
    server.log.expect_warning(&["peer="]);
    serves(&server);
}

#[test]
fn a_handshake_cut_off_at_any_byte_does_no_harm() {
    let server = server();
    let mut whole = 3u32.to_be_bytes().to_vec();
    whole.extend(wire::option(opt::STRUCTURED_REPLY, &[]));
    let contexts = wire::meta("vol", &["base:allocation", "x-volmux:"]);
    whole.extend(wire::option(opt::SET_META_CONTEXT, &contexts));
    whole.extend(wire::option(opt::GO, &wire::go("vol", &[info::BLOCK_SIZE])));
    whole.extend(Request::write(Mode::Structured, 0, &[0xff; 40]).encode(Mode::Structured));
    // All but the last byte of the write.
    for length in 0..whole.len() {
        let mut client = Client::connect(&server.address);
        client.send(&whole[..length]);
        if length % 2 == 0 {
            client.stream().end_writing().expect("shutdown");
            client.rest();
        }
    }
    server.wait_until_idle();
    assert_eq!(
        server.content("vol"),
        vec![0; MIB as usize],
        "half a write is none"
    );
    serves(&server);
}

#[test]
fn options_sent_all_at_once_are_answered_in_order() {
    let server = server();
    let mut client = server.greeted();
    let mut all = wire::option(opt::STRUCTURED_REPLY, &[]);
    all.extend(wire::option(opt::LIST, &[]));
    all.extend(wire::option(77, b"data"));
    all.extend(wire::option(opt::GO, &wire::go("vol", &[])));
    all.extend(Request::new(cmd::DISC, 0, 0).encode(Mode::Simple));
    client.send(&all);
    let kinds = |replies: Vec<crate::common::client::OptionReply>| {
        replies.iter().map(|reply| reply.kind).collect::<Vec<_>>()
    };
    assert_eq!(
        kinds(client.option_replies(opt::STRUCTURED_REPLY)),
        [rep::ACK]
    );
    assert_eq!(
        kinds(client.option_replies(opt::LIST)),
        [rep::SERVER, rep::ACK]
    );
    assert_eq!(kinds(client.option_replies(77)), [rep::ERR_UNSUP]);
    assert_eq!(
        *kinds(client.option_replies(opt::GO)).last().expect("last"),
        rep::ACK
    );
    client.expect_end();
}

#[test]
fn a_volume_of_a_named_list_is_held_from_the_start_to_the_end() {
    let mut server = server();
    let busy = server
        .device("vol", OpenOptions::read_write())
        .expect_err("it is held");
    assert_eq!(busy.kind(), volmux_core::ErrorKind::Busy);
    server.open("vol", Mode::Simple).disconnect();
    let busy = server
        .device("vol", OpenOptions::read_write())
        .expect_err("it is held");
    assert_eq!(busy.kind(), volmux_core::ErrorKind::Busy);
    server.stop(Duration::from_secs(30)).expect("stop");
    server
        .device("vol", OpenOptions::read_write())
        .expect("it is free");
}

#[test]
fn a_volume_of_all_is_closed_after_its_last_client_said_goodbye() {
    let setup = Setup::memory().unlisted("vol", MIB).every_volume();
    let server = setup.start();
    let free = || server.device("vol", OpenOptions::read_write()).is_ok();
    assert!(free());
    let (a, b) = (
        server.open("vol", Mode::Simple),
        server.open("vol", Mode::Extended),
    );
    assert!(!free());
    a.disconnect();
    assert!(!free());
    b.disconnect();
    eventually("it is closed", free);
}

#[test]
fn a_volume_of_all_stays_open_for_a_client_that_was_cut_off_until_the_release_time() {
    let setup = Setup::memory().unlisted("vol", MIB).every_volume();
    let server = setup
        .limits(|l| l.release_time = Duration::from_secs(3600))
        .start();
    drop(server.open("vol", Mode::Simple));
    server.wait_until_idle();
    let busy = server
        .device("vol", OpenOptions::read_write())
        .expect_err("it is held");
    assert_eq!(busy.kind(), volmux_core::ErrorKind::Busy);

    let setup = Setup::memory().unlisted("vol", MIB).every_volume();
    let server = setup
        .limits(|l| l.release_time = Duration::from_millis(50))
        .start();
    drop(server.open("vol", Mode::Simple));
    eventually("it is closed", || {
        server.device("vol", OpenOptions::read_write()).is_ok()
    });
}
