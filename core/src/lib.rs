//! The heart of volmux: what a pool and a volume are, on every kind of storage.
//!
//! [`Pool`] is what a backend implements and a program uses; [`BlockDevice`] is an open volume.
//! [`Registry`] turns a URL into a pool. [`memory`] is the reference backend, which defines what
//! every other one does. [`hypervisor`] renders what is attached for QEMU and others, and [`group`] takes
//! snapshots of several volumes at one moment. [`layers`] wrap any pool; [`blocking`] is for programs
//! without async.

mod attach;
mod audit;
pub mod blocking;
mod buffer;
mod capability;
mod control;
mod device;
mod error;
mod extent;
pub mod group;
pub mod hypervisor;
pub mod layers;
pub mod memory;
mod pool;
mod registry;
mod size;
pub mod transfer;
mod turns;
mod usage;
mod volume;

pub use attach::{
    Access, AttachOptions, AttachTarget, Attachment, ChapReference, Holder, NbdAddress, Sharing,
};
pub use audit::{AuditOptions, AuditReport, Collected, Finding, FindingKind};
pub use buffer::Buffer;
pub use capability::{Capabilities, Support};
pub use control::{Control, Progress};
pub use device::{BlockDevice, ZeroOptions};
pub use error::{Error, ErrorKind, Result};
pub use extent::{ExtentKind, ExtentQuery, ExtentStream, Grade};
pub use pool::{
    CloneOptions, CopyOptions, CreateOptions, FlattenOptions, OpenOptions, Pool, PoolExt,
    ResizeOptions, RevertOptions, SnapshotOptions,
};
pub use registry::{Backend, PoolUrl, Registry};
pub use size::{ByteRange, ByteSize};
pub use turns::{Names, Turns};
pub use usage::{MetadataUsage, Pressure, SpaceRequest, ThinPolicy, Usage};
pub use volume::{Origin, OriginKind, Provisioning, Volume, VolumeId, VolumeName};
