//! The client that everything talks to a store through: retries, deadlines, names in errors.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, PutMode, PutOptions, PutPayload,
};
use tokio::time::Instant;
use volmux_core::{Error, ErrorKind, Result};

use crate::fault::{Fault, is_missing, is_taken};
use crate::ids::Ids;
use crate::pieces::Pieces;
use crate::seal::Damage;

/// Nothing longer is read into memory; nothing so long is ever stored.
pub(crate) const READ_LIMIT: u64 = 64 << 20;
/// Names per request to delete: Azure takes 256, S3 1000.
const DELETE_BATCH: usize = 250;
const FIRST_DELAY: Duration = Duration::from_millis(20);
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// How long to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    /// A single request.
    pub request: Duration,
    /// Reading or listing, with all retries.
    pub read: Duration,
    /// Putting or deleting, with all retries.
    pub write: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            request: Duration::from_secs(30),
            read: Duration::from_secs(60),
            write: Duration::from_secs(120),
        }
    }
}

/// What became of a create-only put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// The object is there and is what was put.
    Created,
    /// Somebody else's object has that name.
    Taken,
}

/// An object, as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Its name below the pool's prefix.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// A store, as seen from a pool. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Store {
    inner: Arc<dyn ObjectStore>,
    prefix: Path,
    shown: Arc<str>,
    patience: Patience,
    ids: Arc<Ids>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A store's own Debug may show credentials.
        f.debug_tuple("Store").field(&self.shown).finish()
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Store {
    /// What is below `prefix` in `inner`, which must not retry by itself. `shown` is the pool in
    /// errors; it must hold no secret. Delays between retries get their jitter from `ids`.
    pub fn new(
        inner: Arc<dyn ObjectStore>,
        prefix: Path,
        shown: &str,
        patience: Patience,
        ids: Arc<Ids>,
    ) -> Self {
        let shown = Arc::from(shown);
        Store {
            inner,
            prefix,
            shown,
            patience,
            ids,
        }
    }

    /// The same store, tried for as long as this.
    #[must_use]
    pub fn with_patience(&self, patience: Patience) -> Self {
        Store {
            patience,
            ..self.clone()
        }
    }

    /// How long it is tried.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Where identifiers come from.
    pub fn ids(&self) -> &Arc<Ids> {
        &self.ids
    }

    /// An error about an object of the pool.
    pub fn error(&self, kind: ErrorKind, op: &'static str, name: &str) -> Error {
        Error::new(kind, op)
            .with("pool", &self.shown)
            .with("object", name)
    }

    /// The error for an object whose bytes are not what they must be.
    pub fn damaged(&self, op: &'static str, name: &str, damage: Damage) -> Error {
        match damage {
            Damage::Version { .. } => self
                .error(ErrorKind::InvalidConfig, op, name)
                .reason(format!("the object {damage}"))
                .help("update volmux"),
            Damage::Cipher => self
                .error(ErrorKind::Internal, op, name)
                .reason(format!("the object {damage}")),
            _ => self
                .error(ErrorKind::Corrupt, op, name)
                .reason(format!("the object {damage}"))
                .help("run `volmux pool scrub`, then restore what it names from a backup"),
        }
    }

    /// A whole object; `None` if there is none of that name.
    pub async fn get(&self, op: &'static str, name: &str) -> Result<Option<Bytes>> {
        let limit = self.patience.read;
        let got = self.retried(op, name, limit, || self.read(name, None));
        Ok(got.await?.map(Pieces::into_bytes))
    }

    /// Exactly this range of an object; `None` if there is none of that name.
    ///
    /// # Errors
    /// `Corrupt` if the object is shorter.
    pub async fn get_range(
        &self,
        op: &'static str,
        name: &str,
        range: Range<u64>,
    ) -> Result<Option<Bytes>> {
        let got = self.get_pieces(op, name, range).await?;
        Ok(got.map(Pieces::into_bytes))
    }

    /// The same as [`get_range`](Self::get_range), as it comes.
    pub async fn get_pieces(
        &self,
        op: &'static str,
        name: &str,
        range: Range<u64>,
    ) -> Result<Option<Pieces>> {
        if range.is_empty() {
            return Ok(Some(Pieces::default()));
        }
        let limit = self.patience.read;
        self.retried(op, name, limit, || self.read(name, Some(range.clone())))
            .await
    }

    /// Puts an object, over one of that name too. The same bytes may be put any number of times.
    pub async fn put(&self, op: &'static str, name: &str, payload: PutPayload) -> Result<()> {
        let path = self.path(name);
        let put = || async {
            let options = PutOptions::from(PutMode::Overwrite);
            let put = self.inner.put_opts(&path, payload.clone(), options);
            put.await.map(drop).map_err(Fault::from)
        };
        self.retried(op, name, self.patience.write, put).await
    }

    /// Puts an object if there is none of that name. `bytes` must be unique to this caller: where
    /// the same bytes are found under the name, an earlier try of this put has left them.
    ///
    /// # Errors
    /// After an error it is not known whether the object was or will yet be put: read it.
    pub async fn put_new(&self, op: &'static str, name: &str, bytes: Bytes) -> Result<Put> {
        let put = || async {
            match self.create(name, bytes.clone()).await {
                Ok(()) => Ok(Put::Created),
                Err(error) if is_taken(&error) => {
                    match self.read(name, None).await?.map(Pieces::into_bytes) {
                        Some(found) if found == bytes => Ok(Put::Created),
                        Some(_) => Ok(Put::Taken),
                        // Two puts at the same time, neither of which the store let through.
                        None => Err(Fault::from(error)),
                    }
                }
                Err(error) => Err(Fault::from(error)),
            }
        };
        self.retried(op, name, self.patience.write, put).await
    }

    /// One try of a create-only put, with no limit of time.
    pub async fn create(&self, name: &str, bytes: Bytes) -> object_store::Result<()> {
        let (path, options) = (self.path(name), PutOptions::from(PutMode::Create));
        self.inner
            .put_opts(&path, bytes.into(), options)
            .await
            .map(drop)
    }

    /// Deletes objects; those that are not there count as deleted.
    pub async fn delete(&self, op: &'static str, names: Vec<String>) -> Result<()> {
        for batch in names.chunks(DELETE_BATCH) {
            let left: BTreeSet<Path> = batch.iter().map(|name| self.path(name)).collect();
            // What is done is not done again: where each object is a request of its own, one of
            // many nearly always fails.
            let left = Mutex::new(left);
            let lock = || left.lock().unwrap_or_else(PoisonError::into_inner);
            let delete = || async {
                let paths: Vec<_> = lock().iter().cloned().map(Ok).collect();
                let mut deleted = self.inner.delete_stream(stream::iter(paths).boxed());
                let mut failed = None;
                while let Some(result) = deleted.next().await {
                    match result {
                        Ok(path) => drop(lock().remove(&path)),
                        Err(error) if is_missing(&error) => {}
                        Err(error) => failed = Some(Fault::from(error)),
                    }
                }
                failed.filter(|_| !lock().is_empty()).map_or(Ok(()), Err)
            };
            let limit = self.patience.write;
            self.retried(op, &batch[0], limit, delete).await?;
        }
        Ok(())
    }

    /// The objects below `below` (a folder, with or without `/`; empty for all), those past
    /// `after` only. In the order of their names where the store has one: do not rely on it.
    pub fn list(
        &self,
        op: &'static str,
        below: &str,
        after: Option<&str>,
    ) -> BoxStream<'static, Result<Listed>> {
        let lister = Lister {
            store: self.clone(),
            op,
            below: self.path(below.trim_end_matches('/')),
            last: after.map(|name| self.path(name)),
            sorted: true,
            stream: None,
        };
        stream::try_unfold(lister, |mut lister| async move {
            let listed = lister.next().await?;
            Ok(listed.map(|listed| (listed, lister)))
        })
        .boxed()
    }

    fn path(&self, name: &str) -> Path {
        let parts = name.split('/').filter(|part| !part.is_empty());
        Path::from_iter(self.prefix.parts().chain(parts.map(Into::into)))
    }

    fn name(&self, path: &Path) -> String {
        match path.prefix_match(&self.prefix) {
            Some(parts) => Path::from_iter(parts).into(),
            None => path.to_string(),
        }
    }

    async fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Pieces>, Fault> {
        let options = GetOptions {
            range: range.clone().map(GetRange::Bounded),
            ..GetOptions::default()
        };
        match self.inner.get_opts(&self.path(name), options).await {
            Ok(got) => collect(got, range).await.map(Some),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn retried<T, F: Future<Output = Result<T, Fault>>>(
        &self,
        op: &'static str,
        name: &str,
        limit: Duration,
        mut request: impl FnMut() -> F,
    ) -> Result<T> {
        let mut retry = Retry::new(limit);
        loop {
            let allowed = self.patience.request.min(retry.left());
            let fault = match tokio::time::timeout(allowed, request()).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(fault)) => fault,
                Err(_) => Fault::timed_out(allowed),
            };
            if !retry.again(&fault, &self.ids, op, name).await {
                return Err(self.failed(op, name, fault, &retry));
            }
        }
    }

    /// The error for a request that failed once and for all.
    pub fn failed_once(&self, op: &'static str, name: &str, fault: Fault) -> Error {
        self.failed(op, name, fault, &Retry::new(Duration::ZERO))
    }

    fn failed(&self, op: &'static str, name: &str, fault: Fault, retry: &Retry) -> Error {
        let Fault { kind, reason, .. } = fault;
        let error = self.error(kind, op, name);
        let error = if retry.tries > 1 {
            let elapsed = Duration::from_secs(retry.start.elapsed().as_secs());
            let elapsed = humantime::format_duration(elapsed);
            error.reason(format!("{reason} ({} tries in {elapsed})", retry.tries))
        } else {
            error.reason(reason)
        };
        match fault.help {
            Some(help) => error.help(help),
            None => error,
        }
    }
}

/// When to try again.
struct Retry {
    start: Instant,
    limit: Duration,
    tries: u32,
}

impl Retry {
    fn new(limit: Duration) -> Self {
        Retry {
            start: Instant::now(),
            limit,
            tries: 0,
        }
    }

    fn left(&self) -> Duration {
        self.limit.saturating_sub(self.start.elapsed())
    }

    /// Waits, unless the fault will not pass or the time is over.
    async fn again(&mut self, fault: &Fault, ids: &Ids, op: &str, object: &str) -> bool {
        self.tries += 1;
        let longest = FIRST_DELAY.saturating_mul(1 << (self.tries - 1).min(16));
        let longest = longest.min(LONGEST_DELAY);
        let jitter = ids.uuid().as_u128() as u32;
        // Writers that failed together must not come back together.
        let delay = longest / 2 + (longest / 2).mul_f64(f64::from(jitter) / f64::from(u32::MAX));
        if !fault.transient || delay >= self.left() {
            return false;
        }
        let (tries, reason) = (self.tries, &fault.reason);
        if tries == 5 {
            tracing::warn!(op, object, reason, "the store fails; still trying");
        } else {
            tracing::debug!(op, object, reason, tries, "trying again");
        }
        tokio::time::sleep(delay).await;
        true
    }
}

/// Takes the body of an answer: all of it, or exactly `range`.
async fn collect(got: GetResult, range: Option<Range<u64>>) -> Result<Pieces, Fault> {
    let short = || {
        let reason = "the object is shorter than it must be";
        Fault::new(ErrorKind::Corrupt, false, reason)
    };
    let expected = match &range {
        Some(range) if got.range != *range => return Err(short()),
        Some(range) => range.end - range.start,
        None => got.meta.size,
    };
    if expected > READ_LIMIT {
        let reason = format!("the object is {expected} bytes long, more than volmux ever stores");
        return Err(Fault::new(ErrorKind::Corrupt, false, reason));
    }
    let expected = expected as usize;
    let mut stream = got.into_stream();
    let mut whole = Pieces::default();
    while let Some(piece) = stream.next().await {
        whole.push(piece.map_err(Fault::from)?);
        if whole.len() > expected {
            let reason = "the store sent more than it announced";
            return Err(Fault::new(ErrorKind::Unavailable, true, reason));
        }
    }
    if whole.len() < expected {
        // The object has that length, so it was the connection that ended.
        let reason = "the store sent less than it announced";
        return Err(Fault::new(ErrorKind::Unavailable, true, reason));
    }
    Ok(whole)
}

/// A listing that goes on where it was when a request fails.
struct Lister {
    store: Store,
    op: &'static str,
    below: Path,
    last: Option<Path>,
    sorted: bool,
    stream: Option<BoxStream<'static, object_store::Result<ObjectMeta>>>,
}

impl Lister {
    async fn next(&mut self) -> Result<Option<Listed>> {
        let patience = self.store.patience;
        let mut retry = Retry::new(patience.read);
        loop {
            let inner = self.store.inner.clone();
            let (below, last) = (Some(&self.below), &self.last);
            let stream = self.stream.get_or_insert_with(|| match last {
                Some(last) => inner.list_with_offset(below, last),
                None => inner.list(below),
            });
            let allowed = patience.request.min(retry.left());
            let fault = match tokio::time::timeout(allowed, stream.next()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(meta))) => return Ok(Some(self.took(meta))),
                Ok(Some(Err(error))) => Fault::from(error),
                Err(_) => Fault::timed_out(allowed),
            };
            self.stream = None;
            let name = self.store.name(&self.below);
            // Without an order it is not known what is still to come.
            if !self.sorted || !retry.again(&fault, &self.store.ids, self.op, &name).await {
                return Err(self.store.failed(self.op, &name, fault, &retry));
            }
        }
    }

    fn took(&mut self, meta: ObjectMeta) -> Listed {
        let name = self.store.name(&meta.location);
        self.sorted &= self.last.as_ref().is_none_or(|last| *last < meta.location);
        self.last = Some(meta.location);
        let bytes = meta.size;
        Listed { name, bytes }
    }
}

#[cfg(test)]
mod tests;
