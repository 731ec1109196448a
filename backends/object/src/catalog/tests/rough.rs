//! A store that counts requests, and by seed delays them, refuses them or loses their answers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

#[derive(Debug, Default)]
pub(crate) struct Rough {
    pub inner: InMemory,
    pub gets: AtomicUsize,
    pub puts: AtomicUsize,
    pub lists: AtomicUsize,
    pub put_bytes: AtomicUsize,
    /// Requests take turns, as they do on a network.
    pub slow: AtomicBool,
    /// Requests that fail, of 100; every other one of them after it was carried out.
    pub failing: AtomicU64,
    /// Puts that are carried out and whose answer is then lost, from now on.
    pub lost: AtomicUsize,
    /// Puts that fail without being carried out, from now on.
    pub refused: AtomicUsize,
    /// There is no room for anything that has more bytes.
    pub room: AtomicUsize,
    random: AtomicU64,
}

impl Rough {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Rough {
            random: seed.into(),
            room: usize::MAX.into(),
            ..Rough::default()
        })
    }

    pub(crate) fn requests(&self) -> usize {
        self.gets.load(Relaxed) + self.puts.load(Relaxed) + self.lists.load(Relaxed)
    }

    fn dice(&self) -> u64 {
        let seed = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33
    }

    async fn delay(&self) {
        if self.slow.load(Relaxed) {
            for _ in 0..self.dice() % 4 {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn around<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        let failing = self.failing.load(Relaxed);
        self.delay().await;
        let fails = self.dice() % 200;
        if fails < failing {
            return Err(broken());
        }
        let done = request.await;
        self.delay().await;
        if (100..100 + failing).contains(&fails) {
            return Err(broken());
        }
        done
    }
}

fn broken() -> Error {
    Error::Generic {
        store: "rough",
        source: "connection reset".into(),
    }
}

fn take(from: &AtomicUsize) -> bool {
    from.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1))
        .is_ok()
}

impl fmt::Display for Rough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rough")
    }
}

#[async_trait]
impl ObjectStore for Rough {
    async fn put_opts(&self, at: &Path, body: PutPayload, how: PutOptions) -> Result<PutResult> {
        self.puts.fetch_add(1, Relaxed);
        self.put_bytes.fetch_add(body.content_length(), Relaxed);
        if take(&self.refused) {
            return Err(broken());
        }
        if body.content_length() > self.room.load(Relaxed) {
            return Err(Error::Generic {
                store: "rough",
                source: std::io::Error::from_raw_os_error(28).into(),
            });
        }
        let put = self.around(self.inner.put_opts(at, body, how)).await;
        if take(&self.lost) { Err(broken()) } else { put }
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, how).await
    }

    async fn get_opts(&self, at: &Path, how: GetOptions) -> Result<GetResult> {
        self.gets.fetch_add(1, Relaxed);
        self.around(self.inner.get_opts(at, how)).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.lists.fetch_add(1, Relaxed);
        self.inner.list(prefix).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, how).await
    }
}
