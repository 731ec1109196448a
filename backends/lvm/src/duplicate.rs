//! Snapshot, clone and copy.

use std::sync::Arc;

use tokio_util::sync::{CancellationToken, DropGuard};
use volmux_core::transfer::copy_device;
use volmux_core::{
    Access, BlockDevice, ByteRange, ByteSize, Control, Error, ErrorKind, Origin, OriginKind,
    Result, Sharing, SpaceRequest, Volume, VolumeName, ZeroOptions,
};

use crate::change::Change;
use crate::device;
use crate::lifecycle::{
    check_making, check_no_writer, existing, finished, in_use, make_room, remove_hidden, turn_on,
};
use crate::locks::{Use, VolumeLocks};
use crate::names::{self, Hidden};
use crate::pool::Inner;
use crate::tags::{Record, Work};
use crate::view::Entry;

/// Whether the copy is still wanted is asked so often.
const ZEROED_AT_ONCE: usize = 1 << 30;

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Duplicate {
    pub op: &'static str,
    pub kind: OriginKind,
    pub source: VolumeName,
    pub name: VolumeName,
}

/// What was found at the beginning.
enum Begun {
    /// It is there already.
    There(Volume),
    /// It is still to be made, of this.
    Of(Box<Entry>),
}

impl Duplicate {
    /// Looks at source and target, and makes room for the target.
    async fn begin(&self, inner: &Arc<Inner>, change: &mut Change) -> Result<Begun> {
        let Duplicate {
            op,
            kind,
            source,
            name,
        } = self;
        let from = change.view().find(source).map(|from| from.record.id);
        let same = |entry: &Entry| {
            entry.record.origin.as_ref().is_some_and(|origin| {
                let same_parent = match from {
                    Some(id) => origin.parent_id == id,
                    None => origin.parent_name == *source,
                };
                origin.kind == *kind && same_parent
            })
        };
        if let Some(volume) = existing(op, change.view(), name, same)? {
            return Ok(Begun::There(volume));
        }
        change.view().get(op, source)?;
        make_room(op, change, name).await?;
        Ok(Begun::Of(Box::new(
            finished(inner, op, change, source).await?,
        )))
    }

    fn check(&self, inner: &Inner, control: &Control) -> Result<()> {
        let Duplicate {
            op, source, name, ..
        } = self;
        if source == name {
            return Err(Error::new(ErrorKind::InvalidInput, op)
                .with("volume", name)
                .reason("source and target have the same name"));
        }
        names::check(op, &inner.client.config.group, name)?;
        control.check(op)
    }

    fn record(&self, from: &Entry) -> Record {
        Record::new(Some(Origin {
            kind: self.kind,
            parent_id: from.record.id,
            parent_name: self.source.clone(),
        }))
    }

    /// Makes a snapshot or a clone.
    pub async fn link(self, inner: Arc<Inner>, control: Control) -> Result<Volume> {
        let op = self.op;
        self.check(&inner, &control)?;
        inner.check_thin(op, "snapshots and clones")?;
        let mut change = turn_on(&inner, op, &self.name).await?;
        let from = match self.begin(&inner, &mut change).await? {
            Begun::There(volume) => return Ok(volume),
            Begun::Of(from) => from,
        };
        let provisioned = from.size();
        let request = SpaceRequest {
            provisioned,
            reserved: ByteSize::ZERO,
        };
        inner.admit(op, &mut change, request).await?;
        let tags = self.record(&from).tags();
        let read_only = self.kind == OriginKind::Snapshot;
        change
            .snapshot(&from.lv, self.name.as_str(), &tags, read_only)
            .await?;
        Ok(change.view().get(op, &self.name)?.volume())
    }

    /// Makes a copy. It counts once all of it is there.
    pub async fn copy(
        self,
        inner: Arc<Inner>,
        control: Control,
        dropped: CancellationToken,
    ) -> Result<Volume> {
        let op = self.op;
        self.check(&inner, &control)?;
        let mut change = turn_on(&inner, op, &self.name).await?;
        let from = match self.begin(&inner, &mut change).await? {
            Begun::There(volume) => return Ok(volume),
            Begun::Of(from) => from,
        };
        let size = from.size();
        let reserved = inner.bytes_to_copy(op, change.view(), &from).await?;
        let request = SpaceRequest {
            provisioned: size,
            reserved,
        };
        inner.admit(op, &mut change, request).await?;
        let mut record = self.record(&from);
        record.work = Some(Work::Making);
        let making = VolumeLocks::of(&inner.client, op, record.id)?.alone_now()?;
        let source = Still::of(&inner, op, &mut change, &from, &record).await?;
        let made = self.make_target(&inner, &mut change, &from, &record).await;
        // In one's turn, so that these are the ones that have the names.
        let opened = match made {
            Ok(target) => self.open(&inner, &source.entry, &target).await,
            Err(error) => Err(error),
        };
        // Others go on meanwhile.
        drop(change);
        let copied = match opened {
            Ok([reader, writer]) => {
                let zero = !inner.is_thin();
                self.fill(&*reader, &*writer, zero, &control, dropped).await
            }
            Err(error) => Err(error),
        };
        let mut change = inner.client.change(op).await?;
        source.end(&mut change).await?;
        let result = self.end(&inner, &mut change, &record, copied).await;
        drop(making);
        result
    }

    async fn open(
        &self,
        inner: &Arc<Inner>,
        from: &Entry,
        to: &Entry,
    ) -> Result<[Arc<dyn BlockDevice>; 2]> {
        let reader = device::open_entry(inner, self.op, from, false).await?;
        let writer = device::open_entry(inner, self.op, to, true).await?;
        Ok([reader, writer])
    }

    async fn make_target(
        &self,
        inner: &Inner,
        change: &mut Change,
        from: &Entry,
        record: &Record,
    ) -> Result<Entry> {
        let (name, size, tags) = (self.name.as_str(), from.size().bytes(), record.tags());
        if inner.is_thin() {
            change.create_thin(name, size, &tags).await?;
        } else {
            change.create_thick(name, size, &tags).await?;
        }
        let made = change.view().half_made.get(&self.name).cloned();
        made.ok_or_else(|| {
            Error::new(ErrorKind::Internal, self.op).reason("what was made is not there")
        })
    }

    /// Copies, and writes zeros first if the target is full of what was there before.
    async fn fill(
        &self,
        reader: &dyn BlockDevice,
        writer: &dyn BlockDevice,
        zero: bool,
        control: &Control,
        dropped: CancellationToken,
    ) -> Result<()> {
        // Stops when the caller says so, and when nobody waits any more.
        let watched = Control::new().with_cancel(dropped.clone()).with_progress({
            let control = control.clone();
            move |progress| {
                control.report(progress.done, progress.total);
                if control.is_cancelled() {
                    dropped.cancel();
                }
            }
        });
        for offset in (0..writer.size() * u64::from(zero)).step_by(ZEROED_AT_ONCE) {
            control.check(self.op)?;
            watched.check(self.op)?;
            let end = writer.size().min(offset + ZEROED_AT_ONCE as u64);
            let part = ByteRange::from_to(offset, end);
            writer.write_zeroes(part, ZeroOptions::default()).await?;
        }
        copy_device(reader, writer, &watched).await?;
        control.check(self.op)
    }

    /// Publishes what was copied, or takes it away again.
    async fn end(
        &self,
        inner: &Inner,
        change: &mut Change,
        record: &Record,
        copied: Result<()>,
    ) -> Result<Volume> {
        let (op, name) = (self.op, self.name.as_str());
        let ours = check_making(op, change, &self.name, record.id);
        match copied {
            Ok(()) => {
                ours?;
                change.retag(name, &[], &[Work::Making.tag()]).await?;
                Ok(change.view().get(op, &self.name)?.volume())
            }
            Err(error) => {
                if ours.is_ok() {
                    inner.client.deactivate(op, name).await?;
                    change.remove(name).await?;
                }
                Err(error)
            }
        }
    }
}

/// A volume's content at one moment, while it is copied.
struct Still {
    entry: Entry,
    hidden: Option<String>,
    _use: Option<Use>,
}

impl Still {
    /// A hidden snapshot; of a thick volume, the volume itself, with writers kept out.
    async fn of(
        inner: &Inner,
        op: &'static str,
        change: &mut Change,
        from: &Entry,
        target: &Record,
    ) -> Result<Still> {
        if !inner.is_thin() {
            check_no_writer(op, from)?;
            // As a writer would, which keeps all others out.
            let locks = VolumeLocks::of(&inner.client, op, from.record.id)?;
            let kept = locks.share(Access::ReadWrite, Sharing::Exclusive).await?;
            let Some(kept) = kept else {
                let error = in_use(op, &inner.client, from, &locks).await;
                return Err(error.with("state", "being written; a thick one has no snapshots"));
            };
            return Ok(Still {
                entry: from.clone(),
                hidden: None,
                _use: Some(kept),
            });
        }
        let hidden = Hidden::Copy.name(target.id);
        change.snapshot(&from.lv, &hidden, &[], true).await?;
        let mut entry = from.clone();
        let lv = change.view().leftovers.iter().find(|lv| lv.name == hidden);
        entry.lv = lv.cloned().ok_or_else(|| {
            Error::new(ErrorKind::Internal, op).reason("what was made is not there")
        })?;
        Ok(Still {
            entry,
            hidden: Some(hidden),
            _use: None,
        })
    }

    async fn end(&self, change: &mut Change) -> Result<()> {
        match &self.hidden {
            Some(hidden) => remove_hidden(change, std::slice::from_ref(hidden)).await,
            None => Ok(()),
        }
    }
}

/// A token that is cancelled when the caller's future is dropped.
pub fn cancelled_when_dropped() -> (CancellationToken, DropGuard) {
    let token = CancellationToken::new();
    (token.clone(), token.drop_guard())
}
