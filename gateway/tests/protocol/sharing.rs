//! Several connections, several clients, several users of a pool.

use std::time::Duration;

use volmux_core::memory::MemoryPool;
use volmux_core::{
    Access, ByteRange, ByteSize, CreateOptions, ErrorKind, OpenOptions, Pool, ResizeOptions,
    Sharing,
};
use volmux_gateway::{Address, ExportOptions};

use crate::common::client::Client;
use crate::common::program::{eventually, run};
use crate::common::server::{MIB, Setup, TestServer, name};
use crate::common::watch::{Step, watched};
use crate::common::wire::{self, Mode, Request, can, flag, opt, rep};

/// Another process tries to become a client.
fn nbdinfo(server: &TestServer, export: &str) -> crate::common::program::Ran {
    run("nbdinfo", ["--size", &server.uri(export)])
}

#[test]
fn a_volume_that_is_written_has_one_client_process_at_a_time() {
    let server = Setup::memory().volume("vol", MIB).start();
    let first = server.open("vol", Mode::Structured);
    let second = server.open("vol", Mode::Structured);
    nbdinfo(&server, "vol").failed();
    server
        .log
        .expect_warning(&["export=", "vol", "peer=", "error=", "another client"]);
    first.disconnect();
    nbdinfo(&server, "vol").failed();
    second.disconnect();
    assert_eq!(nbdinfo(&server, "vol").ok().trim(), MIB.to_string());
}

#[test]
fn a_volume_that_is_written_has_one_client_address_at_a_time() {
    let server = Setup::memory().volume("vol", MIB).tcp().start();
    let Address::Tcp(address) = server.address else {
        panic!("it listens on TCP");
    };
    let first = server.open("vol", Mode::Structured);
    let second = server.open("vol", Mode::Structured);
    let mut other = Client::from_address(address, "127.0.0.2".parse().expect("an address"));
    other.negotiate(Mode::Structured);
    let text = other.refused(opt::GO, &wire::go("vol", &[]), rep::ERR_POLICY);
    assert!(text.contains("vol"), "{text}");
    assert!(
        !text.contains("127.0.0.1"),
        "who it is, is nobody's business: {text}"
    );
    server
        .log
        .expect_warning(&["export=", "vol", "127.0.0.2", "error="]);
    first.disconnect();
    second.disconnect();
    other.go("vol");
    other.disconnect();
}

#[test]
fn a_shared_or_read_only_volume_has_any_number_of_clients() {
    for (access, sharing) in [
        (Access::ReadWrite, Sharing::Shared),
        (Access::ReadOnly, Sharing::Exclusive),
    ] {
        let volume = name("vol");
        let export = ExportOptions {
            volume,
            access,
            sharing,
        };
        let server = Setup::memory().unlisted("vol", MIB).export(export).start();
        let here = server.open("vol", Mode::Structured);
        nbdinfo(&server, "vol").ok();
        here.disconnect();
    }
}

#[test]
fn what_one_connection_wrote_another_reads_at_once() {
    for setup in Setup::each() {
        let server = setup.volume("vol", MIB).start();
        let mut clients = Mode::ALL.map(|mode| server.open("vol", mode));
        assert!(
            clients
                .iter()
                .all(|c| c.export.flags & can::MULTI_CONN != 0)
        );
        for round in 0..30u64 {
            let data = [round as u8 + 1; 512];
            clients[round as usize % 3]
                .write(round * 512, &data)
                .expect("write");
            for client in &mut clients {
                assert_eq!(client.read(round * 512, 512).expect("read"), data);
            }
        }
        for client in clients {
            client.disconnect();
        }
    }
}

#[test]
fn all_connections_share_one_open_volume_and_a_flush_covers_the_writes_of_all() {
    let pool = watched(MemoryPool::unlimited());
    let server = Setup::over(pool.clone()).volume("vol", MIB).start();
    let mut a = server.open("vol", Mode::Structured);
    let mut b = server.open("vol", Mode::Extended);
    assert_eq!(pool.hook().began("open_volume"), 1, "one device for all");
    a.write(0, b"by a").expect("write");
    assert_eq!(pool.hook().began("flush"), 0);
    b.flush().expect("flush");
    let range = Some(ByteRange::new(0, 4));
    let steps = pool.hook().steps();
    let position = |step| steps.iter().position(|s| *s == step).expect("it was done");
    let written = position(Step::Ended("write_at", range));
    assert!(written < position(Step::Began("flush", None)));
    assert!(
        steps.contains(&Step::Ended("flush", None)),
        "the answer comes after the flush"
    );
    a.disconnect();
    b.disconnect();
}

#[test]
fn fua_is_answered_after_a_flush_that_began_after_the_write() {
    for mode in Mode::ALL {
        let pool = watched(MemoryPool::unlimited());
        let server = Setup::over(pool.clone()).volume("vol", MIB).start();
        let mut client = server.open("vol", mode);
        let zero = Request::new(wire::cmd::WRITE_ZEROES, 0, 512);
        let trim = Request::new(wire::cmd::TRIM, 0, 512);
        let requests = [
            ("write_at", Request::write(mode, 0, &[1; 512])),
            ("write_zeroes", zero),
            ("discard", trim),
        ];
        for (number, (op, request)) in requests.into_iter().enumerate() {
            assert_eq!(client.ask(request.clone()).error, 0);
            assert_eq!(pool.hook().began("flush"), number, "not without FUA");
            assert_eq!(client.ask(request.with(flag::FUA)).error, 0);
            let steps = pool.hook().steps();
            let last = steps
                .iter()
                .rposition(|s| matches!(s, Step::Ended(o, _) if *o == op));
            let began = steps.iter().rposition(|s| *s == Step::Began("flush", None));
            assert!(began > last, "{op}: {steps:?}");
            assert_eq!(steps.last(), Some(&Step::Ended("flush", None)));
        }
        client.disconnect();
    }
}

#[test]
fn what_was_flushed_is_there_for_another_pool_after_a_sudden_end() {
    for setup in [Setup::dir(), Setup::objects_in_dir()] {
        let mut server = setup.volume("vol", MIB).start();
        let mut a = server.open("vol", Mode::Structured);
        let mut b = server.open("vol", Mode::Structured);
        a.write(512 * 1024, b"written by a, flushed by b")
            .expect("write");
        b.flush().expect("flush");
        server.end();
        a.expect_end();
        b.expect_end();
        let pool = server.another_pool();
        let work = async {
            let device = pool
                .open_volume(&name("vol"), OpenOptions::read_only())
                .await?;
            device.read_at(512 * 1024, 26).await
        };
        let read = server.block_on(work).expect("read");
        assert_eq!(&read[..], b"written by a, flushed by b");
    }
}

#[test]
fn a_new_connection_sees_a_volume_that_grew_and_an_old_one_keeps_its_size() {
    for (setup, other_pool) in [
        (Setup::memory(), false),
        (Setup::objects(), false),
        (Setup::dir(), true),
        (Setup::objects_in_dir(), true),
    ] {
        let server = setup.volume("vol", MIB).start();
        let mut old = server.open("vol", Mode::Structured);
        old.write(0, b"kept").expect("write");
        // Another process has a pool object of its own.
        let pool = match other_pool {
            true => server.another_pool(),
            false => server.pool.clone(),
        };
        let grown = ResizeOptions::grow(ByteSize::mib(4));
        server
            .block_on(pool.resize_volume(&name("vol"), grown))
            .expect("resize");
        // Nobody asked for information before.
        let mut new = server.open("vol", Mode::Structured);
        assert_eq!(new.export.size, 4 * MIB);
        assert_eq!(server.greeted().info("vol").size, 4 * MIB);
        new.write(4 * MIB - 3, b"end").expect("write");
        assert_eq!(new.read(0, 4).expect("read"), b"kept");
        assert_eq!(old.read(4 * MIB - 3, 3), Err(wire::errno::EINVAL));
        old.write(MIB - 4, b"old!").expect("write");
        assert_eq!(new.read(MIB - 4, 5).expect("read"), b"old!\0");
        old.disconnect();
        new.disconnect();
    }
}

#[test]
fn a_volume_in_use_elsewhere_is_refused_at_go_and_the_connection_lives_on() {
    let setup = Setup::memory().unlisted("vol", MIB).unlisted("free", MIB);
    let server = setup.every_volume().start();
    let held = server
        .device("vol", OpenOptions::read_write())
        .expect("open");
    let mut client = server.greeted();
    let text = client.refused(opt::GO, &wire::go("vol", &[]), rep::ERR_POLICY);
    assert!(text.contains("vol"), "{text}");
    server
        .log
        .expect_warning(&["export=", "vol", "peer=", "error=", "busy"]);
    let mut old = server.greeted();
    old.send(&wire::option(opt::EXPORT_NAME, b"vol"));
    old.expect_end();
    // Looking is allowed.
    assert_eq!(client.info("vol").size, MIB);
    drop(held);
    client.go("vol");
    client.write(0, b"mine").expect("write");
    client.disconnect();
}

#[test]
fn a_server_does_not_begin_without_its_volumes() {
    let setup = || Setup::memory().unlisted("vol", MIB);
    let export = |volume| ExportOptions::read_write(name(volume));
    let (_, error) = setup()
        .export(export("nothing"))
        .try_start()
        .expect_err("missing");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("nothing"), "{error}");
    let (_, error) = setup().try_start().expect_err("no volume at all");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let twice = setup().export(export("vol")).export(export("vol"));
    let (_, error) = twice.try_start().expect_err("twice");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let setup = setup().export(export("vol"));
    let volume = name("vol");
    let open = setup.pool.open_volume(&volume, OpenOptions::read_write());
    let _held = setup.runtime.block_on(open).expect("open");
    let (_, error) = setup.try_start().expect_err("in use");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("vol"), "{error}");
}

#[test]
fn who_asks_for_a_name_that_another_volume_has_by_now_does_not_get_the_old_one() {
    for all in [false, true] {
        let pool = MemoryPool::unlimited();
        let setup = Setup::over(pool.clone()).volume("vol", MIB);
        let setup = match all {
            true => setup.every(Access::ReadWrite, Sharing::Shared),
            false => setup,
        };
        let server = setup.start();
        let mut first = server.open("vol", Mode::Structured);
        first.write(0, b"secret").expect("write");
        server.block_on(async {
            pool.rename_volume(&name("vol"), &name("old"))
                .await
                .expect("rename");
        });
        // A volume that is served from start to end is found by the name that it had.
        let mut second = server.greeted();
        second.negotiate(Mode::Structured);
        match all {
            true => drop(second.refused(opt::GO, &wire::go("vol", &[]), rep::ERR_UNKNOWN)),
            false => second.go("vol"),
        }
        server.block_on(async {
            let size = CreateOptions::thin(ByteSize::new(MIB));
            pool.create_volume(&name("vol"), size)
                .await
                .expect("create");
        });
        let mut third = server.greeted();
        third.negotiate(Mode::Structured);
        for option in [opt::INFO, opt::GO] {
            third.refused(option, &wire::go("vol", &[]), rep::ERR_UNKNOWN);
        }
        server
            .log
            .expect_warning(&["export=", "vol", "another volume"]);
        assert_eq!(first.read(0, 6).expect("it goes on"), b"secret");
    }
}

#[test]
fn volumes_are_kept_apart() {
    let setup = Setup::memory().volume("a", MIB).volume("b", MIB);
    let server = setup.start();
    for mode in Mode::ALL {
        let mut a = server.open("a", mode);
        let mut b = server.open("b", mode);
        a.write(0, b"secret of a").expect("write");
        assert_eq!(b.read(0, 11).expect("read"), [0; 11]);
        b.write(0, b"b's own").expect("write");
        assert_eq!(a.read(0, 11).expect("read"), b"secret of a");
        b.zero(0, MIB, 0).expect("zero");
        assert_eq!(a.read(0, 11).expect("read"), b"secret of a");
        a.disconnect();
        b.disconnect();
    }
}

/// A client that lost its connection sends its requests again on a new one.
#[test]
fn an_old_write_never_lands_on_top_of_one_of_a_newer_connection() {
    for mode in Mode::ALL {
        for (closed, at_a_time) in [(false, 256), (true, 256), (false, 1), (true, 1)] {
            let pool = watched(MemoryPool::unlimited());
            let setup = Setup::over(pool.clone()).volume("vol", MIB);
            let server = setup.limits(|l| l.in_flight_requests = at_a_time).start();
            let mut old = server.open("vol", mode);
            old.write(0, &[1; 4096]).expect("write");
            pool.hook().hold("write_at");
            // With one at a time the second stays in the socket.
            for _ in 0..2 {
                old.submit(Request::write(mode, 0, &[2; 4096]));
            }
            let hanging = 1 + at_a_time.min(2);
            eventually("the old write hangs", || {
                pool.hook().began("write_at") == hanging
            });
            let old = if closed {
                drop(old);
                None
            } else {
                Some(old)
            };
            std::thread::scope(|scope| {
                let new = scope.spawn(|| {
                    let mut new = server.open("vol", mode);
                    new.write(0, &[3; 4096]).expect("write");
                    new.flush().expect("flush");
                    new.disconnect();
                });
                // Time for what must not happen.
                std::thread::sleep(Duration::from_millis(100));
                pool.hook().release("write_at");
                new.join().expect("no panic");
            });
            if let Some(mut old) = old {
                assert_eq!(old.next_done().error, 0);
                assert_eq!(old.next_done().error, 0);
                old.disconnect();
            }
            server.wait_until_idle();
            assert!(
                server.content("vol")[..4096] == [3; 4096],
                "{mode:?} {closed} {at_a_time}"
            );
        }
    }
}

#[test]
fn a_hanging_read_of_an_old_connection_keeps_no_new_one_out() {
    let pool = watched(MemoryPool::unlimited());
    let server = Setup::over(pool.clone()).volume("vol", MIB).start();
    let mut old = server.open("vol", Mode::Structured);
    pool.hook().hold("read_at");
    old.submit(Request::new(wire::cmd::READ, 0, 4096));
    eventually("the read hangs", || pool.hook().began("read_at") == 1);
    let mut new = server.open("vol", Mode::Structured);
    new.write(0, b"served").expect("write");
    new.disconnect();
    pool.hook().release("read_at");
    assert_eq!(old.next_done().error, 0);
    old.disconnect();
}
