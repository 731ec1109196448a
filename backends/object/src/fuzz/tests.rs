use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;

/// What the fuzzers begin with, so that they need not find out how JSON looks.
const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fuzz/seeds");

#[test]
fn every_seed_is_something_that_its_decoder_takes() {
    let mut taken = 0;
    for entry in Path::new(SEEDS).join("records").read_dir().unwrap() {
        let path = entry.unwrap().path();
        assert!(records(&fs::read(&path).unwrap()), "{}", path.display());
        taken += 1;
    }
    assert!(taken >= 8, "{taken}");
    for entry in Path::new(SEEDS).join("object").read_dir().unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        decode(&bytes);
        let (which, body) = bytes.split_first().unwrap();
        let table = ObjectTable::new();
        let taken = match path.file_name().and_then(|name| name.to_str()).unwrap() {
            "page" => *which == 0 && Page::decode(body, &table).is_ok(),
            "tip" => *which == 1 && Tip::decode(&mut Reader::new(body)).is_ok(),
            "manifest" => {
                let decoded = Manifest::decode(LogId(Uuid::nil()), 7, body);
                *which == 2 && decoded.is_ok()
            }
            "header" => *which == 3 && Header::decode(body).is_ok(),
            "framed" => *which == 4 && FrameTable::decode(body).is_ok(),
            other => panic!("what is {other}?"),
        };
        assert!(taken, "{}", path.display());
    }
}

proptest! {
    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        records(&bytes);
        decode(&bytes);
    }

    #[test]
    fn no_damage_to_a_journal_does_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        journal(dir.path(), &bytes);
        prop_assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }
}
