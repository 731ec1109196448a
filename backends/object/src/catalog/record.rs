//! Records and checkpoints as bytes: JSON, in which each tip and each origin stands only once.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use volmux_core::{Origin, Provisioning, VolumeId, VolumeName};

use super::{Change, Entry};
use crate::keys::LogId;
use crate::tip::Tip;

/// No number is as large as this; sums of numbers below it do not overflow.
const TOO_LARGE: u64 = 1 << 62;

/// What is wrong with the body of a record or a checkpoint.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error("what it holds is not understood: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it says that it is number {0}")]
    Number(u64),
    #[error("the volume {0} refers to a tip that is not there")]
    Tip(VolumeName),
    #[error("the volume {0} refers to an origin that is not there")]
    Origin(VolumeName),
}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    /// Which try of which writer made it.
    pub token: Uuid,
    pub changes: Vec<Change>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordBody<'a> {
    number: u64,
    token: Uuid,
    tips: Vec<Cow<'a, Tip>>,
    origins: Vec<Cow<'a, Origin>>,
    changes: Vec<PackedChange<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PackedChange<'a> {
    Put(Packed<'a>),
    Remove(VolumeId),
    Gc(Uuid),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckpointBody<'a> {
    number: u64,
    tips: Vec<Cow<'a, Tip>>,
    origins: Vec<Cow<'a, Origin>>,
    volumes: Vec<Packed<'a>>,
}

/// A volume as an array: names of fields would make up half of a checkpoint.
#[derive(Serialize, Deserialize)]
struct Packed<'a>(
    VolumeId,
    Cow<'a, VolumeName>,
    /// Size in bytes.
    u64,
    Provisioning,
    /// Index into the origins.
    Option<usize>,
    /// Nanoseconds since 1970.
    u64,
    Option<LogId>,
    /// Index into the tips.
    usize,
);

/// The bytes of a record.
pub(super) fn encode(number: u64, token: Uuid, changes: &[Change]) -> Result<Vec<u8>, Malformed> {
    let mut packer = Packer::default();
    let changes = changes
        .iter()
        .map(|change| match change {
            Change::Put(entry) => PackedChange::Put(packer.pack(entry)),
            Change::Remove(id) => PackedChange::Remove(*id),
            Change::Gc { marker } => PackedChange::Gc(*marker),
        })
        .collect();
    let Packer { tips, origins, .. } = packer;
    Ok(serde_json::to_vec(&RecordBody {
        number,
        token,
        tips,
        origins,
        changes,
    })?)
}

/// What the bytes of record `number` say.
pub(super) fn decode(number: u64, bytes: &[u8]) -> Result<Record, Malformed> {
    let body: RecordBody<'_> = serde_json::from_slice(bytes)?;
    check_number(number, body.number)?;
    let unpacker = Unpacker::new(body.tips, body.origins);
    let changes = body.changes.into_iter().map(|change| {
        Ok(match change {
            PackedChange::Put(packed) => Change::Put(unpacker.unpack(packed)?),
            PackedChange::Remove(id) => Change::Remove(id),
            PackedChange::Gc(marker) => Change::Gc { marker },
        })
    });
    Ok(Record {
        token: body.token,
        changes: changes.collect::<Result<_, Malformed>>()?,
    })
}

/// The bytes of a checkpoint: a function of the records up to `number`, whoever writes it.
pub(super) fn encode_checkpoint(number: u64, entries: &[Arc<Entry>]) -> Result<Vec<u8>, Malformed> {
    let mut packer = Packer::default();
    let volumes = entries.iter().map(|entry| packer.pack(entry)).collect();
    let Packer { tips, origins, .. } = packer;
    Ok(serde_json::to_vec(&CheckpointBody {
        number,
        tips,
        origins,
        volumes,
    })?)
}

/// The volumes that the bytes of checkpoint `number` hold.
pub(super) fn decode_checkpoint(number: u64, bytes: &[u8]) -> Result<Vec<Entry>, Malformed> {
    let body: CheckpointBody<'_> = serde_json::from_slice(bytes)?;
    check_number(number, body.number)?;
    let unpacker = Unpacker::new(body.tips, body.origins);
    let volumes = body.volumes.into_iter();
    volumes.map(|packed| unpacker.unpack(packed)).collect()
}

fn check_number(expected: u64, found: u64) -> Result<(), Malformed> {
    if found == expected && found < TOO_LARGE {
        Ok(())
    } else {
        Err(Malformed::Number(found))
    }
}

/// Collects what several volumes share.
#[derive(Default)]
struct Packer<'a> {
    tips: Vec<Cow<'a, Tip>>,
    origins: Vec<Cow<'a, Origin>>,
    tip_index: HashMap<&'a Tip, usize>,
    origin_index: HashMap<&'a Origin, usize>,
}

impl<'a> Packer<'a> {
    fn pack(&mut self, entry: &'a Entry) -> Packed<'a> {
        let Packer { tips, origins, .. } = self;
        let tip = *self.tip_index.entry(&entry.base).or_insert_with(|| {
            tips.push(Cow::Borrowed(&*entry.base));
            tips.len() - 1
        });
        let origin = entry.origin.as_ref().map(|origin| {
            *self.origin_index.entry(origin).or_insert_with(|| {
                origins.push(Cow::Borrowed(origin));
                origins.len() - 1
            })
        });
        let created = entry.created.duration_since(SystemTime::UNIX_EPOCH);
        Packed(
            entry.id,
            Cow::Borrowed(&entry.name),
            entry.size,
            entry.provisioning,
            origin,
            // A clock before 1970 or after 2554 is wrong; it must not keep a volume from being made.
            created.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0)),
            entry.log,
            tip,
        )
    }
}

struct Unpacker<'a> {
    tips: Vec<Arc<Tip>>,
    origins: Vec<Cow<'a, Origin>>,
}

impl<'a> Unpacker<'a> {
    fn new(tips: Vec<Cow<'_, Tip>>, origins: Vec<Cow<'a, Origin>>) -> Self {
        let tips = tips.into_iter().map(|tip| Arc::new(tip.into_owned()));
        let tips = tips.collect();
        Unpacker { tips, origins }
    }

    fn unpack(&self, packed: Packed<'_>) -> Result<Entry, Malformed> {
        let Packed(id, name, size, provisioning, origin, created, log, base) = packed;
        let name = name.into_owned();
        let Some(base) = self.tips.get(base).cloned() else {
            return Err(Malformed::Tip(name));
        };
        let origin = match origin.map(|index| self.origins.get(index)) {
            None => None,
            Some(Some(origin)) => Some(origin.clone().into_owned()),
            Some(None) => return Err(Malformed::Origin(name)),
        };
        Ok(Entry {
            id,
            name,
            size,
            provisioning,
            origin,
            // 2^64 nanoseconds are 584 years: the sum is within any platform's range.
            created: SystemTime::UNIX_EPOCH + Duration::from_nanos(created),
            log,
            base,
        })
    }
}
