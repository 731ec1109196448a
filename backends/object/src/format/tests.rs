use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::path::Path;
use proptest::prelude::*;

use volmux_core::Error;

use super::*;
use crate::envelope::Kind;
use crate::ids::Ids;

const OP: &str = "open_pool";

fn store(inner: &Arc<InMemory>) -> Store {
    let (prefix, ids) = (Path::from("a/pool"), Arc::new(Ids::random()));
    Store::new(
        inner.clone(),
        prefix,
        "s3://b/a/pool",
        Patience::default(),
        ids,
    )
}

fn config(options: &str) -> ObjectConfig {
    let url = format!("memory+object:?{options}");
    ObjectConfig::from_url(&url.parse().expect("a URL")).expect("a configuration")
}

fn with_key(key: u8) -> ObjectConfig {
    ObjectConfig {
        key: Some(PoolKey::new([key; 32])),
        ..config("")
    }
}

fn encrypted(key: u8) -> ObjectConfig {
    ObjectConfig {
        encryption: Some(Encryption::Aes256Gcm),
        ..with_key(key)
    }
}

/// What a pool does before its first change.
async fn make(store: &Store, config: &ObjectConfig) -> Result<Format> {
    match read(OP, store, config).await? {
        Some(found) => Ok(found),
        None => create(OP, store, config, store.ids()).await,
    }
}

async fn refused(store: &Store, config: &ObjectConfig) -> Error {
    let found = read(OP, store, config).await.expect_err("refused");
    if !config.read_only {
        let prepared = make(store, config).await;
        assert_eq!(prepared.expect_err("refused").kind(), found.kind());
    }
    found
}

#[tokio::test]
async fn a_pool_is_made_before_the_first_change_and_found_from_then_on() {
    let inner = Arc::new(InMemory::new());
    let (store, config) = (store(&inner), config("compression=zstd"));
    assert!(read(OP, &store, &config).await.expect("empty").is_none());
    assert_eq!(store.get(OP, POOL).await.expect("get"), None);
    let made = make(&store, &config).await.expect("made");
    let again = make(&store, &config).await.expect("there");
    let found = read(OP, &store, &self::config("read_only=true")).await;
    let found = found.expect("found").expect("a pool");
    assert_eq!((made.id, made.id), (again.id, found.id));
    assert_eq!(found.compression, Compression::Zstd);
    let names: Vec<_> = store.list(OP, "", None).try_collect().await.expect("list");
    assert_eq!(names.len(), 1, "no probe is left: {names:?}");
}

#[tokio::test]
async fn of_two_that_make_a_pool_both_have_the_same() {
    let inner = Arc::new(InMemory::new());
    let (a, b) = (store(&inner), store(&inner));
    let (one, two) = (encrypted(1), encrypted(1));
    let (one, two) = futures::join!(make(&a, &one), make(&b, &two));
    let (one, two) = (one.expect("made"), two.expect("made"));
    assert_eq!(one.id, two.id);
    let wrapped = one
        .seal
        .wrap(Kind::Manifest, "x", b"body", [1; 12])
        .expect("wrapped");
    assert_eq!(
        two.seal.unwrap(Kind::Manifest, "x", &wrapped).as_deref(),
        Ok(&b"body"[..])
    );
}

#[tokio::test]
async fn what_is_no_pool_is_not_made_one_without_leave() {
    let inner = Arc::new(InMemory::new());
    let store = store(&inner);
    let error = refused(&store, &config("read_only=true")).await;
    assert_eq!(error.kind(), ErrorKind::NotFound);
    store.put(OP, "probe/left", "x".into()).await.expect("put");
    assert!(
        read(OP, &store, &config(""))
            .await
            .expect("empty")
            .is_none()
    );
    store
        .put(OP, "photos/1.jpg", "x".into())
        .await
        .expect("put");
    let error = refused(&store, &config("")).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert_eq!(error.get("object"), Some("photos/1.jpg"));
    make(&store, &config("init=true"))
        .await
        .expect("with leave");
    read(OP, &store, &config(""))
        .await
        .expect("found")
        .expect("a pool");
}

#[tokio::test]
async fn options_must_fit_the_pool() {
    let inner = Arc::new(InMemory::new());
    let store = store(&inner);
    make(&store, &config("")).await.expect("made");
    for config in [config("compression=lz4"), encrypted(1), with_key(1)] {
        let error = refused(&store, &config).await;
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        assert!(error.get("option").is_some());
    }
    read(OP, &store, &config("compression=none"))
        .await
        .expect("it fits");
}

#[tokio::test]
async fn an_encrypted_pool_opens_with_its_key_only() {
    let inner = Arc::new(InMemory::new());
    let store = store(&inner);
    let error = make(&store, &with_key(1)).await.expect_err("what for?");
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    make(&store, &encrypted(1)).await.expect("made");
    for config in [config(""), with_key(2), encrypted(2)] {
        let error = refused(&store, &config).await;
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    }
    read(OP, &store, &with_key(1))
        .await
        .expect("found")
        .expect("a pool");
    let text = store.get(OP, POOL).await.expect("get").expect("there");
    assert!(
        !String::from_utf8_lossy(&text).contains("AQEBAQEB"),
        "the key is not in it"
    );
}

fn described(change: impl FnOnce(&mut Description)) -> Vec<u8> {
    let mut description = Description {
        what: WHAT.to_owned(),
        version: FORMAT,
        id: Uuid::from_u128(7),
        block_size: BLOCK,
        compression: Compression::Lz4,
        encryption: None,
        crc32c: None,
    };
    change(&mut description);
    description.crc32c = description.checksum();
    serde_json::to_vec_pretty(&description).expect("JSON")
}

#[tokio::test]
async fn a_newer_pool_and_a_damaged_one_are_told_apart() {
    let newer = br#"{"what":"volmux object pool","version":2,"shards":[1,2]}"#.to_vec();
    for (bytes, kind) in [
        (
            described(|d| d.version = FORMAT + 1),
            ErrorKind::InvalidConfig,
        ),
        (newer, ErrorKind::InvalidConfig),
        (described(|d| d.version = 0), ErrorKind::Corrupt),
        (described(|d| d.block_size = 512), ErrorKind::Corrupt),
        (
            described(|d| d.what = "a photo album".into()),
            ErrorKind::Corrupt,
        ),
        (b"not JSON".to_vec(), ErrorKind::Corrupt),
        (b"{}".to_vec(), ErrorKind::Corrupt),
        (vec![b' '; LENGTH_LIMIT + 1], ErrorKind::Corrupt),
        (Vec::new(), ErrorKind::Corrupt),
    ] {
        let inner = Arc::new(InMemory::new());
        let store = store(&inner);
        store
            .put(OP, POOL, bytes.clone().into())
            .await
            .expect("put");
        let error = refused(&store, &config("")).await;
        assert_eq!(error.kind(), kind, "{}", String::from_utf8_lossy(&bytes));
        assert_eq!(
            (error.get("object"), error.get("pool")),
            (Some(POOL), Some("s3://b/a/pool"))
        );
        assert!(error.get("help").is_some());
    }
}

#[test]
fn the_description_is_what_the_specification_says() {
    let text = String::from_utf8(described(|_| {})).expect("UTF-8");
    assert_eq!(
        text,
        r#"{
  "what": "volmux object pool",
  "version": 1,
  "id": "00000000-0000-0000-0000-000000000007",
  "block_size": 4096,
  "compression": "lz4",
  "encryption": null,
  "crc32c": "CRC"
}"#
        .replace("CRC", &text[text.len() - 11..text.len() - 3])
    );
    assert!(parse(text.as_bytes()).is_ok());
}

proptest! {
    #[test]
    fn a_changed_byte_is_found(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = described(|_| {});
        let before = parse(&bytes).expect("intact");
        let at = at.index(bytes.len());
        bytes[at] = to;
        // White space and the spelling of a number or a letter's case may differ, the meaning not.
        if let Ok(description) = parse(&bytes) {
            prop_assert_eq!(description, before);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(parse(&bytes).is_err());
    }
}
