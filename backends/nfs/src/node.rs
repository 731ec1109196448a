//! Data files by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use volmux_core::VolumeId;

/// What a data file holds a volume's data as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// A qcow2 image: what differs from another data file.
    Qcow2,
}

/// A data file, `data/ID.raw` or `data/ID.qcow2`. Nobody finds the format out from the content: a
/// guest writes what it likes into a raw file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Names the file.
    pub id: VolumeId,
    /// What is in it.
    pub format: Format,
}

impl Node {
    /// The raw file `id`.
    pub const fn raw(id: VolumeId) -> Node {
        Node {
            id,
            format: Format::Raw,
        }
    }

    /// The qcow2 image `id`.
    pub const fn qcow2(id: VolumeId) -> Node {
        Node {
            id,
            format: Format::Qcow2,
        }
    }

    /// Whether it is a qcow2 image.
    pub fn is_qcow2(self) -> bool {
        self.format == Format::Qcow2
    }
}

/// The file's name in `data/`.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.format.name())
    }
}

impl Format {
    /// As in file names and in headers of qcow2 images.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// Not the name of a data file.
#[derive(Debug, thiserror::Error)]
#[error("it is not the name of a data file")]
pub struct NoNode;

impl FromStr for Node {
    type Err = NoNode;

    fn from_str(name: &str) -> Result<Node, NoNode> {
        let (id, format) = name.split_once('.').ok_or(NoNode)?;
        let node = match format {
            "raw" => Node::raw(id.parse().map_err(|_| NoNode)?),
            "qcow2" => Node::qcow2(id.parse().map_err(|_| NoNode)?),
            _ => return Err(NoNode),
        };
        // One spelling alone: an id can be written in several ways.
        (node.to_string() == name).then_some(node).ok_or(NoNode)
    }
}

/// A raw file by its id, as it was before there were others.
impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.format {
            Format::Raw => self.id.serialize(serializer),
            Format::Qcow2 => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.parse() {
            Ok(node @ Node { .. }) if node.is_qcow2() => Ok(node),
            _ => text.parse().map(Node::raw).map_err(D::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: VolumeId = VolumeId::from_u128(0xab);
    const TEXT: &str = "00000000-0000-0000-0000-0000000000ab";

    #[test]
    fn names_are_read_back() {
        for node in [Node::raw(ID), Node::qcow2(ID)] {
            assert_eq!(node.to_string().parse::<Node>().expect("a name"), node);
            let json = serde_json::to_string(&node).expect("encode");
            assert_eq!(serde_json::from_str::<Node>(&json).expect("decode"), node);
        }
        assert_eq!(
            serde_json::to_string(&Node::raw(ID)).expect("encode"),
            format!("\"{TEXT}\"")
        );
    }

    #[test]
    fn other_names_are_refused() {
        let upper = TEXT.to_uppercase();
        for name in [
            TEXT,
            "",
            ".raw",
            "../x.raw",
            &format!("{TEXT}.img"),
            &format!("{TEXT}.raw.qcow2"),
            &format!("/{TEXT}.raw"),
            &format!("./{TEXT}.raw"),
            &format!("{upper}.raw"),
            &format!("json:{TEXT}.raw"),
            &format!("{}.raw", TEXT.replace('-', "")),
        ] {
            assert!(name.parse::<Node>().is_err(), "{name}");
        }
    }
}
