//! Names of logical volumes: a volume's is its own, what is under way has one of ours.

use volmux_core::{Error, ErrorKind, Result, VolumeId, VolumeName};

/// lvm2 keeps names that begin or go on like this for itself (`lib/misc/lvm-string.c`).
const RESERVED_STARTS: [&str; 2] = ["pvmove", "snapshot"];
const RESERVED_PARTS: [&str; 17] = [
    "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_imeta", "_iorig", "_mimage", "_mlog",
    "_pmspare", "_rimage", "_rmeta", "_tdata", "_tmeta", "_vdata", "_vorigin", "_wcorig",
];

/// Device-mapper names have at most this many bytes, its suffixes included.
const LONGEST_DEVICE: usize = 127;
/// The longest suffix that lvm2 adds to the UUID or name of a device.
const LONGEST_SUFFIX: usize = "-real".len();

/// Begins the name of what is under way: no volume can have a name like that.
const HIDDEN: &str = ".volmux-";

/// Refuses names that lvm2 does not allow.
///
/// # Errors
/// `InvalidInput`.
pub fn check(op: &'static str, group: &str, name: &VolumeName) -> Result<()> {
    let wrong = |reason: String| {
        Err(Error::new(ErrorKind::InvalidInput, op)
            .with("volume", name)
            .reason(reason)
            .help("choose another name"))
    };
    let text = name.as_str();
    if let Some(start) = RESERVED_STARTS.iter().find(|s| text.starts_with(**s)) {
        return wrong(format!(
            "LVM keeps names that begin with {start} for itself"
        ));
    }
    if let Some(part) = RESERVED_PARTS.iter().find(|p| text.contains(**p)) {
        return wrong(format!("LVM keeps names with {part} in them for itself"));
    }
    let length = crate::dm::dm_name(group, text).len() + LONGEST_SUFFIX;
    if length > LONGEST_DEVICE {
        return wrong(format!(
            "with the group's name, and each - twice, its device's name has {} bytes too many",
            length - LONGEST_DEVICE
        ));
    }
    Ok(())
}

/// What is under way, in the name of its logical volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hidden {
    /// The content that a volume is being reverted to.
    Revert,
    /// The content that a volume had before.
    Old,
    /// The moment of a volume that is being copied.
    Copy,
    /// Extents that are zeroed before a thick volume grows by them.
    Zero,
    /// Nothing: it is made so that lvm2 makes up for what it had left undone.
    Nothing,
}

impl Hidden {
    /// The name of the logical volume, for work on the volume `id`; of zeros, by an identity of
    /// their own.
    pub fn name(self, id: VolumeId) -> String {
        let what = match self {
            Hidden::Revert => "revert",
            Hidden::Old => "old",
            Hidden::Copy => "copy",
            Hidden::Zero => "zero",
            Hidden::Nothing => "nothing",
        };
        format!("{HIDDEN}{what}-{id}")
    }
}

/// Whether a logical volume's name is one of [`Hidden`].
pub fn is_hidden(name: &str) -> bool {
    name.starts_with(HIDDEN)
}

/// The volume for which a hidden logical volume was made.
pub fn id_of_hidden(name: &str) -> Option<VolumeId> {
    let (_, id) = name.strip_prefix(HIDDEN)?.split_once('-')?;
    id.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(name: &str) -> Result<()> {
        check("test", "group", &VolumeName::new(name).expect("a name"))
    }

    #[test]
    fn what_lvm_keeps_for_itself_is_refused() {
        for name in [
            "snapshot1",
            "pvmove0",
            "a_tmeta",
            "x_tdata_y",
            "a_rimage_0",
            "m_pmspare",
        ] {
            let error = checked(name).expect_err(name);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}");
        }
        for name in ["my-snapshot", "a", "_", "tmeta", "pv-move", "x.y+z_"] {
            checked(name).expect(name);
        }
    }

    #[test]
    fn devices_have_short_names() {
        checked(&"x".repeat(115)).expect("it fits");
        checked(&"x".repeat(120)).expect_err("too long");
        checked(&"a-".repeat(39)).expect_err("each - counts twice");
    }

    #[test]
    fn hidden_names_are_no_volumes() {
        let name = Hidden::Old.name(VolumeId::from_u128(7));
        assert!(is_hidden(&name));
        assert_eq!(id_of_hidden(&name), Some(VolumeId::from_u128(7)));
        assert_eq!(id_of_hidden("old-7"), None);
        assert!(VolumeName::new(name).is_err());
    }
}
