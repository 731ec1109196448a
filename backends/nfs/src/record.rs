//! What the pool stores beside the data: one record a volume, one for the pool. Encoding and
//! decoding are pure; reading and writing files is the layout's work.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use volmux_core::{
    Access, AttachOptions, ByteSize, Holder, Origin, Provisioning, Sharing, Volume, VolumeId,
    VolumeName,
};

use crate::node::{Format, Node};

/// The newest version of records that this code writes and reads: of volumes whose data is a qcow2
/// image, or that were taken from a writer.
pub const FORMAT_VERSION: u32 = 2;
/// The version of all that a volmux can read that knows nothing of qcow2 images.
pub const FIRST_VERSION: u32 = 1;
/// A record file is never longer; a longer one is not ours.
pub const MAX_RECORD_BYTES: usize = 64 << 10;

/// Why a record can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Cut off, or not one of ours.
    #[error("it is not a complete record (cut off, or not written by volmux)")]
    Incomplete,
    /// Bytes differ from those written.
    #[error("its checksum does not match (written {written}, found {found})")]
    Checksum { written: String, found: String },
    /// The checksum fits but the content does not.
    #[error("its content can't be understood: {0}")]
    Content(#[from] serde_json::Error),
    /// What it says can't be.
    #[error("it gives the volume {0} bytes, which is no size of a volume")]
    Size(u64),
    /// Written by a newer volmux.
    #[error("it has format version {0}, and this volmux knows versions up to {FORMAT_VERSION}")]
    Version(u32),
}

/// The pool's own record, `pool.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolRecord {
    pub version: u32,
    pub id: VolumeId,
    #[serde(with = "rfc3339")]
    pub created: SystemTime,
}

/// A volume's record, `volumes/NAME.json`. The volume exists exactly while this file does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRecord {
    pub version: u32,
    pub id: VolumeId,
    /// The data file. A revert gives the volume another one, and so may a snapshot. Changed by
    /// [`set_data`](Self::set_data).
    pub data: Node,
    pub virtual_size: ByteSize,
    pub provisioning: Provisioning,
    #[serde(with = "rfc3339")]
    pub created: SystemTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Where an adopted file was, below the root; audit ends an adoption that was cut short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted_from: Option<String>,
    /// Goes up whenever the volume is taken from a writer, by two: it is odd while that is under way.
    /// Changed by [`set_epoch`](Self::set_epoch).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub epoch: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<AttachRecord>,
}

/// One attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRecord {
    pub holder: Holder,
    pub access: Access,
    pub sharing: Sharing,
}

impl VolumeRecord {
    /// A record for new data.
    pub fn new(data: Node, virtual_size: ByteSize, provisioning: Provisioning) -> Self {
        VolumeRecord {
            version: version_of(data, 0),
            id: VolumeId::random(),
            data,
            virtual_size,
            provisioning,
            created: now(),
            origin: None,
            adopted_from: None,
            epoch: 0,
            attachments: Vec::new(),
        }
    }

    /// Gives the volume other data.
    pub fn set_data(&mut self, data: Node) {
        self.data = data;
        self.version = version_of(data, self.epoch);
    }

    /// Tells those who have it open for writing that it is theirs no more.
    pub fn set_epoch(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.version = version_of(self.data, epoch);
    }

    /// Whether somebody is taking it from a writer, or was when he died.
    pub fn is_being_taken(&self) -> bool {
        !self.epoch.is_multiple_of(2)
    }

    /// What the pool's users see of it.
    pub fn to_volume(&self, name: VolumeName, allocated: Option<ByteSize>) -> Volume {
        let mut volume = Volume::new(name, self.id, self.virtual_size);
        volume.allocated = allocated;
        volume.provisioning = self.provisioning;
        volume.origin = self.origin.clone();
        volume.created = self.created;
        volume.attachments = self.attachments.iter().map(AttachRecord::options).collect();
        volume
    }
}

impl AttachRecord {
    fn options(&self) -> AttachOptions {
        AttachOptions {
            holder: self.holder.clone(),
            access: self.access,
            sharing: self.sharing,
        }
    }
}

/// The version of such a record.
fn version_of(data: Node, epoch: u64) -> u32 {
    match data.format {
        Format::Raw if epoch == 0 => FIRST_VERSION,
        _ => FORMAT_VERSION,
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The time now, in the precision that records keep.
pub fn now() -> SystemTime {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_micros(since.as_micros() as u64)
}

/// The file's bytes: the record as one line of JSON, then a line with its CRC-32.
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    let mut text = serde_json::to_vec(record).expect("records have only encodable fields");
    let crc = crc32fast::hash(&text);
    text.extend_from_slice(format!("\ncrc32 {crc:08x}\n").as_bytes());
    text
}

/// Reads what [`encode`] wrote.
pub fn decode<T: Record>(bytes: &[u8]) -> Result<T, RecordError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let text = bytes.strip_suffix(b"\n").ok_or(RecordError::Incomplete)?;
    let split = text
        .iter()
        .rposition(|&b| b == b'\n')
        .ok_or(RecordError::Incomplete)?;
    let (json, crc_line) = (&text[..split], &text[split + 1..]);
    let written = crc_line
        .strip_prefix(b"crc32 ")
        .ok_or(RecordError::Incomplete)?;
    let found = format!("{:08x}", crc32fast::hash(json));
    if written != found.as_bytes() {
        let written = String::from_utf8_lossy(written).into_owned();
        return Err(RecordError::Checksum { written, found });
    }
    // The version first: a newer one may have fields that this code does not know.
    match serde_json::from_slice::<T>(json) {
        Ok(record) if (FIRST_VERSION..=FORMAT_VERSION).contains(&record.version()) => {
            record.check().map(|()| record)
        }
        Ok(record) => Err(RecordError::Version(record.version())),
        Err(error) => match serde_json::from_slice(json) {
            Ok(Version { version }) if version > FORMAT_VERSION => {
                Err(RecordError::Version(version))
            }
            _ => Err(RecordError::Content(error)),
        },
    }
}

/// Virtual sizes are multiples of a disk sector.
pub const SECTOR: u64 = 512;

/// A record that can be read from a file.
pub trait Record: DeserializeOwned {
    /// The format version that it was written with.
    fn version(&self) -> u32;

    /// Refuses what can be written down but can't be.
    fn check(&self) -> Result<(), RecordError>;
}

impl Record for PoolRecord {
    fn version(&self) -> u32 {
        self.version
    }

    fn check(&self) -> Result<(), RecordError> {
        Ok(())
    }
}

/// A merge of data files that is done but for its end, `merge.json`: who has `from` below it, or for
/// its data, is to have `into` instead, which holds the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeRecord {
    pub version: u32,
    pub from: Node,
    pub into: Node,
}

impl Record for MergeRecord {
    fn version(&self) -> u32 {
        self.version
    }

    fn check(&self) -> Result<(), RecordError> {
        Ok(())
    }
}

impl Record for VolumeRecord {
    fn version(&self) -> u32 {
        self.version
    }

    fn check(&self) -> Result<(), RecordError> {
        match self.virtual_size.bytes() {
            size if size > 0 && size.is_multiple_of(SECTOR) && i64::try_from(size).is_ok() => {
                Ok(())
            }
            size => Err(RecordError::Size(size)),
        }
    }
}

mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_micros(*time))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> VolumeRecord {
        let mut record = VolumeRecord::new(
            Node::raw(VolumeId::random()),
            ByteSize::gib(10),
            Provisioning::Thin,
        );
        // Stored with microseconds.
        record.created = SystemTime::UNIX_EPOCH + Duration::from_micros(1_234_567);
        record
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let mut record = record();
        record.attachments.push(AttachRecord {
            holder: Holder::new("host-1").expect("holder"),
            access: Access::ReadWrite,
            sharing: Sharing::Exclusive,
        });
        assert_eq!(
            decode::<VolumeRecord>(&encode(&record)).expect("decodes"),
            record
        );
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let text = br#"{"version":9,"new_field":1}"#;
        let mut bytes = text.to_vec();
        bytes.extend_from_slice(format!("\ncrc32 {:08x}\n", crc32fast::hash(text)).as_bytes());
        assert!(matches!(
            decode::<VolumeRecord>(&bytes),
            Err(RecordError::Version(9))
        ));
    }

    proptest! {
        #[test]
        fn no_single_changed_byte_goes_unnoticed(at in any::<proptest::sample::Index>(), flip in 1u8..) {
            let mut bytes = encode(&record());
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(decode::<VolumeRecord>(&bytes).is_err());
        }

        #[test]
        fn no_cut_goes_unnoticed(at in any::<proptest::sample::Index>()) {
            let bytes = encode(&record());
            prop_assert!(decode::<VolumeRecord>(&bytes[..at.index(bytes.len())]).is_err());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode::<VolumeRecord>(&bytes).is_err());
        }
    }
}
