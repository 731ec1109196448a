//! A store that fails by a script, and what the client makes of it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, Error as StoreError, GetResultPayload, ListResult, MultipartUpload,
    PutMultipartOptions, PutResult,
};

use super::*;

/// What a request comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Pass,
    /// Nothing happens but a passing fault.
    Fail,
    /// It is done, but the answer is lost.
    LoseAnswer,
    /// No answer, ever.
    Hang,
    /// A fault that does not pass.
    Refuse,
    /// The body ends after a byte; a hundred objects are deleted.
    Truncate,
    /// A conflict though there is no such object.
    Conflict,
}

#[derive(Debug, Default)]
struct Scripted {
    inner: InMemory,
    acts: Mutex<VecDeque<Act>>,
    requests: Mutex<u32>,
}

impl fmt::Display for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

impl Scripted {
    fn act(&self) -> Act {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let mut acts = self.acts.lock().unwrap_or_else(PoisonError::into_inner);
        acts.pop_front().unwrap_or(Act::Pass)
    }

    async fn disturbed<T>(
        &self,
        act: Act,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        match act {
            Act::Pass | Act::Truncate => work.await,
            Act::Fail => Err(passing()),
            Act::LoseAnswer => {
                work.await?;
                Err(passing())
            }
            Act::Hang => std::future::pending().await,
            Act::Refuse => Err(StoreError::PermissionDenied {
                path: "canary".into(),
                source: "https://host/x?sig=canary".into(),
            }),
            Act::Conflict => Err(StoreError::AlreadyExists {
                path: "x".into(),
                source: "409".into(),
            }),
        }
    }
}

fn passing() -> StoreError {
    StoreError::Generic {
        store: "Scripted",
        source: "error sending request for url (https://host/x?X-Amz-Signature=canary)".into(),
    }
}

#[async_trait::async_trait]
impl ObjectStore for Scripted {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        let act = self.act();
        self.disturbed(act, self.inner.put_opts(location, payload, options))
            .await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(
        &self,
        location: &Path,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        let act = self.act();
        let mut got = self
            .disturbed(act, self.inner.get_opts(location, options))
            .await?;
        if act == Act::Truncate {
            let part = Ok(Bytes::from_static(b"b"));
            got.payload = GetResultPayload::Stream(stream::iter([part]).boxed());
        }
        Ok(got)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        match self.act() {
            Act::Pass => self.inner.delete_stream(locations),
            Act::Truncate => {
                let some = self.inner.delete_stream(locations.take(100).boxed());
                some.chain(stream::iter([Err(passing())])).boxed()
            }
            _ => stream::iter([Err(passing())]).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let all = self.inner.list(prefix);
        match self.act() {
            Act::Pass => all,
            Act::Hang => stream::pending().boxed(),
            _ => all.take(2).chain(stream::iter([Err(passing())])).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
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

fn scripted(acts: &[Act]) -> (Arc<Scripted>, Store) {
    let inner = Arc::new(Scripted {
        acts: Mutex::new(acts.iter().copied().collect()),
        ..Scripted::default()
    });
    let store = Store::new(
        inner.clone(),
        Path::from("a/pool"),
        "s3://bucket/a/pool",
        Patience::default(),
        Arc::new(Ids::seeded(1)),
    );
    (inner, store)
}

fn requests(inner: &Scripted) -> u32 {
    *inner.requests.lock().expect("not poisoned")
}

#[tokio::test(start_paused = true)]
async fn objects_live_below_the_prefix() {
    let (inner, store) = scripted(&[]);
    store
        .put("t", "logs/x/1", "body".into())
        .await
        .expect("put");
    let at = Path::from("a/pool/logs/x/1");
    assert!(
        inner
            .inner
            .get_opts(&at, GetOptions::default())
            .await
            .is_ok()
    );
    assert_eq!(
        store.get("t", "logs/x/1").await.expect("get").as_deref(),
        Some(&b"body"[..])
    );
    assert_eq!(store.get("t", "logs/x/2").await.expect("get"), None);
    let part = store.get_range("t", "logs/x/1", 1..3).await.expect("get");
    assert_eq!(part.as_deref(), Some(&b"od"[..]));
    let none = store.get_range("t", "logs/x/2", 1..3).await.expect("get");
    assert_eq!(none, None);
    for range in [2..5, 4..5, 100..101] {
        let error = store
            .get_range("t", "logs/x/1", range)
            .await
            .expect_err("short");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(error.get("object"), Some("logs/x/1"));
        assert_eq!(error.get("pool"), Some("s3://bucket/a/pool"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_passes_is_tried_again_and_what_does_not_is_not() {
    for fault in [Act::Fail, Act::LoseAnswer, Act::Hang] {
        let (inner, store) = scripted(&[fault, fault, Act::Pass, fault, Act::Pass]);
        store.put("t", "x", "body".into()).await.expect("put");
        assert_eq!(requests(&inner), 3);
        let got = store.get("t", "x").await.expect("get");
        assert_eq!(got.as_deref(), Some(&b"body"[..]));
        assert_eq!(requests(&inner), 5);
    }
    let (inner, store) = scripted(&[Act::Refuse]);
    let error = store
        .put("t", "x", "body".into())
        .await
        .expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(requests(&inner), 1);
    let (inner, store) = scripted(&[Act::Pass, Act::Truncate, Act::Pass]);
    store.put("t", "x", "body".into()).await.expect("put");
    let got = store.get("t", "x").await.expect("get");
    assert_eq!((got.as_deref(), requests(&inner)), (Some(&b"body"[..]), 3));
}

#[tokio::test(start_paused = true)]
async fn it_is_not_tried_for_ever_and_no_secret_is_told() {
    for (act, kind) in [
        (Act::Fail, ErrorKind::Unavailable),
        (Act::Hang, ErrorKind::TimedOut),
        (Act::Refuse, ErrorKind::PermissionDenied),
    ] {
        let (_, store) = scripted(&[act; 1000]);
        let start = Instant::now();
        let error = store.get("t", "x").await.expect_err("no answer");
        assert_eq!(error.kind(), kind);
        assert!(start.elapsed() <= store.patience().read);
        let (_, store) = scripted(&[act; 1000]);
        let start = Instant::now();
        let put = store
            .put_new("t", "x", "body".into())
            .await
            .expect_err("no answer");
        assert!(start.elapsed() <= store.patience().write);
        for error in [error, put] {
            let shown = format!("{error} {error:?} {store:?}");
            assert!(!shown.contains("canary"), "{shown}");
            assert!(error.get("reason").is_some());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_create_only_put_knows_its_own_from_another_ones() {
    for acts in [
        &[][..],
        &[Act::Fail],
        &[Act::LoseAnswer],
        &[Act::Hang, Act::LoseAnswer],
        &[Act::Conflict],
        &[Act::LoseAnswer, Act::Pass, Act::Fail],
    ] {
        let (_, store) = scripted(acts);
        let put = store.put_new("t", "x", "mine".into()).await.expect("put");
        assert_eq!(put, Put::Created, "{acts:?}");
        let put = store.put_new("t", "x", "other".into()).await.expect("put");
        assert_eq!(put, Put::Taken, "{acts:?}");
        let got = store.get("t", "x").await.expect("get");
        assert_eq!(got.as_deref(), Some(&b"mine"[..]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_listing_goes_on_where_it_was() {
    for acts in [
        &[][..],
        &[Act::Fail],
        &[Act::Fail, Act::Fail, Act::Hang, Act::Fail],
    ] {
        let (inner, store) = scripted(&[]);
        for i in 0..7 {
            store
                .put("t", &format!("d/{i}"), "body".into())
                .await
                .expect("put");
        }
        let beside = Path::from("a/pool2/d/9");
        inner
            .inner
            .put_opts(&beside, "x".into(), PutOptions::default())
            .await
            .expect("put");
        inner.acts.lock().expect("not poisoned").extend(acts);
        let listed: Vec<Listed> = store
            .list("t", "d/", None)
            .try_collect()
            .await
            .expect("list");
        let names: Vec<_> = listed.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(
            names,
            ["d/0", "d/1", "d/2", "d/3", "d/4", "d/5", "d/6"],
            "{acts:?}"
        );
        assert!(listed.iter().all(|l| l.bytes == 4));
        let after: Vec<Listed> = store
            .list("t", "", Some("d/4"))
            .try_collect()
            .await
            .expect("list");
        assert_eq!(after, listed[5..]);
    }
    let (_, store) = scripted(&[Act::Hang; 1000]);
    let error = store
        .list("t", "d", None)
        .try_next()
        .await
        .expect_err("no answer");
    assert_eq!(
        (error.kind(), error.get("object")),
        (ErrorKind::TimedOut, Some("d"))
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_is_not_deleted_again() {
    let (inner, store) = scripted(&[]);
    let names: Vec<String> = (0..250).map(|i| format!("d/{i}")).collect();
    for name in &names {
        store.put("t", name, "x".into()).await.expect("put");
    }
    let before = requests(&inner);
    let acts = std::iter::repeat_n(Act::Truncate, 100);
    inner.acts.lock().expect("not poisoned").extend(acts);
    store.delete("t", names).await.expect("delete");
    assert_eq!(requests(&inner) - before, 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_counts_as_deleted() {
    let (inner, store) = scripted(&[]);
    let names: Vec<String> = (0..600).map(|i| format!("d/{i}")).collect();
    for name in names.iter().step_by(2) {
        store.put("t", name, "x".into()).await.expect("put");
    }
    store.put("t", "other", "x".into()).await.expect("put");
    inner
        .acts
        .lock()
        .expect("not poisoned")
        .push_back(Act::Fail);
    store.delete("t", names).await.expect("delete");
    let left: Vec<Listed> = store.list("t", "", None).try_collect().await.expect("list");
    assert_eq!(left.len(), 1);
    store.delete("t", Vec::new()).await.expect("nothing");
}

#[tokio::test(start_paused = true)]
async fn what_is_too_long_is_not_read() {
    let (inner, store) = scripted(&[]);
    let long = Bytes::from(vec![0; READ_LIMIT as usize + 1]);
    let at = Path::from("a/pool/x");
    inner
        .inner
        .put_opts(&at, long.into(), PutOptions::default())
        .await
        .expect("put");
    let error = store.get("t", "x").await.expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let damage = store.damaged("t", "x", Damage::Version { found: 9 });
    assert_eq!(damage.kind(), ErrorKind::InvalidConfig);
    assert_eq!(
        store.damaged("t", "x", Damage::Magic).kind(),
        ErrorKind::Corrupt
    );
}
