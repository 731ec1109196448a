//! Giving back what chains hold that no volume needs: files that nothing refers to are dropped, and
//! what lies above a hidden file is merged into it where only one file does (`merge`).

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::fs::OFlags;
use volmux_core::{ByteSize, Collected, Error, ErrorKind, Result};

use super::image::{self, ChainError, header_of, is_frozen, open_node};
use super::merge::Merge;
use super::refcounts;
use crate::audit::References;
use crate::inner::Inner;
use crate::inuse;
use crate::layout::PoolDirs;
use crate::node::Node;
use crate::queue::Stop;
use crate::sys::Locked;

pub const OP: &str = "collect_garbage";
/// Files that are locked at a time: each takes a file descriptor.
const AT_ONCE: usize = 256;

impl Inner {
    /// See [`Pool::collect_garbage`](volmux_core::Pool::collect_garbage).
    pub fn collect(&self, stop: &Stop) -> Result<Collected> {
        self.check_writable(OP)?;
        let mut collected = Collected::default();
        let Some(pool) = self.layout.pool(OP)? else {
            return Ok(collected);
        };
        let Some(_only) = pool.try_lock_collection(OP)? else {
            return Err(Error::new(ErrorKind::Busy, OP)
                .reason("another collection is running")
                .help("wait until it is done"));
        };
        self.open_volumes.wait_all_closed();
        let pending = !self.end_pending(pool, &mut collected)?;
        self.drop_unneeded(pool, &mut collected)?;
        if pending {
            return Ok(collected);
        }
        let mut references = self.known(pool)?;
        let mut passed: HashSet<Node> = HashSet::new();
        let mut no_room = None;
        while let Some((into, from)) = candidate(&references, &passed) {
            stop.check(OP)?;
            match self.merge(pool, from, into, stop)? {
                Merge::Done { freed } => {
                    collected.freed = ByteSize::new(collected.freed.bytes() + freed);
                    collected.objects += 1;
                    replace(&mut references, from, into);
                }
                Merge::Pending => break,
                Merge::InUse => {
                    passed.insert(into);
                }
                Merge::NoRoom { wanted } => {
                    passed.insert(into);
                    no_room = Some(wanted);
                }
            }
        }
        match no_room {
            None => Ok(collected),
            Some(wanted) => Err(Error::new(ErrorKind::NoSpace, OP)
                .with("wanted", wanted)
                .with("freed", collected.freed.bytes())
                .reason("merging data files takes room for a moment, and there is not enough")
                .help("delete other volumes or enlarge the file system, then collect again")),
        }
    }

    /// All records, none of which may be in doubt.
    pub fn known(&self, pool: &PoolDirs) -> Result<References> {
        let references = {
            let _still = pool.lock_moves(OP)?;
            self.references(pool)?
        };
        match references.unreadable.first() {
            None => Ok(references),
            Some((object, error)) => Err(Error::new(ErrorKind::Corrupt, OP)
                .with("object", object)
                .reason(format!(
                    "it can't be read, and may be what refers to any file: {}",
                    error
                        .get("reason")
                        .map_or_else(|| error.to_string(), str::to_owned)
                ))
                .help("an audit tells of all that is damaged; repair or delete it first")),
        }
    }

    /// Removes the frozen files that no volume needs.
    fn drop_unneeded(&self, pool: &PoolDirs, collected: &mut Collected) -> Result<()> {
        let failed = |error: io::Error| self.data_error(OP, error);
        // Files first, records second: what is published in between is then seen as needed.
        let mut nodes = pool.nodes().map_err(failed)?;
        let references = self.known(pool)?;
        nodes.retain(|node| !references.needed.contains_key(node));
        for some in nodes.chunks(AT_ONCE) {
            let mut locked = Vec::new();
            for node in some {
                if let Some(file) = self.alone(pool, *node, true)? {
                    locked.push((*node, file));
                }
            }
            if locked.is_empty() {
                continue;
            }
            // Nobody can begin to refer to them now; so a record that does shows here.
            let references = self.known(pool)?;
            for (node, file) in locked {
                if references.needed.contains_key(&node) {
                    continue;
                }
                let freed = blocks(&file).map_err(failed)?;
                pool.remove_data(node).map_err(failed)?;
                collected.freed = ByteSize::new(collected.freed.bytes() + freed);
                collected.objects += 1;
            }
            rustix::fs::fsync(&pool.data).map_err(|errno| failed(errno.into()))?;
        }
        Ok(())
    }

    /// Opens a file for writing and locks it, if nobody else has it open; others wait for it.
    pub fn alone(&self, pool: &PoolDirs, node: Node, only_frozen: bool) -> Result<Option<Locked>> {
        let failed = |error| self.chain_error(OP, error);
        let io = |error| failed(ChainError::Io(node, error));
        let file = match open_for_change(pool, node, only_frozen) {
            Ok(Some(file)) => file,
            Ok(None) | Err(ChainError::Missing(_)) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let locked =
            inuse::begin_changing(&file).map_err(io)? && inuse::lock_alone(&file).map_err(io)?;
        Ok(locked.then_some(file))
    }
}

/// Opens a file for writing, though it may be one that is never written again.
pub fn open_for_change(
    pool: &PoolDirs,
    node: Node,
    only_frozen: bool,
) -> std::result::Result<Option<Locked>, ChainError> {
    let io = |error| ChainError::Io(node, error);
    let seen = open_node(pool, node, OFlags::RDONLY)?;
    let frozen = is_frozen(&seen).map_err(io)?;
    if only_frozen && !frozen {
        return Ok(None);
    }
    match open_node(pool, node, OFlags::RDWR) {
        Err(ChainError::Io(_, error))
            if frozen && error.kind() == io::ErrorKind::PermissionDenied =>
        {
            image::thaw(&*seen).map_err(io)?;
            let opened = open_node(pool, node, OFlags::RDWR);
            image::freeze(&*seen).map_err(io)?;
            opened.map(Some)
        }
        opened => opened.map(Some),
    }
}

/// Whether an image was not closed by who wrote it, and is not open either; then with `repair` its
/// reference counts are made anew.
pub fn close_unclosed(
    pool: &PoolDirs,
    node: Node,
    repair: bool,
) -> std::result::Result<Option<bool>, ChainError> {
    let io = |error| ChainError::Io(node, error);
    let dirty = |file: &File| Ok(header_of(node, file)?.filter(|header| header.dirty));
    let seen = open_node(pool, node, OFlags::RDONLY)?;
    if dirty(&seen)?.is_none() {
        return Ok(None);
    }
    if !repair {
        // Nothing may be writable here.
        return Ok((!inuse::is_used(&seen).map_err(io)?).then_some(false));
    }
    let Some(file) = open_for_change(pool, node, false)? else {
        return Ok(None);
    };
    let locked =
        inuse::begin_changing(&file).map_err(io)? && inuse::lock_alone(&file).map_err(io)?;
    let header = dirty(&file)?;
    match header.filter(|_| locked) {
        None => Ok(None),
        Some(header) => {
            refcounts::repair(&file, &header).map_err(io)?;
            Ok(Some(true))
        }
    }
}

/// A hidden file with one other above it: that pair.
fn candidate(references: &References, passed: &HashSet<Node>) -> Option<(Node, Node)> {
    let mut nodes: Vec<&Node> = references.needed.keys().collect();
    // From below, so that what is merged is merged into the file at the bottom at once.
    nodes.sort_unstable_by_key(|node| (depth(&references.needed, **node), node.id));
    let mut open = nodes.into_iter().filter(|node| !passed.contains(node));
    open.find_map(|into| Some((*into, candidate_of(references, *into)?)))
}

fn depth(needed: &HashMap<Node, Option<Node>>, node: Node) -> usize {
    let mut depth = 0;
    let mut at = node;
    while let Some(Some(below)) = needed.get(&at) {
        depth += 1;
        at = *below;
        if depth > needed.len() {
            break;
        }
    }
    depth
}

/// The one file above `into`, if `into` is hidden, only one is, and no host may have it open.
pub fn candidate_of(references: &References, into: Node) -> Option<Node> {
    let mut above = references.needed.iter();
    let (from, _) = above.find(|(_, below)| **below == Some(into))?;
    if above.any(|(_, below)| *below == Some(into)) {
        return None;
    }
    let mut records = references.records.iter();
    if records.any(|(_, record)| record.data == into) {
        return None;
    }
    let attached = references.records.iter();
    for (_, record) in attached.filter(|(_, record)| !record.attachments.is_empty()) {
        let mut at = Some(record.data);
        while let Some(node) = at {
            if node == into {
                return None;
            }
            at = references.needed.get(&node).copied().flatten();
        }
    }
    Some(*from)
}

/// What is referred to after a merge.
fn replace(references: &mut References, from: Node, into: Node) {
    references.needed.remove(&from);
    for below in references.needed.values_mut() {
        if *below == Some(from) {
            *below = Some(into);
        }
    }
    for (_, record) in &mut references.records {
        if record.data == from {
            record.set_data(into);
        }
    }
}

/// The bytes that a file occupies.
pub fn blocks(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks() * 512)
}
