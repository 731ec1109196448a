//! What was asked of the server.

use std::fmt;
use std::ops::Sub;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// GET of an object or a range of it.
    Get,
    /// HEAD of an object.
    Head,
    /// PUT of an object, whatever was there.
    Put,
    /// PUT of an object that must not be there (`If-None-Match: *`).
    Create,
    /// DELETE of one object.
    Delete,
    /// DELETE of many objects at once.
    DeleteMany,
    /// LIST.
    List,
    /// Everything else: a bucket made or looked at, what is not understood.
    Other,
}

const KINDS: [(Kind, &str); 8] = [
    (Kind::Get, "get"),
    (Kind::Head, "head"),
    (Kind::Put, "put"),
    (Kind::Create, "create"),
    (Kind::Delete, "delete"),
    (Kind::DeleteMany, "delete-many"),
    (Kind::List, "list"),
    (Kind::Other, "other"),
];

impl Kind {
    pub(crate) const COUNT: usize = KINDS.len();

    /// Whether it changes what is stored.
    pub fn writes(self) -> bool {
        matches!(
            self,
            Kind::Put | Kind::Create | Kind::Delete | Kind::DeleteMany
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(KINDS[*self as usize].1)
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let mut found = KINDS.iter().filter(|(_, known)| *known == name);
        let (kind, _) = found.next().ok_or(format!("no kind of request: {name}"))?;
        Ok(*kind)
    }
}

/// How many requests of each kind came, failed ones included, and the bytes of their bodies.
/// Subtract what was before to get what came in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// GETs of objects.
    pub get: u64,
    /// HEADs of objects.
    pub head: u64,
    /// PUTs without condition.
    pub put: u64,
    /// Create-only PUTs.
    pub create: u64,
    /// DELETEs of one object.
    pub delete: u64,
    /// DELETEs of many.
    pub delete_many: u64,
    /// LISTs.
    pub list: u64,
    /// Everything else.
    pub other: u64,
    /// How many of all these were answered with an error, or not at all.
    pub failed: u64,
    /// Bytes in the bodies of requests.
    pub bytes_in: u64,
    /// Bytes in the bodies of answers.
    pub bytes_out: u64,
}

/// What is stored at the moment, in all buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// How many objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Counts {
    /// PUTs of both sorts.
    pub fn puts(&self) -> u64 {
        self.put + self.create
    }

    /// Requests of all kinds.
    pub fn requests(&self) -> u64 {
        let deletes = self.delete + self.delete_many;
        self.get + self.head + self.puts() + deletes + self.list + self.other
    }
}

impl Sub for Counts {
    type Output = Counts;

    fn sub(self, before: Counts) -> Counts {
        Counts {
            get: self.get - before.get,
            head: self.head - before.head,
            put: self.put - before.put,
            create: self.create - before.create,
            delete: self.delete - before.delete,
            delete_many: self.delete_many - before.delete_many,
            list: self.list - before.list,
            other: self.other - before.other,
            failed: self.failed - before.failed,
            bytes_in: self.bytes_in - before.bytes_in,
            bytes_out: self.bytes_out - before.bytes_out,
        }
    }
}

/// One request, as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it asked for.
    pub kind: Kind,
    /// The object's key; of a LIST the prefix.
    pub key: String,
    /// The `Range` header, if any.
    pub range: Option<String>,
    /// Bytes of its body and of the answer's.
    pub bytes: (u64, u64),
    /// The answer's status; 0 if there was none.
    pub status: u16,
}

/// The counters of a server.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: [AtomicU64; Kind::COUNT],
    failed: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    recording: AtomicBool,
    records: Mutex<Vec<Record>>,
}

impl Counters {
    pub(crate) fn add(&self, record: Record) {
        let (bytes_in, bytes_out) = record.bytes;
        self.requests[record.kind as usize].fetch_add(1, Ordering::Relaxed);
        self.bytes_in.fetch_add(bytes_in, Ordering::Relaxed);
        self.bytes_out.fetch_add(bytes_out, Ordering::Relaxed);
        if !(200..400).contains(&record.status) {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        if self.recording.load(Ordering::Relaxed) {
            self.records.lock().expect("nobody panicked").push(record);
        }
    }

    pub(crate) fn get(&self) -> Counts {
        let of = |kind: Kind| self.requests[kind as usize].load(Ordering::Relaxed);
        Counts {
            get: of(Kind::Get),
            head: of(Kind::Head),
            put: of(Kind::Put),
            create: of(Kind::Create),
            delete: of(Kind::Delete),
            delete_many: of(Kind::DeleteMany),
            list: of(Kind::List),
            other: of(Kind::Other),
            failed: self.failed.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
        }
    }

    /// Switches recording, and takes what was recorded so far.
    pub(crate) fn record(&self, on: bool) -> Vec<Record> {
        self.recording.store(on, Ordering::Relaxed);
        std::mem::take(&mut self.records.lock().expect("nobody panicked"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_own_place_and_name() {
        for (place, (kind, name)) in KINDS.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
            assert_eq!(name.parse::<Kind>(), Ok(kind));
            assert_eq!(kind.to_string(), name);
        }
        assert!("fetch".parse::<Kind>().is_err());
    }
}
