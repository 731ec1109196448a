//! Clause 2 for attach and detach, and what an attachment is.

use super::*;
use crate::host::HostDisk;
use volmux::{Access, AttachOptions, AttachTarget, Attachment, ErrorKind, Holder, Result, Sharing};

pub(super) fn holder(name: &str) -> Holder {
    Holder::new(name).expect("a good holder")
}

pub(super) fn exclusive(host: &str) -> AttachOptions {
    AttachOptions {
        holder: holder(host),
        access: Access::ReadWrite,
        sharing: Sharing::Exclusive,
    }
}

pub(super) async fn attach(ctx: &Ctx<'_>, name: &str, host: &str) -> Result<Attachment> {
    let options = exclusive(host);
    ctx.pool().attach_volume(&n(name), options).await
}

pub(super) async fn detach(ctx: &Ctx<'_>, name: &str, host: &str) {
    let detached = ctx.pool().detach_volume(&n(name), &holder(host)).await;
    detached.expect("detach");
}

pub(crate) async fn c02_attach_can_be_repeated(ctx: &Ctx<'_>) {
    let volume = ctx.create("a", MIB).await;
    let first = attach(ctx, "a", "iqn.2026-11.org.volmux:host-1")
        .await
        .expect("attach");
    let again = attach(ctx, "a", "iqn.2026-11.org.volmux:host-1")
        .await
        .expect("attach again");
    assert_eq!(again, first);
    assert_eq!(first.volume.as_str(), "a");
    assert_eq!(first.id, volume.id, "the serial number is the volume's id");
    assert_eq!(first.holder, holder("iqn.2026-11.org.volmux:host-1"));
    assert_eq!(first.access, Access::ReadWrite);
    detach(ctx, "a", "iqn.2026-11.org.volmux:host-1").await;
}

pub(crate) async fn c02_attach_with_other_options_is_refused(ctx: &Ctx<'_>) {
    ctx.create("a", MIB).await;
    attach(ctx, "a", "iqn.2026-11.org.volmux:host-1")
        .await
        .expect("attach");
    let before = ctx.state().await;
    for (access, sharing) in [
        (Access::ReadOnly, Sharing::Exclusive),
        (Access::ReadWrite, Sharing::Shared),
    ] {
        let options = AttachOptions {
            access,
            sharing,
            ..exclusive("iqn.2026-11.org.volmux:host-1")
        };
        let result = ctx.pool().attach_volume(&n("a"), options).await;
        ctx.refused(result, ErrorKind::Busy, "attach_volume", "a", &before)
            .await;
    }
    detach(ctx, "a", "iqn.2026-11.org.volmux:host-1").await;
}

pub(crate) async fn c02_detach_can_be_repeated(ctx: &Ctx<'_>) {
    ctx.create("a", MIB).await;
    detach(ctx, "a", "iqn.2026-11.org.volmux:host-1").await;
    attach(ctx, "a", "iqn.2026-11.org.volmux:host-1")
        .await
        .expect("attach");
    detach(ctx, "a", "iqn.2026-11.org.volmux:host-2").await;
    let busy = ctx.pool().delete_volume(&n("a")).await;
    assert_error(busy, ErrorKind::Busy, "delete_volume", "a");
    detach(ctx, "a", "iqn.2026-11.org.volmux:host-1").await;
    detach(ctx, "a", "iqn.2026-11.org.volmux:host-1").await;
    ctx.delete("a").await;
    detach(ctx, "a", "iqn.2026-11.org.volmux:host-1").await;
    detach(ctx, "missing", "iqn.2026-11.org.volmux:host-1").await;
}

pub(crate) async fn c09_an_attachment_leads_to_the_volumes_data(ctx: &Ctx<'_>) {
    let data = ctx.filled("a", MIB, 1).await;
    let attached = attach(ctx, "a", "iqn.2026-11.org.volmux:host-1")
        .await
        .expect("attach");
    if matches!(attached.target, AttachTarget::Qcow2 { .. }) {
        panic!("a volume without snapshots and clones is not an image: {attached:?}");
    }
    let disk = HostDisk::open(&attached).await;
    assert_same(&disk.read_all().await, &data, "what the host sees");
    disk.write_at_start(pattern(2, 4096)).await;
    disk.close().await;
    detach(ctx, "a", "iqn.2026-11.org.volmux:host-1").await;
    let found = ctx.read("a").await;
    assert_same(&found[..4096], &pattern(2, 4096), "what the host wrote");
    assert_same(&found[4096..], &data[4096..], "the rest");
}

pub(crate) async fn c09_an_attachment_lasts_beyond_the_handle(ctx: &Ctx<'_>) {
    ctx.create("a", MIB).await;
    attach(ctx, "a", "iqn.2026-11.org.volmux:host-1")
        .await
        .expect("attach");
    let other = ctx.other_handle().await;
    let result = other
        .attach_volume(&n("a"), exclusive("iqn.2026-11.org.volmux:host-2"))
        .await;
    assert_error(result, ErrorKind::Busy, "attach_volume", "a");
    let result = other.delete_volume(&n("a")).await;
    assert_error(result, ErrorKind::Busy, "delete_volume", "a");
    let detached = other
        .detach_volume(&n("a"), &holder("iqn.2026-11.org.volmux:host-1"))
        .await;
    detached.expect("detach through another handle");
    attach(ctx, "a", "iqn.2026-11.org.volmux:host-2")
        .await
        .expect("free again");
    detach(ctx, "a", "iqn.2026-11.org.volmux:host-2").await;
}

pub(crate) async fn c09_an_attachment_follows_a_rename(ctx: &Ctx<'_>) {
    ctx.create("a", MIB).await;
    attach(ctx, "a", "iqn.2026-11.org.volmux:host-1")
        .await
        .expect("attach");
    let renamed = ctx.pool().rename_volume(&n("a"), &n("b")).await;
    renamed.expect("rename while attached");
    let busy = ctx.pool().delete_volume(&n("b")).await;
    assert_error(busy, ErrorKind::Busy, "delete_volume", "b");
    detach(ctx, "b", "iqn.2026-11.org.volmux:host-1").await;
    ctx.delete("b").await;
}
