//! Audit: what interrupted work left behind, and what is damaged.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;
use volmux_core::{
    AuditOptions, AuditReport, ByteSize, Error, ErrorKind, Finding, FindingKind, Result, VolumeId,
    VolumeName,
};

use crate::abilities::is_trial;
use crate::chain;
use crate::inner::Inner;
use crate::inuse;
use crate::layout::{OWN_NAMES, PoolDirs, file_error, open_beneath};
use crate::list::volume_of;
use crate::node::{Format, Node};
use crate::record::VolumeRecord;
use crate::staged::lock_leftover;
use crate::sys::Locked;

const OP: &str = "audit";

/// Leftovers that are locked at a time: each takes a file descriptor.
const AT_ONCE: usize = 256;

/// A file that no record seems to refer to.
struct Candidate {
    dir: &'static str,
    name: String,
    /// Its id, for a data file.
    data: Option<Node>,
}

/// What the records refer to.
#[derive(Default)]
pub struct References {
    /// The data files that are needed, each with the one below it.
    pub needed: HashMap<Node, Option<Node>>,
    /// The volumes.
    pub records: Vec<(VolumeName, VolumeRecord)>,
    /// What can't be read, and so may be what refers to any file.
    pub unreadable: Vec<(String, Error)>,
    foreign: Vec<String>,
    shared: Vec<(VolumeName, VolumeName)>,
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
        candidates.retain(|c| {
            c.data
                .is_none_or(|data| !references.needed.contains_key(&data))
        });
        report.volumes = references.records.len() as u64;
        self.report_damage(pool, &references, &mut report);
        for node in references.needed.keys().filter(|node| node.is_qcow2()) {
            report
                .findings
                .extend(self.unclosed(pool, *node, options.repair)?);
        }
        for (name, record) in &references.records {
            self.finish_volume(pool, name, record, options.repair, &mut report)?;
        }
        for some in candidates.chunks(AT_ONCE) {
            self.leftovers(pool, some, options.repair, &mut report)?;
        }
        Ok(report)
    }

    /// An image that somebody wrote who was killed.
    fn unclosed(&self, pool: &PoolDirs, node: Node, repair: bool) -> Result<Option<Finding>> {
        let found = |repaired| Finding {
            kind: FindingKind::Unfinished,
            object: format!("data/{node}"),
            detail: "it was not closed, and its reference counts may be wrong".into(),
            bytes: None,
            repaired,
        };
        match chain::close_unclosed(pool, node, repair) {
            Ok(None) => Ok(None),
            Ok(Some(repaired)) => Ok(Some(found(repaired))),
            // Damage is told of elsewhere, by the volume.
            Err(chain::ChainError::Missing(_) | chain::ChainError::Header(..)) => Ok(None),
            Err(chain::ChainError::Io(_, error)) if error.kind() == io::ErrorKind::InvalidData => {
                Ok(Some(Finding {
                    kind: FindingKind::Damaged,
                    detail: error.to_string(),
                    ..found(false)
                }))
            }
            Err(error) => Err(self.chain_error(OP, error)),
        }
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
        for dir_name in ["data", "tmp"] {
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
                let data = match dir_name {
                    "data" => name.parse::<Node>().ok(),
                    _ => None,
                };
                let record = dir_name == "tmp"
                    && name
                        .strip_suffix(".json")
                        .is_some_and(|id| id.parse::<VolumeId>().is_ok());
                if nameless || record || data.is_some() {
                    candidates.push(Candidate {
                        dir: dir_name,
                        name,
                        data,
                    });
                } else {
                    report.findings.push(foreign(format!("{dir_name}/{name}")));
                }
            }
        }
        Ok(candidates)
    }

    /// Reads all records, and the headers of the images that they need.
    pub fn references(&self, pool: &PoolDirs) -> Result<References> {
        let failed = |error| file_error(OP, self.layout.full("volumes"), error);
        let mut references = References::default();
        let mut owners: HashMap<Node, (VolumeName, bool)> = HashMap::new();
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
                    let snapshot = chain::is_snapshot(&record);
                    let owner = owners.insert(record.data, (name.clone(), snapshot));
                    if let Some((other, also_snapshot)) = owner
                        && other != name
                        && !(snapshot && also_snapshot)
                    {
                        references.shared.push((other, name.clone()));
                    }
                    let below = self.add_needed(pool, record.data, &mut references.needed);
                    match below {
                        // Deleted or reverted since its record was read: no damage.
                        Err(_) if self.find(OP, &name)?.is_none_or(|now| now != record) => {}
                        Err(error) => references.unreadable.push((name.to_string(), error)),
                        Ok(()) => {}
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

    /// Adds a volume's data files to those that are needed.
    fn add_needed(
        &self,
        pool: &PoolDirs,
        data: Node,
        needed: &mut HashMap<Node, Option<Node>>,
    ) -> Result<()> {
        let failed = |error| self.chain_error(OP, error);
        let mut next = Some(data);
        while let Some(node) = next {
            if node.format == Format::Raw && node != data {
                // Of a volume's own it is told elsewhere whether it is there.
                chain::open_node(pool, node, OFlags::RDONLY).map_err(failed)?;
            }
            if needed.contains_key(&node) {
                return Ok(());
            }
            needed.insert(node, None);
            if node.is_qcow2() {
                next = chain::parent_of(pool, node).map_err(failed)?;
                needed.insert(node, next);
            } else {
                next = None;
            }
        }
        Ok(())
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
            if references
                .unreadable
                .iter()
                .any(|(file, _)| *file == name.as_str())
            {
                continue;
            }
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
        if record.data.is_qcow2() {
            if let Some(repaired) = self.fit_in_audit(pool, name, record, repair)? {
                let detail = "a resize was cut short; the image is larger than the volume";
                unfinished(detail.into(), None, repaired);
            }
        } else if length > record.virtual_size.bytes() {
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

    /// Makes an image as large as its volume. `None` if it is, or a resize is just under way.
    fn fit_in_audit(
        &self,
        pool: &PoolDirs,
        name: &VolumeName,
        seen: &VolumeRecord,
        repair: bool,
    ) -> Result<Option<bool>> {
        let size_of = |record: &VolumeRecord| -> Result<u64> {
            let file = self.open_data(OP, pool, record, OFlags::RDONLY)?;
            let header = chain::header_of(record.data, &file);
            let header = header.map_err(|error| self.chain_error(OP, error))?;
            Ok(header.map_or(0, |header| header.size))
        };
        if size_of(seen)? == seen.virtual_size.bytes() {
            return Ok(None);
        }
        let _locks = pool.lock_names(&[name], OP)?;
        let Some(record) = self.find(OP, name)?.filter(|r| r.data == seen.data) else {
            return Ok(None);
        };
        if size_of(&record)? == record.virtual_size.bytes() || chain::is_snapshot(&record) {
            return Ok(None);
        }
        if !repair {
            return Ok(Some(false));
        }
        match self.fit(OP, pool, &record) {
            Err(error) if error.kind() == ErrorKind::Busy => Ok(Some(false)),
            fitted => fitted.map(Some),
        }
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
                Some(data) if references.needed.contains_key(&data) => continue,
                // What others could build on and nobody needs any more is garbage, no leftover.
                Some(_) if chain::is_frozen(&file).unwrap_or(false) => continue,
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
fn lock_candidate(dir: &OwnedFd, name: &str) -> io::Result<Option<(Locked, u64)>> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(fd) => Locked::from(File::from(fd)),
        // One that is never written again, which is garbage at most, and no leftover.
        Err(Errno::ACCESS) if is_frozen_file(dir, name)? => return Ok(None),
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

fn is_frozen_file(dir: &OwnedFd, name: &str) -> io::Result<bool> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(stat.st_mode & 0o200 == 0)
}
