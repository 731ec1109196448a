use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bytes::Bytes;
use futures::FutureExt;
use proptest::prelude::*;
use tempfile::TempDir;
use volmux_core::ByteRange;

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

/// Ten records of which the first six were synced; the place of each end in the one file.
async fn ten_records(dir: &Path, seal: &Seal) -> (JournalConfig, (Uuid, u64), Vec<(u64, Op)>) {
    let config = config(dir, 4);
    let (journal, _) = Journal::open(&config, log(), seal, None).unwrap();
    let mut ops = Vec::new();
    for n in 0..10 {
        let op = write(n, 20 + n as usize);
        ops.push((journal.append(op.clone()).unwrap(), op));
        if n == 5 {
            journal.sync().await.unwrap();
        }
    }
    let mark = (journal.id(), 0);
    journal.end(false).await;
    (config, mark, ops)
}

#[tokio::test]
async fn whatever_becomes_of_the_end_all_that_was_synced_is_there() {
    for seal in both(1, 1) {
        let dir = dir();
        let (config, mark, ops) = ten_records(dir.path(), &seal).await;
        let file = files_in(dir.path(), &seal).remove(0);
        let bytes = fs::read(&file).unwrap();
        let place = |position: u64| (RECORDS + position) as usize;
        let (synced, end) = (place(ops[5].0), place(ops[9].0));
        for at in synced..=end {
            for damage in [0, 1, 2] {
                let mut bytes = bytes.clone();
                match damage {
                    // The rest never reached the disk.
                    0 => bytes[at..].fill(0),
                    1 => bytes[at] ^= 0x10,
                    // Neither did this, but what is after it.
                    _ => bytes[synced..at].fill(0),
                }
                fs::write(&file, &bytes).unwrap();
                let found = recover_only(&config, &seal, mark);
                let found = found.unwrap_or_else(|error| panic!("{at} {damage} {error}"));
                let count = found.len();
                assert_eq!(found, ops[..count], "{at} {damage}");
                assert!(count >= 6, "{at} {damage}: {count}");
                let intact = ops.iter().filter(|(end, _)| place(*end) <= at).count();
                match damage {
                    2 if at > synced => assert_eq!(count, 6),
                    2 => assert_eq!(count, 10),
                    _ => assert!(count >= intact, "{at} {damage}: {count}"),
                }
            }
        }
    }
}

/// What opening finds, without changing anything.
fn recover_only(config: &JournalConfig, seal: &Seal, mark: (Uuid, u64)) -> Result<Vec<(u64, Op)>> {
    let dir = Dir::lock(&config.dir, seal.pool(), log())?;
    let new = Uuid::from_u128(99);
    let found = recover::recover(&dir, config.segment, log(), seal, Some(mark), new)?;
    Replay::new(&found).collect()
}

#[tokio::test]
async fn damage_to_what_was_synced_is_an_error() {
    for seal in both(1, 1) {
        let dir = dir();
        let (config, mark, ops) = ten_records(dir.path(), &seal).await;
        let file = files_in(dir.path(), &seal).remove(0);
        let bytes = fs::read(&file).unwrap();
        let mut at = 0;
        for (position, _) in &ops[..6] {
            // Not the padding at a record's end.
            for at in at..(RECORDS + position) as usize - ALIGN_OF_RECORDS {
                if (HEADER_OF_SEGMENT..RECORDS as usize).contains(&at) {
                    continue;
                }
                let mut bytes = bytes.clone();
                bytes[at] ^= 0x04;
                fs::write(&file, &bytes).unwrap();
                match recover_only(&config, &seal, mark) {
                    Err(error) => assert!(
                        [ErrorKind::Corrupt, ErrorKind::InvalidConfig].contains(&error.kind()),
                        "{at}: {error}"
                    ),
                    // A header that is none leaves a journal that begins later, or not at all.
                    Ok(found) => assert!(at < HEADER_OF_SEGMENT && found.is_empty(), "{at}"),
                }
            }
            at = (RECORDS + position) as usize;
        }
    }
}

const ALIGN_OF_RECORDS: usize = format::ALIGN;
const HEADER_OF_SEGMENT: usize = format::HEADER;

#[tokio::test]
async fn what_was_ignored_once_never_comes_back() {
    let [seal, _] = both(1, 1);
    let dir = dir();
    let (config, mark, ops) = ten_records(dir.path(), &seal).await;
    let file = files_in(dir.path(), &seal).remove(0);
    let mut bytes = fs::read(&file).unwrap();
    // The seventh is torn; the three after it are whole.
    bytes[(RECORDS + ops[5].0) as usize + 30] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let (journal, replay) = Journal::open(&config, log(), &seal, Some(mark)).unwrap();
    assert_eq!(all(replay), ops[..6]);
    // As long as what was torn, so that it ends where the eighth begins.
    let end = journal.append(write(77, 26)).unwrap();
    assert_eq!(end, ops[6].0);
    journal.end(false).await;
    let (_journal, replay) = Journal::open(&config, log(), &seal, Some(mark)).unwrap();
    let found = all(replay);
    assert_eq!(found[..6], ops[..6]);
    assert_eq!(found[6..], [(end, write(77, 26))]);
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

#[tokio::test]
async fn a_later_format_is_refused() {
    let [seal, _] = both(1, 1);
    let dir = dir();
    let (config, mark, _) = ten_records(dir.path(), &seal).await;
    let file = files_in(dir.path(), &seal).remove(0);
    let mut bytes = fs::read(&file).unwrap();
    bytes[7] = 9;
    fs::write(&file, &bytes).unwrap();
    let error = recover_only(&config, &seal, mark).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("format version 9"), "{error}");
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

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Zero,
    Sync,
    /// This many of the records that are there are committed.
    Trim(prop::sample::Index),
    /// The process is killed.
    Kill,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0usize..4000).prop_map(Step::Append),
        2 => Just(Step::Zero),
        4 => Just(Step::Sync),
        3 => any::<prop::sample::Index>().prop_map(Step::Trim),
        1 => Just(Step::Kill),
        1 => Just(Step::Reopen),
    ]
}

/// Does the steps to a journal and to a list, and compares whenever it is opened.
async fn follows_the_model(seal: Seal, steps: Vec<Step>) {
    let mut place = dir();
    let (mut journal, _) = Journal::open(&config(place.path(), 4), log(), &seal, None).unwrap();
    let id = journal.id();
    let (mut ops, mut synced, mut mark) = (Vec::<(u64, Op)>::new(), 0, 0);
    for (n, step) in (1..).zip(steps) {
        match step {
            Step::Append(_) | Step::Zero => {
                let op = match step {
                    Step::Append(length) => write(n, length),
                    _ => Op::Zero {
                        range: ByteRange::new(n, n * 3),
                    },
                };
                while !journal.has_room(4000) {
                    mark = ops.last().map_or(mark, |(end, _)| *end);
                    ops.clear();
                    journal.trim(mark);
                    tokio::task::yield_now().await;
                }
                ops.push((journal.append(op.clone()).unwrap(), op));
            }
            Step::Sync => {
                journal.sync().await.unwrap();
                synced = journal.position();
            }
            Step::Trim(index) if !ops.is_empty() => {
                mark = ops[index.index(ops.len())].0;
                ops.retain(|(end, _)| *end > mark);
                journal.trim(mark);
            }
            Step::Trim(_) => {}
            Step::Kill | Step::Reopen => {
                if matches!(step, Step::Kill) {
                    prepared(&journal).await;
                    place = copy_of(place.path());
                } else {
                    journal.end(false).await;
                    synced = journal.position();
                }
                let opened =
                    Journal::open(&config(place.path(), 4), log(), &seal, Some((id, mark)));
                let (next, replay) = opened.unwrap();
                let found = all(replay);
                assert_eq!(found[..], ops[..found.len()]);
                assert!(next.position() >= synced && next.position() >= mark);
                let lost = &ops[found.len()..];
                assert!(lost.iter().all(|(end, _)| *end > synced));
                ops.truncate(found.len());
                assert_eq!(next.id(), id);
                journal = next;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn it_is_as_a_list_that_loses_only_what_was_not_synced(
        steps in prop::collection::vec(step(), 0..120),
        encrypted in any::<bool>(),
    ) {
        let seal = both(1, 1)[usize::from(encrypted)].clone();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(follows_the_model(seal, steps));
    }
}
