//! The JSON documents. docs/json.md describes them; a field is never taken away within a version.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use volmux::hypervisor::Descriptor;
use volmux::{
    Access, AttachOptions, AttachTarget, Attachment, AuditReport, ByteSize, Capabilities,
    ChapReference, Collected, FindingKind, Origin, Pool, Pressure, Provisioning, Sharing,
    ThinPolicy, Usage, Volume, VolumeId,
};

/// The last second that RFC 3339 can write.
const MAX_SECONDS: u64 = 253_402_300_799;

/// `time` as RFC 3339 in UTC, with microseconds or whole seconds. What lies outside of the years
/// 1970 to 9999 is moved to their edge.
pub fn rfc3339(time: SystemTime, micros: bool) -> String {
    let latest = UNIX_EPOCH + Duration::from_secs(MAX_SECONDS);
    let time = time.clamp(UNIX_EPOCH, latest);
    if micros {
        humantime::format_rfc3339_micros(time).to_string()
    } else {
        humantime::format_rfc3339_seconds(time).to_string()
    }
}

/// A volume.
#[derive(Serialize)]
pub struct VolumeDoc<'a> {
    schema: &'static str,
    name: &'a str,
    id: VolumeId,
    virtual_size: ByteSize,
    allocated: Option<ByteSize>,
    exclusive: Option<ByteSize>,
    fragments: Option<u64>,
    depth: Option<u64>,
    provisioning: Provisioning,
    origin: Option<&'a Origin>,
    created: String,
    attachments: Vec<AttachedDoc<'a>>,
}

#[derive(Serialize)]
struct AttachedDoc<'a> {
    holder: &'a str,
    access: Access,
    sharing: Sharing,
}

impl<'a> From<&'a Volume> for VolumeDoc<'a> {
    fn from(volume: &'a Volume) -> Self {
        VolumeDoc {
            schema: "volmux.volume.v1",
            name: volume.name.as_str(),
            id: volume.id,
            virtual_size: volume.virtual_size,
            allocated: volume.allocated,
            exclusive: volume.exclusive,
            fragments: volume.fragments,
            depth: volume.depth,
            provisioning: volume.provisioning,
            origin: volume.origin.as_ref(),
            created: rfc3339(volume.created, true),
            attachments: volume.attachments.iter().map(AttachedDoc::from).collect(),
        }
    }
}

impl<'a> From<&'a AttachOptions> for AttachedDoc<'a> {
    fn from(attached: &'a AttachOptions) -> Self {
        AttachedDoc {
            holder: attached.holder.as_str(),
            access: attached.access,
            sharing: attached.sharing,
        }
    }
}

/// A pool.
#[derive(Serialize)]
pub struct PoolDoc {
    schema: &'static str,
    pool: String,
    capabilities: Capabilities,
    usage: UsageDoc,
    policy: PolicyDoc,
    pressure: Pressure,
}

#[derive(Serialize)]
struct UsageDoc {
    total: ByteSize,
    used: ByteSize,
    free: ByteSize,
    provisioned: ByteSize,
    used_percent: f64,
    overcommit: f64,
    metadata: Option<MetadataDoc>,
    time_to_full_seconds: Option<u64>,
}

#[derive(Serialize)]
struct MetadataDoc {
    total: u64,
    used: u64,
}

#[derive(Serialize)]
struct PolicyDoc {
    overcommit_limit: Option<f64>,
    warn_percent: f64,
    refuse_percent: f64,
}

impl PoolDoc {
    /// Of `pool`, whose usage is `usage`.
    pub fn new(pool: &dyn Pool, usage: &Usage) -> Self {
        let policy: ThinPolicy = pool.policy();
        PoolDoc {
            schema: "volmux.pool.v1",
            pool: pool.to_string(),
            capabilities: pool.capabilities(),
            usage: UsageDoc {
                total: usage.total,
                used: usage.used,
                free: usage.free,
                provisioned: usage.provisioned,
                used_percent: usage.used_percent(),
                overcommit: usage.overcommit(),
                metadata: usage.metadata.map(|m| MetadataDoc {
                    total: m.total,
                    used: m.used,
                }),
                time_to_full_seconds: usage.time_to_full.map(|time| time.as_secs()),
            },
            policy: PolicyDoc {
                overcommit_limit: policy.overcommit_limit,
                warn_percent: policy.warn_percent,
                refuse_percent: policy.refuse_percent,
            },
            pressure: policy.pressure(usage),
        }
    }
}

/// What an audit found.
#[derive(Serialize)]
pub struct AuditDoc<'a> {
    schema: &'static str,
    pool: String,
    repair: bool,
    dry_run: bool,
    clean: bool,
    volumes: u64,
    findings: Vec<FindingDoc<'a>>,
}

#[derive(Serialize)]
struct FindingDoc<'a> {
    kind: FindingKind,
    object: &'a str,
    detail: &'a str,
    bytes: Option<ByteSize>,
    repaired: bool,
}

impl<'a> AuditDoc<'a> {
    /// Of `report` on `pool`.
    pub fn new(pool: &dyn Pool, report: &'a AuditReport, repair: bool, dry_run: bool) -> Self {
        let findings = report.findings.iter().map(|f| FindingDoc {
            kind: f.kind,
            object: &f.object,
            detail: &f.detail,
            bytes: f.bytes,
            repaired: f.repaired,
        });
        AuditDoc {
            schema: "volmux.audit.v1",
            pool: pool.to_string(),
            repair,
            dry_run,
            clean: report.is_clean(),
            volumes: report.volumes,
            findings: findings.collect(),
        }
    }
}

/// What a collection of garbage gave back.
#[derive(Serialize)]
pub struct CollectedDoc {
    schema: &'static str,
    pool: String,
    freed: ByteSize,
    objects: u64,
}

impl CollectedDoc {
    /// Of a collection in `pool`.
    pub fn new(pool: &dyn Pool, collected: &Collected) -> Self {
        CollectedDoc {
            schema: "volmux.collected.v1",
            pool: pool.to_string(),
            freed: collected.freed,
            objects: collected.objects,
        }
    }
}

/// A volume that is attached.
#[derive(Serialize)]
pub struct AttachmentDoc<'a> {
    schema: &'static str,
    name: &'a str,
    id: String,
    holder: &'a str,
    access: Access,
    kind: &'static str,
    path: Option<&'a Path>,
    #[serde(flatten)]
    iscsi: Option<IscsiDoc<'a>>,
    #[serde(flatten)]
    nbd: Option<NbdDoc<'a>>,
    #[serde(flatten)]
    rendered: Option<RenderedDoc<'a>>,
}

#[derive(Serialize)]
struct NbdDoc<'a> {
    uri: String,
    export: &'a str,
    tls: bool,
}

#[derive(Serialize)]
struct RenderedDoc<'a> {
    r#for: &'static str,
    rendered: &'a str,
    arguments: &'a [String],
}

#[derive(Serialize)]
struct IscsiDoc<'a> {
    portal: &'a str,
    target: &'a str,
    lun: u64,
    serial: &'a str,
    chap: Option<ChapDoc<'a>>,
    mutual_chap: Option<ChapDoc<'a>>,
}

#[derive(Serialize)]
struct ChapDoc<'a> {
    user: &'a str,
    secret: &'a Path,
}

impl<'a> From<&'a ChapReference> for ChapDoc<'a> {
    fn from(chap: &'a ChapReference) -> Self {
        ChapDoc {
            user: &chap.user,
            secret: &chap.secret,
        }
    }
}

impl<'a> From<&'a Attachment> for AttachmentDoc<'a> {
    fn from(attached: &'a Attachment) -> Self {
        let (kind, path) = match &attached.target {
            AttachTarget::File { path } => ("file", Some(path.as_path())),
            AttachTarget::BlockDevice { path } => ("block-device", Some(path.as_path())),
            AttachTarget::Qcow2 { path } => ("qcow2", Some(path.as_path())),
            AttachTarget::Iscsi { .. } => ("iscsi", None),
            AttachTarget::Nbd { .. } => ("nbd", None),
            // Kinds that later versions may add.
            _ => ("other", None),
        };
        let iscsi = match &attached.target {
            AttachTarget::Iscsi {
                portal,
                target,
                lun,
                serial,
                chap,
                mutual_chap,
            } => Some(IscsiDoc {
                portal,
                target,
                lun: *lun,
                serial,
                chap: chap.as_ref().map(ChapDoc::from),
                mutual_chap: mutual_chap.as_ref().map(ChapDoc::from),
            }),
            _ => None,
        };
        let nbd = match &attached.target {
            AttachTarget::Nbd {
                address,
                export,
                tls,
            } => Some(NbdDoc {
                uri: address.uri(export, *tls),
                export,
                tls: *tls,
            }),
            _ => None,
        };
        AttachmentDoc {
            schema: "volmux.attachment.v1",
            name: attached.volume.as_str(),
            id: attached.id.to_string(),
            holder: attached.holder.as_str(),
            access: attached.access,
            kind,
            path,
            iscsi,
            nbd,
            rendered: None,
        }
    }
}

impl<'a> AttachmentDoc<'a> {
    /// With what a hypervisor is given.
    pub fn with_rendered(mut self, rendered: &'a Descriptor) -> Self {
        self.rendered = Some(RenderedDoc {
            r#for: rendered.hypervisor.name(),
            rendered: &rendered.text,
            arguments: &rendered.arguments,
        });
        self
    }
}

/// An attachment that is no more.
#[derive(Serialize)]
pub struct DetachDoc<'a> {
    pub schema: &'static str,
    pub name: &'a str,
    pub holder: &'a str,
}

/// One volume that was deleted, or was not there.
#[derive(Serialize)]
pub struct DeleteDoc<'a> {
    pub schema: &'static str,
    pub name: &'a str,
    pub existed: bool,
}

/// What an operation would do.
#[derive(Serialize)]
pub struct DryRunDoc<'a> {
    pub schema: &'static str,
    pub op: &'static str,
    pub volume: Option<VolumeDoc<'a>>,
    pub effect: &'a str,
}

/// The first line of a list of extents.
#[derive(Serialize)]
pub struct ExtentsDoc<'a> {
    pub schema: &'static str,
    pub volume: &'a str,
    pub changed_since: Option<&'a str>,
    pub offset: u64,
    pub length: u64,
    pub grade: String,
    pub granularity: u64,
}

/// One extent.
#[derive(Serialize)]
pub struct ExtentDoc {
    pub schema: &'static str,
    pub offset: u64,
    pub length: u64,
}

/// The last line of a list of extents: without it the list is not whole.
#[derive(Serialize)]
pub struct ExtentsEndDoc {
    pub schema: &'static str,
    pub count: u64,
    pub bytes: u64,
}

/// An import or export.
#[derive(Serialize)]
pub struct TransferDoc<'a> {
    pub schema: &'static str,
    pub volume: VolumeDoc<'a>,
    #[serde(serialize_with = "lossy")]
    pub file: &'a Path,
    pub format: &'static str,
    pub image_size: ByteSize,
    pub verified: bool,
    pub sha256: Option<&'a str>,
}

fn lossy<S: serde::Serializer>(path: &&Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

#[cfg(test)]
mod tests {
    use volmux::{OriginKind, VolumeName};

    use super::*;

    #[test]
    fn a_volume_has_this_shape() {
        let id: VolumeId = "00000000-0000-4000-8000-000000000001".parse().expect("id");
        let name = VolumeName::new("web-1").expect("name");
        let mut volume = Volume::new(name.clone(), id, ByteSize::gib(10));
        volume.created = UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001);
        volume.allocated = Some(ByteSize::ZERO);
        volume.origin = Some(Origin {
            kind: OriginKind::Snapshot,
            parent_id: id,
            parent_name: name,
        });
        let json = serde_json::to_string(&VolumeDoc::from(&volume)).expect("json");
        assert_eq!(
            json,
            "{\"schema\":\"volmux.volume.v1\",\"name\":\"web-1\",\
             \"id\":\"00000000-0000-4000-8000-000000000001\",\"virtual_size\":10737418240,\
             \"allocated\":0,\"exclusive\":null,\"fragments\":null,\"depth\":null,\
             \"provisioning\":\"thin\",\
             \"origin\":{\"kind\":\"snapshot\",\
             \"parent_id\":\"00000000-0000-4000-8000-000000000001\",\"parent_name\":\"web-1\"},\
             \"created\":\"2023-11-14T22:13:20.000001Z\",\"attachments\":[]}"
        );
    }

    #[test]
    fn times_that_rfc_3339_cannot_write_do_not_panic() {
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(rfc3339(before, false), "1970-01-01T00:00:00Z");
        let after = UNIX_EPOCH + Duration::from_secs(MAX_SECONDS + 5);
        assert_eq!(rfc3339(after, false), "9999-12-31T23:59:59Z");
    }
}
