//! The store as one host sees it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::DateTime;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};

use crate::store::{Change, Object, SimStore, broken};

/// A [`SimStore`] as one host reaches it.
#[derive(Clone, Debug)]
pub struct HostStore {
    store: SimStore,
    dead: Arc<AtomicBool>,
}

impl HostStore {
    /// The store, as a host that is alive sees it.
    pub fn new(store: SimStore) -> Self {
        HostStore {
            store,
            dead: Arc::default(),
        }
    }

    /// Nothing is heard from this host any more; what it sent is on its way.
    pub fn die(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    async fn alive(&self) {
        if self.dead.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    async fn change(&self, what: &str, key: &Path, change: Change) -> Result<u64> {
        self.alive().await;
        let request = self.store.send(what, key, Some(change)).await;
        request.arrive().await;
        let answer = request.answer().await;
        self.alive().await;
        answer
    }

    async fn page(
        &self,
        prefix: Option<&Path>,
        after: Option<&Path>,
    ) -> Result<(Vec<(Path, Object)>, bool)> {
        self.alive().await;
        let root = Path::default();
        let request = self
            .store
            .send("LIST", after.or(prefix).unwrap_or(&root), None)
            .await;
        request.arrive().await;
        let page = self.store.page(prefix, after);
        request.answer().await?;
        Ok(page)
    }

    fn pages(
        &self,
        prefix: Option<Path>,
        after: Option<Path>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let from = Some((self.clone(), after));
        stream::unfold(from, move |from| {
            let prefix = prefix.clone();
            async move {
                let (view, after) = from?;
                match view.page(prefix.as_ref(), after.as_ref()).await {
                    Err(error) => Some((vec![Err(error)], None)),
                    Ok((page, more)) => {
                        let last = page.last().map(|(key, _)| key.clone());
                        let page = page.iter().map(|(key, object)| Ok(meta(key, object)));
                        Some((page.collect(), more.then_some((view, last))))
                    }
                }
            }
        })
        .flat_map(stream::iter::<Vec<Result<ObjectMeta>>>)
        .boxed()
    }
}

fn meta(key: &Path, object: &Object) -> ObjectMeta {
    ObjectMeta {
        location: key.clone(),
        last_modified: DateTime::from_timestamp_millis(object.written as i64).unwrap_or_default(),
        size: object.data.len() as u64,
        e_tag: Some(format!("\"{}\"", object.version)),
        version: None,
    }
}

/// What a GET asks for, of an object of `size` bytes.
fn part(range: Option<&GetRange>, size: u64) -> Result<Range<u64>> {
    let wrong = |reason: &str| Error::Generic {
        store: "sim",
        source: format!("416: {reason}").into(),
    };
    match range {
        None => Ok(0..size),
        Some(GetRange::Bounded(range)) if range.start >= range.end => Err(wrong("empty range")),
        Some(GetRange::Bounded(range)) if range.start >= size => Err(wrong("past the end")),
        Some(GetRange::Bounded(range)) => Ok(range.start..range.end.min(size)),
        Some(GetRange::Offset(from)) if *from >= size => Err(wrong("past the end")),
        Some(GetRange::Offset(from)) => Ok(*from..size),
        Some(GetRange::Suffix(length)) => Ok(size.saturating_sub(*length)..size),
    }
}

/// The content in two pieces, or an error after some of it.
fn payload(data: &Bytes, torn: Option<u64>) -> GetResultPayload {
    let length = data.len();
    let pieces = match torn {
        None => vec![Ok(data.slice(..length / 3)), Ok(data.slice(length / 3..))],
        Some(share) => {
            let come = (length as u64 * share / 1000) as usize;
            vec![Ok(data.slice(..come)), Err(broken())]
        }
    };
    GetResultPayload::Stream(stream::iter(pieces).boxed())
}

#[async_trait]
impl ObjectStore for HostStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let create = match options.mode {
            PutMode::Overwrite => false,
            PutMode::Create => true,
            PutMode::Update(_) => return Err(unsupported("put_opts")),
        };
        let change = Change::Put {
            key: location.clone(),
            data: payload.into(),
            create,
        };
        let what = if create { "CREATE" } else { "PUT" };
        let version = self.change(what, location, change).await?;
        Ok(PutResult {
            e_tag: Some(format!("\"{version}\"")),
            version: None,
            extensions: Default::default(),
        })
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(unsupported("put_multipart_opts"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.alive().await;
        let what = if options.head { "HEAD" } else { "GET" };
        let request = self.store.send(what, location, None).await;
        let (fate, number) = (request.fate, request.number);
        request.arrive().await;
        let found = self.store.look(location, number);
        match request.answer().await {
            // The answer began to come before the connection died.
            Err(error) if fate.torn.is_none() || options.head => return Err(error),
            _ => self.alive().await,
        }
        let object = found.ok_or_else(|| Error::NotFound {
            path: location.to_string(),
            source: "there is no object of that name".into(),
        })?;
        let meta = meta(location, &object);
        options.check_preconditions(&meta)?;
        let range = part(options.range.as_ref(), meta.size)?;
        let data = object.data.slice(range.start as usize..range.end as usize);
        Ok(GetResult {
            payload: if options.head {
                GetResultPayload::Stream(stream::empty().boxed())
            } else {
                payload(&data, fate.torn)
            },
            meta,
            range,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let view = self.clone();
        locations
            .map(move |location| {
                let view = view.clone();
                async move {
                    let key = location?;
                    let change = Change::Delete { key: key.clone() };
                    view.change("DELETE", &key, change).await?;
                    Ok(key)
                }
            })
            .buffered(10)
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.pages(prefix.cloned(), None)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.pages(prefix.cloned(), Some(offset.clone()))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let root = Path::default();
        let depth = prefix.unwrap_or(&root).parts().count();
        let mut result = ListResult {
            common_prefixes: Vec::new(),
            objects: Vec::new(),
            extensions: Default::default(),
        };
        let mut listed = self.pages(prefix.cloned(), None);
        while let Some(object) = listed.next().await {
            let object = object?;
            if object.location.parts().count() == depth + 1 {
                result.objects.push(object);
                continue;
            }
            let common: Path = object.location.parts().take(depth + 1).collect();
            if result.common_prefixes.last() != Some(&common) {
                result.common_prefixes.push(common);
            }
        }
        Ok(result)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let found = self.get_opts(from, GetOptions::default()).await?;
        let data = found.bytes().await?;
        let change = Change::Put {
            key: to.clone(),
            data,
            create: matches!(options.mode, CopyMode::Create),
        };
        self.change("COPY", to, change).await.map(drop)
    }
}

fn unsupported(what: &str) -> Error {
    Error::NotImplemented {
        operation: what.into(),
        implementer: "sim".into(),
    }
}

impl fmt::Display for HostStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}
