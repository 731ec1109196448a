//! Taking a volume from a writer that holds it, dead or alive.
//!
//! A server goes on taking writes into a file that somebody has open, whatever locks say by then. So
//! the volume gets another file, with what the old one holds, and whatever the old writer still writes
//! goes to a file that nobody has any more. It learns of that by its next flush at the latest: each
//! flush looks, after it made everything durable, whether the volume's epoch is still the one that the
//! handle was opened in. The epoch is raised before the old file is copied. So of a flush that
//! succeeded the copy holds everything, and one that came too late fails. Until the volume has its new
//! file the epoch is odd, and nobody opens the volume for writing.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;
use volmux_core::{
    Access, ByteRange, ByteSize, Error, ErrorKind, Provisioning, Result, Sharing, SpaceRequest,
    VolumeName,
};

use crate::chain;
use crate::content::Content;
use crate::handle::Open;
use crate::inner::Inner;
use crate::inuse;
use crate::layout::{PoolDirs, file_error};
use crate::lifecycle::check_not_snapshot;
use crate::node::Node;
use crate::queue::Stop;
use crate::record::VolumeRecord;
use crate::staged::StagedData;
use crate::sys;

impl Inner {
    /// Takes a volume from whoever has it open for writing or attached.
    pub fn take_over(&self, op: &'static str, name: &VolumeName, stop: &Stop) -> Result<()> {
        self.check_writable(op)?;
        let Some(marked) = self.begin_taking(op, name)? else {
            return Ok(());
        };
        let moved = self.move_to_new_file(op, name, &marked, stop);
        if moved.is_err()
            && let Err(error) = self.give_up_taking(op, name, &marked)
        {
            tracing::warn!(volume = %name, %error, "it can be opened only by taking it over again");
        }
        moved
    }

    /// `Busy` while somebody takes the volume over: what is written now would not be in the copy.
    pub fn check_not_being_taken(&self, op: &'static str, record: &VolumeRecord) -> Result<()> {
        if record.is_being_taken() {
            return Err(Error::new(ErrorKind::Busy, op)
                .reason("somebody is taking the volume over, or was when he died")
                .help("try again later; if nobody does any more, take it over"));
        }
        Ok(())
    }

    /// Has every later flush of who holds the volume fail. `None` if nobody holds it.
    fn begin_taking(&self, op: &'static str, name: &VolumeName) -> Result<Option<VolumeRecord>> {
        let pool = self.pool(op)?;
        let (_locks, moves) = (pool.lock_names(&[name], op)?, pool.lock_move(op)?);
        let (_, mut record, file) = self.get_data(op, name, OFlags::RDWR)?;
        check_not_snapshot(op, &record, "taken over")?;
        let failed = |error| self.data_error(op, error);
        let published = |error| file_error(op, self.layout.full("volumes"), error);
        let writable = |file: &File| inuse::lock_for(file, Access::ReadWrite, Sharing::Exclusive);
        if record.attachments.is_empty() && self.lock(op, &file, writable)? {
            if record.is_being_taken() {
                // Who did that died, and so did who held it.
                record.set_epoch(record.epoch + 1);
                pool.publish_over(name, &record, None, &moves)
                    .map_err(published)?;
            }
            return Ok(None);
        }
        let occupied = file.metadata().map_err(failed)?.blocks() * 512;
        let request = SpaceRequest {
            provisioned: ByteSize::ZERO,
            reserved: match self.abilities.clone {
                true => ByteSize::ZERO,
                false => ByteSize::new(occupied),
            },
        };
        drop(self.admit(op, pool, request)?);
        let next = if record.is_being_taken() { 2 } else { 1 };
        record.set_epoch(record.epoch + next);
        pool.publish_over(name, &record, None, &moves)
            .map_err(published)?;
        for open in self.open_volumes.handles(record.id) {
            open.fence();
        }
        Ok(Some(record))
    }

    /// Gives the volume another file with what the present one holds now. No locks are held through
    /// the copy: nobody opens the volume for writing meanwhile, for its epoch says so.
    fn move_to_new_file(
        &self,
        op: &'static str,
        name: &VolumeName,
        marked: &VolumeRecord,
        stop: &Stop,
    ) -> Result<()> {
        let pool = self.pool(op)?;
        // What the copy names as the file below it stays, though who held it may be dead by now.
        let below = chain::hold_below(pool, marked.data);
        let copied = below
            .map_err(|error| self.chain_error(op, error))
            .and_then(|below| Ok((self.stage_copy(op, pool, marked, stop)?, below)));
        let (_locks, moves) = (pool.lock_names(&[name], op)?, pool.lock_move(op)?);
        let (_, mut record) = self.get(op, name)?;
        if record != *marked {
            return Err(Error::new(ErrorKind::Busy, op)
                .reason("the volume was changed, or taken over by another one, meanwhile")
                .help("see who has it now; take it over again if that is meant"));
        }
        let (mut data, _below) = copied?;
        let old = record.data;
        record.set_data(data.node);
        record.set_epoch(record.epoch + 1);
        record.adopted_from = None;
        // They had the old file.
        let attachments = std::mem::take(&mut record.attachments);
        pool.publish_over(name, &record, Some(&mut data), &moves)
            .map_err(|error| file_error(op, self.layout.full("volumes"), error))?;
        for attachment in attachments {
            self.release(record.id, &attachment.holder);
        }
        if let Err(error) = pool.remove_data(old) {
            tracing::warn!(volume = %name, data = %old, %error, "data file left behind");
        }
        Ok(())
    }

    /// A copy of the volume's top file, which others may be writing.
    fn stage_copy(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        record: &VolumeRecord,
        stop: &Stop,
    ) -> Result<StagedData> {
        let failed = |error| self.data_error(op, error);
        let node = record.data;
        // Opened only now, past what this host remembers of it from before.
        let file = self.open_data(op, pool, record, OFlags::RDONLY)?;
        let data = StagedData::create(&pool.data, node.format).map_err(failed)?;
        if self.abilities.clone {
            sys::clone_file(&file, data.file()).map_err(failed)?;
        } else {
            // Of a raw file any mixture is one that a power cut could have left. Of an image the tables
            // are taken as they were before the copy: all that they point to was there then.
            let tables = chain::tables(node, &file).map_err(|error| self.chain_error(op, error))?;
            let length = file.metadata().map_err(failed)?.len();
            let content = Content::raw(Node::raw(node.id), file, length);
            self.copy_data(op, &content, data.file(), ByteSize::new(length), stop)?;
            for (offset, table) in tables {
                data.file().write_all_at(&table, offset).map_err(failed)?;
            }
        }
        if node.is_qcow2() {
            // As after a power cut: its reference counts are made anew.
            chain::set_dirty(data.file(), true).map_err(failed)?;
        } else if record.provisioning == Provisioning::Thick {
            let whole = ByteRange::new(0, record.virtual_size.bytes());
            sys::reserve(data.file(), whole).map_err(failed)?;
        }
        Ok(data)
    }

    /// Lets the volume be opened again, with the file that it has. Who held it is told all the same.
    fn give_up_taking(
        &self,
        op: &'static str,
        name: &VolumeName,
        marked: &VolumeRecord,
    ) -> Result<()> {
        let pool = self.pool(op)?;
        let (_locks, moves) = (pool.lock_names(&[name], op)?, pool.lock_move(op)?);
        // It may have been made larger meanwhile.
        let same = |now: &VolumeRecord| (now.id, now.epoch) == (marked.id, marked.epoch);
        let Some(mut record) = self.find(op, name)?.filter(same) else {
            return Ok(());
        };
        record.set_epoch(record.epoch + 1);
        pool.publish_over(name, &record, None, &moves)
            .map_err(|error| file_error(op, self.layout.full("volumes"), error))
    }

    /// Fails with `Fenced` if the volume was taken from this handle. For after a flush.
    pub fn check_epoch(&self, op: &'static str, open: &Open) -> Result<()> {
        let pool = self.pool(op)?;
        let called = open.called();
        pool.look_again()
            .map_err(|e| file_error(op, self.layout.full("volumes"), e))?;
        if open.stamp_is_known(pool.stamp(&called)) {
            return Ok(());
        }
        let now = std::time::SystemTime::now();
        let stamp = pool.stamp(&called);
        let record = match self.find(op, &called)? {
            Some(record) if record.id == open.id => record,
            _ => {
                let (name, record) = self.find_renamed(op, pool, open.id)?;
                open.seen_as(name);
                record
            }
        };
        if record.epoch != open.epoch {
            open.fence();
            return Err(fenced(op));
        }
        open.know_stamp(stamp.filter(|stamp| stamp.is_settled(now)));
        Ok(())
    }
}

/// The error of a writer whose volume was taken.
pub fn fenced(op: &'static str) -> Error {
    Error::new(ErrorKind::Fenced, op)
        .reason("another writer has taken the volume over")
        .help("stop using it here; what was flushed before is in the volume")
}

impl Open {
    /// Has all later requests fail.
    pub fn fence(&self) {
        self.fenced.store(true, Ordering::Release);
    }

    /// Whether the volume was taken from this handle, as far as it knows.
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use tempfile::TempDir;
    use tokio::runtime::Handle;
    use volmux_core::{
        AttachOptions, AuditOptions, BlockDevice, Control, CreateOptions, Holder, OpenOptions,
        Pool, ResizeOptions,
    };

    use super::*;
    use crate::queue::run;
    use crate::{DirConfig, DirPool};

    const OP: &str = "open_volume";
    const MIB: u64 = 1 << 20;

    fn n(name: &str) -> VolumeName {
        VolumeName::new(name).expect("a good name")
    }

    async fn pool(path: &Path) -> DirPool {
        let opened = DirPool::opened(DirConfig::new(path), None, None).await;
        opened.expect("open")
    }

    async fn on<T: Send + 'static>(
        pool: &DirPool,
        control: Control,
        work: impl FnOnce(&Inner, &Stop) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = pool.0.clone();
        run(OP, control, move |stop| work(&inner, &stop)).await
    }

    async fn begin(pool: &DirPool) -> VolumeRecord {
        let begun = on(pool, Control::new(), |inner, _| {
            inner.begin_taking(OP, &n("a"))
        });
        begun.await.expect("begin").expect("somebody holds it")
    }

    async fn move_over(pool: &DirPool, marked: &VolumeRecord, control: Control) -> Result<()> {
        let marked = marked.clone();
        let moved = on(pool, control, move |inner, stop| {
            inner.move_to_new_file(OP, &n("a"), &marked, stop)
        });
        moved.await
    }

    async fn give_up(pool: &DirPool, marked: &VolumeRecord) {
        let marked = marked.clone();
        let given_up = on(pool, Control::new(), move |inner, _| {
            inner.give_up_taking(OP, &n("a"), &marked)
        });
        given_up.await.expect("give up");
    }

    async fn write(device: &Arc<dyn BlockDevice>, offset: u64, byte: u8) {
        let data = Bytes::from(vec![byte; 4096]);
        device.write_at(offset, data).await.expect("write");
    }

    fn assert_kind<T>(result: Result<T>, kind: ErrorKind) {
        let error = result.err().expect("refused");
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.get("help").is_some(), "{error:?}");
    }

    /// A pool with volume `a`, of one file or a chain of three, that is open for writing, and a pool
    /// object to take it with.
    struct Scene {
        own: DirPool,
        device: Option<Arc<dyn BlockDevice>>,
        taker: DirPool,
        dir: TempDir,
    }

    impl Scene {
        async fn new(chain: bool) -> Scene {
            // Files in memory never share blocks: they are copied, and snapshots are chains.
            let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
            let own = pool(dir.path()).await;
            let options = CreateOptions::thin(ByteSize::new(MIB));
            own.create_volume(&n("a"), options).await.expect("create");
            for i in 0..3 {
                let device = own.open_volume(&n("a"), OpenOptions::read_write()).await;
                let device = device.expect("open");
                write(&device, i * 4096, 1).await;
                device.flush().await.expect("flush");
                drop(device);
                if chain && i < 2 {
                    let (a, snapshot) = (n("a"), n(&format!("s{i}")));
                    let made = own.snapshot_volume(&a, &snapshot, Default::default());
                    made.await.expect("snapshot");
                    own.delete_volume(&snapshot).await.expect("delete");
                }
            }
            let device = own.open_volume(&n("a"), OpenOptions::read_write()).await;
            Scene {
                device: Some(device.expect("open")),
                taker: pool(dir.path()).await,
                own,
                dir,
            }
        }

        fn held(&self) -> &Arc<dyn BlockDevice> {
            self.device.as_ref().expect("not closed yet")
        }

        /// Who holds it goes.
        fn close(&mut self) {
            self.device = None;
            self.own.0.open_volumes.wait_all_closed();
        }

        /// Another process.
        async fn other(&self) -> DirPool {
            pool(self.dir.path()).await
        }

        async fn open(&self) -> Result<Arc<dyn BlockDevice>> {
            let other = self.other().await;
            other.open_volume(&n("a"), OpenOptions::read_write()).await
        }

        /// All that was flushed is there, the volume can be written, and the pool is in order.
        async fn assert_whole(&self) {
            let other = self.other().await;
            let device = other.open_volume(&n("a"), OpenOptions::read_write()).await;
            let device = device.expect("open");
            let found = device.read_at(0, 12288).await.expect("read");
            assert!(found.iter().all(|byte| *byte == 1));
            write(&device, 12288, 2).await;
            device.flush().await.expect("flush");
            drop(device);
            other.0.open_volumes.wait_all_closed();
            let report = other.audit(AuditOptions { repair: false }).await;
            let report = report.expect("audit");
            assert!(report.is_clean(), "{report:?}");
            let record = other.0.find(OP, &n("a")).expect("the record");
            assert!(!record.expect("the volume").is_being_taken());
        }
    }

    #[tokio::test]
    async fn nobody_writes_to_what_is_being_taken() {
        for chain in [false, true] {
            let mut scene = Scene::new(chain).await;
            let marked = begin(&scene.taker).await;
            assert!(marked.is_being_taken());
            assert_kind(scene.held().flush().await, ErrorKind::Fenced);
            scene.close();
            assert_kind(scene.open().await, ErrorKind::Busy);
            let (other, a) = (scene.other().await, n("a"));
            let reader = other.open_volume(&a, OpenOptions::read_only()).await;
            let found = reader.expect("open").read_at(0, 12288).await;
            assert!(found.expect("read").iter().all(|byte| *byte == 1));
            let options = AttachOptions {
                holder: Holder::new("host-1").expect("a holder"),
                access: Access::ReadWrite,
                sharing: Sharing::Exclusive,
            };
            assert_kind(other.attach_volume(&a, options).await, ErrorKind::Busy);
            assert_kind(other.rename_volume(&a, &n("b")).await, ErrorKind::Busy);
            let shrink = ResizeOptions {
                size: ByteSize::new(MIB / 2),
                allow_shrink: true,
            };
            assert_kind(other.resize_volume(&a, shrink).await, ErrorKind::Busy);
            let s = n("s");
            let snapshot = other.snapshot_volume(&a, &s, Default::default());
            assert_kind(snapshot.await, ErrorKind::Busy);
            if chain {
                let flat = other.flatten_volume(&a, Default::default()).await;
                assert_kind(flat, ErrorKind::Busy);
            }
            let moved = move_over(&scene.taker, &marked, Control::new()).await;
            moved.expect("move");
            scene.assert_whole().await;
        }
    }

    #[tokio::test]
    async fn what_is_given_up_can_be_opened_again() {
        let mut scene = Scene::new(false).await;
        let marked = begin(&scene.taker).await;
        let grown = ResizeOptions::grow(ByteSize::new(2 * MIB));
        let grown = scene.other().await.resize_volume(&n("a"), grown).await;
        grown.expect("grow");
        let moved = move_over(&scene.taker, &marked, Control::new()).await;
        assert_kind(moved, ErrorKind::Busy);
        give_up(&scene.taker, &marked).await;
        assert_kind(scene.held().flush().await, ErrorKind::Fenced);
        assert_kind(scene.open().await, ErrorKind::Busy);
        scene.close();
        scene.assert_whole().await;
    }

    #[tokio::test]
    async fn who_dies_while_he_takes_it_is_followed_by_another() {
        for (chain, held) in [(false, true), (false, false), (true, true), (true, false)] {
            let mut scene = Scene::new(chain).await;
            let dead = begin(&scene.taker).await;
            if !held {
                scene.close();
            }
            let other = scene.other().await;
            let taken = on(&other, Control::new(), |inner, stop| {
                inner.take_over(OP, &n("a"), stop)
            });
            taken.await.expect("take over");
            if held {
                assert_kind(scene.held().flush().await, ErrorKind::Fenced);
            }
            // Should he have been slow, not dead, he finds that he is no longer the one.
            let moved = move_over(&scene.taker, &dead, Control::new()).await;
            assert_kind(moved, ErrorKind::Busy);
            give_up(&scene.taker, &dead).await;
            scene.assert_whole().await;
            scene.close();
            scene.assert_whole().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_files_below_stay_while_the_top_is_copied() {
        let mut scene = Scene::new(true).await;
        let marked = begin(&scene.taker).await;
        scene.close();
        let (other, collected) = (scene.other().await, Arc::new(Mutex::new(Vec::new())));
        let (runtime, seen) = (Handle::current(), collected.clone());
        let control = Control::new().with_progress(move |_| {
            let found = runtime.block_on(other.collect_garbage());
            let found = found.expect("a collection beside it");
            seen.lock().expect("no panic").push(found.objects);
        });
        let moved = move_over(&scene.taker, &marked, control).await;
        moved.expect("move");
        let seen = std::mem::take(&mut *collected.lock().expect("no panic"));
        assert!(!seen.is_empty());
        assert!(seen.iter().all(|objects| *objects == 0), "{seen:?}");
        scene.assert_whole().await;
        let collected = scene.other().await.collect_garbage().await;
        assert_eq!(collected.expect("collect").objects, 2);
        scene.assert_whole().await;
    }
}
