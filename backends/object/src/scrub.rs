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
                .scrub_volume(op, &entry, control, &mut verified)
                .await?;
            if damage.is_empty() {
                continue;
            }
            // What was deleted meanwhile may be collected meanwhile.
            self.catalog.refresh(op).await?;
            if self.catalog.read(|state| state.by_id(entry.id).is_none()) {
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

    /// Verifies one volume; what is damaged is returned, any other failure is one.
    async fn scrub_volume(
        &self,
        op: &'static str,
        entry: &Entry,
        control: &Control,
        verified: &mut Verified,
    ) -> Result<Vec<Error>> {
        let mut damage = Vec::new();
        let mut note = |result: Result<()>| match result {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                damage.push(error);
                Ok(())
            }
            other => other,
        };
        let (_, tip) = match self.committed_tip(op, entry).await {
            Ok(found) => found,
            Err(error) => {
                note(Err(error))?;
                return Ok(damage);
            }
        };
        let engine = match Engine::reader(op, self.shared.clone(), &tip, None).await {
            Ok(engine) => engine,
            Err(error) => {
                note(Err(error))?;
                return Ok(damage);
            }
        };
        let mut extents = engine.view().allocated(ByteRange::new(0, entry.size));
        loop {
            control.check(op)?;
            let mut rest = match extents.try_next().await {
                Ok(Some(extent)) => extent,
                Ok(None) => break,
                Err(error) => {
                    note(Err(error))?;
                    break;
                }
            };
            while !rest.is_empty() {
                control.check(op)?;
                let part = ByteRange::new(rest.offset, rest.length.min(STEP));
                for result in engine.verify(op, part, verified).await? {
                    note(result)?;
                }
                rest = ByteRange::from_to(part.end(), rest.end());
            }
        }
        Ok(damage)
    }
}
