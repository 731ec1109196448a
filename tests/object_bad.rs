//! Object pools in places where they can't work, or only in part: one clear error that names what
//! and why, tells no secret, and leaves everything as it was.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use volmux::{ByteSize, CreateOptions, Error, ErrorKind, OpenOptions, Pool, PoolExt, Result};
use volmux_conformance::servers::{
    AZURE, AZURE_STRANGER, AZURITE, BUCKET, CARELESS, OWNER, READER, SEAWEED, STRANGER,
};
use volmux_conformance::{checked_name as n, on, pattern, read_all};

mod tree;
use tree::Tree;

const MIB: u64 = 1 << 20;
/// Part of every secret of these tests; in no error.
const CANARY: [&str; 4] = ["canary", "Canary", "owns", "Eby8vdM02xNOcqFl"];

async fn open(url: &str) -> Result<Arc<dyn Pool>> {
    volmux::registry().open(url).await
}

#[track_caller]
fn assert_error<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, names: &str) -> Error {
    let error = result.expect_err("it must be refused");
    assert_eq!(error.kind(), kind, "{error:?}");
    let shown = format!("{error} {error:?}");
    assert!(shown.contains(names), "{names} is not in {error}");
    assert!(
        CANARY.iter().all(|secret| !shown.contains(secret)),
        "{shown}"
    );
    assert!(error.get("reason").is_some(), "it says why: {error}");
    assert!(error.get("help").is_some(), "it says what helps: {error}");
    error
}

async fn create(pool: &dyn Pool, name: &str) -> Result<()> {
    let options = CreateOptions::thin(ByteSize::mib(8));
    pool.create_volume(&n(name), options).await.map(drop)
}

async fn write(pool: &dyn Pool, name: &str, data: Bytes) -> Result<()> {
    let options = OpenOptions::read_write();
    let device = pool.open_volume(&n(name), options).await?;
    device.write_at(0, data).await?;
    device.flush().await
}

/// A file that holds a key, which only its owner may read.
fn key_file(dir: &Path, digit: char, mode: u32) -> PathBuf {
    let path = dir.join(format!("key-{digit}"));
    std::fs::write(&path, digit.to_string().repeat(64)).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode set");
    path
}

fn directory(dir: &tempfile::TempDir) -> String {
    format!("file+object://{}", dir.path().display())
}

#[test]
fn wrong_credentials_are_refused() {
    let url = SEAWEED.place(STRANGER);
    assert_error(
        on(open(&url)),
        ErrorKind::Unauthenticated,
        "SignatureDoesNotMatch",
    );
    let url = AZURITE.place(AZURE_STRANGER);
    // What Azurite answers is, at Azure, the answer to one who has no right.
    assert_error(
        on(open(&url)),
        ErrorKind::PermissionDenied,
        "AuthorizationFailure",
    );
}

#[test]
fn a_bucket_that_is_missing_is_named() {
    let url = SEAWEED.url("no-such-bucket", "x", OWNER);
    assert_error(on(open(&url)), ErrorKind::NotFound, "s3://no-such-bucket/x");
    let url = AZURITE.url("no-such-container", "x", AZURE);
    assert_error(
        on(open(&url)),
        ErrorKind::NotFound,
        "az://no-such-container/x",
    );
    let url = "file+object:///nowhere/at/all";
    assert_error(on(open(url)), ErrorKind::NotFound, url);
}

#[test]
fn a_store_that_nobody_serves_is_said_to_be_unreachable() {
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        free.local_addr().expect("an address").port()
    };
    let url = SEAWEED.place(OWNER);
    let (place, credentials) = url.split_once('?').expect("options");
    let (_, credentials) = credentials.split_once('&').expect("credentials");
    let url = format!("{place}?endpoint=http://127.0.0.1:{port}&{credentials}&timeout=4s");
    let start = Instant::now();
    assert_error(on(open(&url)), ErrorKind::Unavailable, "refused");
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "it took {:?}",
        start.elapsed()
    );
}

#[test]
fn a_prefix_that_holds_something_else_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("photos")).expect("a directory");
    std::fs::write(dir.path().join("photos/1.jpg"), b"a photo").expect("written");
    let before = Tree::of(dir.path());
    let url = directory(&dir);
    assert_error(on(open(&url)), ErrorKind::InvalidConfig, "photos/1.jpg");
    assert_eq!(Tree::of(dir.path()), before);
    on(async {
        let pool = open(&format!("{url}?init=true")).await.expect("with leave");
        create(pool.as_ref(), "a").await.expect("created");
        open(&url).await.expect("it is a pool by now");
    });
    let photo = std::fs::read(dir.path().join("photos/1.jpg"));
    assert_eq!(photo.expect("it is there"), b"a photo");
}

#[test]
fn opening_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let url = directory(&dir);
    let before = Tree::of(dir.path());
    on(async {
        let pool = open(&url).await.expect("an empty directory");
        assert!(pool.find_volume(&n("a")).await.expect("asked").is_none());
    });
    assert_eq!(Tree::of(dir.path()), before);
    let refused = on(open(&format!("{url}?read_only=true")));
    assert_error(refused, ErrorKind::NotFound, "no pool");
}

#[test]
fn a_newer_format_is_told_from_damage() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("pool.json");
    let url = directory(&dir);
    for (text, kind, names) in [
        (
            r#"{"what": "volmux object pool", "version": 2, "shards": 7}"#,
            ErrorKind::InvalidConfig,
            "update volmux",
        ),
        (
            "{\"what\": \"volmux object pool\", \"version\": 1}",
            ErrorKind::Corrupt,
            "pool.json",
        ),
        ("this is not JSON", ErrorKind::Corrupt, "pool.json"),
        ("", ErrorKind::Corrupt, "pool.json"),
    ] {
        std::fs::write(&path, text).expect("written");
        let before = Tree::of(dir.path());
        assert_error(on(open(&url)), kind, names);
        assert_eq!(Tree::of(dir.path()), before);
    }
}

#[test]
fn an_encrypted_pool_opens_with_its_key_only() {
    let (dir, keys) = (tempfile::tempdir(), tempfile::tempdir());
    let (dir, keys) = (dir.expect("a directory"), keys.expect("a directory"));
    let [right, wrong] = ['a', 'b'].map(|digit| key_file(keys.path(), digit, 0o600));
    let with = |key: &Path| format!("{}?key_file={}", directory(&dir), key.display());
    let data = pattern(3, MIB as usize);
    on(async {
        let url = format!("{}&encryption=aes-256-gcm", with(&right));
        let pool = open(&url).await.expect("an empty directory");
        create(pool.as_ref(), "a").await.expect("created");
        write(pool.as_ref(), "a", data.clone())
            .await
            .expect("written");
    });
    let before = Tree::of(dir.path());
    assert_error(
        on(open(&with(&wrong))),
        ErrorKind::Unauthenticated,
        "another key",
    );
    assert_error(
        on(open(&directory(&dir))),
        ErrorKind::Unauthenticated,
        "no key",
    );
    let missing = keys.path().join("missing");
    assert_error(on(open(&with(&missing))), ErrorKind::NotFound, "missing");
    let open_to_all = key_file(keys.path(), 'c', 0o644);
    assert_error(
        on(open(&with(&open_to_all))),
        ErrorKind::InvalidConfig,
        "chmod 600",
    );
    assert_eq!(Tree::of(dir.path()), before);
    let content = on(async {
        let pool = open(&with(&right)).await.expect("the right key");
        read_all(pool.as_ref(), &n("a")).await
    });
    assert_eq!(content[..data.len()], data);
}

#[test]
fn a_key_is_not_taken_for_a_pool_that_is_not_encrypted() {
    let (dir, keys) = (tempfile::tempdir(), tempfile::tempdir());
    let (dir, keys) = (dir.expect("a directory"), keys.expect("a directory"));
    on(async {
        let pool = open(&directory(&dir)).await.expect("an empty directory");
        create(pool.as_ref(), "a").await.expect("created");
    });
    let key = key_file(keys.path(), 'a', 0o600);
    let url = format!("{}?key_file={}", directory(&dir), key.display());
    assert_error(on(open(&url)), ErrorKind::InvalidConfig, "not encrypted");
    let url = format!("{url}&encryption=aes-256-gcm");
    assert_error(on(open(&url)), ErrorKind::InvalidConfig, "no encryption");
}

#[test]
fn a_store_whose_conditional_puts_are_not_atomic_is_refused_for_writing() {
    on(async {
        let url = CARELESS.place(OWNER);
        for _ in 0..5 {
            let pool = open(&url).await.expect("reading is possible");
            let refused = create(pool.as_ref(), "a").await;
            assert_error(refused, ErrorKind::Unsupported, "not safe to write to");
            let found = pool.find_volume(&n("a")).await.expect("asked");
            assert!(found.is_none());
        }
        let refused = open(&format!("{url}&read_only=true")).await;
        assert_error(refused, ErrorKind::NotFound, "no pool");
    });
}

#[test]
fn who_may_only_read_can_read_and_is_told_so() {
    on(async {
        let [owners, readers] = [OWNER, READER].map(|user| SEAWEED.url(BUCKET, "shared", user));
        let pool = open(&readers).await.expect("an empty prefix");
        let refused = create(pool.as_ref(), "a").await;
        assert_error(refused, ErrorKind::PermissionDenied, "AccessDenied");

        let pool = open(&owners).await.expect("an empty prefix");
        create(pool.as_ref(), "a").await.expect("created");
        let data = pattern(4, MIB as usize);
        write(pool.as_ref(), "a", data.clone())
            .await
            .expect("written");

        for url in [readers.clone(), format!("{readers}&read_only=true")] {
            let pool = open(&url).await.expect("a pool");
            let content = read_all(pool.as_ref(), &n("a")).await;
            assert_eq!(content[..data.len()], data);
            let refused = create(pool.as_ref(), "b").await;
            assert_error(refused, ErrorKind::PermissionDenied, "s3://volmux/shared");
            let refused = write(pool.as_ref(), "a", data.clone()).await;
            assert_error(refused, ErrorKind::PermissionDenied, "s3://volmux/shared");
        }
        let content = read_all(pool.as_ref(), &n("a")).await;
        assert_eq!(content[..data.len()], data);
    });
}
