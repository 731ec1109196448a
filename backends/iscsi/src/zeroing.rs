//! Making ranges of a logical unit zeros, and giving back their space.

use bytes::Bytes;
use volmux_core::ByteRange;

use crate::scsi::{LogicalUnit, ScsiError, ScsiErrorKind};

/// A piece of zeros that is written out.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// Whether the unit can give space back so that it reads as zeros. `trusted` is what is known from
/// elsewhere of how unmapped blocks read.
pub fn unmaps(unit: &LogicalUnit, trusted: bool) -> bool {
    unit.can_unmap() && (trusted || unit.reads_zeros())
}

/// Makes whole blocks zeros. With `unmap`, which needs [`unmaps`], those that the unit can give back
/// are unmapped; the others are written.
///
/// # Errors
/// Those of the unit.
pub async fn zero(
    unit: &LogicalUnit,
    nexus: u64,
    range: ByteRange,
    unmap: bool,
) -> Result<(), ScsiError> {
    if !unmap {
        return write_zeros(unit, nexus, range).await;
    }
    let (granule, first) = granules(unit);
    let start = match range.offset <= first {
        true => first,
        false => first + (range.offset - first).next_multiple_of(granule),
    };
    let end = match range.end() <= first {
        true => first,
        false => first + (range.end() - first) / granule * granule,
    };
    if start >= end {
        return write_unless_zeros(unit, nexus, range).await;
    }
    for edge in [
        ByteRange::from_to(range.offset, start),
        ByteRange::from_to(end, range.end()),
    ] {
        write_unless_zeros(unit, nexus, edge).await?;
    }
    let block = u64::from(unit.block_size());
    let blocks = [(start / block, (end - start) / block)];
    unit.unmap(Some(nexus), &blocks).await.map(drop)
}

/// In bytes: what the unit can give back at least, and where the first of it begins (SBC-3 section
/// 6.6.4).
fn granules(unit: &LogicalUnit) -> (u64, u64) {
    let block = u64::from(unit.block_size());
    let limits = unit.limits();
    let granule = u64::from(limits.unmap_granularity.max(1)) * block;
    (
        granule,
        u64::from(limits.unmap_alignment.unwrap_or(0)) * block % granule,
    )
}

/// Writes zeros where there are none, granule by granule: in one that holds nothing they would take
/// space.
async fn write_unless_zeros(
    unit: &LogicalUnit,
    nexus: u64,
    range: ByteRange,
) -> Result<(), ScsiError> {
    let block = u64::from(unit.block_size());
    for part in parts(range, granules(unit)) {
        if part.length <= ZEROS.len() as u64 {
            let blocks = (part.length / block) as u32;
            let (data, _) = unit.read(Some(nexus), part.offset / block, blocks).await?;
            if data.iter().all(|&byte| byte == 0) {
                continue;
            }
        }
        write_zeros(unit, nexus, part).await?;
    }
    Ok(())
}

/// `range`, cut where granules begin.
fn parts(range: ByteRange, (granule, first): (u64, u64)) -> impl Iterator<Item = ByteRange> {
    let mut at = range.offset;
    std::iter::from_fn(move || {
        let next = match at < first {
            true => first,
            false => first + ((at - first) / granule + 1) * granule,
        };
        let part = ByteRange::from_to(at, next.min(range.end()));
        at = part.end();
        (!part.is_empty()).then_some(part)
    })
}

async fn write_zeros(unit: &LogicalUnit, nexus: u64, range: ByteRange) -> Result<(), ScsiError> {
    if range.is_empty() {
        return Ok(());
    }
    let block = u64::from(unit.block_size());
    let (lba, blocks) = (range.offset / block, range.length / block);
    match unit.zero(Some(nexus), lba, blocks, false).await {
        Err(error) if matches!(error.kind(), ScsiErrorKind::Unsupported(_)) => {}
        zeroed => return zeroed.map(drop),
    }
    let mut offset = range.offset;
    while offset < range.end() {
        let length = (range.end() - offset).min(ZEROS.len() as u64);
        let data = Bytes::from_static(&ZEROS[..length as usize]);
        unit.write(Some(nexus), offset / block, data).await?;
        offset += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_are_the_whole_and_each_lies_in_one_granule(
            offset in 0u64..1000, length in 0u64..1000, granule in 1u64..100, first in 0u64..100,
        ) {
            let range = ByteRange::new(offset, length);
            let first = first % granule;
            let mut at = offset;
            for part in parts(range, (granule, first)) {
                prop_assert_eq!(part.offset, at);
                prop_assert!(!part.is_empty());
                let of = |byte: u64| (byte + granule - first) / granule;
                prop_assert_eq!(of(part.offset), of(part.end() - 1));
                at = part.end();
            }
            prop_assert_eq!(at, range.end());
        }
    }
}
