//! The one thing of a VHDX image that matters before qemu-img reads it: whether it has a parent, as
//! Hyper-V's differencing disks and checkpoints (.avhdx) have. QEMU refuses those too, but does not say
//! why.

/// The region table and its copy (MS-VHDX 2.2).
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
/// Of either table.
const MOST_ENTRIES: u32 = 2047;
const ENTRY: u64 = 32;
/// 8B7CA206-4790-4B9A-B8FE-575F050F886E
const METADATA_REGION: [u8; 16] = [
    0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e,
];
/// CAA16737-FA36-4D43-B3B6-33F0AA44E76B
const FILE_PARAMETERS: [u8; 16] = [
    0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b,
];
const HAS_PARENT: u32 = 1 << 1;

/// Whether the image's metadata says so. `read` gives what is at an offset, and zeros past the end.
/// What can't be understood has none: qemu-img will refuse it.
pub fn has_parent<E>(read: impl Fn(u64) -> Result<[u8; 512], E>) -> Result<bool, E> {
    for table in REGION_TABLES {
        let head = read(table)?;
        if !head.starts_with(b"regi") {
            continue;
        }
        let entries = le32(&head, 8).min(MOST_ENTRIES);
        let Some(entry) = find(&read, table.wrapping_add(16), entries, &METADATA_REGION)? else {
            continue;
        };
        let region = u64::from(le32(&entry, 16)) | u64::from(le32(&entry, 20)) << 32;
        let head = read(region)?;
        if !head.starts_with(b"metadata") {
            continue;
        }
        let entries = u32::from(u16::from_le_bytes([head[10], head[11]])).min(MOST_ENTRIES);
        let first = region.wrapping_add(32);
        if let Some(entry) = find(&read, first, entries, &FILE_PARAMETERS)? {
            let item = read(region.wrapping_add(le32(&entry, 16).into()))?;
            return Ok(le32(&item, 4) & HAS_PARENT != 0);
        }
    }
    Ok(false)
}

/// The entry that begins with `id`.
fn find<E>(
    read: impl Fn(u64) -> Result<[u8; 512], E>,
    first: u64,
    count: u32,
    id: &[u8; 16],
) -> Result<Option<[u8; 512]>, E> {
    for number in 0..u64::from(count) {
        let entry = read(first.wrapping_add(ENTRY * number))?;
        if entry.starts_with(id) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

fn le32(block: &[u8; 512], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn reader(image: &[u8]) -> impl Fn(u64) -> Result<[u8; 512], Infallible> {
        move |offset| {
            let mut block = [0; 512];
            let at = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(image.len());
            let there = &image[at..image.len().min(at.saturating_add(512))];
            block[..there.len()].copy_from_slice(there);
            Ok(block)
        }
    }

    /// As QEMU makes them, but that the region table's first copy may be broken.
    fn image(flags: u32, table: usize) -> Vec<u8> {
        let mut image = vec![0; (1 << 20) + 4096];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(table, b"regi");
        put(table + 8, &2_u32.to_le_bytes());
        put(table + 16 + 32, &METADATA_REGION);
        put(table + 16 + 32 + 16, &(1_u64 << 20).to_le_bytes());
        put(1 << 20, b"metadata");
        put((1 << 20) + 10, &3_u16.to_le_bytes());
        put((1 << 20) + 32 + 64, &FILE_PARAMETERS);
        put((1 << 20) + 32 + 64 + 16, &1024_u32.to_le_bytes());
        put((1 << 20) + 1024 + 4, &flags.to_le_bytes());
        image
    }

    #[test]
    fn a_parent_is_seen_in_either_table() {
        for table in REGION_TABLES {
            for (flags, wanted) in [(0, false), (1, false), (2, true), (3, true)] {
                let image = image(flags, table as usize);
                assert_eq!(has_parent(reader(&image)), Ok(wanted), "{table} {flags}");
            }
        }
        assert_eq!(has_parent(reader(b"vhdxfile")), Ok(false));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(
            noise in proptest::collection::vec((0..(1_usize << 20) + 4096, any::<u8>()), 0..64),
            region in any::<u64>(),
            item in any::<u32>(),
        ) {
            let mut image = image(2, REGION_TABLES[0] as usize);
            for (at, byte) in noise {
                image[at] = byte;
            }
            let _ = has_parent(reader(&image));
            let entry = REGION_TABLES[0] as usize + 16 + 32 + 16;
            image[entry..entry + 8].copy_from_slice(&region.to_le_bytes());
            let _ = has_parent(reader(&image));
            let at = (1 << 20) + 32 + 64 + 16;
            image[at..at + 4].copy_from_slice(&item.to_le_bytes());
            let _ = has_parent(reader(&image));
        }
    }
}
