//! The target dies, hangs and comes back while it is written to.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use volmux_iscsi::transport::ScsiTransport;
use volmux_iscsi_client_rs::ClientRs;
use volmux_iscsi_initiator::{Credentials, ErrorKind, Replay};

use crate::random::pool;
use crate::server::Setup;
use crate::{MIB, connectors, eventually, scsi, within};

const BLOCK: u32 = 512;
/// What a machine with much else to do may add to a deadline.
const PATIENCE: Duration = Duration::from_secs(15);

/// A writer that goes on until it fails, at a megabyte of its own: how often it was acknowledged.
async fn write_on(
    session: Arc<dyn ScsiTransport>,
    number: u64,
    bytes: Bytes,
) -> (usize, ErrorKind, bool) {
    for round in 0.. {
        let data = bytes.slice(round..round + MIB as usize);
        let command = scsi::write(number * MIB / 512, data, BLOCK);
        match session.execute(1, command).await {
            Ok(reply) => assert_eq!(reply.status, scsi::GOOD, "{reply:?}"),
            Err(error) => return (round, error.kind(), error.sent()),
        }
    }
    unreachable!("it ends with an error")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_killed_amid_writes_is_lost_in_time() {
    const WRITERS: u64 = 8;
    for connector in connectors() {
        let mut server = Setup::disk(WRITERS * MIB, BLOCK).start();
        within(async {
            let mut options = server.options(1);
            options.command_timeout = Duration::from_secs(10);
            let session = scsi::login(&*connector, options).await;
            let bytes = pool(7, 64 * MIB as usize);
            let writers: Vec<_> = (0..WRITERS)
                .map(|number| tokio::spawn(write_on(session.clone(), number, bytes.clone())))
                .collect();
            tokio::time::sleep(Duration::from_millis(300)).await;
            server.kill();
            let start = Instant::now();
            let mut sent = 0;
            let mut acknowledged = Vec::new();
            for writer in writers {
                let (rounds, kind, was_sent) = writer.await.expect("a writer");
                // Who begins once it is dead finds no other connection.
                let due = [ErrorKind::Lost, ErrorKind::TimedOut].contains(&kind);
                assert!(due, "{}: {kind:?}", connector.name());
                sent += usize::from(kind == ErrorKind::Lost && was_sent);
                acknowledged.push(rounds);
            }
            let took = start.elapsed();
            assert!(took < Duration::from_secs(10) + PATIENCE, "{took:?}");
            assert!(sent > 0, "no write was under way");
            assert!(
                acknowledged.iter().sum::<usize>() > 0,
                "nothing was written"
            );
            // What was acknowledged is there, unless the next write has begun to replace it.
            let stored = fs::read(server.file(1, 1)).expect("the file");
            for (unit, rounds) in stored.chunks_exact(MIB as usize).zip(acknowledged) {
                for (at, sector) in unit.chunks_exact(512).enumerate() {
                    let of = |round: usize| &bytes[round + at * 512..][..512];
                    let before = rounds > 0 && sector == of(rounds - 1);
                    let zeros = rounds == 0 && sector.iter().all(|byte| *byte == 0);
                    assert!(before || zeros || sector == of(rounds), "sector {at}");
                }
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_comes_back_and_says_so() {
    for connector in connectors() {
        let mut server = Setup::disk(MIB, BLOCK).start();
        within(async {
            let mut options = server.options(1);
            options.command_timeout = Duration::from_secs(20);
            let session = scsi::login(&*connector, options).await;
            server.kill();
            server.start();
            // It was sent into the old session, or not sent at all.
            let mut of_the_old = scsi::test_unit_ready();
            of_the_old.nexus = Some(1);
            of_the_old.replay = Replay::Always;
            let error = session.execute(1, of_the_old.clone()).await;
            assert_eq!(error.expect_err("it is over").kind(), ErrorKind::Lost);
            let mut again = scsi::test_unit_ready();
            again.replay = Replay::Always;
            let reply = scsi::execute(&*session, 1, again).await;
            assert_eq!(reply.nexus, 2);
            assert!(scsi::is_unit_attention(&reply), "{reply:?}");
            let error = session
                .execute(1, of_the_old)
                .await
                .expect_err("it is over");
            assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
            assert!(!error.sent());
            let mut of_the_new = scsi::read(0, 1, BLOCK);
            of_the_new.nexus = Some(2);
            let data = scsi::good(&*session, 1, of_the_new).await;
            assert_eq!(data, [0; 512][..]);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_not_answered_in_time_ends_the_session() {
    let server = Setup::disk(4 * MIB, BLOCK).start();
    within(async {
        let mut options = server.options(1);
        options.keep_alive = Duration::from_secs(30);
        let session = scsi::login(&ClientRs, options).await;
        let old = Bytes::from(vec![1; MIB as usize]);
        server.freeze();
        let mut late = scsi::write(0, old.clone(), BLOCK);
        late.timeout = Some(Duration::from_millis(300));
        let mut others = Vec::new();
        for _ in 0..3 {
            let session = session.clone();
            let read = scsi::read(4096, 8, BLOCK);
            others.push(tokio::spawn(async move { session.execute(1, read).await }));
        }
        let error = session.execute(1, late).await.expect_err("it hangs");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        assert!(error.sent());
        for other in others {
            let error = other
                .await
                .expect("no panic")
                .expect_err("the session is over");
            assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
            assert!(error.sent());
        }
        server.go_on();
        // The old write is over before the new one is done, and can't overtake it.
        let new = Bytes::from(vec![2; MIB as usize]);
        scsi::stubborn(&*session, 1, scsi::write(0, new.clone(), BLOCK)).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let reply = scsi::execute(&*session, 1, scsi::read(0, 2048, BLOCK)).await;
        assert!(
            reply.data == new && reply.nexus == 2,
            "the old write came later"
        );
        eventually("one connection is left", || server.connections(1) == 1).await;
    })
    .await;
}

/// What waits at the target when the session ends is not done after what comes next.
#[tokio::test(flavor = "multi_thread")]
async fn the_writes_of_an_old_session_do_not_come_later() {
    for connector in connectors() {
        let server = Setup::disk(MIB, BLOCK).start();
        within(async {
            let mut options = server.options(1);
            options.keep_alive = Duration::from_millis(250);
            let session = scsi::login(&*connector, options).await;
            for round in 0..20 {
                server.freeze();
                let mut late = Vec::new();
                for _ in 0..100 {
                    let session = session.clone();
                    // All of it goes with the command.
                    let mut write = scsi::write(0, vec![1; 4096].into(), BLOCK);
                    write.timeout = Some(Duration::from_millis(200));
                    late.push(tokio::spawn(async move { session.execute(1, write).await }));
                }
                for write in late {
                    write.await.expect("no panic").expect_err("it hangs");
                }
                let new = {
                    let session = session.clone();
                    let write = scsi::write(0, vec![2; 4096].into(), BLOCK);
                    tokio::spawn(async move { scsi::stubborn(&*session, 1, write).await })
                };
                // It waits at the target as well, if it can.
                tokio::time::sleep(Duration::from_millis(100)).await;
                server.go_on();
                new.await.expect("it is written");
                let read = scsi::good(&*session, 1, scsi::read(0, 8, BLOCK)).await;
                assert_eq!(read, [2; 4096][..], "{}, round {round}", connector.name());
                tokio::time::sleep(Duration::from_millis(50)).await;
                let read = scsi::good(&*session, 1, scsi::read(0, 8, BLOCK)).await;
                assert_eq!(read, [2; 4096][..], "{}, round {round}", connector.name());
            }
        })
        .await;
    }
}

/// That is what keeps a new session from being overtaken by the old one.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_takes_the_place_of_the_one_before() {
    let own = Credentials::new("initiator", "initiator-secret");
    for chap in [None, Some(own.clone())] {
        for connector in connectors() {
            let setup = Setup::disk(MIB, BLOCK);
            let setup = match &chap {
                Some(own) => setup.incoming(own),
                None => setup,
            };
            let server = setup.start();
            within(async {
                let mut options = server.options(1);
                options.isid_qualifier = Some(7);
                options.chap = chap.clone();
                let old = scsi::login(&*connector, options.clone()).await;
                let new = connector.login(options).await.expect("a login");
                eventually("the old one is over", || server.connections(1) == 1).await;
                let mut of_the_old = scsi::test_unit_ready();
                of_the_old.nexus = Some(1);
                let error = old.execute(1, of_the_old).await.expect_err("it is over");
                assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
                scsi::settle(&*new, 1).await;
                let reply = scsi::execute(&*new, 1, scsi::test_unit_ready()).await;
                assert_eq!(reply.nexus, 1);
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_hangs_is_left() {
    for connector in connectors() {
        let server = Setup::disk(MIB, BLOCK).start();
        within(async {
            let mut options = server.options(1);
            options.keep_alive = Duration::from_millis(500);
            options.login_timeout = Duration::from_secs(1);
            options.command_timeout = Duration::from_secs(30);
            let session = scsi::login(&*connector, options).await;
            server.freeze();
            let start = Instant::now();
            let error = session.execute(1, scsi::read(0, 1, BLOCK)).await;
            let error = error.expect_err("it hangs");
            assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
            assert!(error.sent());
            let took = start.elapsed();
            assert!(took < Duration::from_secs(1) + PATIENCE, "{took:?}");
            server.go_on();
            scsi::stubborn(&*session, 1, scsi::test_unit_ready()).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_stays() {
    for connector in connectors() {
        let server = Setup::disk(MIB, BLOCK).start();
        within(async {
            let mut options = server.options(1);
            // Twice as long a target has to answer, also on a busy machine.
            options.keep_alive = Duration::from_millis(700);
            let session = scsi::login(&*connector, options).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            let reply = scsi::execute(&*session, 1, scsi::test_unit_ready()).await;
            assert_eq!((reply.status, reply.nexus), (scsi::GOOD, 1));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_leaves_the_session_in_order() {
    for connector in connectors() {
        let server = Setup::disk(8 * MIB, BLOCK).start();
        within(async {
            let session = scsi::login(&*connector, server.options(1)).await;
            for round in 0..50_u64 {
                let data = Bytes::from(vec![round as u8; 2 * MIB as usize]);
                let write = session.execute(1, scsi::write(0, data.clone(), BLOCK));
                let soon = Duration::from_micros(round * 100);
                // Dropped at any moment.
                let _ = tokio::time::timeout(soon, write).await;
                let elsewhere = scsi::write(8192, data.slice(..4096), BLOCK);
                scsi::good(&*session, 1, elsewhere).await;
                let reply = scsi::execute(&*session, 1, scsi::read(8192, 8, BLOCK)).await;
                assert!(reply.data == data[..4096] && reply.nexus == 1);
            }
            let data = Bytes::from(vec![0xee; 2 * MIB as usize]);
            // Not before it is known that the last one is done.
            eventually("all is answered", || server.connections(1) == 1).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            scsi::good(&*session, 1, scsi::write(0, data.clone(), BLOCK)).await;
            let read = scsi::good(&*session, 1, scsi::read(0, 4096, BLOCK)).await;
            assert!(read == data, "an older write came later");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_dropped_is_closed() {
    for connector in connectors() {
        let server = Setup::disk(MIB, BLOCK).start();
        within(async {
            let session = scsi::login(&*connector, server.options(1)).await;
            assert_eq!(server.connections(1), 1);
            drop(session);
            eventually("it is closed", || server.connections(1) == 0).await;
            let session = connector.login(server.options(1)).await.expect("login");
            session.logout().await.expect("logout");
            eventually("it has left", || server.connections(1) == 0).await;
            // Whoever asks again gets a new one.
            let reply = scsi::execute(&*session, 1, scsi::test_unit_ready()).await;
            assert_eq!(reply.nexus, 2);
        })
        .await;
    }
}
