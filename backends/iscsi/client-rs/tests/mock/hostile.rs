//! Targets that break the protocol, or mean harm.

use std::io;
use std::time::{Duration, Instant};

use volmux_iscsi::transport::Connector;
use volmux_iscsi_client_rs::ClientRs;
use volmux_iscsi_initiator::{Digest, ErrorKind};

use crate::connection::Connection;
use crate::negotiation::Terms;
use crate::support::*;
use crate::target::{BLOCK, Target};
use crate::wire::*;

#[tokio::test(flavor = "multi_thread")]
async fn data_that_does_not_fit_is_not_taken() {
    let acts: [(&str, Act); 6] = [
        ("a gap", |connection, command| {
            let data = connection.on_disk(command);
            connection.data_in(command, FINAL | STATUS, 0, BLOCK, &data[BLOCK..])
        }),
        ("data that comes twice", |connection, command| {
            let data = connection.on_disk(command);
            connection.data_in(command, 0, 0, 0, &data[..BLOCK])?;
            connection.data_in(command, FINAL | STATUS, 1, 0, &data[..BLOCK])
        }),
        ("a PDU is missing", |connection, command| {
            let data = connection.on_disk(command);
            connection.data_in(command, FINAL | STATUS, 1, 0, &data)
        }),
        ("more than was asked for", |connection, command| {
            let data = vec![0; 5 * BLOCK];
            connection.data_in(command, FINAL | STATUS, 0, 0, &data)
        }),
        ("far away", |connection, command| {
            connection.data_in(command, FINAL | STATUS, 0, 0xffff_fe00, &[0; BLOCK])
        }),
        ("an R2T", |connection, command| {
            connection.r2t(command, 1, 0, 0, BLOCK)
        }),
    ];
    limited(async {
        for (what, act) in acts {
            fails(what, act, read(0, 4), ErrorKind::Protocol).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_is_not_there_is_not_sent() {
    let acts: [(&str, Act); 6] = [
        ("behind the end", |connection, command| {
            let sent = command.data.len();
            connection.r2t(command, 1, 0, sent, 200 * BLOCK)
        }),
        ("a gap", |connection, command| {
            let sent = command.data.len();
            connection.r2t(command, 1, 0, sent + BLOCK, BLOCK)
        }),
        ("nothing", |connection, command| {
            let sent = command.data.len();
            connection.r2t(command, 1, 0, sent, 0)
        }),
        ("a wrong number", |connection, command| {
            let sent = command.data.len();
            connection.r2t(command, 1, 1, sent, BLOCK)
        }),
        ("no tag", |connection, command| {
            let sent = command.data.len();
            connection.r2t(command, NONE, 0, sent, BLOCK)
        }),
        ("data of a write", |connection, command| {
            connection.data_in(command, FINAL | STATUS, 0, 0, &[0; BLOCK])
        }),
    ];
    limited(async {
        for (what, act) in acts {
            let command = write(0, vec![1; 100 * BLOCK]);
            fails(what, act, command, ErrorKind::Protocol).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_ends_the_session() {
    let acts: [(&str, Act); 4] = [
        ("the connection is closed", |connection, _| {
            connection.close();
            Ok(())
        }),
        ("an unknown PDU", |connection, command| {
            connection.send(Pdu::to(command, 0x3a, FINAL))
        }),
        ("an event", |connection, _| {
            connection.send(Pdu::new(ASYNC, FINAL).word(TAG, NONE).byte(36, 1))
        }),
        ("the answer to another command", |connection, command| {
            let answer = Pdu::to(command, RESPONSE, FINAL).word(TRANSFER_TAG, NONE);
            connection.send(answer.word(TAG, 0x0bad_0bad))?;
            connection.close();
            Ok(())
        }),
    ];
    limited(async {
        for (what, act) in acts {
            fails(what, act, write(0, vec![1; BLOCK]), ErrorKind::Lost).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_can_not_be_done_is_refused() {
    let act: Act = |connection, command| {
        let response = Pdu::to(command, RESPONSE, FINAL).word(TRANSFER_TAG, 0);
        connection.send(response.byte(2, 1))
    };
    limited(fails(
        "a target failure",
        act,
        read(0, 1),
        ErrorKind::Refused,
    ))
    .await;
}

/// Digests of headers and of data are looked at.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_pdus_are_not_taken() {
    fn damaged(connection: &mut Connection, command: &Pdu, at: usize) -> io::Result<()> {
        let data = connection.on_disk(command);
        let pdu = crate::disk::data_in(command, FINAL | STATUS, 0, 0, &data);
        let mut bytes = connection.encode(pdu);
        bytes[at] ^= 0x40;
        connection.write(&bytes)
    }
    limited(async {
        // The residual count, the digest of the header, data, and the digest of data.
        for at in [46, 49, 60, 52 + 4 * BLOCK] {
            println!("byte {at}");
            let terms = Terms {
                digests: (true, true),
                ..Terms::default()
            };
            let target = Target::start(move |connection| {
                connection.login_on(&terms)?;
                if connection.number == 2 {
                    let command = connection.command()?;
                    damaged(connection, &command, at)?;
                }
                connection.serve()
            });
            let mut options = options(&target);
            (options.header_digest, options.data_digest) = (Digest::Required, Digest::Required);
            let session = ClientRs.login(options).await.expect("a login");
            let error = session.execute(LUN, read(0, 4)).await.expect_err("damage");
            assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
            works(&*session).await;
        }
    })
    .await;
}

/// Pings without an end, by one that reads no answers.
#[tokio::test(flavor = "multi_thread")]
async fn who_pings_without_an_end_is_left() {
    limited(async {
        let target = first(|connection, _| {
            let ping = Pdu::new(NOP_IN, FINAL)
                .word(TAG, NONE)
                .word(TRANSFER_TAG, 1);
            let bytes = connection.encode(ping).repeat(1000);
            loop {
                connection.write(&bytes)?;
            }
        });
        let mut options = options(&target);
        options.command_timeout = Duration::from_secs(50);
        let session = ClientRs.login(options).await.expect("a login");
        let start = Instant::now();
        let error = session.execute(LUN, read(0, 1)).await.expect_err("pings");
        let kinds = [ErrorKind::Protocol, ErrorKind::Lost];
        assert!(kinds.contains(&error.kind()), "{error}");
        assert!(start.elapsed() < Duration::from_secs(40), "{error}");
        works(&*session).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirection_is_refused() {
    limited(async {
        let target = Target::start(|connection| {
            connection.refuse(0x0101, b"TargetAddress=10.0.0.9:3260,1\0")
        });
        let error = ClientRs
            .login(options(&target))
            .await
            .expect_err("elsewhere");
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        let told = error.reason().contains("10.0.0.9") && error.reason().contains("native");
        assert!(told, "{error}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_of_logins_are_told() {
    limited(async {
        for (status, kind) in [
            (0x0200, ErrorKind::Refused),
            (0x0201, ErrorKind::Unauthenticated),
            (0x0202, ErrorKind::Refused),
            (0x0203, ErrorKind::NotFound),
            (0x0206, ErrorKind::Refused),
            (0x0301, ErrorKind::Lost),
        ] {
            let target = Target::start(move |connection| connection.refuse(status, &[]));
            let error = ClientRs.login(options(&target)).await.expect_err("refused");
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.reason().contains(&format!("{status:04x}")), "{error}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_logins_that_are_too_long_are_not_taken() {
    limited(async {
        let target = Target::start(|connection| {
            let (request, _) = connection.login_request()?;
            connection.login_answer(&request, &b"X-long=0123456789\0".repeat(4000))?;
            connection.drain()
        });
        let error = ClientRs
            .login(options(&target))
            .await
            .expect_err("too long");
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    })
    .await;
}
