//! Enumerations. Their numbers are never given another meaning. As inputs they are `uint32_t`, for
//! a C program can give any number.

use volmux::{
    Access, AttachTarget, FindingKind, Grade, OriginKind, Pressure, Provisioning, Sharing, Support,
    Volume,
};

/// How a pool does something.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmx_support {
    /// Not at all: the call returns `VMX_UNSUPPORTED` and changes nothing.
    VMX_SUPPORT_NONE = 0,
    /// With the same result, by moving or comparing data: cost grows with it.
    VMX_SUPPORT_EMULATED = 1,
    /// By the store itself.
    VMX_SUPPORT_NATIVE = 2,
}

impl From<Support> for vmx_support {
    fn from(support: Support) -> Self {
        match support {
            Support::None => vmx_support::VMX_SUPPORT_NONE,
            Support::Emulated => vmx_support::VMX_SUPPORT_EMULATED,
            Support::Native => vmx_support::VMX_SUPPORT_NATIVE,
        }
    }
}

/// How space is taken.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmx_provisioning {
    /// When it is first written.
    VMX_THIN = 0,
    /// All at creation: a later write cannot fail for lack of it.
    VMX_THICK = 1,
}

pub(crate) const PROVISIONING: [Provisioning; 2] = [Provisioning::Thin, Provisioning::Thick];

impl From<Provisioning> for vmx_provisioning {
    fn from(provisioning: Provisioning) -> Self {
        match provisioning {
            Provisioning::Thin => vmx_provisioning::VMX_THIN,
            Provisioning::Thick => vmx_provisioning::VMX_THICK,
        }
    }
}

/// For reading only, or for writing too.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmx_access {
    /// Reading only.
    VMX_READ_ONLY = 0,
    /// Reading and writing.
    VMX_READ_WRITE = 1,
}

pub(crate) const ACCESS: [Access; 2] = [Access::ReadOnly, Access::ReadWrite];

impl From<Access> for vmx_access {
    fn from(access: Access) -> Self {
        match access {
            Access::ReadOnly => vmx_access::VMX_READ_ONLY,
            Access::ReadWrite => vmx_access::VMX_READ_WRITE,
        }
    }
}

/// Whether other writers are let in.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmx_sharing {
    /// One writer.
    VMX_EXCLUSIVE = 0,
    /// Several writers, who all ask for it and arrange their writes among themselves.
    VMX_SHARED = 1,
}

pub(crate) const SHARING: [Sharing; 2] = [Sharing::Exclusive, Sharing::Shared];

impl From<Sharing> for vmx_sharing {
    fn from(sharing: Sharing) -> Self {
        match sharing {
            Sharing::Exclusive => vmx_sharing::VMX_EXCLUSIVE,
            Sharing::Shared => vmx_sharing::VMX_SHARED,
        }
    }
}

/// How a volume came from another one.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmx_origin {
    /// It did not: it was created or adopted.
    VMX_ORIGIN_NONE = 0,
    /// A read-only image of its parent at one moment.
    VMX_ORIGIN_SNAPSHOT = 1,
    /// A writable volume that started with its parent's content and shares its blocks.
    VMX_ORIGIN_CLONE = 2,
    /// A full, independent duplicate.
    VMX_ORIGIN_COPY = 3,
}

impl From<&Volume> for vmx_origin {
    fn from(volume: &Volume) -> Self {
        match volume.origin.as_ref().map(|origin| origin.kind) {
            None => vmx_origin::VMX_ORIGIN_NONE,
            Some(OriginKind::Snapshot) => vmx_origin::VMX_ORIGIN_SNAPSHOT,
            Some(OriginKind::Clone) => vmx_origin::VMX_ORIGIN_CLONE,
            Some(OriginKind::Copy) => vmx_origin::VMX_ORIGIN_COPY,
        }
    }
}

/// How near to its limits a pool is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmx_pressure {
    /// Below every mark.
    VMX_PRESSURE_NORMAL = 0,
    /// At or past the warn mark.
    VMX_PRESSURE_WARN = 1,
    /// At or past the refuse mark: nothing new is made.
    VMX_PRESSURE_REFUSE = 2,
}

impl From<Pressure> for vmx_pressure {
    fn from(pressure: Pressure) -> Self {
        match pressure {
            Pressure::Normal => vmx_pressure::VMX_PRESSURE_NORMAL,
            Pressure::Warn => vmx_pressure::VMX_PRESSURE_WARN,
            Pressure::Refuse => vmx_pressure::VMX_PRESSURE_REFUSE,
        }
    }
}

/// How much extents can be relied on. Never is one left out.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmx_grade {
    /// Exactly the blocks (of the granularity) that are asked for.
    VMX_GRADE_EXACT = 0,
    /// All of them, and possibly others.
    VMX_GRADE_SUPERSET = 1,
    /// The pool cannot tell what changed: these are all allocated extents of both volumes.
    VMX_GRADE_ALLOCATED_ONLY = 2,
}

impl From<Grade> for vmx_grade {
    fn from(grade: Grade) -> Self {
        match grade {
            Grade::Exact => vmx_grade::VMX_GRADE_EXACT,
            Grade::Superset => vmx_grade::VMX_GRADE_SUPERSET,
            Grade::AllocatedOnly => vmx_grade::VMX_GRADE_ALLOCATED_ONLY,
        }
    }
}

/// What a host finds where a volume is attached.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmx_target {
    /// Something that this version of the library has no word for.
    VMX_TARGET_OTHER = 0,
    /// A file with the raw image.
    VMX_TARGET_FILE = 1,
    /// A block device.
    VMX_TARGET_BLOCK_DEVICE = 2,
    /// A file with a qcow2 image; the files below it lie beside it, and its header names them. Open
    /// it with format qcow2 given explicitly, never probed.
    VMX_TARGET_QCOW2 = 3,
    /// A logical unit of an iSCSI target, which the holder's initiator logs in to.
    VMX_TARGET_ISCSI = 4,
    /// An export of an NBD server. Its content is raw.
    VMX_TARGET_NBD = 5,
}

impl From<&AttachTarget> for vmx_target {
    fn from(target: &AttachTarget) -> Self {
        match target {
            AttachTarget::File { .. } => vmx_target::VMX_TARGET_FILE,
            AttachTarget::BlockDevice { .. } => vmx_target::VMX_TARGET_BLOCK_DEVICE,
            AttachTarget::Qcow2 { .. } => vmx_target::VMX_TARGET_QCOW2,
            AttachTarget::Iscsi { .. } => vmx_target::VMX_TARGET_ISCSI,
            AttachTarget::Nbd { .. } => vmx_target::VMX_TARGET_NBD,
            _ => vmx_target::VMX_TARGET_OTHER,
        }
    }
}

/// What sort of thing an audit found.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmx_finding {
    /// Something that this version of the library has no word for.
    VMX_FINDING_OTHER = 0,
    /// Left by interrupted work; belongs to no volume. Repair removes it.
    VMX_FINDING_LEFTOVER = 1,
    /// Half-done work of which one side is already in effect. Repair finishes it.
    VMX_FINDING_UNFINISHED = 2,
    /// A volume that cannot be used. Repair leaves it alone, for a person to look at.
    VMX_FINDING_DAMAGED = 3,
    /// Something in the pool's place that volmux did not make. Repair leaves it alone.
    VMX_FINDING_FOREIGN = 4,
}

impl From<FindingKind> for vmx_finding {
    fn from(kind: FindingKind) -> Self {
        match kind {
            FindingKind::Leftover => vmx_finding::VMX_FINDING_LEFTOVER,
            FindingKind::Unfinished => vmx_finding::VMX_FINDING_UNFINISHED,
            FindingKind::Damaged => vmx_finding::VMX_FINDING_DAMAGED,
            FindingKind::Foreign => vmx_finding::VMX_FINDING_FOREIGN,
            _ => vmx_finding::VMX_FINDING_OTHER,
        }
    }
}
