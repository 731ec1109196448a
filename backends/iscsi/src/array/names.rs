//! Names of initiators and targets.

use sha2::{Digest, Sha256};
use volmux_core::{Access, Error, ErrorKind, Holder, Result, VolumeId};

/// What the initiator names of open volumes begin with.
const OPENER: &str = "iqn.2026-11.org.volmux.open:";

/// What the names of those begin with who have a volume of this array open. Another array over the
/// same store does not know whether they live.
fn openers(array: &str) -> String {
    let digest = Sha256::digest(array.as_bytes());
    let tag: String = digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{OPENER}{tag}:")
}

/// A name that no other initiator has, for one opening of a volume of `array` on this host.
///
/// # Errors
/// `Unavailable` if the system gives no random numbers.
pub fn opener_name(op: &'static str, array: &str) -> Result<Holder> {
    let mut host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_ascii_lowercase();
    host.retain(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
    host.truncate(63);
    let key = VolumeId::random();
    Holder::new(format!("{}{host}:{key}", openers(array))).map_err(|error| error.with_op(op))
}

/// Whether it is the name of an open volume of `array`, and not of a host that one is attached to.
pub fn is_opener(holder: &Holder, array: &str) -> bool {
    holder.as_str().starts_with(&openers(array))
}

/// Checks that a holder can be an initiator's name (RFC 7143 section 4.2.7), in the characters that
/// all targets take.
///
/// # Errors
/// `InvalidInput`.
pub fn check_initiator(op: &'static str, holder: &Holder) -> Result<()> {
    let name = holder.as_str();
    let kind = ["iqn.", "eui.", "naa."]
        .iter()
        .any(|kind| name.starts_with(kind));
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c);
    let plain = match name.starts_with("iqn.") {
        true => name.chars().all(allowed),
        // Hexadecimal digits, which people write in both cases.
        false => name[4.min(name.len())..]
            .chars()
            .all(|c| c.is_ascii_hexdigit()),
    };
    if kind && plain && (5..=223).contains(&name.len()) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidInput, op)
        .with("holder", holder)
        .reason("in an iSCSI pool the holder is the name of an iSCSI initiator")
        .help(
            "give what stands in /etc/iscsi/initiatorname.iscsi of the host, such as \
             iqn.1993-08.org.debian:01:abcdef, in small letters",
        ))
}

/// The target that shows a volume to those who have it for `access`. Its name says which volume it
/// is, so that a name is never another volume's.
pub fn target(prefix: &str, id: VolumeId, access: Access) -> String {
    match access {
        Access::ReadWrite => format!("{prefix}:{id}"),
        Access::ReadOnly => format!("{prefix}:{id}.ro"),
    }
}

/// The volume that a target shows, and for what.
pub fn volume_of(prefix: &str, target: &str) -> Option<(VolumeId, Access)> {
    let name = target.strip_prefix(prefix)?.strip_prefix(':')?;
    let (id, access) = match name.strip_suffix(".ro") {
        Some(id) => (id, Access::ReadOnly),
        None => (name, Access::ReadWrite),
    };
    let parsed: VolumeId = id.parse().ok()?;
    // As we write it: another way to write the same id is somebody else's target.
    (parsed.to_string() == id).then_some((parsed, access))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openers_are_told_from_hosts_and_from_each_other() {
        let open = || opener_name("t", "iqn.2026-11.a:b").expect("a name");
        let (a, b) = (open(), open());
        assert_ne!(a, b);
        for name in [&a, &b] {
            assert!(is_opener(name, "iqn.2026-11.a:b"));
            assert!(!is_opener(name, "iqn.2026-11.a:c"), "of another array");
            check_initiator("t", name).expect("an initiator's name");
        }
        let host = Holder::new("iqn.1993-08.org.debian:01:abc").expect("a holder");
        assert!(!is_opener(&host, "iqn.2026-11.a:b"));
    }

    #[test]
    fn only_names_of_initiators_are_holders() {
        for good in [
            "iqn.1993-08.org.debian:01:abc",
            "eui.02004567A425678D",
            "naa.52004567ba64678d",
        ] {
            let holder = Holder::new(good).expect("a holder");
            check_initiator("t", &holder).expect(good);
        }
        let long = format!("iqn.{}", "a".repeat(220));
        for bad in [
            "host-1", "iqn", "iqn.", "iqn.a,b", "iqn.A", "iqn.a/b", "eui.xyz", "naa.", &long,
        ] {
            let holder = Holder::new(bad).expect("a holder");
            let error = check_initiator("t", &holder).expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }

    #[test]
    fn a_targets_name_says_which_volume_it_is() {
        let id = VolumeId::random();
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let name = target("iqn.2026-11.a:b", id, access);
            assert_eq!(volume_of("iqn.2026-11.a:b", &name), Some((id, access)));
            assert_eq!(volume_of("iqn.2026-11.a", &name), None);
            assert_eq!(volume_of("iqn.2026-11.a:b", &name.to_uppercase()), None);
        }
        for other in [
            "iqn.2026-11.a:b",
            "iqn.2026-11.a:b:disk",
            "iqn.2026-11.a:b:.ro",
        ] {
            assert_eq!(volume_of("iqn.2026-11.a:b", other), None, "{other}");
        }
    }
}
