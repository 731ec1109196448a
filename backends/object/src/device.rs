//! An open volume.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;
use volmux_core::{
    Access, BlockDevice, ByteRange, Error, ErrorKind, ExtentStream, Result, VolumeId, VolumeName,
    ZeroOptions,
};

use crate::claim::Mark;
use crate::engine::Engine;
use crate::open::MOVED;
use crate::pool::Ready;
use crate::uses::Hold;

/// An open volume of an object pool.
#[derive(Debug)]
pub(crate) struct ObjectDevice {
    pub(crate) name: VolumeName,
    pub(crate) id: VolumeId,
    pub(crate) ready: Arc<Ready>,
    pub(crate) hold: Hold,
    /// The engine for writing; readers take whichever there is.
    pub(crate) engine: Option<Arc<Engine>>,
    /// It reads what it was made for and nothing newer.
    pub(crate) is_bare: bool,
    /// Shows others that the volume is read, as long as it is.
    pub(crate) _mark: Option<Mark>,
}

impl ObjectDevice {
    fn error(&self, kind: ErrorKind, op: &'static str) -> Error {
        self.ready.error(kind, op, &self.name)
    }

    fn named(&self, error: Error) -> Error {
        let error = match error.get("pool") {
            Some(_) => error,
            None => error.with("pool", &self.ready),
        };
        match error.get("volume") {
            Some(_) => error,
            None => error.with("volume", &self.name),
        }
    }

    fn check(&self, range: ByteRange, op: &'static str) -> Result<()> {
        if self.hold.access == Access::ReadWrite && !self.hold.of.is_current(self.hold.epoch) {
            return Err(self
                .error(ErrorKind::Fenced, op)
                .reason("another writer took the volume over"));
        }
        range
            .check_within(self.hold.of.size(), op)
            .map_err(|error| error.with("pool", &self.ready).with("volume", &self.name))
    }

    /// The engine to read from. It knows all that was flushed before: by this process at once, by
    /// others a moment later.
    async fn reading(&self, op: &'static str) -> Result<Arc<Engine>> {
        if let Some(engine) = &self.engine {
            return Ok(engine.clone());
        }
        let of = &self.hold.of;
        if let Some(engine) = of.fresh_engine() {
            return Ok(engine);
        }
        let _turn = of.turn.lock().await;
        if let Some(engine) = of.fresh_engine() {
            return Ok(engine);
        }
        let now = Instant::now();
        let engine = self.newest(op).await?;
        of.set_fresh(&engine, (!engine.follows_closely().await).then_some(now));
        Ok(engine)
    }

    /// The engine that knows all that the store knows; to be called in the volume's turn.
    async fn newest(&self, op: &'static str) -> Result<Arc<Engine>> {
        let of = &self.hold.of;
        if let Some(engine) = of.engine()
            && match engine.is_writer() {
                true => engine.is_current(op).await?,
                false => match engine.follow(op).await {
                    // What it was about to follow was replaced.
                    Err(error) if error.kind() == ErrorKind::Corrupt => false,
                    other => other?,
                },
            }
        {
            return Ok(engine);
        }
        self.ready.catalog.refresh(op).await?;
        let entry = self.ready.entry_by_id(op, self.id, &self.name)?;
        self.ready.readable(op, &entry, of).await
    }

    /// Why something failed: for a writer that was superseded, what it knows of may be collected.
    async fn explained(&self, op: &'static str, engine: &Engine, error: Error) -> Error {
        let damaged = error.kind() == ErrorKind::Corrupt && engine.is_writer();
        if damaged && matches!(engine.is_current(op).await, Ok(false)) {
            return self
                .error(ErrorKind::Fenced, op)
                .reason("another writer took the volume over");
        }
        error
    }

    /// The same, once something has turned out to be gone.
    async fn reading_again(&self, op: &'static str) -> Result<Arc<Engine>> {
        if let Some(engine) = &self.engine {
            return Ok(engine.clone());
        }
        let of = &self.hold.of;
        let _turn = of.turn.lock().await;
        self.ready.catalog.refresh(op).await?;
        let entry = self.ready.entry_by_id(op, self.id, &self.name)?;
        self.ready.readable(op, &entry, of).await
    }

    /// The engine to write to.
    fn writing(&self, op: &'static str) -> Result<&Engine> {
        self.engine.as_deref().ok_or_else(|| {
            self.error(ErrorKind::InvalidInput, op)
                .reason("the volume is open for reading only")
                .help("open it for writing")
        })
    }
}

#[async_trait]
impl BlockDevice for ObjectDevice {
    fn name(&self) -> &VolumeName {
        &self.name
    }

    fn size(&self) -> u64 {
        self.hold.of.size()
    }

    fn access(&self) -> Access {
        self.hold.access
    }

    async fn refresh(&self) -> Result<u64> {
        let op = "refresh";
        self.check(ByteRange::new(0, 0), op)?;
        self.ready.catalog.refresh(op).await?;
        let entry = self.ready.entry_by_id(op, self.id, &self.name)?;
        // The size of a volume in use does not fall; it may be that of a shrink elsewhere.
        self.hold.of.set_size(entry.size);
        Ok(entry.size)
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let op = "read_at";
        let range = ByteRange::new(offset, length as u64);
        self.check(range, op)?;
        if length == 0 {
            return Ok(Bytes::new());
        }
        let mut tries = 0;
        loop {
            let engine = match tries {
                0 => self.reading(op).await?,
                _ => self.reading_again(op).await?,
            };
            let error = match engine.read(op, range).await {
                Ok(data) => return Ok(data),
                Err(error) => self.explained(op, &engine, error).await,
            };
            // What was about to be read may just have been replaced, and collected.
            self.hold.of.set_fresh(&engine, None);
            tries += 1;
            if error.kind() != ErrorKind::Corrupt || self.is_bare || tries > MOVED {
                return Err(self.named(error));
            }
        }
    }

    async fn write_at(&self, offset: u64, data: Bytes) -> Result<()> {
        let op = "write_at";
        self.check(ByteRange::new(offset, data.len() as u64), op)?;
        let engine = self.writing(op)?;
        match engine.write(op, offset, &data).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.named(self.explained(op, engine, error).await)),
        }
    }

    async fn flush(&self) -> Result<()> {
        let op = "flush";
        self.check(ByteRange::new(0, 0), op)?;
        match &self.engine {
            Some(engine) => engine.flush(op).await.map_err(|error| self.named(error)),
            None => Ok(()),
        }
    }

    async fn discard(&self, range: ByteRange) -> Result<()> {
        self.zero("discard", range).await
    }

    async fn write_zeroes(&self, range: ByteRange, _: ZeroOptions) -> Result<()> {
        self.zero("write_zeroes", range).await
    }

    async fn extents(&self, range: ByteRange) -> Result<ExtentStream> {
        let op = "extents";
        self.check(range, op)?;
        if self.is_bare {
            let engine = self.reading(op).await?;
            return Ok(engine.view().allocated(range));
        }
        let (of, writer) = ((self.id, self.name.clone()), self.engine.clone());
        self.ready.extents_of(op, of, writer, range).await
    }
}

impl ObjectDevice {
    async fn zero(&self, op: &'static str, range: ByteRange) -> Result<()> {
        self.check(range, op)?;
        let engine = self.writing(op)?;
        match engine.zero(op, range, self.hold.of.size()).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.named(self.explained(op, engine, error).await)),
        }
    }
}
