//! Power cuts on images, by seed: of what was written and not made durable, a disk may keep any part.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::prelude::*;
use volmux_core::{ByteRange, VolumeId};

use super::header::CLUSTER;
use super::image::{Image, Part, begin_writing, header_of, write_empty};
use super::merge::hide_larger_past;
use super::refcounts;
use super::storage::{Event, traced};
use crate::node::Node;
use crate::sys::Locked;

const SIZE: u64 = 12 * CLUSTER + 3 * SECTOR;
const SECTOR: u64 = 512;
const BELOW: Node = Node::raw(VolumeId::from_u128(1));
const TOP: Node = Node::qcow2(VolumeId::from_u128(2));

#[derive(Clone, Debug)]
enum Op {
    Write(u64, u64),
    Zero(u64, u64),
    Flush,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let range = (0..SIZE / SECTOR, 1..300u64).prop_map(|(at, length)| {
        let length = length.min(SIZE / SECTOR - at);
        (at * SECTOR, length * SECTOR)
    });
    prop_oneof![
        6 => range.clone().prop_map(|(at, length)| Op::Write(at, length)),
        2 => range.prop_map(|(at, length)| Op::Zero(at, length)),
        3 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ]
}

fn file_with(bytes: &[u8]) -> Arc<Locked> {
    let file = tempfile::tempfile().expect("a file");
    file.write_all_at(bytes, 0).expect("write");
    Arc::new(file.into())
}

fn all_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().expect("stat").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

/// The volume's content, by sector: a number that tells the write apart, 0 for zeros.
fn sector(number: u64) -> Vec<u8> {
    match number {
        0 => vec![0; SECTOR as usize],
        number => number.to_le_bytes().repeat(SECTOR as usize / 8),
    }
}

fn part(node: Node, file: &Arc<Locked>) -> Part {
    Part {
        node,
        file: file.clone(),
        header: header_of(node, file).expect("let in"),
    }
}

fn open_all(parts: Vec<Part>, writable: bool) -> Image {
    if writable {
        begin_writing(&parts[0]).expect("ready to be written");
    }
    Image::of(parts, writable).expect("open")
}

fn open(below: &Arc<Locked>, top: &Arc<Locked>, writable: bool) -> Image {
    open_all(vec![part(TOP, top), part(BELOW, below)], writable)
}

/// The numbers that the image holds now, by sector.
fn numbers(image: &Image) -> Vec<u64> {
    let mut bytes = vec![0; SIZE as usize];
    image.read(&mut bytes, 0).expect("read");
    let sectors = bytes.chunks(SECTOR as usize);
    sectors
        .map(|found| {
            let number = u64::from_le_bytes(found[..8].try_into().expect("eight bytes"));
            assert_eq!(found, sector(number), "a sector is whole");
            number
        })
        .collect()
}

/// What the disk holds after a power cut: all up to the last sync, and of what came after it some
/// sectors.
fn cut(start: &[u8], events: &[Event], mut keep: impl FnMut() -> bool) -> Vec<u8> {
    let mut disk = start.to_vec();
    let mut put = |offset: usize, bytes: &[u8]| {
        if disk.len() < offset + bytes.len() {
            disk.resize(offset + bytes.len(), 0);
        }
        disk[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    let synced = events
        .iter()
        .rposition(|event| matches!(event, Event::Sync));
    let synced = synced.map_or(0, |at| at + 1);
    for (at, event) in events.iter().enumerate() {
        let Event::Write(offset, bytes) = event else {
            continue;
        };
        for (index, part) in bytes.chunks(SECTOR as usize).enumerate() {
            if at < synced || keep() {
                put(*offset as usize + index * SECTOR as usize, part);
            }
        }
    }
    disk
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn no_power_cut_loses_what_was_flushed(
        ops in proptest::collection::vec(op(), 1..40),
        cuts in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u64>()), 8),
    ) {
        let sectors = (SIZE / SECTOR) as usize;
        let old: Vec<u64> = (0..sectors as u64).map(|at| 1_000_000 + at).collect();
        let content: Vec<u8> = old.iter().flat_map(|number| sector(*number)).collect();
        let below = file_with(&content);
        let top = file_with(&[]);
        write_empty(&top, SIZE, BELOW).expect("an empty image");

        // What a sector may hold after a cut, from after which event on.
        let mut states: Vec<(usize, Vec<Vec<u64>>)> = Vec::new();
        let mut may: Vec<Vec<u64>> = old.iter().map(|number| vec![*number]).collect();
        let mut image = open(&below, &top, true);
        let start = all_of(&top);
        let mut events = Vec::new();
        for (number, op) in ops.iter().enumerate() {
            let number = number as u64 + 1;
            let (first, last, written) = match op {
                Op::Write(at, length) => (at / SECTOR, (at + length) / SECTOR, number),
                Op::Zero(at, length) => (at / SECTOR, (at + length) / SECTOR, 0),
                Op::Flush | Op::Reopen => (0, 0, 0),
            };
            for may in &mut may[first as usize..last as usize] {
                may.push(written);
            }
            // From its beginning on, for it may be cut.
            states.push((events.len(), may.clone()));
            let ((), more) = traced(|| match op {
                Op::Write(at, length) => {
                    let data = sector(number).repeat((length / SECTOR) as usize);
                    image.write(&data, *at).expect("write");
                }
                Op::Zero(at, length) => {
                    image.zero(ByteRange::new(*at, *length), false).expect("zero");
                }
                Op::Flush => image.flush().expect("flush"),
                Op::Reopen => {
                    // The mark itself is not traced: as if it never arrived.
                    image.flush().expect("flush");
                    drop(open(&below, &top, false));
                    image = open(&below, &top, true);
                }
            });
            events.extend(more);
            if matches!(op, Op::Flush | Op::Reopen) {
                for may in &mut may {
                    *may = vec![*may.last().expect("it holds something")];
                }
                states.push((events.len(), may.clone()));
            }
        }
        let now: Vec<u64> = may.iter().map(|may| *may.last().expect("one")).collect();
        prop_assert_eq!(numbers(&image), now);

        for (at, seed) in cuts {
            let at = at.index(events.len() + 1);
            let mut random = seed | 1;
            let disk = cut(&start, &events[..at], || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % 3 != 0
            });
            let known = states.iter().rev().find(|(from, _)| *from <= at);
            let may = known.map_or(&states[0].1, |(_, may)| may);
            let disk = file_with(&disk);
            let header = header_of(TOP, &disk).expect("let in").expect("an image");
            prop_assert!(header.dirty, "it was open");
            // Readers need no repair; and who writes finds no cluster free that is in use.
            for writable in [false, true] {
                let found = numbers(&open(&below, &disk, writable));
                for (found, may) in found.iter().zip(may) {
                    prop_assert!(may.contains(found), "{} is none of {:?}", found, may);
                }
            }
            let before = numbers(&open(&below, &disk, false));
            refcounts::set_dirty(&disk, true).expect("mark");
            let image = open(&below, &disk, true);
            image.write(&sector(77), SIZE - SECTOR).expect("write");
            image.write(&sector(78), 5 * CLUSTER).expect("write");
            image.end_writing().expect("close");
            let mut expected = before;
            expected[sectors - 1] = 77;
            expected[(5 * CLUSTER / SECTOR) as usize] = 78;
            prop_assert_eq!(numbers(&open(&below, &disk, false)), expected);
        }
    }
}

#[test]
fn counts_are_made_anew_by_the_tables() {
    let below = file_with(&vec![1; SIZE as usize]);
    let top = file_with(&[]);
    write_empty(&top, SIZE, BELOW).expect("an empty image");
    let image = open(&below, &top, true);
    image.write(&[7; 100], 3 * CLUSTER).expect("write");
    image.end_writing().expect("close");
    let header = header_of(TOP, &top).expect("let in").expect("an image");
    let good = all_of(&top);
    // Its block of counts is the third cluster.
    top.write_all_at(&[0xff; 64], 2 * CLUSTER).expect("write");
    refcounts::repair(&top, &header).expect("repair");
    assert!(all_of(&top) == good);
    // Two entries that lead to one cluster are damage.
    let mut entry = [0; 8];
    let l1 = header.l1.offset;
    top.read_exact_at(&mut entry, l1).expect("read");
    let l2 = u64::from_be_bytes(entry) & 0x00ff_ffff_ffff_fe00;
    top.read_exact_at(&mut entry, l2 + 3 * 8).expect("read");
    top.write_all_at(&entry, l2 + 4 * 8).expect("write");
    let error = refcounts::repair(&top, &header).expect_err("damage");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
}

#[test]
fn an_end_that_moves_shows_nothing_of_a_larger_past() {
    const LOWER: Node = Node::qcow2(VolumeId::from_u128(3));
    const OWN: u64 = 4 * CLUSTER + SECTOR;
    for end in [CLUSTER, CLUSTER + SECTOR, 3 * CLUSTER - SECTOR] {
        for larger in [end + SECTOR, OWN + SECTOR, SIZE] {
            let below = file_with(&vec![1; (6 * CLUSTER + SECTOR) as usize]);
            let lower = file_with(&[]);
            write_empty(&lower, SIZE, BELOW).expect("an empty image");
            let lower_parts = || vec![part(LOWER, &lower), part(BELOW, &below)];
            let mut image = open_all(lower_parts(), true);
            // In the cluster that it ends in it goes on to hold what it held when it was larger.
            let start = end / CLUSTER * CLUSTER;
            image.write(&[2; CLUSTER as usize], start).expect("write");
            image.shrink(end).expect("shrink");
            image.end_writing().expect("close");
            drop(image);

            let top = file_with(&[]);
            write_empty(&top, larger, LOWER).expect("an empty image");
            let parts = || vec![part(TOP, &top), part(LOWER, &lower), part(BELOW, &below)];
            let image = open_all(parts(), true);
            if larger > OWN {
                image.write(&[3; SECTOR as usize], OWN).expect("write");
            }
            image.end_writing().expect("close");
            let content = || {
                let mut bytes = vec![9; larger as usize];
                let image = open_all(parts(), false);
                image.read(&mut bytes, 0).expect("read");
                bytes
            };
            let before = content();
            let past = &before[end as usize..OWN.min(larger) as usize];
            assert!(past.iter().all(|byte| *byte == 0), "{end} {larger}");
            hide_larger_past(&part(TOP, &top), lower_parts()).expect("hide");
            assert!(content() == before, "{end} {larger}: by itself");
            let image = open_all(lower_parts(), true);
            image.grow(larger).expect("grow");
            image.end_writing().expect("close");
            assert!(content() == before, "{end} {larger}: with the end moved");
        }
    }
}
