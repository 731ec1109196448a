//! Pings of both sides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use volmux_iscsi_initiator::{ErrorKind, Session};

use crate::connection::Connection;
use crate::negotiation::Terms;
use crate::support::*;
use crate::target::Target;
use crate::wire::*;

fn ping(connection: &mut Connection, ttt: u32) -> std::io::Result<()> {
    let mut ping = Pdu::new(NOP_IN, FINAL)
        .word(TAG, NONE)
        .word(TRANSFER_TAG, ttt);
    ping.head[8..16].copy_from_slice(&[0, 9, 0, 0, 0, 0, 0, 0]);
    connection.send(ping)
}

async fn with_pings(target: &Target) -> Session {
    let mut options = options(target);
    options.keep_alive = Duration::from_secs(1);
    Session::login(options).await.expect("a login")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_targets_is_answered() {
    limited(async {
        let target = Target::start(|connection| {
            connection.login()?;
            for ttt in [0x2a, 0, 0xffff_fffe] {
                ping(connection, ttt)?;
                let answer = |pdu: &Pdu| pdu.opcode() == NOP_OUT && pdu.tag() == NONE;
                let answer = connection.take(answer)?;
                assert_eq!(answer.get(TRANSFER_TAG), ttt);
                assert!(answer.immediate() && answer.is_final(), "{answer:02x?}");
                assert_eq!(
                    answer.lun(),
                    [0, 9, 0, 0, 0, 0, 0, 0],
                    "the unit comes back too"
                );
            }
            connection.serve()
        });
        let session = login(&target).await;
        works(&session).await;
        assert_eq!(target.connections(), 1);
        let answers = target.seen(NOP_OUT);
        assert!(answers.iter().filter(|seen| seen.pdu.tag() == NONE).count() == 3);
    })
    .await;
}

/// A NOP-In without a transfer tag only tells numbers.
#[tokio::test(flavor = "multi_thread")]
async fn none_is_wanted() {
    limited(async {
        let target = first(|connection, command| {
            ping(connection, NONE)?;
            connection.execute(command)
        });
        let session = login(&target).await;
        works(&session).await;
        assert_eq!(target.connections(), 1);
        assert!(
            target
                .seen(NOP_OUT)
                .iter()
                .all(|seen| seen.pdu.tag() != NONE)
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_tried() {
    limited(async {
        let target = good();
        let session = with_pings(&target).await;
        let pings = || target.seen(NOP_OUT);
        until("pings", || pings().len() >= 3).await;
        assert!(
            pings()
                .iter()
                .all(|ping| ping.pdu.get(TRANSFER_TAG) == NONE)
        );
        works(&session).await;
        assert_eq!((target.connections(), session.nexus()), (1, 1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_while_a_command_waits() {
    limited(async {
        let target = once(|connection, _| {
            connection.answer_pings = false;
            Ok(())
        });
        let session = with_pings(&target).await;
        let start = Instant::now();
        let error = session
            .execute(LUN, read(1, 8))
            .await
            .expect_err("no answer");
        check(&error, &[ErrorKind::Lost], &target, Some(LUN));
        assert!(error.sent());
        took(start, 2.0);
        works(&session).await;
        assert_eq!(session.nexus(), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_while_idle() {
    limited(async {
        let target = Target::start(|connection| {
            connection.login()?;
            connection.answer_pings = connection.number > 1;
            connection.serve()
        });
        let session = with_pings(&target).await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        works(&session).await;
        assert_eq!((target.connections(), session.nexus()), (2, 2));
    })
    .await;
}

/// The target learns that it is given up, and need not keep anything for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_is_closed() {
    limited(async {
        let target = Target::start(|connection| {
            connection.login()?;
            connection.answer_pings = false;
            connection.serve()
        });
        let session = with_pings(&target).await;
        until("it is closed", || target.running() == 0).await;
        drop(session);
    })
    .await;
}

/// Pings for ever, and no ear for their answers: these may not pile up.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood() {
    limited(async {
        let target = Target::start(|connection| {
            connection.login()?;
            if connection.number > 1 {
                return connection.serve();
            }
            let ping = Pdu::new(NOP_IN, FINAL)
                .word(TAG, NONE)
                .word(TRANSFER_TAG, 5);
            let pings = connection.encode(ping).repeat(1000);
            while !connection.shared.stopped() {
                connection.write(&pings)?;
            }
            Ok(())
        });
        let session = with_pings(&target).await;
        let error = session
            .execute(LUN, hasty(read(1, 8)))
            .await
            .expect_err("no answer");
        check(
            &error,
            &[ErrorKind::TimedOut, ErrorKind::Lost],
            &target,
            Some(LUN),
        );
        works(&session).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_nobody_asked_for() {
    limited(async {
        let target = once(|connection, command| {
            let answer = Pdu::to(command, NOP_IN, FINAL).word(TAG, 0x7777);
            connection.send(answer)
        });
        fails(
            "a stray answer",
            &target,
            read(1, 8),
            &[ErrorKind::Protocol],
        )
        .await;
    })
    .await;
}

/// It takes data slowly, answers nothing until it has all, and pings are behind that: it is there.
#[tokio::test(flavor = "multi_thread")]
async fn who_takes_data_is_alive() {
    const WRITES: usize = 400;
    limited(async {
        let target = Target::start(|connection| {
            connection.login_on(&Terms {
                window: 1000,
                segment: 65_536,
                ..Terms::default()
            })?;
            let mut commands = Vec::new();
            for _ in 0..WRITES {
                commands.push(connection.command()?);
                std::thread::sleep(Duration::from_millis(10));
            }
            for command in commands {
                connection.execute(&command)?;
            }
            connection.serve()
        });
        let mut options = options(&target);
        options.queue_depth = 1000;
        options.keep_alive = Duration::from_secs(1);
        let session = Arc::new(Session::login(options).await.expect("a login"));
        let mut running = JoinSet::new();
        for _ in 0..WRITES {
            let session = Arc::clone(&session);
            running.spawn(async move { session.execute(LUN, write(0, vec![1; 65_536])).await });
        }
        while let Some(ended) = running.join_next().await {
            assert_eq!(ended.expect("no panic").expect("a write").nexus, 1);
        }
    })
    .await;
}
