//! Open handles: what those of one volume share, what their requests go to, and how they are closed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, Weak};

use tokio::sync::{OwnedRwLockReadGuard, RwLock as Gate};
use volmux_core::{Access, OpenOptions, Provisioning, Sharing, VolumeId, VolumeName};

use crate::chain::Image;
use crate::inuse;
use crate::known::Stamp;
use crate::node::Node;
use crate::nowait::Nowait;
use crate::record::VolumeRecord;
use crate::sys::Locked;

/// What the open handles of one volume in one pool object share. Only they hold it, so that while
/// it exists the volume is locked against shrinking and its size can only grow.
#[derive(Debug)]
pub struct Shared {
    /// The volume's size, in bytes.
    pub size: AtomicU64,
    /// What the volume was called when its record was last seen.
    called: Mutex<VolumeName>,
    /// Held for reading by each write and for writing by a copy that must not see half of one.
    pub gate: Arc<Gate<()>>,
    handles: Mutex<Vec<Weak<Open>>>,
}

impl Shared {
    /// Keeps copies from beginning while a write is under way.
    pub async fn gate(&self) -> OwnedRwLockReadGuard<()> {
        match self.gate.clone().try_read_owned() {
            Ok(gate) => gate,
            Err(_) => self.gate.clone().read_owned().await,
        }
    }

    pub fn called(&self) -> VolumeName {
        let called = self.called.lock();
        called.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn seen(&self, name: VolumeName, size: u64) {
        let called = self.called.lock();
        *called.unwrap_or_else(PoisonError::into_inner) = name;
        self.size.fetch_max(size, Ordering::AcqRel);
    }

    /// The handle that alone writes, if one of this pool object does. While it is held the volume
    /// stays locked against all other writers, even if the handle is closed meanwhile.
    pub fn exclusive_writer(&self) -> Option<Arc<Open>> {
        let mut handles = self.handles().into_iter();
        handles.find(|open| open.writes() && open.sharing == Sharing::Exclusive)
    }

    /// The open handles, but those that the volume was taken from.
    pub fn handles(&self) -> Vec<Arc<Open>> {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        handles.retain(|open| open.strong_count() > 0);
        let open = handles.iter().filter_map(Weak::upgrade);
        open.filter(|open| !open.is_fenced()).collect()
    }
}

/// The volumes that this pool object has open.
#[derive(Debug, Default)]
pub struct OpenVolumes {
    open: Mutex<HashMap<VolumeId, Weak<Shared>>>,
    closing: Arc<Closing>,
}

/// Volumes whose tables are being written out after their last writer was dropped.
#[derive(Debug, Default)]
struct Closing {
    volumes: Mutex<Vec<VolumeId>>,
    one_less: Condvar,
}

/// One of them.
struct BeingClosed {
    id: VolumeId,
    closing: Arc<Closing>,
}

impl BeingClosed {
    fn new(id: VolumeId, closing: &Arc<Closing>) -> Self {
        closing.lock().push(id);
        BeingClosed {
            id,
            closing: closing.clone(),
        }
    }
}

impl Drop for BeingClosed {
    fn drop(&mut self) {
        let mut volumes = self.closing.lock();
        if let Some(at) = volumes.iter().position(|id| *id == self.id) {
            volumes.swap_remove(at);
        }
        self.closing.one_less.notify_all();
    }
}

impl Closing {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<VolumeId>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenVolumes {
    /// A look at the shared state of `id`, if a handle of it is open.
    pub fn with<T>(&self, id: VolumeId, look: impl FnOnce(&Shared) -> T) -> Option<T> {
        let volumes = self.lock();
        let shared = volumes.get(&id).and_then(Weak::upgrade)?;
        let found = look(&shared);
        // Before the lock: nobody must find it once its last handle is closed.
        drop(shared);
        drop(volumes);
        Some(found)
    }

    /// The open handles of `id`.
    pub fn handles(&self, id: VolumeId) -> Vec<Arc<Open>> {
        self.with(id, Shared::handles).unwrap_or_default()
    }

    /// Waits until what was written through handles that are closed by now is in the file. Blocks.
    pub fn wait_closed(&self, id: VolumeId) {
        self.wait_while(|closing| closing.contains(&id));
    }

    /// As [`wait_closed`](Self::wait_closed), for all volumes.
    pub fn wait_all_closed(&self) {
        self.wait_while(|closing| !closing.is_empty());
    }

    fn wait_while(&self, goes_on: impl Fn(&[VolumeId]) -> bool) {
        let mut closing = self.closing.lock();
        while goes_on(&closing) {
            let one_less = self.closing.one_less.wait(closing);
            closing = one_less.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets the handles of `id` know of a larger size.
    pub fn grown(&self, id: VolumeId, size: u64) {
        self.with(id, |shared| shared.size.fetch_max(size, Ordering::AcqRel));
    }

    /// The shared state for a handle that is being opened, and has locked the data file already.
    fn join(&self, name: &VolumeName, record: &VolumeRecord) -> Arc<Shared> {
        let (id, size) = (record.id, record.virtual_size.bytes());
        let mut volumes = self.lock();
        if let Some(shared) = volumes.get(&id).and_then(Weak::upgrade) {
            shared.size.fetch_max(size, Ordering::AcqRel);
            return shared;
        }
        volumes.retain(|_, shared| shared.strong_count() > 0);
        let shared = Arc::new(Shared {
            size: AtomicU64::new(size),
            called: Mutex::new(name.clone()),
            gate: Arc::new(Gate::new(())),
            handles: Mutex::default(),
        });
        volumes.insert(id, Arc::downgrade(&shared));
        shared
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VolumeId, Weak<Shared>>> {
        // The map is whole between any two statements, so a panic elsewhere does not spoil it.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the requests of a handle go to. It holds the volume's lock.
#[derive(Clone, Debug)]
pub enum Data {
    /// A raw file, opened and locked for this handle alone.
    Raw(Node, Arc<Locked>),
    /// A chain, which all handles of the volume in this pool object have in common.
    Chain(Arc<Image>),
}

impl Data {
    /// The data file that the volume's record names.
    pub fn node(&self) -> Node {
        match self {
            Data::Raw(node, _) => *node,
            Data::Chain(image) => image.node(),
        }
    }

    /// That file.
    pub fn file(&self) -> &Arc<Locked> {
        match self {
            Data::Raw(_, file) => file,
            Data::Chain(image) => image.head(),
        }
    }
}

/// An open handle. Kept alive by requests that still run, and with it the volume's lock.
#[derive(Debug)]
pub struct Open {
    /// What it was opened as.
    pub name: VolumeName,
    /// The volume's, which outlives renames.
    pub id: VolumeId,
    /// Before the data and its locks, and so given up before them.
    pub shared: Arc<Shared>,
    /// Whether reads are tried without waiting.
    pub reads: Nowait,
    /// Whether writes are.
    pub writes: Nowait,
    /// Another one after a snapshot that began a new file.
    data: RwLock<Data>,
    /// For reading only, or for writing too.
    pub access: Access,
    sharing: Sharing,
    /// The volume's.
    pub provisioning: Provisioning,
    /// Set when a flush failed. The kernel reports a lost write once and then forgets it
    /// (fsync(2)), so no later flush of this handle can be believed.
    pub flush_failed: AtomicBool,
    /// That of the volume when it was opened.
    pub epoch: u64,
    /// Set once the volume was taken from this handle.
    pub fenced: AtomicBool,
    /// The state of the volume's record in which it was last seen to be this handle's.
    stamp: Mutex<Option<Stamp>>,
}

impl Open {
    /// What requests go to now.
    pub fn data(&self) -> Data {
        let data = self.data.read().unwrap_or_else(PoisonError::into_inner);
        data.clone()
    }

    /// Has later requests go to `data`. The caller keeps writes from being under way.
    pub fn set_data(&self, data: Data) {
        *self.data.write().unwrap_or_else(PoisonError::into_inner) = data;
    }

    /// What the volume was called when its record was last seen.
    pub fn called(&self) -> VolumeName {
        self.shared.called()
    }

    /// Remembers what it is called now.
    pub fn seen_as(&self, name: VolumeName) {
        self.shared.seen(name, 0);
    }

    /// Whether the volume was this handle's when its record was in this state.
    pub fn stamp_is_known(&self, stamp: Option<Stamp>) -> bool {
        let known = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        stamp.is_some() && *known == stamp
    }

    /// Remembers such a state.
    pub fn know_stamp(&self, stamp: Option<Stamp>) {
        *self.stamp.lock().unwrap_or_else(PoisonError::into_inner) = stamp;
    }

    /// Whether it is open for writing.
    pub fn writes(&self) -> bool {
        self.access == Access::ReadWrite
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Data::Chain(image) = self.data() else {
            return;
        };
        if !self.writes() {
            return;
        }
        if let Err(error) = image.end_writing() {
            // As with a power cut: what was flushed is there.
            tracing::error!(volume = %self.name, %error, "writes since the last flush are lost");
        }
        // Readers in this pool object still have it.
        let head = image.head();
        if let Err(error) = inuse::only_read(head).and_then(|()| inuse::end_changing(head)) {
            tracing::warn!(volume = %self.name, %error, "the volume stays locked until it is closed");
        }
    }
}

/// A device's hold on its handle. Writing tables out may take long, and is not done by whoever
/// happens to drop the device.
pub struct Handle {
    /// Taken out only when dropped.
    open: Option<Arc<Open>>,
    closing: Arc<Closing>,
    remote: bool,
}

impl Handle {
    /// A handle on `data`, that of `record`, among the others of the volume. With `remote`, what is said
    /// about locks is a request to a server.
    pub fn new(
        volumes: &OpenVolumes,
        name: VolumeName,
        data: Data,
        options: OpenOptions,
        record: &VolumeRecord,
        remote: bool,
    ) -> Handle {
        let open = Arc::new(Open {
            shared: volumes.join(&name, record),
            name,
            id: record.id,
            data: RwLock::new(data),
            reads: Nowait::default(),
            writes: Nowait::default(),
            access: options.access,
            sharing: options.sharing,
            provisioning: record.provisioning,
            flush_failed: AtomicBool::new(false),
            epoch: record.epoch,
            fenced: AtomicBool::new(false),
            stamp: Mutex::default(),
        });
        let mut handles = open.shared.handles.lock();
        let known = handles.as_mut().unwrap_or_else(|e| e.get_mut());
        known.retain(|open| open.strong_count() > 0);
        known.push(Arc::downgrade(&open));
        drop(handles);
        Handle {
            open: Some(open),
            closing: volumes.closing.clone(),
            remote,
        }
    }
}

impl std::ops::Deref for Handle {
    type Target = Arc<Open>;

    fn deref(&self) -> &Arc<Open> {
        self.open.as_ref().expect("taken out only when dropped")
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else {
            return;
        };
        let Data::Chain(image) = open.data() else {
            return;
        };
        if !open.writes() {
            return;
        }
        // Others wait for it, where to say so is no request to a server that may not answer.
        if !self.remote
            && let Err(error) = inuse::begin_changing(image.head())
        {
            tracing::warn!(volume = %open.name, %error, "others may find the volume in use");
        }
        drop(image);
        let being_closed = BeingClosed::new(open.id, &self.closing);
        let close = move || {
            drop(open);
            drop(being_closed);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                let closing = runtime.spawn_blocking(close);
                // A task, for who ends the runtime and waits until there is none.
                runtime.spawn(async {
                    if let Err(error) = closing.await {
                        tracing::error!(%error, "a volume was not closed");
                    }
                });
            }
            Err(_) => close(),
        }
    }
}
