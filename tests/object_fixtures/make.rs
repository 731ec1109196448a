//! How the fixtures were made. A version that writes a new format makes them anew, beside the old
//! ones; CONTRIBUTING.md tells how.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use volmux::{
    BlockDevice, ByteRange, ByteSize, CloneOptions, CopyOptions, CreateOptions, ErrorKind,
    OpenOptions, Pool, ResizeOptions, RevertOptions, SnapshotOptions,
};
use volmux_conformance::checked_name as n;

use super::{BLOCK, FAR, Fixture, LONG, MIB, Place, WEB, block};

/// Records of the catalogue after which there is a checkpoint of it.
const RECORDS: usize = 66;

/// Makes `fixture` in the directory `into`.
pub async fn make(fixture: &Fixture, into: &Path) {
    let place = Place::new(fixture);
    fs::create_dir(place.store()).expect("a directory");
    if fixture.journaled {
        fs::create_dir(place.journal()).expect("a directory");
        return journaled(&place, into).await;
    }
    let pool = place.open().await;
    web(&*pool, fixture.name == "plain").await;
    if fixture.name != "plain" {
        return keep(&place.store(), &into.join("store"));
    }
    others(&*pool).await;
    let options = OpenOptions::read_only();
    let reader = pool.open_volume(&n("monday"), options).await.expect("open");
    let writer = superseded(&place, &*pool).await;
    // What a crash leaves: a volume that is open for writing, and a mark of a reader.
    keep(&place.store(), &into.join("store"));
    drop((reader, writer));
}

async fn create(pool: &dyn Pool, name: &str, size: u64) {
    let options = CreateOptions::thin(ByteSize::new(size));
    pool.create_volume(&n(name), options).await.expect("create");
}

async fn open(pool: &dyn Pool, name: &str) -> Arc<dyn BlockDevice> {
    let options = OpenOptions::read_write();
    pool.open_volume(&n(name), options).await.expect("open")
}

async fn write(device: &dyn BlockDevice, blocks: &[(u64, u64)]) {
    for (at, tag) in blocks {
        let mut data = block(*tag);
        data.truncate((device.size() - at * BLOCK).min(BLOCK) as usize);
        device.write_at(at * BLOCK, data).await.expect("write");
    }
    device.flush().await.expect("flush");
}

async fn snapshot(pool: &dyn Pool, name: &str, to: &str) {
    let options = SnapshotOptions::default();
    let made = pool.snapshot_volume(&n(name), &n(to), options).await;
    made.expect("snapshot");
}

async fn clone(pool: &dyn Pool, name: &str, to: &str) {
    let options = CloneOptions::default();
    let made = pool.clone_volume(&n(name), &n(to), options).await;
    made.expect("clone");
}

/// A volume with a map of three levels and a tail, a snapshot and a clone; in `full`, with holes
/// and reverted.
async fn web(pool: &dyn Pool, full: bool) {
    create(pool, "web", WEB).await;
    let device = open(pool, "web").await;
    write(&*device, &[(0, 1), (1, 2), (6144, 3), (FAR, 5)]).await;
    // This writes the map down.
    pool.collect_garbage().await.expect("garbage");
    write(&*device, &[(1, 6)]).await;
    snapshot(pool, "web", "monday").await;
    clone(pool, "monday", "test").await;
    write(&*open(pool, "test").await, &[(6144, 8)]).await;
    if full {
        let hole = ByteRange::new(0, BLOCK);
        device.discard(hole).await.expect("discard");
        write(&*device, &[(2, 7)]).await;
        snapshot(pool, "web", "tuesday").await;
        drop(device);
        let options = RevertOptions::default();
        let reverted = pool.revert_volume(&n("web"), &n("monday"), options).await;
        reverted.expect("revert");
        write(&*open(pool, "web").await, &[(3, 10)]).await;
    }
}

/// Volumes that were resized, copied, renamed and deleted, and a checkpoint of the catalogue.
async fn others(pool: &dyn Pool) {
    create(pool, "grown", 8 * MIB).await;
    for (size, blocks) in [
        (1024 * MIB, &[(0, 11), (200_000, 12)][..]),
        (16 * MIB, &[]),
        (32 * MIB, &[(5000, 13)]),
    ] {
        let options = ResizeOptions {
            size: ByteSize::new(size),
            allow_shrink: true,
        };
        let resized = pool.resize_volume(&n("grown"), options).await;
        resized.expect("resize");
        if !blocks.is_empty() {
            write(&*open(pool, "grown").await, blocks).await;
        }
    }
    create(pool, "small", 1536).await;
    write(&*open(pool, "small").await, &[(0, 20)]).await;
    let options = CopyOptions::default();
    let copied = pool.copy_volume(&n("small"), &n("copied"), options).await;
    copied.expect("copy");
    create(pool, "gone", MIB).await;
    write(&*open(pool, "gone").await, &[(0, 21)]).await;
    clone(pool, "gone", "orphan").await;
    pool.delete_volume(&n("gone")).await.expect("delete");
    create(pool, LONG, MIB).await;
    create(pool, "old-name", MIB).await;
    let names = ["old-name", "renamed"].map(n);
    for at in 0..RECORDS + 1 {
        let [from, to] = [at % 2, (at + 1) % 2].map(|which| &names[which]);
        pool.rename_volume(from, to).await.expect("rename");
    }
}

/// A volume with a writer, which took it from another one, whose last object nobody needs.
async fn superseded(place: &Place, pool: &dyn Pool) -> Arc<dyn BlockDevice> {
    create(pool, "db", 64 * MIB).await;
    let before = open(pool, "db").await;
    write(&*before, &[(0, 14)]).await;
    let there = place.open().await;
    let options = OpenOptions {
        take_over: true,
        ..OpenOptions::read_write()
    };
    let device = there.open_volume(&n("db"), options).await.expect("open");
    before.write_at(2 * BLOCK, block(99)).await.expect("write");
    let late = before.flush().await.expect_err("it is too late");
    assert_eq!(late.kind(), ErrorKind::Fenced);
    write(&*device, &[(1, 15)]).await;
    device
}

/// A volume whose writer flushed into a journal what is not in the store.
async fn journaled(place: &Place, into: &Path) {
    let pool = place.open().await;
    create(&*pool, "db", 64 * MIB).await;
    drop(open(&*pool, "db").await);
    // The store as of now, and the journal as of later.
    let device = open(&*pool, "db").await;
    keep(&place.store(), &into.join("store"));
    write(&*device, &[(0, 14), (2, 16)]).await;
    let zeros = ByteRange::new(BLOCK, BLOCK);
    device.discard(zeros).await.expect("discard");
    device.flush().await.expect("flush");
    keep(&place.journal(), &into.join("journal"));
}

/// Copies a directory, without the zeros at the end of a journal's files.
fn keep(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let from = entry.expect("an entry").path();
        let to = to.join(from.file_name().expect("a name"));
        let name = to.file_name().and_then(|name| name.to_str());
        // What is being written, and who has it open.
        if matches!(name, Some(".tmp" | "lock")) {
            continue;
        }
        if from.is_dir() {
            keep(&from, &to);
            continue;
        }
        let mut bytes = fs::read(&from).expect("a file");
        if from.extension().is_some_and(|end| end == "journal") {
            let end = bytes.iter().rposition(|byte| *byte != 0);
            bytes.truncate(end.map_or(0, |end| end + 1));
        }
        fs::write(&to, bytes).expect("a copy");
    }
}
