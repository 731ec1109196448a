//! Collections while others do everything that can be done, in pools of their own on one store.

use std::cell::RefCell;

use futures::future::join_all;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Write {
        volume: u8,
        from: u64,
        count: u64,
        flushes: u8,
    },
    Zero {
        volume: u8,
        from: u64,
        count: u64,
    },
    Snapshot {
        volume: u8,
    },
    /// Of the newest snapshot, whoever made it.
    Clone {
        volume: u8,
    },
    Copy {
        volume: u8,
        of: u8,
    },
    Revert {
        volume: u8,
    },
    Shrink {
        volume: u8,
        blocks: u64,
    },
    Delete {
        volume: u8,
    },
    DropSnapshot,
    Check {
        volume: u8,
    },
    Collect,
    /// Opens the newest snapshot for reading, and keeps it open.
    Hold,
    Look,
}

fn any_op() -> impl Strategy<Value = Op> {
    let volume = 0..3u8;
    let range = (0..BLOCKS, 1..BLOCKS).prop_map(|(from, n)| (from, n.min(BLOCKS - from)));
    prop_oneof![
        8 => (volume.clone(), range.clone(), 1..6u8).prop_map(|(volume, (from, count), flushes)| {
            Op::Write { volume, from, count, flushes }
        }),
        1 => (volume.clone(), range).prop_map(|(volume, (from, count))| {
            Op::Zero { volume, from, count }
        }),
        3 => volume.clone().prop_map(|volume| Op::Snapshot { volume }),
        3 => volume.clone().prop_map(|volume| Op::Clone { volume }),
        1 => (volume.clone(), volume.clone()).prop_map(|(volume, of)| Op::Copy { volume, of }),
        2 => volume.clone().prop_map(|volume| Op::Revert { volume }),
        1 => (volume.clone(), 1..BLOCKS).prop_map(|(volume, blocks)| Op::Shrink { volume, blocks }),
        1 => volume.clone().prop_map(|volume| Op::Delete { volume }),
        1 => Just(Op::DropSnapshot),
        3 => volume.prop_map(|volume| Op::Check { volume }),
        3 => Just(Op::Collect),
        1 => Just(Op::Hold),
        2 => Just(Op::Look),
    ]
}

/// Content by block.
type Content = Vec<u8>;

#[derive(Default)]
struct World {
    /// Name, which volume of whom it is of, and content.
    snapshots: Vec<(String, String, Content)>,
    made: u32,
}

struct Actor<'a> {
    who: u8,
    pool: Arc<ObjectPool>,
    volumes: BTreeMap<String, Content>,
    world: &'a RefCell<World>,
    tag: u8,
    held: Option<(Arc<dyn BlockDevice>, Content)>,
}

impl Actor<'_> {
    fn named(&self, volume: u8) -> String {
        format!("{}-{volume}", self.who)
    }

    async fn run(&mut self, op: &Op) {
        match op {
            Op::Write {
                volume,
                from,
                count,
                flushes,
            } => {
                self.write(*volume, *from, *count, *flushes).await;
            }
            Op::Zero {
                volume,
                from,
                count,
            } => {
                let volume = self.made(*volume).await;
                let device = writer(&self.pool, &volume).await;
                let size = device.size() / BLOCK;
                let (from, end) = (*from.min(&size), (from + count).min(size));
                let range = ByteRange::from_to(from * BLOCK, end * BLOCK);
                device.discard(range).await.expect("discard");
                device.flush().await.expect("flush");
                self.model(&volume)[from as usize..end as usize].fill(0);
            }
            Op::Snapshot { volume } => self.snapshot(*volume).await,
            Op::Clone { volume } => self.clone_newest(*volume).await,
            Op::Copy { volume, of } => {
                let (target, of) = (self.named(*volume), self.made(*of).await);
                if !self.volumes.contains_key(&target) {
                    let (from, to) = (name(&of), name(&target));
                    self.pool
                        .copy_volume(&from, &to, Default::default())
                        .await
                        .expect("copy");
                    let content = self.volumes[&of].clone();
                    self.volumes.insert(target, content);
                }
            }
            Op::Revert { volume } => self.revert(*volume).await,
            Op::Shrink { volume, blocks } => {
                let volume = self.made(*volume).await;
                let before = self.volumes[&volume].len() as u64;
                for size in [(*blocks).min(before), BLOCKS] {
                    let allow_shrink = true;
                    let size = ByteSize::new(size * BLOCK);
                    let options = ResizeOptions { size, allow_shrink };
                    self.pool
                        .resize_volume(&name(&volume), options)
                        .await
                        .expect("resize");
                    self.model(&volume)
                        .resize((size.bytes() / BLOCK) as usize, 0);
                }
            }
            Op::Delete { volume } => {
                let volume = self.named(*volume);
                self.pool
                    .delete_volume(&name(&volume))
                    .await
                    .expect("delete");
                self.volumes.remove(&volume);
            }
            Op::DropSnapshot => {
                let dropped = self.world.borrow_mut().snapshots.pop();
                if let Some((snapshot, ..)) = dropped {
                    // Others may be about to clone it.
                    match self.pool.delete_volume(&name(&snapshot)).await {
                        Ok(()) => {}
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error}"),
                    }
                }
            }
            Op::Check { volume } => {
                let volume = self.made(*volume).await;
                assert_eq!(
                    content(&self.pool, &volume).await,
                    self.volumes[&volume],
                    "{volume}"
                );
            }
            Op::Collect => {
                let collected = self.pool.collect_garbage().await;
                collected.expect("a collection");
            }
            Op::Hold => {
                let newest = self.world.borrow().snapshots.last().cloned();
                let Some((snapshot, _, content)) = newest else {
                    return;
                };
                let options = OpenOptions::read_only();
                match self.pool.open_volume(&name(&snapshot), options).await {
                    Ok(device) => self.held = Some((device, content)),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
                }
            }
            Op::Look => {
                if let Some((device, content)) = &self.held {
                    let read = device
                        .read_at(0, device.size() as usize)
                        .await
                        .expect("read");
                    let firsts: Vec<u8> = read.iter().step_by(BLOCK as usize).copied().collect();
                    assert_eq!(firsts, *content, "{}", device.name());
                }
            }
        }
    }

    fn model(&mut self, volume: &str) -> &mut Content {
        self.volumes.get_mut(volume).expect("it was made")
    }

    async fn made(&mut self, volume: u8) -> String {
        let volume = self.named(volume);
        if !self.volumes.contains_key(&volume) {
            create(&self.pool, &volume).await;
            self.volumes
                .insert(volume.clone(), vec![0; BLOCKS as usize]);
        }
        volume
    }

    async fn write(&mut self, volume: u8, from: u64, count: u64, flushes: u8) {
        let volume = self.made(volume).await;
        let device = writer(&self.pool, &volume).await;
        let size = device.size() / BLOCK;
        for _ in 0..flushes {
            self.tag = self.tag % 250 + 1;
            let blocks = from.min(size)..(from + count).min(size);
            fill(&*device, blocks.clone(), self.tag).await;
            let tag = self.tag;
            self.model(&volume)[blocks.start as usize..blocks.end as usize].fill(tag);
        }
    }

    async fn snapshot(&mut self, volume: u8) {
        let volume = self.made(volume).await;
        let snapshot = {
            let mut world = self.world.borrow_mut();
            world.made += 1;
            format!("s{}", world.made)
        };
        let (from, to) = (name(&volume), name(&snapshot));
        self.pool
            .snapshot_volume(&from, &to, Default::default())
            .await
            .expect("snapshot");
        let content = self.volumes[&volume].clone();
        self.world
            .borrow_mut()
            .snapshots
            .push((snapshot, volume, content));
    }

    async fn clone_newest(&mut self, volume: u8) {
        let volume = self.named(volume);
        let newest = self.world.borrow().snapshots.last().cloned();
        if let Some((snapshot, _, content)) = newest
            && !self.volumes.contains_key(&volume)
        {
            let (from, to) = (name(&snapshot), name(&volume));
            match self.pool.clone_volume(&from, &to, Default::default()).await {
                Ok(_) => {
                    self.volumes.insert(volume, content);
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
            }
        }
    }

    async fn revert(&mut self, volume: u8) {
        let volume = self.named(volume);
        let own = {
            let world = self.world.borrow();
            world
                .snapshots
                .iter()
                .rfind(|(_, of, _)| *of == volume)
                .cloned()
        };
        if let Some((snapshot, _, content)) = own
            && self.volumes.contains_key(&volume)
        {
            let (from, to) = (name(&snapshot), name(&volume));
            match self
                .pool
                .revert_volume(&to, &from, Default::default())
                .await
            {
                Ok(_) => {
                    self.volumes.insert(volume, content);
                }
                Err(error) => {
                    let kind = error.kind();
                    // Of an earlier volume of that name, or deleted meanwhile.
                    let gone = [ErrorKind::NotFound, ErrorKind::InvalidInput].contains(&kind);
                    assert!(gone, "{error}");
                }
            }
        }
    }
}

/// Everything, and that nothing is left once all of it is deleted.
async fn check_and_clear(store: &Arc<Rough>, actors: &[Actor<'_>], world: &RefCell<World>) {
    let fresh = pool(store).await;
    if fresh.look(OP).await.expect("the store works").is_none() {
        return;
    }
    collect(&fresh).await;
    let snapshots = world.borrow().snapshots.clone();
    let of_actors = actors.iter().flat_map(|actor| actor.volumes.clone());
    let all = of_actors.chain(
        snapshots
            .into_iter()
            .map(|(name, _, content)| (name, content)),
    );
    let all: Vec<(String, Content)> = all.collect();
    for (volume, expected) in &all {
        assert_eq!(content(&fresh, volume).await, *expected, "{volume}");
    }
    let ready = ready(&fresh).await;
    let names: Vec<_> = ready
        .catalog
        .read(|state| state.iter().map(|e| e.name.clone()).collect());
    for volume in names {
        fresh.delete_volume(&volume).await.expect("delete");
    }
    collect(&fresh).await;
    assert_eq!(objects(store).await, []);
    // Of logs nothing is left but what fences writers that were not seen to end.
    for name in everything(store).await.keys() {
        if let Ok(Named::Manifest(log, number)) = name.parse() {
            let manifest = ready
                .shared
                .manifest(OP, log, number)
                .await
                .expect("the store works");
            assert!(manifest.is_some_and(|m| m.is_claim() && m.fences), "{name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn nothing_that_is_needed_is_ever_deleted(
        seed in any::<u64>(),
        ops in vec(vec(any_op(), 5..40), 3),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let store = Rough::new(seed);
            let world = RefCell::new(World::default());
            let (store_of, world_of) = (&store, &world);
            let actors = (0..3u8).map(|who| async move {
                let pool = pool(store_of).await;
                let (volumes, world, tag) = (BTreeMap::new(), world_of, who * 80);
                let held = None;
                Actor { who, pool, volumes, world, tag, held }
            });
            let mut actors = join_all(actors).await;
            create(&actors[0].pool, "first").await;
            store.slow.store(true, Relaxed);
            join_all(actors.iter_mut().zip(&ops).map(|(actor, ops)| async move {
                for op in ops {
                    actor.run(op).await;
                }
            }))
            .await;
            store.slow.store(false, Relaxed);
            for actor in &mut actors {
                actor.held = None;
            }
            settle().await;
            check_and_clear(&store, &actors, &world).await;
        });
    }
}
