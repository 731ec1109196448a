//! Logins that are refused, never end, or agree to what was not offered.

use std::io;

use volmux_iscsi_initiator::{ErrorKind, Session};

use crate::connection::Connection;
use crate::negotiation::Terms;
use crate::support::*;
use crate::target::Target;
use crate::wire::*;

#[tokio::test(flavor = "multi_thread")]
async fn statuses() {
    use ErrorKind::*;
    let cases: [(u16, &'static [ErrorKind]); 12] = [
        (0x0200, &[Refused]),
        (0x0201, &[Unauthenticated]),
        (0x0202, &[Refused]),
        (0x0203, &[NotFound]),
        (0x0204, &[NotFound]),
        (0x0205, &[Refused, Protocol]),
        (0x0209, &[Refused, Protocol]),
        (0x020b, &[Refused, Protocol]),
        (0x02ff, &[Refused, Protocol]),
        (0x0300, &[Lost, Refused]),
        (0x0301, &[Lost, Refused]),
        (0x0900, &[Refused, Protocol]),
    ];
    limited(async {
        each(cases, |(status, kinds)| async move {
            let target = Target::start(move |connection| {
                if connection.number > 1 {
                    connection.login()?;
                    return connection.serve();
                }
                connection.refuse(status, &[])?;
                connection.drain()
            });
            fails_to_login(&format!("{status:#06x}"), &target, options(&target), kinds).await;
            works(&login(&target).await).await;
        })
        .await;
    })
    .await;
}

/// A target that comes up again says 0301 for a while: the session outlives it.
#[tokio::test(flavor = "multi_thread")]
async fn not_yet() {
    limited(async {
        let target = Target::start(|connection| match connection.number {
            1 => {
                connection.login()?;
                connection.command().map(drop)
            }
            2 => connection.refuse(0x0301, &[]),
            _ => {
                connection.login()?;
                connection.serve()
            }
        });
        let session = login(&target).await;
        let mut reply = session.execute(LUN, replayed(read(1, 8))).await;
        if let Err(error) = &reply {
            check(
                error,
                &[ErrorKind::Lost, ErrorKind::Refused],
                &target,
                Some(LUN),
            );
            reply = session.execute(LUN, replayed(read(1, 8))).await;
        }
        is_good(&reply.expect("a read"), 1, 8);
    })
    .await;
}

type Rounds = fn(&mut Connection) -> io::Result<()>;

async fn is_refused(what: &str, rounds: Rounds, kinds: &[ErrorKind]) -> Target {
    let target = Target::start(move |connection| {
        rounds(connection)?;
        connection.drain()
    });
    fails_to_login(what, &target, options(&target), kinds).await;
    target
}

#[tokio::test(flavor = "multi_thread")]
async fn endless() {
    let cases: [(&str, Rounds); 3] = [
        ("the stage never ends", |connection| {
            loop {
                let (request, keys) = connection.login_request()?;
                let answers = text(&connection.agree(&Terms::default(), &keys));
                connection.login_response(&request, request.head[1] & 0x0c, &answers)?;
            }
        }),
        ("the text never ends", |connection| {
            loop {
                let request = connection.receive()?;
                connection.start_at(request.get(NUMBER));
                let flags = CONTINUED | request.head[1] & 0x0c;
                connection.login_response(&request, flags, &[b'x'; 8000])?;
            }
        }),
        ("the text never ends, and never goes on", |connection| {
            loop {
                let request = connection.receive()?;
                connection.start_at(request.get(NUMBER));
                let flags = CONTINUED | request.head[1] & 0x0c;
                connection.login_response(&request, flags, &[])?;
            }
        }),
    ];
    limited(async {
        each(cases, |(what, rounds)| async move {
            let target = is_refused(what, rounds, &[ErrorKind::Protocol]).await;
            let asked = target.seen(LOGIN).len();
            assert!(asked < 200, "{what}: {asked} rounds");
            if what == "the text never ends" {
                assert!(
                    asked < 12,
                    "64 KiB are enough: {asked} answers of 8000 bytes"
                );
            }
        })
        .await;
    })
    .await;
}

/// All of these are answers to an offer, or offers of the target's own.
#[tokio::test(flavor = "multi_thread")]
async fn answers_out_of_range() {
    let cases: [&'static [(&str, &str)]; 16] = [
        &[("MaxBurstLength", "0")],
        &[("MaxBurstLength", "511")],
        &[("MaxBurstLength", "16777216")],
        &[("MaxBurstLength", "99999999999999999999")],
        &[("MaxBurstLength", "-1")],
        &[("MaxBurstLength", "many")],
        &[("MaxBurstLength", "")],
        &[("MaxBurstLength", "1024"), ("FirstBurstLength", "4096")],
        &[("FirstBurstLength", "0")],
        &[("HeaderDigest", "CRC32C")],
        &[("DataDigest", "CRC32C")],
        &[("HeaderDigest", "SHA1")],
        &[("MaxRecvDataSegmentLength", "1")],
        &[("MaxRecvDataSegmentLength", "0")],
        &[("MaxRecvDataSegmentLength", "16777216")],
        &[("ImmediateData", "Maybe")],
    ];
    limited(async {
        each(cases, |forced| async move {
            let terms = Terms {
                forced: forced.to_vec(),
                ..Terms::default()
            };
            let target = Target::start(move |connection| {
                connection.login_on(&terms)?;
                connection.drain()
            });
            let kinds = [ErrorKind::Protocol, ErrorKind::Refused];
            fails_to_login(&format!("{forced:?}"), &target, options(&target), &kinds).await;
        })
        .await;
    })
    .await;
}

fn with_text(connection: &mut Connection, extra: &[u8]) -> io::Result<()> {
    loop {
        let (request, keys) = connection.login_request()?;
        let mut answers = text(&connection.agree(&Terms::default(), &keys));
        answers.extend_from_slice(extra);
        if connection.login_answer(&request, &answers)? {
            return Ok(());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_answers() {
    let cases: [(&str, Rounds); 10] = [
        ("no equals sign", |connection| {
            with_text(connection, b"Key\0")
        }),
        ("no name", |connection| with_text(connection, b"=1\0")),
        ("no text", |connection| {
            with_text(connection, &[0xff, 0xfe, b'=', 0xc0, 0])
        }),
        ("the same key twice, differently", |connection| {
            with_text(
                connection,
                b"MaxRecvDataSegmentLength=512\0MaxRecvDataSegmentLength=1024\0",
            )
        }),
        ("no answer, but a ping", |connection| {
            let (request, _) = connection.login_request()?;
            connection.send(Pdu::to(&request, NOP_IN, FINAL))
        }),
        ("another task tag", |connection| {
            let (mut request, keys) = connection.login_request()?;
            let answers = text(&connection.agree(&Terms::default(), &keys));
            request.set(TAG, request.tag() ^ 0x5555);
            connection.login_answer(&request, &answers).map(drop)
        }),
        ("a stage that was not asked for", |connection| {
            let (request, keys) = connection.login_request()?;
            let answers = text(&connection.agree(&Terms::default(), &keys));
            connection.login_response(&request, FINAL | 2 << 2 | 2, &answers)
        }),
        ("back to a stage before", |connection| {
            let (request, keys) = connection.login_request()?;
            let answers = text(&connection.agree(&Terms::default(), &keys));
            let (stage, _) = crate::negotiation::stages(&request);
            let wrong = if stage == 0 { 3 << 2 } else { 0 };
            connection.login_response(&request, FINAL | wrong | 1, &answers)
        }),
        ("a segment of 16 MiB", |connection| {
            let (request, _) = connection.login_request()?;
            let mut bytes = connection.encode(Pdu::to(&request, LOGIN_RESPONSE, FINAL | 7));
            bytes[5..8].fill(0xff);
            connection.write(&bytes)
        }),
        ("another protocol", |connection| {
            connection.write(&b"SSH-2.0-x\r\n".repeat(9))
        }),
    ];
    limited(async {
        each(cases, |(what, rounds)| async move {
            is_refused(what, rounds, &[ErrorKind::Protocol]).await;
        })
        .await;
    })
    .await;
}

/// Some keys nobody needs, and some that the initiator has to answer.
#[tokio::test(flavor = "multi_thread")]
async fn more_keys_than_asked_for() {
    limited(async {
        let target = Target::start(|connection| {
            with_text(connection, b"TargetAlias=a b c\0X-com.example.key=1\0")?;
            connection.serve()
        });
        let session = login(&target).await;
        works(&session).await;
        drop(session);

        // A key without an answer in this round: the initiator has to answer before it goes on.
        let target = Target::start(|connection| {
            let (request, keys) = connection.login_request()?;
            let mut answers = text(&connection.agree(&Terms::default(), &keys));
            answers.extend_from_slice(b"X-com.example.key=1\0");
            connection.login_response(&request, request.head[1] & 0x0c, &answers)?;
            let (request, keys) = connection.login_request()?;
            let answer = crate::negotiation::value(&keys, "X-com.example.key");
            assert_eq!(answer, Some("NotUnderstood"));
            let rest = text(&connection.agree(&Terms::default(), &keys[1..]));
            assert!(connection.login_answer(&request, &rest)? || connection.login().is_ok());
            connection.serve()
        });
        let session = Session::login(options(&target)).await.expect("a login");
        works(&session).await;
    })
    .await;
}
