//! What the tags of a logical volume say of a volume. They stay with it whatever it is called, and
//! each change of them is one commit of the group's metadata.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use volmux_core::{
    Access, AttachOptions, ByteSize, Holder, Origin, OriginKind, Sharing, VolumeId, VolumeName,
};

/// Begins each of our tags.
const OURS: &str = "volmux.";

/// What the tags of one logical volume say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The volume's identity.
    pub id: VolumeId,
    /// When it was made.
    pub created: SystemTime,
    /// What it came from.
    pub origin: Option<Origin>,
    /// What was adopted.
    pub adopted: Option<String>,
    /// Who it is attached to.
    pub attachments: Vec<Attached>,
    /// What is not done yet.
    pub work: Option<Work>,
}

/// One attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Who.
    pub holder: Holder,
    /// For reading only, or for writing too.
    pub access: Access,
    /// Whether other writers are let in.
    pub sharing: Sharing,
}

impl Attached {
    /// As whoever attached it said.
    pub fn options(&self) -> AttachOptions {
        AttachOptions {
            holder: self.holder.clone(),
            access: self.access,
            sharing: self.sharing,
        }
    }
}

/// What is not done yet with a logical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// It is being filled (a copy) or zeroed (a thick volume): no volume yet.
    Making,
    /// It is the volume of this name, from the moment that no other logical volume has the name, and
    /// will be called so: a revert, or an adoption.
    Naming(VolumeName),
    /// The volume has this size already, and its logical volume not yet.
    Shrinking(ByteSize),
}

impl Record {
    /// Of a volume that is made now.
    pub fn new(origin: Option<Origin>) -> Self {
        Record {
            id: VolumeId::random(),
            // What does not fit into the tag must not be in what is returned first.
            created: at(nanoseconds(SystemTime::now())),
            origin,
            adopted: None,
            attachments: Vec::new(),
            work: None,
        }
    }

    /// Whether it is a snapshot, and so read-only.
    pub fn is_snapshot(&self) -> bool {
        let origin = self.origin.as_ref();
        origin.is_some_and(|origin| origin.kind == OriginKind::Snapshot)
    }

    /// The tags, one each.
    pub fn tags(&self) -> Vec<String> {
        let mut tags = vec![
            format!("{OURS}id={}", self.id),
            format!("{OURS}created={}", nanoseconds(self.created)),
        ];
        if let Some(origin) = &self.origin {
            let Origin {
                kind,
                parent_id,
                parent_name,
                ..
            } = origin;
            tags.push(format!("{OURS}origin={kind}:{parent_id}:{parent_name}"));
        }
        if let Some(what) = &self.adopted {
            tags.push(format!("{OURS}adopted={}", escaped(what)));
        }
        tags.extend(self.attachments.iter().map(Attached::tag));
        tags.extend(self.work.as_ref().map(Work::tag));
        tags
    }

    /// What the tags of a logical volume say; `Ok(None)` if none is ours.
    ///
    /// # Errors
    /// What is wrong with them, in a sentence.
    pub fn read<'a>(tags: impl Iterator<Item = &'a str>) -> Result<Option<Record>, String> {
        let mut id = None;
        let mut created = None;
        let (mut origin, mut adopted, mut work) = (None, None, None);
        let mut attachments = Vec::new();
        let mut ours = false;
        for tag in tags {
            let Some(text) = tag.strip_prefix(OURS) else {
                continue;
            };
            ours = true;
            let wrong = || format!("the tag {tag} can't be understood");
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            match key {
                "id" => set(&mut id, value.parse().ok()),
                "created" => set(&mut created, value.parse().ok().map(at)),
                "origin" => set(&mut origin, read_origin(value)),
                "adopted" => set(&mut adopted, unescaped(value)),
                "attached" => Attached::read(value).map(|attached| attachments.push(attached)),
                _ => set(&mut work, Work::read(key, value)),
            }
            .ok_or_else(wrong)?;
        }
        if !ours {
            return Ok(None);
        }
        Ok(Some(Record {
            id: id.ok_or("the tag volmux.id is missing")?,
            created: created.unwrap_or(UNIX_EPOCH),
            origin,
            adopted,
            attachments,
            work,
        }))
    }
}

/// Puts `value` into `place`; none if it can't be read or there is one already.
fn set<T>(place: &mut Option<T>, value: Option<T>) -> Option<()> {
    if place.is_some() || value.is_none() {
        return None;
    }
    *place = value;
    Some(())
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn at(nanoseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanoseconds)
}

fn read_origin(text: &str) -> Option<Origin> {
    let mut parts = text.splitn(3, ':');
    let kind = match parts.next()? {
        "snapshot" => OriginKind::Snapshot,
        "clone" => OriginKind::Clone,
        "copy" => OriginKind::Copy,
        _ => return None,
    };
    Some(Origin {
        kind,
        parent_id: parts.next()?.parse().ok()?,
        parent_name: parts.next()?.parse().ok()?,
    })
}

impl Attached {
    /// Its tag.
    pub fn tag(&self) -> String {
        let access = match self.access {
            Access::ReadOnly => "ro",
            Access::ReadWrite => "rw",
        };
        let sharing = match self.sharing {
            Sharing::Exclusive => "exclusive",
            Sharing::Shared => "shared",
        };
        let holder = escaped(self.holder.as_str());
        format!("{OURS}attached={access}:{sharing}:{holder}")
    }

    fn read(text: &str) -> Option<Attached> {
        let mut parts = text.splitn(3, ':');
        Some(Attached {
            access: match parts.next()? {
                "ro" => Access::ReadOnly,
                "rw" => Access::ReadWrite,
                _ => return None,
            },
            sharing: match parts.next()? {
                "exclusive" => Sharing::Exclusive,
                "shared" => Sharing::Shared,
                _ => return None,
            },
            holder: Holder::new(unescaped(parts.next()?)?).ok()?,
        })
    }
}

impl Work {
    /// Its tag.
    pub fn tag(&self) -> String {
        match self {
            Work::Making => format!("{OURS}making"),
            Work::Naming(name) => format!("{OURS}naming={name}"),
            Work::Shrinking(size) => format!("{OURS}shrinking={}", size.bytes()),
        }
    }

    fn read(key: &str, value: &str) -> Option<Work> {
        match (key, value) {
            ("making", "") => Some(Work::Making),
            ("naming", name) => name.parse().ok().map(Work::Naming),
            ("shrinking", size) => size.parse().ok().map(|n| Work::Shrinking(ByteSize::new(n))),
            _ => None,
        }
    }
}

/// A tag has at most 1,024 bytes, of A-Z a-z 0-9 and `_+.-/=!:&#` (`man lvm`): each other byte, and
/// #, becomes # and two hexadecimal digits.
fn escaped(text: &str) -> String {
    use std::fmt::Write;
    let mut tag = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"_+.-/=!:&".contains(&byte) {
            tag.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(tag, "#{byte:02x}");
        }
    }
    tag
}

fn unescaped(tag: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(tag.len());
    let mut rest = tag.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'#' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(tags: &[&str]) -> Result<Option<Record>, String> {
        Record::read(tags.iter().copied())
    }

    #[test]
    fn tags_of_others_are_not_ours() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["production", "volmuxed"]), Ok(None));
    }

    #[test]
    fn wrong_tags_are_named() {
        let id = "volmux.id=00000000-0000-0000-0000-000000000007";
        for wrong in [
            "volmux.id=x",
            "volmux.made=5",
            "volmux.attached=ro:exclusive:a#2",
            "volmux.attached=rw:x:a",
            "volmux.shrinking=-1",
            "volmux.origin=clone:7:a",
            "volmux.making=1",
        ] {
            let error = read(&[id, wrong]).expect_err(wrong);
            assert!(error.contains("volmux."), "{error}");
        }
        assert!(read(&["volmux.created=5"]).is_err(), "no id");
        assert!(read(&[id, "production"]).expect("right").is_some());
    }

    fn records() -> impl Strategy<Value = Record> {
        let name =
            "[A-Za-z0-9_][A-Za-z0-9_.+-]{0,126}".prop_map(|n| VolumeName::new(n).expect("a name"));
        let kind = prop_oneof![
            Just(OriginKind::Snapshot),
            Just(OriginKind::Clone),
            Just(OriginKind::Copy)
        ];
        let origin =
            (kind, any::<u128>(), name.clone()).prop_map(|(kind, id, parent_name)| Origin {
                kind,
                parent_id: VolumeId::from_u128(id),
                parent_name,
            });
        let attached =
            ("[!-~]{1,255}", any::<bool>(), any::<bool>()).prop_map(|(holder, ro, one)| Attached {
                holder: Holder::new(holder).expect("a holder"),
                access: if ro {
                    Access::ReadOnly
                } else {
                    Access::ReadWrite
                },
                sharing: if one {
                    Sharing::Exclusive
                } else {
                    Sharing::Shared
                },
            });
        let work = prop_oneof![
            Just(Work::Making),
            name.prop_map(Work::Naming),
            any::<u64>().prop_map(|size| Work::Shrinking(ByteSize::new(size))),
        ];
        (
            any::<u128>(),
            any::<u64>(),
            proptest::option::of(origin),
            proptest::option::of("[ -~]{1,100}"),
            proptest::collection::vec(attached, 0..3),
            proptest::option::of(work),
        )
            .prop_map(|(id, created, origin, adopted, attachments, work)| Record {
                id: VolumeId::from_u128(id),
                created: at(created),
                origin,
                adopted,
                attachments,
                work,
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(record in records()) {
            let tags = record.tags();
            for tag in &tags {
                prop_assert!(tag.len() <= 1024);
                let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_+.-/=!:&#".contains(&b);
                prop_assert!(tag.bytes().all(allowed), "{}", tag);
            }
            let read = Record::read(tags.iter().rev().map(String::as_str));
            let mut expected = record;
            expected.attachments.reverse();
            prop_assert_eq!(read, Ok(Some(expected)));
        }

        #[test]
        fn garbage_never_panics(tags in proptest::collection::vec("(volmux\\.)?(id|created|origin|attached|old|x)?=?[ -~]{0,20}", 0..5)) {
            let _ = Record::read(tags.iter().map(String::as_str));
        }
    }
}
