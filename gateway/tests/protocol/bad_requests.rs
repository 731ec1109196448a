//! Requests that must not be done: each is refused, and the connection goes on where it can.

use volmux_gateway::ExportOptions;

use crate::common::server::{MIB, Setup, name};
use crate::common::wire::{self, Mode, Request, cmd, errno, flag};
use crate::transmission::{in_each_mode, lives, server};

#[test]
fn requests_of_no_length_do_not_end_the_connection() {
    in_each_mode(|_, mut client| {
        for offset in [0, 4096, MIB] {
            for command in [cmd::READ, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES] {
                let done = client.ask(Request::new(command, offset, 0));
                assert!(
                    [0, errno::EINVAL].contains(&done.error),
                    "{command}: {done:?}"
                );
            }
            let done = client.ask(Request::write(client.mode, offset, &[]));
            assert!([0, errno::EINVAL].contains(&done.error), "{done:?}");
        }
        lives(&mut client);
        client.disconnect();
    });
}

#[test]
fn requests_past_the_end_fail_and_change_nothing() {
    in_each_mode(|server, mut client| {
        let mode = client.mode;
        client.write(MIB - 4096, &[9; 4096]).expect("write");
        let before = server.content("vol");
        for (offset, length) in [
            (MIB, 1),
            (MIB - 1, 2),
            (MIB + 1, 1),
            (MIB - 4096, 8192),
            (0, MIB + 1),
            (1 << 40, 4096),
            (u64::MAX, 1),
            (u64::MAX - 4095, 4096),
            (u64::MAX - 1, 512),
            (1 << 63, 1 << 12),
        ] {
            assert_eq!(
                client.read(offset, length),
                Err(errno::EINVAL),
                "{offset}+{length}"
            );
            let data = vec![1; length as usize];
            let write = client.write(offset, &data);
            assert_eq!(write, Err(errno::ENOSPC), "{mode:?} {offset}+{length}");
            assert_eq!(
                client.zero(offset, length, 0),
                Err(errno::ENOSPC),
                "{offset}+{length}"
            );
            // The specification: EINVAL for a trim. Both are told of such a request.
            let trim = client.trim(offset, length).expect_err("past the end");
            assert!([errno::EINVAL, errno::ENOSPC].contains(&trim), "{trim}");
            let cached = client.ask(Request::new(cmd::CACHE, offset, length));
            assert_eq!(cached.error, errno::EINVAL);
        }
        assert!(server.content("vol") == before, "nothing changed");
        lives(&mut client);
        client.disconnect();
    });
}

#[test]
fn lengths_that_overflow_fail_and_change_nothing() {
    let server = server();
    let mut client = server.open("vol", Mode::Extended);
    client.write(0, &[9; 8192]).expect("write");
    let before = server.content("vol");
    for (offset, length) in [
        (0, u64::MAX),
        (1, u64::MAX),
        (4096, u64::MAX - 4095),
        (u64::MAX, u64::MAX),
        (1 << 63, 1 << 63),
        (512, 1 << 32),
        (0, 1 << 63),
    ] {
        for command in [cmd::READ, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES] {
            let done = client.ask(Request::new(command, offset, length));
            assert_ne!(done.error, 0, "{command} {offset}+{length}");
        }
    }
    assert!(server.content("vol") == before, "nothing changed");
    lives(&mut client);
    client.disconnect();
}

#[test]
fn a_read_longer_than_the_limit_fails_and_the_connection_lives_on() {
    let setup = Setup::memory().volume("vol", 8 * MIB);
    let server = setup.limits(|l| l.request_length = MIB as u32).start();
    for mode in Mode::ALL {
        let mut client = server.open("vol", mode);
        assert_eq!(
            client.export.block_size.map(|sizes| sizes[2]),
            Some(MIB as u32)
        );
        let longest = client.read(0, MIB).expect("as long as allowed");
        assert_eq!(longest.len() as u64, MIB);
        for length in [MIB + 1, 2 * MIB, 8 * MIB] {
            let error = client.read(0, length).expect_err("too long");
            let fitting = [errno::EINVAL, errno::EOVERFLOW];
            assert!(fitting.contains(&error), "{mode:?} {length}: {error}");
        }
        lives(&mut client);
        client.disconnect();
    }
    server.log.expect_warning(&["export=vol", "peer="]);
}

#[test]
fn a_write_longer_than_the_limit_is_not_taken_in() {
    let setup = Setup::memory().volume("vol", 8 * MIB);
    let server = setup.limits(|l| l.request_length = MIB as u32).start();
    for mode in Mode::ALL {
        let mut client = server.open("vol", mode);
        client
            .write(0, &vec![0; MIB as usize])
            .expect("as long as allowed");
        let (_, bytes) = client.prepare(Request::write(mode, 0, &vec![1; MIB as usize + 1]));
        if mode == Mode::Extended {
            // The specification: a hard disconnect.
            let _ = client.try_send(&bytes);
            client.rest();
        } else {
            // The specification: none up to 32 MiB.
            client.send(&bytes);
            assert_eq!(client.next_done().error, errno::EINVAL, "{mode:?}");
            lives(&mut client);
            assert_eq!(client.read(0, 512).expect("read"), [0; 512]);
            client.disconnect();
        }
        // So much is an attack, and nothing of it is waited for.
        for length in [1 << 31, u32::MAX] {
            let mut client = server.open("vol", mode);
            let mut request = Request::write(mode, 0, &[]);
            request.length = length.into();
            client.send(&request.encode(mode));
            client.stream().end_writing().expect("shutdown");
            let rest = client.rest();
            assert!(rest.len() <= 4200, "an error at most");
        }
    }
    server.log.expect_warning(&["export=vol", "peer="]);
    assert_eq!(server.content("vol")[..512], [0; 512]);
}

#[test]
fn a_payload_longer_than_any_memory_ends_the_connection() {
    let server = server();
    for length in [1 << 32, 1 << 62, u64::MAX] {
        let mut client = server.open("vol", Mode::Extended);
        let mut request = Request::write(Mode::Extended, 0, &[]);
        request.length = length;
        client.send(&request.encode(Mode::Extended));
        // It may be gone already.
        let _ = client.try_send(&[0; 4096]);
        let _ = client.stream().end_writing();
        assert!(client.rest().len() <= 4200, "an error at most");
    }
    server.log.expect_warning(&["export=vol", "peer="]);
    lives(&mut server.open("vol", Mode::Extended));
}

#[test]
fn an_unknown_command_is_invalid() {
    in_each_mode(|server, mut client| {
        for command in [cmd::RESIZE, 9, 255, 256, 0x7fff, u16::MAX] {
            let done = client.ask(Request::new(command, 0, 512));
            assert_eq!(done.error, errno::EINVAL, "{command}");
        }
        lives(&mut client);
        server.log.expect_warning(&["export=vol", "peer="]);
        client.disconnect();
    });
}

#[test]
fn a_flag_that_a_command_does_not_have_is_invalid() {
    in_each_mode(|server, mut client| {
        let mode = client.mode;
        client.write(0, &[7; 4096]).expect("write");
        let before = server.content("vol");
        // FUA is allowed for all of them.
        let allowed = |command| {
            flag::FUA
                | match command {
                    cmd::READ if mode != Mode::Simple => flag::DF,
                    cmd::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
                    _ => 0,
                }
        };
        let commands = [
            cmd::READ,
            cmd::FLUSH,
            cmd::TRIM,
            cmd::CACHE,
            cmd::WRITE_ZEROES,
        ];
        for command in commands {
            for bit in 0..16 {
                let flag = 1u16 << bit;
                // With extended headers it announces a payload; that is another test.
                let payload = mode == Mode::Extended && flag == flag::PAYLOAD_LEN;
                if allowed(command) & flag != 0 || payload {
                    continue;
                }
                let length = if command == cmd::FLUSH { 0 } else { 4096 };
                let done = client.ask(Request::new(command, 0, length).with(flag));
                assert_eq!(done.error, errno::EINVAL, "{mode:?} {command} {flag:#x}");
            }
        }
        // A write's payload is read although the flag is wrong.
        for flag in [
            flag::NO_HOLE,
            flag::DF,
            flag::REQ_ONE,
            flag::FAST_ZERO,
            1 << 15,
        ] {
            let done = client.ask(Request::write(mode, 0, &[1; 4096]).with(flag));
            assert_eq!(done.error, errno::EINVAL, "{mode:?} {flag:#x}");
        }
        assert!(server.content("vol") == before, "nothing changed");
        lives(&mut client);
        client.disconnect();
        server.log.expect_warning(&["export=vol", "peer="]);
    });
}

#[test]
fn a_compact_write_with_the_payload_flag_is_invalid_and_its_payload_is_read() {
    for mode in [Mode::Simple, Mode::Structured] {
        let server = server();
        let mut client = server.open("vol", mode);
        let done = client.ask(Request::write(mode, 0, &[1; 512]).with(flag::PAYLOAD_LEN));
        assert_eq!(done.error, errno::EINVAL);
        assert_eq!(client.read(0, 1).expect("read"), [0]);
        lives(&mut client);
        client.disconnect();
    }
}

/// The specification demands the flag; QEMU's server takes the payload without it, and so do we.
#[test]
fn an_extended_write_without_the_payload_flag_has_its_payload_all_the_same() {
    let server = server();
    let mut client = server.open("vol", Mode::Extended);
    let mut write = Request::write(Mode::Extended, 0, &[7; 512]);
    write.flags = 0;
    assert_eq!(client.ask(write).error, 0);
    assert_eq!(client.read(0, 512).expect("read"), [7; 512]);
    lives(&mut client);
    client.disconnect();
}

#[test]
fn an_unwanted_payload_is_read_and_refused() {
    let server = server();
    let mut client = server.open("vol", Mode::Extended);
    client.write(0, &[7; 4096]).expect("write");
    let commands = [
        cmd::READ,
        cmd::FLUSH,
        cmd::TRIM,
        cmd::CACHE,
        cmd::WRITE_ZEROES,
        99,
    ];
    for command in commands {
        for length in [1, 16, 4096, 300_000] {
            let mut request = Request::new(command, 0, length).with(flag::PAYLOAD_LEN);
            request.payload = vec![0xab; length as usize];
            let done = client.ask(request);
            assert_eq!(done.error, errno::EINVAL, "{command} {length}");
        }
    }
    assert_eq!(client.read(0, 4096).expect("read"), [7; 4096]);
    lives(&mut client);
    client.disconnect();
}

#[test]
fn a_request_with_the_wrong_magic_ends_the_connection() {
    for mode in Mode::ALL {
        let server = server();
        let wrong = match mode {
            Mode::Extended => wire::REQUEST,
            Mode::Simple | Mode::Structured => wire::EXTENDED_REQUEST,
        };
        for magic in [0, wrong, wire::SIMPLE_REPLY, 0x1256_0953, u32::MAX] {
            let mut client = server.open("vol", mode);
            let mut bytes = Request::write(mode, 0, &[1; 64]).encode(mode);
            bytes[..4].copy_from_slice(&magic.to_be_bytes());
            client.send(&bytes);
            client.expect_end();
        }
        server.log.expect_warning(&["export=vol", "peer="]);
        assert_eq!(server.content("vol")[..64], [0; 64]);
        lives(&mut server.open("vol", mode));
    }
}

#[test]
fn a_status_without_a_context_is_invalid() {
    in_each_mode(|_, mut client| {
        let done = client.ask(Request::new(cmd::BLOCK_STATUS, 0, 4096));
        assert_eq!(done.error, errno::EINVAL);
        lives(&mut client);
        client.disconnect();
    });
}

#[test]
fn a_read_only_export_is_not_written() {
    let setup = Setup::memory().unlisted("vol", MIB);
    let server = setup.export(ExportOptions::read_only(name("vol"))).start();
    for mode in Mode::ALL {
        let mut client = server.open("vol", mode);
        assert_eq!(client.write(0, &[1; 600]), Err(errno::EPERM));
        assert_eq!(client.write(0, &vec![1; 300_000]), Err(errno::EPERM));
        assert_eq!(client.zero(0, 512, 0), Err(errno::EPERM));
        assert_eq!(client.zero(0, 512, flag::FAST_ZERO), Err(errno::EPERM));
        assert_eq!(client.trim(0, 512), Err(errno::EPERM));
        assert_eq!(client.read(0, 512).expect("read"), [0; 512]);
        client.flush().expect("nothing to flush");
        assert_eq!(client.ask(Request::new(cmd::CACHE, 0, 512)).error, 0);
        client.disconnect();
    }
    assert_eq!(server.content("vol"), vec![0; MIB as usize]);
}
