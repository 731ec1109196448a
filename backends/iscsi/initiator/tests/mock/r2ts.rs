//! Requests for data that ask for the wrong data.

use volmux_iscsi_initiator::ErrorKind;

use crate::disk::r2t;
use crate::negotiation::Terms;
use crate::support::*;
use crate::target::{BLOCK, Target};
use crate::wire::*;

const BLOCKS: usize = 32;
const LENGTH: usize = BLOCKS * BLOCK;
const TTT: u32 = 0x77;

/// Without immediate data, so that the first R2T is for offset 0.
fn asked(act: Act) -> Target {
    let terms = Terms {
        immediate_data: false,
        burst: 8192,
        first_burst: 8192,
        ..Terms::default()
    };
    Target::start(move |connection| {
        connection.login_on(&terms)?;
        if connection.number > 1 {
            return connection.serve();
        }
        let command = connection.command()?;
        act(connection, &command)?;
        connection.drain()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn for_wrong_data() {
    let acts: [(&str, Act); 10] = [
        ("not from the start", |connection, command| {
            connection.r2t(command, TTT, 0, BLOCK, 1024)
        }),
        ("beyond the end", |connection, command| {
            let mut data = Vec::new();
            connection.r2t(command, TTT, 0, 0, 8192)?;
            connection.sequence(command, TTT, &mut data, 8192)?;
            connection.r2t(command, TTT + 1, 1, 8192, 4096)?;
            connection.sequence(command, TTT + 1, &mut data, 4096)?;
            connection.r2t(command, TTT + 2, 2, 12_288, 4097)
        }),
        ("after the end", |connection, command| {
            let mut data = Vec::new();
            for (sn, offset) in [(0, 0), (1, 8192)] {
                connection.r2t(command, TTT, sn, offset, 8192)?;
                connection.sequence(command, TTT, &mut data, 8192)?;
            }
            connection.r2t(command, TTT, 2, LENGTH, BLOCK)
        }),
        ("the same again", |connection, command| {
            connection.r2t(command, TTT, 0, 0, 1024)?;
            connection.sequence(command, TTT, &mut Vec::new(), 1024)?;
            connection.r2t(command, TTT, 1, 0, 1024)
        }),
        ("longer than a burst", |connection, command| {
            connection.r2t(command, TTT, 0, 0, 8193)
        }),
        ("for nothing", |connection, command| {
            connection.r2t(command, TTT, 0, 0, 0)
        }),
        (
            "at the end of what can be counted",
            |connection, command| connection.r2t(command, TTT, 0, 0xffff_fe00, 1024),
        ),
        ("for as much as can be counted", |connection, command| {
            connection.r2t(command, TTT, 0, 0, 0xffff_ffff)
        }),
        ("of an unknown command", |connection, command| {
            let pdu = r2t(command, TTT, 0, 0, 1024);
            connection.send(pdu.word(TAG, command.tag() ^ 0x5a5a_0000))
        }),
        ("without a tag", |connection, command| {
            connection.r2t(command, NONE, 0, 0, 1024)
        }),
    ];
    limited(async {
        each(acts, |(what, act)| async move {
            let command = write(9, vec![5; LENGTH]);
            fails(what, &asked(act), command, &[ErrorKind::Protocol]).await;
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn for_a_read() {
    limited(async {
        let target = asked(|connection, command| connection.r2t(command, TTT, 0, 0, 512));
        fails("for a read", &target, read(1, 8), &[ErrorKind::Protocol]).await;
    })
    .await;
}

/// After immediate data the first R2T starts behind it.
#[tokio::test(flavor = "multi_thread")]
async fn for_what_was_sent() {
    limited(async {
        let target = once(|connection, command| {
            assert!(!command.data.is_empty(), "immediate data was agreed");
            connection.r2t(command, TTT, 0, 0, 1024)
        });
        let command = write(9, vec![5; LENGTH]);
        fails(
            "for what was sent",
            &target,
            command,
            &[ErrorKind::Protocol],
        )
        .await;
    })
    .await;
}

/// More at a time than was agreed: an initiator may take them, or not. It may not hang, and what it
/// sends has to be right.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_at_a_time() {
    limited(async {
        let target = asked(|connection, command| {
            for (sn, offset) in [(0, 0), (1, 8192)] {
                connection.r2t(command, TTT + sn, sn, offset, 8192)?;
            }
            let mut data = Vec::new();
            connection.sequence(command, TTT, &mut data, 8192)?;
            connection.sequence(command, TTT + 1, &mut data, 8192)?;
            assert!(data == vec![5; LENGTH]);
            connection.status(command, 0, &[])
        });
        let session = login(&target).await;
        match session.execute(LUN, write(9, vec![5; LENGTH])).await {
            Ok(reply) => assert_eq!(reply.status, 0),
            Err(error) => check(&error, &[ErrorKind::Protocol], &target, Some(LUN)),
        }
    })
    .await;
}

/// Several at a time, if so many were agreed.
#[tokio::test(flavor = "multi_thread")]
async fn as_many_as_agreed() {
    limited(async {
        let terms = Terms {
            burst: 2048,
            first_burst: 512,
            r2ts: 4,
            ..Terms::default()
        };
        let target = Target::start(move |connection| {
            connection.login_on(&terms)?;
            let command = connection.command()?;
            let mut data = connection.collect_unsolicited(&command)?.expect("no abort");
            let pieces: Vec<usize> = (data.len()..LENGTH).step_by(2048).collect();
            let mut sn = 0;
            for group in pieces.chunks(connection.terms.r2ts as usize) {
                for (ttt, offset) in (TTT..).zip(group) {
                    let length = (LENGTH - offset).min(2048);
                    connection.r2t(&command, ttt, sn, *offset, length)?;
                    sn += 1;
                }
                for (ttt, offset) in (TTT..).zip(group) {
                    let length = (LENGTH - offset).min(2048);
                    connection.sequence(&command, ttt, &mut data, length)?;
                }
            }
            assert!(data == original(0, BLOCKS));
            connection.status(&command, 0, &[])?;
            connection.serve()
        });
        let session = login(&target).await;
        let reply = session
            .execute(LUN, write(9, original(0, BLOCKS)))
            .await
            .expect("a write");
        assert_eq!(reply.status, 0);
        works(&session).await;
        assert_eq!(target.connections(), 1);
    })
    .await;
}
