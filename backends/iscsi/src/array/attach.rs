//! Attach and detach: a note in the store of who has the volume, and a target that lets him in.
//!
//! The note comes first and goes last, so that nobody is let in whom the store does not know. All of
//! it is done under the volume's lock, so that what the target shows is what the store says.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use volmux_core::{
    Access, AttachOptions, AttachTarget, Attachment, Error, ErrorKind, Holder, Provisioning,
    ResizeOptions, Result, Volume, VolumeName,
};

use super::lock::Locked;
use super::names::{check_initiator, is_opener, target};
use super::pool::Inner;
use crate::control::{Export, Resized, TargetSession};

/// How long a session may still be there once its initiator has logged out.
const LOGOUT_TIME: Duration = Duration::from_secs(2);
/// How long the store may still find its device in use once the target has let it go.
const CLOSE_TIME: Duration = Duration::from_secs(10);

impl Inner {
    /// The volume, and the lock on what is shown of it.
    pub async fn locked(&self, op: &'static str, name: &VolumeName) -> Result<(Volume, Locked)> {
        loop {
            let seen = self.look(op, name).await?;
            let lock = self.locks.lock(op, seen.id).await?;
            let volume = self.look(op, name).await?;
            // Another one may have got its name.
            if volume.id == seen.id {
                return Ok((volume, lock));
            }
        }
    }

    /// The volume as the store has it.
    pub async fn look(&self, op: &'static str, name: &VolumeName) -> Result<Volume> {
        let volume = self.store.volume(name).await;
        volume.map_err(|error| error.with_op(op))
    }

    pub async fn attach(
        &self,
        op: &'static str,
        name: &VolumeName,
        options: &AttachOptions,
    ) -> Result<Attachment> {
        check_initiator(op, &options.holder)?;
        let (before, _lock) = self.locked(op, name).await?;
        let attached = self.store.attach_volume(name, options.clone()).await;
        let attached = attached.map_err(|error| error.with_op(op))?;
        let shown = self.show(op, name, options, attached).await;
        if shown.is_err() && !before.attachments.contains(options) {
            // As it was. What this can't undo an audit finds.
            if let Err(error) = self.withdraw(op, name, &options.holder).await {
                tracing::warn!(volume = %name, %error, "a failed attachment is left over");
            }
        }
        shown
    }

    /// Has the target show again what is attached.
    pub async fn renew(
        &self,
        op: &'static str,
        name: &VolumeName,
        options: &AttachOptions,
    ) -> Result<()> {
        let (volume, _lock) = self.locked(op, name).await?;
        if !volume.attachments.contains(options) {
            return Err(Error::new(ErrorKind::Fenced, op)
                .with("volume", name)
                .reason("the volume was taken over"));
        }
        // Says where it is once more.
        let attached = self.store.attach_volume(name, options.clone()).await;
        let attached = attached.map_err(|error| error.with_op(op))?;
        self.show(op, name, options, attached).await.map(drop)
    }

    /// Has the target show what the store has attached.
    async fn show(
        &self,
        op: &'static str,
        name: &VolumeName,
        options: &AttachOptions,
        attached: Attachment,
    ) -> Result<Attachment> {
        let path = raw_path(op, &attached)?;
        let volume = self.look(op, name).await?;
        let export = self.export_of(&volume, options.access, path);
        let unit = self.control.export(op, &export).await;
        let unit = unit.map_err(|error| error.with("volume", name))?;
        Ok(Attachment {
            target: AttachTarget::Iscsi {
                portal: self.portal.clone(),
                target: export.target,
                lun: unit.lun,
                serial: unit.serial,
                chap: self.chap.chap_reference(),
                mutual_chap: self.chap.mutual_reference(),
            },
            ..attached
        })
    }

    /// What the target has to show to those who have `volume` for `access`.
    pub fn export_of(&self, volume: &Volume, access: Access, path: PathBuf) -> Export {
        let same = volume
            .attachments
            .iter()
            .filter(|attached| attached.access == access);
        Export {
            target: target(&self.prefix, volume.id, access),
            path,
            size: volume.virtual_size.bytes(),
            serial: volume.id.to_string(),
            read_only: access == Access::ReadOnly,
            thin: volume.provisioning == Provisioning::Thin,
            initiators: same.map(|attached| attached.holder.to_string()).collect(),
            chap: self.chap.initiator().cloned(),
            mutual_chap: self.chap.target().cloned(),
        }
    }

    pub async fn detach(&self, op: &'static str, name: &VolumeName, holder: &Holder) -> Result<()> {
        let (volume, _lock) = match self.locked(op, name).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            locked => locked?,
        };
        for access in accesses(&volume, holder) {
            let target = target(&self.prefix, volume.id, access);
            self.check_logged_out(op, name, &target, holder).await?;
        }
        self.withdraw(op, name, holder).await
    }

    /// `Busy` if an initiator is logged in, and does not log out.
    async fn check_logged_out(
        &self,
        op: &'static str,
        name: &VolumeName,
        target: &str,
        holder: &Holder,
    ) -> Result<()> {
        let end = Instant::now() + LOGOUT_TIME;
        loop {
            let sessions = self.sessions(op, target, holder).await?;
            if sessions.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                let from = |session: &TargetSession| match &session.address {
                    Some(address) => format!("{} from {address}", session.initiator),
                    None => session.initiator.clone(),
                };
                let shown: Vec<String> = sessions.iter().map(from).collect();
                return Err(Error::new(ErrorKind::Busy, op)
                    .with("volume", name)
                    .with("target", target)
                    .with("sessions", shown.join(", "))
                    .reason("the host is still logged in")
                    .help("log out there first, such as by iscsiadm -m node -T TARGET -u"));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The sessions of one initiator with one target.
    pub async fn sessions(
        &self,
        op: &'static str,
        target: &str,
        holder: &Holder,
    ) -> Result<Vec<TargetSession>> {
        let exported = self.control.list(op, target).await?;
        let this = exported
            .into_iter()
            .filter(|exported| exported.target == target);
        let sessions = this.flat_map(|exported| exported.sessions);
        Ok(sessions
            .filter(|session| session.initiator == holder.as_str())
            .collect())
    }

    /// Keeps an initiator out and takes its note away, whatever it does.
    pub async fn withdraw(
        &self,
        op: &'static str,
        name: &VolumeName,
        holder: &Holder,
    ) -> Result<()> {
        let volume = self.look(op, name).await?;
        for access in accesses(&volume, holder) {
            let target = target(&self.prefix, volume.id, access);
            let others = volume
                .attachments
                .iter()
                .any(|other| other.access == access && other.holder != *holder);
            let exported = self.control.list(op, &target).await?;
            let Some(shown) = exported
                .into_iter()
                .find(|exported| exported.target == target)
            else {
                continue;
            };
            if !others {
                self.control.unexport(op, &target).await?;
            } else if shown.initiators.iter().any(|name| name == holder.as_str()) {
                // It may cost the others their sessions, which come back.
                self.control.deny(op, &target, holder.as_str()).await?;
            }
        }
        self.forget(op, name, holder).await
    }

    /// Takes a note away in the store. The device may be in use for a moment after its target is gone.
    async fn forget(&self, op: &'static str, name: &VolumeName, holder: &Holder) -> Result<()> {
        let end = Instant::now() + CLOSE_TIME;
        loop {
            match self.store.detach_volume(name, holder).await {
                Err(error) if error.kind() == ErrorKind::Busy && Instant::now() < end => {
                    sleep(Duration::from_millis(50)).await;
                }
                done => return done.map_err(|error| error.with_op(op)),
            }
        }
    }

    /// Takes the volume from all who have it for writing.
    pub async fn fence(&self, op: &'static str, name: &VolumeName) -> Result<()> {
        let (volume, _lock) = self.locked(op, name).await?;
        let writers = volume
            .attachments
            .iter()
            .filter(|attached| attached.access == Access::ReadWrite);
        let writers: Vec<&Holder> = writers.map(|attached| &attached.holder).collect();
        if writers.is_empty() {
            return Ok(());
        }
        let target = target(&self.prefix, volume.id, Access::ReadWrite);
        let exported = self.control.list(op, &target).await?;
        let shown = exported
            .into_iter()
            .find(|exported| exported.target == target);
        let let_in = shown.map_or_else(Vec::new, |exported| exported.initiators);
        // Whom this array's target does not let in may write by another way, which stays.
        let other = writers.iter().find(|holder| {
            !is_opener(holder, &self.prefix) && !let_in.iter().any(|name| name == holder.as_str())
        });
        if let Some(other) = other {
            return Err(Error::new(ErrorKind::Busy, op)
                .with("volume", name)
                .with("attached_to", other)
                .reason("whether it is this array's target that this holder writes through is not known")
                .help(
                    "if the target was restarted, run an audit with repair and try again; if it is \
                     attached past this array, detach it or take it over there",
                ));
        }
        // With the target all that they have under way ends, and none of them finds it again.
        self.control.unexport(op, &target).await?;
        for holder in writers {
            tracing::warn!(volume = %name, %holder, "the volume is taken from this holder");
            self.forget(op, name, holder).await?;
        }
        Ok(())
    }

    pub async fn resize(
        &self,
        op: &'static str,
        name: &VolumeName,
        options: ResizeOptions,
    ) -> Result<Volume> {
        let (_, _lock) = self.locked(op, name).await?;
        let volume = self.store.resize_volume(name, options).await?;
        for access in [Access::ReadWrite, Access::ReadOnly] {
            let target = target(&self.prefix, volume.id, access);
            let exported = self.control.list(op, &target).await?;
            let this = exported
                .into_iter()
                .find(|exported| exported.target == target);
            let Some(unit) = this.and_then(|exported| exported.unit) else {
                continue;
            };
            if unit.size == Some(volume.virtual_size.bytes()) {
                continue;
            }
            let export = self.export_of(&volume, access, unit.path);
            // Who does not tell the size is asked for what is to be shown, and makes it anew if it
            // is not.
            let resized = match unit.size {
                Some(_) => self.control.resize(op, &export).await?,
                None => self
                    .control
                    .export(op, &export)
                    .await
                    .map(|_| Resized::Remade)?,
            };
            match resized {
                Resized::OnLine => {}
                Resized::Remade => tracing::info!(
                    volume = %name,
                    target,
                    "the target can't resize on line: it is made anew, and its sessions come back"
                ),
            }
        }
        Ok(volume)
    }
}

/// For what a holder may be let in: what he has, or both if it is not known.
fn accesses(volume: &Volume, holder: &Holder) -> Vec<Access> {
    let own = volume
        .attachments
        .iter()
        .filter(|attached| attached.holder == *holder);
    let own: Vec<Access> = own.map(|attached| attached.access).collect();
    match own.is_empty() {
        true => vec![Access::ReadWrite, Access::ReadOnly],
        false => own,
    }
}

/// The file or device that a target can show.
fn raw_path(op: &'static str, attached: &Attachment) -> Result<PathBuf> {
    match &attached.target {
        AttachTarget::File { path } | AttachTarget::BlockDevice { path } => Ok(path.clone()),
        _ => Err(Error::new(ErrorKind::Unsupported, op)
            .with("volume", &attached.volume)
            .reason("the volume is an image of a format that the target does not read")
            .help(
                "flatten the volume, or keep the store where files share blocks (XFS, btrfs), so \
                 that its volumes stay raw",
            )),
    }
}
