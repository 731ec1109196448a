//! Which names there are: of volumes, by what the array stores them in, and of initiators.

use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use uuid::Uuid;
use volmux_core::{Error, ErrorKind, Result, VolumeId, VolumeName};

/// LVM keeps names that begin or go on like this for itself (`lib/misc/lvm-string.c`).
const RESERVED_STARTS: [&str; 2] = ["pvmove", "snapshot"];
const RESERVED_PARTS: [&str; 17] = [
    "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_imeta", "_iorig", "_mimage", "_mlog",
    "_pmspare", "_rimage", "_rmeta", "_tdata", "_tmeta", "_vdata", "_vorigin", "_wcorig",
];
/// Device-mapper names have at most this many bytes, and LVM adds a suffix of up to five.
const LONGEST_DEVICE: usize = 127 - "-real".len();
/// Begins the name of what a copy needs meanwhile. It is a name that a volume could have, so that
/// it can be opened as one, and deleted by hand.
const HIDDEN: &str = "_volmux-copy-";
/// What a copy needs is surely left over once it is so old.
pub const LEFT_OVER: Duration = Duration::from_secs(3 * 24 * 3600);

/// What the array keeps a pool's volumes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Thin volumes in an LVM thin pool.
    LvmThin,
    /// Volumes of an LVM group, which are not zeroed when they are made.
    LvmLinear,
    /// Volumes of ZFS, with their space reserved.
    Zfs,
}

impl Store {
    /// Refuses names that the store does not allow.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn check_name(self, op: &'static str, pool: &str, name: &VolumeName) -> Result<()> {
        let wrong = |reason: String| {
            Err(Error::new(ErrorKind::InvalidInput, op)
                .with("volume", name)
                .reason(reason)
                .help("choose another name"))
        };
        let text = name.as_str();
        if is_hidden(text) {
            return wrong("names like that are for what copies need meanwhile".into());
        }
        if self == Store::Zfs {
            // As targetd checks them for ZFS, and what it can't tell from another dataset's name.
            let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
            return match starts && !text.contains('+') {
                true => Ok(()),
                false => wrong("a name in ZFS has no + and begins with a letter or digit".into()),
            };
        }
        if let Some(start) = RESERVED_STARTS.iter().find(|s| text.starts_with(**s)) {
            return wrong(format!(
                "LVM keeps names that begin with {start} for itself"
            ));
        }
        if let Some(part) = RESERVED_PARTS.iter().find(|p| text.contains(**p)) {
            return wrong(format!("LVM keeps names with {part} in them for itself"));
        }
        let group = pool.split('/').next().unwrap_or_default();
        let twice = |text: &str| text.len() + text.matches('-').count();
        let length = twice(group) + 1 + twice(text);
        if length > LONGEST_DEVICE {
            return wrong(format!(
                "with the group's name, and each - twice, its device's name has {} bytes too many",
                length - LONGEST_DEVICE
            ));
        }
        Ok(())
    }
}

/// A name for what a copy needs meanwhile. It tells when it was made.
pub fn hidden() -> VolumeName {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seconds = now.unwrap_or_default().as_secs();
    let random = Uuid::new_v4().simple().to_string();
    let name = format!("{HIDDEN}{seconds:x}-{}", &random[..12]);
    VolumeName::new(name).expect("it has hexadecimal digits and dashes")
}

/// Whether a volume is what a copy needs meanwhile.
pub fn is_hidden(name: &str) -> bool {
    name.starts_with(HIDDEN)
}

/// Whether no copy can need that any more.
pub fn is_left_over(hidden: &str) -> bool {
    let made = hidden
        .strip_prefix(HIDDEN)
        .and_then(|rest| u64::from_str_radix(rest.split('-').next()?, 16).ok())
        .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    let age = made.and_then(|made| SystemTime::now().duration_since(made).ok());
    age.is_some_and(|age| age > LEFT_OVER)
}

/// A volume's identity: made of the one that the array gives, which is not 128 bits.
pub fn volume_id(uuid: &str) -> VolumeId {
    let hash = Sha256::new_with_prefix("volmux targetd\0")
        .chain_update(uuid)
        .finalize();
    let bits: [u8; 16] = std::array::from_fn(|i| hash[i]);
    VolumeId::from_u128(u128::from_be_bytes(bits))
}

/// Whether this is an initiator's or a target's name in its normal form, which is lower-case
/// (RFC 7143 section 4.2.7): LIO takes no other, and tells it like that.
pub fn is_iscsi_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-:".contains(c);
    if name.len() > 223 || !name.chars().all(allowed) {
        return false;
    }
    let hex = |digits: &str, lengths: &[usize]| {
        lengths.contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit())
    };
    match name.split_at_checked(4) {
        Some(("iqn.", rest)) => is_authority(rest),
        Some(("eui.", rest)) => hex(rest, &[16]),
        Some(("naa.", rest)) => hex(rest, &[16, 32]),
        _ => false,
    }
}

/// `yyyy-mm.domain`, maybe with `:anything` behind.
fn is_authority(rest: &str) -> bool {
    let (authority, of_it) = rest.split_once(':').unwrap_or((rest, "x"));
    let Some((date, domain)) = authority.split_once('.') else {
        return false;
    };
    let number = |text: &str, length: usize| {
        let digits = text.len() == length && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u32>().ok()).flatten()
    };
    let dated = date.split_once('-').is_some_and(|(year, month)| {
        number(year, 4).is_some() && number(month, 2).is_some_and(|m| (1..=12).contains(&m))
    });
    dated && !domain.is_empty() && !of_it.is_empty()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn checked(store: Store, name: &str) -> Result<()> {
        store.check_name(
            "test",
            "group/pool",
            &VolumeName::new(name).expect("a name"),
        )
    }

    #[test]
    fn names_that_the_store_does_not_allow_are_refused() {
        let long = "x".repeat(117);
        let dashes = "a-".repeat(39);
        for name in [
            "snapshot1",
            "pvmove0",
            "a_tmeta",
            "x_tdata_y",
            &long,
            &dashes,
        ] {
            for store in [Store::LvmThin, Store::LvmLinear] {
                let error = checked(store, name).expect_err(name);
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}");
            }
        }
        for name in ["my-snapshot", "a", "_", "tmeta", "x.y+z_", &"x".repeat(116)] {
            checked(Store::LvmThin, name).expect(name);
        }
        for name in ["_", "a+b"] {
            let error = checked(Store::Zfs, name).expect_err(name);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}");
        }
        for name in ["snapshot1", "a.b-c_", "9"] {
            checked(Store::Zfs, name).expect(name);
        }
    }

    #[test]
    fn hidden_names_are_for_nobody_else_and_grow_old() {
        let name = hidden();
        assert!(is_hidden(name.as_str()) && !is_left_over(name.as_str()));
        let error = checked(Store::LvmThin, name.as_str()).expect_err("ours");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_ne!(name, hidden());
        assert!(is_left_over("_volmux-copy-5f000000-0123456789ab"));
        for other in ["_volmux-copy-", "_volmux-copy-x-1", "copy-5f000000-1", "a"] {
            assert!(!is_left_over(other), "{other}");
        }
    }

    #[test]
    fn identities_follow_the_arrays() {
        let id = volume_id("UYf2U3-DVwl-eTXz-nHfD-IGA3-o1Nb-xxq0Sm");
        assert_eq!(id, volume_id("UYf2U3-DVwl-eTXz-nHfD-IGA3-o1Nb-xxq0Sm"));
        assert_ne!(id, volume_id("UYf2U3-DVwl-eTXz-nHfD-IGA3-o1Nb-xxq0SM"));
    }

    #[test]
    fn initiators_have_names_of_three_forms() {
        for name in [
            "iqn.2026-01.org.example:one",
            "iqn.2026-12.org.example",
            "eui.0123456789abcdef",
            "naa.0123456789abcdef",
            "naa.0123456789abcdef0123456789abcdef",
        ] {
            assert!(is_iscsi_name(name), "{name}");
        }
        for name in [
            "",
            "host-1",
            "iqn.",
            "iqn.2026-01",
            "iqn.2026-01.",
            "iqn.2026-13.org.example",
            "iqn.26-01.org.example",
            "iqn.2026-01.org.example:",
            "iqn.2026-01.org.example:UPPER",
            "IQN.2026-01.org.example:a",
            "iqn.2026-01.org.example:a b",
            "iqn.2026-01.org.example:a/b",
            "eui.0123456789abcde",
            "naa.0123456789abcdeg",
            "iqné.2026",
            &format!("iqn.2026-01.org.example:{}", "x".repeat(220)),
        ] {
            assert!(!is_iscsi_name(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,40}") {
            let _ = (is_iscsi_name(&text), is_left_over(&text), is_hidden(&text));
            let _ = is_left_over(&format!("{HIDDEN}{text}"));
        }
    }
}
