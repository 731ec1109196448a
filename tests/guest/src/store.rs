//! A pool that holds what guests boot from, for tests that are not asynchronous.

use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Runtime;
use volmux::{
    Access, AttachOptions, Attachment, ByteSize, CloneOptions, CreateOptions, ExtentQuery, Holder,
    OpenOptions, Pool, Result, RevertOptions, Sharing, SnapshotOptions, Volume, VolumeName,
};
use volmux_conformance::read_all;

use crate::Image;

/// A pool, and the threads that work for it.
#[derive(Clone, Debug)]
pub struct Store {
    /// Runs what is asynchronous.
    pub runtime: Arc<Runtime>,
    /// The pool.
    pub pool: Arc<dyn Pool>,
}

impl Store {
    /// Opens a pool. What is mounted for it must be so before: the threads see no later mounts.
    ///
    /// # Panics
    /// If it does not open, as everything here if it fails: these are tests.
    pub fn open(url: &str) -> Store {
        let runtime = Runtime::new().expect("a runtime");
        let pool = runtime.block_on(volmux::registry().open(url));
        Store {
            pool: pool.unwrap_or_else(|error| panic!("{url}: {error:?}")),
            runtime: Arc::new(runtime),
        }
    }

    /// Runs a future to its end.
    pub fn on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Imports the image as `volume`, as a program would: what is zero is left out.
    pub fn import(&self, image: &Image, volume: &str) {
        self.on(self.write(&fs::read(image.disk()).expect("the image"), volume));
    }

    async fn write(&self, image: &[u8], volume: &str) {
        const CHUNK: usize = 64 << 10;
        let size = CreateOptions::thin(ByteSize::new(Image::BYTES));
        let made = self.pool.create_volume(&name(volume), size).await;
        made.expect("create the volume");
        let options = OpenOptions::read_write();
        let device = self.pool.open_volume(&name(volume), options).await;
        let device = device.expect("open the volume");
        for (number, chunk) in image.chunks(CHUNK).enumerate() {
            if chunk.iter().any(|&byte| byte != 0) {
                let chunk = Bytes::copy_from_slice(chunk);
                let offset = (number * CHUNK) as u64;
                device.write_at(offset, chunk).await.expect("write");
            }
        }
        device.flush().await.expect("flush");
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// As the pool.
    pub fn try_snapshot(&self, source: &str, snapshot: &str) -> Result<Volume> {
        let options = SnapshotOptions::default();
        let (source, snapshot) = (name(source), name(snapshot));
        self.on(self.pool.snapshot_volume(&source, &snapshot, options))
    }

    /// Takes a snapshot.
    pub fn snapshot(&self, source: &str, snapshot: &str) {
        self.try_snapshot(source, snapshot).expect("snapshot");
    }

    /// Makes a clone.
    ///
    /// # Errors
    /// As the pool.
    pub fn try_clone(&self, source: &str, clone: &str) -> Result<Volume> {
        let (source, clone) = (name(source), name(clone));
        let options = CloneOptions::default();
        self.on(self.pool.clone_volume(&source, &clone, options))
    }

    /// Makes a clone.
    pub fn clone_volume(&self, source: &str, clone: &str) {
        self.try_clone(source, clone).expect("clone");
    }

    /// Reverts a volume.
    ///
    /// # Errors
    /// As the pool.
    pub fn revert(&self, volume: &str, snapshot: &str) -> Result<Volume> {
        let (volume, snapshot) = (name(volume), name(snapshot));
        let options = RevertOptions::default();
        self.on(self.pool.revert_volume(&volume, &snapshot, options))
    }

    /// Deletes a volume.
    ///
    /// # Errors
    /// As the pool.
    pub fn delete(&self, volume: &str) -> Result<()> {
        self.on(self.pool.delete_volume(&name(volume)))
    }

    /// Attaches a volume for writing, by one host alone.
    ///
    /// # Errors
    /// As the pool.
    pub fn attach(&self, volume: &str, holder: &str) -> Result<Attachment> {
        let options = AttachOptions {
            holder: Holder::new(holder).expect("a holder"),
            access: Access::ReadWrite,
            sharing: Sharing::Exclusive,
        };
        self.on(self.pool.attach_volume(&name(volume), options))
    }

    /// Detaches a volume.
    ///
    /// # Errors
    /// As the pool.
    pub fn detach(&self, volume: &str, holder: &str) -> Result<()> {
        let holder = Holder::new(holder).expect("a holder");
        self.on(self.pool.detach_volume(&name(volume), &holder))
    }

    /// What is known of a volume.
    pub fn volume(&self, volume: &str) -> Volume {
        let volume = self.on(self.pool.volume(&name(volume)));
        volume.expect("the volume")
    }

    /// What a volume occupies, in bytes.
    pub fn allocated(&self, volume: &str) -> u64 {
        let allocated = self.volume(volume).allocated;
        allocated.expect("the pool tells").bytes()
    }

    /// How many bytes of a volume hold data.
    pub fn data(&self, volume: &str) -> u64 {
        self.on(async {
            let volume = name(volume);
            let extents = self.pool.extents(&volume, ExtentQuery::allocated());
            let extents = extents.await.expect("extents").collect_joined().await;
            extents.expect("extents").iter().map(|e| e.length).sum()
        })
    }

    /// All of a volume.
    pub fn content(&self, volume: &str) -> Bytes {
        self.on(read_all(self.pool.as_ref(), &name(volume)))
    }

    /// Asserts that the file system of a volume whose guest powered off is in order.
    pub fn assert_in_order(&self, volume: &str) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(&file, self.content(volume)).expect("write");
        Image::assert_in_order(file.path());
    }
}

/// A volume's name.
///
/// # Panics
/// If it is none.
pub fn name(name: &str) -> VolumeName {
    VolumeName::new(name).expect("a name")
}
