//! Commands for one session only, and what comes after a logout.

use std::time::Duration;

use volmux_iscsi_initiator::{Command, ErrorKind, Session};

use crate::support::*;
use crate::target::Target;
use crate::wire::{COMMAND, LOGOUT};

fn pinned(nexus: u64, command: Command) -> Command {
    Command {
        nexus: Some(nexus),
        ..command
    }
}

/// The first connection ends at once, or after it took one command, which it does not answer.
fn ends_once(takes_one: bool) -> Target {
    Target::start(move |connection| {
        connection.login()?;
        if connection.number > 1 {
            return connection.serve();
        }
        match takes_one {
            true => connection.command().map(drop),
            false => Ok(()),
        }
    })
}

/// A pinned command fails, and was not sent.
async fn is_refused(session: &Session, target: &Target, nexus: u64) {
    for command in [read(1, 8), write(300, vec![1; 512]), replayed(read(1, 8))] {
        let command = pinned(nexus, command);
        let error = session.execute(LUN, command).await.expect_err("it is over");
        check(&error, &[ErrorKind::Lost], target, Some(LUN));
        assert!(!error.sent(), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_that_is_meant() {
    limited(async {
        let target = good();
        let session = login(&target).await;
        for _ in 0..3 {
            let command = pinned(session.nexus(), read(1, 8));
            let reply = session.execute(LUN, command).await.expect("it lasts");
            is_good(&reply, 1, 8);
            assert_eq!(reply.nexus, 1);
        }
        is_refused(&session, &target, 2).await;
        is_refused(&session, &target, 0).await;
        assert_eq!((target.seen(COMMAND).len(), target.connections()), (3, 1));
    })
    .await;
}

/// It is over as soon as its connection is, and only a command that is not pinned makes a new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_over() {
    limited(async {
        let target = ends_once(false);
        let session = login(&target).await;
        until("it ends", || target.running() == 0).await;
        // Until the session has seen it, what is sent to it is lost.
        tokio::time::sleep(Duration::from_secs(1)).await;
        is_refused(&session, &target, 1).await;
        assert_eq!(target.connections(), 1, "nothing is made anew for it");

        let reply = session.execute(LUN, read(1, 8)).await.expect("a new one");
        is_good(&reply, 1, 8);
        assert_eq!((reply.nexus, target.connections()), (2, 2));
        is_refused(&session, &target, 1).await;
        let command = pinned(2, read(1, 8));
        let reply = session.execute(LUN, command).await.expect("this one lasts");
        is_good(&reply, 1, 8);
        assert_eq!((target.seen(COMMAND).len(), target.connections()), (2, 2));
    })
    .await;
}

/// What was sent is not repeated in another session, even if twice is as good as once.
#[tokio::test(flavor = "multi_thread")]
async fn under_way() {
    limited(async {
        let commands = [
            read(1, 8),
            replayed(read(1, 8)),
            replayed(write(300, vec![1; 512])),
        ];
        for command in commands {
            let target = ends_once(true);
            let session = login(&target).await;
            let error = session
                .execute(LUN, pinned(1, command))
                .await
                .expect_err("it breaks");
            check(&error, &[ErrorKind::Lost], &target, Some(LUN));
            assert!(error.sent(), "{error}");
            assert_eq!((target.seen(COMMAND).len(), target.connections()), (1, 1));

            works(&session).await;
            assert_eq!((session.nexus(), target.connections()), (2, 2));
            is_refused(&session, &target, 1).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_is_not_the_end() {
    limited(async {
        let target = good();
        let session = login(&target).await;
        works(&session).await;
        for logouts in 1..=3 {
            session.logout().await.expect("the target lets it go");
            until("it is gone", || target.running() == 0).await;
            assert_eq!(target.seen(LOGOUT).len(), logouts);
            session
                .logout()
                .await
                .expect("nothing is there to be ended");
            let over = logouts as u64;
            is_refused(&session, &target, over).await;
            assert_eq!(
                (target.seen(LOGOUT).len(), target.connections()),
                (logouts, logouts)
            );

            works(&session).await;
            assert_eq!(session.nexus(), over + 1);
            assert_eq!(target.connections(), logouts + 1);
        }
    })
    .await;
}
