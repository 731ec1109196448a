mod damage;
mod model;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bytes::Bytes;
use futures::FutureExt;
use tempfile::TempDir;
use volmux_core::ByteRange;

use damage::recover_only;

use super::*;
use crate::seal::tests::both;

const SIZE: u64 = 16 << 10;

fn log() -> LogId {
    LogId(Uuid::from_u128(5))
}

/// In memory where that is possible: these tests sync thousands of times.
fn dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn config(dir: &Path, files: u64) -> JournalConfig {
    JournalConfig {
        dir: dir.to_owned(),
        limit: SIZE * files,
        segment: SIZE,
    }
}

fn write(seed: u64, length: usize) -> Op {
    let data = (0..length)
        .map(|i| (seed as usize * 31 + i * 7) as u8)
        .collect();
    Op::Write {
        offset: seed * 4096,
        data,
    }
}

fn all(replay: Replay) -> Vec<(u64, Op)> {
    replay.map(|item| item.unwrap()).collect()
}

/// What a `kill -9`, or a power cut that happens to leave everything, leaves.
fn copy_of(from: &Path) -> TempDir {
    let to = dir();
    for pool in from.read_dir().unwrap().map(|pool| pool.unwrap()) {
        for log in pool.path().read_dir().unwrap().map(|log| log.unwrap()) {
            let into = to.path().join(pool.file_name()).join(log.file_name());
            fs::create_dir_all(&into).unwrap();
            for file in log.path().read_dir().unwrap().map(|file| file.unwrap()) {
                fs::copy(file.path(), into.join(file.file_name())).unwrap();
            }
        }
    }
    to
}

fn files_in(dir: &Path, seal: &Seal) -> Vec<PathBuf> {
    let dir = dir
        .join(seal.pool().simple().to_string())
        .join(log().to_string());
    let files = dir.read_dir().unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.filter(|file| file.extension().is_some()).collect();
    files.sort();
    files
}

#[tokio::test]
async fn what_was_appended_comes_back_in_order() {
    for seal in both(1, 1) {
        let dir = dir();
        let config = config(dir.path(), 10);
        let (journal, replay) = Journal::open(&config, log(), &seal, None).unwrap();
        assert_eq!(replay.left(), 0);
        let zeros = Op::Zero {
            range: ByteRange::new(5, 1 << 40),
        };
        let mut ops = vec![zeros];
        ops.extend((1..20).map(|n| write(n, n as usize * 137)));
        let mut expected = Vec::new();
        for op in &ops {
            journal.room(3000).await;
            expected.push((journal.append(op.clone()).unwrap(), op.clone()));
        }
        assert_eq!(journal.position(), expected.last().unwrap().0);
        let id = journal.id();
        journal.end(false).await;
        for skip in [0, 7, 20] {
            let from = if skip == 0 { 0 } else { expected[skip - 1].0 };
            let (journal, replay) = Journal::open(&config, log(), &seal, Some((id, from))).unwrap();
            assert_eq!(all(replay), expected[skip..]);
            assert_eq!((journal.id(), journal.position()), (id, expected[19].0));
            journal.end(false).await;
        }
    }
}

#[tokio::test]
async fn a_long_write_is_split() {
    let [seal, _] = both(1, 1);
    let dir = dir();
    let config = config(dir.path(), 10);
    let (journal, _) = Journal::open(&config, log(), &seal, None).unwrap();
    let op = write(3, 10_000);
    journal.room(10_000).await;
    journal.append(op.clone()).unwrap();
    let mark = Some((journal.id(), 0));
    journal.end(false).await;
    let (_journal, replay) = Journal::open(&config, log(), &seal, mark).unwrap();
    let mut whole = Vec::new();
    for (_, part) in all(replay) {
        let Op::Write { offset, data } = part else {
            panic!("{part:?}");
        };
        assert_eq!(offset, 3 * 4096 + whole.len() as u64);
        whole.extend_from_slice(&data);
    }
    assert!(matches!(op, Op::Write { data, .. } if data == whole));
}

#[tokio::test]
async fn a_clean_end_leaves_nothing() {
    let [seal, _] = both(1, 1);
    let dir = dir();
    let config = config(dir.path(), 10);
    let (journal, _) = Journal::open(&config, log(), &seal, None).unwrap();
    journal.append(write(1, 1)).unwrap();
    journal.sync().await.unwrap();
    journal.end(true).await;
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    assert!(journal.append(write(1, 1)).is_ok() && journal.sync().await.is_err());
    Journal::open(&config, log(), &seal, None).unwrap();
}

#[tokio::test]
async fn one_opens_it_at_a_time() {
    let [seal, _] = both(1, 1);
    let dir = dir();
    let config = config(dir.path(), 10);
    let (journal, _) = Journal::open(&config, log(), &seal, None).unwrap();
    let error = Journal::open(&config, log(), &seal, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    Journal::open(&config, LogId(Uuid::from_u128(6)), &seal, None).unwrap();
    drop(journal);
    Journal::open(&config, log(), &seal, None).unwrap();
}

#[tokio::test]
async fn a_journal_that_the_manifest_does_not_name_is_thrown_away() {
    let [seal, _] = both(1, 1);
    let dir = dir();
    let config = config(dir.path(), 10);
    let (journal, _) = Journal::open(&config, log(), &seal, None).unwrap();
    journal.append(write(1, 1)).unwrap();
    let old = journal.id();
    journal.end(false).await;
    let other = Some((Uuid::from_u128(77), 0));
    let (journal, replay) = Journal::open(&config, log(), &seal, other).unwrap();
    assert_eq!((replay.left(), journal.position()), (0, 0));
    assert!(![old, Uuid::from_u128(77)].contains(&journal.id()));
}

#[tokio::test]
async fn a_journal_whose_end_was_lost_goes_on_after_what_is_committed() {
    let [seal, _] = both(1, 1);
    let dir = dir();
    let config = config(dir.path(), 10);
    let (journal, _) = Journal::open(&config, log(), &seal, None).unwrap();
    journal.append(write(1, 1)).unwrap();
    let id = journal.id();
    journal.end(false).await;
    let mark = Some((id, 1000));
    let (journal, replay) = Journal::open(&config, log(), &seal, mark).unwrap();
    assert_eq!((replay.left(), journal.position()), (0, 1000));
    let end = journal.append(write(2, 1)).unwrap();
    journal.end(false).await;
    let (_journal, replay) = Journal::open(&config, log(), &seal, mark).unwrap();
    assert_eq!(all(replay), [(end, write(2, 1))]);
}

#[tokio::test]
async fn files_are_used_again_and_no_more_are_made_than_allowed() {
    for seal in both(1, 1) {
        let dir = dir();
        let config = config(dir.path(), 3);
        let (journal, _) = Journal::open(&config, log(), &seal, None).unwrap();
        let mut ops = Vec::new();
        for n in 0..300 {
            if journal.room(1000).now_or_never().is_none() {
                let (committed, _) = ops[ops.len() - 5];
                journal.trim(committed);
                journal.room(1000).await;
            }
            ops.push((journal.append(write(n, 1000)).unwrap(), write(n, 1000)));
        }
        assert!(files_in(dir.path(), &seal).len() <= 3);
        let mark = (journal.id(), ops[295].0);
        journal.end(false).await;
        let (_journal, replay) = Journal::open(&config, log(), &seal, Some(mark)).unwrap();
        assert_eq!(all(replay), ops[296..]);
    }
}

/// Waits until no file is being made.
async fn prepared(journal: &Journal) {
    while journal.0.state().preparing {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_full_journal_says_so_and_waits_for_room() {
    let [seal, _] = both(1, 1);
    let dir = dir();
    let config = config(dir.path(), 2);
    let (journal, _) = Journal::open(&config, log(), &seal, None).unwrap();
    prepared(&journal).await;
    let mut end = 0;
    while journal.has_room(1000) {
        end = journal.append(write(1, 1000)).unwrap();
    }
    assert!(end > SIZE);
    let error = journal.append(write(1, 1000)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!(journal.position(), end);
    journal.sync().await.unwrap();
    assert!(journal.room(1000).now_or_never().is_none());
    let mut waiting = Box::pin(journal.room(1000));
    assert!((&mut waiting).now_or_never().is_none());
    journal.trim(end);
    waiting.await;
    journal.append(write(1, 1000)).unwrap();
    journal.sync().await.unwrap();
    assert_eq!(files_in(dir.path(), &seal).len(), 2);
}

#[tokio::test]
async fn a_disk_without_room_for_a_second_file_makes_it_smaller() {
    let [seal, _] = both(1, 1);
    let dir = dir();
    let config = config(dir.path(), 4);
    let found = Dir::lock(dir.path(), seal.pool(), log()).unwrap();
    // Where the second file would be; the journal sees no file of its own in it.
    fs::create_dir(found.path().join("000001.journal")).unwrap();
    assert!(found.open(1).is_err() && found.make(1, SIZE).is_err());
    fs::remove_dir(found.path().join("000001.journal")).unwrap();
    let path = found.path().to_owned();
    drop(found);
    let (journal, _) = Journal::open(&config, log(), &seal, None).unwrap();
    prepared(&journal).await;
    // The second was made at once: it is the third that there is no room for.
    fs::create_dir(path.join("000002.journal")).unwrap();
    let (mut ops, mut trimmed) = (Vec::new(), 0);
    for n in 0..200 {
        prepared(&journal).await;
        if !journal.has_room(1000) {
            trimmed = n;
            journal.trim(ops.last().map_or(0, |(end, _)| *end));
        }
        ops.push((
            journal.append(write(n as u64, 1000)).unwrap(),
            write(n as u64, 1000),
        ));
    }
    assert_eq!(journal.0.state().most_files, 2);
    let mark = (journal.id(), ops[trimmed - 1].0);
    journal.end(false).await;
    fs::remove_dir(path.join("000002.journal")).unwrap();
    assert_eq!(recover_only(&config, &seal, mark).unwrap(), ops[trimmed..]);
}

#[tokio::test]
async fn with_one_file_alone_it_still_goes_on() {
    let [seal, _] = both(1, 1);
    let dir = dir();
    let config = config(dir.path(), 4);
    let (journal, _) = Journal::open(&config, log(), &seal, None).unwrap();
    prepared(&journal).await;
    journal.0.state().most_files = 1;
    journal.0.state().spares.clear();
    let (mut ops, mut trimmed) = (Vec::new(), 0);
    for n in 0..100 {
        if !journal.has_room(1000) {
            trimmed = n;
            journal.trim(ops.last().map_or(0, |(end, _)| *end));
        }
        ops.push((
            journal.append(write(n as u64, 1000)).unwrap(),
            write(n as u64, 1000),
        ));
    }
    let mark = (journal.id(), ops[trimmed - 1].0);
    journal.end(false).await;
    assert_eq!(recover_only(&config, &seal, mark).unwrap(), ops[trimmed..]);
}

#[tokio::test]
async fn a_disk_that_fails_stops_the_journal_and_not_the_volume() {
    let [seal, _] = both(1, 1);
    let dir = dir();
    let config = config(dir.path(), 4);
    let (journal, _) = Journal::open(&config, log(), &seal, None).unwrap();
    let mut ops = Vec::new();
    for n in 0..5 {
        ops.push((journal.append(write(n, 1000)).unwrap(), write(n, 1000)));
    }
    journal.sync().await.unwrap();
    prepared(&journal).await;
    let unwritable = Arc::new(File::open("/dev/null").unwrap());
    for (_, file) in &mut journal.0.state().spares {
        *file = Arc::clone(&unwritable);
    }
    for n in 5..20 {
        journal.append(write(n, 1000)).unwrap();
    }
    let error = journal.sync().await.unwrap_err();
    assert!(
        error.to_string().contains("the journal can't be written"),
        "{error}"
    );
    for n in 20..1000 {
        journal.room(1000).await;
        journal.append(write(n, 1000)).unwrap();
    }
    journal.sync().await.unwrap_err();
    assert_eq!(journal.0.state().queue.len(), 0);
    let mark = (journal.id(), ops[0].0);
    journal.end(false).await;
    let found = recover_only(&config, &seal, mark).unwrap();
    assert!(found.len() >= 4);
    assert_eq!(found[..4], ops[1..]);
}

#[tokio::test]
async fn a_directory_that_will_not_do_is_refused() {
    let [seal, _] = both(1, 1);
    let dir = dir();
    let refused = |config: &JournalConfig| {
        let error = Journal::open(config, log(), &seal, None).unwrap_err();
        (error.kind(), error.to_string())
    };
    let missing = refused(&config(&dir.path().join("missing"), 4));
    assert_eq!(missing.0, ErrorKind::InvalidConfig, "{}", missing.1);
    fs::write(dir.path().join("file"), "").unwrap();
    let file = refused(&config(&dir.path().join("file"), 4));
    assert_eq!(file.0, ErrorKind::InvalidConfig, "{}", file.1);
    let open = dir.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let others = refused(&config(&open, 4));
    assert!(others.1.contains("others may change"), "{}", others.1);
    let huge = JournalConfig {
        segment: 1 << 60,
        ..config(dir.path(), 4)
    };
    let huge = refused(&huge);
    assert_eq!(huge.0, ErrorKind::NoSpace, "{}", huge.1);
    assert!(JournalConfig::new(dir.path().to_owned(), SMALLEST - 1).is_err());
    let smallest = JournalConfig::new(dir.path().to_owned(), SMALLEST).unwrap();
    Journal::open(&smallest, log(), &seal, None).unwrap();
}

#[tokio::test]
async fn what_it_makes_is_for_nobody_else() {
    let [_, seal] = both(1, 1);
    let dir = dir();
    let (journal, _) = Journal::open(&config(dir.path(), 4), log(), &seal, None).unwrap();
    let data = Bytes::from_static(b"the plaintext of a secret volume");
    journal
        .append(Op::Write {
            offset: 0,
            data: data.clone(),
        })
        .unwrap();
    journal.sync().await.unwrap();
    let files = files_in(dir.path(), &seal);
    for file in &files {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!fs::read(file).unwrap().windows(8).any(|w| w == &data[..8]));
    }
    let place = files[0].parent().unwrap();
    assert_eq!(
        place.metadata().unwrap().permissions().mode() & 0o777,
        0o700
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_may_sync_at_once() {
    let [seal, _] = both(1, 1);
    let dir = dir();
    let config = JournalConfig::new(dir.path().to_owned(), 64 << 20).unwrap();
    let (journal, _) = Journal::open(&config, log(), &seal, None).unwrap();
    let journal = Arc::new(journal);
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let journal = Arc::clone(&journal);
            tokio::spawn(async move {
                for n in 0..200 {
                    let end = journal.append(write(task * 1000 + n, 4096)).unwrap();
                    journal.sync().await.unwrap();
                    assert!(journal.0.state().synced >= end);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mark = (journal.id(), 0);
    journal.end(false).await;
    let found = recover_only(&config, &seal, mark).unwrap();
    let mut seen: Vec<Op> = found.into_iter().map(|(_, op)| op).collect();
    assert_eq!(seen.len(), 1600);
    seen.sort_by_key(|op| match op {
        Op::Write { offset, .. } => *offset,
        Op::Zero { .. } => 0,
    });
    let expected = (0..8).flat_map(|task| (0..200).map(move |n| write(task * 1000 + n, 4096)));
    assert!(seen.into_iter().eq(expected));
}

#[test]
fn volumes_of_one_pool_come_and_go_at_once() {
    let dir = dir();
    let pool = Uuid::from_u128(1);
    std::thread::scope(|scope| {
        for volume in 0..4 {
            let dir = dir.path();
            scope.spawn(move || {
                for _ in 0..3000 {
                    let journal = files::Dir::lock(dir, pool, LogId(Uuid::from_u128(volume)));
                    let journal = journal.expect("its own journal");
                    journal.remove_all().expect("removed");
                }
            });
        }
    });
    let left = dir.path().read_dir().expect("a listing").count();
    assert!(left <= 1, "{left}");
}
