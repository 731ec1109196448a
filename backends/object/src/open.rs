//! Opening volumes, and looking at their extents.

use std::sync::Arc;

use volmux_core::{Access, BlockDevice, ErrorKind, OpenOptions, Result, Sharing, VolumeName};

use crate::catalog::Entry;
use crate::claim::Mark;
use crate::device::ObjectDevice;
use crate::engine::Engine;
use crate::owner::Living;
use crate::pool::Ready;
use crate::uses::{Use, Uses};

/// How often what was not found is looked for anew: it may just have been replaced, or moved by a
/// collection of garbage, and collected.
pub(crate) const MOVED: u32 = 3;

impl Ready {
    /// Opens a volume.
    pub(crate) async fn open(
        self: &Arc<Self>,
        op: &'static str,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        self.catalog.refresh(op).await?;
        let entry = self.entry(op, name)?;
        let of = self.uses.of(entry.id);
        let _turn = of.turn.lock().await;
        let (engine, mark) = match options.access {
            Access::ReadWrite => (
                Some(self.open_writer(op, &entry, &of, options).await?),
                None,
            ),
            Access::ReadOnly => {
                let mark = self.reader_mark(op, &entry).await?;
                // A collection that gives a snapshot's blocks another place looks for marks after
                // that. So whoever leaves one looks for the place after that.
                if mark.is_some() && entry.log.is_none() {
                    self.catalog.refresh(op).await?;
                }
                let entry = self.entry_by_id(op, entry.id, name)?;
                self.readable(op, &entry, &of).await?;
                (None, mark)
            }
        };
        // As it is by now.
        of.set_size(self.entry_by_id(op, entry.id, name)?.size);
        Ok(Arc::new(ObjectDevice {
            name: name.clone(),
            id: entry.id,
            ready: self.clone(),
            hold: of.enter(options.access),
            engine,
            is_bare: false,
            _mark: mark,
        }))
    }

    async fn open_writer(
        &self,
        op: &'static str,
        entry: &Entry,
        of: &Arc<Use>,
        options: OpenOptions,
    ) -> Result<Arc<Engine>> {
        let Some(log) = entry.log else {
            return Err(self
                .error(ErrorKind::InvalidInput, op, &entry.name)
                .reason("a snapshot is read-only")
                .help("clone it and write to the clone"));
        };
        if of.is_written() && !options.take_over {
            return Err(self
                .error(ErrorKind::Busy, op, &entry.name)
                .reason("the volume is open for writing")
                .help("close it there, or take it over"));
        }
        if options.sharing == Sharing::Shared {
            self.check_unwritten(op, &entry.name, log).await?;
            return Err(self
                .error(ErrorKind::Unsupported, op, &entry.name)
                .reason("a volume in an object store has one writer")
                .help("open it exclusively, and serve it to several: `volmux export --shared`"));
        }
        if of.is_written()
            && let Some(engine) = of.fence()
        {
            engine.fence();
        }
        if let Some(engine) = of.engine().filter(|engine| engine.is_writer()) {
            engine.ended().await;
        }
        let living = Living::begin(self.shared.ids.uuid());
        let whose = (entry.id, &entry.name);
        let claimed = self.claim(op, whose, &living, options.take_over).await?;
        let engine = Engine::writer(op, self.shared.clone(), claimed, living).await?;
        of.set_engine(Some(engine.clone()));
        Ok(engine)
    }

    async fn open_reader(&self, op: &'static str, entry: &Entry) -> Result<Arc<Engine>> {
        let (following, tip) = self.whole_tip(op, entry).await?;
        Engine::reader(op, self.shared.clone(), &tip, following).await
    }

    /// The engine to read a volume with: it knows all that was flushed before. To be called in the
    /// volume's turn.
    pub(crate) async fn readable(
        &self,
        op: &'static str,
        entry: &Arc<Entry>,
        of: &Arc<Use>,
    ) -> Result<Arc<Engine>> {
        let mut entry = entry.clone();
        for _ in 0..MOVED {
            match self.readable_once(op, &entry, of).await {
                Err(error) if error.kind() == ErrorKind::Corrupt => {}
                other => return other,
            }
            self.catalog.refresh(op).await?;
            entry = self.entry_by_id(op, entry.id, &entry.name)?;
        }
        self.readable_once(op, &entry, of).await
    }

    async fn readable_once(
        &self,
        op: &'static str,
        entry: &Entry,
        of: &Arc<Use>,
    ) -> Result<Arc<Engine>> {
        if let Some(engine) = of.engine() {
            if self.is_up_to_date(op, entry, &engine).await? {
                return Ok(engine);
            }
            if engine.is_writer() && engine.is_ending() {
                // What it still writes may count, or another writer has what does.
                engine.ended().await;
            }
        }
        let engine = self.open_reader(op, entry).await?;
        of.set_engine(Some(engine.clone()));
        Ok(engine)
    }

    /// Whether an engine that is there may be read from.
    async fn is_up_to_date(
        &self,
        op: &'static str,
        entry: &Entry,
        engine: &Arc<Engine>,
    ) -> Result<bool> {
        if engine.log().await != entry.log {
            return Ok(false);
        }
        match engine.is_writer() {
            true => engine.is_current(op).await,
            false if entry.log.is_none() => Ok(engine.is_fixed_to(&entry.base)),
            false => engine.follow(op).await,
        }
    }

    /// Others see by it that the volume is in use. Who may only read the store goes without.
    async fn reader_mark(&self, op: &'static str, entry: &Entry) -> Result<Option<Mark>> {
        if self.config.read_only {
            return Ok(None);
        }
        match self.mark(op, entry.id).await {
            Ok(mark) => Ok(Some(mark)),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// An open volume that the pool does not know of, for work of its own.
    pub(crate) fn bare_device(
        self: &Arc<Self>,
        entry: &Entry,
        engine: Arc<Engine>,
    ) -> ObjectDevice {
        let of = Uses::default().of(entry.id);
        of.set_size(entry.size);
        let writes = engine.is_writer();
        of.set_engine(Some(engine.clone()));
        let access = if writes {
            Access::ReadWrite
        } else {
            Access::ReadOnly
        };
        ObjectDevice {
            name: entry.name.clone(),
            id: entry.id,
            ready: self.clone(),
            hold: of.enter(access),
            engine: writes.then_some(engine),
            is_bare: true,
            _mark: None,
        }
    }

    /// An engine that knows what a volume holds now.
    pub(crate) async fn content(
        &self,
        op: &'static str,
        entry: &Arc<Entry>,
    ) -> Result<Arc<Engine>> {
        let of = self.uses.of(entry.id);
        let _turn = of.turn.lock().await;
        if of.engine().is_some() {
            return self.readable(op, entry, &of).await;
        }
        // Not for others, who would have to follow what it reads.
        let unused = Uses::default().of(entry.id);
        self.readable(op, entry, &unused).await
    }
}
