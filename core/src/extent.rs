//! Streams of extents: which byte ranges hold data, and which differ between two points in time.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::stream::{BoxStream, Stream, StreamExt};

use crate::{ByteRange, Result, VolumeName};

/// Which extents are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Ranges that hold data. Everything outside reads as zeros.
    Allocated,
    /// Ranges whose content differs from that of the named volume, usually an earlier snapshot.
    /// A range past the end of the smaller of the two is compared with zeros.
    ChangedSince(VolumeName),
}

/// A question for extents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentQuery {
    /// Which extents.
    pub kind: ExtentKind,
    /// Only within this range; `None` for the whole volume. Extents are cut to it.
    pub range: Option<ByteRange>,
}

impl ExtentQuery {
    /// The allocated extents of the whole volume.
    pub fn allocated() -> Self {
        ExtentQuery {
            kind: ExtentKind::Allocated,
            range: None,
        }
    }

    /// The extents of the whole volume that changed since `snapshot`.
    pub fn changed_since(snapshot: VolumeName) -> Self {
        ExtentQuery {
            kind: ExtentKind::ChangedSince(snapshot),
            range: None,
        }
    }

    /// Only within `range`.
    #[must_use]
    pub fn within(mut self, range: ByteRange) -> Self {
        self.range = Some(range);
        self
    }
}

/// How much an extent stream can be relied on. Never is an extent left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Grade {
    /// Exactly the blocks (of the stream's granularity) that are asked for.
    Exact,
    /// All of them, and possibly others.
    Superset,
    /// The backend can't tell what changed: these are all allocated extents of both volumes.
    AllocatedOnly,
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Grade::Exact => "exact",
            Grade::Superset => "superset",
            Grade::AllocatedOnly => "allocated-only",
        })
    }
}

/// Extents in ascending order, never empty, never overlapping, and what they are worth.
///
/// Ranges begin and end on multiples of [`granularity`](Self::granularity), except where they are
/// cut by the query's range or by the volume's end.
pub struct ExtentStream {
    grade: Grade,
    granularity: u64,
    stream: BoxStream<'static, Result<ByteRange>>,
}

impl ExtentStream {
    /// Wraps `stream`, which must keep the order that this type promises.
    pub fn new(
        grade: Grade,
        granularity: u64,
        stream: impl Stream<Item = Result<ByteRange>> + Send + 'static,
    ) -> Self {
        ExtentStream {
            grade,
            granularity,
            stream: stream.boxed(),
        }
    }

    /// How much the stream can be relied on.
    pub fn grade(&self) -> Grade {
        self.grade
    }

    /// The unit, in bytes, in which the backend tells blocks apart.
    pub fn granularity(&self) -> u64 {
        self.granularity
    }

    /// Reads the stream to its end, joining extents that touch.
    ///
    /// # Errors
    /// The first error of the stream.
    pub async fn collect_joined(mut self) -> Result<Vec<ByteRange>> {
        let mut joined: Vec<ByteRange> = Vec::new();
        while let Some(extent) = self.stream.next().await {
            let extent = extent?;
            match joined.last_mut() {
                Some(last) if last.end() == extent.offset => last.length += extent.length,
                _ => joined.push(extent),
            }
        }
        Ok(joined)
    }
}

impl Stream for ExtentStream {
    type Item = Result<ByteRange>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.poll_next_unpin(cx)
    }
}

impl fmt::Debug for ExtentStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExtentStream")
            .field("grade", &self.grade)
            .field("granularity", &self.granularity)
            .finish_non_exhaustive()
    }
}
