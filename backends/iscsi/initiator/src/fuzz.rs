//! What a fuzzer may throw bytes at: all that a target can send. Not part of the library: there is no
//! such module unless it is built for fuzzing.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::chap;
use crate::command::{Command, Data};
use crate::options::{ChapAlgorithm, Credentials, Options};
use crate::params::{self, Params};
use crate::shared::{Numbers, Shared};
use crate::text::Keys;
use crate::wire::{Digests, Receiver};

/// Bytes of the write that waits for R2Ts.
const WRITTEN: usize = 20_000;

/// Gives bytes to what reads the answers to a login, and its challenge.
pub fn login(bytes: &[u8]) {
    let Ok(keys) = Keys::parse(bytes) else {
        return;
    };
    let options = Options::new("portal", "initiator");
    let mut params = Params::default();
    if params
        .take(&keys, &params::offer(&options, false), &options)
        .is_ok()
    {
        assert!(params.most_sent >= 512 && params.first_burst <= params.max_burst);
    }
    let own = Credentials::new("me", "secret");
    let _ = chap::answer(&keys, &[ChapAlgorithm::Md5], &own, Some(&own));
}

/// Takes bytes for PDUs in a session in which a read, a write and a command without data wait for
/// answers. The first byte says which digests there are. How many PDUs were taken.
///
/// # Panics
/// If more is to be sent than was asked of the target.
pub fn pdus(bytes: &[u8]) -> usize {
    let Some((first, bytes)) = bytes.split_first() else {
        return 0;
    };
    let params = Params {
        digests: Digests {
            header: first & 1 == 1,
            data: first & 2 == 2,
        },
        most_sent: 512,
        max_burst: 4096,
        first_burst: 512,
        ..Params::default()
    };
    let digests = params.digests;
    let numbers = Numbers {
        cmd_sn: 1,
        max_cmd_sn: 10,
        stat_sn: 1,
    };
    let shared = Shared::new(params, numbers, 1, None);
    let written = Bytes::from_static(&[7; WRITTEN]);
    let mut replies = Vec::new();
    for data in [Data::Read(10_000), Data::Write(written), Data::None] {
        let (waiter, reply) = oneshot::channel();
        let command = Command {
            cdb: vec![0; 16],
            data,
            ..Command::default()
        };
        shared
            .enqueue([0; 8], &command, Instant::now(), waiter)
            .expect("nothing is broken yet");
        replies.push(reply);
    }
    let mut receiver = Receiver::new(bytes, params::RECEIVED);
    receiver.digests = digests;
    let mut taken = 0;
    let mut context = Context::from_waker(Waker::noop());
    while let Poll::Ready(Ok(())) = pin!(shared.next(&mut receiver)).poll(&mut context) {
        taken += 1;
        // Three commands, the write's data once in PDUs of 512 bytes, and a pong for each ping.
        let most = (4 + WRITTEN / 512 * 2 + taken) * 64 + WRITTEN;
        assert!(shared.lock().out.length <= most);
    }
    for mut reply in replies {
        if let Ok(Ok(reply)) = reply.try_recv() {
            assert!(reply.data.len() <= 10_000);
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::pdu::{FINAL, Header, NO_TAG, field, opcode};
    use crate::wire::encode;

    const SEEDS: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../tests/fuzz/seeds/iscsi"
    );

    /// All three commands are answered, after a ping and some data.
    fn good(first: u8) -> Vec<u8> {
        let digests = Digests {
            header: first & 1 == 1,
            data: first & 2 == 2,
        };
        let mut bytes = vec![first];
        let mut stat_sn = 1;
        let mut add = |header: Header, counted: bool, data: &[u8]| {
            let header = header
                .with(field::STAT_SN, stat_sn)
                .with(field::EXP_CMD_SN, 4)
                .with(field::MAX_CMD_SN, 20);
            stat_sn += u32::from(counted);
            let (before, after) = encode(header, data, digests);
            bytes.extend([&before[..], data, &after].concat());
        };
        let ping = Header::new(opcode::NOP_IN, FINAL).with(field::ITT, NO_TAG);
        add(ping.with(field::TTT, 5), false, &[]);
        add(Header::new(opcode::DATA_IN, 0), false, &[1; 4000]);
        let ready = Header::new(opcode::R2T, FINAL).with(field::ITT, 1);
        let ready = ready.with(field::TTT, 9).with(field::OFFSET, 512);
        add(ready.with(field::LENGTH, 4096), false, &[]);
        let last = Header::new(opcode::DATA_IN, FINAL | 3).with(field::DATA_SN, 1);
        let last = last.with(field::OFFSET, 4000).with(field::LENGTH, 2000);
        add(last, true, &[2; 4000]);
        let sense = [&[0, 18, 0x70, 0, 5][..], &[0; 15]].concat();
        let mut failed = Header::new(opcode::RESPONSE, FINAL).with(field::ITT, 1);
        failed.0[3] = 2;
        add(failed, true, &sense);
        add(
            Header::new(opcode::RESPONSE, FINAL).with(field::ITT, 2),
            true,
            &[],
        );
        bytes
    }

    #[test]
    fn good_answers_are_taken() {
        for first in 0..4 {
            assert_eq!(pdus(&good(first)), 6, "{first}");
        }
    }

    #[test]
    fn every_seed_is_taken_whole() {
        for first in [0, 3] {
            let seed = fs::read(Path::new(SEEDS).join(format!("pdus-{first}")));
            assert_eq!(seed.expect("a seed"), good(first), "made from what is here");
        }
        let seed = fs::read(Path::new(SEEDS).join("login")).expect("a seed");
        login(&seed);
        assert!(Keys::parse(&seed).expect("keys").0.len() > 8);
    }
}
