//! Commands, and what a target that keeps to the rules may answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use volmux_iscsi::transport::Connector;
use volmux_iscsi_client_rs::ClientRs;
use volmux_iscsi_initiator::{Digest, Residual};

use crate::disk::{data_in, sense_segment};
use crate::negotiation::Terms;
use crate::support::*;
use crate::target::{BLOCK, Target, pattern};
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
            connection.data_in(command, FINAL, 0, 0, &data)?;
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
            assert_eq!((reply.residual, reply.nexus), (Residual::None, 1));
            works(&*session).await;
            // Of which the first was the rehearsal.
            assert_eq!(target.connections(), 2);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn short_bursts_and_segments() {
    limited(async {
        for (burst, segment, digests, immediate_data) in [
            (512, 8192, (false, false), true),
            (1536, 1024, (false, false), false),
            (4096, 516, (true, true), true),
            (65_536, 65_536, (false, true), false),
        ] {
            let terms = Terms {
                burst,
                first_burst: 512,
                segment,
                digests,
                immediate_data,
                ..Terms::default()
            };
            let target = Target::start(move |connection| {
                connection.login_on(&terms)?;
                connection.serve()
            });
            let mut options = options(&target);
            (options.header_digest, options.data_digest) = (Digest::Preferred, Digest::Preferred);
            let session = ClientRs.login(options).await.expect("a login");
            let reply = session.execute(LUN, read(1, 300)).await.expect("a read");
            is_good(&reply, 1, 300);
            works(&*session).await;
        }
    })
    .await;
}

/// The crate forgets a command with each R2T: what comes amid its data is not lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_status_may_come_amid_the_data_of_a_write() {
    limited(async {
        let target = first(|connection, command| {
            let (sent, ttt) = (command.data.len(), connection.fresh_ttt());
            connection.r2t(command, ttt, 0, sent, 100 * BLOCK)?;
            connection.data_out(command)?;
            connection.status(command, 2, &sense_segment(&crate::disk::SENSE))?;
            // The rest of the sequence.
            loop {
                let pdu = connection.take(|pdu| pdu.opcode() == DATA_OUT)?;
                if pdu.is_final() {
                    return Ok(());
                }
            }
        });
        let session = login(&target).await;
        let data = vec![1; 200 * BLOCK];
        let reply = session
            .execute(LUN, write(0, data))
            .await
            .expect("an answer");
        assert_eq!(reply.status, 2);
        assert_eq!(reply.sense[..], crate::disk::SENSE);
        works(&*session).await;
    })
    .await;
}

/// Of the target's window and of `queue_depth` the smaller one holds.
#[tokio::test(flavor = "multi_thread")]
async fn commands_wait_for_their_turn() {
    limited(async {
        for (window, depth, most) in [(1, 128, 1), (4, 128, 4), (32, 3, 3)] {
            let terms = Terms {
                window,
                ..Terms::default()
            };
            let target = Target::start(move |connection| {
                connection.login_on(&terms)?;
                loop {
                    let command = connection.command()?;
                    // Others come meanwhile, if they may.
                    while connection.more_within(Duration::from_millis(20))? {
                        let pdu = connection.receive()?;
                        connection.manage(pdu)?;
                        if connection.shared.record().most_open >= most {
                            break;
                        }
                    }
                    connection.execute(&command)?;
                }
            });
            let mut options = options(&target);
            options.queue_depth = depth;
            let session = ClientRs.login(options).await.expect("a login");
            let mut running = JoinSet::new();
            for block in 0..20 {
                let session = Arc::clone(&session);
                running.spawn(async move {
                    let reply = session.execute(LUN, read(block, 3)).await.expect("a read");
                    is_good(&reply, block, 3);
                });
            }
            while let Some(ended) = running.join_next().await {
                ended.expect("it is right");
            }
            assert_eq!(
                target.most_open(),
                most,
                "of a window of {window}, {depth} at most"
            );
        }
    })
    .await;
}

/// However many wait, a session is not ended for it.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_commands_may_wait() {
    limited(async {
        let target = first(|connection, command| {
            // Longer than the session takes to look.
            std::thread::sleep(Duration::from_millis(800));
            connection.execute(command)
        });
        let session = login(&target).await;
        let mut running = JoinSet::new();
        for block in 0..3000 {
            let session = Arc::clone(&session);
            running.spawn(async move {
                let reply = session.execute(LUN, read(block, 1)).await.expect("a read");
                is_good(&reply, block, 1);
                assert_eq!(reply.nexus, 1);
            });
        }
        while let Some(ended) = running.join_next().await {
            ended.expect("it is right");
        }
    })
    .await;
}

/// Targets look whether the initiator is there.
#[tokio::test(flavor = "multi_thread")]
async fn pings_of_the_target_are_answered() {
    limited(async {
        let target = first(|connection, command| {
            for number in 1..=3 {
                let ping = Pdu::new(NOP_IN, FINAL).word(TAG, NONE);
                connection.send(ping.word(TRANSFER_TAG, number))?;
                // The crate counts pings as answers, though they are none.
                connection.stat_sn = connection.stat_sn.wrapping_add(1);
                let pong = connection.take(|pdu| pdu.opcode() == NOP_OUT && pdu.tag() == NONE)?;
                assert_eq!(pong.get(TRANSFER_TAG), number);
                assert!(pong.immediate());
            }
            // That one asks for no answer.
            connection.send(
                Pdu::new(NOP_IN, FINAL)
                    .word(TAG, NONE)
                    .word(TRANSFER_TAG, NONE),
            )?;
            connection.execute(command)
        });
        let session = login(&target).await;
        is_good(
            &session.execute(LUN, read(0, 8)).await.expect("a read"),
            0,
            8,
        );
        works(&*session).await;
        assert_eq!(target.connections(), 2);
    })
    .await;
}

/// A command of which nothing was sent is repeated, and one that was sent is not.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_is_not_repeated_unasked() {
    limited(async {
        let target = first(|connection, _| {
            connection.close();
            Ok(())
        });
        let session = login(&target).await;
        let data = pattern(9, 8 * BLOCK);
        let error = session
            .execute(LUN, write(0, data))
            .await
            .expect_err("it broke");
        assert_eq!(
            error.kind(),
            volmux_iscsi_initiator::ErrorKind::Lost,
            "{error}"
        );
        assert!(error.sent());
        works(&*session).await;
        let commands = target.seen(COMMAND);
        let of_the_first = |cdb: &[u8]| cdb[2..6] == [0; 4];
        let sent = commands.iter().filter(|seen| of_the_first(seen.pdu.cdb()));
        assert_eq!(sent.count(), 1);
        let reply = session.execute(LUN, read(2000, 1)).await.expect("a read");
        assert_eq!(reply.nexus, 2);
    })
    .await;
}

/// The last data may be short, and then the status tells how short.
#[tokio::test(flavor = "multi_thread")]
async fn data_may_be_missing() {
    limited(async {
        let target = first(|connection, command| {
            let data = connection.on_disk(command);
            let pdu = data_in(command, FINAL | STATUS, 0, 0, &data[..BLOCK]);
            connection.send(pdu)
        });
        let session = login(&target).await;
        let reply = session.execute(LUN, read(0, 4)).await.expect("a read");
        let due = (BLOCK, Residual::Underflow(3 * BLOCK as u32));
        assert_eq!((reply.data.len(), reply.residual), due);
    })
    .await;
}
