//! The right to a volume of an array: it is attached to a name that only this opening has.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::{Duration, sleep};
use volmux_core::{
    AttachOptions, ByteRange, Error, ErrorKind, ExtentQuery, ExtentStream, Result, VolumeId,
    VolumeName,
};

use crate::array::{Array, Closing, find};
use crate::lease::{Lease, Standing};
use crate::scsi::{LogicalUnit, ScsiError};

/// How often giving it back is tried.
const ATTEMPTS: u32 = 5;

/// An attachment that lasts as long as the volume is open.
pub struct ArrayLease {
    /// Where the volume is.
    pub array: Arc<dyn Array>,
    /// Its identity, whatever it is called by now.
    pub id: VolumeId,
    /// Its name when it was opened.
    pub name: VolumeName,
    /// How it was attached.
    pub options: AttachOptions,
}

impl ArrayLease {
    async fn name_now(&self, op: &'static str) -> Result<VolumeName> {
        let volume = find(self.array.pool().as_ref(), op, self.id, &self.name).await?;
        Ok(volume.name)
    }

    async fn detach(&self) -> Result<()> {
        let name = match self.name_now("detach_volume").await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            name => name?,
        };
        self.array
            .pool()
            .detach_volume(&name, &self.options.holder)
            .await
    }
}

#[async_trait]
impl Lease for ArrayLease {
    async fn standing(&self) -> Result<Standing> {
        const OP: &str = "open_volume";
        let volume = match find(self.array.pool().as_ref(), OP, self.id, &self.name).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Standing::Lost("the volume is gone from the pool".into()));
            }
            volume => volume?,
        };
        if volume.attachments.contains(&self.options) {
            return Ok(Standing::Held);
        }
        let others: Vec<&str> = volume
            .attachments
            .iter()
            .map(|attached| attached.holder.as_str())
            .collect();
        Ok(Standing::Lost(match others.is_empty() {
            true => "somebody took the volume over, and is done with it".into(),
            false => format!(
                "somebody took the volume over: {} has it",
                others.join(", ")
            ),
        }))
    }

    async fn renew(&self) -> Result<()> {
        const OP: &str = "open_volume";
        let name = self.name_now(OP).await?;
        self.array.renew(OP, &name, &self.options).await
    }

    async fn verify(&self, _: &LogicalUnit, _: u64) -> Result<Standing, ScsiError> {
        // The target lets in nobody else under this name, and nobody whose attachment has ended.
        Ok(Standing::Held)
    }

    fn closing(&self) -> Option<Closing> {
        Some(Closing::begin(&self.options.holder))
    }

    async fn release(&self, _: &LogicalUnit) {}

    async fn end(&self) {
        for attempt in 1..=ATTEMPTS {
            match self.detach().await {
                Ok(()) => return,
                Err(error) if attempt == ATTEMPTS => {
                    tracing::warn!(volume = %self.name, %error, "it stays attached until an audit");
                }
                Err(error) => tracing::debug!(volume = %self.name, %error, "not detached yet"),
            }
            sleep(Duration::from_millis(200) * attempt).await;
        }
    }

    fn unmapped_is_zero(&self) -> bool {
        // What the store gives back reads as zeros, by the contract of pools.
        true
    }

    async fn extents(&self, op: &'static str, range: ByteRange) -> Option<Result<ExtentStream>> {
        let extents = async {
            let name = self.name_now(op).await?;
            let query = ExtentQuery::allocated().within(range);
            self.array.pool().extents(&name, query).await
        };
        Some(extents.await)
    }

    fn name(&self) -> &VolumeName {
        &self.name
    }

    fn describe(&self, error: Error) -> Error {
        let error = match error.get("volume") {
            None => error.with("volume", &self.name),
            Some(_) => error,
        };
        match error.get("pool") {
            None => error.with("pool", self.array.pool()),
            Some(_) => error,
        }
    }
}

impl fmt::Debug for ArrayLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArrayLease")
            .field("name", &self.name)
            .field("id", &self.id)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
