//! Finding what is damaged, and collecting what nobody needs.

use std::sync::Arc;

use futures::stream::{self, StreamExt};
use volmux_core::{
    AuditOptions, AuditReport, ByteSize, Collected, ErrorKind, Finding, FindingKind, Result,
};

use crate::catalog::Entry;
use crate::engine::Engine;
use crate::gc::Collector;
use crate::open::MOVED;
use crate::pool::Ready;

/// Volumes that are looked at together.
const AT_ONCE: usize = 8;

impl Ready {
    /// Finds volumes that can't be opened and objects of others. What interrupted work left
    /// behind is garbage like any other, and collected with it.
    pub(crate) async fn audit(
        self: &Arc<Self>,
        op: &'static str,
        options: AuditOptions,
    ) -> Result<AuditReport> {
        self.catalog.refresh(op).await?;
        let entries: Vec<Arc<Entry>> = self.catalog.read(|state| state.iter().cloned().collect());
        let volumes = entries.len() as u64;
        let mut looks = stream::iter(entries)
            .map(|entry| self.look_at(op, entry))
            .buffered(AT_ONCE);
        let mut findings = Vec::new();
        while let Some(finding) = looks.next().await {
            findings.extend(finding?);
        }
        drop(looks);
        let damaged = !findings.is_empty();
        let may_repair = options.repair && !self.config.read_only;
        let leftovers = self.space.leftovers(op, may_repair).await?;
        findings.extend(leftovers.into_iter().map(|(object, bytes)| Finding {
            kind: FindingKind::Leftover,
            object,
            detail: "a file that was being written when a process died".into(),
            bytes: Some(ByteSize::new(bytes)),
            repaired: may_repair,
        }));
        let collector = Collector::new(op, &self.shared, &self.catalog);
        // A damaged map hides what it needs: nothing is collected then.
        if !damaged {
            let survey = match may_repair {
                true => collector.collect().await?,
                false => collector.look().await?,
            };
            findings.extend(survey.foreign.into_iter().map(|object| Finding {
                kind: FindingKind::Foreign,
                object: object.name,
                detail: "volmux did not put this object below the pool's prefix".into(),
                bytes: Some(ByteSize::new(object.bytes)),
                repaired: false,
            }));
        }
        Ok(AuditReport { findings, volumes })
    }

    /// Whether a volume's metadata can be read.
    async fn look_at(&self, op: &'static str, entry: Arc<Entry>) -> Result<Option<Finding>> {
        let id = entry.id;
        let (mut entry, mut damaged) = (entry, None);
        for tries in 0.. {
            let tip = self.committed_tip(op, &entry).await.map(|(_, tip)| tip);
            let looked = match &tip {
                Ok(tip) => Engine::reader(op, self.shared.clone(), tip, None)
                    .await
                    .err(),
                Err(_) => None,
            };
            let (tip, error) = match (tip, looked) {
                (Ok(_), None) => return Ok(None),
                (Ok(tip), Some(error)) => (Some(tip), error),
                (Err(error), _) => (None, error),
            };
            if error.kind() != ErrorKind::Corrupt {
                return Err(error);
            }
            // It may have been deleted, or gone on and what it held before been collected.
            self.catalog.refresh(op).await?;
            let there = self.catalog.read(|state| state.by_id(id).cloned());
            let Some(there) = there else { break };
            if damaged == Some(tip.clone()) || tries == MOVED {
                return Ok(Some(Finding {
                    kind: FindingKind::Damaged,
                    object: there.name.to_string(),
                    detail: error.to_string(),
                    bytes: None,
                    repaired: false,
                }));
            }
            (entry, damaged) = (there, Some(tip));
        }
        Ok(None)
    }

    /// Collects what nobody needs.
    pub(crate) async fn collect(&self, op: &'static str) -> Result<Collected> {
        // What was overwritten is garbage once no tail names it.
        for (_, of) in self.uses.all() {
            if let Some(engine) = of.engine().filter(|e| e.is_writer() && !e.is_ending()) {
                let committed = async {
                    engine.checkpoint().await?;
                    engine.commit(op).await
                };
                match committed.await {
                    // Somebody else writes that volume by now, and makes its checkpoints. What is
                    // known of it here may be collected.
                    Err(error) if error.kind() == ErrorKind::Fenced => {}
                    Err(error) if error.kind() == ErrorKind::Corrupt => {
                        if engine.is_current(op).await? {
                            return Err(error);
                        }
                    }
                    other => other?,
                }
            }
        }
        let freed = self.collect_all(op).await?;
        Ok(Collected {
            freed: ByteSize::new(freed.bytes),
            objects: freed.objects,
        })
    }
}
