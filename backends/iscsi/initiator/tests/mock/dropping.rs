//! Futures that are dropped, at any moment.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::task::JoinSet;
use volmux_iscsi_initiator::{Command, Session};

use crate::negotiation::Terms;
use crate::support::*;
use crate::target::{BLOCK, Target};
use crate::wire::COMMAND;

/// Polls it so many times at most, and lets others run in between.
async fn polled<F: Future>(future: F, times: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..times {
        let poll = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        if let Poll::Ready(output) = poll {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    None
}

fn command(round: usize) -> Command {
    match round % 3 {
        0 => read(round % 100, 1 + round % 60),
        // Of several R2Ts; all of them write the same.
        1 => write(3000, vec![1; 90 * BLOCK]),
        _ => write(3000, vec![1; BLOCK]),
    }
}

/// A window of four: after the fifth command that kept its place nothing would be sent any more.
async fn survives<F, G>(forget: F)
where
    F: Fn(Arc<Session>, usize) -> G,
    G: Future<Output = ()>,
{
    for initial_r2t in [true, false] {
        let terms = Terms {
            initial_r2t,
            window: 4,
            burst: 8192,
            first_burst: 4096,
            ..Terms::default()
        };
        let target = Target::start(move |connection| {
            connection.login_on(&terms)?;
            connection.serve()
        });
        let mut options = options(&target);
        options.queue_depth = 6;
        let session = Arc::new(Session::login(options).await.expect("a login"));
        for round in 0..300 {
            forget(Arc::clone(&session), round).await;
            if round % 60 == 59 {
                fifty_reads(&session).await;
            }
        }
        works(&session).await;
        assert_eq!(
            (target.connections(), session.nexus()),
            (1, 1),
            "none was given up"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_some_polls() {
    let forget = |session: Arc<Session>, round: usize| async move {
        if let Some(reply) = polled(session.execute(LUN, command(round)), round % 20).await {
            assert_eq!(reply.expect("a reply").status, 0);
        }
    };
    limited(survives(forget)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_some_time() {
    let forget = |session: Arc<Session>, round: usize| async move {
        let time = Duration::from_micros(u64::try_from(round % 40 * 100).expect("small"));
        let execute = session.execute(LUN, command(round));
        if let Ok(reply) = tokio::time::timeout(time, execute).await {
            assert_eq!(reply.expect("a reply").status, 0);
        }
    };
    limited(survives(forget)).await;
}

/// Many at once, while others go on.
#[tokio::test(flavor = "multi_thread")]
async fn among_others() {
    let forget = |session: Arc<Session>, round: usize| async move {
        let mut running = JoinSet::new();
        for part in 0..8 {
            let session = Arc::clone(&session);
            running.spawn(async move {
                let execute = session.execute(LUN, command(round + part));
                match part % 2 {
                    0 => assert_eq!(execute.await.expect("a reply").status, 0),
                    _ => drop(polled(execute, (round + part) % 9).await),
                }
            });
        }
        while let Some(ended) = running.join_next().await {
            ended.expect("it is right");
        }
    };
    limited(survives(forget)).await;
}

/// Nobody waits for the command any more, and the target never answers it. It has its place in the
/// window all the same: the target has to be told, or left.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_never_answered() {
    limited(async {
        let target = Target::start(|connection| {
            connection.login_on(&Terms {
                window: 1,
                ..Terms::default()
            })?;
            if connection.number == 1 {
                connection.command()?;
            }
            connection.serve()
        });
        let mut options = options(&target);
        options.keep_alive = Duration::from_secs(1);
        let session = Session::login(options).await.expect("a login");
        let execute = session.execute(LUN, read(1, 8));
        drop(tokio::time::timeout(Duration::from_secs(1), execute).await);
        assert_eq!(target.seen(COMMAND).len(), 1);
        let mut reply = session.execute(LUN, hasty(read(1, 8))).await;
        for _ in 0..5 {
            let Err(error) = &reply else { break };
            println!("{error}");
            reply = session.execute(LUN, hasty(read(1, 8))).await;
        }
        is_good(&reply.expect("a place in the window"), 1, 8);
    })
    .await;
}

/// While the connection is made anew.
#[tokio::test(flavor = "multi_thread")]
async fn while_it_connects() {
    limited(async {
        let target = Target::start(|connection| {
            connection.login()?;
            let commands = if connection.number % 2 == 1 { 1 } else { 4 };
            for _ in 0..commands {
                let command = connection.command()?;
                connection.execute(&command)?;
            }
            Ok(())
        });
        let session = login(&target).await;
        for round in 0..100 {
            drop(polled(session.execute(LUN, replayed(read(1, 8))), round % 25).await);
        }
        let reply = session
            .execute(LUN, replayed(read(1, 8)))
            .await
            .expect("a read");
        is_good(&reply, 1, 8);
    })
    .await;
}

/// A login that is dropped leaves no connection behind.
#[tokio::test(flavor = "multi_thread")]
async fn in_the_login() {
    limited(async {
        let target = Target::start(|connection| {
            connection.login()?;
            connection.serve()
        });
        for times in 0..25 {
            drop(polled(Session::login(options(&target)), times).await);
        }
        works(&login(&target).await).await;
        until("all connections are closed", || target.running() == 0).await;
    })
    .await;
}

/// So does a session.
#[tokio::test(flavor = "multi_thread")]
async fn a_session() {
    limited(async {
        let target = good();
        let session = login(&target).await;
        works(&session).await;
        drop(session);
        until("the connection is closed", || target.running() == 0).await;
    })
    .await;
}
