//! The documents that `volmux --json` prints, as the core's types. `docs/json.md` describes them.

use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use volmux_core::{
    Access, AttachOptions, AttachTarget, Attachment, AuditReport, ByteSize, Capabilities,
    ChapReference, Finding, FindingKind, Grade, Holder, MetadataUsage, Origin, Provisioning,
    Sharing, ThinPolicy, Usage, Volume, VolumeId, VolumeName,
};

/// A document of one sort.
pub(super) trait Document: DeserializeOwned {
    /// What its `schema` says.
    const SCHEMA: &'static str;
}

/// The sort of a document.
#[derive(Debug, Deserialize)]
struct Head {
    schema: String,
}

/// The sort of the document in `line`; `None` if there is none.
pub(super) fn schema(line: &[u8]) -> Option<String> {
    let head: Head = serde_json::from_slice(line).ok()?;
    Some(head.schema)
}

/// Reads a document. Fields that are not known are left out.
///
/// # Errors
/// What is wrong with it, in a sentence.
pub(super) fn parse<T: Document>(line: &[u8]) -> Result<T, String> {
    match schema(line) {
        None => Err(format!("this is no document: {}", excerpt(line))),
        Some(schema) if schema != T::SCHEMA => {
            Err(format!("this is a {schema:?}, not a {}", T::SCHEMA))
        }
        Some(_) => serde_json::from_slice(line)
            .map_err(|error| format!("the {} is wrong: {error}: {}", T::SCHEMA, excerpt(line))),
    }
}

/// The beginning of what was printed, for people.
fn excerpt(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(&line[..line.len().min(400)]);
    let short: String = text.chars().take(120).collect();
    format!("{short:?}")
}

/// A field that may be null, but not missing.
fn nullable<'de, D, T>(source: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(source)
}

macro_rules! documents {
    ($($name:ty = $schema:literal;)*) => {
        $(impl Document for $name {
            const SCHEMA: &'static str = $schema;
        })*
    };
}

documents! {
    VolumeDoc = "volmux.volume.v1";
    PoolDoc = "volmux.pool.v1";
    AuditDoc = "volmux.audit.v1";
    CollectedDoc = "volmux.collected.v1";
    AttachmentDoc = "volmux.attachment.v1";
    DetachDoc = "volmux.detach.v1";
    DeleteDoc = "volmux.delete.v1";
    ExtentsDoc = "volmux.extents.v1";
    ExtentDoc = "volmux.extent.v1";
    ExtentsEndDoc = "volmux.extents_end.v1";
}

#[derive(Debug, Deserialize)]
pub(super) struct VolumeDoc {
    name: VolumeName,
    id: VolumeId,
    virtual_size: ByteSize,
    #[serde(deserialize_with = "nullable")]
    allocated: Option<ByteSize>,
    #[serde(deserialize_with = "nullable")]
    exclusive: Option<ByteSize>,
    #[serde(deserialize_with = "nullable")]
    fragments: Option<u64>,
    #[serde(deserialize_with = "nullable")]
    depth: Option<u64>,
    provisioning: Provisioning,
    #[serde(deserialize_with = "nullable")]
    origin: Option<Origin>,
    created: String,
    attachments: Vec<AttachedDoc>,
}

#[derive(Debug, Deserialize)]
struct AttachedDoc {
    holder: Holder,
    access: Access,
    sharing: Sharing,
}

impl VolumeDoc {
    pub(super) fn into_volume(self) -> Result<Volume, String> {
        let mut volume = Volume::new(self.name, self.id, self.virtual_size);
        volume.allocated = self.allocated;
        volume.exclusive = self.exclusive;
        volume.fragments = self.fragments;
        volume.depth = self.depth;
        volume.provisioning = self.provisioning;
        volume.origin = self.origin;
        volume.created = humantime::parse_rfc3339(&self.created)
            .map_err(|error| format!("{:?} is no time: {error}", self.created))?;
        let attached = |doc: AttachedDoc| AttachOptions {
            holder: doc.holder,
            access: doc.access,
            sharing: doc.sharing,
        };
        volume.attachments = self.attachments.into_iter().map(attached).collect();
        Ok(volume)
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct PoolDoc {
    /// As it displays itself there.
    pub(super) pool: String,
    pub(super) capabilities: Capabilities,
    usage: UsageDoc,
    policy: PolicyDoc,
}

#[derive(Debug, Deserialize)]
struct UsageDoc {
    total: ByteSize,
    used: ByteSize,
    free: ByteSize,
    provisioned: ByteSize,
    #[serde(deserialize_with = "nullable")]
    metadata: Option<MetadataDoc>,
    #[serde(deserialize_with = "nullable")]
    time_to_full_seconds: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct MetadataDoc {
    total: u64,
    used: u64,
}

#[derive(Debug, Deserialize)]
struct PolicyDoc {
    #[serde(deserialize_with = "nullable")]
    overcommit_limit: Option<f64>,
    warn_percent: f64,
    refuse_percent: f64,
}

impl PoolDoc {
    pub(super) fn usage(&self) -> Usage {
        let usage = &self.usage;
        Usage {
            total: usage.total,
            used: usage.used,
            free: usage.free,
            provisioned: usage.provisioned,
            metadata: usage.metadata.as_ref().map(|metadata| MetadataUsage {
                total: metadata.total,
                used: metadata.used,
            }),
            time_to_full: usage.time_to_full_seconds.map(Duration::from_secs),
        }
    }

    pub(super) fn policy(&self) -> Result<ThinPolicy, String> {
        let policy = &self.policy;
        ThinPolicy::from_settings(
            policy.overcommit_limit,
            Some(policy.warn_percent),
            Some(policy.refuse_percent),
        )
        .map_err(|error| error.to_string())
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct AuditDoc {
    clean: bool,
    volumes: u64,
    findings: Vec<FindingDoc>,
}

#[derive(Debug, Deserialize)]
struct FindingDoc {
    kind: FindingKind,
    object: String,
    detail: String,
    #[serde(deserialize_with = "nullable")]
    bytes: Option<ByteSize>,
    repaired: bool,
}

impl AuditDoc {
    /// `clean`: what the exit code said.
    pub(super) fn into_report(self, clean: bool) -> Result<AuditReport, String> {
        let finding = |doc: FindingDoc| Finding {
            kind: doc.kind,
            object: doc.object,
            detail: doc.detail,
            bytes: doc.bytes,
            repaired: doc.repaired,
        };
        let report = AuditReport {
            findings: self.findings.into_iter().map(finding).collect(),
            volumes: self.volumes,
        };
        match report.is_clean() == clean && self.clean == clean {
            true => Ok(report),
            false => Err("findings, exit code and what it says of being clean differ".into()),
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct CollectedDoc {
    pub(super) freed: ByteSize,
    pub(super) objects: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct DeleteDoc {
    pub(super) name: VolumeName,
}

#[derive(Debug, Deserialize)]
pub(super) struct DetachDoc {
    pub(super) name: VolumeName,
    pub(super) holder: Holder,
}

#[derive(Debug, Deserialize)]
pub(super) struct AttachmentDoc {
    name: VolumeName,
    id: VolumeId,
    holder: Holder,
    access: Access,
    kind: String,
    #[serde(deserialize_with = "nullable")]
    path: Option<PathBuf>,
    portal: Option<String>,
    target: Option<String>,
    lun: Option<u64>,
    serial: Option<String>,
}

impl AttachmentDoc {
    /// With the CHAP of this host, as that in the document names files on the other one.
    pub(super) fn into_attachment(
        self,
        chap: Option<ChapReference>,
        mutual_chap: Option<ChapReference>,
    ) -> Result<Attachment, String> {
        let missing = |field: &str| format!("an attachment of kind {:?} has no {field}", self.kind);
        let path = self.path.ok_or_else(|| missing("path"));
        let target = match self.kind.as_str() {
            "file" => AttachTarget::File { path: path? },
            "block-device" => AttachTarget::BlockDevice { path: path? },
            "qcow2" => AttachTarget::Qcow2 { path: path? },
            "iscsi" => AttachTarget::Iscsi {
                portal: self.portal.ok_or_else(|| missing("portal"))?,
                target: self.target.ok_or_else(|| missing("target"))?,
                lun: self.lun.ok_or_else(|| missing("lun"))?,
                serial: self.serial.ok_or_else(|| missing("serial"))?,
                chap,
                mutual_chap,
            },
            other => return Err(format!("attachments of kind {other:?} are not known here")),
        };
        Ok(Attachment {
            volume: self.name,
            id: self.id,
            holder: self.holder,
            access: self.access,
            target,
        })
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct ExtentsDoc {
    pub(super) volume: VolumeName,
    #[serde(deserialize_with = "nullable")]
    pub(super) changed_since: Option<VolumeName>,
    pub(super) offset: u64,
    pub(super) length: u64,
    grade: String,
    pub(super) granularity: u64,
}

impl ExtentsDoc {
    pub(super) fn grade(&self) -> Result<Grade, String> {
        match self.grade.as_str() {
            "exact" => Ok(Grade::Exact),
            "superset" => Ok(Grade::Superset),
            "allocated-only" => Ok(Grade::AllocatedOnly),
            other => Err(format!("grade {other:?} is not known here")),
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct ExtentDoc {
    pub(super) offset: u64,
    pub(super) length: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct ExtentsEndDoc {
    pub(super) count: u64,
    pub(super) bytes: u64,
}

/// `volmux.progress.v1`, on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct ProgressDoc {
    pub(super) done: u64,
    pub(super) total: u64,
}

/// `volmux.warning.v1`, on stderr.
#[derive(Debug, Deserialize)]
pub(super) struct WarningDoc {
    pub(super) message: String,
}

#[cfg(test)]
#[path = "documents_tests.rs"]
mod tests;
