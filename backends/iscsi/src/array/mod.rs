//! Arrays: a pool on the target's host, whose volumes the target shows as logical units.

mod attach;
mod audit;
mod closing;
mod lease;
mod lock;
mod names;
mod pool;
mod stale;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use volmux_core::{
    AttachOptions, Attachment, Error, ErrorKind, Pool, Result, Volume, VolumeId, VolumeName,
};

pub use closing::Closing;
pub use lease::ArrayLease;
pub use names::{is_opener, opener_name};
pub use pool::LocalArray;

/// What an [`Opener`](crate::open::Opener) needs of a pool whose attachments are logical units.
#[async_trait]
pub trait Array: Debug + Send + Sync + 'static {
    /// The pool.
    fn pool(&self) -> Arc<dyn Pool>;

    /// [`Pool::attach_volume`], whose errors name the operation `op`.
    ///
    /// # Errors
    /// Those of `attach_volume`.
    async fn attach_for(
        &self,
        op: &'static str,
        name: &VolumeName,
        options: AttachOptions,
    ) -> Result<Attachment>;

    /// Has the target show again what was attached with `options`; it may have been restarted and
    /// know nothing any more.
    ///
    /// # Errors
    /// `Fenced` if it is attached no more; `NotFound` if the volume is gone.
    async fn renew(
        &self,
        op: &'static str,
        name: &VolumeName,
        options: &AttachOptions,
    ) -> Result<()>;
}

/// A pool that has no other way to attach than [`Pool::attach_volume`].
#[derive(Debug)]
pub struct ByPool(pub Arc<dyn Pool>);

#[async_trait]
impl Array for ByPool {
    fn pool(&self) -> Arc<dyn Pool> {
        self.0.clone()
    }

    async fn attach_for(
        &self,
        op: &'static str,
        name: &VolumeName,
        options: AttachOptions,
    ) -> Result<Attachment> {
        let attached = self.0.attach_volume(name, options).await;
        attached.map_err(|error| error.with_op(op))
    }

    async fn renew(
        &self,
        op: &'static str,
        name: &VolumeName,
        options: &AttachOptions,
    ) -> Result<()> {
        let volume = self
            .0
            .volume(name)
            .await
            .map_err(|error| error.with_op(op))?;
        if !volume.attachments.contains(options) {
            return Err(Error::new(ErrorKind::Fenced, op)
                .with("volume", name)
                .reason("the volume was taken over"));
        }
        self.attach_for(op, name, options.clone()).await.map(drop)
    }
}

/// The volume `id`, which was called `name` when it was last seen.
///
/// # Errors
/// `NotFound` if it is gone; those of the pool.
pub async fn find(
    pool: &dyn Pool,
    op: &'static str,
    id: VolumeId,
    name: &VolumeName,
) -> Result<Volume> {
    match pool.volume(name).await {
        Ok(volume) if volume.id == id => return Ok(volume),
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.with_op(op)),
        _ => {}
    }
    // One that can't be read is not it, unless it is not found elsewhere.
    let mut damaged = None;
    let mut volumes = pool.list_volumes();
    while let Some(volume) = volumes.next().await {
        match volume {
            Ok(volume) if volume.id == id => return Ok(volume),
            Ok(_) => {}
            Err(error) => damaged = Some(error.with_op(op)),
        }
    }
    Err(damaged.unwrap_or_else(|| {
        Error::new(ErrorKind::NotFound, op)
            .with("volume", name)
            .with("id", id)
            .reason("the volume is gone from the pool")
    }))
}
