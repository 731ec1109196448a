//! What a volume holds, to be looked at: a raw file or a chain.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use volmux_core::ByteRange;

use crate::chain::Image;
use crate::handle::Data;
use crate::node::Node;
use crate::sys::{self, Locked};

/// A volume's content.
#[derive(Debug)]
pub struct Content {
    source: Source,
    /// The volume's size: what the files hold past it does not count.
    pub size: u64,
}

#[derive(Debug)]
enum Source {
    Raw(Node, Locked),
    Chain(Arc<Image>),
}

impl Content {
    /// Of a raw file.
    pub fn raw(node: Node, file: Locked, size: u64) -> Content {
        Content {
            source: Source::Raw(node, file),
            size,
        }
    }

    /// Of a chain.
    pub fn chain(image: Arc<Image>, size: u64) -> Content {
        Content {
            source: Source::Chain(image),
            size,
        }
    }

    /// Of what is open.
    pub fn of(data: &Data, size: u64) -> io::Result<Content> {
        Ok(match data {
            Data::Raw(node, file) => {
                // A descriptor of its own: walks move the file's position.
                let own = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
                Content::raw(*node, own.into(), size)
            }
            Data::Chain(image) => Content::chain(image.clone(), size),
        })
    }

    /// The raw file, if it is one.
    pub fn raw_file(&self) -> Option<&Locked> {
        match &self.source {
            Source::Raw(_, file) => Some(file),
            Source::Chain(_) => None,
        }
    }

    /// The data files, the top first.
    pub fn nodes(&self) -> Vec<Node> {
        match &self.source {
            Source::Raw(node, _) => vec![*node],
            Source::Chain(image) => image.nodes().collect(),
        }
    }

    /// Fills `into` with what is at `at`: zeros past the end.
    pub fn read(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        let held = self.size.saturating_sub(at).min(into.len() as u64) as usize;
        match &self.source {
            Source::Raw(_, file) => file.read_exact_at(&mut into[..held], at)?,
            Source::Chain(image) => image.read(&mut into[..held], at)?,
        }
        into[held..].fill(0);
        Ok(())
    }

    /// Tells the ranges of `range` that hold data.
    pub fn data(
        &self,
        range: ByteRange,
        found: &mut dyn FnMut(ByteRange) -> io::Result<()>,
    ) -> io::Result<()> {
        let range = range.intersect(&ByteRange::new(0, self.size));
        match &self.source {
            Source::Raw(_, file) => {
                let mut rest = range;
                while let Some(data) = sys::next_data(file, rest)? {
                    found(data)?;
                    rest = ByteRange::from_to(data.end(), range.end());
                }
                Ok(())
            }
            Source::Chain(image) => image.data(range, found),
        }
    }

    /// Tells what of `range` lies in the `layers` upper files.
    pub fn changed_in(
        &self,
        layers: usize,
        range: ByteRange,
        found: &mut dyn FnMut(ByteRange) -> io::Result<()>,
    ) -> io::Result<()> {
        let range = range.intersect(&ByteRange::new(0, self.size));
        match &self.source {
            Source::Chain(image) => image.changed_in(layers, range, found),
            Source::Raw(..) => Ok(()),
        }
    }
}
