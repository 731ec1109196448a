use std::fmt;
use std::sync::Arc;

use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use super::*;
use crate::ids::Ids;
use crate::store::{Listed, Patience};

/// How a store breaks the promise.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    None,
    /// It looks first and writes then.
    LooksFirst,
    /// It puts whatever the condition.
    Ignores,
    /// It says that the put failed, but has done it.
    Overwrites,
    /// It has no conditions.
    Unable,
    /// Every request fails at first.
    Fails,
}

#[derive(Debug)]
struct Careless {
    inner: InMemory,
    flaw: Flaw,
}

impl fmt::Display for Careless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Careless")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Careless {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> object_store::Result<PutResult> {
        match self.flaw {
            Flaw::None => {}
            Flaw::LooksFirst => {
                if self.inner.head(at).await.is_ok() {
                    return self.inner.put_opts(at, payload, options).await;
                }
                tokio::task::yield_now().await;
                options.mode = PutMode::Overwrite;
            }
            Flaw::Ignores => options.mode = PutMode::Overwrite,
            Flaw::Overwrites => {
                let put = self.inner.put_opts(at, payload.clone(), options).await;
                self.inner.put(at, payload).await?;
                return put;
            }
            Flaw::Unable => {
                return Err(object_store::Error::NotImplemented {
                    operation: "put".into(),
                    implementer: "Careless".into(),
                });
            }
            Flaw::Fails => {
                return Err(object_store::Error::Generic {
                    store: "Careless",
                    source: "a fault".into(),
                });
            }
        }
        self.inner.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(at)
    }

    fn list(&self, at: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(at)
    }

    async fn list_with_delimiter(&self, at: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(at).await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn store(flaw: Flaw) -> Store {
    let inner = InMemory::new();
    let inner = Arc::new(Careless { inner, flaw });
    let ids = Arc::new(Ids::seeded(1));
    let patience = Patience::default();
    Store::new(inner, Path::default(), "memory+object:", patience, ids)
}

async fn left(store: &Store) -> Vec<Listed> {
    store.list("t", "", None).try_collect().await.expect("list")
}

#[tokio::test]
async fn a_store_that_keeps_the_promise_passes_and_is_left_as_it_was() {
    let store = store(Flaw::None);
    probe(&store, "t", RACES).await.expect("it passes");
    assert_eq!(left(&store).await, []);
}

#[tokio::test]
async fn a_store_that_breaks_it_is_refused_and_left_as_it_was() {
    for (flaw, kind) in [
        (Flaw::LooksFirst, ErrorKind::Unsupported),
        (Flaw::Ignores, ErrorKind::Unsupported),
        (Flaw::Overwrites, ErrorKind::Unsupported),
        (Flaw::Unable, ErrorKind::Unsupported),
        (Flaw::Fails, ErrorKind::Unavailable),
    ] {
        let store = store(flaw);
        let error = probe(&store, "t", RACES).await.expect_err("refused");
        assert_eq!(error.kind(), kind, "{flaw:?}: {error}");
        assert!(error.get("pool").is_some());
        assert_eq!(left(&store).await, [], "{flaw:?}");
    }
}
