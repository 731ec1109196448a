//! Buckets and objects in memory.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;
use lz4_flex::block;

/// What is compressed at a time: a ranged GET unpacks that much at least.
const CHUNK: usize = 32 << 10;

/// An object. It never changes: a PUT makes a new one.
#[derive(Debug)]
pub(crate) struct Object {
    data: Data,
    /// Without its quotes.
    pub(crate) etag: String,
    pub(crate) modified: SystemTime,
    /// Content-Type and the like, and the user's own.
    pub(crate) headers: Vec<(String, String)>,
}

#[derive(Debug)]
enum Data {
    Plain(Bytes),
    Packed { chunks: Vec<Vec<u8>>, length: u64 },
}

impl Object {
    pub(crate) fn length(&self) -> u64 {
        match &self.data {
            Data::Plain(data) => data.len() as u64,
            Data::Packed { length, .. } => *length,
        }
    }

    /// The bytes in `range`, which must lie within the object.
    pub(crate) fn read(&self, range: Range<u64>) -> Bytes {
        let (start, end) = (range.start as usize, range.end as usize);
        match &self.data {
            Data::Plain(data) => data.slice(start..end),
            Data::Packed { .. } if start == end => Bytes::new(),
            Data::Packed { chunks, .. } => {
                let (first, last) = (start / CHUNK, (end - 1) / CHUNK);
                let mut unpacked = Vec::with_capacity((last + 1 - first) * CHUNK);
                for chunk in &chunks[first..=last] {
                    let chunk = block::decompress(chunk, CHUNK);
                    unpacked.extend_from_slice(&chunk.expect("it was compressed here"));
                }
                let start = start - first * CHUNK;
                Bytes::from(unpacked)
                    .slice(start..start + range.end as usize - range.start as usize)
            }
        }
    }
}

/// Why an object can't be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    NoBucket,
    /// What `If-None-Match` or `If-Match` demanded does not hold.
    Condition,
}

/// On what condition an object is put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Always,
    Absent,
    Etag(String),
}

/// What to list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pub(crate) prefix: String,
    /// Only what comes after this key, or after everything beneath this common prefix.
    pub(crate) after: String,
    /// Empty: none.
    pub(crate) delimiter: String,
    pub(crate) limit: usize,
}

/// A page of a list.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) objects: Vec<(String, Arc<Object>)>,
    pub(crate) prefixes: Vec<String>,
    /// Where the next page goes on, if there is one.
    pub(crate) next: Option<String>,
}

type Bucket = BTreeMap<String, Arc<Object>>;

#[derive(Debug)]
pub(crate) struct Store {
    buckets: Mutex<BTreeMap<String, Bucket>>,
    etags: AtomicU64,
    compress: bool,
}

impl Store {
    pub(crate) fn new(compress: bool) -> Self {
        Store {
            buckets: Mutex::default(),
            etags: AtomicU64::new(1),
            compress,
        }
    }

    pub(crate) fn make_bucket(&self, name: &str) {
        self.with(|buckets| {
            buckets.entry(name.to_owned()).or_default();
        });
    }

    pub(crate) fn has_bucket(&self, name: &str) -> bool {
        self.with(|buckets| buckets.contains_key(name))
    }

    /// Decides and puts under one lock: of two puts on the condition that nothing is there, one
    /// fails.
    pub(crate) fn put(
        &self,
        bucket: &str,
        key: String,
        data: Bytes,
        headers: Vec<(String, String)>,
        (etag, condition): (Option<String>, &Condition),
    ) -> Result<String, Refused> {
        let etag = etag.unwrap_or_else(|| {
            let number = self.etags.fetch_add(1, Ordering::Relaxed);
            format!("{number:032x}")
        });
        let object = Arc::new(Object {
            data: self.pack(data),
            etag: etag.clone(),
            modified: SystemTime::now(),
            headers,
        });
        let _freed_without_the_lock = self.with(|buckets| {
            let bucket = buckets.get_mut(bucket).ok_or(Refused::NoBucket)?;
            let there = bucket.get(&key);
            let holds = match condition {
                Condition::Always => true,
                Condition::Absent => there.is_none(),
                Condition::Etag(etag) => there.is_some_and(|object| object.etag == *etag),
            };
            if !holds {
                return Err(Refused::Condition);
            }
            Ok(bucket.insert(key, object))
        })?;
        Ok(etag)
    }

    fn pack(&self, data: Bytes) -> Data {
        if !self.compress || data.len() < 2 * CHUNK {
            return Data::Plain(data);
        }
        Data::Packed {
            chunks: data.chunks(CHUNK).map(block::compress).collect(),
            length: data.len() as u64,
        }
    }

    /// `None`: no such bucket; `Some(None)`: no such object.
    pub(crate) fn get(&self, bucket: &str, key: &str) -> Option<Option<Arc<Object>>> {
        self.with(|buckets| Some(buckets.get(bucket)?.get(key).cloned()))
    }

    /// Whether there is such a bucket.
    pub(crate) fn delete<'a>(&self, bucket: &str, keys: impl Iterator<Item = &'a str>) -> bool {
        let removed = self.with(|buckets| {
            let bucket = buckets.get_mut(bucket)?;
            Some(
                keys.filter_map(|key| bucket.remove(key))
                    .collect::<Vec<_>>(),
            )
        });
        removed.is_some()
    }

    /// `None`: no such bucket.
    pub(crate) fn list(&self, bucket: &str, query: &Query) -> Option<Page> {
        self.with(|buckets| Some(page(buckets.get(bucket)?, query)))
    }

    /// How many objects there are in all buckets, and their bytes.
    pub(crate) fn stored(&self) -> (u64, u64) {
        self.with(|buckets| {
            let objects = buckets.values().flat_map(BTreeMap::values);
            objects.fold((0, 0), |(number, bytes), object| {
                (number + 1, bytes + object.length())
            })
        })
    }

    /// Changes a stored object behind everybody's back; `false` if it is not there.
    pub(crate) fn replace(&self, bucket: &str, key: &str, data: Option<Bytes>) -> bool {
        self.with(|buckets| {
            let Some(bucket) = buckets.get_mut(bucket) else {
                return false;
            };
            let Some(old) = bucket.remove(key) else {
                return false;
            };
            if let Some(data) = data {
                let object = Object {
                    data: Data::Plain(data),
                    etag: old.etag.clone(),
                    modified: old.modified,
                    headers: old.headers.clone(),
                };
                bucket.insert(key.to_owned(), Arc::new(object));
            }
            true
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<String, Bucket>) -> T) -> T {
        work(&mut self.buckets.lock().expect("nobody panicked"))
    }
}

fn page(bucket: &Bucket, query: &Query) -> Page {
    let mut page = Page::default();
    if query.limit == 0 {
        return page;
    }
    let is_common = |after: &str| {
        !query.delimiter.is_empty()
            && after.len() > query.prefix.len()
            && after.starts_with(&query.prefix)
            && after.ends_with(&query.delimiter)
    };
    let mut last = String::new();
    let mut from = if query.after.is_empty() || query.after < query.prefix {
        Bound::Included(query.prefix.clone())
    } else if is_common(&query.after) {
        Bound::Included(past(&query.after))
    } else {
        Bound::Excluded(query.after.clone())
    };
    loop {
        let next = bucket.range((from, Bound::Unbounded)).next();
        let Some((key, object)) = next.filter(|(key, _)| key.starts_with(&query.prefix)) else {
            return page;
        };
        if page.objects.len() + page.prefixes.len() == query.limit {
            page.next = Some(last);
            return page;
        }
        let rest = &key[query.prefix.len()..];
        let common = if query.delimiter.is_empty() {
            None
        } else {
            rest.find(&query.delimiter)
        };
        if let Some(at) = common {
            let end = query.prefix.len() + at + query.delimiter.len();
            last = key[..end].to_owned();
            page.prefixes.push(last.clone());
            from = Bound::Included(past(&last));
        } else {
            last.clone_from(key);
            page.objects.push((key.clone(), Arc::clone(object)));
            from = Bound::Excluded(key.clone());
        }
    }
}

/// Comes after every key that begins with `prefix`.
fn past(prefix: &str) -> String {
    format!("{prefix}{}", char::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> Store {
        let store = Store::new(false);
        store.make_bucket("b");
        for key in ["a", "d/1", "d/2", "d/e/3", "f", "g/4"] {
            let always = (None, &Condition::Always);
            let put = store.put("b", key.into(), Bytes::from("x"), Vec::new(), always);
            put.expect("put");
        }
        store
    }

    fn all(store: &Store, mut query: Query) -> Vec<String> {
        let mut found = Vec::new();
        loop {
            let page = store.list("b", &query).expect("the bucket");
            let size = page.objects.len() + page.prefixes.len();
            assert!(size <= query.limit);
            found.extend(page.objects.into_iter().map(|(key, _)| key));
            found.extend(page.prefixes);
            let Some(next) = page.next else {
                found.sort();
                return found;
            };
            assert_eq!(size, query.limit);
            query.after = next;
        }
    }

    #[test]
    fn pages_join_to_the_whole_list() {
        let store = filled();
        for limit in 1..8 {
            let query = |prefix: &str, delimiter: &str, after: &str| Query {
                prefix: prefix.into(),
                delimiter: delimiter.into(),
                after: after.into(),
                limit,
            };
            let everything = ["a", "d/1", "d/2", "d/e/3", "f", "g/4"];
            assert_eq!(all(&store, query("", "", "")), everything);
            assert_eq!(all(&store, query("", "/", "")), ["a", "d/", "f", "g/"]);
            assert_eq!(all(&store, query("d/", "/", "")), ["d/1", "d/2", "d/e/"]);
            assert_eq!(all(&store, query("d/", "", "d/1")), ["d/2", "d/e/3"]);
            assert_eq!(all(&store, query("", "", "d/e/3")), ["f", "g/4"]);
            assert!(all(&store, query("h", "", "")).is_empty());
        }
    }

    #[test]
    fn of_many_that_create_one_wins() {
        let store = filled();
        let won: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        (0..500)
                            .filter(|n| {
                                let absent = (None, &Condition::Absent);
                                let data = Bytes::from("y");
                                let key = format!("new/{n}");
                                store.put("b", key, data, Vec::new(), absent).is_ok()
                            })
                            .count()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("counts"))
                .sum()
        });
        assert_eq!(won, 500);
    }

    #[test]
    fn what_is_compressed_reads_as_it_was() {
        let store = Store::new(true);
        let data: Vec<u8> = (0..5 * CHUNK + 77).map(|i| (i / 100) as u8).collect();
        let Data::Packed { .. } = store.pack(data.clone().into()) else {
            panic!("not compressed");
        };
        let object = Object {
            data: store.pack(data.clone().into()),
            etag: String::new(),
            modified: SystemTime::now(),
            headers: Vec::new(),
        };
        let length = data.len();
        assert_eq!(object.length(), length as u64);
        for (start, end) in [
            (0, length),
            (0, 0),
            (CHUNK - 1, CHUNK + 1),
            (length - 9, length),
        ] {
            let read = object.read(start as u64..end as u64);
            assert_eq!(read, data[start..end], "{start}..{end}");
        }
    }
}
