//! Connections that break, at every step.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use volmux_iscsi_initiator::{Command, ErrorKind, Session};

use crate::disk::data_in;
use crate::negotiation::Terms;
use crate::support::*;
use crate::target::{BLOCK, Target};
use crate::wire::*;

/// So many requests are answered, and stages end with them or not. The connection ends after the
/// next request, or after so many bytes of its answer.
fn breaks_in_login(answers: usize, stages_end: bool, bytes: usize) -> Target {
    Target::start(move |connection| {
        if connection.number > 1 {
            connection.login()?;
            return connection.serve();
        }
        for _ in 0..answers {
            let (request, keys) = connection.login_request()?;
            let answers = text(&connection.agree(&Terms::default(), &keys));
            match stages_end {
                true => connection.login_answer(&request, &answers).map(drop)?,
                false => connection.login_response(&request, request.head[1] & 0x0c, &answers)?,
            }
        }
        if answers == 0 && bytes == 0 {
            return Ok(());
        }
        let (request, keys) = connection.login_request()?;
        let answers = text(&connection.agree(&Terms::default(), &keys));
        let mut pdu = Pdu::to(&request, LOGIN_RESPONSE, request.head[1]).with(answers);
        pdu.head[8..14].copy_from_slice(&request.head[8..14]);
        let whole = connection.encode(pdu.word(TRANSFER_TAG, 0));
        connection.write(&whole[..bytes])
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_login() {
    let cases = [
        (0, false, 0),
        (0, false, 1),
        (0, false, 47),
        (0, false, 48),
        (0, false, 60),
        (1, false, 0),
        (2, false, 0),
        (1, true, 0),
        (1, true, 47),
        (1, true, 60),
    ];
    limited(async {
        each(cases, |(answers, stages_end, bytes)| async move {
            let target = breaks_in_login(answers, stages_end, bytes);
            let what = format!("after {answers} answers ({stages_end}) and {bytes} bytes");
            fails_to_login(&what, &target, options(&target), &[ErrorKind::Lost]).await;
            works(&login(&target).await).await;
            assert_eq!(target.connections(), 2, "a login is tried once");
        })
        .await;
    })
    .await;
}

/// What the first connection does before it ends.
const STEPS: [(&str, Act); 6] = [
    ("nothing", |_, _| Ok(())),
    ("a part of a header", |connection, command| {
        let bytes = connection.encode(data_in(command, FINAL | STATUS, 0, 0, &[1; BLOCK]));
        connection.write(&bytes[..20])
    }),
    ("a header", |connection, command| {
        let bytes = connection.encode(data_in(command, FINAL | STATUS, 0, 0, &[1; BLOCK]));
        connection.write(&bytes[..48])
    }),
    ("a part of the data", |connection, command| {
        let data = connection.on_disk(command);
        let bytes = connection.encode(data_in(command, FINAL | STATUS, 0, 0, &data));
        connection.write(&bytes[..bytes.len() - 1])
    }),
    ("half of the data", |connection, command| {
        connection.data_in(command, FINAL, 0, 0, &[1; 4 * BLOCK])
    }),
    ("all of the data without a status", |connection, command| {
        let data = connection.on_disk(command);
        connection.data_in(command, FINAL, 0, 0, &data)
    }),
];

const STEPS_OF_WRITES: [(&str, Act); 4] = [
    ("nothing", |_, _| Ok(())),
    ("an R2T", |connection, command| {
        connection.r2t(command, 7, 0, command.data.len(), 50 * BLOCK)
    }),
    ("an R2T, and takes a part", |connection, command| {
        connection.r2t(command, 7, 0, command.data.len(), 50 * BLOCK)?;
        connection.data_out(command).map(drop)
    }),
    ("an R2T, and takes it all", |connection, command| {
        connection.r2t(command, 7, 0, command.data.len(), 50 * BLOCK)?;
        let mut data = command.data.clone();
        connection
            .sequence(command, 7, &mut data, 50 * BLOCK)
            .map(drop)
    }),
];

fn ends_after(act: Act) -> Target {
    Target::start(move |connection| {
        connection.login()?;
        if connection.number > 1 {
            return connection.serve();
        }
        let command = connection.command()?;
        act(connection, &command)
    })
}

async fn breaks_with(command: &Command, steps: &[(&str, Act)]) {
    for (what, act) in steps {
        fails(what, &ends_after(*act), command.clone(), &[ErrorKind::Lost]).await;

        let target = ends_after(*act);
        let session = login(&target).await;
        let reply = session
            .execute(LUN, replayed(command.clone()))
            .await
            .expect(what);
        assert_eq!(
            (reply.status, reply.nexus, session.nexus()),
            (0, 2, 2),
            "{what}"
        );
        match &command.data {
            volmux_iscsi_initiator::Data::Write(data) => {
                assert!(target.disk(300, 100) == data[..], "{what}");
            }
            _ => is_good(&reply, 1, 8),
        }
        let came: Vec<usize> = target
            .seen(COMMAND)
            .iter()
            .map(|seen| seen.connection)
            .collect();
        assert_eq!(came, [1, 2], "{what}: once on each connection");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_read() {
    limited(breaks_with(&read(1, 8), &STEPS)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_write() {
    limited(breaks_with(&write(300, original(9, 100)), &STEPS_OF_WRITES)).await;
}

/// A connection that breaks with nothing to do is nobody's error.
#[tokio::test(flavor = "multi_thread")]
async fn while_idle() {
    limited(async {
        let target = Target::start(|connection| {
            connection.login()?;
            if connection.number == 1 {
                return Ok(());
            }
            connection.serve()
        });
        let session = login(&target).await;
        until("it ends", || target.running() == 0).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let reply = session
            .execute(LUN, read(1, 8))
            .await
            .expect("it was not sent before");
        is_good(&reply, 1, 8);
        assert_eq!((reply.nexus, target.connections()), (2, 2));
    })
    .await;
}

/// One command fills the window and is lost; the others were never sent.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_sent_is_not_lost() {
    limited(async {
        let target = Target::start(|connection| {
            connection.login_on(&Terms {
                window: 1,
                ..Terms::default()
            })?;
            if connection.number > 1 {
                return connection.serve();
            }
            connection.command()?;
            // So that the others have come to wait.
            std::thread::sleep(Duration::from_secs(1));
            Ok(())
        });
        let session = Arc::new(login(&target).await);
        let mut running = JoinSet::new();
        for block in 0..10 {
            let session = Arc::clone(&session);
            running.spawn(async move { session.execute(LUN, read(block, 2)).await });
        }
        let mut lost = 0;
        while let Some(ended) = running.join_next().await {
            match ended.expect("no panic") {
                Ok(reply) => assert_eq!(reply.nexus, 2),
                Err(error) => {
                    check(&error, &[ErrorKind::Lost], &target, Some(LUN));
                    assert!(error.sent());
                    lost += 1;
                }
            }
        }
        assert_eq!((lost, target.connections()), (1, 2));
    })
    .await;
}

/// The next connections break too. The session may try again or give up, but keeps trying later.
#[tokio::test(flavor = "multi_thread")]
async fn again_and_again() {
    limited(async {
        for breaks in 1..=3 {
            let target = Target::start(move |connection| {
                if connection.number > 1 && connection.number <= 1 + breaks {
                    return match connection.number {
                        2 => Ok(()),
                        _ => connection.login_request().map(drop),
                    };
                }
                connection.login()?;
                if connection.number == 1 {
                    return connection.command().map(drop);
                }
                connection.serve()
            });
            let session = login(&target).await;
            let mut reply = session.execute(LUN, replayed(read(1, 8))).await;
            for _ in 0..breaks {
                let Err(error) = &reply else { break };
                check(error, &[ErrorKind::Lost], &target, Some(LUN));
                reply = session.execute(LUN, replayed(read(1, 8))).await;
            }
            is_good(&reply.expect("a connection that lasts"), 1, 8);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_port() {
    limited(async {
        let target = good();
        let options = options(&target);
        let portal = target.portal();
        let session = Session::login(options.clone()).await.expect("a login");
        drop(target);
        let start = std::time::Instant::now();
        let error = Session::login(options).await.expect_err("nobody listens");
        took(start, 0.0);
        assert_eq!(
            (error.kind(), error.portal()),
            (ErrorKind::Lost, &portal[..]),
            "{error}"
        );
        assert_eq!((error.target(), error.sent()), (Some(TARGET), false));

        tokio::time::sleep(Duration::from_secs(1)).await;
        let error = session
            .execute(LUN, hasty(read(1, 8)))
            .await
            .expect_err("nobody listens");
        let kinds = [ErrorKind::Lost, ErrorKind::TimedOut];
        assert!(kinds.contains(&error.kind()) && !error.sent(), "{error}");
        assert_eq!((error.lun(), error.portal()), (Some(LUN), &portal[..]));
    })
    .await;
}
