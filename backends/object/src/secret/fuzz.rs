//! What a fuzzer may throw at the readers of secrets.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use uuid::Uuid;

use super::{Credentials, PoolKey, WRAPPED, is_wrapped_key};

/// The text of a key file.
pub(crate) fn key(body: &[u8]) -> bool {
    let Some(key) = str::from_utf8(body).ok().and_then(PoolKey::parse) else {
        return false;
    };
    let hex: String = key.0.iter().map(|byte| format!("{byte:02x}")).collect();
    for text in [hex, BASE64_STANDARD.encode(&key.0[..])] {
        assert!(PoolKey::parse(&text).as_ref() == Some(&key));
        assert!(PoolKey::parse(&format!("\n {text}\r\n")) == Some(key.clone()));
        assert!(PoolKey::parse(&text[1..]).is_none());
    }
    true
}

/// A wrapped key, which is changed in one place.
pub(crate) fn wrapped(body: &[u8]) -> bool {
    let Some(([at, change], rest)) = body.split_first_chunk() else {
        return false;
    };
    if let Ok(text) = str::from_utf8(rest) {
        let other = PoolKey::new([2; 32]).unwrap(Uuid::nil(), text);
        assert!(other.is_none(), "nobody knows a text that this key wrapped");
    }
    let (key, pool) = (PoolKey::new([1; 32]), Uuid::from_u128(1));
    let (data, text) = key.wrap_new(pool).expect("randomness");
    assert!(is_wrapped_key(&text));
    let again = key.unwrap(pool, &text).expect("the same key");
    assert!(again.bytes() == data.bytes());
    assert!(key.unwrap(Uuid::nil(), &text).is_none());
    let mut bytes = BASE64_STANDARD.decode(&text).expect("it is base64");
    bytes[usize::from(*at) % WRAPPED] ^= change;
    let changed = key.unwrap(pool, &BASE64_STANDARD.encode(&bytes));
    assert_eq!(changed.is_some(), *change == 0);
    true
}

/// The text of a file of credentials.
pub(crate) fn credentials(body: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(body) else {
        return false;
    };
    match Credentials::parse(text) {
        Ok(found) => {
            let lines = found.0.iter();
            let lines = lines.map(|(name, value)| format!("{name} = {}\n", value.as_str()));
            let lines = lines.collect::<String>() + "# by a person\n\n";
            let again = Credentials::parse(&lines).expect("what is written is read");
            assert!(again.0 == found.0);
            assert!(
                !found.0.is_empty()
                    || text.lines().all(|line| {
                        let line = line.trim();
                        line.is_empty() || line.starts_with('#')
                    })
            );
            true
        }
        Err(number) => {
            let line = text.lines().nth(number - 1).expect("it is one of them");
            assert!(!line.contains('='));
            false
        }
    }
}
