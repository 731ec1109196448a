//! Reading and verifying everything that volumes refer to.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::TryStreamExt;
use volmux_core::{
    AuditReport, ByteRange, Control, Error, ErrorKind, Finding, FindingKind, Result,
};

use crate::catalog::Entry;
use crate::engine::Engine;
use crate::pool::Ready;

/// Bytes that are verified at once.
const STEP: u64 = 4 << 20;

/// Which blocks were verified: what volumes share is read once.
#[derive(Debug, Default)]
pub(crate) struct Verified {
    blocks: HashMap<u32, Vec<u64>>,
    /// Objects whose frame tables were.
    tables: HashSet<u32>,
}

impl Verified {
    /// Notes a block; `false` if it was noted before.
    pub(crate) fn insert(&mut self, object: u32, index: u32) -> bool {
        let bits = self.blocks.entry(object).or_default();
        let (word, bit) = (index as usize / 64, 1 << (index % 64));
        if bits.len() <= word {
            bits.resize(word + 1, 0);
        }
        let new = bits[word] & bit == 0;
        bits[word] |= bit;
        new
    }

    /// Notes the frame table of an object; `false` if it was noted before.
    pub(crate) fn insert_table(&mut self, object: u32) -> bool {
        self.tables.insert(object)
    }
}

impl Ready {
    /// Reads and verifies everything.
    pub(crate) async fn scrub(
        self: &Arc<Self>,
        op: &'static str,
        control: &Control,
    ) -> Result<AuditReport> {
        self.catalog.refresh(op).await?;
        let entries: Vec<Arc<Entry>> = self.catalog.read(|state| state.iter().cloned().collect());
        let mut report = AuditReport {
            findings: Vec::new(),
            volumes: entries.len() as u64,
        };
        let mut verified = Verified::default();
        for entry in entries {
            let damage = self
                .scrub_volume(op, entry.clone(), control, &mut verified)
                .await?;
            if damage.is_empty() {
                continue;
            }
            report
                .findings
                .extend(damage.into_iter().map(|error| Finding {
                    kind: FindingKind::Damaged,
                    object: entry.name.to_string(),
                    detail: error.to_string(),
                    bytes: None,
                    repaired: false,
                }));
        }
        Ok(report)
    }

    /// Verifies one volume; what is damaged is returned, any other failure is one. What seems to
    /// be damaged is looked at again: it may just have been replaced and collected.
    async fn scrub_volume(
        &self,
        op: &'static str,
        entry: Arc<Entry>,
        control: &Control,
        verified: &mut Verified,
    ) -> Result<Vec<Error>> {
        let id = entry.id;
        let mut place = Place {
            entry,
            at: 0,
            again: false,
            damage: Vec::new(),
        };
        loop {
            match self.scrub_on(op, &mut place, control, verified).await {
                Ok(true) => return Ok(place.damage),
                Ok(false) => {}
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    if place.again {
                        place.damage.push(error);
                    }
                }
                Err(error) => return Err(error),
            }
            if std::mem::replace(&mut place.again, true) {
                return Ok(place.damage);
            }
            self.catalog.refresh(op).await?;
            match self.catalog.read(|state| state.by_id(id).cloned()) {
                Some(entry) => place.entry = entry,
                // What it held may be collected.
                None => return Ok(Vec::new()),
            }
        }
    }

    /// Goes on from a place to the volume's end; `false` where something seems to be damaged that
    /// was looked at only once.
    async fn scrub_on(
        &self,
        op: &'static str,
        place: &mut Place,
        control: &Control,
        verified: &mut Verified,
    ) -> Result<bool> {
        let (_, tip) = self.committed_tip(op, &place.entry).await?;
        let engine = Engine::reader(op, self.shared.clone(), &tip, None).await?;
        let rest = ByteRange::from_to(place.at, place.entry.size.max(place.at));
        let mut extents = engine.view().allocated(rest);
        loop {
            control.check(op)?;
            let Some(mut rest) = extents.try_next().await? else {
                return Ok(true);
            };
            while !rest.is_empty() {
                control.check(op)?;
                let part = ByteRange::new(rest.offset, rest.length.min(STEP));
                let mut anew = Verified::default();
                let noted = if place.again {
                    &mut anew
                } else {
                    &mut *verified
                };
                let mut damage = Vec::new();
                for result in engine.verify(op, part, noted).await? {
                    match result {
                        Err(error) if error.kind() == ErrorKind::Corrupt => damage.push(error),
                        other => other?,
                    }
                }
                place.at = part.offset;
                if !damage.is_empty() && !place.again {
                    return Ok(false);
                }
                place.damage.extend(damage);
                (place.at, place.again) = (part.end(), false);
                rest = ByteRange::from_to(part.end(), rest.end());
            }
        }
    }
}

/// How far a volume is verified.
struct Place {
    entry: Arc<Entry>,
    at: u64,
    /// What comes next was looked at before.
    again: bool,
    damage: Vec<Error>,
}
