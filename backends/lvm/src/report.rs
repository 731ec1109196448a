//! What `lvs -a --reportformat json` says of a volume group. Pure: text in, structures out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use volmux_core::ByteSize;

/// The columns that are asked for, with `--units b --nosuffix --binary`: few, for lvm2 takes longer
/// over each than we do. None of how full and how busy a logical volume is, nor whether it is
/// read-only: lvm2 would ask the kernel for each of a thousand.
pub const COLUMNS: &str = "lv_name,lv_size,lv_tags,segtype,pool_lv,origin,thin_id,\
    transaction_id,chunk_size,zero,lv_skip_activation,devices,vg_uuid,vg_seqno,\
    vg_extent_size,vg_attr";

/// The columns of a group alone, for one that holds no logical volume.
pub const GROUP_COLUMNS: &str = "vg_uuid,vg_seqno,vg_extent_size,vg_attr,pv_name";

/// And these where volumes take their space from the group itself.
pub const SPACE_COLUMNS: &str = ",vg_size,vg_free";

/// A volume group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its identity.
    pub uuid: String,
    /// The number of its last commit.
    pub seqno: u64,
    /// Logical volumes have a multiple of this many bytes.
    pub extent_size: u64,
    /// What it is like.
    pub attributes: Attributes,
    /// Bytes in all, and bytes that no logical volume has, if that was asked.
    pub space: Option<(ByteSize, ByteSize)>,
}

/// What `vg_attr` says (`man vgs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Whether lvm2 changes it.
    pub writable: bool,
    /// Whether it was exported.
    pub exported: bool,
    /// Whether a physical volume is missing.
    pub partial: bool,
    /// Whether several hosts share it, by a lock manager.
    pub shared: bool,
}

/// A logical volume. What is known only while it is active is `None` otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Lv {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size: ByteSize,
    /// Its tags.
    pub tags: Vec<String>,
    /// `thin`, `thin-pool`, `linear`, `striped` and so on.
    pub segtype: String,
    /// The thin pool that a thin volume lies in.
    pub pool: String,
    /// What a snapshot was made of, as LVM knows it.
    pub origin: String,
    /// The number of a thin volume in the pool's metadata.
    pub thin_id: Option<u64>,
    /// A pool's transaction, as LVM knows it.
    pub transaction_id: Option<u64>,
    /// The size of a pool's chunks.
    pub chunk_size: Option<u64>,
    /// Whether a pool zeroes chunks before it hands them out.
    pub zero: bool,
    /// Whether it is left alone when the whole group is activated.
    pub skip_activation: bool,
}

/// What was reported.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The group.
    pub group: Group,
    /// Its logical volumes, but for those that are parts of others.
    pub lvs: Vec<Arc<Lv>>,
    /// The physical volumes that they lie on, as far as they are there.
    pub devices: BTreeSet<PathBuf>,
}

impl Report {
    /// The logical volume of this name.
    pub fn find(&self, name: &str) -> Option<&Arc<Lv>> {
        self.lvs.iter().find(|known| known.name == name)
    }

    /// Changes the logical volume of this name, if there is one.
    pub fn alter(&mut self, name: &str, change: impl FnOnce(&mut Lv)) {
        let mut known = self.lvs.iter_mut();
        if let Some(known) = known.find(|known| known.name == name) {
            change(Arc::make_mut(known));
        }
    }
}

#[derive(Deserialize)]
struct Document<T> {
    report: Vec<T>,
}

#[derive(Deserialize)]
struct LvRows<'a> {
    #[serde(borrow)]
    lv: Vec<LvRow<'a>>,
}

/// A line of `lvs`: a segment of a logical volume. Nothing in it has to be escaped in JSON.
#[derive(Deserialize)]
struct LvRow<'a> {
    lv_name: &'a str,
    #[serde(deserialize_with = "bytes")]
    lv_size: ByteSize,
    lv_tags: &'a str,
    segtype: &'a str,
    pool_lv: &'a str,
    origin: &'a str,
    #[serde(deserialize_with = "optional")]
    thin_id: Option<u64>,
    #[serde(deserialize_with = "optional")]
    transaction_id: Option<u64>,
    #[serde(deserialize_with = "optional")]
    chunk_size: Option<u64>,
    #[serde(deserialize_with = "flag")]
    zero: bool,
    #[serde(deserialize_with = "flag")]
    lv_skip_activation: bool,
    devices: &'a str,
    // Each line repeats the group.
    vg_uuid: &'a str,
    #[serde(deserialize_with = "number")]
    vg_seqno: u64,
    #[serde(deserialize_with = "number")]
    vg_extent_size: u64,
    #[serde(deserialize_with = "attributes")]
    vg_attr: Attributes,
    #[serde(default, deserialize_with = "some_bytes")]
    vg_size: Option<ByteSize>,
    #[serde(default, deserialize_with = "some_bytes")]
    vg_free: Option<ByteSize>,
}

impl LvRow<'_> {
    fn lv(&self) -> Lv {
        let tags = self.lv_tags.split(',').filter(|tag| !tag.is_empty());
        Lv {
            name: self.lv_name.to_owned(),
            size: self.lv_size,
            tags: tags.map(str::to_owned).collect(),
            segtype: self.segtype.to_owned(),
            pool: self.pool_lv.to_owned(),
            origin: self.origin.to_owned(),
            thin_id: self.thin_id,
            transaction_id: self.transaction_id,
            chunk_size: self.chunk_size,
            zero: self.zero,
            skip_activation: self.lv_skip_activation,
        }
    }

    fn group(&self) -> Group {
        Group {
            uuid: self.vg_uuid.to_owned(),
            seqno: self.vg_seqno,
            extent_size: self.vg_extent_size,
            attributes: self.vg_attr,
            space: self.vg_size.zip(self.vg_free),
        }
    }
}

#[derive(Deserialize)]
struct GroupRows<'a> {
    #[serde(borrow)]
    vg: Vec<GroupRow<'a>>,
}

/// A line of `vgs`: a physical volume.
#[derive(Deserialize)]
struct GroupRow<'a> {
    vg_uuid: &'a str,
    #[serde(deserialize_with = "number")]
    vg_seqno: u64,
    #[serde(deserialize_with = "number")]
    vg_extent_size: u64,
    #[serde(deserialize_with = "attributes")]
    vg_attr: Attributes,
    #[serde(default, deserialize_with = "some_bytes")]
    vg_size: Option<ByteSize>,
    #[serde(default, deserialize_with = "some_bytes")]
    vg_free: Option<ByteSize>,
    pv_name: &'a Path,
}

/// Reads what `lvs -a -o COLUMNS` printed; `Ok(None)` if there was no logical volume.
///
/// # Errors
/// What is wrong with it.
pub fn lvs(json: &[u8]) -> Result<Option<Report>, serde_json::Error> {
    let document: Document<LvRows<'_>> = serde_json::from_str(utf8(json)?)?;
    let rows = document.report.into_iter().flat_map(|report| report.lv);
    let (mut group, mut places, mut lvs) = (None, BTreeSet::new(), Vec::<Arc<Lv>>::new());
    for row in rows {
        group.get_or_insert_with(|| row.group());
        places.extend(disks(row.devices));
        // lvm2 shows those that are parts of others in brackets. One line a segment, and those of
        // a logical volume follow each other.
        let part = row.lv_name.starts_with('[');
        if !part && lvs.last().is_none_or(|last| last.name != row.lv_name) {
            lvs.push(Arc::new(row.lv()));
        }
    }
    Ok(group.map(|group| Report {
        group,
        lvs,
        devices: places.into_iter().map(PathBuf::from).collect(),
    }))
}

/// Checked once, and not string by string.
fn utf8(json: &[u8]) -> Result<&str, serde_json::Error> {
    std::str::from_utf8(json).map_err(serde::de::Error::custom)
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
    let document: Document<GroupRows<'_>> = serde_json::from_str(utf8(json)?)?;
    let rows = document.report.into_iter().flat_map(|report| report.vg);
    let (mut group, mut devices) = (None, BTreeSet::new());
    for row in rows {
        devices.insert(row.pv_name.to_owned());
        group.get_or_insert_with(|| Group {
            uuid: row.vg_uuid.to_owned(),
            seqno: row.vg_seqno,
            extent_size: row.vg_extent_size,
            attributes: row.vg_attr,
            space: row.vg_size.zip(row.vg_free),
        });
    }
    Ok(group.map(|group| Report {
        group,
        lvs: Vec::new(),
        devices,
    }))
}

/// A number or a flag, in which nothing has to be escaped.
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

fn some_bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<ByteSize>, D::Error> {
    bytes(from).map(Some)
}

/// Writable, resizeable, exported, partial, allocation policy, clustered or shared.
fn attributes<'de, D: Deserializer<'de>>(from: D) -> Result<Attributes, D::Error> {
    let text = text(from)?;
    let [permission @ (b'w' | b'r'), _, exported, partial, _, shared] = *text.as_bytes() else {
        return Err(wrong(text, "six attributes of a group"));
    };
    Ok(Attributes {
        writable: permission == b'w',
        exported: exported == b'x',
        partial: partial == b'p',
        shared: shared == b's',
    })
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
