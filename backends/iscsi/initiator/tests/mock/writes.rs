//! How data goes out, for all that can be agreed about it. Right order, flags, offsets, tags and
//! lengths are checked where the data arrives.

use std::sync::Arc;

use tokio::task::JoinSet;
use volmux_iscsi_initiator::Session;

use crate::negotiation::Terms;
use crate::support::*;
use crate::target::{BLOCK, Target};
use crate::wire::*;

const SIZES: [usize; 7] = [1, 2, 7, 8, 9, 128, 201];

fn all_terms() -> Vec<Terms> {
    let mut all = Vec::new();
    for segment in [512, 4096, 65_536] {
        for (burst, first_burst) in [(512, 512), (4096, 1024), (4096, 4096), (65_536, 5120)] {
            for (initial_r2t, immediate_data) in
                [(false, false), (false, true), (true, false), (true, true)]
            {
                let terms = Terms::default();
                all.push(Terms {
                    segment,
                    burst,
                    first_burst,
                    initial_r2t,
                    immediate_data,
                    ..terms
                });
            }
        }
    }
    all
}

async fn write_all_sizes(session: &Arc<Session>, target: &Target) {
    let mut running = JoinSet::new();
    let mut block = 100;
    for (blocks, fill) in SIZES.into_iter().zip(1..) {
        let data = original(blocks + fill, blocks);
        let session = Arc::clone(session);
        running.spawn(async move {
            let reply = session
                .execute(LUN, write(block, data))
                .await
                .expect("a write");
            assert_eq!(reply.status, 0);
        });
        block += blocks;
    }
    while let Some(ended) = running.join_next().await {
        ended.expect("it is right");
    }
    let mut block = 100;
    for (blocks, fill) in SIZES.into_iter().zip(1..) {
        assert!(
            target.disk(block, blocks) == original(blocks + fill, blocks),
            "{blocks} blocks"
        );
        block += blocks;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_was_agreed() {
    limited(async {
        for terms in all_terms() {
            println!("{terms:?}");
            let wanted = terms.clone();
            let target = Target::start(move |connection| {
                connection.login_on(&terms)?;
                connection.serve()
            });
            let session = Arc::new(login(&target).await);
            write_all_sizes(&session, &target).await;
            let reply = session.execute(LUN, read(1, 90)).await.expect("a read");
            is_good(&reply, 1, 90);
            assert_eq!((target.connections(), session.nexus()), (1, 1));
            used_what_was_agreed(&target, &wanted);
        }
    })
    .await;
}

/// An initiator that never sends data unasked is slow, not wrong: but this one offers to.
fn used_what_was_agreed(target: &Target, terms: &Terms) {
    let login = target.seen(LOGIN);
    let text: Vec<u8> = login
        .iter()
        .flat_map(|seen| seen.pdu.data.clone())
        .collect();
    let offers_immediate = !String::from_utf8_lossy(&text).contains("ImmediateData=No");
    let offers_unasked = String::from_utf8_lossy(&text).contains("InitialR2T=No");
    let commands = target.seen(COMMAND);
    let immediate = commands.iter().any(|seen| !seen.pdu.data.is_empty());
    assert_eq!(immediate, offers_immediate && terms.immediate_data);
    let unasked = target.seen(DATA_OUT);
    let unasked = unasked
        .iter()
        .any(|seen| seen.pdu.get(TRANSFER_TAG) == NONE);
    if terms.initial_r2t {
        assert!(!unasked);
    } else if offers_unasked && !terms.immediate_data {
        assert!(unasked, "data may go out unasked, and has to wait");
    }
}

/// The defaults of the RFC hold for what the target leaves unsaid (RFC 7143 section 13).
#[tokio::test(flavor = "multi_thread")]
async fn defaults() {
    limited(async {
        let target = Target::start(|connection| {
            loop {
                let (request, keys) = connection.login_request()?;
                let terms = Terms::default();
                let mut answers = connection.agree(&terms, &keys);
                answers.retain(|(key, _)| key != "MaxRecvDataSegmentLength");
                if connection.login_answer(&request, &text(&answers))? {
                    break;
                }
            }
            connection.terms.segment = 8192;
            connection.serve()
        });
        let session = Arc::new(login(&target).await);
        write_all_sizes(&session, &target).await;
    })
    .await;
}

/// The unit's number as SAM-5 encodes it: up to 255 as a peripheral, above that flat.
#[tokio::test(flavor = "multi_thread")]
async fn units_are_encoded() {
    limited(async {
        let target = good();
        let session = login(&target).await;
        for lun in [0, 1, 255, 256, 16_383] {
            session
                .execute(lun, write(9, vec![3; 20 * BLOCK]))
                .await
                .expect("a write");
        }
        let luns: Vec<[u8; 8]> = target
            .seen(COMMAND)
            .iter()
            .map(|seen| seen.pdu.lun())
            .collect();
        let starts = [[0, 0], [0, 1], [0, 255], [0x41, 0], [0x7f, 0xff]];
        let expected = starts.map(|[high, low]| [high, low, 0, 0, 0, 0, 0, 0]);
        assert_eq!(luns, expected);
    })
    .await;
}
