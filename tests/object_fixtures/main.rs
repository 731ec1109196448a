//! Pools that earlier versions made. This one opens a copy of each, finds in it what was put there,
//! and goes on with it.
//!
//! Fixtures are never changed. A version that writes another format adds its own: see make.rs.

mod make;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;
use volmux::object::{Compression, Encryption, Flush, Location, ObjectConfig, ObjectPool, PoolKey};
use volmux::{
    AuditOptions, ByteRange, ByteSize, Control, CreateOptions, ErrorKind, ExtentQuery, OpenOptions,
    OriginKind, Pool, PoolExt, SnapshotOptions,
};
use volmux_conformance::{checked_name as n, on};

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;
/// The longest name that there is.
const LONG: &str = concat!(
    "n23456789-123456789-123456789-123456789-123456789-123456789-123456789-",
    "123456789-123456789-123456789-123456789-123456789-1234567"
);
/// A block far away: the map has two levels above its leaves.
const FAR: u64 = 3 << 28;

/// A fixture: a directory below `tests/fixtures/object-v1`.
#[derive(Clone, Copy, Debug)]
struct Fixture {
    name: &'static str,
    /// With this key.
    encrypted: bool,
    compression: Compression,
    /// What the last writer flushed last is in a journal only.
    journaled: bool,
    holds: &'static [Holds],
}

/// What a volume of a fixture holds.
#[derive(Clone, Copy, Debug)]
struct Holds {
    name: &'static str,
    size: u64,
    origin: Option<(OriginKind, &'static str)>,
    /// Each block that holds something, and what.
    blocks: &'static [(u64, u64)],
}

const fn volume(name: &'static str, size: u64, blocks: &'static [(u64, u64)]) -> Holds {
    Holds {
        name,
        size,
        origin: None,
        blocks,
    }
}

const fn from(
    kind: OriginKind,
    parent: &'static str,
    name: &'static str,
    size: u64,
    blocks: &'static [(u64, u64)],
) -> Holds {
    Holds {
        name,
        size,
        origin: Some((kind, parent)),
        blocks,
    }
}

const WEB: u64 = 4 << 40;
const FIXTURES: [Fixture; 6] = [
    Fixture {
        name: "plain",
        encrypted: false,
        compression: Compression::None,
        journaled: false,
        holds: &[
            volume("web", WEB, &[(0, 1), (1, 6), (3, 10), (6144, 3), (FAR, 5)]),
            from(OriginKind::Snapshot, "web", "monday", WEB, MONDAY),
            from(OriginKind::Snapshot, "web", "tuesday", WEB, TUESDAY),
            from(OriginKind::Clone, "monday", "test", WEB, TEST),
            volume("grown", 32 * MIB, &[(0, 11), (5000, 13)]),
            volume("small", 1536, &[(0, 20)]),
            from(OriginKind::Copy, "small", "copied", 1536, &[(0, 20)]),
            from(OriginKind::Clone, "gone", "orphan", MIB, &[(0, 21)]),
            volume("db", 64 * MIB, &[(0, 14), (1, 15)]),
            volume("renamed", MIB, &[]),
            volume(LONG, MIB, &[]),
        ],
    },
    Fixture {
        name: "encrypted",
        encrypted: true,
        compression: Compression::None,
        journaled: false,
        holds: SOME,
    },
    Fixture {
        name: "lz4",
        encrypted: false,
        compression: Compression::Lz4,
        journaled: false,
        holds: SOME,
    },
    Fixture {
        name: "zstd-encrypted",
        encrypted: true,
        compression: Compression::Zstd,
        journaled: false,
        holds: SOME,
    },
    Fixture {
        name: "journal",
        encrypted: false,
        compression: Compression::None,
        journaled: true,
        holds: &[volume("db", 64 * MIB, &[(0, 14), (2, 16)])],
    },
    Fixture {
        name: "journal-encrypted",
        encrypted: true,
        compression: Compression::None,
        journaled: true,
        holds: &[volume("db", 64 * MIB, &[(0, 14), (2, 16)])],
    },
];
const SOME: &[Holds] = &[
    volume("web", WEB, MONDAY),
    from(OriginKind::Snapshot, "web", "monday", WEB, MONDAY),
    from(OriginKind::Clone, "monday", "test", WEB, TEST),
];
const MONDAY: &[(u64, u64)] = &[(0, 1), (1, 6), (6144, 3), (FAR, 5)];
const TUESDAY: &[(u64, u64)] = &[(1, 6), (2, 7), (6144, 3), (FAR, 5)];
const TEST: &[(u64, u64)] = &[(0, 1), (1, 6), (6144, 8), (FAR, 5)];

/// The content of a block.
fn block(tag: u64) -> Bytes {
    Bytes::from(tag.to_le_bytes().repeat(BLOCK as usize / 8))
}

/// Where the fixtures of format version 1 are.
fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/object-v1")
}

/// A pool with its journals, in directories of its own.
#[derive(Debug)]
struct Place {
    dir: TempDir,
    encrypted: bool,
    compression: Compression,
    journaled: bool,
}

impl Place {
    fn new(fixture: &Fixture) -> Place {
        let dir = tempfile::tempdir().expect("a directory");
        let only_mine = fs::Permissions::from_mode(0o700);
        fs::set_permissions(dir.path(), only_mine).expect("mode");
        Place {
            dir,
            encrypted: fixture.encrypted,
            compression: fixture.compression,
            journaled: fixture.journaled,
        }
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    fn config(&self) -> ObjectConfig {
        let mut config = ObjectConfig::new(Location::Directory(self.store()));
        config.compression = Some(self.compression);
        if self.encrypted {
            config.encryption = Some(Encryption::Aes256Gcm);
            config.key = Some(PoolKey::new([7; 32]));
        }
        if self.journaled {
            config.flush = Flush::Journal;
            config.journal = Some(self.journal());
            config.journal_size = Some(ByteSize::mib(16));
        }
        config
    }

    async fn open(&self) -> Arc<dyn Pool> {
        ObjectPool::open(self.config()).await.expect("it opens")
    }
}

/// Copies a directory; a file of a journal gets back the zeros that it ended with.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory");
    let only_mine = fs::Permissions::from_mode(0o700);
    fs::set_permissions(to, only_mine).expect("mode");
    for entry in fs::read_dir(from).expect("a directory") {
        let from = entry.expect("an entry").path();
        let to = to.join(from.file_name().expect("a name"));
        if from.is_dir() {
            copy(&from, &to);
            continue;
        }
        fs::write(&to, fs::read(&from).expect("a file")).expect("a copy");
        if from.extension().is_some_and(|end| end == "journal") {
            let file = fs::File::options().write(true).open(&to).expect("a copy");
            file.set_len(4 * MIB).expect("zeros");
        }
    }
}

/// Every volume is there and holds what it held.
async fn check(pool: &dyn Pool, holds: &[Holds]) {
    let found = pool.volumes().await.expect("a list");
    let found: BTreeSet<&str> = found.iter().map(|volume| volume.name.as_str()).collect();
    let expected = holds.iter().map(|holds| holds.name).collect();
    assert_eq!(found, expected);
    for holds in holds {
        let volume = pool.volume(&n(holds.name)).await.expect("it is there");
        assert_eq!(volume.virtual_size.bytes(), holds.size, "{}", holds.name);
        let origin = volume.origin.as_ref();
        let origin = origin.map(|origin| (origin.kind, origin.parent_name.as_str()));
        assert_eq!(origin, holds.origin, "{}", holds.name);
        check_content(pool, holds).await;
    }
}

async fn check_content(pool: &dyn Pool, holds: &Holds) {
    let name = n(holds.name);
    let extents = pool.extents(&name, ExtentQuery::allocated()).await;
    let extents = extents.expect("extents").collect_joined().await;
    let mut expected: Vec<ByteRange> = Vec::new();
    for (at, _) in holds.blocks {
        let length = BLOCK.min(holds.size - at * BLOCK);
        match expected.last_mut() {
            Some(last) if last.end() == at * BLOCK => last.length += length,
            _ => expected.push(ByteRange::new(at * BLOCK, length)),
        }
    }
    assert_eq!(extents.expect("extents"), expected, "{name}");
    let options = OpenOptions::read_only();
    let device = pool.open_volume(&name, options).await.expect("open");
    for (at, tag) in holds.blocks {
        let length = BLOCK.min(holds.size - at * BLOCK) as usize;
        let read = device.read_at(at * BLOCK, length).await.expect("read");
        assert!(read == block(*tag)[..length], "{name}: block {at}");
        // Beside it too.
        let beside = at + 1;
        let end = (beside + 1) * BLOCK;
        if end <= holds.size && holds.blocks.iter().all(|(other, _)| *other != beside) {
            let read = device.read_at(beside * BLOCK, BLOCK as usize).await;
            assert!(read.expect("read") == block(0), "{name}: block {beside}");
        }
    }
    let last = holds.size.saturating_sub(BLOCK) / BLOCK * BLOCK;
    if holds.blocks.iter().all(|(at, _)| at * BLOCK != last) {
        let read = device.read_at(last, BLOCK as usize).await.expect("read");
        assert!(read == block(0), "{name}: the end");
    }
}

async fn check_sound(pool: &dyn Pool) {
    let report = pool.scrub(Control::default()).await.expect("scrub");
    assert!(
        report.is_clean() && report.findings.is_empty(),
        "{report:?}"
    );
    let options = AuditOptions::default();
    let report = pool.audit(options).await.expect("audit");
    assert!(
        report.is_clean() && report.findings.is_empty(),
        "{report:?}"
    );
}

/// What follows from `check`, without having been written at that time.
async fn check_differences(pool: &dyn Pool) {
    for (volume, since, differ) in [
        ("web", "monday", &[3][..]),
        ("tuesday", "monday", &[0, 2]),
        ("test", "monday", &[6144]),
    ] {
        let query = ExtentQuery::changed_since(n(since));
        let changed = pool.extents(&n(volume), query).await.expect("extents");
        let changed = changed.collect_joined().await.expect("extents");
        let blocks: u64 = changed.iter().map(|range| range.length / BLOCK).sum();
        assert!(blocks <= 2 * differ.len() as u64, "{volume}: {changed:?}");
        for at in differ {
            let is_in = |range: &ByteRange| range.offset <= at * BLOCK && at * BLOCK < range.end();
            assert!(changed.iter().any(is_in), "{volume}: {at} in {changed:?}");
        }
    }
}

/// Waits until what a writer of this process left in its journal is in the store.
async fn until_closed(place: &Place, name: &str) {
    let options = OpenOptions::read_write();
    let opened = place.open().await.open_volume(&n(name), options).await;
    drop(opened.expect("it waits for the one before"));
}

/// Writes to every volume that can be written, and deletes one.
async fn go_on(place: &Place, holds: &[Holds]) {
    const NEW: u64 = 1000;
    let tagged = |holds: &Holds, tag: u64| {
        let mut data = block(tag);
        data.truncate(holds.size.min(BLOCK) as usize);
        data
    };
    let is_snapshot = |holds: &&Holds| matches!(holds.origin, Some((OriginKind::Snapshot, _)));
    let pool = place.open().await;
    for (tag, holds) in (NEW..).zip(holds.iter().filter(|holds| !is_snapshot(holds))) {
        // Whoever had it open for writing is gone, with the host that it was on.
        let options = OpenOptions {
            take_over: true,
            ..OpenOptions::read_write()
        };
        let opened = pool.open_volume(&n(holds.name), options).await;
        let device = opened.unwrap_or_else(|error| panic!("{}: {error}", holds.name));
        device.write_at(0, tagged(holds, tag)).await.expect("write");
        device.flush().await.expect("flush");
    }
    let (first, snapshot) = (holds[0], n("new-snapshot"));
    let options = SnapshotOptions::default();
    let made = pool
        .snapshot_volume(&n(first.name), &snapshot, options)
        .await;
    made.expect("snapshot");
    let options = CreateOptions::thin(ByteSize::new(MIB));
    pool.create_volume(&n("new"), options)
        .await
        .expect("create");
    drop(pool);
    for holds in holds.iter().filter(|holds| !is_snapshot(holds)) {
        until_closed(place, holds.name).await;
    }

    let pool = place.open().await;
    pool.collect_garbage().await.expect("garbage");
    for (tag, holds) in (NEW..).zip(holds.iter().filter(|holds| !is_snapshot(holds))) {
        let options = OpenOptions::read_only();
        let device = pool
            .open_volume(&n(holds.name), options)
            .await
            .expect("open");
        let data = tagged(holds, tag);
        let read = device.read_at(0, data.len()).await.expect("read");
        assert!(read == data, "{}", holds.name);
        // What was there before is there still.
        for (at, tag) in holds.blocks.iter().filter(|(at, _)| *at != 0) {
            let read = device.read_at(at * BLOCK, BLOCK as usize).await;
            assert!(read.expect("read") == block(*tag), "{}: {at}", holds.name);
        }
    }
    for holds in holds.iter().filter(is_snapshot) {
        check_content(&*pool, holds).await;
    }
    pool.delete_volume(&n(first.name)).await.expect("delete");
    pool.collect_garbage().await.expect("garbage");
    for holds in holds.iter().filter(is_snapshot) {
        check_content(&*pool, holds).await;
    }
    check_sound(&*pool).await;
}

/// Holds what `from` has against what it must have.
async fn check_fixture(fixture: &Fixture, from: &Path) {
    let place = Place::new(fixture);
    copy(&from.join("store"), &place.store());
    if fixture.journaled {
        copy(&from.join("journal"), &place.journal());
        // What is in the journal is not in the store: on the host that wrote it that is told, on
        // others it is an earlier state.
        let pool = place.open().await;
        match pool.open_volume(&n("db"), OpenOptions::read_only()).await {
            Ok(device) => {
                let read = device.read_at(2 * BLOCK, BLOCK as usize).await;
                assert!(read.expect("read") == block(0));
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
                assert!(error.get("journal").is_some(), "{error}");
            }
        }
        let options = OpenOptions {
            take_over: true,
            ..OpenOptions::read_write()
        };
        drop(pool.open_volume(&n("db"), options).await.expect("a replay"));
        until_closed(&place, "db").await;
    }
    let pool = place.open().await;
    check(&*pool, fixture.holds).await;
    if fixture.name == "plain" {
        check_differences(&*pool).await;
    }
    check_sound(&*pool).await;
    drop(pool);
    go_on(&place, fixture.holds).await;
    if fixture.encrypted {
        let mut config = place.config();
        config.key = Some(PoolKey::new([8; 32]));
        let refused = ObjectPool::open(config).await.expect_err("another key");
        assert_eq!(refused.kind(), ErrorKind::Unauthenticated);
    }
}

#[test]
fn pools_of_format_1_are_read_and_written() {
    for fixture in &FIXTURES {
        on(check_fixture(fixture, &fixtures().join(fixture.name)));
    }
}

/// What this version writes, it reads; so the way to make fixtures is there when it is needed.
#[test]
fn fixtures_can_be_made() {
    for fixture in &FIXTURES {
        let made = tempfile::tempdir().expect("a directory");
        on(make::make(fixture, made.path()));
        on(check_fixture(fixture, made.path()));
    }
}

#[test]
#[ignore = "writes the fixtures of a new format into the directory VOLMUX_FIXTURES"]
fn make_fixtures() {
    let into = std::env::var_os("VOLMUX_FIXTURES").expect("VOLMUX_FIXTURES says where to");
    for fixture in &FIXTURES {
        let into = Path::new(&into).join(fixture.name);
        fs::create_dir_all(into.parent().expect("above it")).expect("a directory");
        fs::create_dir(&into).expect("fixtures are never changed");
        on(make::make(fixture, &into));
    }
}
