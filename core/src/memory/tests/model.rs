//! Random sequences of operations against a plain vector of bytes.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Not a whole number of blocks, and more than one node of the tree.
const SIZE: u64 = 130 * BLOCK + 512;

#[derive(Clone, Debug)]
enum Op {
    Read(u64, u64),
    Write(u64, u64, u8),
    Discard(u64, u64),
    Zero(u64, u64, bool),
    Resize(u64),
    Snapshot,
    Revert(usize),
    Delete(usize),
    Changed(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let range = || (0..SIZE, prop_oneof![0..SIZE, 0..3 * BLOCK]);
    let op = prop_oneof![
        4 => (range(), 0..3u8).prop_map(|((offset, length), byte)| Op::Write(offset, length, byte)),
        1 => range().prop_map(|(offset, length)| Op::Read(offset, length)),
        2 => range().prop_map(|(offset, length)| Op::Discard(offset, length)),
        2 => (range(), any::<bool>()).prop_map(|((offset, length), free)| {
            Op::Zero(offset, length, free)
        }),
        1 => (1..=SIZE / 512).prop_map(|sectors| Op::Resize(sectors * 512)),
        1 => Just(Op::Snapshot),
        1 => any::<usize>().prop_map(Op::Revert),
        1 => any::<usize>().prop_map(Op::Delete),
        1 => any::<usize>().prop_map(Op::Changed),
    ];
    proptest::collection::vec(op, 1..40)
}

#[derive(Clone, Debug)]
struct Image {
    bytes: Vec<u8>,
    allocated: BTreeSet<u64>,
}

impl Image {
    fn block(&self, block: u64) -> [u8; BLOCK as usize] {
        let mut bytes = [0; BLOCK as usize];
        let from = self.bytes.len().min((block * BLOCK) as usize);
        let to = self.bytes.len().min((block * BLOCK + BLOCK) as usize);
        bytes[..to - from].copy_from_slice(&self.bytes[from..to]);
        bytes
    }

    fn write(&mut self, offset: u64, length: u64, byte: u8) {
        self.bytes[offset as usize..(offset + length) as usize].fill(byte);
        if length > 0 {
            let blocks = offset / BLOCK..(offset + length).div_ceil(BLOCK);
            self.allocated.extend(blocks);
        }
    }

    fn free(&mut self, offset: u64, length: u64) {
        let size = self.bytes.len() as u64;
        self.bytes[offset as usize..(offset + length) as usize].fill(0);
        if length > 0 {
            let end = offset + length;
            self.allocated.retain(|block| {
                let (from, to) = (block * BLOCK, (block * BLOCK + BLOCK).min(size));
                !(offset <= from && to <= end)
            });
        }
    }

    fn resize(&mut self, size: u64) {
        self.bytes.resize(size as usize, 0);
        self.allocated.retain(|block| block * BLOCK < size);
    }

    fn extents(&self, blocks: impl Iterator<Item = u64>) -> Vec<ByteRange> {
        let mut extents: Vec<ByteRange> = Vec::new();
        for block in blocks {
            let size = self.bytes.len() as u64;
            let extent = ByteRange::from_to(block * BLOCK, (block * BLOCK + BLOCK).min(size));
            match extents.last_mut() {
                Some(last) if last.end() == extent.offset => last.length += extent.length,
                _ => extents.push(extent),
            }
        }
        extents
    }
}

struct Run {
    pool: Arc<MemoryPool>,
    image: Image,
    snapshots: Vec<(VolumeName, Image)>,
    made: usize,
}

impl Run {
    fn cut(&self, offset: u64, length: u64) -> (u64, u64) {
        let size = self.image.bytes.len() as u64;
        let offset = offset.min(size);
        (offset, length.min(size - offset))
    }

    async fn step(&mut self, op: Op) {
        let volume = name("a");
        match op {
            Op::Read(offset, length) => {
                let (offset, length) = self.cut(offset, length);
                let device = open(&self.pool, "a").await;
                let data = device.read_at(offset, length as usize).await;
                let range = offset as usize..(offset + length) as usize;
                assert!(data.expect("read") == self.image.bytes[range]);
            }
            Op::Write(offset, length, byte) => {
                let (offset, length) = self.cut(offset, length);
                let data = vec![byte; length as usize];
                let device = open(&self.pool, "a").await;
                device.write_at(offset, data.into()).await.expect("write");
                self.image.write(offset, length, byte);
            }
            Op::Discard(offset, length) => {
                let (offset, length) = self.cut(offset, length);
                let device = open(&self.pool, "a").await;
                let range = ByteRange::new(offset, length);
                device.discard(range).await.expect("discard");
                self.image.free(offset, length);
            }
            Op::Zero(offset, length, may_discard) => {
                let (offset, length) = self.cut(offset, length);
                let range = ByteRange::new(offset, length);
                let device = open(&self.pool, "a").await;
                let options = ZeroOptions {
                    may_discard,
                    fast_only: true,
                };
                device.write_zeroes(range, options).await.expect("zero");
                if may_discard {
                    self.image.free(offset, length);
                } else {
                    self.image.write(offset, length, 0);
                }
            }
            Op::Resize(size) => {
                let options = ResizeOptions {
                    size: ByteSize::new(size),
                    allow_shrink: true,
                };
                let resized = self.pool.resize_volume(&volume, options).await;
                resized.expect("resize");
                self.image.resize(size);
            }
            Op::Snapshot => {
                self.made += 1;
                let to = format!("s{}", self.made);
                snapshot(&self.pool, "a", &to).await;
                self.snapshots.push((name(&to), self.image.clone()));
            }
            Op::Revert(pick) if !self.snapshots.is_empty() => {
                let (snapshot, image) = &self.snapshots[pick % self.snapshots.len()];
                let options = RevertOptions::default();
                let reverted = self.pool.revert_volume(&volume, snapshot, options).await;
                reverted.expect("revert");
                self.image = image.clone();
            }
            Op::Delete(pick) if !self.snapshots.is_empty() => {
                let (snapshot, image) = self.snapshots.swap_remove(pick % self.snapshots.len());
                self.check_volume(&snapshot, &image).await;
                self.pool.delete_volume(&snapshot).await.expect("delete");
            }
            Op::Changed(pick) if !self.snapshots.is_empty() => {
                let (snapshot, old) = &self.snapshots[pick % self.snapshots.len()];
                self.check_changed(snapshot, old).await;
            }
            Op::Revert(_) | Op::Delete(_) | Op::Changed(_) => {}
        }
    }

    async fn check_changed(&self, snapshot: &VolumeName, old: &Image) {
        let query = ExtentQuery::changed_since(snapshot.clone());
        let changed = self.pool.extents(&name("a"), query).await.expect("extents");
        let blocks = (0..(self.image.bytes.len() as u64).div_ceil(BLOCK)).filter(|&block| {
            // What lies past the end of the queried volume is no difference to it.
            let end = self
                .image
                .bytes
                .len()
                .min((block as usize + 1) * BLOCK as usize);
            let held = end - block as usize * BLOCK as usize;
            let (now, then) = (self.image.block(block), old.block(block));
            now[..held] != then[..held]
        });
        assert_eq!(
            changed.collect_joined().await.expect("extents"),
            self.image.extents(blocks)
        );
    }

    async fn check(&self) {
        self.check_volume(&name("a"), &self.image).await;
    }

    async fn check_all(&self) {
        self.check().await;
        for (name, image) in &self.snapshots {
            self.check_volume(name, image).await;
        }
    }

    async fn check_volume(&self, name: &VolumeName, image: &Image) {
        let device = self.pool.open_volume(name, OpenOptions::read_only()).await;
        let device = device.expect("open");
        let size = device.size();
        assert_eq!(size, image.bytes.len() as u64);
        let bytes = device.read_at(0, size as usize).await.expect("read");
        assert!(bytes == image.bytes, "{name} does not read as it should");
        let extents = device.extents(ByteRange::new(0, size)).await;
        let extents = extents.expect("extents").collect_joined().await;
        let expected = image.extents(image.allocated.iter().copied());
        assert_eq!(extents.expect("extents"), expected);
    }
}

async fn run(ops: Vec<Op>, thick: bool) {
    let size = ByteSize::new(SIZE);
    let options = if thick {
        CreateOptions::thick(size)
    } else {
        CreateOptions::thin(size)
    };
    let pool = MemoryPool::unlimited();
    let made = pool.create_volume(&name("a"), options).await;
    made.expect("create");
    let mut run = Run {
        pool: pool.clone(),
        image: Image {
            bytes: vec![0; SIZE as usize],
            allocated: BTreeSet::new(),
        },
        snapshots: Vec::new(),
        made: 0,
    };
    for op in ops {
        run.step(op).await;
        run.check().await;
    }
    run.check_all().await;
    // What is counted is what is there: alone, a volume is all that is used.
    for (snapshot, _) in run.snapshots {
        pool.delete_volume(&snapshot).await.expect("delete");
    }
    let volume = pool.volume(&name("a")).await.expect("volume");
    let expected = if thick {
        volume.virtual_size.bytes().div_ceil(BLOCK)
    } else {
        run.image.allocated.len() as u64
    };
    assert_eq!(used(&pool).await, expected);
    assert_eq!(volume.allocated, Some(ByteSize::new(expected * BLOCK)));
    assert_eq!(volume.exclusive, volume.allocated);
    pool.delete_volume(&name("a")).await.expect("delete");
    assert_eq!(used(&pool).await, 0);
    assert_eq!(
        pool.usage().await.expect("usage").provisioned,
        ByteSize::ZERO
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn behaves_like_a_vector_of_bytes(ops in ops(), thick in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(run(ops, thick));
    }
}
