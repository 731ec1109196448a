//! Bytes that are no answers.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use volmux_iscsi_initiator::{ErrorKind, Residual, Session};

use crate::disk::data_in;
use crate::support::*;
use crate::target::BLOCK;
use crate::wire::*;

async fn is_refused_at_once(what: &str, act: Act) {
    println!("{what}");
    let target = once(act);
    let mut options = options(&target);
    options.keep_alive = Duration::from_secs(10);
    options.command_timeout = Duration::from_secs(10);
    let session = Session::login(options).await.expect("a login");
    let start = Instant::now();
    let error = session.execute(LUN, read(1, 8)).await.expect_err(what);
    check(&error, &[ErrorKind::Protocol], &target, Some(LUN));
    assert!(error.sent());
    took(start, 0.0);
    works(&session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn opcodes() {
    let acts: [(&str, Act); 10] = [
        ("of the vendor", |connection, command| {
            connection.send(Pdu::to(command, 0x3d, FINAL))
        }),
        ("unassigned", |connection, command| {
            connection.send(Pdu::to(command, 0x2a, FINAL))
        }),
        ("a request", |connection, command| {
            connection.send(Pdu::to(command, COMMAND, FINAL))
        }),
        ("of the login", |connection, command| {
            connection.send(Pdu::to(command, LOGIN_RESPONSE, FINAL | 7))
        }),
        ("a response for nobody", |connection, command| {
            let response = Pdu::to(command, RESPONSE, FINAL).word(TAG, command.tag() ^ 0x5a5a);
            connection.send(response)
        }),
        ("an answer of task management", |connection, command| {
            connection.send(Pdu::to(command, TASK_RESPONSE, FINAL))
        }),
        ("an answer of a logout", |connection, command| {
            connection.send(Pdu::to(command, LOGOUT_RESPONSE, FINAL))
        }),
        ("an answer of a text", |connection, command| {
            connection.send(Pdu::to(command, TEXT_RESPONSE, FINAL))
        }),
        ("zeros", |connection, _| connection.write(&[0; 48])),
        ("ones", |connection, _| connection.write(&[0xff; 48])),
    ];
    limited(async {
        each(acts, |(what, act)| is_refused_at_once(what, act)).await;
    })
    .await;
}

/// Of each only the header comes: whoever waits for the rest waits long.
#[tokio::test(flavor = "multi_thread")]
async fn lengths() {
    let acts: [(&str, Act); 5] = [
        ("a data segment of 16 MiB", |connection, command| {
            let mut bytes = connection.encode(data_in(command, FINAL | STATUS, 0, 0, &[]));
            bytes[5..8].fill(0xff);
            connection.write(&bytes)
        }),
        (
            "a data segment that is longer than agreed",
            |connection, command| {
                let mut bytes = connection.encode(data_in(command, FINAL | STATUS, 0, 0, &[]));
                let length = (connection.terms.initiator_segment + 1).to_be_bytes();
                bytes[5..8].copy_from_slice(&length[1..]);
                connection.write(&bytes)
            },
        ),
        ("a response of 16 MiB", |connection, command| {
            let mut bytes = connection.encode(Pdu::to(command, RESPONSE, FINAL));
            bytes[5..8].fill(0xff);
            connection.write(&bytes)
        }),
        ("a ping of 16 MiB", |connection, _| {
            let ping = Pdu::new(NOP_IN, FINAL)
                .word(TAG, NONE)
                .word(TRANSFER_TAG, 5);
            let mut bytes = connection.encode(ping);
            bytes[5..8].fill(0xff);
            connection.write(&bytes)
        }),
        ("an additional header", |connection, command| {
            let mut bytes = connection.encode(data_in(command, FINAL | STATUS, 0, 0, &[]));
            bytes[4] = 0xff;
            connection.write(&bytes)
        }),
    ];
    limited(async {
        each(acts, |(what, act)| is_refused_at_once(what, act)).await;
    })
    .await;
}

/// One byte of a right answer is another. Whatever comes of it comes soon, and is not a read that
/// looks good with wrong data.
#[tokio::test(flavor = "multi_thread")]
async fn changed_bytes() {
    limited(async {
        let all = (0..48).flat_map(|at| [0x01, 0x80, 0xff].map(|change| (at, change)));
        let all: Vec<_> = all.collect();
        // Some of them take until the next ping: many at a time.
        each(all.chunks(24).map(<[_]>::to_vec), |some| async move {
            let mut running: JoinSet<()> = some
                .into_iter()
                .map(|(at, change)| changed_byte(at, change))
                .collect();
            let mut failed = 0;
            while let Some(ended) = running.join_next().await {
                failed += usize::from(ended.is_err());
            }
            assert_eq!(failed, 0);
        })
        .await;
    })
    .await;
}

async fn changed_byte(at: usize, change: u8) {
    let target = once(move |connection, command| {
        let data = connection.on_disk(command);
        let (one, two) = data.split_at(BLOCK);
        connection.data_in(command, 0, 0, 0, one)?;
        let mut bytes = connection.encode(data_in(command, FINAL | STATUS, 1, BLOCK, two));
        bytes[at] ^= change;
        connection.write(&bytes)
    });
    let mut options = options(&target);
    options.keep_alive = Duration::from_secs(1);
    options.command_timeout = Duration::from_secs(3);
    let session = Session::login(options).await.expect("a login");
    match session.execute(LUN, read(1, 4)).await {
        Ok(reply) => {
            let good = reply.status == 0 && reply.residual == Residual::None;
            let whole = original(1, 4);
            let right = reply.data == whole || (reply.data.len() < 2048 && good);
            assert!(
                !good || (right && whole.starts_with(&reply.data)),
                "{at} {change:#x}"
            );
        }
        Err(error) => assert_eq!(error.lun(), Some(LUN), "{at} {change:#x}: {error}"),
    }
}
