//! What a pool can do.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a pool does something.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Support {
    /// Not at all: the call returns `Unsupported` and changes nothing.
    #[default]
    None,
    /// With the same result, by moving or comparing data: cost grows with it.
    Emulated,
    /// By the store itself.
    Native,
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Support::None => "none",
            Support::Emulated => "emulated",
            Support::Native => "native",
        })
    }
}

/// What a pool can do. Everything else in the [`Pool`](crate::Pool) trait works on every pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Read-only snapshots.
    pub snapshot: Support,
    /// Linked, writable clones.
    pub clone: Support,
    /// Putting a volume back to one of its snapshots.
    pub revert: Support,
    /// Space taken on write.
    pub thin: Support,
    /// Space reserved at creation.
    pub thick: Support,
    /// Making a volume smaller.
    pub shrink: Support,
    /// Giving back the space of discarded ranges.
    pub discard: Support,
    /// Extents that changed since a snapshot (the stream's grade says how exactly).
    pub changed_extents: Support,
    /// Handing a volume to a host by itself, without a gateway.
    pub attach: Support,
    /// Taking over something that already exists.
    pub adopt: Support,
    /// Several writers of one volume at once, when asked for.
    pub shared_writers: Support,
    /// Taking a volume away from a live writer: `OpenOptions::take_over`.
    pub fencing: Support,
}

impl Capabilities {
    /// Name and support of each capability, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Support)> {
        [
            ("snapshot", self.snapshot),
            ("clone", self.clone),
            ("revert", self.revert),
            ("thin", self.thin),
            ("thick", self.thick),
            ("shrink", self.shrink),
            ("discard", self.discard),
            ("changed_extents", self.changed_extents),
            ("attach", self.attach),
            ("adopt", self.adopt),
            ("shared_writers", self.shared_writers),
            ("fencing", self.fencing),
        ]
        .into_iter()
    }
}
