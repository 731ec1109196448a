//! The command window (RFC 7143 section 4.2.2.1). That CmdSNs keep to it is checked where they
//! arrive.

use std::sync::Arc;
use std::time::Duration;

use volmux_iscsi_initiator::{ErrorKind, Session};

use crate::connection::Connection;
use crate::negotiation::Terms;
use crate::support::*;
use crate::target::Target;
use crate::wire::*;

/// Answers only when nothing more has come for a while, so that it sees all that is sent.
fn hesitate(connection: &mut Connection) -> std::io::Result<()> {
    let mut held = Vec::new();
    loop {
        while connection.more_within(Duration::from_millis(30))? {
            let pdu = connection.receive()?;
            match pdu.opcode() {
                COMMAND => held.push(pdu),
                _ => connection.manage(pdu)?,
            }
        }
        // The last of them first: order is the initiator's business only when it sends.
        if let Some(command) = held.pop() {
            connection.execute(&command)?;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn is_kept_to_and_used() {
    limited(async {
        for (window, depth, most) in [(1, 128, 1), (2, 128, 2), (8, 128, 8), (32, 3, 3)] {
            println!("{window} {depth}");
            let terms = Terms {
                window,
                ..Terms::default()
            };
            let target = Target::start(move |connection| {
                connection.login_on(&terms)?;
                hesitate(connection)
            });
            let mut options = options(&target);
            options.queue_depth = depth;
            options.command_timeout = Duration::from_secs(30);
            let session = Arc::new(Session::login(options).await.expect("a login"));
            fifty_reads(&session).await;
            assert_eq!(target.most_open(), most);
            assert_eq!((target.connections(), session.nexus()), (1, 1));
        }
    })
    .await;
}

/// The window is shut after the login. A NOP-In opens it.
#[tokio::test(flavor = "multi_thread")]
async fn may_be_shut_for_a_while() {
    limited(async {
        let target = Target::start(|connection| {
            connection.login_on(&Terms {
                window: 0,
                ..Terms::default()
            })?;
            let shut = std::time::Instant::now();
            while shut.elapsed() < Duration::from_millis(500) {
                if connection.more_within(Duration::from_millis(50))? {
                    let pdu = connection.receive()?;
                    connection.manage(pdu)?;
                }
            }
            connection.terms.window = 4;
            let news = Pdu::new(NOP_IN, FINAL)
                .word(TAG, NONE)
                .word(TRANSFER_TAG, NONE);
            connection.send(news)?;
            hesitate(connection)
        });
        let mut options = options(&target);
        options.command_timeout = Duration::from_secs(30);
        let session = Arc::new(Session::login(options).await.expect("a login"));
        fifty_reads(&session).await;
        assert_eq!(target.most_open(), 4);
    })
    .await;
}

/// Nothing was sent, so it can't be said that it was.
#[tokio::test(flavor = "multi_thread")]
async fn may_stay_shut() {
    limited(async {
        let target = Target::start(|connection| {
            connection.login_on(&Terms {
                window: 0,
                ..Terms::default()
            })?;
            connection.drain()
        });
        let session = login(&target).await;
        let error = session
            .execute(LUN, hasty(read(1, 8)))
            .await
            .expect_err("no window");
        check(&error, &[ErrorKind::TimedOut], &target, Some(LUN));
        assert!(!error.sent() && target.seen(COMMAND).is_empty());
    })
    .await;
}
