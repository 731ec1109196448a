use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use proptest::prelude::*;

use super::*;

fn store() -> (tempfile::TempDir, LocalStore) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("opened");
    (dir, store)
}

async fn put(store: &LocalStore, name: &str, body: &str, mode: PutMode) -> Result<PutResult> {
    let options = PutOptions::from(mode);
    store
        .put_opts(&Path::from(name), body.to_owned().into(), options)
        .await
}

async fn get(store: &LocalStore, name: &str) -> Result<Bytes> {
    let options = GetOptions::default();
    store
        .get_opts(&Path::from(name), options)
        .await?
        .bytes()
        .await
}

async fn names(store: &LocalStore, prefix: &str, offset: Option<&str>) -> Vec<String> {
    let prefix = Path::from(prefix);
    let listed = match offset {
        Some(offset) => store.list_with_offset(Some(&prefix), &Path::from(offset)),
        None => store.list(Some(&prefix)),
    };
    let names = listed.map_ok(|meta| meta.location.to_string());
    names.try_collect().await.expect("listed")
}

#[tokio::test]
async fn objects_are_files_and_come_back() {
    let (dir, store) = store();
    put(&store, "a/b/c", "body", PutMode::Overwrite)
        .await
        .expect("put");
    assert_eq!(fs::read(dir.path().join("a/b/c")).expect("a file"), b"body");
    let mode = |path: &str| {
        fs::metadata(dir.path().join(path))
            .expect("there")
            .permissions()
            .mode()
    };
    assert_eq!((mode("a/b/c") & 0o777, mode("a") & 0o777), (0o600, 0o700));
    assert_eq!(get(&store, "a/b/c").await.expect("get"), "body");
    put(&store, "a/b/c", "other", PutMode::Overwrite)
        .await
        .expect("put");
    assert_eq!(get(&store, "a/b/c").await.expect("get"), "other");
    let part = store
        .get_range(&Path::from("a/b/c"), 1..3)
        .await
        .expect("get");
    assert_eq!(part, "th");
    let taken = put(&store, "a/b/c", "third", PutMode::Create).await;
    assert!(matches!(taken, Err(Error::AlreadyExists { .. })));
    assert_eq!(get(&store, "a/b/c").await.expect("get"), "other");
    for name in ["a/b/d", "x", "a/b", "a"] {
        assert!(
            matches!(get(&store, name).await, Err(Error::NotFound { .. })),
            "{name}"
        );
    }
    store.delete(&Path::from("a/b/c")).await.expect("deleted");
    assert!(matches!(
        store.delete(&Path::from("a/b/c")).await,
        Err(Error::NotFound { .. })
    ));
    let left: Vec<_> = fs::read_dir(dir.path()).expect("read").flatten().collect();
    assert_eq!(left.len(), 1, "only .tmp stays");
    put(&store, "a/b/c", "again", PutMode::Create)
        .await
        .expect("the directories come back");
    assert_eq!(get(&store, "a/b/c").await.expect("get"), "again");
    assert!(store.space().expect("statvfs").total > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_puts_at_once_one_wins() {
    let (dir, store) = store();
    let other = LocalStore::open(dir.path()).expect("opened");
    for round in 0..20 {
        let name = format!("race/{round}/x");
        let tries = (0..8).map(|i| {
            let store = if i % 2 == 0 {
                store.clone()
            } else {
                other.clone()
            };
            let name = name.clone();
            tokio::spawn(async move {
                let body = i.to_string();
                put(&store, &name, &body, PutMode::Create)
                    .await
                    .is_ok()
                    .then_some(body)
            })
        });
        let won: Vec<String> = futures::future::join_all(tries)
            .await
            .into_iter()
            .filter_map(|task| task.expect("no panic"))
            .collect();
        assert_eq!(won.len(), 1);
        assert_eq!(get(&store, &name).await.expect("get"), won[0]);
    }
    assert_eq!(store.leftovers(false).expect("none"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn puts_go_on_beside_the_removal_of_empty_directories() {
    let (_dir, store) = store();
    let task = |i: u32| {
        let store = store.clone();
        tokio::spawn(async move {
            for round in 0..60 {
                let name = format!("d/{i}/{round}");
                put(&store, &name, "x", PutMode::Create).await.expect("put");
                store.delete(&Path::from(name)).await.expect("deleted");
            }
        })
    };
    for task in futures::future::join_all((0..4).map(task)).await {
        task.expect("no put failed");
    }
}

#[tokio::test]
async fn leftovers_are_told_from_files_in_the_making() {
    let (dir, store) = store();
    put(&store, "a", "x", PutMode::Create).await.expect("put");
    let making = store.directory(MAKING).expect("read").expect("there");
    let making = Making::new(making).expect("made");
    fs::write(dir.path().join(MAKING).join("left"), "12345").expect("written");
    let left = vec![(format!("{MAKING}/left"), 5)];
    assert_eq!(store.leftovers(false).expect("found"), left);
    assert_eq!(store.leftovers(true).expect("found"), left);
    assert_eq!(store.leftovers(true).expect("none"), []);
    drop(making);
    assert_eq!(
        fs::read_dir(dir.path().join(MAKING)).expect("read").count(),
        0
    );
    assert_eq!(names(&store, "", None).await, ["a"]);
}

#[tokio::test]
async fn no_symbolic_link_is_followed_and_no_name_leaves_the_root() {
    let (dir, store) = store();
    let outside = tempfile::tempdir().expect("a directory");
    fs::write(outside.path().join("secret"), "secret").expect("written");
    symlink(outside.path(), dir.path().join("link")).expect("linked");
    symlink(outside.path().join("secret"), dir.path().join("file")).expect("linked");
    for name in ["link/secret", "file"] {
        assert!(get(&store, name).await.is_err(), "{name}");
    }
    assert!(put(&store, "link/new", "x", PutMode::Create).await.is_err());
    assert!(!outside.path().join("new").exists());
    for name in ["../x", "a/../b", "/x", "a//b", ".tmp/x", "a/./b", ""] {
        let path = Path::from_iter(name.split('/'));
        let raw = Path::parse(name);
        for path in raw.into_iter().chain([path]) {
            if let Ok(relative) = relative(&path) {
                assert!(
                    !relative.split('/').any(|p| p == ".." || p.is_empty()),
                    "{name}"
                );
                assert!(!relative.starts_with(".tmp"));
            }
        }
    }
    assert_eq!(names(&store, "", None).await, ["file", "link"]);
}

#[tokio::test]
async fn what_is_too_long_or_no_file_is_an_error() {
    let (dir, store) = store();
    let long = fs::File::create(dir.path().join("long")).expect("made");
    long.set_len(READ_LIMIT + 1).expect("sparse");
    assert!(get(&store, "long").await.is_err());
    let at = Path::from("long");
    let part = store.get_range(&at, READ_LIMIT..READ_LIMIT + 1).await;
    assert_eq!(part.expect("get").len(), 1);
    let fifo = rustix::fs::CWD;
    let path = dir.path().join("fifo");
    rustix::fs::mknodat(fifo, &path, rustix::fs::FileType::Fifo, Mode::RUSR, 0).expect("made");
    assert!(get(&store, "fifo").await.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_listing_has_the_order_of_the_names(
        all in prop::collection::btree_set("[ab-][ab.-]?(/[ab0-]{1,2}){0,2}", 1..12),
        offset in "[ab-][ab.-]?(/[ab0-]{1,2}){0,2}",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let (_dir, store) = store();
            let mut expected = std::collections::BTreeSet::new();
            for name in &all {
                // A file system cannot have a file and a directory of one name.
                if put(&store, name, "x", PutMode::Create).await.is_ok() {
                    expected.insert(name.clone());
                }
            }
            let expected: Vec<String> = expected.into_iter().collect();
            assert_eq!(names(&store, "", None).await, expected.clone());
            let past: Vec<_> = expected.iter().filter(|n| **n > offset).cloned().collect();
            assert_eq!(names(&store, "", Some(&offset)).await, past);
            let below: Vec<_> = expected.iter().filter(|n| n.starts_with("a/")).cloned().collect();
            assert_eq!(names(&store, "a", None).await, below);
        });
    }
}
