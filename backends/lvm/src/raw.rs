//! A logical volume that is worked on and is not (yet) a volume that anybody opens.

use std::ops::Deref;
use std::sync::Arc;

use volmux_core::{Error, ErrorKind, Result};

use crate::disk::{Disk, Kind};
use crate::dm;
use crate::group::GroupClient;

/// An open logical volume, which was activated for it.
#[derive(Debug)]
pub struct RawDisk {
    disk: Disk,
    client: Arc<GroupClient>,
    lv: String,
    was_active: bool,
}

impl RawDisk {
    /// Activates and opens a logical volume: a thin one, with its pool and the pool's chunk size, or
    /// a thick one.
    ///
    /// # Errors
    /// What lvm2 or the kernel says.
    pub async fn open(
        client: &Arc<GroupClient>,
        op: &'static str,
        lv: &str,
        thin: Option<(&str, u64)>,
    ) -> Result<RawDisk> {
        let group = &client.config.group;
        let known = dm::info(&dm::dm_name(group, lv)).map_err(|error| Error::from_io(op, error))?;
        let path = client.activate(op, lv).await?;
        let kind = match thin {
            Some((pool, chunk)) => Kind::Thin {
                chunk,
                group: group.clone(),
                pool: pool.to_owned(),
            },
            None => Kind::Thick,
        };
        Ok(RawDisk {
            disk: Disk::open(&path, true, kind)?,
            client: client.clone(),
            lv: lv.to_owned(),
            was_active: known.is_some(),
        })
    }

    /// Closes it, and deactivates it if it was not active before.
    ///
    /// # Errors
    /// What lvm2 says; `Busy` if somebody has opened it meanwhile.
    pub async fn close(self, op: &'static str) -> Result<()> {
        let RawDisk {
            disk,
            client,
            lv,
            was_active,
        } = self;
        drop(disk);
        if was_active || client.deactivate(op, &lv).await? {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Busy, op)
            .with("logical_volume", lv)
            .reason("its device was opened by somebody else"))
    }
}

impl Deref for RawDisk {
    type Target = Disk;

    fn deref(&self) -> &Disk {
        &self.disk
    }
}
