//! Names of the objects below a pool's prefix.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use volmux_core::VolumeId;

/// The pool's own description; its presence makes a prefix a pool.
pub const POOL: &str = "pool.json";
/// Where the catalogue's records are.
pub const CATALOG: &str = "catalog/";
/// Where the catalogue's checkpoints are.
pub const CATALOG_CHECKPOINT: &str = "catalog-checkpoint/";
/// Where the logs are.
pub const LOGS: &str = "logs/";

/// Where the marks of those who read are.
pub const READERS: &str = "readers/";

/// What one volume's writers append to, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogId(pub Uuid);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.simple(), f)
    }
}

/// Which object of a log: unique for ever, since an epoch has one writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// The log.
    pub log: LogId,
    /// The writer's epoch; 0 only for what was put before a log's first writer.
    pub epoch: u64,
    /// Number within the epoch, from 0.
    pub seq: u64,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ObjectKey { log, epoch, seq } = self;
        write!(f, "{LOGS}{log}/d/{epoch:010}-{seq:010}")
    }
}

/// The name of catalogue record `number`.
pub fn catalog_record(number: u64) -> String {
    format!("{CATALOG}{number:020}")
}

/// The name of the catalogue's checkpoint as of record `number`.
pub fn catalog_checkpoint(number: u64) -> String {
    format!("{CATALOG_CHECKPOINT}{number:020}")
}

/// Where a log's manifests are.
pub fn manifests(log: LogId) -> String {
    format!("{LOGS}{log}/m/")
}

/// The name of manifest `number` of a log.
pub fn manifest(log: LogId, number: u64) -> String {
    format!("{}{number:020}", manifests(log))
}

/// Where the marks of those who read a volume are.
pub fn readers(volume: VolumeId) -> String {
    format!("{READERS}{volume}/")
}

/// The mark of one who reads a volume.
pub fn reader(volume: VolumeId, instance: Uuid) -> String {
    format!("{}{instance}", readers(volume))
}

/// What a name below the prefix says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// The pool's description.
    Pool,
    /// A catalogue record.
    CatalogRecord(u64),
    /// A checkpoint of the catalogue.
    CatalogCheckpoint(u64),
    /// A manifest of a log.
    Manifest(LogId, u64),
    /// An object of data or map pages.
    Data(ObjectKey),
    /// The mark of one who reads a volume.
    Reader(VolumeId, Uuid),
}

impl FromStr for Named {
    type Err = ();

    /// Only what this module itself writes is understood.
    fn from_str(name: &str) -> Result<Self, ()> {
        let parsed = parse(name).ok_or(())?;
        let again = match parsed {
            Named::Pool => POOL.to_owned(),
            Named::CatalogRecord(n) => catalog_record(n),
            Named::CatalogCheckpoint(n) => catalog_checkpoint(n),
            Named::Manifest(log, n) => manifest(log, n),
            Named::Data(key) => key.to_string(),
            Named::Reader(volume, instance) => reader(volume, instance),
        };
        if again == name { Ok(parsed) } else { Err(()) }
    }
}

fn parse(name: &str) -> Option<Named> {
    if name == POOL {
        return Some(Named::Pool);
    }
    if let Some(number) = name.strip_prefix(CATALOG) {
        return Some(Named::CatalogRecord(number.parse().ok()?));
    }
    if let Some(number) = name.strip_prefix(CATALOG_CHECKPOINT) {
        return Some(Named::CatalogCheckpoint(number.parse().ok()?));
    }
    if let Some(rest) = name.strip_prefix(READERS) {
        let (volume, instance) = rest.split_once('/')?;
        let instance = Uuid::try_parse(instance).ok()?;
        return Some(Named::Reader(volume.parse().ok()?, instance));
    }
    let mut parts = name.strip_prefix(LOGS)?.split('/');
    let log = LogId(Uuid::try_parse(parts.next()?).ok()?);
    let (kind, rest) = (parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    match kind {
        "m" => Some(Named::Manifest(log, rest.parse().ok()?)),
        "d" => {
            let (epoch, seq) = rest.split_once('-')?;
            Some(Named::Data(ObjectKey {
                log,
                epoch: epoch.parse().ok()?,
                seq: seq.parse().ok()?,
            }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_sort_as_their_numbers_do() {
        assert!(catalog_record(9) < catalog_record(10));
        let log = LogId(Uuid::nil());
        let key = |epoch, seq| ObjectKey { log, epoch, seq }.to_string();
        assert!(key(1, 99) < key(2, 0));
        assert!(manifest(log, 9) < manifest(log, 10));
    }

    #[test]
    fn what_is_not_ours_is_not_understood() {
        for name in [
            "",
            "pool",
            "catalog/1",
            "logs/x/m/1",
            "logs//d/1-1",
            "catalog/../pool.json",
        ] {
            assert_eq!(name.parse::<Named>(), Err(()), "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_name_reads_back_as_what_it_says(a in any::<u64>(), b in any::<u64>(), id in any::<u128>()) {
            let log = LogId(Uuid::from_u128(id));
            let key = ObjectKey { log, epoch: a, seq: b };
            prop_assert_eq!(key.to_string().parse(), Ok(Named::Data(key)));
            prop_assert_eq!(manifest(log, a).parse(), Ok(Named::Manifest(log, a)));
            let (volume, instance) = (VolumeId::random(), Uuid::from_u128(id));
            let mark = reader(volume, instance);
            prop_assert_eq!(mark.parse(), Ok(Named::Reader(volume, instance)));
            prop_assert_eq!(catalog_record(a).parse(), Ok(Named::CatalogRecord(a)));
            prop_assert_eq!(catalog_checkpoint(a).parse(), Ok(Named::CatalogCheckpoint(a)));
        }

        #[test]
        fn no_name_makes_it_panic(name in "(logs|catalog|pool.json)?[/0-9a-f-]{0,70}.{0,5}") {
            let _ = name.parse::<Named>();
        }
    }
}
