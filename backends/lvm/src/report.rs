//! What `lvs -a --reportformat json` says of a volume group. Pure: text in, structures out.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use volmux_core::ByteSize;

/// The columns that are asked for, with `--units b --nosuffix --binary`. None of how full and how
/// busy a logical volume is: lvm2 would ask the kernel for each of a thousand.
pub const COLUMNS: &str = "lv_name,lv_size,lv_tags,segtype,pool_lv,origin,thin_id,\
    transaction_id,lv_metadata_size,chunk_size,zero,lv_permissions,lv_skip_activation,\
    devices,vg_name,vg_uuid,vg_seqno,vg_extent_size,vg_size,vg_free,vg_lock_type,vg_partial,\
    vg_exported,vg_permissions";

/// The columns of a group alone, for one that holds no logical volume.
pub const GROUP_COLUMNS: &str = "vg_name,vg_uuid,vg_seqno,vg_extent_size,vg_size,vg_free,\
    vg_lock_type,vg_partial,vg_exported,vg_permissions,pv_name";

/// A volume group.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Group {
    /// Its name.
    #[serde(rename = "vg_name")]
    pub name: String,
    /// Its identity.
    #[serde(rename = "vg_uuid")]
    pub uuid: String,
    /// The number of its last commit.
    #[serde(rename = "vg_seqno", deserialize_with = "number")]
    pub seqno: u64,
    /// Logical volumes have a multiple of this many bytes.
    #[serde(rename = "vg_extent_size", deserialize_with = "number")]
    pub extent_size: u64,
    /// Bytes in all.
    #[serde(rename = "vg_size", deserialize_with = "bytes")]
    pub size: ByteSize,
    /// Bytes that no logical volume has.
    #[serde(rename = "vg_free", deserialize_with = "bytes")]
    pub free: ByteSize,
    /// `sanlock` or `dlm` for a group that several hosts share.
    #[serde(rename = "vg_lock_type")]
    pub lock_type: String,
    /// Whether a physical volume is missing.
    #[serde(rename = "vg_partial", deserialize_with = "flag")]
    pub partial: bool,
    /// Whether it was exported.
    #[serde(rename = "vg_exported", deserialize_with = "flag")]
    pub exported: bool,
    /// `writeable` or `read-only`.
    #[serde(rename = "vg_permissions")]
    pub permissions: String,
}

/// A logical volume. What is known only while it is active is `None` otherwise.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Lv {
    /// Its name.
    #[serde(rename = "lv_name")]
    pub name: String,
    /// Its size.
    #[serde(rename = "lv_size", deserialize_with = "bytes")]
    pub size: ByteSize,
    /// Its tags.
    #[serde(rename = "lv_tags", deserialize_with = "list")]
    pub tags: Vec<String>,
    /// `thin`, `thin-pool`, `linear`, `striped` and so on.
    pub segtype: String,
    /// The thin pool that a thin volume lies in.
    #[serde(rename = "pool_lv")]
    pub pool: String,
    /// What a snapshot was made of, as LVM knows it.
    pub origin: String,
    /// The number of a thin volume in the pool's metadata.
    #[serde(deserialize_with = "optional")]
    pub thin_id: Option<u64>,
    /// A pool's transaction, as LVM knows it.
    #[serde(deserialize_with = "optional")]
    pub transaction_id: Option<u64>,
    /// The size of a pool's metadata.
    #[serde(rename = "lv_metadata_size", deserialize_with = "optional")]
    pub metadata_size: Option<u64>,
    /// The size of a pool's chunks.
    #[serde(deserialize_with = "optional")]
    pub chunk_size: Option<u64>,
    /// Whether a pool zeroes chunks before it hands them out.
    #[serde(deserialize_with = "flag")]
    pub zero: bool,
    /// `writeable`, `read-only`, `read-only-override` or `unknown`.
    #[serde(rename = "lv_permissions")]
    pub permissions: String,
    /// Whether it is left alone when the whole group is activated.
    #[serde(rename = "lv_skip_activation", deserialize_with = "flag")]
    pub skip_activation: bool,
}

impl Lv {
    /// Whether LVM's metadata lets its device take writes. What is not active is reported as
    /// `unknown` then.
    pub fn is_writable(&self) -> bool {
        self.permissions != "read-only"
    }
}

/// What was reported.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The group.
    pub group: Group,
    /// Its logical volumes, but for those that are parts of others.
    pub lvs: Vec<Lv>,
    /// The physical volumes that they lie on, as far as they are there.
    pub devices: BTreeSet<PathBuf>,
}

/// Where a logical volume lies.
#[derive(Deserialize)]
struct Places<'a> {
    devices: &'a str,
}

#[derive(Deserialize)]
struct Document<T> {
    report: Vec<T>,
}

/// Each row repeats the group: that is read once, and the rest as what it is.
#[derive(Deserialize)]
struct LvRows<'a> {
    #[serde(borrow)]
    lv: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct GroupRows<'a> {
    #[serde(borrow)]
    vg: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Disk {
    pv_name: PathBuf,
}

/// Reads what `lvs -a -o COLUMNS` printed; `Ok(None)` if there was no logical volume.
///
/// # Errors
/// What is wrong with it.
pub fn lvs(json: &[u8]) -> Result<Option<Report>, serde_json::Error> {
    let document: Document<LvRows<'_>> = serde_json::from_slice(json)?;
    let mut group = None;
    let mut devices = BTreeSet::new();
    let mut lvs: Vec<Lv> = Vec::new();
    for row in document.report.into_iter().flat_map(|report| report.lv) {
        if group.is_none() {
            group = Some(serde_json::from_str(row.get())?);
        }
        let places: Places<'_> = serde_json::from_str(row.get())?;
        devices.extend(disks(places.devices).map(PathBuf::from));
        let lv: Lv = serde_json::from_str(row.get())?;
        // lvm2 shows those that are parts of others in brackets. One line a segment, and those of
        // a logical volume follow each other.
        let part = lv.name.starts_with('[');
        if !part && lvs.last().is_none_or(|last| last.name != lv.name) {
            lvs.push(lv);
        }
    }
    Ok(group.map(|group| Report {
        group,
        lvs,
        devices,
    }))
}

/// The physical volumes in `/dev/sda(0),/dev/sdb(16)`; other logical volumes have no slash.
fn disks(devices: &str) -> impl Iterator<Item = &str> {
    let places = devices.split(',').filter(|place| place.starts_with('/'));
    places.map(|place| place.rsplit_once('(').map_or(place, |(path, _)| path))
}

/// Reads what `vgs -o GROUP_COLUMNS` printed of a group without logical volumes.
///
/// # Errors
/// What is wrong with it.
pub fn vgs(json: &[u8]) -> Result<Option<Report>, serde_json::Error> {
    let document: Document<GroupRows<'_>> = serde_json::from_slice(json)?;
    let (mut group, mut devices) = (None, BTreeSet::new());
    // One line for each physical volume.
    for row in document.report.into_iter().flat_map(|report| report.vg) {
        if group.is_none() {
            group = Some(serde_json::from_str(row.get())?);
        }
        let disk: Disk = serde_json::from_str(row.get())?;
        devices.insert(disk.pv_name);
    }
    Ok(group.map(|group| Report {
        group,
        lvs: Vec::new(),
        devices,
    }))
}

/// A number, a flag or a list of tags, in which nothing has to be escaped.
fn text<'de, D: Deserializer<'de>>(from: D) -> Result<&'de str, D::Error> {
    Deserialize::deserialize(from)
}

fn wrong<E: serde::de::Error>(text: &str, wanted: &str) -> E {
    E::custom(format_args!("{text:?} where {wanted} is expected"))
}

fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = text(from)?;
    text.parse().map_err(|_| wrong(text, "a number"))
}

fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<ByteSize, D::Error> {
    number(from).map(ByteSize::new)
}

fn optional<'de, D: Deserializer<'de>, T: std::str::FromStr>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let text = text(from)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| wrong(text, "a number"))
}

fn list<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let text = text(from)?;
    let parts = text.split(',').filter(|part| !part.is_empty());
    Ok(parts.map(str::to_owned).collect())
}

/// 1, or 0, or -1 for what is not known.
fn flag<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    let text = text(from)?;
    match text {
        "1" => Ok(true),
        "0" | "-1" | "" => Ok(false),
        _ => Err(wrong(text, "1, 0 or -1")),
    }
}

#[cfg(test)]
mod tests;
