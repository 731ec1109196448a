//! What the process that is killed and the one that kills it agree on: operations as lines of a
//! log, and what they do to a pool.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use volmux::{Pool, PoolExt};

use crate::content::{pattern, read_all};

/// One operation, as a line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A thin volume.
    Create {
        /// Its name.
        name: String,
        /// In bytes.
        size: u64,
    },
    /// Write a pattern and flush.
    Write {
        /// The volume.
        name: String,
        /// Of the pattern.
        seed: u64,
        /// First byte.
        offset: u64,
        /// In bytes.
        length: u64,
    },
    /// Discard and flush.
    Discard {
        /// The volume.
        name: String,
        /// First byte.
        offset: u64,
        /// In bytes.
        length: u64,
    },
    /// Snapshot, clone or copy.
    Derive {
        /// Which of the three.
        how: How,
        /// From what.
        source: String,
        /// The new one.
        name: String,
    },
    /// Put a volume back.
    Revert {
        /// The volume.
        name: String,
        /// One of its snapshots.
        snapshot: String,
    },
    /// Grow or shrink.
    Resize {
        /// The volume.
        name: String,
        /// In bytes.
        size: u64,
    },
    /// Give another name.
    Rename {
        /// The volume.
        name: String,
        /// The new name.
        to: String,
    },
    /// Delete.
    Delete {
        /// The volume.
        name: String,
    },
    /// Place a file with a pattern, called as the volume with `foreign-` before it, and adopt it.
    Adopt {
        /// The volume.
        name: String,
        /// Of the pattern.
        seed: u64,
        /// In bytes.
        size: u64,
    },
    /// Audit with repair.
    Audit,
    /// Collect garbage.
    Collect,
    /// Give the volume data of its own.
    Flatten {
        /// The volume.
        name: String,
    },
}

/// How a volume comes from another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Read-only.
    Snapshot,
    /// Linked.
    Clone,
    /// Full.
    Copy,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Create { name, size } => write!(f, "create {name} {size}"),
            Op::Write {
                name,
                seed,
                offset,
                length,
            } => write!(f, "write {name} {seed} {offset} {length}"),
            Op::Discard {
                name,
                offset,
                length,
            } => write!(f, "discard {name} {offset} {length}"),
            Op::Derive { how, source, name } => {
                let how = match how {
                    How::Snapshot => "snapshot",
                    How::Clone => "clone",
                    How::Copy => "copy",
                };
                write!(f, "{how} {source} {name}")
            }
            Op::Revert { name, snapshot } => write!(f, "revert {name} {snapshot}"),
            Op::Resize { name, size } => write!(f, "resize {name} {size}"),
            Op::Rename { name, to } => write!(f, "rename {name} {to}"),
            Op::Delete { name } => write!(f, "delete {name}"),
            Op::Adopt { name, seed, size } => write!(f, "adopt {name} {seed} {size}"),
            Op::Audit => write!(f, "audit"),
            Op::Collect => write!(f, "collect"),
            Op::Flatten { name } => write!(f, "flatten {name}"),
        }
    }
}

impl FromStr for Op {
    type Err = String;

    fn from_str(line: &str) -> Result<Op, String> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |word: &str| word.parse::<u64>().map_err(|e| format!("{line}: {e}"));
        let derive = |how, source: &str, name: &str| Op::Derive {
            how,
            source: source.into(),
            name: name.into(),
        };
        Ok(match words[..] {
            ["create", name, size] => Op::Create {
                name: name.into(),
                size: number(size)?,
            },
            ["write", name, seed, offset, length] => Op::Write {
                name: name.into(),
                seed: number(seed)?,
                offset: number(offset)?,
                length: number(length)?,
            },
            ["discard", name, offset, length] => Op::Discard {
                name: name.into(),
                offset: number(offset)?,
                length: number(length)?,
            },
            ["snapshot", source, name] => derive(How::Snapshot, source, name),
            ["clone", source, name] => derive(How::Clone, source, name),
            ["copy", source, name] => derive(How::Copy, source, name),
            ["revert", name, snapshot] => Op::Revert {
                name: name.into(),
                snapshot: snapshot.into(),
            },
            ["resize", name, size] => Op::Resize {
                name: name.into(),
                size: number(size)?,
            },
            ["rename", name, to] => Op::Rename {
                name: name.into(),
                to: to.into(),
            },
            ["delete", name] => Op::Delete { name: name.into() },
            ["adopt", name, seed, size] => Op::Adopt {
                name: name.into(),
                seed: number(seed)?,
                size: number(size)?,
            },
            ["audit"] => Op::Audit,
            ["collect"] => Op::Collect,
            ["flatten", name] => Op::Flatten { name: name.into() },
            _ => return Err(format!("not an operation: {line:?}")),
        })
    }
}

/// What a volume should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// All of it.
    pub data: Vec<u8>,
    /// Whether it is a snapshot.
    pub snapshot: bool,
}

/// What a pool should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images(pub BTreeMap<String, Image>);

impl Images {
    /// What `pool` really holds.
    ///
    /// # Panics
    /// If a volume can't be listed or read.
    pub async fn of(pool: &dyn Pool) -> Images {
        Images::starting_with(pool, "").await
    }

    /// What `pool` really holds in volumes whose names begin with `prefix`; others may change
    /// meanwhile.
    ///
    /// # Panics
    /// If a volume can't be listed or read.
    pub async fn starting_with(pool: &dyn Pool, prefix: &str) -> Images {
        let mut images = BTreeMap::new();
        let mut volumes = pool.volumes().await.expect("every volume can be listed");
        volumes.retain(|volume| volume.name.as_str().starts_with(prefix));
        for volume in volumes {
            let image = Image {
                data: read_all(pool, &volume.name).await.to_vec(),
                snapshot: volume.is_snapshot(),
            };
            images.insert(volume.name.into(), image);
        }
        Images(images)
    }

    /// Writes them to a file.
    ///
    /// # Panics
    /// If that fails.
    pub fn save(&self, path: &Path) {
        let mut bytes = Vec::new();
        for (name, image) in &self.0 {
            let line = format!("{name} {} {}\n", image.snapshot, image.data.len());
            bytes.extend_from_slice(line.as_bytes());
            bytes.extend_from_slice(&image.data);
        }
        std::fs::write(path, bytes).expect("images are written");
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Panics
    /// If it is not that.
    pub fn load(path: &Path) -> Images {
        let bytes = std::fs::read(path).expect("images are read");
        let (mut rest, mut images) = (&bytes[..], BTreeMap::new());
        while !rest.is_empty() {
            let end = rest.iter().position(|&byte| byte == b'\n');
            let (line, data) = rest.split_at(end.expect("a line"));
            let line = std::str::from_utf8(line).expect("a line of text");
            let [name, snapshot, length] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("not a line of images: {line:?}");
            };
            let length: usize = length.parse().expect("a length");
            let image = Image {
                data: data[1..=length].to_vec(),
                snapshot: snapshot == "true",
            };
            images.insert(name.to_owned(), image);
            rest = &data[1 + length..];
        }
        Images(images)
    }

    fn image(&mut self, name: &str) -> &mut Image {
        let image = self.0.get_mut(name);
        image.unwrap_or_else(|| panic!("the log speaks of {name}, which does not exist"))
    }

    /// Does what `op` does.
    ///
    /// # Panics
    /// If it speaks of a volume that does not exist.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { name, size } => self.insert(name, vec![0; *size as usize], false),
            Op::Write {
                name,
                seed,
                offset,
                length,
            } => {
                let (start, end) = (*offset as usize, (offset + length) as usize);
                let data = pattern(*seed, *length as usize);
                self.image(name).data[start..end].copy_from_slice(&data);
            }
            Op::Discard {
                name,
                offset,
                length,
            } => {
                let (start, end) = (*offset as usize, (offset + length) as usize);
                self.image(name).data[start..end].fill(0);
            }
            Op::Derive { how, source, name } => {
                let data = self.image(source).data.clone();
                self.insert(name, data, *how == How::Snapshot);
            }
            Op::Revert { name, snapshot } => {
                let data = self.image(snapshot).data.clone();
                self.image(name).data = data;
            }
            Op::Resize { name, size } => self.image(name).data.resize(*size as usize, 0),
            Op::Rename { name, to } => {
                let image = self.0.remove(name).expect("a volume to rename");
                self.0.insert(to.clone(), image);
            }
            Op::Delete { name } => {
                self.0.remove(name);
            }
            Op::Adopt { name, seed, size } => {
                self.insert(name, pattern(*seed, *size as usize).to_vec(), false);
            }
            Op::Audit | Op::Collect | Op::Flatten { .. } => {}
        }
    }

    fn insert(&mut self, name: &str, data: Vec<u8>, snapshot: bool) {
        self.0.insert(name.into(), Image { data, snapshot });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_saved_and_loaded() {
        let mut images = Images::default();
        for (name, size) in [("a", 0), ("b", 10), ("c", 7)] {
            images.insert(name, pattern(size, size as usize).to_vec(), name == "b");
        }
        let file = tempfile::NamedTempFile::new().expect("a file");
        images.save(file.path());
        assert_eq!(Images::load(file.path()), images);
    }
}
