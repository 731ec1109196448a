//! Lists of targets.

use std::io;
use std::time::Duration;

use volmux_iscsi_initiator::{DiscoveredTarget, ErrorKind, Options, Result, discover};

use crate::connection::Connection;
use crate::support::*;
use crate::target::Target;
use crate::wire::*;

const LIST: &[(&str, &str)] = &[
    ("TargetName", "iqn.2026-11.test:one"),
    ("TargetAddress", "10.1.2.3:3260,1"),
    ("TargetAddress", "[fd00::1]:3260,1"),
    ("TargetAddress", "storage.example:3261,2"),
    ("TargetName", "iqn.2026-11.test:two"),
    ("TargetAddress", "[2001:db8::2:1]:860,3"),
    ("TargetAddress", "10.1.2.4:3260,65535"),
    ("TargetName", "eui.02004567a425678d"),
    ("TargetAddress", "10.1.2.5:3260,1"),
    ("TargetAddress", "[fe80::1%25eth0]:3260,1"),
];

fn is_the_list(found: &[DiscoveredTarget]) {
    let flat = found.iter().flat_map(|target| {
        let portals = target
            .portals
            .iter()
            .map(|portal| ("TargetAddress", portal.as_str()));
        std::iter::once(("TargetName", target.name.as_str())).chain(portals)
    });
    assert_eq!(flat.collect::<Vec<_>>(), LIST);
}

async fn found(target: &Target) -> Result<Vec<DiscoveredTarget>> {
    let mut options = Options::new(target.portal(), INITIATOR);
    options.login_timeout = Duration::from_secs(5);
    options.command_timeout = Duration::from_secs(5);
    discover(&options).await
}

/// A login, and the question.
fn question(connection: &mut Connection) -> io::Result<Pdu> {
    connection.login()?;
    let request = connection.take(|pdu| pdu.opcode() == TEXT)?;
    let keys = pairs(&request.data);
    assert_eq!(keys, [("SendTargets".to_owned(), "All".to_owned())]);
    assert_eq!(request.get(TRANSFER_TAG), NONE);
    assert!(request.is_final() && request.head[1] & CONTINUED == 0);
    Ok(request)
}

/// An answer in pieces. Each of the others is asked for by an empty request.
fn answer(connection: &mut Connection, pieces: &[Vec<u8>], flags: u8) -> io::Result<()> {
    let mut request = question(connection)?;
    let (last, others) = pieces.split_last().expect("an answer");
    for piece in others {
        let ttt = connection.fresh_ttt();
        let part = Pdu::to(&request, TEXT_RESPONSE, flags).word(TRANSFER_TAG, ttt);
        connection.send(part.with(&piece[..]))?;
        let next = connection.take(|pdu| pdu.opcode() == TEXT)?;
        assert_eq!((next.tag(), next.get(TRANSFER_TAG)), (request.tag(), ttt));
        assert!(next.data.is_empty());
        request = next;
    }
    connection.send(Pdu::to(&request, TEXT_RESPONSE, FINAL).with(&last[..]))?;
    connection.drain()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_targets_with_all_addresses() {
    limited(async {
        for length in [7, 20, 100, 10_000] {
            let pieces: Vec<Vec<u8>> = text(LIST).chunks(length).map(<[u8]>::to_vec).collect();
            let target = Target::start(move |connection| answer(connection, &pieces, CONTINUED));
            is_the_list(&found(&target).await.expect("a list"));
            assert_eq!(target.connections(), 1);
        }
        // Whole pairs in each PDU, and more to come.
        let target = Target::start(|connection| {
            let pieces: Vec<Vec<u8>> = LIST.iter().map(|pair| text(&[*pair])).collect();
            answer(connection, &pieces, 0)
        });
        is_the_list(&found(&target).await.expect("a list"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_to_list() {
    limited(async {
        let target = Target::start(|connection| answer(connection, &[Vec::new()], 0));
        assert!(found(&target).await.expect("an empty list").is_empty());
    })
    .await;
}

async fn fails(what: &str, target: &Target, kinds: &[ErrorKind]) {
    println!("{what}");
    let error = found(target).await.expect_err(what);
    assert!(kinds.contains(&error.kind()), "{what}: {error}");
    assert_eq!(
        (error.portal(), error.target()),
        (&target.portal()[..], None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_answers() {
    limited(async {
        let cases = [
            (CONTINUED, vec![b'x'; 8000]),
            (0, text(&vec![LIST[0]; 300])),
            (0, text(&[LIST[0]])),
            (0, Vec::new()),
            (CONTINUED, Vec::new()),
        ];
        each(cases, |(flags, piece)| async move {
            let length = piece.len();
            let target = Target::start(move |connection| {
                let mut request = question(connection)?;
                loop {
                    let ttt = connection.fresh_ttt();
                    let part = Pdu::to(&request, TEXT_RESPONSE, flags).word(TRANSFER_TAG, ttt);
                    connection.send(part.with(&piece[..]))?;
                    request = connection.take(|pdu| pdu.opcode() == TEXT)?;
                }
            });
            let what = format!("{length} bytes at a time");
            // What takes little memory may go on for as long as there is time.
            let kinds = [ErrorKind::Protocol, ErrorKind::TimedOut];
            fails(
                &what,
                &target,
                if length > 100 { &kinds[..1] } else { &kinds },
            )
            .await;
            let bytes = target.seen(TEXT).len() * length;
            assert!(bytes < 32 << 20, "{what}: {bytes} bytes were taken");
        })
        .await;
    })
    .await;
}

type Answer = fn(&mut Connection, &Pdu) -> io::Result<()>;

#[tokio::test(flavor = "multi_thread")]
async fn broken_answers() {
    const PROTOCOL: &[ErrorKind] = &[ErrorKind::Protocol];
    let cases: [(&str, Answer, &'static [ErrorKind]); 7] = [
        (
            "no pairs",
            |connection, request| {
                connection.send(Pdu::to(request, TEXT_RESPONSE, FINAL).with(*b"nonsense"))
            },
            PROTOCOL,
        ),
        (
            "no text",
            |connection, request| {
                connection
                    .send(Pdu::to(request, TEXT_RESPONSE, FINAL).with(*b"TargetName=\xff\xfe\0"))
            },
            PROTOCOL,
        ),
        (
            "an address of nobody",
            |connection, request| {
                let list = text(&LIST[1..3]);
                connection.send(Pdu::to(request, TEXT_RESPONSE, FINAL).with(list))
            },
            PROTOCOL,
        ),
        (
            "another task tag",
            |connection, request| {
                let answer = Pdu::to(request, TEXT_RESPONSE, FINAL).with(text(LIST));
                connection.send(answer.word(TAG, request.tag() ^ 0x55))
            },
            PROTOCOL,
        ),
        (
            "16 MiB",
            |connection, request| {
                let mut bytes = connection.encode(Pdu::to(request, TEXT_RESPONSE, FINAL));
                bytes[5..8].fill(0xff);
                connection.write(&bytes)
            },
            PROTOCOL,
        ),
        (
            "another answer",
            |connection, request| connection.send(Pdu::to(request, RESPONSE, FINAL)),
            PROTOCOL,
        ),
        (
            "a reject",
            |connection, request| {
                let reject = Pdu::new(REJECT, FINAL).byte(2, 5).word(TAG, NONE);
                connection.send(reject.with(request.head))
            },
            &[ErrorKind::Refused, ErrorKind::Protocol],
        ),
    ];
    limited(async {
        each(cases, |(what, act, kinds)| async move {
            let target = Target::start(move |connection| {
                let request = question(connection)?;
                act(connection, &request)?;
                connection.drain()
            });
            fails(what, &target, kinds).await;
        })
        .await;
    })
    .await;
}

/// A discovery session takes no NOP-Out (RFC 7143 section 13.21), so a NOP-In wants none.
#[tokio::test(flavor = "multi_thread")]
async fn slow_and_silent_portals() {
    limited(async {
        let target = Target::start(|connection| {
            let request = question(connection)?;
            let news = Pdu::new(NOP_IN, FINAL)
                .word(TAG, NONE)
                .word(TRANSFER_TAG, NONE);
            connection.send(news)?;
            connection.send(Pdu::to(&request, TEXT_RESPONSE, FINAL).with(text(LIST)))?;
            connection.drain()
        });
        is_the_list(&found(&target).await.expect("a list"));

        // The list is complete, whatever comes of the logout.
        let target = Target::start(|connection| {
            let request = question(connection)?;
            connection.send(Pdu::to(&request, TEXT_RESPONSE, FINAL).with(text(LIST)))?;
            connection.ignore()
        });
        is_the_list(&found(&target).await.expect("a list"));

        let target = Target::start(|connection| question(connection).map(drop));
        fails("closes", &target, &[ErrorKind::Lost]).await;

        let target = Target::start(|connection| {
            question(connection)?;
            connection.drain()
        });
        let kinds = [ErrorKind::TimedOut, ErrorKind::Lost];
        fails("says nothing", &target, &kinds).await;
    })
    .await;
}
