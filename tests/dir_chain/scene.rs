//! A pool on a file system of its own, and short words for what tests do with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use volmux::nfs::{DirConfig, DirPool};
use volmux::{
    Access, AttachOptions, Attachment, BlockDevice, ByteSize, CreateOptions, Error, ErrorKind,
    Holder, OpenOptions, Pool, Result, Sharing, VolumeName,
};
use volmux_conformance::chains::Chains;
use volmux_conformance::read_all;
use volmux_conformance::scratch::LoopFs;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const CLUSTER: u64 = 64 * KIB;

pub fn n(name: &str) -> VolumeName {
    VolumeName::new(name).expect("a good name")
}

/// A pool, and what its volumes should hold.
pub struct Scene {
    pub pool: Arc<dyn Pool>,
    pub root: PathBuf,
    pub fs: LoopFs,
}

impl Scene {
    pub async fn new(bytes: u64) -> Scene {
        let fs = LoopFs::ext4(bytes);
        let root = fs.path().join("pool");
        std::fs::create_dir(&root).expect("a directory");
        Scene {
            pool: open(&root).await,
            root,
            fs,
        }
    }

    pub async fn create(&self, name: &str, size: u64) {
        let options = CreateOptions::thin(ByteSize::new(size));
        let made = self.pool.create_volume(&n(name), options).await;
        made.expect("create");
    }

    pub async fn device(&self, name: &str) -> Arc<dyn BlockDevice> {
        let name = n(name);
        let device = self.pool.open_volume(&name, OpenOptions::read_write());
        device.await.expect("open")
    }

    pub async fn write(&self, name: &str, offset: u64, data: Bytes) {
        let device = self.device(name).await;
        device.write_at(offset, data).await.expect("write");
        device.flush().await.expect("flush");
    }

    pub async fn snapshot(&self, source: &str, name: &str) {
        let (source, name) = (n(source), n(name));
        let made = self
            .pool
            .snapshot_volume(&source, &name, Default::default());
        made.await.expect("snapshot");
    }

    pub async fn clone_of(&self, source: &str, name: &str) {
        let (source, name) = (n(source), n(name));
        let made = self.pool.clone_volume(&source, &name, Default::default());
        made.await.expect("clone");
    }

    pub async fn delete(&self, name: &str) {
        self.pool.delete_volume(&n(name)).await.expect("delete");
    }

    /// To a host, for writing.
    pub async fn attach(&self, name: &str) -> Attachment {
        let options = AttachOptions {
            holder: Holder::new("host-1").expect("a holder"),
            access: Access::ReadWrite,
            sharing: Sharing::Exclusive,
        };
        let attached = self.pool.attach_volume(&n(name), options).await;
        attached.expect("attach")
    }

    pub async fn detach(&self, name: &str) {
        let holder = Holder::new("host-1").expect("a holder");
        let detached = self.pool.detach_volume(&n(name), &holder).await;
        detached.expect("detach");
    }

    pub async fn collect(&self) -> u64 {
        let collected = self.pool.collect_garbage().await.expect("collect");
        collected.objects
    }

    pub async fn read(&self, name: &str) -> Bytes {
        read_all(self.pool.as_ref(), &n(name)).await
    }

    pub async fn used(&self) -> u64 {
        let used = std::fs::File::open(&self.root).expect("open");
        rustix::fs::syncfs(&used).expect("sync");
        self.pool.usage().await.expect("usage").used.bytes()
    }

    /// The files as they are, all whole by what QEMU says.
    pub fn chains(&self) -> Chains {
        let chains = Chains::of(&self.root);
        chains.check();
        chains
    }

    /// The volume's top file.
    pub fn top(&self, name: &str) -> PathBuf {
        let chains = Chains::of(&self.root);
        self.root.join("data").join(&chains.tops[name])
    }
}

pub async fn open(root: &Path) -> Arc<dyn Pool> {
    DirPool::open(DirConfig::new(root)).await.expect("open")
}

pub fn assert_error<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, says: &str) {
    let error = result.expect_err("refused");
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(text(&error).contains(says), "{says}: {error:?}");
    assert!(error.get("help").is_some(), "{error:?}");
}

pub fn text(error: &Error) -> String {
    format!("{error:?}")
}
