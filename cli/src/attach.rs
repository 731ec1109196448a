//! Making volumes reachable for a host, and ending that.

use volmux::{
    Access, AttachOptions, AttachTarget, Attachment, Holder, Result, Sharing, VolumeName,
};

use crate::app::App;
use crate::args::AttachArgs;
use crate::output::{AttachmentDoc, DetachDoc};

/// Attaches a volume, and shows where it is.
///
/// # Errors
/// `InvalidInput` for a wrong name or holder; those of the pool.
pub async fn attach(app: &App, args: &AttachArgs) -> Result<u8> {
    let name = VolumeName::new(&args.name)?;
    let options = AttachOptions {
        holder: Holder::new(&args.holder)?,
        access: if args.read_only {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        },
        sharing: if args.shared {
            Sharing::Shared
        } else {
            Sharing::Exclusive
        },
    };
    let pool = app.pool().await?;
    let attached = app
        .guard("attach_volume", pool.attach_volume(&name, options))
        .await?;
    app.out
        .show(&AttachmentDoc::from(&attached), || path(&attached))?;
    if let Some(text) = format_text(&attached).filter(|_| !app.out.json()) {
        app.warn(&text);
    }
    Ok(0)
}

/// The path alone, for scripts.
fn path(attached: &Attachment) -> String {
    match &attached.target {
        AttachTarget::File { path }
        | AttachTarget::BlockDevice { path }
        | AttachTarget::Qcow2 { path } => path.display().to_string(),
        // Kinds that later versions may add.
        other => format!("{other:?}"),
    }
}

/// What the path alone does not tell: a guest that is given an image as raw destroys it.
fn format_text(attached: &Attachment) -> Option<String> {
    matches!(attached.target, AttachTarget::Qcow2 { .. }).then(|| {
        format!(
            "{} is a qcow2 image: open it with format qcow2, given explicitly",
            attached.volume
        )
    })
}

/// Ends an attachment.
///
/// # Errors
/// Those of the pool.
pub async fn detach(app: &App, name: &str, holder: &str) -> Result<u8> {
    let (name, holder) = (VolumeName::new(name)?, Holder::new(holder)?);
    let pool = app.pool().await?;
    app.guard("detach_volume", pool.detach_volume(&name, &holder))
        .await?;
    let document = DetachDoc {
        schema: "volmux.detach.v1",
        name: name.as_str(),
        holder: holder.as_str(),
    };
    app.out
        .show(&document, || format!("{name} is not attached to {holder}"))?;
    Ok(0)
}
