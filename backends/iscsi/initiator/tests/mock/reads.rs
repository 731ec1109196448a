//! Data of reads: what is allowed and seldom seen, and what is not allowed.

use volmux_iscsi_initiator::{ErrorKind, Residual, Session};

use crate::connection::Connection;
use crate::disk::data_in;
use crate::negotiation::Terms;
use crate::support::*;
use crate::target::{BLOCK, Target};
use crate::wire::*;

/// The F bit ends a sequence, and a read may have many of them: it says nothing about the read.
#[tokio::test(flavor = "multi_thread")]
async fn sequences_end_with_f() {
    let acts: [(&str, Act); 3] = [
        ("status with the last data", |connection, command| {
            let data = connection.on_disk(command);
            let (one, two) = data.split_at(data.len() / 2);
            connection.data_in(command, FINAL, 0, 0, one)?;
            connection.data_in(command, FINAL | STATUS, 1, one.len(), two)
        }),
        ("status by itself", |connection, command| {
            let data = connection.on_disk(command);
            let (one, two) = data.split_at(data.len() / 2);
            connection.data_in(command, FINAL, 0, 0, one)?;
            connection.data_in(command, FINAL, 1, one.len(), two)?;
            connection.status(command, 0, &[])
        }),
        ("every PDU ends one", |connection, command| {
            let data = connection.on_disk(command);
            for (sn, piece) in data.chunks(BLOCK).enumerate() {
                connection.data_in(command, FINAL, sn, sn * BLOCK, piece)?;
            }
            connection.status(command, 0, &[])
        }),
    ];
    limited(async {
        for (what, act) in acts {
            println!("{what}");
            let target = first(act);
            let session = login(&target).await;
            let reply = session.execute(LUN, read(5, 16)).await.expect(what);
            is_good(&reply, 5, 16);
            assert_eq!(reply.residual, Residual::None);
            works(&session).await;
            assert_eq!(target.connections(), 1);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn short_bursts() {
    limited(async {
        for burst in [512, 1024, 1536, 4096, 65_536] {
            let terms = Terms {
                burst,
                first_burst: 512,
                ..Terms::default()
            };
            let target = Target::start(move |connection| {
                connection.login_on(&terms)?;
                connection.serve()
            });
            let session = login(&target).await;
            let reply = session.execute(LUN, read(1, 300)).await.expect("a read");
            is_good(&reply, 1, 300);
            works(&session).await;
        }
    })
    .await;
}

/// TCP knows of no PDUs: they come in pieces, and many at once.
#[tokio::test(flavor = "multi_thread")]
async fn pieces_of_pdus() {
    limited(async {
        for size in [1, 5, 47, 49, 1000] {
            let target = first(move |connection, command| {
                let data = connection.on_disk(command);
                let mut bytes = Vec::new();
                for (sn, piece) in data.chunks(700).enumerate() {
                    let pdu = data_in(command, 0, sn, sn * 700, piece);
                    bytes.extend(connection.encode(pdu));
                }
                let news = Pdu::new(NOP_IN, FINAL)
                    .word(TAG, NONE)
                    .word(TRANSFER_TAG, NONE);
                bytes.extend(connection.encode(news));
                let response = Pdu::to(command, RESPONSE, FINAL).word(TRANSFER_TAG, 0);
                bytes.extend(connection.encode(response));
                for piece in bytes.chunks(size) {
                    connection.write(piece)?;
                }
                Ok(())
            });
            let session = login(&target).await;
            let reply = session.execute(LUN, read(5, 16)).await.expect("a read");
            is_good(&reply, 5, 16);
            works(&session).await;
            assert_eq!(target.connections(), 1);
        }
    })
    .await;
}

/// The bytes of half of a read, and then of the rest.
fn halves(connection: &Connection, command: &Pdu) -> (Vec<u8>, Vec<u8>) {
    let mut data = connection.on_disk(command);
    let rest = data.split_off(data.len() / 2);
    (data, rest)
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_data() {
    let acts: [(&str, Act); 11] = [
        ("more than asked for, in one", |connection, command| {
            let mut data = connection.on_disk(command);
            data.extend_from_slice(&[1; BLOCK]);
            connection.data_in(command, FINAL | STATUS, 0, 0, &data)
        }),
        ("more than asked for, in another", |connection, command| {
            let data = connection.on_disk(command);
            connection.data_in(command, FINAL, 0, 0, &data)?;
            connection.data_in(command, FINAL | STATUS, 1, data.len(), &[1; BLOCK])
        }),
        ("not from the start", |connection, command| {
            connection.data_in(command, FINAL | STATUS, 0, BLOCK, &[1; BLOCK])
        }),
        ("a gap", |connection, command| {
            connection.data_in(command, 0, 0, 0, &[1; BLOCK])?;
            connection.data_in(command, FINAL | STATUS, 1, 2 * BLOCK, &[1; BLOCK])
        }),
        ("the same twice", |connection, command| {
            connection.data_in(command, 0, 0, 0, &[1; BLOCK])?;
            connection.data_in(command, FINAL | STATUS, 1, 0, &[1; BLOCK])
        }),
        (
            "an offset at the end of what can be counted",
            |connection, command| {
                connection.data_in(command, FINAL | STATUS, 0, 0xffff_ff00, &[1; BLOCK])
            },
        ),
        ("DataSN from 1", |connection, command| {
            let data = connection.on_disk(command);
            connection.data_in(command, FINAL | STATUS, 1, 0, &data)
        }),
        ("DataSN with a gap", |connection, command| {
            let (one, two) = halves(connection, command);
            connection.data_in(command, 0, 0, 0, &one)?;
            connection.data_in(command, FINAL | STATUS, 2, one.len(), &two)
        }),
        ("DataSN twice", |connection, command| {
            let (one, two) = halves(connection, command);
            connection.data_in(command, 0, 0, 0, &one)?;
            connection.data_in(command, FINAL | STATUS, 0, one.len(), &two)
        }),
        ("for nobody", |connection, command| {
            let data = connection.on_disk(command);
            let pdu = data_in(command, FINAL | STATUS, 0, 0, &data);
            connection.send(pdu.word(TAG, command.tag() ^ 0x5a5a_0000))
        }),
        ("for no task", |connection, command| {
            let data = connection.on_disk(command);
            connection.send(data_in(command, FINAL | STATUS, 0, 0, &data).word(TAG, NONE))
        }),
    ];
    limited(async {
        each(acts, |(what, act)| async move {
            fails(what, &once(act), read(5, 8), &[ErrorKind::Protocol]).await;
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_for_a_write() {
    limited(async {
        let target = once(|connection, command| {
            connection.data_in(command, FINAL | STATUS, 0, 0, &[1; BLOCK])
        });
        let command = write(0, vec![7; 4 * BLOCK]);
        fails("data for a write", &target, command, &[ErrorKind::Protocol]).await;
    })
    .await;
}

async fn residual(act: Act) -> (Session, Target, volmux_iscsi_initiator::Result<Residual>) {
    let target = once(move |connection, command| {
        act(connection, command)?;
        connection.serve()
    });
    let session = login(&target).await;
    let reply = session.execute(LUN, read(5, 4)).await;
    let reply = reply.inspect(|reply| {
        let whole = original(5, 4);
        assert_eq!(reply.status, 0);
        assert!(whole.starts_with(&reply.data), "only what came is data");
        if reply.residual == Residual::None && reply.data.len() < whole.len() {
            assert_eq!(
                reply.data.len(),
                BLOCK,
                "nothing is made up for what is missing"
            );
        }
    });
    (session, target, reply.map(|reply| reply.residual))
}

#[tokio::test(flavor = "multi_thread")]
async fn residuals() {
    limited(async {
        let (session, target, found) = residual(|connection, command| {
            let data = connection.on_disk(command);
            let pdu = data_in(command, FINAL | STATUS | UNDERFLOW, 0, 0, &data[..BLOCK]);
            connection.send(pdu.word(LENGTH, 3 * 512))
        })
        .await;
        assert_eq!(
            found.expect("less is no error"),
            Residual::Underflow(3 * 512)
        );
        works(&session).await;
        assert_eq!(target.connections(), 1);

        let (session, target, found) = residual(|connection, command| {
            let data = connection.on_disk(command);
            connection.data_in(command, FINAL, 0, 0, &data)?;
            let response = Pdu::to(command, RESPONSE, FINAL | OVERFLOW);
            connection.send(response.word(TRANSFER_TAG, 0).word(LENGTH, 99))
        })
        .await;
        assert_eq!(found.expect("more is no error"), Residual::Overflow(99));
        works(&session).await;
        assert_eq!(target.connections(), 1);
    })
    .await;
}

/// GOOD, and not all of the data, and no word about it; or words that can't be true.
#[tokio::test(flavor = "multi_thread")]
async fn missing_data() {
    let acts: [(&str, Act); 3] = [
        ("nothing is told", |connection, command| {
            let data = connection.on_disk(command);
            connection.data_in(command, FINAL | STATUS, 0, 0, &data[..BLOCK])
        }),
        ("less is missing than told", |connection, command| {
            let data = connection.on_disk(command);
            let pdu = data_in(command, FINAL | STATUS | UNDERFLOW, 0, 0, &data[..BLOCK]);
            connection.send(pdu.word(LENGTH, 1))
        }),
        ("more is missing than there was", |connection, command| {
            let data = connection.on_disk(command);
            let pdu = data_in(command, FINAL | STATUS | UNDERFLOW, 0, 0, &data[..BLOCK]);
            connection.send(pdu.word(LENGTH, 0xffff_ffff))
        }),
    ];
    limited(async {
        each(acts, |(what, act)| async move {
            println!("{what}");
            let (session, target, found) = residual(act).await;
            if let Err(error) = found {
                check(&error, &[ErrorKind::Protocol], &target, Some(LUN));
            }
            works(&session).await;
        })
        .await;
    })
    .await;
}
