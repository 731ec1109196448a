//! Snapshots and clones where files can't share blocks: chains of qcow2 images.
//!
//! A volume begins as a raw file. Its first snapshot freezes that file, which from then on is the
//! snapshot's, and gives the volume a new image that holds what is written from then on and names
//! the frozen file as the one below it. A clone of a snapshot is a new image above the snapshot's
//! file. So each takes as long as making a small file, whatever the volume's size.
//!
//! ```text
//! volumes/web.json    -> data/C.qcow2 -> data/B.qcow2 -> data/A.raw
//! volumes/mon.json    ----------------->  (frozen)        (frozen)
//! volumes/test.json   -> data/D.qcow2 ---^
//! ```
//!
//! - A file below another is never written again, but by [`collect`], which merges what lies above
//!   it into it once nothing else needs it. It has mode 0400.
//! - A volume that is not a snapshot has its top file to itself.
//! - Which file lies below an image says the image's header, and nothing else. It is checked before
//!   anything opens the image ([`header`]).
//! - Every file of an open chain is locked: the top as a volume's file is, the others as ones that
//!   are read (`inuse`). Tables of images are kept in memory, so who reads a chain keeps writers
//!   out, other than those of the same pool object, with whom it has them in common.
//! - Deleting a snapshot leaves its file. What no volume needs is dropped by [`collect`].

mod collect;
pub mod header;
mod image;
mod merge;
mod refcounts;
mod share;
mod storage;
#[cfg(test)]
mod tests;
mod volume;

pub use collect::close_unclosed;
pub use image::{
    ChainError, Image, header_of, hold_below, is_frozen, open_node, open_thawed, parent_of, tables,
};
pub use refcounts::set_dirty;
pub use share::is_snapshot;
pub use storage::read_start;
