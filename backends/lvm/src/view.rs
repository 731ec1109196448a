//! Which logical volumes are volumes. Pure: from a report to what the pool holds.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use volmux_core::{ByteSize, Error, ErrorKind, Provisioning, Result, Volume, VolumeId, VolumeName};

use crate::config::LvmConfig;
use crate::names;
use crate::report::{Group, Lv, Report};
use crate::tags::{Attached, Record, Work};

/// A pool as a report shows it. What changes without a commit of the group's metadata (whether a
/// device is active or open, how full a pool is) is not in it: the kernel is asked for that.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// What was reported.
    pub report: Report,
    /// The thin pool.
    pub pool: Option<Arc<Lv>>,
    /// The volumes.
    pub volumes: BTreeMap<VolumeName, Entry>,
    /// What is half made, or was when its maker died; each has a volume's name.
    pub half_made: BTreeMap<VolumeName, Entry>,
    /// Hidden logical volumes that no volume needs (any more).
    pub leftovers: Vec<Arc<Lv>>,
    /// Logical volumes in the pool's place that are not ours.
    pub foreign: Vec<Arc<Lv>>,
    /// Logical volumes whose tags can't be understood, and why.
    pub damaged: Vec<(Arc<Lv>, String)>,
}

/// A volume, or something that is to become one.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The volume's name. Its logical volume has another one while a revert is not finished.
    pub name: VolumeName,
    /// Its logical volume.
    pub lv: Arc<Lv>,
    /// What the tags say.
    pub record: Record,
}

impl View {
    /// What a report shows of the pool that `config` names.
    ///
    /// # Errors
    /// `NotFound` if there is no such pool; `InvalidConfig` if it is no thin pool.
    pub fn new(op: &'static str, config: &LvmConfig, report: Report) -> Result<View> {
        let mut view = View {
            pool: thin_pool(op, config, &report)?,
            volumes: BTreeMap::new(),
            half_made: BTreeMap::new(),
            leftovers: Vec::new(),
            foreign: Vec::new(),
            damaged: Vec::new(),
            report,
        };
        let pool = config.pool.as_deref();
        let inside: Vec<Arc<Lv>> = view
            .report
            .lvs
            .iter()
            .filter(|lv| is_inside(lv, pool))
            .cloned()
            .collect();
        let mut ours = Vec::new();
        for lv in inside {
            match Record::read(lv.tags.iter().map(String::as_str)) {
                Ok(Some(record)) => ours.push((lv, record)),
                Ok(None) if names::is_hidden(&lv.name) => view.leftovers.push(lv),
                Ok(None) => view.foreign.push(lv),
                Err(reason) => view.damaged.push((lv, reason)),
            }
        }
        view.place_all(ours);
        Ok(view)
    }

    fn place_all(&mut self, ours: Vec<(Arc<Lv>, Record)>) {
        let named = ours.iter().filter(|(lv, _)| own_name(lv).is_some());
        let named: HashSet<VolumeId> = named.map(|(_, record)| record.id).collect();
        let mut nameless = Vec::new();
        for (lv, record) in ours {
            let name = match (&record.work, own_name(&lv)) {
                // What a volume is reverted to waits until the old content has given the name up:
                // not just until that volume was renamed.
                (Some(Work::Naming(name)), own)
                    if self.report.find(name.as_str()).is_none()
                        && (own.is_some() || !named.contains(&record.id)) =>
                {
                    Some(name.clone())
                }
                (_, own) => own,
            };
            match name {
                Some(name) => self.place(name, lv, record),
                None => nameless.push((lv, record)),
            }
        }
        let volumes = self.volumes.values();
        let known: HashSet<VolumeId> = volumes.map(|entry| entry.record.id).collect();
        for (lv, record) in nameless {
            if names::is_hidden(&lv.name) && known.contains(&record.id) {
                self.leftovers.push(lv);
            } else {
                // It may be all that is left of a volume, so it is nothing to be removed.
                let reason = nameless_reason(&record);
                self.damaged.push((lv, reason));
            }
        }
    }

    fn place(&mut self, name: VolumeName, lv: Arc<Lv>, record: Record) {
        let making = record.work == Some(Work::Making);
        let place = if making {
            &mut self.half_made
        } else {
            &mut self.volumes
        };
        let entry = Entry {
            name: name.clone(),
            lv,
            record,
        };
        // Two that want the same name can't be made by volmux, but by hand.
        if let Some(other) = place.insert(name, entry) {
            let reason = format!("{} has the name {} too", other.lv.name, other.name);
            self.damaged.push((other.lv, reason));
        }
    }

    /// The group.
    pub fn group(&self) -> &Group {
        &self.report.group
    }

    /// The volume `name`.
    pub fn find(&self, name: &VolumeName) -> Option<&Entry> {
        self.volumes.get(name)
    }

    /// The volume `name`.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if its tags can't be understood.
    pub fn get(&self, op: &'static str, name: &VolumeName) -> Result<&Entry> {
        self.check_whole(op, name)?;
        self.find(name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, op)
                .with("volume", name)
                .reason("there is no such volume in this pool")
        })
    }

    /// Whether what has this name can be understood.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn check_whole(&self, op: &'static str, name: &VolumeName) -> Result<()> {
        let damaged = self.damaged.iter().find(|(lv, _)| lv.name == name.as_str());
        let Some((lv, reason)) = damaged else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Corrupt, op)
            .with("volume", name)
            .with("tags", lv.tags.join(","))
            .reason(reason)
            .help("put the tags right with lvchange --addtag and --deltag, or remove those that begin with volmux. and adopt it"))
    }

    /// `lvremove` takes away, with a logical volume, its snapshots of the old kind and those that
    /// have it as an external origin: what somebody made by hand, and volmux does not know.
    ///
    /// # Errors
    /// `Busy` if there are such.
    pub fn check_alone(&self, op: &'static str, lv: &str) -> Result<()> {
        let removed = self.report.find(lv);
        let thin = |known: &Lv| removed.is_some_and(|lv| is_thin_beside(known, lv));
        let lost = self.report.lvs.iter().filter(|known| known.origin == lv);
        let lost: Vec<&str> = lost
            .filter(|known| !thin(known))
            .map(|known| &*known.name)
            .collect();
        if lost.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Busy, op)
            .with("logical_volume", lv)
            .with("others", lost.join(", "))
            .reason("logical volumes that were made of it by hand would be removed with it")
            .help("remove those first, or copy them"))
    }

    /// Whether what a logical volume does not hold itself is read from one of another kind: it is a
    /// snapshot of the old kind, or its thin origin, or that one's, has an external origin.
    pub fn has_foreign_origin(&self, lv: &Lv) -> bool {
        let mut at = lv;
        // No longer, for garbage may go round.
        for _ in &self.report.lvs {
            if at.origin.is_empty() {
                return false;
            }
            let origin = self.report.find(&at.origin);
            match origin.filter(|origin| is_thin_beside(origin, lv)) {
                Some(origin) => at = origin,
                None => return true,
            }
        }
        true
    }

    /// The volume with this identity, whatever it is called.
    pub fn by_id(&self, id: VolumeId) -> Option<&Entry> {
        self.volumes.values().find(|entry| entry.record.id == id)
    }

    /// The sum of all virtual sizes.
    pub fn provisioned(&self) -> ByteSize {
        let sizes = self.volumes.values().map(|entry| entry.size().bytes());
        ByteSize::new(sizes.fold(0, u64::saturating_add))
    }

    /// Another view, after a change of what was reported.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn after(
        &self,
        op: &'static str,
        config: &LvmConfig,
        change: impl FnOnce(&mut Report),
    ) -> Result<View> {
        let mut report = self.report.clone();
        change(&mut report);
        View::new(op, config, report)
    }
}

impl Entry {
    /// What a guest sees. A logical volume that is being shrunk is still longer.
    pub fn size(&self) -> ByteSize {
        match self.record.work {
            Some(Work::Shrinking(size)) => size.min(self.lv.size),
            _ => self.lv.size,
        }
    }

    /// Thin or thick.
    pub fn provisioning(&self) -> Provisioning {
        if self.lv.segtype == "thin" {
            Provisioning::Thin
        } else {
            Provisioning::Thick
        }
    }

    /// What a pool says of it, as far as the metadata tells.
    pub fn volume(&self) -> Volume {
        let mut volume = Volume::new(self.name.clone(), self.record.id, self.size());
        volume.provisioning = self.provisioning();
        volume.origin.clone_from(&self.record.origin);
        volume.created = self.record.created;
        volume.attachments = self
            .record
            .attachments
            .iter()
            .map(Attached::options)
            .collect();
        if volume.provisioning == Provisioning::Thick {
            volume.allocated = Some(self.lv.size);
            volume.exclusive = Some(self.lv.size);
        }
        volume
    }
}

/// Whether both are thin volumes of one pool, and so stand on their own.
fn is_thin_beside(a: &Lv, b: &Lv) -> bool {
    a.segtype == "thin" && b.segtype == "thin" && a.pool == b.pool
}

/// The name of the volume that a logical volume is if no work is under way.
fn own_name(lv: &Lv) -> Option<VolumeName> {
    VolumeName::new(lv.name.clone()).ok()
}

/// What is the matter with a volume that has no name.
fn nameless_reason(record: &Record) -> String {
    match &record.work {
        Some(Work::Naming(name)) => format!(
            "it holds the volume {name}, whose name another logical volume took in the middle of a \
             revert: give one of the two another name (lvrename)"
        ),
        _ => "it holds a volume, and no volume can be called that: give it another name (lvrename)"
            .into(),
    }
}

/// Whether a logical volume is one that volumes are made of.
fn is_inside(lv: &Lv, pool: Option<&str>) -> bool {
    match pool {
        Some(pool) => lv.segtype == "thin" && lv.pool == pool,
        None => {
            lv.pool.is_empty() && matches!(&*lv.segtype, "linear" | "striped" | "mirror")
                || lv.segtype.starts_with("raid")
        }
    }
}

fn thin_pool(op: &'static str, config: &LvmConfig, report: &Report) -> Result<Option<Arc<Lv>>> {
    let Some(name) = &config.pool else {
        return Ok(None);
    };
    let shown = format!("{}/{name}", config.group);
    let Some(pool) = report.find(name) else {
        return Err(Error::new(ErrorKind::NotFound, op)
            .with("thin_pool", &shown)
            .reason("the group has no such thin pool")
            .help(format!(
                "see lvs {}, or make one: lvcreate --type thin-pool -L SIZE -n {name} {}",
                config.group, config.group
            )));
    };
    if pool.segtype != "thin-pool" {
        return Err(Error::new(ErrorKind::InvalidConfig, op)
            .with("thin_pool", &shown)
            .reason(format!(
                "it is no thin pool but a logical volume of type {}",
                pool.segtype
            ))
            .help("name a thin pool: lvm://group/pool"));
    }
    if !pool.zero && !config.single_tenant {
        return Err(Error::new(ErrorKind::InvalidConfig, op)
            .with("thin_pool", &shown)
            .reason("it does not zero chunks before it hands them out, so that a volume shows what another one held")
            .help(format!("run lvchange -Zy {shown}, or set single_tenant=true if all volumes are one tenant's")));
    }
    Ok(Some(pool.clone()))
}

#[cfg(test)]
mod tests;
