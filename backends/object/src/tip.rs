//! What a volume holds, as of one commit.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::codec::{Malformed, Reader, put_varint};
use crate::keys::{LogId, ObjectKey};

/// Bytes in a block, the unit of the map.
pub(crate) const BLOCK: u64 = 4096;

/// Where a page of the map lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct PagePtr {
    /// The object.
    pub(crate) object: ObjectKey,
    /// Where in the object the page's envelope starts, in bytes.
    pub(crate) offset: u32,
    /// Length of the envelope, in bytes.
    pub(crate) length: u32,
}

/// The tree of a volume's map, as of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Root {
    /// The topmost page; none where nothing is mapped.
    pub(crate) page: Option<PagePtr>,
    /// Levels above the leaves: the page is a leaf where it is 0.
    pub(crate) level: u8,
    /// Number of blocks that are mapped.
    pub(crate) mapped: u64,
}

impl Root {
    /// Of a volume in which nothing is mapped.
    pub(crate) const EMPTY: Root = Root {
        page: None,
        level: 0,
        mapped: 0,
    };
}

/// What came after the map's checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TailItem {
    /// A data object of this length in bytes.
    Object {
        /// The object.
        key: ObjectKey,
        /// Its length in bytes.
        bytes: u32,
    },
    /// The volume was shrunk: every block from this number on is a hole.
    Cut(u64),
}

/// What a volume holds, as of one commit. All that it names is immutable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tip {
    /// The map's checkpoint.
    pub(crate) root: Root,
    /// What came since then, in order: what is later wins.
    pub(crate) tail: Vec<TailItem>,
}

/// No tip needs more: a writer makes a checkpoint long before.
const LONGEST_TAIL: usize = 1 << 16;

impl Tip {
    /// Of a volume in which nothing was ever written.
    pub(crate) const EMPTY: Tip = Tip {
        root: Root::EMPTY,
        tail: Vec::new(),
    };

    /// Bytes of all objects in the tail.
    pub(crate) fn tail_bytes(&self) -> u64 {
        let bytes = self.tail.iter().map(|item| match item {
            TailItem::Object { bytes, .. } => u64::from(*bytes),
            TailItem::Cut(_) => 0,
        });
        bytes.sum()
    }

    /// Appends the encoding to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut keys = KeyWriter::default();
        match &self.root.page {
            None => put_varint(out, 0),
            Some(page) => {
                put_varint(out, 1 + u64::from(self.root.level));
                put_varint(out, self.root.mapped);
                keys.put(out, &page.object);
                put_varint(out, page.offset.into());
                put_varint(out, page.length.into());
            }
        }
        put_varint(out, self.tail.len() as u64);
        for item in &self.tail {
            match item {
                TailItem::Object { key, bytes } => {
                    out.push(0);
                    keys.put(out, key);
                    put_varint(out, (*bytes).into());
                }
                TailItem::Cut(block) => {
                    out.push(1);
                    put_varint(out, *block);
                }
            }
        }
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Tip, Malformed> {
        let mut keys = KeyReader::default();
        let root = match reader.varint()? {
            0 => Root::EMPTY,
            levels => {
                let level = u8::try_from(levels - 1).ok().filter(|level| *level <= 8);
                let level = level.ok_or(Malformed("the map has too many levels"))?;
                let mapped = reader.varint()?;
                let page = PagePtr {
                    object: keys.take(reader)?,
                    offset: reader.varint_u32()?,
                    length: reader.varint_u32()?,
                };
                Root {
                    page: Some(page),
                    level,
                    mapped,
                }
            }
        };
        let count = reader.count(2)?;
        if count > LONGEST_TAIL {
            return Err(Malformed("the tail is too long"));
        }
        let mut tail = Vec::with_capacity(count);
        for _ in 0..count {
            tail.push(match reader.u8()? {
                0 => TailItem::Object {
                    key: keys.take(reader)?,
                    bytes: reader.varint_u32()?,
                },
                1 => TailItem::Cut(reader.varint()?),
                _ => return Err(Malformed("the tail has an item of an unknown kind")),
            });
        }
        Ok(Tip { root, tail })
    }
}

/// Writes keys of objects, which mostly follow one another in one log.
#[derive(Default)]
struct KeyWriter {
    logs: Vec<LogId>,
    next: Option<ObjectKey>,
}

impl KeyWriter {
    fn put(&mut self, out: &mut Vec<u8>, key: &ObjectKey) {
        if self.next == Some(*key) {
            put_varint(out, 0);
        } else {
            match self.logs.iter().position(|log| *log == key.log) {
                Some(at) => put_varint(out, 2 + at as u64),
                None => {
                    put_varint(out, 1);
                    out.extend(key.log.0.as_bytes());
                    self.logs.push(key.log);
                }
            }
            put_varint(out, key.epoch);
            put_varint(out, key.seq);
        }
        self.next = following(key);
    }
}

#[derive(Default)]
struct KeyReader {
    logs: Vec<LogId>,
    next: Option<ObjectKey>,
}

impl KeyReader {
    fn take(&mut self, reader: &mut Reader<'_>) -> Result<ObjectKey, Malformed> {
        let key = match reader.varint()? {
            0 => self
                .next
                .ok_or(Malformed("there is no object before this"))?,
            known => {
                let log = if known == 1 {
                    let log = LogId(reader.uuid()?);
                    self.logs.push(log);
                    log
                } else {
                    let at = usize::try_from(known - 2).unwrap_or(usize::MAX);
                    *self.logs.get(at).ok_or(Malformed("there is no such log"))?
                };
                ObjectKey {
                    log,
                    epoch: reader.varint()?,
                    seq: reader.varint()?,
                }
            }
        };
        self.next = following(&key);
        Ok(key)
    }
}

fn following(key: &ObjectKey) -> Option<ObjectKey> {
    let seq = key.seq.checked_add(1)?;
    Some(ObjectKey { seq, ..*key })
}

// In JSON a tip is one string, since a list of some hundred objects would be many times as long.
impl Serialize for Tip {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut body = Vec::new();
        self.encode(&mut body);
        serializer.serialize_str(&BASE64_STANDARD.encode(body))
    }
}

impl<'de> Deserialize<'de> for Tip {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let body = BASE64_STANDARD.decode(text).map_err(de::Error::custom)?;
        let mut reader = Reader::new(&body);
        let tip = Tip::decode(&mut reader).map_err(de::Error::custom)?;
        reader.end().map_err(de::Error::custom)?;
        Ok(tip)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    pub(crate) fn any_key() -> impl Strategy<Value = ObjectKey> {
        (0..3u128, 0..3u64, 0..4u64).prop_map(|(log, epoch, seq)| ObjectKey {
            log: LogId(Uuid::from_u128(log)),
            epoch,
            seq,
        })
    }

    pub(crate) fn any_tip() -> impl Strategy<Value = Tip> {
        let page = (any_key(), any::<u32>(), any::<u32>(), 0..9u8, any::<u64>());
        let object = (any_key(), any::<u32>());
        let item = prop_oneof![
            object.prop_map(|(key, bytes)| TailItem::Object { key, bytes }),
            any::<u64>().prop_map(TailItem::Cut),
        ];
        (proptest::option::of(page), vec(item, 0..10)).prop_map(|(page, tail)| Tip {
            root: page.map_or(Root::EMPTY, |(object, offset, length, level, mapped)| {
                Root {
                    page: Some(PagePtr {
                        object,
                        offset,
                        length,
                    }),
                    level,
                    mapped,
                }
            }),
            tail,
        })
    }

    #[test]
    fn objects_that_follow_one_another_take_little_room() {
        let log = LogId(Uuid::from_u128(7));
        let object = |seq| TailItem::Object {
            key: ObjectKey { log, epoch: 5, seq },
            bytes: 8 << 20,
        };
        let tip = Tip {
            root: Root::EMPTY,
            tail: (0..256).map(object).collect(),
        };
        let mut out = Vec::new();
        tip.encode(&mut out);
        assert!(out.len() < 256 * 6 + 30, "{} bytes", out.len());
    }

    proptest! {
        #[test]
        fn a_tip_reads_back(tip in any_tip()) {
            let json = serde_json::to_string(&tip).unwrap();
            prop_assert_eq!(serde_json::from_str::<Tip>(&json).unwrap(), tip);
        }

        #[test]
        fn what_reads_as_a_tip_is_written_the_same_or_shorter(bytes in vec(0..4u8, 0..100)) {
            let mut reader = Reader::new(&bytes);
            if let Ok(tip) = Tip::decode(&mut reader) {
                let mut out = Vec::new();
                tip.encode(&mut out);
                prop_assert!(out.len() <= bytes.len() - reader.left());
            }
        }
    }
}
