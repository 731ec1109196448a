//! What a fuzzer may throw bytes at: everything that lvm2, the kernel, the thin tools and the tags
//! of a logical volume say. Not part of the library: there is no such module unless it is built for
//! fuzzing.

use volmux_core::ByteRange;

use crate::config::LvmConfig;
use crate::dm::PoolStatus;
use crate::tags::Record;
use crate::thin_xml::{Joined, List, Subject, occupied};
use crate::view::View;
use crate::{report, stamp};

/// Gives bytes to the reader that the first of them selects.
///
/// # Panics
/// If a reader is at fault: what it accepts does not read back, or is out of order.
pub fn read(bytes: &[u8]) {
    let Some((which, body)) = bytes.split_first() else {
        return;
    };
    let text = || String::from_utf8_lossy(body).into_owned();
    match which % 6 {
        0 => report(body),
        1 => tags(&text()),
        2 => stamp::fuzz(body),
        3 => drop(PoolStatus::parse(&text())),
        4 => extents(&text(), Subject::Device(1)),
        _ => extents(&text(), Subject::Diff(2, 1)),
    }
}

fn report(json: &[u8]) {
    let _ = report::vgs(json);
    if let Ok(Some(report)) = report::lvs(json) {
        for config in [LvmConfig::thin("vg", "pool"), LvmConfig::thick("vg")] {
            if let Ok(view) = View::new("fuzz", &config, report.clone()) {
                let volumes = view.volumes.values().map(|entry| entry.volume());
                assert_eq!(volumes.count(), view.volumes.len());
            }
        }
    }
}

fn tags(text: &str) {
    if let Ok(Some(record)) = Record::read(text.split(',')) {
        let tags = record.tags();
        let again = Record::read(tags.iter().map(String::as_str));
        assert_eq!(again, Ok(Some(record)), "what is written reads back");
    }
}

fn extents(text: &str, subject: Subject) {
    const RANGE: ByteRange = ByteRange::new(100_000, 10_000_000);
    let mut list = List::new(subject);
    let mut joined = Joined::new(RANGE);
    let mut end = RANGE.offset;
    let mut check = |extent: ByteRange| {
        assert!(!extent.is_empty() && extent.offset >= end && extent.end() <= RANGE.end());
        end = extent.end();
    };
    for line in text.lines() {
        let _ = occupied(line);
        match list.line(line) {
            Ok(Some(extent)) => {
                joined.push(extent).into_iter().for_each(&mut check);
            }
            Ok(None) => {}
            Err(_) => return,
        }
    }
    joined.finish().into_iter().for_each(check);
    let _ = list.finish();
}
