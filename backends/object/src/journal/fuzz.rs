//! What a fuzzer may do to a journal.

use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use uuid::Uuid;
use volmux_core::{ByteRange, ErrorKind};

use super::files::Dir;
use super::format::{
    ABOUT, ALIGN, BODY_MOST, HEAD, HEADER, Header, MAGIC, Op, RECORDS, Records, TOO_LARGE,
};
use super::recover::{Replay, recover};
use crate::keys::LogId;
use crate::local_dir;
use crate::seal::{DataKey, Seal, crc_of};

const LOG: LogId = LogId(Uuid::from_u128(5));
const JOURNAL: Uuid = Uuid::from_u128(6);
/// Bytes that a fuzzer changes in one place: a CRC-32C misses nothing so short.
const BURST: usize = 4;

fn chosen(which: u8) -> Seal {
    let pool = Uuid::from_u128(1);
    match which % 2 {
        0 => Seal::plain(pool),
        _ => Seal::encrypted(pool, DataKey::new([9; 32])),
    }
}

fn header_of(seal: &Seal, generation: u64, first: u64, synced: u64) -> Header {
    Header {
        pool: seal.pool(),
        log: LOG,
        journal: JOURNAL,
        salt: Uuid::from_u128(u128::from(generation) + 100),
        generation,
        first,
        synced,
    }
}

/// A header with the checksum that belongs to it.
pub(crate) fn header(body: &[u8]) -> bool {
    let mut bytes = [0; HEADER];
    let length = body.len().min(HEADER - 4);
    bytes[..length].copy_from_slice(&body[..length]);
    let crc = crc_of(&[&bytes[..HEADER - 4]]);
    bytes[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
    let Some(header) = Header::decode(&bytes) else {
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let large = [72, 80, 88].iter().any(|at| number(*at) >= TOO_LARGE);
        assert!(large || !bytes.starts_with(MAGIC));
        return false;
    };
    let again = header.encode();
    assert_eq!(again[..96], bytes[..96]);
    assert_eq!(Header::decode(&again), Some(header));
    bytes[length / 2] ^= 1;
    assert_eq!(Header::decode(&bytes), None);
    true
}

/// The head and the body of a record, with the checksums that belong to them.
pub(crate) fn record(body: &[u8]) -> bool {
    let Some(([which, position @ .., cut], body)) = body.split_first_chunk::<10>() else {
        return false;
    };
    let seal = chosen(*which);
    let position = u64::from_le_bytes(*position);
    let records = Records::new(&seal, &header_of(&seal, 1, 0, 0)).expect("a key");
    let mut head = [0; HEAD];
    let length = body.len().min(HEAD);
    head[..length].copy_from_slice(&body[..length]);
    let crc = records.head_crc(position, &head);
    head[..4].copy_from_slice(&crc.to_le_bytes());
    if let Some(head) = records.head(position, &head) {
        assert!((ABOUT..=BODY_MOST).contains(&head.body));
        assert!(head.size().is_multiple_of(ALIGN) && head.size() >= HEAD + head.body);
    }
    let Ok(op) = records.decode(position, body) else {
        return false;
    };
    assert!(seal.key().is_none(), "a forged record was believed");
    let mut bytes = Vec::new();
    let encoded = records.encode(position, 1, &op, &mut bytes);
    encoded.expect("what was read can be written");
    assert_eq!(bytes[HEAD..HEAD + body.len()], *body);
    let head = records.head(position, &bytes).expect("its own");
    assert_eq!((head.body, head.size()), (body.len(), bytes.len()));
    assert!(records.fits(&head, body));
    let cut = usize::from(*cut) % body.len();
    assert!(!records.fits(&head, &body[..cut]));
    assert!(records.head(position.wrapping_add(1), &bytes).is_none());
    true
}

/// Takes bytes as long as there are some, and zeros from then on.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn number<const N: usize>(&mut self) -> u64 {
        (0..N).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    fn op(&mut self) -> Op {
        let (kind, offset) = (self.byte(), self.number::<2>());
        if kind % 4 == 0 {
            let range = ByteRange::new(offset, self.number::<2>());
            return Op::Zero { range };
        }
        let (length, byte) = (usize::from(self.byte()), self.byte());
        let data = Bytes::from(vec![byte; length * usize::from(kind % 4)]);
        Op::Write { offset, data }
    }
}

/// A record as it was written.
struct Written {
    op: Op,
    /// Where it ends, in the journal.
    end: u64,
    /// Where it is in its file.
    file: usize,
    from: usize,
    to: usize,
}

/// A segment's file as it was written.
struct Made {
    bytes: Vec<u8>,
    header: Header,
}

struct Journal {
    files: Vec<Made>,
    records: Vec<Written>,
    /// The highest position that something in it says was synced.
    synced: u64,
}

impl Journal {
    fn make(input: &mut Input<'_>, seal: &Seal) -> Journal {
        let mut journal = Journal {
            files: Vec::new(),
            records: Vec::new(),
            synced: 0,
        };
        let mut position = 0;
        for generation in 0..=u64::from(input.byte() % 4) {
            let header = header_of(seal, generation, position, journal.synced);
            let records = Records::new(seal, &header).expect("a key");
            let mut bytes = header.encode().to_vec();
            bytes.resize(RECORDS as usize, 0);
            for _ in 0..input.byte() % 8 {
                if input.byte() % 2 == 1 {
                    journal.synced = position;
                }
                let (op, from) = (input.op(), bytes.len());
                let encoded = records.encode(position, journal.synced, &op, &mut bytes);
                encoded.expect("it is small");
                let head = records.head(position, &bytes[from..]).expect("its own");
                position = header.first + bytes.len() as u64 - RECORDS;
                journal.records.push(Written {
                    op,
                    end: position,
                    file: journal.files.len(),
                    from,
                    to: from + HEAD + head.body,
                });
            }
            journal.files.push(Made { bytes, header });
        }
        journal
    }

    /// Changes some bytes; tells which headers and records are whole afterwards.
    fn damage(&mut self, input: &mut Input<'_>) -> (Vec<bool>, Vec<bool>) {
        let mut headers = vec![true; self.files.len()];
        let mut records = vec![true; self.records.len()];
        // Bursts that meet in one record could cancel each other out.
        for _ in 0..input.byte() % 4 {
            let file = usize::from(input.byte()) % self.files.len();
            let bytes = &mut self.files[file].bytes;
            let at = input.number::<2>() as usize % bytes.len();
            let hit = at..(at + BURST).min(bytes.len());
            let header_hit = hit.start < HEADER;
            let meets =
                |(_, r): &(usize, &Written)| r.file == file && r.from < hit.end && hit.start < r.to;
            let mut met = self
                .records
                .iter()
                .enumerate()
                .filter(meets)
                .map(|(n, _)| n);
            if (header_hit && !headers[file]) || met.clone().any(|n| !records[n]) {
                continue;
            }
            let mut changed = hit.clone().map(|at| {
                let by = input.byte();
                bytes[at] ^= by;
                (at, by != 0)
            });
            let changed: Vec<usize> = changed
                .by_ref()
                .filter_map(|(at, changed)| changed.then_some(at))
                .collect();
            if changed.iter().any(|at| *at < HEADER) {
                headers[file] = false;
            }
            let really = |n: &usize| {
                let r = &self.records[*n];
                changed.iter().any(|at| (r.from..r.to).contains(at))
            };
            for n in met.by_ref().filter(really) {
                records[n] = false;
            }
        }
        (headers, records)
    }

    fn write(&self, dir: &Dir) {
        for (number, made) in self.files.iter().enumerate() {
            let number = u32::try_from(number).expect("a few");
            let mut options = local_dir::options();
            let file = options.create_new(true).open(dir.file(number));
            let written = file.and_then(|mut file| file.write_all(&made.bytes));
            written.expect("the fuzzer's own file");
        }
    }
}

/// Makes, damages and recovers a journal.
pub(crate) fn recovery(base: &Path, input: &[u8]) {
    let mut input = Input(input);
    let which = input.byte();
    let seal = chosen(which);
    let mut journal = Journal::make(&mut input, &seal);
    let (headers, whole) = journal.damage(&mut input);
    let hostile = which & 2 != 0;
    if hostile {
        // Numbers that nobody wrote, in headers that are right.
        for made in &mut journal.files {
            let number = input.byte();
            let [generation, first, synced] = [1, 2, 4].map(|bit| match number & bit {
                0 => None,
                _ => Some(input.number::<8>() >> 2),
            });
            made.header.generation = generation.unwrap_or(made.header.generation);
            made.header.first = first.unwrap_or(made.header.first);
            made.header.synced = synced.unwrap_or(made.header.synced);
            made.bytes[..HEADER].copy_from_slice(&made.header.encode());
        }
    }
    // What is committed need not be there any more.
    let committed = usize::from(input.byte()) % (journal.records.len() + 1);
    let start = committed
        .checked_sub(1)
        .map_or(0, |n| journal.records[n].end);
    let dir = Dir::lock(base, seal.pool(), LOG).expect("the fuzzer's own directory");
    journal.write(&dir);
    let found = recover(&dir, 1, LOG, &seal, Some((JOURNAL, start)), Uuid::nil());
    match found {
        Ok(found) => {
            let replayed = Replay::new(&found).map(|step| step.expect("it was just there"));
            let replayed: Vec<(u64, Op)> = replayed.collect();
            assert!(replayed.is_sorted_by(|a, b| a.0 < b.0));
            if !hostile {
                let expected = journal.expected(&headers, &whole, committed);
                assert!(replayed == expected, "{} records", replayed.len());
                let end = expected.last().map_or(start, |(end, _)| *end);
                assert_eq!(found.end, if headers.contains(&true) { end } else { 0 });
                for (made, whole) in journal.files.iter().zip(&headers) {
                    assert!(!whole || made.header.synced <= end, "a loss was not seen");
                }
            }
        }
        Err(error) => {
            // Of a later version nothing else is known, not even how it is checked.
            let later = error.kind() == ErrorKind::InvalidConfig && headers.contains(&false);
            assert!(later || error.kind() == ErrorKind::Corrupt, "{error}");
            let end = journal.expected(&headers, &whole, committed);
            let end = end.last().map_or(start, |(end, _)| *end);
            let lost = journal.synced > end || headers.contains(&false);
            assert!(hostile || lost, "nothing was lost: {error}");
        }
    }
    dir.remove_all().expect("the fuzzer's own directory");
}

impl Journal {
    /// What has to be done again: the records after the committed ones, up to the first that is
    /// not whole.
    fn expected(&self, headers: &[bool], whole: &[bool], committed: usize) -> Vec<(u64, Op)> {
        let records = self.records.iter().zip(whole).skip(committed);
        records
            .take_while(|(record, whole)| **whole && headers[record.file])
            .map(|(record, _)| (record.end, record.op.clone()))
            .collect()
    }
}
