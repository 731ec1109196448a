//! Audit: what interrupted work left behind, in LVM's metadata, in the kernel and in the thin pool.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use volmux_core::{
    AuditOptions, AuditReport, ByteSize, Error, ErrorKind, Finding, FindingKind, Result, VolumeId,
    VolumeName,
};

use crate::change::Change;
use crate::dm::{self, PoolStatus};
use crate::lifecycle::finished;
use crate::locks::{Use, VolumeLocks};
use crate::names;
use crate::orphans;
use crate::pool::Inner;
use crate::report::Lv;
use crate::tags::Work;
use crate::trouble;
use crate::view::{Entry, View};

const OP: &str = "audit";
/// A device that nobody uses any more is gone after that.
const CLOSING: Duration = Duration::from_secs(3);
/// lvm2 suspends a device for less than that.
const SUSPENDED: Duration = Duration::from_secs(2);

pub async fn audit(inner: Arc<Inner>, options: AuditOptions) -> Result<AuditReport> {
    // Fresh: what is active, and the pool's transaction, change without a commit.
    inner.client.forget().await;
    inner.client.doubt();
    wait_for_closers(&inner).await?;
    if inner.client.config.read_only && !options.repair {
        let view = inner.client.look(OP).await?;
        let mut audit = Audit::new(inner, None, &view);
        audit.look(&view).await?;
        return Ok(audit.report);
    }
    let change = inner.client.change(OP).await?;
    let view = change.view().clone();
    let repair = options.repair.then_some(change);
    let mut audit = Audit::new(inner, repair, &view);
    audit.look(&view).await?;
    Ok(audit.report)
}

/// Whoever has closed a volume takes its device away a moment later, and needs its turn for that.
async fn wait_for_closers(inner: &Inner) -> Result<()> {
    let end = Instant::now() + CLOSING;
    loop {
        let view = inner.client.look(OP).await?;
        let mut closing = false;
        for entry in view.volumes.values() {
            let device = inner.client.device(OP, &entry.lv.name)?;
            closing |= entry.record.attachments.is_empty()
                && device.is_some_and(|info| info.open_count == 0);
        }
        if !closing || Instant::now() > end {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

struct Audit {
    inner: Arc<Inner>,
    /// Where it may repair.
    change: Option<Change>,
    /// LVM's metadata and the thin pool are from different times.
    torn: bool,
    report: AuditReport,
}

impl Audit {
    fn new(inner: Arc<Inner>, change: Option<Change>, view: &View) -> Self {
        let report = AuditReport {
            findings: Vec::new(),
            volumes: view.volumes.len() as u64,
        };
        Audit {
            inner,
            change,
            torn: false,
            report,
        }
    }

    async fn look(&mut self, view: &View) -> Result<()> {
        self.pool(view)?;
        for (lv, reason) in &view.damaged {
            self.found(FindingKind::Damaged, &lv.name, reason.clone(), None, false);
        }
        for lv in &view.foreign {
            let detail = "a logical volume that volmux did not make; adopt takes it over";
            self.found(FindingKind::Foreign, &lv.name, detail.into(), None, false);
        }
        for entry in view.volumes.values() {
            self.unfinished(entry).await?;
        }
        for entry in view.half_made.values() {
            self.half_made(entry).await?;
        }
        for lv in &view.leftovers {
            self.leftover(lv).await?;
        }
        for entry in view.volumes.values() {
            self.device(entry).await?;
        }
        self.orphans(view).await
    }

    fn found(
        &mut self,
        kind: FindingKind,
        object: &str,
        detail: String,
        bytes: Option<ByteSize>,
        repaired: bool,
    ) {
        let object = object.to_owned();
        self.report.findings.push(Finding {
            kind,
            object,
            detail,
            bytes,
            repaired,
        });
    }

    /// Whether the thin pool works, and the kernel and LVM agree on it.
    fn pool(&mut self, view: &View) -> Result<()> {
        let Some(pool) = &view.pool else {
            return Ok(());
        };
        let group = &self.inner.client.config.group;
        let status = dm::pool_status(group, &pool.name).map_err(|e| Error::from_io(OP, e))?;
        let Some((_, status)) = status else {
            return Ok(());
        };
        if let Some(trouble) = trouble::of(group, &pool.name, status) {
            let detail = trouble.error(OP).to_string();
            self.found(FindingKind::Damaged, &pool.name, detail, None, false);
        }
        if let (PoolStatus::Ok(state), Some(expected)) = (status, pool.transaction_id)
            && state.transaction_id != expected
        {
            self.torn = true;
            let detail = format!(
                "the kernel's thin pool is at transaction {} and LVM's metadata at {expected}: one \
                 of the two is from another time. Make no volumes; see man lvmthin",
                state.transaction_id
            );
            self.found(FindingKind::Damaged, &pool.name, detail, None, false);
        }
        Ok(())
    }

    async fn unfinished(&mut self, entry: &Entry) -> Result<()> {
        let detail = match &entry.record.work {
            Some(Work::Naming(_)) => "a revert or an adoption was interrupted after it took effect",
            Some(Work::Shrinking(_)) => "a shrink was interrupted after it took effect",
            Some(Work::Making) | None => return Ok(()),
        };
        let repaired = match &mut self.change {
            Some(change) => {
                finished(&self.inner, OP, change, &entry.name).await?;
                true
            }
            None => false,
        };
        self.found(
            FindingKind::Unfinished,
            entry.name.as_str(),
            detail.into(),
            None,
            repaired,
        );
        Ok(())
    }

    async fn half_made(&mut self, entry: &Entry) -> Result<()> {
        let locks = VolumeLocks::of(&self.inner.client, OP, entry.record.id)?;
        let Some(alone) = locks.alone_now()? else {
            return Ok(());
        };
        let detail = "a volume that was being made when its maker went away";
        self.remove(&entry.lv, detail).await?;
        locks.forget(alone);
        Ok(())
    }

    async fn leftover(&mut self, lv: &Lv) -> Result<()> {
        // The repair of a volume may have removed it already.
        let gone = |change: &Change| change.view().report.find(&lv.name).is_none();
        if self.change.as_ref().is_some_and(gone) {
            let detail = "left by a revert".into();
            self.found(FindingKind::Leftover, &lv.name, detail, Some(lv.size), true);
            return Ok(());
        }
        let Some(id) = names::id_of_hidden(&lv.name) else {
            let detail = "volmux keeps such names for itself, and did not make this one";
            self.found(FindingKind::Foreign, &lv.name, detail.into(), None, false);
            return Ok(());
        };
        // The source of a copy that is under way is used by whoever makes the copy.
        let Some(_alone) = self.not_in_use(id)? else {
            return Ok(());
        };
        self.remove(lv, "left by work that was interrupted").await
    }

    fn not_in_use(&self, id: VolumeId) -> Result<Option<Use>> {
        VolumeLocks::of(&self.inner.client, OP, id)?.alone_now()
    }

    async fn remove(&mut self, lv: &Lv, detail: &str) -> Result<()> {
        let repaired = match &mut self.change {
            Some(change) => match change.remove(&lv.name).await {
                // The rest can be put right all the same.
                Err(error) if error.kind() == ErrorKind::Busy => false,
                removed => removed.map(|()| true)?,
            },
            None => false,
        };
        self.found(
            FindingKind::Leftover,
            &lv.name,
            detail.into(),
            Some(lv.size),
            repaired,
        );
        Ok(())
    }

    /// Whether the device of a volume is as it should be.
    async fn device(&mut self, entry: &Entry) -> Result<()> {
        let name = dm::dm_name(&self.inner.client.config.group, &entry.lv.name);
        let info = |name: &str| dm::info(name).map_err(|error| Error::from_io(OP, error));
        let attached = !entry.record.attachments.is_empty();
        let Some(found) = info(&name)? else {
            if attached {
                self.put_right(entry, "it is attached and not active", Put::Activate)
                    .await?;
            }
            return Ok(());
        };
        if found.suspended {
            tokio::time::sleep(SUSPENDED).await;
            if info(&name)?.is_some_and(|info| info.suspended) {
                let detail = "its device is suspended: a command was interrupted";
                self.put_right(entry, detail, Put::Resume).await?;
            }
        }
        if attached || found.open_count > 0 {
            return Ok(());
        }
        if let Some(_alone) = self.not_in_use(entry.record.id)?
            && info(&name)?.is_some_and(|info| info.open_count == 0)
        {
            self.put_right(entry, "it is active, and nobody uses it", Put::Deactivate)
                .await?;
        }
        Ok(())
    }

    async fn put_right(&mut self, entry: &Entry, detail: &str, put: Put) -> Result<()> {
        let client = self.inner.client.clone();
        let lv = self
            .now(&entry.name)
            .unwrap_or_else(|| entry.lv.name.clone());
        let repaired = match (&self.change, put) {
            (None, _) => false,
            (Some(_), Put::Activate) => client.activate(OP, &lv).await.is_ok(),
            (Some(_), Put::Deactivate) => client.deactivate(OP, &lv).await?,
            (Some(_), Put::Resume) => {
                let path = format!("{}/{lv}", client.config.group);
                client
                    .commands
                    .lvm(OP, &["lvchange", "--refresh", &path])
                    .await
                    .is_ok()
            }
        };
        let name = entry.name.as_str();
        self.found(FindingKind::Unfinished, name, detail.into(), None, repaired);
        Ok(())
    }

    /// What a volume's logical volume is called now.
    fn now(&self, name: &VolumeName) -> Option<String> {
        let change = self.change.as_ref()?;
        change.view().find(name).map(|entry| entry.lv.name.clone())
    }

    /// Thin devices that LVM does not know, and volumes that the thin pool does not know.
    async fn orphans(&mut self, view: &View) -> Result<()> {
        let Some(pool) = view
            .pool
            .as_ref()
            .filter(|pool| is_active(&self.inner, pool))
        else {
            return Ok(());
        };
        let inside = self.inner.thin_devices(OP, view).await?;
        let known: BTreeSet<u64> = thin_ids(view, &pool.name);
        // This audit may have removed some of them.
        let now = self.change.as_ref().map(|change| change.view().clone());
        let now = now
            .as_ref()
            .map(|now| now.report.lvs.iter().map(|lv| &*lv.name));
        let now = now.map(BTreeSet::from_iter);
        let there = |lv: &&Arc<Lv>| now.as_ref().is_none_or(|now| now.contains(&*lv.name));
        let lvs = view.report.lvs.iter().filter(there);
        for lv in lvs.filter(|lv| lv.pool == pool.name) {
            if lv.thin_id.is_some_and(|id| !inside.contains_key(&id)) {
                let detail = "the thin pool does not know it: its content is lost";
                self.found(FindingKind::Damaged, &lv.name, detail.into(), None, false);
            }
        }
        for (id, (mapped, _)) in inside {
            if known.contains(&id) {
                continue;
            }
            // What was made or removed since the report is none.
            let Some(orphan) = orphans::lock(&self.inner, OP, id).await? else {
                continue;
            };
            // It may be a volume that only older metadata of LVM does not know.
            let repaired = match &self.change {
                Some(_) if !self.torn => orphan.delete(OP).map(|()| true)?,
                _ => false,
            };
            let detail = "a thin device that no logical volume has".to_owned();
            let object = format!("{}, device {id}", pool.name);
            self.found(
                FindingKind::Leftover,
                &object,
                detail,
                Some(mapped),
                repaired,
            );
        }
        Ok(())
    }
}

/// How a device is put right.
#[derive(Clone, Copy, Debug)]
enum Put {
    Activate,
    Deactivate,
    Resume,
}

fn is_active(inner: &Inner, pool: &Lv) -> bool {
    let status = dm::pool_status(&inner.client.config.group, &pool.name);
    matches!(status, Ok(Some((_, PoolStatus::Ok(_)))))
}

/// The thin devices that LVM knows in a pool.
pub fn thin_ids(view: &View, pool: &str) -> BTreeSet<u64> {
    let inside = view.report.lvs.iter().filter(|lv| lv.pool == pool);
    inside.filter_map(|lv| lv.thin_id).collect()
}
