//! A volume's content: a persistent radix tree of blocks.
//!
//! A copy of the root is a snapshot. A change copies the nodes on its path that somebody else holds
//! too, and works in place on the others.

use std::sync::{Arc, OnceLock};

use super::space::Space;
use crate::ByteRange;
use crate::transfer::is_zero;

/// Bytes in a block: the unit of allocation and of comparison.
pub(super) const BLOCK: u64 = 4096;

const BITS: u32 = 6;
const FAN: usize = 1 << BITS;
/// Nodes of level 9 cover 2^54 blocks; the largest volume has 2^51.
const ROOT: u32 = 9;

type Children = [Node; FAN];

/// A subtree. At level 0 it is one block, at level n it covers 64^n of them.
#[derive(Clone, Debug, Default)]
pub(super) enum Node {
    /// Nothing is allocated.
    #[default]
    Hole,
    /// Everything is allocated and zero.
    Zeros(Arc<Zeros>),
    /// One block; only at level 0.
    Data(Arc<Block>),
    /// A mixture.
    Inner(Arc<Children>),
}

/// A block with data.
#[derive(Debug)]
pub(super) struct Block {
    bytes: [u8; BLOCK as usize],
    space: Arc<Space>,
}

impl Drop for Block {
    fn drop(&mut self) {
        self.space.release(1);
    }
}

/// Allocated blocks of zeros, which take no memory each.
#[derive(Debug)]
pub(super) struct Zeros {
    blocks: u64,
    space: Arc<Space>,
    /// Set when somebody needs it in parts. All who hold this node use the same parts, and the
    /// parts then do the counting: so a shared zero block is counted once.
    parts: OnceLock<Arc<Children>>,
}

impl Zeros {
    fn node(space: &Arc<Space>, blocks: u64) -> Node {
        Node::Zeros(Arc::new(Zeros {
            blocks,
            space: space.clone(),
            parts: OnceLock::new(),
        }))
    }

    fn parts(&self) -> &Arc<Children> {
        self.parts.get_or_init(|| {
            Arc::new(std::array::from_fn(|_| {
                Zeros::node(&self.space, self.blocks >> BITS)
            }))
        })
    }
}

impl Drop for Zeros {
    fn drop(&mut self) {
        if self.parts.get().is_none() {
            self.space.release(self.blocks);
        }
    }
}

/// Blocks from `first` up to, not including, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) first: u64,
    pub(super) end: u64,
}

impl Blocks {
    fn len(self) -> u64 {
        self.end.saturating_sub(self.first)
    }

    /// The children of a node (which begins at `base`) that overlap, each with its first block.
    fn children(self, level: u32, base: u64) -> impl Iterator<Item = (usize, u64)> {
        let shift = BITS * (level - 1);
        let first = self.first.saturating_sub(base) >> shift;
        let last = ((self.end - 1 - base) >> shift).min(FAN as u64 - 1);
        (first..=last).map(move |slot| (slot as usize, base + (slot << shift)))
    }

    fn overlap(self, level: u32, base: u64) -> u64 {
        let end = base + span(level);
        self.end.min(end).saturating_sub(self.first.max(base))
    }
}

fn span(level: u32) -> u64 {
    1 << (BITS * level)
}

/// Who holds the blocks of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// Not allocated.
    pub(super) absent: u64,
    /// Held by this tree and others.
    pub(super) shared: u64,
    /// Held by this tree alone.
    pub(super) owned: u64,
}

/// What a change did.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Blocks made; each counts until it is dropped.
    pub(super) created: u64,
    /// Blocks by which the tree grew.
    pub(super) mapped: i64,
    /// What was replaced. Dropped when the count is right and no lock is held.
    garbage: Vec<Node>,
}

/// What to put in the place of whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    Hole,
    Zeros,
}

/// A run of blocks that a scan found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) blocks: Blocks,
    /// Known to be zeros without a look at them.
    pub(super) zeros: bool,
}

/// A volume's content.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    root: Node,
    space: Arc<Space>,
    mapped: u64,
}

impl Tree {
    pub(super) fn new(space: Arc<Space>) -> Self {
        Tree {
            root: Node::Hole,
            space,
            mapped: 0,
        }
    }

    /// Where its blocks are counted.
    pub(super) fn space(&self) -> &Space {
        &self.space
    }

    /// Number of allocated blocks.
    pub(super) fn mapped(&self) -> u64 {
        self.mapped
    }

    /// Appends the bytes of `range`.
    pub(super) fn read(&self, range: ByteRange, into: &mut Vec<u8>) {
        if range.is_empty() {
            return;
        }
        let blocks = touched(range);
        let (mut node, mut level, mut base) = (&self.root, ROOT, 0);
        // Down to where the range parts. Most often that is a block.
        while let Node::Inner(children) = node
            && let mut slots = blocks.children(level, base)
            && let (Some((slot, first)), None) = (slots.next(), slots.next())
        {
            (node, level, base) = (&children[slot], level - 1, first);
        }
        read(node, level, base, blocks, range, into);
    }

    /// Where each block lies, which tells blocks apart.
    #[cfg(test)]
    pub(super) fn identities(&self, seen: &mut std::collections::BTreeSet<usize>) {
        let mut nodes = vec![&self.root];
        while let Some(node) = nodes.pop() {
            match node {
                Node::Hole => {}
                Node::Data(block) => drop(seen.insert(Arc::as_ptr(block).addr())),
                Node::Zeros(zeros) if zeros.blocks == 1 => {
                    seen.insert(Arc::as_ptr(zeros).addr());
                }
                Node::Zeros(zeros) => nodes.extend(zeros.parts().iter()),
                Node::Inner(children) => nodes.extend(children.iter()),
            }
        }
    }

    /// Who holds `blocks`.
    pub(super) fn survey(&self, blocks: Blocks) -> Survey {
        let mut survey = Survey::default();
        if blocks.len() > 0 {
            count_holders(&self.root, ROOT, 0, blocks, false, &mut survey);
        }
        survey
    }

    /// Whether `block` holds data that is not known to be zeros.
    pub(super) fn has_data(&self, block: u64) -> bool {
        let mut node = &self.root;
        for level in (1..=ROOT).rev() {
            match node {
                Node::Inner(children) => {
                    node = &children[(block >> (BITS * (level - 1))) as usize % FAN];
                }
                _ => return false,
            }
        }
        matches!(node, Node::Data(_))
    }

    /// Writes `data` at `offset`.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], effects: &mut Effects) {
        if data.is_empty() {
            return;
        }
        let before = effects.mapped;
        let range = ByteRange::new(offset, data.len() as u64);
        let blocks = touched(range);
        let mut writer = Writer {
            range,
            data,
            space: &self.space,
            effects,
            ahead: 0,
        };
        writer.write(&mut self.root, ROOT, 0, blocks);
        self.mapped = self
            .mapped
            .wrapping_add_signed(effects.mapped.wrapping_sub(before));
    }

    /// Replaces whole blocks.
    pub(super) fn fill(&mut self, blocks: Blocks, with: Fill, effects: &mut Effects) {
        if blocks.len() == 0 {
            return;
        }
        let before = effects.mapped;
        fill(&mut self.root, ROOT, 0, blocks, with, &self.space, effects);
        self.mapped = self
            .mapped
            .wrapping_add_signed(effects.mapped.wrapping_sub(before));
    }

    /// The allocated runs among `blocks` (with `other`: the runs whose bytes differ from its), and
    /// where to go on; `None` at the end. Looks at so few blocks that a caller can do it without a
    /// pause.
    pub(super) fn scan(&self, other: Option<&Tree>, blocks: Blocks) -> (Vec<Run>, Option<u64>) {
        let mut scan = Scan {
            within: blocks,
            work: 4096,
            runs: Vec::new(),
            next: None,
        };
        scan.visit(&self.root, other.map(|t| &t.root), ROOT, 0);
        (scan.runs, scan.next)
    }
}

fn touched(range: ByteRange) -> Blocks {
    Blocks {
        first: range.offset / BLOCK,
        end: range.end().div_ceil(BLOCK),
    }
}

/// Copies in pieces that are too short for `rep movsb`, with which the C library copies from 2112
/// bytes on, and which takes ten times as long where the target lies up to 32 bytes further in its
/// page than the source in its own (AMD Zen 3, before glibc 2.39).
const COPY: usize = 2048;

fn append(into: &mut Vec<u8>, bytes: &[u8]) {
    for piece in bytes.chunks(COPY) {
        into.extend_from_slice(piece);
    }
}

fn overwrite(old: &mut [u8], new: &[u8]) {
    for (old, new) in old.chunks_mut(COPY).zip(new.chunks(COPY)) {
        old.copy_from_slice(new);
    }
}

/// The part of block `block` that lies in `range`: where it begins in the block and in the range,
/// and its length.
fn parts(block: u64, range: ByteRange) -> (usize, usize, usize) {
    let part = ByteRange::new(block * BLOCK, BLOCK).intersect(&range);
    (
        (part.offset - block * BLOCK) as usize,
        (part.offset - range.offset) as usize,
        part.length as usize,
    )
}

fn read(node: &Node, level: u32, base: u64, blocks: Blocks, range: ByteRange, into: &mut Vec<u8>) {
    match node {
        Node::Hole | Node::Zeros(_) => {
            // In blocks first: the bytes of a node near the root are more than a u64 counts.
            let first = blocks.first.max(base) * BLOCK;
            let end = blocks.end.min(base + span(level)) * BLOCK;
            let zeros = ByteRange::from_to(first, end).intersect(&range);
            into.resize(into.len() + zeros.length as usize, 0);
        }
        Node::Data(block) => {
            let (from, _, length) = parts(base, range);
            append(into, &block.bytes[from..from + length]);
        }
        Node::Inner(children) => {
            for (slot, base) in blocks.children(level, base) {
                read(&children[slot], level - 1, base, blocks, range, into);
            }
        }
    }
}

fn count_holders(
    node: &Node,
    level: u32,
    base: u64,
    blocks: Blocks,
    shared: bool,
    survey: &mut Survey,
) {
    let held = blocks.overlap(level, base);
    let others = match node {
        Node::Hole => {
            survey.absent += held;
            return;
        }
        Node::Zeros(zeros) => Arc::strong_count(zeros) > 1,
        Node::Data(block) => Arc::strong_count(block) > 1,
        Node::Inner(children) => {
            let shared = shared || Arc::strong_count(children) > 1;
            for (slot, base) in blocks.children(level, base) {
                count_holders(&children[slot], level - 1, base, blocks, shared, survey);
            }
            return;
        }
    };
    if shared || others {
        survey.shared += held;
    } else {
        survey.owned += held;
    }
}

/// Number of allocated blocks beneath `node`.
fn allocated(node: &Node, level: u32) -> u64 {
    match node {
        Node::Hole => 0,
        Node::Zeros(_) | Node::Data(_) => span(level),
        Node::Inner(children) => children.iter().map(|c| allocated(c, level - 1)).sum(),
    }
}

/// The children of `node`, for changing: a uniform node is taken apart first.
fn children_of<'a>(node: &'a mut Node, garbage: &mut Vec<Node>) -> &'a mut Children {
    let apart = match node {
        Node::Hole => Some(Arc::new(std::array::from_fn(|_| Node::Hole))),
        Node::Zeros(zeros) => Some(zeros.parts().clone()),
        Node::Data(_) => unreachable!("data lies at level 0 only"),
        Node::Inner(_) => None,
    };
    if let Some(children) = apart {
        garbage.push(std::mem::replace(node, Node::Inner(children)));
    }
    match node {
        Node::Inner(children) => Arc::make_mut(children),
        _ => unreachable!("it was taken apart"),
    }
}

struct Writer<'a> {
    range: ByteRange,
    data: &'a [u8],
    space: &'a Arc<Space>,
    effects: &'a mut Effects,
    /// Blocks that memory was taken for and that are not made yet.
    ahead: usize,
}

/// Some 100 KiB: the C library takes what is larger from elsewhere.
const AHEAD: usize = 24;

/// Makes the C library have memory for so many blocks ready. On all threads but a program's first
/// it would go to the kernel for each of them, which takes as long as to write the block.
fn take_memory_for(blocks: usize) {
    if blocks > 1 {
        let taken = Vec::<u8>::with_capacity(blocks * (size_of::<Block>() + 32));
        // Or the compiler would see that it comes to nothing.
        drop(std::hint::black_box(taken));
    }
}

impl Writer<'_> {
    fn write(&mut self, node: &mut Node, level: u32, base: u64, blocks: Blocks) {
        if level == 0 {
            return self.write_block(node, base);
        }
        let children = children_of(node, &mut self.effects.garbage);
        for (slot, base) in blocks.children(level, base) {
            self.write(&mut children[slot], level - 1, base, blocks);
        }
    }

    fn write_block(&mut self, node: &mut Node, block: u64) {
        let (at, from, length) = parts(block, self.range);
        let data = &self.data[from..from + length];
        if let Node::Data(held) = node
            && let Some(owned) = Arc::get_mut(held)
        {
            overwrite(&mut owned.bytes[at..at + length], data);
            return;
        }
        if self.ahead == 0 {
            self.ahead = (self.data.len() - from).div_ceil(BLOCK as usize).min(AHEAD);
            take_memory_for(self.ahead);
        }
        self.ahead -= 1;
        let mut made = Arc::new(Block {
            bytes: [0; BLOCK as usize],
            space: self.space.clone(),
        });
        let bytes = &mut Arc::get_mut(&mut made)
            .expect("nobody else has it yet")
            .bytes;
        if let Node::Data(held) = node
            && length < BLOCK as usize
        {
            overwrite(bytes, &held.bytes);
        }
        overwrite(&mut bytes[at..at + length], data);
        self.effects.created += 1;
        match std::mem::replace(node, Node::Data(made)) {
            Node::Hole => self.effects.mapped += 1,
            replaced => self.effects.garbage.push(replaced),
        }
    }
}

fn fill(
    node: &mut Node,
    level: u32,
    base: u64,
    blocks: Blocks,
    with: Fill,
    space: &Arc<Space>,
    effects: &mut Effects,
) {
    match (&*node, with) {
        (Node::Hole, Fill::Hole) | (Node::Zeros(_), Fill::Zeros) => return,
        _ => {}
    }
    if blocks.overlap(level, base) == span(level) {
        effects.mapped -= allocated(node, level) as i64;
        let new = match with {
            Fill::Hole => Node::Hole,
            Fill::Zeros => {
                effects.mapped += span(level) as i64;
                effects.created += span(level);
                Zeros::node(space, span(level))
            }
        };
        effects.garbage.push(std::mem::replace(node, new));
        return;
    }
    let children = children_of(node, &mut effects.garbage);
    for (slot, base) in blocks.children(level, base) {
        fill(
            &mut children[slot],
            level - 1,
            base,
            blocks,
            with,
            space,
            effects,
        );
    }
    if children.iter().all(|c| matches!(c, Node::Hole)) {
        *node = Node::Hole;
    }
}

struct Scan {
    within: Blocks,
    work: usize,
    runs: Vec<Run>,
    next: Option<u64>,
}

impl Scan {
    fn visit(&mut self, a: &Node, b: Option<&Node>, level: u32, base: u64) {
        if self.next.is_some() || self.within.overlap(level, base) == 0 {
            return;
        }
        if self.work == 0 {
            self.next = Some(base.max(self.within.first));
            return;
        }
        match (a, b) {
            (Node::Hole, None) => return,
            (Node::Zeros(_), None) => return self.found(level, base, true),
            (Node::Data(_), None) => return self.found(level, base, false),
            (a, Some(b)) if same(a, b) => return,
            (Node::Inner(_), _) | (_, Some(Node::Inner(_))) => self.work -= 1,
            (a, Some(b)) => {
                self.work -= 1;
                if bytes(a) != bytes(b) {
                    self.found(level, base, false);
                }
                return;
            }
        }
        for slot in 0..FAN {
            let base = base + slot as u64 * span(level - 1);
            self.visit(child(a, slot), b.map(|b| child(b, slot)), level - 1, base);
        }
    }

    fn found(&mut self, level: u32, base: u64, zeros: bool) {
        self.work = self.work.saturating_sub(1);
        let blocks = Blocks {
            first: base.max(self.within.first),
            end: (base + span(level)).min(self.within.end),
        };
        match self.runs.last_mut() {
            Some(last) if last.blocks.end == blocks.first && last.zeros == zeros => {
                last.blocks.end = blocks.end;
            }
            _ => self.runs.push(Run { blocks, zeros }),
        }
    }
}

/// Whether two nodes need no look inside to be known to read the same.
fn same(a: &Node, b: &Node) -> bool {
    match (a, b) {
        (Node::Inner(a), Node::Inner(b)) => Arc::ptr_eq(a, b),
        (Node::Data(a), Node::Data(b)) => Arc::ptr_eq(a, b),
        (Node::Hole | Node::Zeros(_), Node::Hole | Node::Zeros(_)) => true,
        _ => false,
    }
}

fn child(node: &Node, slot: usize) -> &Node {
    match node {
        Node::Inner(children) => &children[slot],
        // A scan only comes here to compare, and for that a zero is a hole.
        _ => &Node::Hole,
    }
}

/// The bytes of a block; none for a block of zeros.
fn bytes(node: &Node) -> Option<&[u8; BLOCK as usize]> {
    match node {
        Node::Data(block) if !is_zero(&block.bytes) => Some(&block.bytes),
        _ => None,
    }
}
