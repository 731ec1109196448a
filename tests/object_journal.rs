//! Journals on disks that are full: clear errors, nothing lost that was flushed, and work that goes
//! on once there is space again.

mod writer;

use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use rustix::fs::FallocateFlags;
use tempfile::TempDir;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use volmux::{BlockDevice, ByteSize, CreateOptions, ErrorKind, OpenOptions, Pool};
use volmux_conformance::scratch::LoopFs;
use volmux_conformance::{checked_name as n, on, pattern};
use writer::{BLOCK, Writer};

const MIB: u64 = 1 << 20;
/// Bytes of each file of a journal of 16 MiB, the smallest there is.
const SEGMENT: u64 = 4 * MIB;

/// A store, and a file system for journals that is small.
struct Lab {
    disk: LoopFs,
    store: TempDir,
}

impl Lab {
    /// To be made before any other thread of the test.
    fn new(disk: u64) -> Lab {
        Lab {
            disk: LoopFs::tmpfs(disk),
            store: tempfile::tempdir().expect("a directory"),
        }
    }

    fn in_store(&self) -> String {
        format!("file+object://{}", self.store.path().display())
    }

    fn in_journal(&self) -> String {
        format!(
            "{}?flush=journal&journal_size=16MiB&journal={}",
            self.in_store(),
            self.disk.path().display()
        )
    }

    fn filler(&self) -> PathBuf {
        self.disk.path().join("filler")
    }

    /// Leaves no byte on the disk.
    fn fill(&self) {
        let mut file = File::create(self.filler()).expect("a file");
        let page = [0x55; BLOCK as usize];
        let full = loop {
            if let Err(error) = file.write_all(&page) {
                break error;
            }
        };
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }

    fn free(&self) {
        fs::remove_file(self.filler()).expect("it is there");
    }

    /// The files of the journals.
    fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(self.disk.path(), &mut found);
        found.retain(|path| path.extension().is_some_and(|end| end == "journal"));
        found
    }
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => walk(&path, found),
            false => found.push(path),
        }
    }
}

/// Whether a journal's file has all of its blocks.
fn is_whole(path: &Path) -> bool {
    let blocks = path.metadata().map(|metadata| metadata.blocks());
    blocks.is_ok_and(|blocks| blocks * 512 >= SEGMENT)
}

async fn open(url: &str) -> Arc<dyn Pool> {
    volmux::registry().open(url).await.expect("the pool opens")
}

async fn create(url: &str, name: &str) {
    let options = CreateOptions::thin(ByteSize::mib(64));
    let pool = open(url).await;
    pool.create_volume(&n(name), options).await.expect("create");
}

async fn device(url: &str, name: &str) -> volmux::Result<Arc<dyn BlockDevice>> {
    let options = OpenOptions::read_write();
    open(url).await.open_volume(&n(name), options).await
}

async fn flushed(device: &dyn BlockDevice, block: u64, seed: u64) {
    let data = pattern(seed, BLOCK as usize);
    device.write_at(block * BLOCK, data).await.expect("write");
    device.flush().await.expect("flush");
}

async fn holds(device: &dyn BlockDevice, block: u64, seed: u64) {
    let read = device.read_at(block * BLOCK, BLOCK as usize).await;
    let read = read.expect("read");
    assert!(read == pattern(seed, BLOCK as usize), "block {block}");
}

/// Everything that is told with level WARN or above, from all tests of this program.
static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Listener;

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        TOLD.lock().expect("no test panics in here").push(line.0);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").expect("a string");
    }
}

fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Listener).expect("the only one"));
}

/// What was told of `path`.
fn told_of(path: &Path) -> Vec<String> {
    let told = TOLD.lock().expect("no test panics in here");
    let path = path.display().to_string();
    told.iter()
        .filter(|line| line.contains(&path))
        .cloned()
        .collect()
}

#[test]
fn a_volume_is_not_opened_without_room_for_its_journal() {
    let lab = Lab::new(SEGMENT + 2 * MIB);
    lab.fill();
    on(async {
        create(&lab.in_store(), "web").await;
        let error = device(&lab.in_journal(), "web")
            .await
            .expect_err("it is full");
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert_eq!(error.get("reason"), Some("the journal's disk is full"));
        let disk = lab.disk.path().display().to_string();
        assert!(
            error
                .get("path")
                .is_some_and(|path| path.starts_with(&disk))
        );
        assert!(error.get("help").is_some(), "{error}");
        assert_eq!(lab.files(), Vec::<PathBuf>::new());

        // It was not opened, so nobody has to take it over.
        let plain = device(&lab.in_store(), "web").await.expect("no journal");
        flushed(&*plain, 0, 1).await;
        drop(plain);
        lab.free();
        let journaled = device(&lab.in_journal(), "web").await.expect("room");
        // A second one may be there for a moment, until it shows that there is no room for it.
        let files = lab.files().into_iter();
        assert_eq!(files.filter(|path| is_whole(path)).count(), 1);
        holds(&*journaled, 0, 1).await;
        flushed(&*journaled, 1, 2).await;
    });
}

#[test]
fn a_journal_on_a_full_disk_makes_do_with_the_files_that_it_has() {
    let lab = Lab::new(5 * SEGMENT + 2 * MIB);
    let ballast = lab.disk.path().join("ballast");
    fs::write(&ballast, vec![0x55; 3 * SEGMENT as usize]).expect("room");
    let url = lab.in_journal();
    on(create(&lab.in_store(), "shared"));
    let mut writer = Writer::start(&url, 0);
    // The second file is made in the background; for a third there is no room.
    let begun = std::time::Instant::now();
    while lab.files().iter().filter(|path| is_whole(path)).count() < 2 {
        let late = begun.elapsed() > Duration::from_secs(60);
        assert!(!late, "{:?}", lab.files());
        std::thread::sleep(Duration::from_millis(5));
    }
    lab.fill();
    // All that the files hold several times over: they are used again as it is uploaded.
    let records = 2 * SEGMENT / BLOCK;
    writer.until_flushed(3 * records);
    let last = writer.kill();
    assert_eq!(lab.files().len(), 2);

    // What was flushed last may fill all files; to go on takes another one.
    if let Err(error) = on(device(&url, "shared")) {
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert_eq!(error.get("reason"), Some("the journal's disk is full"));
    }
    lab.free();
    fs::remove_file(ballast).expect("it is there");
    let mut writer = Writer::start(&url, 1);
    writer.until_flushed(records);
    let after = writer.kill();
    // The journal is recovered, and what was in it is in the store when the volume is closed.
    on(async {
        drop(device(&url, "shared").await.expect("open"));
        drop(
            device(&url, "shared")
                .await
                .expect("it waits for the one before"),
        );
        writer::check(&lab.in_store(), &[last, after]).await;
    });
}

#[test]
fn when_the_journal_fails_flushes_end_in_the_store_and_that_is_told_once() {
    let lab = Lab::new(2 * SEGMENT + 2 * MIB);
    listen();
    on(async {
        create(&lab.in_store(), "web").await;
        let web = device(&lab.in_journal(), "web").await.expect("open");
        flushed(&*web, 0, 0).await;
        // A file system that copies on writing, or a thin disk, needs space for what is written
        // over what was there.
        for path in lab.files() {
            let file = File::options().write(true).open(path).expect("a file");
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, punch, MIB, SEGMENT - MIB).expect("a hole");
        }
        lab.fill();
        for block in 1..600 {
            flushed(&*web, block, block).await;
        }
        let told = told_of(lab.disk.path());
        let failed: Vec<_> = told
            .iter()
            .filter(|line| line.contains("can't be written"))
            .collect();
        assert_eq!(failed.len(), 1, "{:?}", &failed[..failed.len().min(3)]);
        assert!(
            failed[0].contains("ERROR") && failed[0].contains("No space left"),
            "{failed:?}"
        );
        assert!(told.len() <= 2, "{} lines: {:?}", told.len(), &told[..2]);
        // Another host, to which this one is lost, has all of it.
        let there = tempfile::tempdir().expect("a directory");
        let copied = std::process::Command::new("cp")
            .arg("-r")
            .args([lab.store.path(), &there.path().join("store")])
            .status();
        assert!(copied.expect("cp").success());
        let url = format!("file+object://{}/store", there.path().display());
        let options = OpenOptions {
            take_over: true,
            ..OpenOptions::read_write()
        };
        let taken = open(&url).await.open_volume(&n("web"), options).await;
        let taken = taken.expect("open");
        for block in 0..600 {
            holds(&*taken, block, block).await;
        }

        lab.free();
        drop(web);
        let web = device(&lab.in_journal(), "web")
            .await
            .expect("a new journal");
        for block in 600..1200 {
            flushed(&*web, block, block).await;
        }
        for block in 0..1200 {
            holds(&*web, block, block).await;
        }
        assert_eq!(told_of(lab.disk.path()), told, "the new one works");
    });
}
