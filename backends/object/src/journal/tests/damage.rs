//! What becomes of a journal whose disk lost or damaged something.

use super::*;
use crate::journal::format;

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
pub(super) fn recover_only(
    config: &JournalConfig,
    seal: &Seal,
    mark: (Uuid, u64),
) -> Result<Vec<(u64, Op)>> {
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
