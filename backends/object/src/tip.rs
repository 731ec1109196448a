//! What a volume holds, as of one commit.

use serde::{Deserialize, Serialize};

use crate::keys::ObjectKey;

/// Bytes in a block, the unit of the map.
pub const BLOCK: u64 = 4096;

/// Where a page of the map lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PagePtr {
    /// The object.
    pub object: ObjectKey,
    /// Where in the object the page's envelope starts, in bytes.
    pub offset: u32,
    /// Length of the envelope, in bytes.
    pub length: u32,
}

/// The tree of a volume's map, as of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// The topmost page; none where nothing is mapped.
    pub page: Option<PagePtr>,
    /// Levels above the leaves: the page is a leaf where it is 0.
    pub level: u8,
    /// Number of blocks that are mapped.
    pub mapped: u64,
}

impl Root {
    /// Of a volume in which nothing is mapped.
    pub const EMPTY: Root = Root {
        page: None,
        level: 0,
        mapped: 0,
    };
}

/// A data object that came after the map's checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailObject {
    /// The object.
    pub key: ObjectKey,
    /// Its length in bytes.
    pub bytes: u32,
}

/// What a volume holds, as of one commit. All that it names is immutable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tip {
    /// The map's checkpoint.
    pub root: Root,
    /// What was put since then, in order: later objects win.
    pub tail: Vec<TailObject>,
    /// Blocks from this number on are holes, whatever the map says of them; set by shrinking.
    pub limit: Option<u64>,
}

impl Tip {
    /// Of a volume in which nothing was ever written.
    pub const EMPTY: Tip = Tip {
        root: Root::EMPTY,
        tail: Vec::new(),
        limit: None,
    };
}
