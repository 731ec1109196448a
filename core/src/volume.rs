//! Volumes, their names and their lineage.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{AttachOptions, ByteSize, Error, ErrorKind, Result};

/// A checked volume name: `[A-Za-z0-9_][A-Za-z0-9_.+-]{0,126}`.
///
/// Such a name is safe as a file name, as a command's argument and as an object key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 127;

    /// Checks `name`.
    ///
    /// # Errors
    /// `InvalidInput` that shows the name and says what is allowed.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let wrong = |reason: String| {
            Err(Error::new(ErrorKind::InvalidInput, "volume_name")
                .with("volume", &name)
                .reason(reason)
                .help("a name is 1 to 127 of A-Z a-z 0-9 _ . + - and starts with a letter, digit or _"))
        };
        if name.is_empty() || name.len() > Self::MAX_LEN {
            return wrong(format!("the name has {} bytes", name.len()));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.+-".contains(c);
        if let Some(c) = name.chars().find(|&c| !allowed(c)) {
            return wrong(format!("the character {c:?} is not allowed"));
        }
        if name.starts_with(['.', '+', '-']) {
            return wrong("the first character is not allowed there".into());
        }
        Ok(VolumeName(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl AsRef<str> for VolumeName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        VolumeName::new(name)
    }
}

impl TryFrom<String> for VolumeName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        VolumeName::new(name)
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> String {
        name.0
    }
}

/// A volume's identity: stays the same through rename, resize and revert, and is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VolumeId(Uuid);

impl VolumeId {
    /// With these bits.
    pub const fn from_u128(bits: u128) -> Self {
        VolumeId(Uuid::from_u128(bits))
    }

    /// A new random id.
    pub fn random() -> Self {
        VolumeId(Uuid::new_v4())
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.hyphenated(), f)
    }
}

impl FromStr for VolumeId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Uuid::parse_str(text).map(VolumeId).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, "volume_id")
                .with("id", text)
                .with_source(error)
        })
    }
}

/// How space is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provisioning {
    /// Space is taken when it is first written.
    #[default]
    Thin,
    /// All space is reserved at creation: a later write cannot fail for lack of it.
    Thick,
}

impl fmt::Display for Provisioning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Provisioning::Thin => "thin",
            Provisioning::Thick => "thick",
        })
    }
}

/// How a volume came from another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OriginKind {
    /// A read-only image of its parent at one moment.
    Snapshot,
    /// A writable volume that started with its parent's content and shares its blocks.
    Clone,
    /// A full, independent duplicate.
    Copy,
}

impl fmt::Display for OriginKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            OriginKind::Snapshot => "snapshot",
            OriginKind::Clone => "clone",
            OriginKind::Copy => "copy",
        })
    }
}

/// Where a volume came from. It is history, not a dependency: the parent may be gone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// How.
    pub kind: OriginKind,
    /// The parent's id.
    pub parent_id: VolumeId,
    /// The parent's name at that time; it may have been renamed or deleted since.
    pub parent_name: VolumeName,
}

/// What a pool says of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Volume {
    /// The caller's name.
    pub name: VolumeName,
    /// The identity, which outlives renames.
    pub id: VolumeId,
    /// What a guest sees, in bytes.
    pub virtual_size: ByteSize,
    /// What it occupies now, shared blocks included. `None` where the backend can't tell cheaply.
    pub allocated: Option<ByteSize>,
    /// What deleting it would free now. `None` where that is not known; listings leave it out
    /// where it costs more than a look at the volume's metadata.
    pub exclusive: Option<ByteSize>,
    /// In how many pieces the data lies, where snapshot and clone cost grows with that number
    /// (reflinks). Filled in by [`Pool::volume`](crate::Pool::volume), not by listings.
    pub fragments: Option<u64>,
    /// How many data files a read may have to look through, where snapshots and clones are chains
    /// of them; `None` where they are not. Filled in by [`Pool::volume`](crate::Pool::volume), not
    /// by listings.
    pub depth: Option<u64>,
    /// Thin or thick.
    pub provisioning: Provisioning,
    /// Where it came from; `None` for a volume that was created or adopted.
    pub origin: Option<Origin>,
    /// When it was made (a snapshot: the moment that it shows).
    pub created: SystemTime,
    /// Who it is attached to, and how.
    pub attachments: Vec<AttachOptions>,
}

impl Volume {
    /// A thin volume without an origin, made now; the backend fills in the rest.
    pub fn new(name: VolumeName, id: VolumeId, virtual_size: ByteSize) -> Self {
        Volume {
            name,
            id,
            virtual_size,
            allocated: None,
            exclusive: None,
            fragments: None,
            depth: None,
            provisioning: Provisioning::Thin,
            origin: None,
            created: SystemTime::now(),
            attachments: Vec::new(),
        }
    }

    /// Whether it is a snapshot, and so read-only.
    pub fn is_snapshot(&self) -> bool {
        self.origin
            .as_ref()
            .is_some_and(|o| o.kind == OriginKind::Snapshot)
    }

    /// Past this many pieces a reflink takes noticeably long (about 0.04 ms a piece), and
    /// interfaces should warn.
    pub const FRAGMENTS_WARNING: u64 = 10_000;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn good_names_pass() {
        for name in ["a", "_", "0", "web-1.disk+2", "A.b", &"x".repeat(127)] {
            assert_eq!(VolumeName::new(name).expect(name).as_str(), name);
        }
    }

    #[test]
    fn bad_names_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "-rf",
            "+x",
            ".hidden",
            "a/b",
            "../etc",
            "a b",
            "a\0",
            "a\n",
            "é",
            "a:b",
            "a*",
            &"x".repeat(128),
        ] {
            assert_eq!(
                VolumeName::new(name).expect_err(name).kind(),
                ErrorKind::InvalidInput
            );
        }
    }

    proptest! {
        #[test]
        fn a_name_passes_exactly_when_it_matches_the_pattern(name in "[A-Za-z0-9_.+ /-]{0,130}") {
            let head = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
            let tail = name.chars().all(|c| c.is_ascii_alphanumeric() || "_.+-".contains(c));
            prop_assert_eq!(VolumeName::new(name.clone()).is_ok(), head && tail && name.len() <= 127);
        }
    }
}
