//! Devices of logical volumes: made when they are needed, and taken away afterwards.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use volmux_core::{Error, ErrorKind, Result};

use crate::dm::{self, Info};
use crate::group::GroupClient;
use crate::users;

/// How long the device node may take to appear once the device is there: that is up to udev.
const NODE_TIME: Duration = Duration::from_secs(10);
/// How long a device may still be open after its last user has closed it: udev looks at each device
/// that was written, and the kernel closes what a request has used a moment later.
const CLOSE_TIME: Duration = Duration::from_millis(1000);

impl GroupClient {
    /// What the kernel knows of a logical volume's device. `None` if there is none.
    ///
    /// # Errors
    /// `Unavailable` if device-mapper does not answer.
    pub fn device(&self, op: &'static str, lv: &str) -> Result<Option<Info>> {
        let name = dm::dm_name(&self.config.group, lv);
        dm::info(&name).map_err(|error| {
            Error::from_io(op, error)
                .with("device", name)
                .reason("device-mapper does not answer")
                .help("run as root; load the kernel module dm-mod")
        })
    }

    /// The path of a logical volume's device, named after device-mapper.
    pub fn device_path(&self, lv: &str) -> PathBuf {
        Path::new("/dev/mapper").join(dm::dm_name(&self.config.group, lv))
    }

    /// The path of a logical volume's device, named after LVM: for people.
    pub fn public_path(&self, lv: &str) -> PathBuf {
        Path::new("/dev").join(&self.config.group).join(lv)
    }

    /// Makes the device of a logical volume, and returns its path. Starts no process if it is there.
    ///
    /// # Errors
    /// What lvm2 complains of; `Busy` if another host of a shared group has it; `Unavailable` if the
    /// device does not show up.
    pub async fn activate(&self, op: &'static str, lv: &str) -> Result<PathBuf> {
        let ready = |info: &Info| info.live_table && !info.suspended;
        if !self.device(op, lv)?.as_ref().is_some_and(ready) {
            let path = format!("{}/{lv}", self.config.group);
            let how = if self.is_shared_group(op).await? {
                "-aey"
            } else {
                "-ay"
            };
            self.commands
                .lvm(op, &["lvchange", how, "-K", &path])
                .await?;
        }
        let path = self.device_path(lv);
        self.wait_for_node(op, lv, &path).await?;
        Ok(path)
    }

    /// Takes the device of a logical volume away, if there is one; `Ok(false)` if it is in use.
    ///
    /// # Errors
    /// What else lvm2 complains of.
    pub async fn deactivate(&self, op: &'static str, lv: &str) -> Result<bool> {
        let path = format!("{}/{lv}", self.config.group);
        let end = Instant::now() + CLOSE_TIME;
        loop {
            match self.device(op, lv)? {
                None => return Ok(true),
                Some(info) if info.open_count == 0 => {
                    match self.commands.lvm(op, &["lvchange", "-an", &path]).await {
                        Ok(_) => return Ok(true),
                        // Opened again, by udev most likely.
                        Err(error) if error.kind() == ErrorKind::Busy => {}
                        // Renamed or removed meanwhile.
                        Err(_) if self.device(op, lv)?.is_none() => return Ok(true),
                        Err(error) => return Err(error),
                    }
                }
                // lvm2 itself would wait for some seconds (retry_deactivation in lvm.conf).
                Some(_) => {}
            }
            if Instant::now() > end {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether other hosts use the group too, by lvmlockd.
    async fn is_shared_group(&self, op: &'static str) -> Result<bool> {
        let view = self.last(op).await?;
        Ok(view.group().attributes.shared)
    }

    /// Waits until `path` is the device of the logical volume.
    ///
    /// # Errors
    /// `Unavailable` if that takes too long.
    pub async fn wait_for_node(&self, op: &'static str, lv: &str, path: &Path) -> Result<()> {
        let end = Instant::now() + NODE_TIME;
        let mut pause = Duration::from_millis(1);
        loop {
            let info = self.device(op, lv)?;
            let number = info.map(|info| number(&info));
            if number.is_some() && users::device_at(path) == number {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(Error::new(ErrorKind::Unavailable, op)
                    .with("path", path.display())
                    .reason("the volume is active and yet its device does not show up there")
                    .help("see whether systemd-udevd runs (udevadm settle); dmsetup mknodes makes what is missing"));
            }
            if number.is_none() {
                // Taken away again meanwhile: whoever waits finds out when it opens the path.
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

/// The device number, as stat(2) gives it.
pub fn number(info: &Info) -> u64 {
    libc::makedev(info.major, info.minor)
}
