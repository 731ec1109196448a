//! What a fuzzer may throw at the reader of a pool's description.

use volmux_core::ErrorKind;

use super::{Description, FORMAT, WHAT, parse};
use crate::secret::is_wrapped_key;
use crate::tip::BLOCK;

/// A description as it is, and with the checksum that belongs to it.
pub(crate) fn description(body: &[u8]) -> bool {
    let found = parse(body);
    if let Err((kind, reason)) = &found {
        let newer = reason.contains("format version");
        assert_eq!(newer, *kind == ErrorKind::InvalidConfig, "{reason}");
    }
    let Ok(mut description) = serde_json::from_slice::<Description>(body) else {
        return false;
    };
    let fits = description.checksum() == description.crc32c;
    description.crc32c = description.checksum();
    let text = serde_json::to_vec_pretty(&description).expect("it has a JSON form");
    let possible = description.what == WHAT
        && description.version == FORMAT
        && description.block_size == BLOCK
        && (description.encryption.as_ref()).is_none_or(|wrapped| is_wrapped_key(&wrapped.key));
    match parse(&text) {
        Ok(again) => assert!(possible && again == description),
        Err((kind, _)) => {
            assert!(!possible);
            let newer = description.what == WHAT && description.version > FORMAT;
            assert_eq!(newer, kind == ErrorKind::InvalidConfig);
        }
    }
    assert_eq!(found.is_ok(), possible && fits);
    possible
}
