//! Pools of arrays that targetd controls, against a service of our own that answers as targetd was
//! seen to, with a tgtd behind it where data flows. `real.rs` is for a targetd itself.

mod abilities;
mod array;
mod attaching;
mod auditing;
mod calls;
mod certificates;
mod copying;
mod data;
mod detaching;
mod opener;
mod real;
mod secrets;
mod server;
mod tgt;
mod trust;
mod volumes;

use std::sync::Arc;

use volmux_core::{
    Access, AttachOptions, AttachTarget, Attachment, ByteSize, CreateOptions, Error, ErrorKind,
    Holder, Pool, Result, Sharing, Volume, VolumeName,
};
use volmux_iscsi::targetd::TargetdPool;

use crate::opener::Closed;
use crate::server::Server;

const MIB: u64 = 1 << 20;
const ONE: &str = "iqn.2026-01.org.example:one";
const TWO: &str = "iqn.2026-01.org.example:two";

fn n(name: &str) -> VolumeName {
    VolumeName::new(name).expect("a name")
}

fn thin(mib: u64) -> CreateOptions {
    CreateOptions::thin(ByteSize::mib(mib))
}

fn holder(name: &str) -> Holder {
    Holder::new(name).expect("a holder")
}

fn attach(initiator: &str, access: Access) -> AttachOptions {
    AttachOptions {
        holder: holder(initiator),
        access,
        sharing: Sharing::Exclusive,
    }
}

fn lun(attachment: &Attachment) -> u64 {
    match &attachment.target {
        AttachTarget::Iscsi { lun, .. } => *lun,
        other => panic!("{other:?}"),
    }
}

/// The error, which has to be of this kind and to name these.
#[track_caller]
fn fails<T: std::fmt::Debug>(
    result: Result<T>,
    kind: ErrorKind,
    op: &str,
    names: &[&str],
) -> Error {
    let error = result.expect_err("it has to fail");
    assert_eq!((error.kind(), error.op()), (kind, op), "{error:?}");
    for name in names {
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
    error
}

/// A pool of `server` of which nothing is opened.
async fn pool(server: &Server) -> Arc<TargetdPool> {
    let pool = TargetdPool::open(server.config(), Arc::new(Closed)).await;
    pool.expect("it opens")
}

async fn create(pool: &TargetdPool, name: &str, mib: u64) -> Volume {
    let made = pool.create_volume(&n(name), thin(mib)).await;
    made.expect("created")
}
