//! The logical units of a target, as volumes.

use std::fmt;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use volmux_core::{
    AttachOptions, Attachment, AuditOptions, AuditReport, BlockDevice, ByteRange, ByteSize,
    Capabilities, CloneOptions, Collected, Control, CopyOptions, CreateOptions, Error, ErrorKind,
    ExtentKind, ExtentQuery, ExtentStream, FlattenOptions, Holder, OpenOptions, Pool, Provisioning,
    ResizeOptions, Result, RevertOptions, SnapshotOptions, Support, ThinPolicy, Usage, Volume,
    VolumeId, VolumeName,
};

use super::reservation;
use crate::config::IscsiConfig;
use crate::device::IscsiDevice;
use crate::open::{Opener, Reached};
use crate::scsi::{
    Association, Designator, Illegal, LogicalUnit, ScsiErrorKind, report_luns, session_error,
};
use crate::session::Attached;
use crate::transport::ScsiTransport;

/// What the names of volumes begin with; the number of the logical unit comes after it.
const PREFIX: &str = "lun-";

/// The logical units of one target. Each disk among them is a volume `lun-N`.
#[derive(Clone)]
pub struct LunPool(Arc<Inner>);

struct Inner {
    opener: Opener,
    portal: String,
    target: String,
    initiator: String,
    /// For looking only: each open volume has a session of its own.
    transport: Arc<dyn ScsiTransport>,
}

impl LunPool {
    /// Logs in to the target.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn open(config: &IscsiConfig, opener: Opener) -> Result<Self> {
        const OP: &str = "open_pool";
        let (portal, target) = (config.portal(), config.target.clone());
        let initiator = match &config.initiator {
            Some(initiator) => initiator.clone(),
            None => default_initiator(),
        };
        let session = opener.sessions().options(&portal, &target, &initiator);
        let transport = opener.connector().login(session).await;
        let transport = transport.map_err(|error| session_error(OP, &error))?;
        Ok(LunPool(Arc::new(Inner {
            opener,
            portal,
            target,
            initiator,
            transport,
        })))
    }

    fn unsupported<T>(&self, op: &'static str) -> Result<T> {
        Err(Error::new(ErrorKind::Unsupported, op)
            .with("pool", self)
            .reason("nobody was named who makes and changes logical units at this target")
            .help("say control=tgt, lio or targetd in the pool's URL; see docs/iscsi.md"))
    }
}

impl Inner {
    async fn unit(&self, op: &'static str, name: &VolumeName) -> Result<LogicalUnit> {
        let missing = || {
            Error::new(ErrorKind::NotFound, op)
                .with("volume", name)
                .with("target", &self.target)
                .reason("the target has no such logical unit")
                .help("volumes of such a pool are called lun-N; list them")
        };
        let lun = number(name).ok_or_else(missing)?;
        let options = self.opener.unit_options(&self.portal, &self.target);
        let unit = LogicalUnit::open_with(self.transport.clone(), lun, options).await;
        unit.map_err(|error| match error.kind() {
            ScsiErrorKind::NotADisk { .. }
            | ScsiErrorKind::IllegalRequest(Illegal::LunNotSupported) => missing(),
            _ => error.into_core(op, name),
        })
    }

    fn volume(&self, name: VolumeName, unit: &LogicalUnit) -> Volume {
        let size = ByteSize::new(unit.capacity().bytes());
        let mut volume = Volume::new(name, self.identity(unit), size);
        volume.provisioning = match unit.capacity().provisioned {
            true => Provisioning::Thin,
            false => Provisioning::Thick,
        };
        // Nobody tells when it was made.
        volume.created = UNIX_EPOCH;
        volume
    }

    /// Out of what the unit says of itself, so that it stays the same wherever the unit is shown.
    fn identity(&self, unit: &LogicalUnit) -> VolumeId {
        let mut digest = Sha256::new();
        let own = |one: &&Designator| one.association == Association::LogicalUnit;
        let names = unit
            .designators()
            .iter()
            .filter(own)
            .map(ToString::to_string);
        let mut names: Vec<String> = names.chain(unit.serial().map(str::to_owned)).collect();
        names.sort();
        match names.is_empty() {
            false => digest.update(names.join("\n")),
            true => digest.update(format!("{} {}", self.target, unit.lun())),
        }
        let digest = digest.finalize();
        let mut bits = [0; 16];
        bits.copy_from_slice(&digest[..16]);
        // As a UUID of version 8 (RFC 9562 section 5.8).
        bits[6] = bits[6] & 0x0f | 0x80;
        bits[8] = bits[8] & 0x3f | 0x80;
        VolumeId::from_u128(u128::from_be_bytes(bits))
    }
}

/// A name for this host, for who gives none.
fn default_initiator() -> String {
    let mut host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_ascii_lowercase();
    host.retain(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
    host.truncate(63);
    format!("iqn.2026-11.org.volmux:{host}")
}

/// The number in a volume's name, written as we write it.
fn number(name: &VolumeName) -> Option<u64> {
    let digits = name.as_str().strip_prefix(PREFIX)?;
    let number: u64 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Pool for LunPool {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            discard: Support::Native,
            shared_writers: Support::Native,
            fencing: Support::Native,
            ..Capabilities::default()
        }
    }

    fn policy(&self) -> ThinPolicy {
        ThinPolicy::default()
    }

    async fn usage(&self) -> Result<Usage> {
        self.unsupported("usage")
    }

    async fn create_volume(&self, _: &VolumeName, _: CreateOptions) -> Result<Volume> {
        self.unsupported("create_volume")
    }

    async fn volume(&self, name: &VolumeName) -> Result<Volume> {
        let unit = self.0.unit("volume", name).await?;
        Ok(self.0.volume(name.clone(), &unit))
    }

    fn list_volumes(&self) -> BoxStream<'static, Result<Volume>> {
        const OP: &str = "list_volumes";
        let inner = self.0.clone();
        let numbers = async move {
            let options = inner.opener.unit_options(&inner.portal, &inner.target);
            let found = report_luns(inner.transport.clone(), options).await;
            // It is logical unit 0 that tells of all.
            let zero = VolumeName::new(format!("{PREFIX}0"))?;
            let found = found.map_err(|error| error.into_core(OP, &zero))?;
            Ok::<_, Error>(stream::iter(found).map(move |lun| Ok((inner.clone(), lun))))
        };
        stream::once(numbers)
            .try_flatten()
            .try_filter_map(|(inner, lun)| async move {
                let name = VolumeName::new(format!("{PREFIX}{lun}"))?;
                match inner.unit(OP, &name).await {
                    Ok(unit) => Ok(Some(inner.volume(name, &unit))),
                    // A controller, or a unit that has gone meanwhile.
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .boxed()
    }

    async fn resize_volume(&self, _: &VolumeName, _: ResizeOptions) -> Result<Volume> {
        self.unsupported("resize_volume")
    }

    async fn rename_volume(&self, _: &VolumeName, _: &VolumeName) -> Result<Volume> {
        self.unsupported("rename_volume")
    }

    async fn delete_volume(&self, _: &VolumeName) -> Result<()> {
        self.unsupported("delete_volume")
    }

    async fn snapshot_volume(
        &self,
        _: &VolumeName,
        _: &VolumeName,
        _: SnapshotOptions,
    ) -> Result<Volume> {
        self.unsupported("snapshot_volume")
    }

    async fn clone_volume(
        &self,
        _: &VolumeName,
        _: &VolumeName,
        _: CloneOptions,
    ) -> Result<Volume> {
        self.unsupported("clone_volume")
    }

    async fn copy_volume(&self, _: &VolumeName, _: &VolumeName, _: CopyOptions) -> Result<Volume> {
        self.unsupported("copy_volume")
    }

    async fn revert_volume(
        &self,
        _: &VolumeName,
        _: &VolumeName,
        _: RevertOptions,
    ) -> Result<Volume> {
        self.unsupported("revert_volume")
    }

    async fn flatten_volume(&self, _: &VolumeName, _: FlattenOptions) -> Result<Volume> {
        self.unsupported("flatten_volume")
    }

    async fn adopt_volume(&self, _: &str, _: &VolumeName) -> Result<Volume> {
        self.unsupported("adopt_volume")
    }

    async fn open_volume(
        &self,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        const OP: &str = "open_volume";
        let inner = &self.0;
        // Whether there is one, before a session is begun for it.
        let lun = inner.unit(OP, name).await?.lun();
        let place = (inner.portal.as_str(), inner.target.as_str(), lun);
        let reached = inner
            .opener
            .log_in(OP, name, place, &inner.initiator, false)
            .await?;
        let lease = reservation::lease(OP, self.to_string(), name, &reached, options).await?;
        let Reached { transport, unit } = reached;
        let thick = !unit.capacity().provisioned;
        let size = inner
            .opener
            .sizes()
            .join(inner.identity(&unit), unit.capacity().bytes());
        let timeout = inner.opener.sessions().timeout;
        let nexus = unit.opened_in();
        let attached = Attached::new(
            lease,
            transport,
            unit,
            nexus,
            (options.access, options.sharing),
            timeout,
        );
        Ok(Arc::new(IscsiDevice::new(
            attached,
            options.access,
            thick,
            size,
        )))
    }

    async fn extents(&self, name: &VolumeName, query: ExtentQuery) -> Result<ExtentStream> {
        const OP: &str = "extents";
        if let ExtentKind::ChangedSince(_) = query.kind {
            return self.unsupported(OP);
        }
        let device = self.open_volume(name, OpenOptions::read_only()).await;
        let device = device.map_err(|error| error.with_op(OP))?;
        let range = query.range.unwrap_or(ByteRange::new(0, device.size()));
        let extents = device.extents(range).await?;
        let (grade, granularity) = (extents.grade(), extents.granularity());
        // The session lasts as long as somebody reads.
        let extents = extents.map(move |extent| {
            let _open = &device;
            extent
        });
        Ok(ExtentStream::new(grade, granularity, extents))
    }

    async fn attach_volume(&self, _: &VolumeName, _: AttachOptions) -> Result<Attachment> {
        self.unsupported("attach_volume")
    }

    async fn detach_volume(&self, _: &VolumeName, _: &Holder) -> Result<()> {
        self.unsupported("detach_volume")
    }

    async fn audit(&self, _: AuditOptions) -> Result<AuditReport> {
        let volumes: Vec<Volume> = self.list_volumes().try_collect().await?;
        Ok(AuditReport {
            findings: Vec::new(),
            volumes: volumes.len() as u64,
        })
    }

    async fn scrub(&self, _: Control) -> Result<AuditReport> {
        self.unsupported("scrub")
    }

    async fn collect_garbage(&self) -> Result<Collected> {
        self.unsupported("collect_garbage")
    }
}

impl fmt::Display for LunPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iscsi://{}/{}", self.0.portal, self.0.target)
    }
}

impl fmt::Debug for LunPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LunPool")
            .field("portal", &self.0.portal)
            .field("target", &self.0.target)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_numbers_of_logical_units() {
        let number = |name: &str| number(&VolumeName::new(name).expect(name));
        assert_eq!(number("lun-0"), Some(0));
        assert_eq!(number("lun-16383"), Some(16383));
        for other in [
            "lun-", "lun-01", "lun-x", "lun--1", "lun-+1", "LUN-1", "disk",
        ] {
            assert_eq!(number(other), None, "{other}");
        }
    }
}
