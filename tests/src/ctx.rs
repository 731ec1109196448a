//! What a case works with.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use volmux::{
    AuditOptions, BlockDevice, ByteRange, ByteSize, Error, ErrorKind, ExtentQuery, OpenOptions,
    Origin, Pool, PoolExt, Provisioning, Result, Volume, VolumeId, VolumeName,
};

use crate::content::{is_zero, pattern, read_all};
use crate::{Expect, Fixture, PoolSettings, Storage};

/// A name that is known to be good.
///
/// # Panics
/// If it is not.
pub fn checked_name(name: &str) -> VolumeName {
    VolumeName::new(name).expect("a good name")
}

/// Everything that a caller can see of a pool's volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State(BTreeMap<VolumeName, VolumeState>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct VolumeState {
    id: VolumeId,
    size: ByteSize,
    provisioning: Provisioning,
    origin: Option<Origin>,
    digest: u64,
}

impl State {
    /// Looks at every volume of `pool`, content included.
    ///
    /// # Panics
    /// If a volume can't be listed or read.
    pub async fn of(pool: &dyn Pool) -> State {
        let mut volumes = BTreeMap::new();
        for volume in pool.volumes().await.expect("list") {
            let state = VolumeState {
                id: volume.id,
                size: volume.virtual_size,
                provisioning: volume.provisioning,
                digest: digest(pool, &volume.name).await,
                origin: volume.origin,
            };
            volumes.insert(volume.name, state);
        }
        State(volumes)
    }

    /// The names.
    pub fn names(&self) -> Vec<&str> {
        self.0.keys().map(VolumeName::as_str).collect()
    }
}

/// Hash of a volume's size and content, which does not depend on where its holes are.
async fn digest(pool: &dyn Pool, name: &VolumeName) -> u64 {
    const BLOCK: u64 = 4096;
    let device = pool.open_volume(name, OpenOptions::read_only()).await;
    let device = device.expect("open for reading");
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(device.size());
    let extents = device.extents(ByteRange::new(0, device.size())).await;
    let extents = extents.expect("extents").collect_joined().await;
    for extent in extents.expect("extents") {
        let start = extent.offset / BLOCK * BLOCK;
        let end = extent.end().next_multiple_of(BLOCK).min(device.size());
        let data = device.read_at(start, (end - start) as usize).await;
        for (i, block) in data.expect("read").chunks(BLOCK as usize).enumerate() {
            if !is_zero(block) {
                hasher.write_u64(start + i as u64 * BLOCK);
                hasher.write(block);
            }
        }
    }
    hasher.finish()
}

/// What a case works with: a pool of its own, and what to expect of it.
pub struct Ctx<'a> {
    /// What the pool must support.
    pub expect: Expect,
    storage: &'a dyn Storage,
    fixture: Box<dyn Fixture>,
    pool: Arc<dyn Pool>,
}

impl Debug for Ctx<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ctx")
            .field("expect", &self.expect)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl<'a> Ctx<'a> {
    pub(crate) fn new(
        expect: Expect,
        storage: &'a dyn Storage,
        fixture: Box<dyn Fixture>,
    ) -> Ctx<'a> {
        let pool = fixture.pool();
        Ctx {
            expect,
            storage,
            fixture,
            pool,
        }
    }

    /// The pool under test.
    pub fn pool(&self) -> &dyn Pool {
        self.pool.as_ref()
    }

    /// The pool under test, to hand to a task.
    pub fn shared_pool(&self) -> Arc<dyn Pool> {
        self.pool.clone()
    }

    /// Another pool, with other settings.
    pub async fn with_settings(&self, settings: PoolSettings) -> Ctx<'a> {
        let fixture = self.storage.make_pool(settings).await;
        Ctx::new(self.expect, self.storage, fixture)
    }

    /// What sees the storage through another handle: a second pool where there can be one, and
    /// otherwise the pool itself. That there is one exactly where it is expected is asserted.
    pub async fn other_handle(&self) -> Arc<dyn Pool> {
        let other = self.fixture.reopen().await;
        assert_eq!(other.is_some(), self.expect.second_handle, "second handle");
        other.unwrap_or_else(|| self.pool.clone())
    }

    /// See [`Fixture::place_foreign`].
    pub(crate) async fn place_foreign(&self, data: &[u8]) -> String {
        self.fixture.place_foreign(data).await
    }

    /// Everything that can be seen of the pool.
    pub async fn state(&self) -> State {
        State::of(self.pool()).await
    }

    /// A volume, thin where there are thin ones.
    pub(crate) async fn create(&self, name: &str, size: u64) -> Volume {
        let options = self.expect.volume(size);
        let created = self.pool.create_volume(&checked_name(name), options).await;
        created.expect("create")
    }

    /// A volume full of the pattern `seed`, flushed and closed. Its size is rounded up.
    pub(crate) async fn filled(&self, name: &str, size: u64, seed: u64) -> Bytes {
        let size = self.create(name, size).await.virtual_size.bytes();
        let data = pattern(seed, size as usize);
        self.write(name, 0, data.clone()).await;
        data
    }

    /// Opens, writes, flushes and closes.
    pub(crate) async fn write(&self, name: &str, offset: u64, data: Bytes) {
        let device = self.writer(name).await;
        device.write_at(offset, data).await.expect("write");
        device.flush().await.expect("flush");
    }

    pub(crate) async fn writer(&self, name: &str) -> Arc<dyn BlockDevice> {
        self.open(name, OpenOptions::read_write())
            .await
            .expect("open for writing")
    }

    pub(crate) async fn reader(&self, name: &str) -> Arc<dyn BlockDevice> {
        self.open(name, OpenOptions::read_only())
            .await
            .expect("open for reading")
    }

    pub(crate) async fn open(
        &self,
        name: &str,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        self.pool.open_volume(&checked_name(name), options).await
    }

    pub(crate) async fn read(&self, name: &str) -> Bytes {
        read_all(self.pool(), &checked_name(name)).await
    }

    /// The first bytes of a volume that may be too large to read.
    pub(crate) async fn read_part(&self, name: &str, length: usize) -> Bytes {
        let device = self.reader(name).await;
        device.read_at(0, length).await.expect("read")
    }

    pub(crate) async fn volume(&self, name: &str) -> Volume {
        let volume = self.pool.volume(&checked_name(name)).await;
        volume.expect("look up")
    }

    pub(crate) async fn delete(&self, name: &str) {
        let deleted = self.pool.delete_volume(&checked_name(name)).await;
        deleted.expect("delete");
    }

    pub(crate) async fn snapshot(&self, source: &str, name: &str) -> Volume {
        let (source, name) = (checked_name(source), checked_name(name));
        let made = self
            .pool
            .snapshot_volume(&source, &name, Default::default())
            .await;
        made.expect("snapshot")
    }

    pub(crate) async fn clone_of(&self, source: &str, name: &str) -> Volume {
        let (source, name) = (checked_name(source), checked_name(name));
        let made = self
            .pool
            .clone_volume(&source, &name, Default::default())
            .await;
        made.expect("clone")
    }

    pub(crate) async fn copy_of(&self, source: &str, name: &str) -> Volume {
        let (source, name) = (checked_name(source), checked_name(name));
        let made = self
            .pool
            .copy_volume(&source, &name, Default::default())
            .await;
        made.expect("copy")
    }

    /// The names in a listing, sorted.
    pub(crate) async fn names(&self) -> Vec<String> {
        let listed = self.pool.volumes().await.expect("list");
        listed.into_iter().map(|v| v.name.into()).collect()
    }

    /// The allocated extents of a volume.
    pub(crate) async fn extents(&self, name: &str, query: ExtentQuery) -> Vec<ByteRange> {
        let stream = self.pool.extents(&checked_name(name), query).await;
        let joined = stream.expect("extents").collect_joined().await;
        joined.expect("extents")
    }

    /// Asserts that a call was refused with an error of `kind` that names the operation and the
    /// volume, and that nothing changed since `before`.
    pub(crate) async fn refused<T: Debug>(
        &self,
        result: Result<T>,
        kind: ErrorKind,
        op: &str,
        volume: &str,
        before: &State,
    ) {
        assert_error(result, kind, op, volume);
        assert_eq!(
            &self.state().await,
            before,
            "{op} failed and yet changed something"
        );
    }

    /// Has the store do now what it would do in the background.
    pub(crate) async fn settle(&self) {
        self.fixture.settle().await;
    }

    /// Waits until `done`: what is taken and what is freed may show in the usage only later.
    pub(crate) async fn eventually(&self, what: &str, mut done: impl AsyncFnMut() -> bool) {
        for _ in 0..500 {
            self.fixture.settle().await;
            if done().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("still not: {what}");
    }

    /// Asserts that the pool is whole: every volume can be listed and looked up, and an audit
    /// leaves nothing wrong.
    pub(crate) async fn assert_sound(&self) {
        let mut listed = self.pool.list_volumes();
        while let Some(volume) = listed.next().await {
            let volume = volume.expect("list");
            let found = self.pool.volume(&volume.name).await.expect("look up");
            assert_eq!(found.id, volume.id);
        }
        for repair in [true, false] {
            let report = self.pool.audit(AuditOptions { repair }).await;
            let report = report.expect("audit");
            assert!(report.is_clean(), "audit (repair {repair}): {report:?}");
        }
        self.fixture.check();
    }
}

/// Asserts kind, operation and volume of an error.
#[track_caller]
pub(crate) fn assert_error<T: Debug>(result: Result<T>, kind: ErrorKind, op: &str, volume: &str) {
    let error: Error = match result {
        Err(error) => error,
        Ok(value) => panic!("{op} should fail with {kind:?} and returned {value:?}"),
    };
    assert_eq!(error.kind(), kind, "{error:?}");
    assert_eq!(error.op(), op, "{error:?}");
    let named = error.context().any(|(_, value)| value == volume);
    assert!(named, "the error does not name volume {volume}: {error:?}");
}
