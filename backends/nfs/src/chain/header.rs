//! Headers of qcow2 images (docs/interop/qcow2.rst of QEMU): which are let in, and those of new
//! images. Pure: bytes in, bytes out.
//!
//! Only what this pool makes, or QEMU makes of that, is let in. An image can name other files, and
//! whoever reads it opens those; so a header is checked before anything opens the image.

use crate::node::Node;
use crate::record::SECTOR;

/// The unit of allocation, in bytes.
pub const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 16;
/// What an L2 table maps, in bytes: it is a cluster of entries of 8 bytes.
pub const PER_L2: u64 = CLUSTER * (CLUSTER / 8);
/// A header lies within so many bytes, backing file name and extensions included.
pub const MOST_BYTES: usize = 4096;
/// The largest volume: QEMU takes L1 tables of at most 32 MiB.
pub const MOST_SIZE: u64 = MOST_L1_ENTRIES * PER_L2;

const MOST_L1_ENTRIES: u64 = (32 << 20) / 8;
/// QEMU takes refcount tables of at most 8 MiB.
const MOST_REFCOUNT_CLUSTERS: u64 = (8 << 20) / CLUSTER;
const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
const LENGTH: usize = 112;
const LEAST_LENGTH: usize = 104;
/// Refcounts of 16 bits.
const REFCOUNT_ORDER: u32 = 4;

const END_OF_EXTENSIONS: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE: u32 = 0x4441_5441;
const ENCRYPTION: u32 = 0x0537_be77;
const FEATURE_NAMES: u32 = 0x6803_f857;

/// Where the bits are of features that who opens an image has to know.
pub const FEATURES_AT: u64 = 72;
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;

/// Why an image is not let in.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("it is no qcow2 image")]
    NoImage,
    #[error("it is a qcow2 image of version {0}, and volmux makes version 3")]
    Version(u32),
    #[error("its header is cut off or longer than one that volmux makes")]
    Length,
    #[error("its header names a data file outside of it")]
    DataFile,
    #[error("it is encrypted")]
    Encrypted,
    #[error("it has snapshots of its own inside")]
    Snapshots,
    #[error("QEMU has marked it as corrupt (qemu-img check tells of what)")]
    Corrupt,
    #[error("it has features that volmux does not know (bits {0:#x})")]
    Features(u64),
    #[error("its {0} is not one that volmux makes")]
    Layout(&'static str),
    #[error("its {0} lies where it can't")]
    Misplaced(&'static str),
    #[error("its header names {0:?} as the file below it, which is no data file of this pool")]
    Parent(String),
}

/// A table in an image: where it begins and how many entries it has, of 8 bytes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// In bytes, a multiple of a cluster.
    pub offset: u64,
    /// How many.
    pub entries: u64,
}

impl Table {
    /// The bytes that it takes.
    pub fn bytes(&self) -> std::ops::Range<u64> {
        self.offset..self.offset + self.entries * 8
    }
}

/// A header that is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The size of the image's content.
    pub size: u64,
    /// The file below it, from which comes what the image does not hold.
    pub parent: Node,
    /// Whether its reference counts may be wrong: it was not closed properly, or is open.
    pub dirty: bool,
    /// Where the L2 tables are.
    pub l1: Table,
    /// Where the blocks of reference counts are.
    pub refcounts: Table,
    fixed: Vec<u8>,
    extensions: Vec<(u32, Vec<u8>)>,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Checks a header: `bytes` are the first of a file of `file_length` bytes, up to
/// [`MOST_BYTES`].
pub fn check(bytes: &[u8], file_length: u64) -> Result<Header, HeaderError> {
    use HeaderError::*;
    let word = |at| u32_at(bytes, at).ok_or(Length);
    let long = |at| u64_at(bytes, at).ok_or(Length);
    if u32_at(bytes, 0) != Some(MAGIC) {
        return Err(NoImage);
    }
    match word(4)? {
        3 => {}
        version => return Err(Version(version)),
    }
    match word(32)? {
        0 => {}
        _ => return Err(Encrypted),
    }
    let features = long(FEATURES_AT as usize)?;
    let dirty = features & DIRTY != 0;
    let features = features & !DIRTY;
    for (bit, error) in [(EXTERNAL_DATA, DataFile), (CORRUPT, Corrupt)] {
        if features & bit != 0 {
            return Err(error);
        }
    }
    if features != 0 {
        return Err(Features(features));
    }
    if word(60)? != 0 {
        return Err(Snapshots);
    }
    if word(20)? != CLUSTER_BITS {
        return Err(Layout("cluster size"));
    }
    if word(96)? != REFCOUNT_ORDER {
        return Err(Layout("width of reference counts"));
    }
    let length = word(100)? as usize;
    if !(LEAST_LENGTH..=MOST_BYTES).contains(&length) || !length.is_multiple_of(8) {
        return Err(Length);
    }
    let fixed = bytes.get(..length).ok_or(Length)?.to_vec();
    let extensions = extensions(bytes, length)?;
    for (kind, _) in &extensions {
        match *kind {
            DATA_FILE => return Err(DataFile),
            ENCRYPTION => return Err(Encrypted),
            _ => {}
        }
    }
    let size = long(24)?;
    if size == 0 || size > MOST_SIZE || !size.is_multiple_of(SECTOR) {
        return Err(Layout("size"));
    }
    let l1 = Table {
        offset: long(40)?,
        entries: word(36)?.into(),
    };
    if l1.entries < size.div_ceil(PER_L2) || l1.entries > MOST_L1_ENTRIES {
        return Err(Misplaced("L1 table"));
    }
    let clusters = u64::from(word(56)?);
    if clusters == 0 || clusters > MOST_REFCOUNT_CLUSTERS {
        return Err(Misplaced("table of reference counts"));
    }
    let refcounts = Table {
        offset: long(48)?,
        entries: clusters * (CLUSTER / 8),
    };
    for (table, name) in [(&l1, "L1 table"), (&refcounts, "table of reference counts")] {
        let end = table.offset.checked_add(table.entries * 8);
        let within = end.is_some_and(|end| end <= file_length.next_multiple_of(CLUSTER));
        if !table.offset.is_multiple_of(CLUSTER) || table.offset < CLUSTER || !within {
            return Err(Misplaced(name));
        }
    }
    let (a, b) = (l1.bytes(), refcounts.bytes());
    if a.start < b.end && b.start < a.end {
        return Err(Misplaced("L1 table"));
    }
    let parent = parent(bytes, &extensions)?;
    Ok(Header {
        size,
        parent,
        dirty,
        l1,
        refcounts,
        fixed,
        extensions,
    })
}

fn extensions(bytes: &[u8], from: usize) -> Result<Vec<(u32, Vec<u8>)>, HeaderError> {
    let mut found = Vec::new();
    let mut at = from;
    loop {
        let kind = u32_at(bytes, at).ok_or(HeaderError::Length)?;
        let length = u32_at(bytes, at + 4).ok_or(HeaderError::Length)? as usize;
        if kind == END_OF_EXTENSIONS {
            return Ok(found);
        }
        let data = bytes.get(at + 8..).and_then(|rest| rest.get(..length));
        found.push((kind, data.ok_or(HeaderError::Length)?.to_vec()));
        at += 8 + length.next_multiple_of(8);
    }
}

fn parent(bytes: &[u8], extensions: &[(u32, Vec<u8>)]) -> Result<Node, HeaderError> {
    let offset = u64_at(bytes, 8).ok_or(HeaderError::Length)?;
    let length = u32_at(bytes, 16).ok_or(HeaderError::Length)? as usize;
    let offset = usize::try_from(offset).map_err(|_| HeaderError::Length)?;
    let name = bytes.get(offset..).and_then(|rest| rest.get(..length));
    let name = String::from_utf8_lossy(name.ok_or(HeaderError::Length)?).into_owned();
    let Ok(node) = name.parse::<Node>() else {
        return Err(HeaderError::Parent(name));
    };
    let mut formats = extensions
        .iter()
        .filter(|(kind, _)| *kind == BACKING_FORMAT);
    match (formats.next(), formats.next()) {
        (Some((_, format)), None) if format == node.format.name().as_bytes() => Ok(node),
        _ => Err(HeaderError::Layout("format of the file below it")),
    }
}

impl Header {
    /// The same with another file below it, as bytes to write over the beginning of the image. `None`
    /// if that takes more than [`MOST_BYTES`].
    pub fn with_parent(&self, parent: Node) -> Option<Vec<u8>> {
        let mut extensions = self.extensions.clone();
        // Names of features are for messages, and take the room of a whole sector.
        extensions.retain(|(kind, _)| ![BACKING_FORMAT, FEATURE_NAMES].contains(kind));
        render(self.fixed.clone(), &extensions, parent)
    }
}

/// A header's bytes: within one sector, which is written whole or not at all, unless somebody added
/// extensions of their own.
fn render(mut bytes: Vec<u8>, extensions: &[(u32, Vec<u8>)], parent: Node) -> Option<Vec<u8>> {
    let format = parent.format.name().as_bytes().to_vec();
    let mut add = |kind: u32, data: &[u8]| {
        bytes.extend(kind.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    };
    add(BACKING_FORMAT, &format);
    for (kind, data) in extensions {
        add(*kind, data);
    }
    add(END_OF_EXTENSIONS, &[]);
    let name = parent.to_string();
    let offset = bytes.len() as u64;
    bytes[8..16].copy_from_slice(&offset.to_be_bytes());
    bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
    bytes.extend(name.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    (bytes.len() <= MOST_BYTES).then_some(bytes)
}

/// A new image that holds nothing yet: its length, and what to write where into an empty file.
#[derive(Debug)]
pub struct Empty {
    /// Of the file, in bytes.
    pub length: u64,
    /// Offset and bytes; all else is zeros.
    pub pieces: [(u64, Vec<u8>); 3],
}

/// A new image of `size` bytes, all of which come from `parent`. `None` if it is too large for one.
pub fn empty(size: u64, parent: Node) -> Option<Empty> {
    if size == 0 || size > MOST_SIZE {
        return None;
    }
    let (refcounts, block, l1) = (CLUSTER, 2 * CLUSTER, 3 * CLUSTER);
    let entries = size.div_ceil(PER_L2);
    let clusters = 3 + (entries * 8).div_ceil(CLUSTER);
    let mut fixed = vec![0; LENGTH];
    let mut put = |at: usize, bytes: &[u8]| fixed[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC.to_be_bytes());
    put(4, &3u32.to_be_bytes());
    put(20, &CLUSTER_BITS.to_be_bytes());
    put(24, &size.to_be_bytes());
    put(36, &(entries as u32).to_be_bytes());
    put(40, &l1.to_be_bytes());
    put(48, &refcounts.to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(96, &REFCOUNT_ORDER.to_be_bytes());
    put(100, &(LENGTH as u32).to_be_bytes());
    let counts = [0, 1].repeat(clusters as usize);
    Some(Empty {
        length: clusters * CLUSTER,
        pieces: [
            (refcounts, block.to_be_bytes().to_vec()),
            (block, counts),
            (0, render(fixed, &[], parent)?),
        ],
    })
}

/// Whether a raw file begins as a qcow2 image does.
pub fn looks_like_an_image(bytes: &[u8]) -> bool {
    u32_at(bytes, 0) == Some(MAGIC)
}

/// For the fuzzer: whatever is let in must be as this pool makes it, and stay so below another
/// parent.
#[cfg(any(fuzzing, test))]
pub fn fuzz(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(MOST_BYTES)];
    let Ok(header) = check(bytes, 1 << 40) else {
        return;
    };
    assert!(header.l1.bytes().end <= 1 << 40 && header.refcounts.bytes().end <= 1 << 40);
    assert!(header.l1.entries * PER_L2 >= header.size);
    let other = Node::raw(volmux_core::VolumeId::from_u128(7));
    if let Some(bytes) = header.with_parent(other) {
        let again = check(&bytes, 1 << 40).expect("still let in");
        assert_eq!(again.parent, other);
        assert_eq!((again.size, again.l1), (header.size, header.l1));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use volmux_core::VolumeId;

    use super::*;

    const PARENT: Node = Node::raw(VolumeId::from_u128(1));

    fn image(size: u64) -> (Vec<u8>, u64) {
        let made = empty(size, PARENT).expect("not too large");
        let mut bytes = vec![0; made.length as usize];
        for (at, piece) in made.pieces {
            bytes[at as usize..at as usize + piece.len()].copy_from_slice(&piece);
        }
        bytes.truncate(MOST_BYTES);
        (bytes, made.length)
    }

    fn checked(change: impl FnOnce(&mut Vec<u8>)) -> Result<Header, HeaderError> {
        let (mut bytes, length) = image(1 << 30);
        change(&mut bytes);
        check(&bytes, length)
    }

    fn put(at: usize, value: &[u8]) -> impl FnOnce(&mut Vec<u8>) + '_ {
        move |bytes| bytes[at..at + value.len()].copy_from_slice(value)
    }

    #[test]
    fn a_new_image_is_let_in() {
        for size in [512, PER_L2, PER_L2 + 512, 20 << 40, MOST_SIZE] {
            let (bytes, length) = image(size);
            let header = check(&bytes, length).expect("let in");
            assert_eq!((header.size, header.parent), (size, PARENT));
            assert_eq!(header.l1.entries, size.div_ceil(PER_L2));
        }
        assert!(empty(0, PARENT).is_none() && empty(MOST_SIZE + 512, PARENT).is_none());
    }

    #[test]
    fn a_header_fits_into_a_sector() {
        let header = checked(|_| {}).expect("let in");
        let other = Node::qcow2(VolumeId::from_u128(2));
        let bytes = header.with_parent(other).expect("it fits");
        assert_eq!(bytes.len(), 512);
        assert_eq!(check(&bytes, 1 << 30).expect("let in").parent, other);
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        use HeaderError::*;
        let named = |name: &str| {
            checked(|bytes| {
                let at = u64_at(bytes, 8).expect("it is there") as usize;
                bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
                bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
            })
        };
        for name in [
            "/etc/shadow",
            "../data/00000000-0000-0000-0000-000000000001.raw",
            "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}",
            "nbd://127.0.0.1/x",
            "",
        ] {
            assert_eq!(named(name), Err(Parent(name.into())));
        }
        // The name says qcow2 and the extension raw: a guest may have written what it likes there.
        assert_eq!(
            named("00000000-0000-0000-0000-000000000001.qcow2"),
            Err(Layout("format of the file below it"))
        );
        assert_eq!(checked(put(0, b"RAW!")), Err(NoImage));
        assert_eq!(checked(put(7, &[2])), Err(Version(2)));
        assert_eq!(checked(put(35, &[2])), Err(Encrypted));
        assert_eq!(checked(put(79, &[4])), Err(DataFile));
        assert_eq!(checked(put(79, &[2])), Err(Corrupt));
        assert!(checked(put(79, &[1])).expect("let in").dirty);
        assert_eq!(checked(put(79, &[16])), Err(Features(16)));
        assert_eq!(checked(put(63, &[1])), Err(Snapshots));
        assert_eq!(checked(put(23, &[9])), Err(Layout("cluster size")));
        assert_eq!(checked(put(112, b"DATA")), Err(DataFile));
        assert_eq!(
            checked(put(112, &0x0537_be77u32.to_be_bytes())),
            Err(Encrypted)
        );
    }

    #[test]
    fn absurd_tables_are_refused() {
        use HeaderError::*;
        let (l1, counts) = (
            Misplaced("L1 table"),
            Misplaced("table of reference counts"),
        );
        // Too few entries, too many, not aligned, in the header, past the end, on each other.
        assert_eq!(checked(put(36, &1u32.to_be_bytes())).as_ref(), Err(&l1));
        assert_eq!(checked(put(36, &u32::MAX.to_be_bytes())).as_ref(), Err(&l1));
        assert_eq!(checked(put(40, &100u64.to_be_bytes())).as_ref(), Err(&l1));
        assert_eq!(checked(put(40, &0u64.to_be_bytes())).as_ref(), Err(&l1));
        let past = (u64::MAX - CLUSTER + 1).to_be_bytes();
        assert_eq!(checked(put(40, &past)).as_ref(), Err(&l1));
        assert_eq!(checked(put(40, &CLUSTER.to_be_bytes())).as_ref(), Err(&l1));
        assert_eq!(checked(put(56, &0u32.to_be_bytes())).as_ref(), Err(&counts));
        assert_eq!(
            checked(put(56, &999u32.to_be_bytes())).as_ref(),
            Err(&counts)
        );
        assert_eq!(checked(put(48, &past)).as_ref(), Err(&counts));
        assert_eq!(checked(put(24, &513u64.to_be_bytes())), Err(Layout("size")));
        assert_eq!(
            checked(put(24, &u64::MAX.to_be_bytes())),
            Err(Layout("size"))
        );
        assert_eq!(checked(put(100, &u32::MAX.to_be_bytes())), Err(Length));
        assert_eq!(checked(|bytes| bytes.truncate(100)), Err(Length));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            changes in proptest::collection::vec((0..600usize, any::<u8>()), 0..20),
            length in 0..MOST_BYTES,
        ) {
            let (mut bytes, _) = image(1 << 40);
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            fuzz(&bytes);
            fuzz(&bytes[..length]);
        }
    }
}
