//! The server as object_store sees it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    BackoffConfig, Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload, RetryConfig,
};
use volmux_s3_server::{Fault, Keys, Kind, Options, Remote, Rule, Server};

fn client_with(server: &Server, secret: &str, retries: usize) -> AmazonS3 {
    let retry = RetryConfig {
        max_retries: retries,
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(5),
            ..BackoffConfig::default()
        },
        ..RetryConfig::default()
    };
    AmazonS3Builder::new()
        .with_endpoint(server.endpoint())
        .with_bucket_name("bucket")
        .with_region("us-east-1")
        .with_access_key_id("somebody")
        .with_secret_access_key(secret)
        .with_allow_http(true)
        .with_retry(retry)
        .build()
        .expect("a client")
}

fn client(server: &Server) -> AmazonS3 {
    client_with(server, "secret", 0)
}

fn start() -> Server {
    Server::start(Options::default()).expect("a server")
}

async fn create(store: &AmazonS3, key: &str, data: &'static str) -> object_store::Result<()> {
    let payload = PutPayload::from_static(data.as_bytes());
    let key = Path::from(key);
    let put = store.put_opts(&key, payload, PutMode::Create.into());
    put.await.map(drop)
}

#[tokio::test]
async fn objects_are_put_read_listed_and_deleted() {
    let server = start();
    let store = client(&server);
    let data: Bytes = (0..3_000_000_u32).map(|i| (i * 7) as u8).collect();
    let key = Path::from("a/odd & <key> +ü/1");
    store.put(&key, data.clone().into()).await.expect("put");
    let got = store.get(&key).await.expect("get");
    assert_eq!(got.bytes().await.expect("bytes"), data);
    let part = store.get_range(&key, 1000..5096).await.expect("range");
    assert_eq!(part, data[1000..5096]);
    assert_eq!(store.head(&key).await.expect("head").size, 3_000_000);
    let beyond = store.get_range(&key, 4_000_000..4_000_001).await;
    assert!(beyond.is_err());

    let listed: Vec<_> = store.list(None).try_collect().await.expect("list");
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0].location, listed[0].size), (&key, 3_000_000));
    store.delete(&key).await.expect("delete");
    let gone = store.get(&key).await;
    assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
    let counts = server.counts();
    assert_eq!((counts.put, counts.get, counts.head), (1, 4, 1));
    assert_eq!((counts.list, counts.delete + counts.delete_many), (1, 1));
    assert_eq!(counts.failed, 2);
    assert!(counts.bytes_in >= 3_000_000 && counts.bytes_out >= 3_004_096);
    assert!(server.keys("bucket", "").is_empty());
}

#[tokio::test]
async fn lists_have_pages_and_prefixes() {
    let server = start();
    let store = client(&server);
    futures::stream::iter(0..2500)
        .for_each_concurrent(16, |n| {
            let store = &store;
            async move {
                let key = format!("d/{}/{n:04}", n % 3);
                create(store, &key, "x").await.expect("create");
            }
        })
        .await;
    let before = server.counts();
    let all: Vec<_> = store.list(None).try_collect().await.expect("list");
    assert_eq!(all.len(), 2500);
    assert!(
        all.windows(2)
            .all(|pair| pair[0].location < pair[1].location)
    );
    assert_eq!((server.counts() - before).list, 3);

    let prefix = Path::from("d/1");
    let after = Path::from("d/1/2000");
    let rest: Vec<_> = store
        .list_with_offset(Some(&prefix), &after)
        .try_collect()
        .await
        .expect("list");
    assert_eq!(rest.len(), (2001..2500).filter(|n| n % 3 == 1).count());
    let top = store
        .list_with_delimiter(Some(&Path::from("d")))
        .await
        .expect("list");
    let prefixes: Vec<_> = top.common_prefixes.iter().map(AsRef::as_ref).collect();
    assert_eq!(prefixes, ["d/0", "d/1", "d/2"]);
    let locations = all.into_iter().map(|object| Ok(object.location));
    let before = server.counts();
    let deleted: Vec<Path> = store
        .delete_stream(futures::stream::iter(locations).boxed())
        .try_collect()
        .await
        .expect("delete");
    assert_eq!(deleted.len(), 2500);
    assert_eq!((server.counts() - before).delete_many, 3);
    assert!(server.keys("bucket", "").is_empty());
}

#[tokio::test]
async fn of_two_that_create_one_wins() {
    let server = start();
    let (one, other) = (client(&server), client(&server));
    for n in 0..200 {
        let key = format!("race/{n}");
        let (a, b) = futures::join!(create(&one, &key, "a"), create(&other, &key, "b"));
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
        let lost = a.err().or(b.err()).expect("one lost");
        assert!(matches!(lost, Error::AlreadyExists { .. }), "{lost:?}");
    }
    assert_eq!(server.counts().create, 400);
    assert_eq!(server.counts().failed, 200);
}

#[tokio::test]
async fn signatures_are_checked_if_a_key_is_set() {
    let server = Server::start(Options {
        keys: Some(Keys {
            id: "somebody".into(),
            secret: "right".into(),
        }),
        ..Options::default()
    })
    .expect("a server");
    let right = client_with(&server, "right", 0);
    create(&right, "a b/u+&", "x").await.expect("create");
    let listed = right.list(Some(&Path::from("a b"))).count().await;
    assert_eq!(listed, 1);
    let wrong = client_with(&server, "wrong", 0);
    let refused = create(&wrong, "c", "x").await.expect_err("refused");
    assert!(
        format!("{refused:?}").contains("SignatureDoesNotMatch"),
        "{refused:?}"
    );
    assert_eq!(server.keys("bucket", ""), ["a b/u+&"]);
}

#[tokio::test]
async fn every_fault_shows_and_does_what_it_says() {
    let server = start();
    let store = client(&server);
    for (fault, done) in [
        (Fault::SlowDown, false),
        (Fault::Internal, false),
        (Fault::Denied, false),
        (Fault::Reset, false),
        (Fault::Hang(Duration::from_millis(50)), false),
        (Fault::LostAnswer, true),
    ] {
        server.fail(Rule::once(fault).of(Kind::Create).key("faulty"));
        create(&store, "other", "x").await.expect("another key");
        let failed = create(&store, "faulty", "x").await;
        assert!(failed.is_err(), "{fault:?}");
        assert_eq!(
            server.object("bucket", "faulty").is_some(),
            done,
            "{fault:?}"
        );
        server.damage("bucket", "other", None);
    }
    server.fail(Rule::once(Fault::TornAnswer).of(Kind::Get));
    let torn = async { store.get(&Path::from("faulty")).await?.bytes().await }.await;
    assert!(torn.is_err());
    server.read_only(true);
    let refused = create(&store, "late", "x").await.expect_err("read-only");
    assert!(
        matches!(refused, Error::PermissionDenied { .. }),
        "{refused:?}"
    );
    store.get(&Path::from("faulty")).await.expect("reads go on");
}

#[tokio::test]
async fn an_outage_ends() {
    let server = start();
    let store = client(&server);
    create(&store, "before", "x").await.expect("create");
    server.outage(Duration::from_millis(300));
    let start = Instant::now();
    create(&store, "during", "x")
        .await
        .expect_err("nobody there");
    assert!(server.object("bucket", "during").is_none());
    let patient = client_with(&server, "secret", 100);
    create(&patient, "after", "x").await.expect("later");
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert_eq!(server.keys("bucket", ""), ["after", "before"]);
}

#[tokio::test]
async fn orders_come_over_http_too() {
    let server = start();
    let store = client(&server);
    let remote = Remote::new(&server.endpoint());
    create(&store, "a", "x").await.expect("create");
    assert_eq!(remote.counts().expect("counts"), server.counts());
    let stored = remote.stored().expect("stored");
    assert_eq!((stored.objects, stored.bytes), (1, 1));
    remote
        .latency(Some(Kind::Get), Duration::from_millis(60))
        .expect("latency");
    let start = Instant::now();
    store.get(&Path::from("a")).await.expect("get");
    assert!(start.elapsed() >= Duration::from_millis(60));
    remote.order("fail?how=denied&kind=get").expect("fail");
    let refused = store.get(&Path::from("a")).await;
    assert!(
        matches!(refused, Err(Error::PermissionDenied { .. })),
        "{refused:?}"
    );
    remote.order("heal").expect("heal");
    assert!(remote.order("dance").is_err());
    server.record(true);
    store.get_range(&Path::from("a"), 0..1).await.expect("get");
    let records = server.record(false);
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].kind, &*records[0].key), (Kind::Get, "a"));
    assert_eq!(records[0].range.as_deref(), Some("bytes=0-0"));
}
