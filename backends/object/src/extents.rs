//! Extents of volumes whose maps may be replaced while they are told.

use std::sync::Arc;

use futures::stream::{self, TryStreamExt};
use volmux_core::{
    ByteRange, Error, ErrorKind, ExtentKind, ExtentQuery, ExtentStream, Result, VolumeId,
    VolumeName,
};

use crate::catalog::Entry;
use crate::engine::Engine;
use crate::open::MOVED;
use crate::pool::Ready;

/// Whose extents are told.
#[derive(Clone, Debug)]
enum Whose {
    Volume {
        of: (VolumeId, VolumeName),
        /// Only what was changed since this.
        since: Option<(VolumeId, VolumeName)>,
    },
    /// What is open for writing.
    Writer(Arc<Engine>),
}

/// What was asked.
#[derive(Clone, Debug)]
struct Asked {
    ready: Arc<Ready>,
    op: &'static str,
    whose: Whose,
}

impl Ready {
    /// The extents of a volume.
    pub(crate) async fn extents(
        self: &Arc<Self>,
        op: &'static str,
        name: &VolumeName,
        query: ExtentQuery,
    ) -> Result<ExtentStream> {
        self.catalog.refresh(op).await?;
        let entry = self.entry(op, name)?;
        let range = query.range.unwrap_or(ByteRange::new(0, entry.size));
        range
            .check_within(entry.size, op)
            .map_err(|error| error.with("pool", self).with("volume", name))?;
        let since = match &query.kind {
            ExtentKind::Allocated => None,
            ExtentKind::ChangedSince(other) => Some(self.entry(op, other)?),
        };
        let named = |entry: &Entry| (entry.id, entry.name.clone());
        let asked = Asked {
            ready: self.clone(),
            op,
            whose: Whose::Volume {
                of: named(&entry),
                since: since.as_deref().map(named),
            },
        };
        asked.tell(range).await
    }

    /// The extents of an open volume: of `writer`'s, or of what a reader sees.
    pub(crate) async fn extents_of(
        self: &Arc<Self>,
        op: &'static str,
        of: (VolumeId, VolumeName),
        writer: Option<Arc<Engine>>,
        range: ByteRange,
    ) -> Result<ExtentStream> {
        let whose = match writer {
            Some(engine) => Whose::Writer(engine),
            None => {
                self.catalog.refresh(op).await?;
                Whose::Volume { of, since: None }
            }
        };
        let ready = self.clone();
        Asked { ready, op, whose }.tell(range).await
    }
}

impl Asked {
    /// All of them within `range`. What is not found is looked for anew, from there on.
    async fn tell(self, range: ByteRange) -> Result<ExtentStream> {
        let first = self.of_now(range).await?;
        let (grade, granularity) = (first.grade(), first.granularity());
        let state = (self, first, range.offset, 0);
        let told = stream::try_unfold(
            state,
            move |(asked, mut rest, mut at, mut tries)| async move {
                loop {
                    match rest.try_next().await {
                        Ok(Some(extent)) => {
                            (at, tries) = (extent.end(), 0);
                            return Ok(Some((extent, (asked, rest, at, tries))));
                        }
                        Ok(None) => return Ok(None),
                        Err(error) if error.kind() == ErrorKind::Corrupt && tries < MOVED => {
                            tries += 1;
                            asked.ready.catalog.refresh(asked.op).await?;
                            rest = asked.of_now(ByteRange::from_to(at, range.end())).await?;
                        }
                        Err(error) => return Err(asked.explained(error).await),
                    }
                }
            },
        );
        Ok(ExtentStream::new(grade, granularity, told))
    }

    /// As the map is now, as far as the catalogue is known here.
    async fn of_now(&self, range: ByteRange) -> Result<ExtentStream> {
        let (ready, op) = (&self.ready, self.op);
        let content = async |(id, name): &(VolumeId, VolumeName)| {
            let entry = ready.entry_by_id(op, *id, name)?;
            ready.content(op, &entry).await
        };
        Ok(match &self.whose {
            Whose::Writer(engine) => engine.view().allocated(range),
            Whose::Volume { of, since: None } => content(of).await?.view().allocated(range),
            Whose::Volume {
                of,
                since: Some(since),
            } => {
                let view = content(of).await?.view();
                view.changed(content(since).await?.view(), range)
            }
        })
    }

    /// What a superseded writer knows of may be collected.
    async fn explained(&self, error: Error) -> Error {
        match &self.whose {
            Whose::Writer(engine)
                if error.kind() == ErrorKind::Corrupt
                    && matches!(engine.is_current(self.op).await, Ok(false)) =>
            {
                Error::new(ErrorKind::Fenced, self.op)
                    .with("pool", &self.ready)
                    .reason("another writer took the volume over")
            }
            _ => error,
        }
    }
}
