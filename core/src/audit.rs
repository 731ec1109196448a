//! Finding and removing what interrupted work left behind.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ByteSize;

/// How an audit goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditOptions {
    /// Remove leftovers and finish half-done work. Without it the audit only looks.
    pub repair: bool,
}

/// What sort of thing an audit found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FindingKind {
    /// Left by interrupted work; belongs to no volume. Repair removes it.
    Leftover,
    /// Half-done work of which one side is already in effect. Repair finishes it.
    Unfinished,
    /// A volume that can't be used: metadata unreadable, data missing or too short. Repair leaves
    /// it alone, for a person to look at.
    Damaged,
    /// Something in the pool's place that volmux did not make. Repair leaves it alone.
    Foreign,
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            FindingKind::Leftover => "leftover",
            FindingKind::Unfinished => "unfinished",
            FindingKind::Damaged => "damaged",
            FindingKind::Foreign => "foreign",
        })
    }
}

/// One thing that an audit found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What sort.
    pub kind: FindingKind,
    /// The volume, file or object.
    pub object: String,
    /// What is the matter, in a sentence.
    pub detail: String,
    /// What it occupies, where known.
    pub bytes: Option<ByteSize>,
    /// Whether this audit put it right.
    pub repaired: bool,
}

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditReport {
    /// Each finding.
    pub findings: Vec<Finding>,
    /// Number of volumes that were looked at.
    pub volumes: u64,
}

/// What a collection of garbage gave back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// What can be used again, as the store counts it.
    pub freed: ByteSize,
    /// Files or objects that were removed.
    pub objects: u64,
}

impl AuditReport {
    /// Whether nothing is left that is wrong; what is merely foreign does not count.
    pub fn is_clean(&self) -> bool {
        self.findings
            .iter()
            .all(|f| f.repaired || f.kind == FindingKind::Foreign)
    }
}
