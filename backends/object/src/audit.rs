//! Finding what interrupted work left behind.

use std::sync::Arc;

use volmux_core::{AuditOptions, AuditReport, Result};

use crate::pool::Ready;

impl Ready {
    /// Finds what belongs to no volume, and what is damaged.
    pub(crate) async fn audit(
        self: &Arc<Self>,
        op: &'static str,
        _options: AuditOptions,
    ) -> Result<AuditReport> {
        self.catalog.refresh(op).await?;
        Ok(AuditReport {
            findings: Vec::new(),
            volumes: self.catalog.read(|state| state.len() as u64),
        })
    }
}
