//! The size of an open volume in the store, where another process may have changed it, or renamed
//! the volume.

use volmux_core::{Error, ErrorKind, Result, VolumeId, VolumeName};

use crate::fence::fenced;
use crate::handle::{Data, Open};
use crate::inner::Inner;
use crate::layout::{PoolDirs, file_error};
use crate::list::volume_of;
use crate::record::VolumeRecord;
use crate::sys;

const OP: &str = "refresh";

impl Inner {
    /// What an open volume is called now and its size, at least `before`. It was last seen under
    /// the name `called`.
    pub fn size_now(
        &self,
        open: &Open,
        called: VolumeName,
        before: u64,
    ) -> Result<(VolumeName, u64)> {
        let pool = self.pool(OP)?;
        let (name, record) = match self.find(OP, &called) {
            Ok(Some(record)) if record.id == open.id => (called, record),
            _ => self.find_renamed(OP, pool, open.id)?,
        };
        let size = record.virtual_size.bytes();
        let data = open.data();
        let length = match &data {
            Data::Chain(image) => image.size(),
            Data::Raw(_, file) => {
                if self.abilities.remote {
                    let looked = sys::look_again(&***file);
                    looked.map_err(|e| file_error(OP, self.layout.full("data"), e))?;
                }
                let metadata = file.metadata();
                let metadata = metadata.map_err(|e| file_error(OP, self.layout.full("data"), e))?;
                metadata.len()
            }
        };
        if open.writes() && record.epoch != open.epoch {
            open.fence();
            return Err(fenced(OP));
        }
        // None of this can happen while the volume is locked, so somebody did not heed the lock.
        if record.data != data.node() {
            return Err(Error::new(ErrorKind::Fenced, OP)
                .reason("the volume was reverted while it was open here")
                .help(
                    "open it again; find out why its locks did not hold (see fcntl_locking(2))",
                ));
        }
        if size < before || length < size {
            return Err(Error::new(ErrorKind::Corrupt, OP)
                .with("size", before)
                .with("recorded_size", size)
                .with("file_size", length)
                .reason("the volume was shrunk while it was open here")
                .help("restore it from a snapshot or a backup"));
        }
        if size > before {
            // Who made it larger may have been killed before that was durable, and what is written
            // past the old end from now on must not be lost with it.
            let settled = pool.settle();
            settled.map_err(|e| file_error(OP, self.layout.full("volumes"), e))?;
        }
        Ok((name, size))
    }

    /// The record of the volume `id`, whatever it is called.
    pub fn find_renamed(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        id: VolumeId,
    ) -> Result<(VolumeName, VolumeRecord)> {
        if let Ok(Some(found)) = self.search(pool, id) {
            return Ok(found);
        }
        // It may have been renamed past the search. Who may only read can but look again.
        let _moves = match self.read_only {
            false => Some(pool.lock_moves(op)?),
            true => None,
        };
        self.search(pool, id)?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, op).reason("the volume is no longer in the pool")
        })
    }

    /// A record that can't be read is an error only where no other is the one.
    fn search(&self, pool: &PoolDirs, id: VolumeId) -> Result<Option<(VolumeName, VolumeRecord)>> {
        let failed = |error| file_error(OP, self.layout.full("volumes"), error);
        let mut unreadable = None;
        for entry in pool.record_dir().map_err(failed)? {
            let entry = entry.map_err(|errno| failed(errno.into()))?;
            let Some(name) = volume_of(entry.file_name()) else {
                continue;
            };
            match self.find(OP, &name) {
                Ok(Some(record)) if record.id == id => return Ok(Some((name, record))),
                Ok(_) => {}
                Err(error) => unreadable = Some(error),
            }
        }
        unreadable.map_or(Ok(None), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tempfile::TempDir;
    use volmux_core::{
        BlockDevice, ByteSize, CreateOptions, ErrorKind, OpenOptions, Pool, ResizeOptions,
    };

    use super::*;
    use crate::node::Node;
    use crate::record::{decode, encode};
    use crate::{DirConfig, DirPool};

    const MIB: u64 = 1 << 20;

    fn n(name: &str) -> VolumeName {
        VolumeName::new(name).expect("a good name")
    }

    async fn pool(path: &Path) -> Arc<dyn Pool> {
        DirPool::open(DirConfig::new(path)).await.expect("open")
    }

    /// A pool with volume `a`, open for writing through another pool object.
    struct Scene {
        dir: TempDir,
        other: Arc<dyn Pool>,
        device: Arc<dyn BlockDevice>,
    }

    impl Scene {
        async fn new() -> Scene {
            let dir = tempfile::tempdir().expect("a directory");
            let own = pool(dir.path()).await;
            let options = CreateOptions::thin(ByteSize::new(MIB));
            own.create_volume(&n("a"), options).await.expect("create");
            let device = own.open_volume(&n("a"), OpenOptions::read_write()).await;
            Scene {
                other: pool(dir.path()).await,
                device: device.expect("open"),
                dir,
            }
        }

        fn record_path(&self, name: &str) -> PathBuf {
            self.dir.path().join(format!("volumes/{name}.json"))
        }

        fn record(&self) -> VolumeRecord {
            let bytes = std::fs::read(self.record_path("a")).expect("the record");
            decode(&bytes).expect("a good record")
        }

        fn write_record(&self, record: &VolumeRecord) {
            std::fs::write(self.record_path("a"), encode(record)).expect("write the record");
        }

        fn set_data_length(&self, length: u64) {
            let path = self.dir.path().join("data");
            let path = path.join(self.record().data.to_string());
            let file = std::fs::OpenOptions::new().write(true).open(path);
            file.expect("the data file")
                .set_len(length)
                .expect("length");
        }

        async fn grow(&self, name: &str, size: u64) {
            let options = ResizeOptions::grow(ByteSize::new(size));
            let grown = self.other.resize_volume(&n(name), options).await;
            grown.expect("grow");
        }

        async fn refused(&self, kind: ErrorKind) {
            let error = self.device.refresh().await.expect_err("refused");
            assert_eq!((error.kind(), error.op()), (kind, OP), "{error:?}");
            assert_eq!(error.get("volume"), Some("a"), "{error:?}");
            assert_eq!(self.device.size(), MIB, "as before");
        }
    }

    #[tokio::test]
    async fn half_of_a_resize_does_not_show() {
        let scene = Scene::new().await;
        // A grow that was killed has made the file longer, and nothing else.
        scene.set_data_length(3 * MIB);
        assert_eq!(scene.device.refresh().await.expect("refresh"), MIB);
        let past = scene.device.read_at(MIB, 1).await;
        assert_eq!(
            past.expect_err("past the end").kind(),
            ErrorKind::InvalidInput
        );
        scene.grow("a", 2 * MIB).await;
        assert_eq!(scene.device.size(), MIB, "not looked up yet");
        assert_eq!(scene.device.refresh().await.expect("refresh"), 2 * MIB);
        let end = scene.device.read_at(2 * MIB - 1, 1).await;
        assert_eq!(end.expect("the new part"), &[0][..]);
        // As after a grow that the other process undid because the disk was full.
        scene.set_data_length(3 * MIB);
        scene.set_data_length(2 * MIB);
        assert_eq!(scene.device.refresh().await.expect("refresh"), 2 * MIB);
    }

    #[tokio::test]
    async fn a_size_below_the_one_shown_is_refused() {
        let scene = Scene::new().await;
        let good = scene.record();
        let mut record = good.clone();
        record.virtual_size = ByteSize::new(MIB / 2);
        scene.write_record(&record);
        scene.refused(ErrorKind::Corrupt).await;
        record.virtual_size = ByteSize::new(2 * MIB);
        scene.write_record(&record);
        scene.refused(ErrorKind::Corrupt).await;
        scene.write_record(&good);
        assert_eq!(scene.device.refresh().await.expect("refresh"), MIB);
    }

    #[tokio::test]
    async fn other_data_in_the_volume_fences() {
        let scene = Scene::new().await;
        let mut record = scene.record();
        record.data = Node::raw(VolumeId::random());
        scene.write_record(&record);
        scene.refused(ErrorKind::Fenced).await;
    }

    #[tokio::test]
    async fn a_record_that_is_gone_or_damaged_is_told() {
        let scene = Scene::new().await;
        let good = scene.record();
        std::fs::write(scene.record_path("a"), b"junk").expect("write");
        scene.refused(ErrorKind::Corrupt).await;
        std::fs::remove_file(scene.record_path("a")).expect("remove");
        scene.refused(ErrorKind::NotFound).await;
        // Another volume of the name is not this one.
        let options = CreateOptions::thin(ByteSize::new(4 * MIB));
        let made = scene.other.create_volume(&n("a"), options).await;
        made.expect("create");
        scene.refused(ErrorKind::NotFound).await;
        // Junk elsewhere does not keep it from being found again.
        std::fs::write(scene.record_path("0"), b"junk").expect("write");
        std::fs::write(scene.record_path("c"), encode(&good)).expect("write");
        assert_eq!(scene.device.refresh().await.expect("refresh"), MIB);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_volume_that_is_renamed_all_the_time_is_found() {
        let scene = Scene::new().await;
        // Enough for a directory of several blocks, that a rename can jump over the search in.
        for i in 0..100 {
            std::fs::write(scene.record_path(&format!("junk-{i}")), b"").expect("write");
        }
        let done = Arc::new(AtomicBool::new(false));
        let (other, stop) = (scene.other.clone(), done.clone());
        let renames = tokio::spawn(async move {
            let mut name = n("a");
            for i in 0.. {
                let to = n(&format!("r{}", i % 7));
                other.rename_volume(&name, &to).await.expect("rename");
                name = to;
                if stop.load(Ordering::Relaxed) {
                    return name;
                }
            }
            unreachable!("the numbers do not end before the test");
        });
        for _ in 0..100 {
            assert_eq!(scene.device.refresh().await.expect("refresh"), MIB);
        }
        done.store(true, Ordering::Relaxed);
        let name = renames.await.expect("no panic");
        scene.grow(name.as_str(), 2 * MIB).await;
        assert_eq!(scene.device.refresh().await.expect("refresh"), 2 * MIB);
    }
}
