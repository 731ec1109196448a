//! What a fuzzer may throw bytes at: all that a logical unit can answer. Not part of the library:
//! there is no such module unless it is built for fuzzing.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use volmux_iscsi_initiator::{Command, Data, Error, ErrorKind, Reply, Residual, Result};

use super::{
    BlockLimits, Capacity, FullStatus, Inquiry, LogicalBlockProvisioning, LogicalUnit, Luns, Mode,
    Operation, RegisteredKeys, ReservationCapabilities, ReservationKind, Sense, UnitOptions,
    parse_designators, parse_lba_status, parse_pages, parse_reservation, parse_rotation,
    parse_serial, report_luns,
};
use crate::transport::ScsiTransport;

/// Blocks of the unit that the fuzzer's answers are about, if they don't say otherwise.
const BLOCKS: u64 = 64;

/// Gives bytes to every parser. How many of them took them.
///
/// # Panics
/// If one gives back more than the bytes can hold, or what its contract rules out.
pub fn parsers(bytes: &[u8]) -> usize {
    let mut taken = usize::from(Sense::parse(bytes).is_some_and(|sense| sense.key < 16));
    taken += usize::from(Inquiry::parse(bytes).is_ok());
    taken += usize::from(parse_pages(bytes).is_ok_and(|pages| pages.len() <= bytes.len()));
    taken += usize::from(parse_serial(bytes).is_ok());
    taken += usize::from(parse_designators(bytes).is_ok_and(|all| 4 * all.len() <= bytes.len()));
    taken += usize::from(BlockLimits::parse(bytes).is_ok());
    taken += usize::from(parse_rotation(bytes).is_ok());
    taken += usize::from(LogicalBlockProvisioning::parse(bytes).is_ok());
    taken += usize::from(Mode::parse_6(bytes).is_ok());
    taken += usize::from(Mode::parse_10(bytes).is_ok());
    taken += usize::from(Operation::parse(bytes).is_ok());
    for capacity in [Capacity::parse_16(bytes), Capacity::parse_10(bytes)]
        .into_iter()
        .flatten()
    {
        assert!(capacity.bytes() >= 512 && capacity.block_size.is_power_of_two());
        taken += 1;
    }
    if let Ok(luns) = Luns::parse(bytes) {
        assert!(luns.numbers.len() + luns.others <= bytes.len() / 8);
        taken += 1;
    }
    for lba in [0, 5, BLOCKS - 1] {
        let Ok(ranges) = parse_lba_status(bytes, lba, BLOCKS) else {
            continue;
        };
        let mut next = lba;
        for range in &ranges {
            assert!(range.lba == next && range.blocks > 0);
            next += range.blocks;
        }
        assert!(next > lba && next <= BLOCKS);
        taken += 1;
    }
    if let Ok(keys) = RegisteredKeys::parse(bytes) {
        assert!(8 * keys.keys.len() <= bytes.len());
        taken += 1;
    }
    if let Ok(status) = FullStatus::parse(bytes) {
        assert!(24 * status.registrants.len() <= bytes.len());
        taken += 1;
    }
    taken += usize::from(parse_reservation(bytes).is_ok());
    taken + usize::from(ReservationCapabilities::parse(bytes).is_ok())
}

/// Answers commands from bytes: a 0 is an answer without fault; else flags, a status, a length, and
/// so many bytes of sense data or data.
#[derive(Debug)]
struct Answers(Mutex<(Vec<u8>, usize)>);

impl Answers {
    fn next(&self, command: &Command) -> Option<Reply> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (bytes, at) = &mut *state;
        let mut take = |most: usize| {
            let from = (*at).min(bytes.len());
            *at = (from + most).min(bytes.len());
            bytes[from..*at].to_vec()
        };
        let flags = *take(1).first()?;
        let room = match command.data {
            Data::Read(room) => room as usize,
            _ => 0,
        };
        if flags == 0 {
            return Some(good(&command.cdb, room));
        }
        let header = take(2);
        let (status, length) = (*header.first()?, usize::from(*header.get(1)?));
        let mut content = take(length);
        let sense = match status {
            2 => std::mem::take(&mut content),
            _ => Vec::new(),
        };
        // As the transport promises: not more than there is room for.
        content.resize(
            if flags & 4 != 0 {
                room
            } else {
                content.len().min(room)
            },
            0,
        );
        Some(Reply {
            status,
            sense: sense.into(),
            data: content.into(),
            residual: match flags & 3 {
                1 => Residual::Underflow(flags.into()),
                2 => Residual::Overflow(flags.into()),
                _ => Residual::None,
            },
            nexus: 1 + u64::from(flags >> 7),
        })
    }
}

/// What a plain disk answers.
fn good(cdb: &[u8], room: usize) -> Reply {
    let mut data = vec![0; room];
    let told: &[u8] = match *cdb {
        [0x12, 1, 0, ..] => &[0, 0, 0, 5, 0, 0x80, 0x83, 0xb0, 0xb2],
        [0x12, 1, 0x80, ..] => b"\0\x80\0\x01x",
        [0x12, 1, 0xb0, ..] => &[
            0, 0xb0, 0, 60, 0, 8, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 2,
        ],
        [0x12, 1, 0xb2, ..] => &[0, 0xb2, 0, 4, 0, 0xe4, 2],
        [0x12, 1, page, ..] => &[0, page],
        [0x9e, 0x10, ..] => &[0, 0, 0, 0, 0, 0, 0, BLOCKS as u8 - 1, 0, 0, 2],
        _ => &[],
    };
    let length = told.len().min(room);
    data[..length].copy_from_slice(&told[..length]);
    Reply {
        data: data.into(),
        nexus: 1,
        ..Reply::default()
    }
}

#[async_trait]
impl ScsiTransport for Answers {
    async fn execute(&self, _lun: u64, command: Command) -> Result<Reply> {
        let over = || Error::new(ErrorKind::Lost, "there are no more answers");
        self.next(&command).ok_or_else(over)
    }

    async fn reset_lun(&self, _lun: u64) -> Result<()> {
        Ok(())
    }

    async fn logout(&self) -> Result<()> {
        Ok(())
    }
}

/// Opens a unit whose answers are made of bytes, and asks it for everything. How many of the
/// requests succeeded, opening included.
///
/// # Panics
/// If a read gives other than what was asked for, or if it does not end.
pub fn unit(bytes: &[u8]) -> usize {
    let answers = Arc::new(Answers(Mutex::new((bytes.to_vec(), 0))));
    // Too short for any pause, so that nothing has to be waited for.
    let options = UnitOptions {
        deadline: Duration::from_millis(4),
        ..UnitOptions::default()
    };
    let mut asked = pin!(ask(answers, options));
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..10_000 {
        if let Poll::Ready(done) = asked.as_mut().poll(&mut context) {
            return done;
        }
    }
    panic!("it does not end");
}

async fn ask(answers: Arc<Answers>, options: UnitOptions) -> usize {
    let Ok(unit) = LogicalUnit::open_with(answers.clone(), 1, options.clone()).await else {
        return 0;
    };
    let block = unit.block_size() as usize;
    let mut done = 1;
    if block > 4096 {
        // Nothing differs but the time that it takes.
        return done;
    }
    if let Ok((data, _)) = unit.read(None, 0, 20).await {
        assert_eq!(data.len(), 20 * block);
        done += 1;
    }
    let data = Bytes::from(vec![7; 10 * block]);
    done += usize::from(unit.write(None, 3, data.clone()).await.is_ok());
    done += usize::from(unit.flush(None).await.is_ok());
    done += usize::from(unit.unmap(None, &[(0, 30), (33, 9)]).await.is_ok());
    done += usize::from(unit.zero(None, 1, 50, true).await.is_ok());
    let two = &data[..2 * block];
    done += usize::from(unit.compare_and_write(Some(1), 0, two, two).await.is_ok());
    if let Ok((ranges, _)) = unit.lba_status(None, 9).await {
        assert!(ranges[0].lba == 9 && ranges.iter().all(|range| range.blocks > 0));
        done += 1;
    }
    done += usize::from(unit.read_capacity(None).await.is_ok());
    done += usize::from(unit.check_identity(Some(1)).await.is_ok());
    let kind = ReservationKind::WriteExclusive;
    done += usize::from(unit.register(None, 0, 1, true).await.is_ok());
    done += usize::from(unit.preempt(None, 1, 2, kind, true).await.is_ok());
    done += usize::from(unit.registered_keys(None).await.is_ok());
    done += usize::from(unit.reservation(None).await.is_ok());
    done += usize::from(unit.full_reservation_status(None).await.is_ok());
    done + usize::from(report_luns(answers, options).await.is_ok())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fuzz/seeds/scsi");

    fn seed(name: &str) -> Vec<u8> {
        fs::read(Path::new(SEEDS).join(name)).expect("a seed")
    }

    /// What is left of a seed, if all that does not end with it is cut off: nothing.
    fn is_used_up(bytes: &[u8]) -> bool {
        let answers = Answers(Mutex::new((bytes.to_vec(), 0)));
        let command = Command::default();
        while answers.next(&command).is_some() {}
        let (bytes, at) = &*answers.0.lock().expect("nobody panicked");
        *at == bytes.len()
    }

    #[test]
    fn a_plain_disk_does_all_but_tell_of_blocks() {
        let answers = seed("unit-plain");
        assert!(answers.iter().all(|byte| *byte == 0));
        assert_eq!(unit(&answers), 15, "of 16: zeros are no status of blocks");
        assert_eq!(unit(&answers[..5]), 0);
    }

    #[test]
    fn a_unit_that_has_much_to_tell_is_opened() {
        let answers = seed("unit-attentions");
        assert!(is_used_up(&answers));
        assert_eq!(unit(&answers), 15);
        // So does one that fails now and then.
        let answers = seed("unit-failures");
        assert!(is_used_up(&answers));
        assert!((5..15).contains(&unit(&answers)), "{}", unit(&answers));
    }

    #[test]
    fn replies_are_taken_by_their_parsers() {
        let status = parse_lba_status(&seed("lba-status"), 0, BLOCKS).expect("ranges");
        assert_eq!(status.len(), 3);
        assert_eq!(parse_designators(&seed("vpd-83")).expect("names").len(), 3);
        assert_eq!(
            FullStatus::parse(&seed("full-status"))
                .expect("them")
                .registrants
                .len(),
            2
        );
        assert_eq!(
            Luns::parse(&seed("luns")).expect("a list").numbers,
            [0, 1, 256]
        );
        assert!(Sense::parse(&seed("sense-descriptor")).is_some_and(|s| s.information.is_some()));
        assert!(Mode::parse_6(&seed("mode-6")).expect("it").write_cache == Some(true));
        assert!(
            BlockLimits::parse(&seed("vpd-b0"))
                .expect("it")
                .max_write_same
                > 0
        );
        for name in [
            "lba-status",
            "vpd-83",
            "full-status",
            "luns",
            "mode-6",
            "vpd-b0",
        ] {
            assert!(parsers(&seed(name)) >= 3, "{name}");
        }
    }
}
