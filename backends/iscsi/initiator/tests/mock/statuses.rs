//! What comes with the end of a command: status, sense, and the target's own failures.

use volmux_iscsi_initiator::{ErrorKind, Reply};

use crate::disk::{SENSE, sense_segment};
use crate::support::*;
use crate::target::BLOCK;
use crate::wire::*;

const DESCRIPTOR: [u8; 12] = [0x72, 5, 0x20, 0, 0, 0, 0, 4, 0x80, 2, 0, 0];

async fn reply_to(status: u8, segment: Vec<u8>, writes: bool) -> Reply {
    let target = first(move |connection, command| connection.status(command, status, &segment));
    let session = login(&target).await;
    let command = if writes {
        write(3, vec![9; 40 * BLOCK])
    } else {
        read(3, 8)
    };
    let reply = session
        .execute(LUN, command)
        .await
        .expect("a status is no error");
    works(&session).await;
    assert_eq!(
        target.connections(),
        1,
        "a status is no reason for a new connection"
    );
    assert_eq!(reply.status, status);
    assert!(reply.data.is_empty());
    reply
}

#[tokio::test(flavor = "multi_thread")]
async fn sense_of_all_forms() {
    limited(async {
        for writes in [false, true] {
            for sense in [&SENSE[..], &DESCRIPTOR[..], &SENSE[..14], &SENSE[..1]] {
                let reply = reply_to(2, sense_segment(sense), writes).await;
                assert_eq!(reply.sense, sense);
            }
            assert!(reply_to(2, Vec::new(), writes).await.sense.is_empty());
            assert!(reply_to(2, vec![0, 0], writes).await.sense.is_empty());
            // What follows the sense is the target's own (response data).
            let more = [sense_segment(&SENSE), vec![0xaa; 9]].concat();
            assert_eq!(reply_to(2, more, writes).await.sense, SENSE[..]);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_targets() {
    limited(async {
        for status in [0x08, 0x18, 0x28, 0x40] {
            for writes in [false, true] {
                assert!(reply_to(status, Vec::new(), writes).await.sense.is_empty());
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sense_that_is_not_all_there() {
    limited(async {
        for segment in [
            &[0xff, 0xff][..],
            &[0, 18, 0x70, 0, 5],
            &[0xff, 0xff, 0x72, 5],
            &[18],
        ] {
            let segment = segment.to_vec();
            let sense = segment.get(2..).unwrap_or_default().to_vec();
            let target = first(move |connection, command| connection.status(command, 2, &segment));
            let session = login(&target).await;
            match session.execute(LUN, read(3, 8)).await {
                Ok(reply) => assert!(reply.status == 2 && reply.sense == sense, "{reply:?}"),
                Err(error) => check(&error, &[ErrorKind::Protocol], &target, Some(LUN)),
            }
            works(&session).await;
        }
    })
    .await;
}

/// A write may end before its data was asked for, or in the midst of it.
#[tokio::test(flavor = "multi_thread")]
async fn writes_that_end_early() {
    limited(async {
        let target = first(|connection, command| {
            let offset = command.data.len();
            let ttt = connection.fresh_ttt();
            connection.r2t(command, ttt, 0, offset, 8 * BLOCK)?;
            let mut data = Vec::new();
            data.extend_from_slice(&command.data);
            assert!(connection.sequence(command, ttt, &mut data, 8 * BLOCK)?);
            connection.status(command, 2, &sense_segment(&SENSE))
        });
        let session = login(&target).await;
        let reply = session
            .execute(LUN, write(3, vec![9; 100 * BLOCK]))
            .await
            .expect("a status");
        assert_eq!((reply.status, &reply.sense[..]), (2, &SENSE[..]));
        works(&session).await;
        assert_eq!(target.connections(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn target_failure() {
    limited(async {
        let vendors = [ErrorKind::Refused, ErrorKind::Protocol];
        for (code, kinds) in [(0x01, &vendors[..1]), (0x80, &vendors), (0xff, &vendors)] {
            let target = first(move |connection, command| {
                let response = Pdu::to(command, RESPONSE, FINAL).word(TRANSFER_TAG, 0);
                connection.send(response.byte(2, code))
            });
            fails("target failure", &target, read(3, 8), kinds).await;
        }
    })
    .await;
}

/// A Reject holds the header of what is rejected. It may also be nonsense.
#[tokio::test(flavor = "multi_thread")]
async fn rejects() {
    let kinds = [ErrorKind::Refused, ErrorKind::Protocol, ErrorKind::Lost];
    limited(async {
        for reason in [0x02, 0x04, 0x05, 0x09, 0x0b, 0xff] {
            let target = first(move |connection, command| {
                let reject = Pdu::new(REJECT, FINAL).byte(2, reason).word(TAG, NONE);
                connection.send(reject.with(command.head))
            });
            fails("a command is rejected", &target, read(3, 8), &kinds).await;
        }
        for data in [vec![], vec![1; 20], vec![0xff; 48]] {
            let target = first(move |connection, _| {
                let reject = Pdu::new(REJECT, FINAL).byte(2, 4).word(TAG, NONE);
                connection.send(reject.with(data.clone()))?;
                connection.drain()
            });
            let kinds = [&kinds[..], &[ErrorKind::TimedOut]].concat();
            let session = login(&target).await;
            let error = session
                .execute(LUN, read(3, 8))
                .await
                .expect_err("no answer");
            check(&error, &kinds, &target, Some(LUN));
        }
    })
    .await;
}
