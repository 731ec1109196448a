//! Task management: aborts of what takes too long, and the reset of a unit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use volmux_iscsi_initiator::{ErrorKind, Session};

use crate::support::*;
use crate::target::{BLOCK, Target};
use crate::wire::*;

const ABORT_TASK: u8 = 1;
const RESET_UNIT: u8 = 5;

/// The command ends in time, and is aborted.
async fn times_out(session: &Session, target: &Target, command: volmux_iscsi_initiator::Command) {
    let start = Instant::now();
    let error = session
        .execute(LUN, hasty(command))
        .await
        .expect_err("no answer");
    took(start, 1.0);
    check(&error, &[ErrorKind::TimedOut], target, Some(LUN));
    assert!(error.sent());
    until("it is aborted", || !target.seen(TASK).is_empty()).await;
    let abort = &target.seen(TASK)[0].pdu;
    let command = &target.seen(COMMAND)[0].pdu;
    assert_eq!(abort.head[1], FINAL | ABORT_TASK);
    assert_eq!(
        abort.get(TRANSFER_TAG),
        command.tag(),
        "the task that is meant"
    );
    assert_eq!(abort.get(MAXIMUM), command.get(NUMBER), "its CmdSN");
    assert_eq!(abort.lun(), command.lun());
    assert_ne!(abort.tag(), command.tag());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_to_a_command() {
    limited(async {
        for command in [read(1, 8), write(1, vec![1; 100 * BLOCK])] {
            let target = first(|_, _| Ok(()));
            let session = login(&target).await;
            times_out(&session, &target, command).await;
            works(&session).await;
            assert_eq!((target.connections(), session.nexus()), (1, 1));
        }
    })
    .await;
}

/// Without a time of its own that of the session counts.
#[tokio::test(flavor = "multi_thread")]
async fn the_session_has_a_time() {
    limited(async {
        let target = first(|_, _| Ok(()));
        let mut options = options(&target);
        options.command_timeout = Duration::from_secs(3);
        let session = Session::login(options).await.expect("a login");
        let start = Instant::now();
        let error = session
            .execute(LUN, read(1, 8))
            .await
            .expect_err("no answer");
        check(&error, &[ErrorKind::TimedOut], &target, Some(LUN));
        took(start, 3.0);
        works(&session).await;
    })
    .await;
}

/// Each command has its own time, whichever was sent first.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_less_time_ends_first() {
    limited(async {
        // Nothing is answered but the aborts.
        let target = once(|connection, _| connection.drain());
        let session = Arc::new(login(&target).await);
        let start = Instant::now();
        let mut ended = Vec::new();
        for seconds in [5, 1, 3] {
            let session = Arc::clone(&session);
            let mut command = read(seconds, 8);
            command.timeout = Some(Duration::from_secs(seconds as u64));
            ended.push(tokio::spawn(async move {
                let error = session.execute(LUN, command).await.expect_err("no answer");
                (error, Instant::now())
            }));
            // Until somebody has begun to wait for the one before.
            until("it is sent", || target.seen(COMMAND).len() == ended.len()).await;
        }
        let mut times = Vec::new();
        for (task, seconds) in ended.into_iter().zip([5.0, 1.0, 3.0]) {
            let (error, end) = task.await.expect("no panic");
            check(&error, &[ErrorKind::TimedOut], &target, Some(LUN));
            assert!(error.sent(), "{error}");
            let taken = end.duration_since(start).as_secs_f32();
            assert!(taken > seconds - 0.05, "{taken} s, not {seconds} s");
            times.push(end);
        }
        assert!(times[1] < times[2] && times[2] < times[0], "{times:?}");
        assert_eq!(target.connections(), 1);
    })
    .await;
}

/// Data comes all the time, and never all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_trickle() {
    limited(async {
        let target = first(|connection, command| {
            for sn in 0.. {
                if connection.more_within(Duration::from_millis(50))? {
                    let pdu = connection.receive()?;
                    let abort = pdu.opcode() == TASK;
                    connection.manage(pdu)?;
                    if abort {
                        return Ok(());
                    }
                }
                connection.data_in(command, 0, sn, 4 * sn, &[1; 4])?;
            }
            Ok(())
        });
        let session = login(&target).await;
        times_out(&session, &target, read(1, 8)).await;
        works(&session).await;
    })
    .await;
}

/// The answer crosses the abort: both are right.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_after_all() {
    limited(async {
        let target = first(|connection, command| {
            let abort = connection.take(|pdu| pdu.opcode() == TASK)?;
            connection.execute(command)?;
            connection.manage(abort)
        });
        let session = login(&target).await;
        times_out(&session, &target, read(1, 8)).await;
        works(&session).await;
        assert_eq!(target.connections(), 1);
    })
    .await;
}

/// An R2T crosses the abort of a write.
#[tokio::test(flavor = "multi_thread")]
async fn an_r2t_after_all() {
    limited(async {
        let target = first(|connection, command| {
            let abort = connection.take(|pdu| pdu.opcode() == TASK)?;
            connection.r2t(command, 5, 0, command.data.len(), 4 * BLOCK)?;
            connection.manage(abort)
        });
        let session = login(&target).await;
        times_out(&session, &target, write(1, vec![1; 100 * BLOCK])).await;
        works(&session).await;
    })
    .await;
}

/// No answer to the abort, or one that says no.
#[tokio::test(flavor = "multi_thread")]
async fn an_abort_that_fails() {
    limited(async {
        for response in [None, Some(1), Some(5), Some(255)] {
            let target = first(move |connection, _| {
                let abort = connection.take(|pdu| pdu.opcode() == TASK)?;
                let answer = Pdu::to(&abort, TASK_RESPONSE, FINAL).word(TRANSFER_TAG, 0);
                match response {
                    Some(code) => connection.send(answer.byte(2, code)),
                    None => connection.drain(),
                }
            });
            let mut options = options(&target);
            options.keep_alive = Duration::from_secs(1);
            let session = Session::login(options).await.expect("a login");
            let command = hasty(read(1, 8));
            let error = session.execute(LUN, command).await.expect_err("no answer");
            check(&error, &[ErrorKind::TimedOut], &target, Some(LUN));
            let mut next = session.execute(LUN, hasty(read(1, 8))).await;
            if let Err(error) = &next {
                // It was sent before the connection was given up.
                check(
                    error,
                    &[ErrorKind::Lost, ErrorKind::TimedOut],
                    &target,
                    Some(LUN),
                );
                next = session.execute(LUN, read(1, 8)).await;
            }
            is_good(&next.expect("a read"), 1, 8);
        }
    })
    .await;
}

/// One command that is never answered costs the connection, but not the other commands.
#[tokio::test(flavor = "multi_thread")]
async fn an_abort_that_fails_is_no_matter_of_others() {
    limited(async {
        for response in [None, Some(1)] {
            let target = Target::start(move |connection| {
                connection.login()?;
                if connection.number > 1 {
                    return connection.serve();
                }
                for _ in 0..2 {
                    connection.command()?;
                }
                let abort = connection.take(|pdu| pdu.opcode() == TASK)?;
                if let Some(code) = response {
                    let answer = Pdu::to(&abort, TASK_RESPONSE, FINAL).word(TRANSFER_TAG, 0);
                    connection.send(answer.byte(2, code))?;
                }
                connection.drain()
            });
            let mut options = options(&target);
            options.keep_alive = Duration::from_secs(3);
            let session = Arc::new(Session::login(options).await.expect("a login"));
            let other = {
                let session = Arc::clone(&session);
                tokio::spawn(async move { session.execute(LUN, replayed(read(7, 8))).await })
            };
            until("it is sent", || target.seen(COMMAND).len() == 1).await;
            let late = session.execute(LUN, hasty(read(1, 8))).await;
            check(
                &late.expect_err("no answer"),
                &[ErrorKind::TimedOut],
                &target,
                Some(LUN),
            );
            let other = other.await.expect("no panic");
            is_good(&other.expect("on the next connection"), 7, 8);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn units_are_reset() {
    limited(async {
        let target = Target::start(|connection| {
            connection.login()?;
            let reset = connection.take(|pdu| pdu.opcode() == TASK)?;
            assert_eq!(reset.head[1], FINAL | RESET_UNIT);
            assert_eq!(reset.lun()[1], 3);
            assert_eq!(reset.get(TRANSFER_TAG), NONE, "no task is meant");
            connection.manage(reset)?;
            connection.serve()
        });
        let session = Arc::new(login(&target).await);
        let waiting = Arc::clone(&session);
        let waiting = tokio::spawn(async move { waiting.execute(LUN, read(1, 8)).await });
        until("a command", || target.seen(COMMAND).len() == 1).await;
        session.reset_lun(LUN).await.expect("a reset");
        // It ended with the reset, so it has no answer.
        let error = waiting.await.expect("no panic").expect_err("no answer");
        assert!(error.sent(), "{error}");
        check(
            &error,
            &[ErrorKind::Lost, ErrorKind::TimedOut],
            &target,
            Some(LUN),
        );
        works(&session).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_that_fail() {
    limited(async {
        let cases: [(Option<u8>, &[ErrorKind]); 3] = [
            (Some(255), &[ErrorKind::Refused]),
            (Some(5), &[ErrorKind::Refused]),
            (None, &[ErrorKind::TimedOut, ErrorKind::Lost]),
        ];
        for (response, kinds) in cases {
            let target = Target::start(move |connection| {
                connection.login()?;
                if connection.number > 1 {
                    return connection.serve();
                }
                let reset = connection.take(|pdu| pdu.opcode() == TASK)?;
                let answer = Pdu::to(&reset, TASK_RESPONSE, FINAL).word(TRANSFER_TAG, 0);
                if let Some(code) = response {
                    connection.send(answer.byte(2, code))?;
                }
                connection.serve()
            });
            let mut options = options(&target);
            options.command_timeout = Duration::from_secs(4);
            let session = Session::login(options).await.expect("a login");
            let error = session.reset_lun(LUN).await.expect_err("no reset");
            check(&error, kinds, &target, Some(LUN));
            works(&session).await;
        }
    })
    .await;
}
