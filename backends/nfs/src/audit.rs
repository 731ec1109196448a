//! Audit: what interrupted work left behind, and what is damaged.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;
use volmux_core::{
    AuditOptions, AuditReport, ByteSize, Error, Finding, FindingKind, Result, VolumeId, VolumeName,
};

use crate::abilities::is_trial;
use crate::inuse;
use crate::layout::{OWN_NAMES, PoolDirs, file_error, open_beneath};
use crate::list::volume_of;
use crate::pool::Inner;
use crate::record::VolumeRecord;
use crate::staged::lock_leftover;

const OP: &str = "audit";

/// Leftovers that are locked at a time: each takes a file descriptor.
const AT_ONCE: usize = 256;

/// A file that no record seems to refer to.
struct Candidate {
    dir: &'static str,
    name: String,
    /// Its id, for a data file.
    data: Option<VolumeId>,
}

/// What the records refer to.
#[derive(Default)]
struct References {
    data: HashMap<VolumeId, VolumeName>,
    unreadable: Vec<(String, Error)>,
    foreign: Vec<String>,
    shared: Vec<(VolumeName, VolumeName)>,
    records: Vec<(VolumeName, VolumeRecord)>,
}

impl Inner {
    pub fn audit(&self, options: AuditOptions) -> Result<AuditReport> {
        if options.repair {
            self.check_writable(OP)?;
        }
        let mut report = AuditReport::default();
        self.foreign_in_root(options.repair, &mut report)?;
        let Some(pool) = self.layout.pool(OP)? else {
            return Ok(report);
        };

        // Files first, records second: what is published in between is then seen as referred to.
        let mut candidates = self.candidates(pool, &mut report)?;
        let references = self.references(pool)?;
        candidates.retain(|c| c.data.is_none_or(|id| !references.data.contains_key(&id)));
        report.volumes = references.records.len() as u64;
        self.report_damage(pool, &references, &mut report);
        for (name, record) in &references.records {
            self.finish_volume(pool, name, record, options.repair, &mut report)?;
        }
        for some in candidates.chunks(AT_ONCE) {
            self.leftovers(pool, some, options.repair, &mut report)?;
        }
        Ok(report)
    }

    fn foreign_in_root(&self, repair: bool, report: &mut AuditReport) -> Result<()> {
        let failed = |errno| file_error(OP, self.layout.path(), errno);
        for entry in Dir::read_from(self.layout.root()).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy();
            if name.starts_with(".nfs") {
                // A trial that was removed while it was open, just now.
                continue;
            }
            if is_trial(&name) {
                report.findings.push(self.trial_in_root(&name, repair)?);
            } else if ![".", "..", "lost+found"].contains(&&*name) && !OWN_NAMES.contains(&&*name) {
                report.findings.push(foreign(name.into_owned()));
            }
        }
        Ok(())
    }

    /// A file on which was tried what a directory can do that is no pool yet.
    fn trial_in_root(&self, name: &str, repair: bool) -> Result<Finding> {
        if repair {
            match rustix::fs::unlinkat(self.layout.root(), name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(file_error(OP, self.layout.full(name), errno)),
            }
        }
        Ok(Finding {
            kind: FindingKind::Leftover,
            object: name.to_owned(),
            detail: "left by work that was cut short".into(),
            bytes: None,
            repaired: repair,
        })
    }

    /// The files in `data/` and `tmp/`.
    fn candidates(&self, pool: &PoolDirs, report: &mut AuditReport) -> Result<Vec<Candidate>> {
        let mut candidates = Vec::new();
        for (dir_name, suffix) in [("data", ".raw"), ("tmp", ".json")] {
            let failed = |errno| file_error(OP, self.layout.full(dir_name), errno);
            let listed = open_beneath(pool.dir(dir_name), ".", OFlags::RDONLY | OFlags::DIRECTORY)
                .and_then(Dir::new)
                .map_err(failed)?;
            for entry in listed {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if name == "." || name == ".." {
                    continue;
                }
                // What an NFS client removes while somebody has it open is called .nfs… until it is
                // closed, or for ever if that host is lost before.
                let nameless = name.starts_with(".nfs") || dir_name == "tmp" && is_trial(&name);
                let id = name.strip_suffix(suffix);
                match id.and_then(|id| id.parse::<VolumeId>().ok()) {
                    None if nameless => candidates.push(Candidate {
                        dir: dir_name,
                        name,
                        data: None,
                    }),
                    Some(id) => {
                        let data = (dir_name == "data").then_some(id);
                        candidates.push(Candidate {
                            dir: dir_name,
                            name,
                            data,
                        });
                    }
                    None => report.findings.push(foreign(format!("{dir_name}/{name}"))),
                }
            }
        }
        Ok(candidates)
    }

    fn references(&self, pool: &PoolDirs) -> Result<References> {
        let failed = |error| file_error(OP, self.layout.full("volumes"), error);
        let mut references = References::default();
        for entry in pool.record_dir().map_err(failed)? {
            let entry = entry.map_err(|errno| failed(errno.into()))?;
            let file = entry.file_name();
            let Some(name) = volume_of(file) else {
                let file = file.to_string_lossy();
                if file != "." && file != ".." && !file.starts_with(".nfs") {
                    references.foreign.push(format!("volumes/{file}"));
                }
                continue;
            };
            match self.find(OP, &name) {
                Ok(Some(record)) => {
                    if let Some(other) = references.data.insert(record.data, name.clone())
                        && other != name
                    {
                        references.shared.push((other, name.clone()));
                    }
                    references.records.push((name, record));
                }
                Ok(None) => {}
                Err(error) => references
                    .unreadable
                    .push((format!("volumes/{name}.json"), error)),
            }
        }
        Ok(references)
    }

    fn report_damage(&self, pool: &PoolDirs, references: &References, report: &mut AuditReport) {
        let mut damaged = |object: String, detail: String| {
            let (kind, bytes, repaired) = (FindingKind::Damaged, None, false);
            report.findings.push(Finding {
                kind,
                object,
                detail,
                bytes,
                repaired,
            });
        };
        for (file, error) in &references.unreadable {
            damaged(
                file.clone(),
                error.get("reason").unwrap_or("unreadable").to_owned(),
            );
        }
        for (a, b) in &references.shared {
            damaged(
                b.to_string(),
                format!(
                    "its record names the same data as volume {a}: one of them is a stray copy"
                ),
            );
        }
        for (name, record) in &references.records {
            if let Err(error) = self.open_data(OP, pool, record, OFlags::RDONLY) {
                // Deleted or reverted since the records were read: no damage.
                if matches!(self.find(OP, name), Ok(Some(now)) if now.data == record.data) {
                    let reason = error.get("reason").map(str::to_owned);
                    damaged(
                        name.to_string(),
                        reason.unwrap_or_else(|| error.to_string()),
                    );
                }
            }
        }
        report
            .findings
            .extend(references.foreign.iter().cloned().map(foreign));
    }

    /// Ends a resize or an adoption that was cut short after it took effect.
    fn finish_volume(
        &self,
        pool: &PoolDirs,
        name: &VolumeName,
        record: &VolumeRecord,
        repair: bool,
        report: &mut AuditReport,
    ) -> Result<()> {
        let Ok(file) = self.open_data(OP, pool, record, OFlags::RDONLY) else {
            return Ok(());
        };
        let failed = |error: io::Error| file_error(OP, self.layout.full("data"), error);
        let length = file.metadata().map_err(failed)?.len();
        let mut unfinished = |detail: String, bytes, repaired| {
            let (kind, object) = (FindingKind::Unfinished, name.to_string());
            report.findings.push(Finding {
                kind,
                object,
                detail,
                bytes,
                repaired,
            });
        };
        if length > record.virtual_size.bytes() {
            let trimmed = self.trim(pool, name, record, repair)?;
            if let Some(repaired) = trimmed {
                let extra = ByteSize::new(length - record.virtual_size.bytes());
                let detail = "a resize was cut short; the file is longer than the volume";
                unfinished(detail.into(), Some(extra), repaired);
            }
        }
        if record.adopted_from.is_some() && file.metadata().map_err(failed)?.nlink() > 1 {
            let repaired = repair && self.finish_adoption(pool, record).map_err(failed)?;
            let from = record.adopted_from.as_deref().unwrap_or_default();
            unfinished(
                format!("an adoption was cut short; {from} is still there"),
                None,
                repaired,
            );
        }
        Ok(())
    }

    /// Cuts a data file to its volume's size. `None` if a resize is just under way after all.
    fn trim(
        &self,
        pool: &PoolDirs,
        name: &VolumeName,
        seen: &VolumeRecord,
        repair: bool,
    ) -> Result<Option<bool>> {
        let _locks = pool.lock_names(&[name], OP)?;
        let Some(record) = self.find(OP, name)?.filter(|r| r.data == seen.data) else {
            return Ok(None);
        };
        let file = self.open_data(OP, pool, &record, OFlags::RDWR)?;
        let failed = |error: io::Error| file_error(OP, self.layout.full("data"), error);
        if file.metadata().map_err(failed)?.len() <= record.virtual_size.bytes() {
            return Ok(None);
        }
        if repair {
            file.set_len(record.virtual_size.bytes()).map_err(failed)?;
            file.sync_all().map_err(failed)?;
        }
        Ok(Some(repair))
    }

    /// Removes those of `candidates` that nobody makes, uses or refers to.
    fn leftovers(
        &self,
        pool: &PoolDirs,
        candidates: &[Candidate],
        repair: bool,
        report: &mut AuditReport,
    ) -> Result<()> {
        // What is in the making is locked by its maker. Once it is locked here, nobody can begin to
        // refer to it; so a record that does, if there is one, shows in a second reading.
        let mut locked = Vec::new();
        for candidate in candidates {
            match lock_candidate(pool.dir(candidate.dir), &candidate.name) {
                Ok(Some((file, bytes))) => locked.push((candidate, file, bytes)),
                Ok(None) => {}
                Err(error) => {
                    let object = format!("{}/{}", candidate.dir, candidate.name);
                    let detail = format!("it can't be opened: {error}");
                    let (kind, bytes, repaired) = (FindingKind::Damaged, None, false);
                    report.findings.push(Finding {
                        kind,
                        object,
                        detail,
                        bytes,
                        repaired,
                    });
                }
            }
        }
        let _still = pool.lock_moves(OP)?;
        let references = self.references(pool)?;
        // A record that can't be read may be the one that refers to a file.
        let doubt = !references.unreadable.is_empty();
        for (candidate, file, bytes) in locked {
            let doubtful = match candidate.data {
                Some(id) if references.data.contains_key(&id) => continue,
                Some(_) => doubt,
                None => false,
            };
            let object = format!("{}/{}", candidate.dir, candidate.name);
            let failed = |error: io::Error| file_error(OP, self.layout.full(&object), error);
            if !inuse::lock_alone(&file).map_err(failed)? {
                continue;
            }
            let repaired = repair && !doubtful;
            if repaired {
                let dir = pool.dir(candidate.dir);
                match rustix::fs::unlinkat(dir, &candidate.name, AtFlags::empty()) {
                    // Its maker noticed that it was too late, and removed it.
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(failed(errno.into())),
                }
            }
            let detail = if doubtful {
                "no record refers to it, but it is kept: a damaged record may be the one that does"
            } else {
                "left by work that was cut short"
            };
            let (kind, bytes) = (FindingKind::Leftover, Some(ByteSize::new(bytes)));
            let detail = detail.into();
            report.findings.push(Finding {
                kind,
                object,
                detail,
                bytes,
                repaired,
            });
        }
        Ok(())
    }
}

fn foreign(object: String) -> Finding {
    Finding {
        kind: FindingKind::Foreign,
        object,
        detail: "volmux did not make it".into(),
        bytes: None,
        repaired: false,
    }
}

/// Opens and locks a file, and tells its allocated bytes. `None` if it is gone or in the making.
fn lock_candidate(dir: &OwnedFd, name: &str) -> io::Result<Option<(File, u64)>> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        // Also where an NFS client only thought that it was there.
        Err(Errno::NOENT | Errno::STALE) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let metadata = match file.metadata() {
        Err(error) if error.raw_os_error() == Some(libc::ESTALE) => return Ok(None),
        metadata => metadata?,
    };
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(lock_leftover(&file)?.then_some((file, metadata.blocks() * 512)))
}
