//! Targets that say nothing, or too slowly, or do not listen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use volmux_iscsi_initiator::{ErrorKind, Options, Session};

use crate::negotiation::Terms;
use crate::support::*;
use crate::target::Target;
use crate::wire::*;

const KINDS: [ErrorKind; 2] = [ErrorKind::TimedOut, ErrorKind::Lost];

fn impatient(target: &Target) -> Options {
    let mut options = options(target);
    options.login_timeout = Duration::from_secs(2);
    options
}

async fn login_ends_in_time(what: &str, target: &Target) {
    let start = Instant::now();
    fails_to_login(what, target, impatient(target), &KINDS).await;
    took(start, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_login() {
    limited(async {
        let target = Target::start(|connection| connection.ignore());
        login_ends_in_time("from the start", &target).await;
        let target = Target::start(|connection| {
            let (request, keys) = connection.login_request()?;
            let answers = text(&connection.agree(&Terms::default(), &keys));
            connection.login_response(&request, request.head[1] & 0x0c, &answers)?;
            connection.ignore()
        });
        login_ends_in_time("after an answer", &target).await;
        let target = Target::start(|connection| {
            let (request, keys) = connection.login_request()?;
            let answers = text(&connection.agree(&Terms::default(), &keys));
            let response = Pdu::to(&request, LOGIN_RESPONSE, request.head[1]).with(answers);
            for byte in connection.encode(response) {
                connection.write(&[byte])?;
                std::thread::sleep(Duration::from_millis(100));
            }
            connection.ignore()
        });
        login_ends_in_time("byte by byte", &target).await;
    })
    .await;
}

/// The second login is the one that gets no answer.
#[tokio::test(flavor = "multi_thread")]
async fn when_it_connects_again() {
    limited(async {
        let target = Target::start(|connection| match connection.number {
            1 => {
                connection.login()?;
                connection.command().map(drop)
            }
            2 => connection.ignore(),
            _ => {
                connection.login()?;
                connection.serve()
            }
        });
        let session = Session::login(impatient(&target)).await.expect("a login");
        let start = Instant::now();
        let mut reply = session.execute(LUN, replayed(read(1, 8))).await;
        took(start, 2.0);
        if let Err(error) = &reply {
            check(error, &KINDS, &target, Some(LUN));
            reply = session.execute(LUN, replayed(read(1, 8))).await;
        }
        is_good(&reply.expect("a read"), 1, 8);
    })
    .await;
}

/// The target does not read: writes fill the buffers, and then stand still.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_read() {
    limited(async {
        let target = Target::start(|connection| {
            connection.login_on(&Terms {
                window: 1000,
                segment: 262_144,
                ..Terms::default()
            })?;
            match connection.number {
                1 => connection.ignore(),
                _ => connection.serve(),
            }
        });
        let mut options = options(&target);
        options.queue_depth = 1000;
        options.keep_alive = Duration::from_secs(1);
        let session = Arc::new(Session::login(options).await.expect("a login"));
        let mut running = JoinSet::new();
        let start = Instant::now();
        for _ in 0..200 {
            let session = Arc::clone(&session);
            running.spawn(async move { session.execute(LUN, write(0, vec![0; 65_536])).await });
        }
        let mut failed = 0;
        while let Some(ended) = running.join_next().await {
            if let Err(error) = ended.expect("no panic") {
                check(&error, &KINDS, &target, Some(LUN));
                failed += 1;
            }
        }
        assert!(
            failed > 0,
            "the first ones were sent, and can't be sent again"
        );
        took(start, 2.0);
        works(&session).await;
    })
    .await;
}

/// A logout that gets no answer ends too.
#[tokio::test(flavor = "multi_thread")]
async fn after_the_logout() {
    limited(async {
        let target = Target::start(|connection| {
            connection.login()?;
            let command = connection.command()?;
            connection.execute(&command)?;
            connection.take(|pdu| pdu.opcode() == LOGOUT)?;
            connection.ignore()
        });
        let mut options = options(&target);
        options.keep_alive = Duration::from_secs(1);
        let session = Session::login(options).await.expect("a login");
        let reply = session.execute(LUN, read(1, 8)).await.expect("a read");
        is_good(&reply, 1, 8);
        let start = Instant::now();
        if let Err(error) = session.logout().await {
            check(&error, &KINDS, &target, None);
        }
        took(start, 2.0);
        assert_eq!(target.seen(LOGOUT).len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_that_is_answered() {
    limited(async {
        let target = good();
        let session = login(&target).await;
        works(&session).await;
        session.logout().await.expect("a logout");
        let logouts = target.seen(LOGOUT);
        assert_eq!(logouts.len(), 1);
        assert_eq!(logouts[0].pdu.head[1], FINAL, "it closes the session");
    })
    .await;
}
