//! Errors of the program on the other host, as errors here.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use volmux_core::{Error, ErrorKind};

/// `volmux.error.v1`
#[derive(Debug, Deserialize)]
pub(super) struct ErrorDoc {
    kind: String,
    op: String,
    #[serde(deserialize_with = "ordered")]
    context: Vec<(String, String)>,
    cause: Vec<String>,
}

/// Causes that are kept, of what may be any number.
const MOST_CAUSES: usize = 16;

/// The operations that errors name.
const OPS: &[&str] = &[
    "adopt_volume",
    "attach_volume",
    "audit",
    "checkpoint",
    "clone_volume",
    "close_volume",
    "collect_garbage",
    "copy_volume",
    "create_volume",
    "delete_volume",
    "detach_volume",
    "discard",
    "extents",
    "flatten_volume",
    "flush",
    "holder",
    "list_volumes",
    "open_pool",
    "open_volume",
    "parse_size",
    "read",
    "read_at",
    "read_config",
    "read_map",
    "refresh",
    "rename_volume",
    "resize_volume",
    "revert_volume",
    "scrub",
    "snapshot_volume",
    "start_runtime",
    "thin_policy",
    "usage",
    "volume",
    "volume_id",
    "volume_name",
    "watch_signals",
    "write_at",
    "write_map",
    "write_output",
    "write_zeroes",
];

/// The keys that errors have, wherever they come from.
const KEYS: &[&str] = &[
    "address",
    "attached_to",
    "block",
    "chunk",
    "client",
    "closing",
    "command",
    "config",
    "connections",
    "device",
    "export",
    "file",
    "file_size",
    "files",
    "flags",
    "for",
    "frame",
    "freed",
    "from",
    "gid",
    "group",
    "help",
    "holder",
    "host",
    "id",
    "image",
    "image_size",
    "initiator",
    "injected_call",
    "journal",
    "key",
    "left_behind",
    "length",
    "limit",
    "line",
    "log",
    "logical_volume",
    "lost",
    "lun",
    "object",
    "offset",
    "option",
    "others",
    "path",
    "pid",
    "pool",
    "portal",
    "position",
    "present_size",
    "process",
    "program",
    "reader",
    "reason",
    "recorded_size",
    "seconds",
    "segment_type",
    "serial",
    "server",
    "session",
    "size",
    "snapshot",
    "socket",
    "source",
    "source_sha256",
    "source_size",
    "state",
    "status",
    "tags",
    "target",
    "target_sha256",
    "target_size",
    "thin_pool",
    "to",
    "total",
    "uid",
    "url",
    "used_by",
    "volume",
    "wanted",
    "warn_percent",
    "refuse_percent",
    "overcommit_limit",
    "what",
    "writer",
];

impl ErrorDoc {
    /// As an error of operation `op` here, unless it names one itself. `None` for a kind that is
    /// not known.
    ///
    /// What has no place in an error here, such as keys that are not known, is kept under `remote`.
    pub(super) fn into_error(self, op: &'static str) -> Option<Error> {
        let kind = ErrorKind::ALL
            .into_iter()
            .find(|kind| kind.name() == self.kind)?;
        let known = |names: &[&'static str], name: &str| names.iter().copied().find(|n| *n == name);
        let mut others = Vec::new();
        let op = known(OPS, &self.op).unwrap_or_else(|| {
            others.push(format!("op={}", self.op));
            op
        });
        let mut error = Error::new(kind, op);
        for (key, value) in self.context {
            match known(KEYS, &key) {
                // That host's own, if it is a pool on yet another one.
                Some("host") | None => others.push(format!("{key}={value}")),
                Some(key) => error = error.with(key, value),
            }
        }
        if !others.is_empty() {
            error = error.with("remote", others.join("; "));
        }
        Some(match Cause::chain(self.cause) {
            Some(cause) => error.with_source(cause),
            None => error,
        })
    }
}

/// The pairs of an object, in their order.
fn ordered<'de, D: Deserializer<'de>>(source: D) -> Result<Vec<(String, String)>, D::Error> {
    struct Pairs;

    impl<'de> Visitor<'de> for Pairs {
        type Value = Vec<(String, String)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of texts")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let (mut pairs, mut places) = (Vec::<(String, String)>::new(), BTreeMap::new());
            while let Some((key, value)) = map.next_entry::<String, String>()? {
                match places.get(&key) {
                    Some(&at) => pairs[at] = (key, value),
                    None => {
                        places.insert(key.clone(), pairs.len());
                        pairs.push((key, value));
                    }
                }
            }
            Ok(pairs)
        }
    }

    source.deserialize_map(Pairs)
}

/// What was told of a cause on the other host.
#[derive(Debug)]
struct Cause {
    text: String,
    deeper: Option<Box<Cause>>,
}

impl Cause {
    /// From the nearest to the deepest.
    fn chain(texts: Vec<String>) -> Option<Cause> {
        let kept = texts.into_iter().take(MOST_CAUSES).collect::<Vec<_>>();
        kept.into_iter().rev().fold(None, |deeper, text| {
            let deeper = deeper.map(Box::new);
            Some(Cause { text, deeper })
        })
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Cause {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.deeper.as_deref().map(|deeper| deeper as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> Option<Error> {
        let document: ErrorDoc = serde_json::from_str(text).expect("document");
        document.into_error("volume")
    }

    #[test]
    fn everything_comes_through() {
        let error = error(
            r#"{"schema":"volmux.error.v1","kind":"NoSpace","op":"create_volume",
            "context":{"volume":
            "web","reason":"full","pool":"dir:///x","zebra":"a; b","host":"me@other"},
            "cause":["read: unavailable","EIO"],"retryable":false}"#,
        )
        .expect("known kind");
        assert_eq!(
            error.to_string(),
            "create_volume: no space (volume=web, reason=full, pool=dir:///x, \
             remote=\"zebra=a; b; host=me@other\")"
        );
        let cause = StdError::source(&error).expect("cause");
        assert_eq!(cause.to_string(), "read: unavailable");
        let deeper = cause.source().expect("deeper");
        assert_eq!(deeper.to_string(), "EIO");
        assert!(deeper.source().is_none());
    }

    #[test]
    fn every_kind_is_known_and_others_are_not_guessed() {
        for kind in ErrorKind::ALL {
            let text = format!(
                r#"{{"kind":"{}","op":"paint","context":{{}},"cause":[],"retryable":true}}"#,
                kind.name()
            );
            let error = error(&text).expect("kind");
            assert_eq!((error.kind(), error.op()), (kind, "volume"));
            assert_eq!(error.get("remote"), Some("op=paint"));
        }
        let other = r#"{"kind":"Tired","op":"volume","context":{},"cause":[]}"#;
        assert!(error(other).is_none());
    }

    #[test]
    fn a_long_chain_of_causes_is_cut() {
        let causes = vec!["x".to_owned(); 100_000];
        let mut cause = Cause::chain(causes).map(Box::new);
        let mut count = 0;
        while let Some(this) = cause {
            count += 1;
            cause = this.deeper;
        }
        assert_eq!(count, MOST_CAUSES);
    }
}
