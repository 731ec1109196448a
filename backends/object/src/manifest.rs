//! Manifests: the commits of a log.
//!
//! A log's manifests are numbered and each is put only if its number is free, so of two writers
//! that go on from the same one, one fails. The first manifest of a writer, its claim, carries the
//! number that its predecessor would have to use next: that is what fences the predecessor.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::codec::Malformed;
use crate::journal;
use crate::keys::LogId;
use crate::owner::Owner;
use crate::tip::Tip;

/// What state the log is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Its owner may write.
    Open,
    /// Its owner has promised to write no more.
    Closed,
    /// The volume is about to be deleted, or to go on in another log. Written before the
    /// catalogue says so; where that did not happen, the log can be claimed again, by the rule in
    /// `claim.rs`.
    Retired,
}

/// One commit of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// The log.
    pub(crate) log: LogId,
    /// Its own number.
    pub(crate) number: u64,
    /// The number of its writer's claim.
    pub(crate) epoch: u64,
    /// Who put it.
    pub(crate) owner: Owner,
    pub(crate) phase: Phase,
    /// What the volume holds.
    pub(crate) tip: Tip,
    /// Objects of this epoch below this number that the tip does not need, nobody needs; from it
    /// on the writer may have some that it has not committed yet.
    pub(crate) in_flight: u64,
    /// On a claim: whether it is all that fences the writer before, and must be kept for ever.
    pub(crate) fences: bool,
    /// How far the writer's journal is contained in the tip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) journal: Option<JournalMark>,
    /// What the writer reads from and nobody else may hold, while it copies; empty for a garbage
    /// collection. A log that no volume has counts only with this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pin: Option<Tip>,
}

/// A position in a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JournalMark {
    /// Which journal.
    pub(crate) id: Uuid,
    /// Everything before this is contained.
    pub(crate) position: u64,
}

impl Manifest {
    /// Whether this is its writer's first.
    pub(crate) fn is_claim(&self) -> bool {
        self.number == self.epoch
    }

    /// As it is stored, before it is sealed.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, Malformed> {
        serde_json::to_vec(self).map_err(|_| Malformed("a manifest has no JSON form"))
    }

    /// Reads what [`encode`](Self::encode) wrote. Log and number are those in the object's name.
    pub(crate) fn decode(log: LogId, number: u64, body: &[u8]) -> Result<Self, Malformed> {
        let manifest: Manifest =
            serde_json::from_slice(body).map_err(|_| Malformed("it is not a manifest"))?;
        if manifest.log != log || manifest.number != number {
            return Err(Malformed("it is another manifest"));
        }
        if manifest.epoch == 0 || manifest.epoch > manifest.number {
            return Err(Malformed("its epoch can't be"));
        }
        if (manifest.journal).is_some_and(|mark| mark.position >= journal::TOO_LARGE) {
            return Err(Malformed("its position in a journal can't be"));
        }
        Ok(manifest)
    }
}
