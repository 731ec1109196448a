//! Making volumes reachable for a host, and ending that.

use std::path::Path;

use volmux::hypervisor::{Descriptor, Hypervisor, RenderOptions};
use volmux::{
    Access, AttachOptions, AttachTarget, Attachment, Error, ErrorKind, Holder, NbdAddress, Pool,
    Result, Sharing, VolumeName,
};

use crate::app::App;
use crate::args::{AttachArgs, DetachArgs};
use crate::background::{self, Order};
use crate::output::{AttachmentDoc, DetachDoc};

/// Attaches a volume, and shows where it is, or what a hypervisor must be given.
///
/// # Errors
/// `InvalidInput` for a wrong name or holder; those of rendering and of the pool.
pub async fn attach(app: &App, args: &AttachArgs) -> Result<u8> {
    let name = VolumeName::new(&args.name)?;
    let options = AttachOptions {
        holder: holder(args.holder.as_deref())?,
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
    let rendering = args.render.options(args.shared);
    if let Some(hypervisor) = args.render.hypervisor {
        hypervisor.check(options.access, &rendering)?;
    }
    let pool = app.pool().await?;
    let rendering = args
        .render
        .hypervisor
        .map(|for_whom| (for_whom, &rendering));
    match &args.gateway {
        Some(socket) => serve(app, pool.as_ref(), &name, &options, socket, rendering).await,
        None => attach_to_pool(app, pool.as_ref(), &name, options, rendering).await,
    }
}

/// A hypervisor, and how to tell it.
type Rendering<'a> = Option<(Hypervisor, &'a RenderOptions)>;

/// Attaches a volume, and shows it. What can't be rendered is not left attached, unless it was so
/// before.
async fn attach_to_pool(
    app: &App,
    pool: &dyn Pool,
    name: &VolumeName,
    options: AttachOptions,
    rendering: Rendering<'_>,
) -> Result<u8> {
    let holder = options.holder.clone();
    // Only rendering may fail after it is attached.
    let had_it = match rendering {
        None => true,
        Some(_) => {
            let before = app.guard("volume", pool.volume(name)).await?;
            before.attachments.iter().any(|a| a.holder == holder)
        }
    };
    let attached = app.guard("attach_volume", pool.attach_volume(name, options));
    let attached = attached.await.map_err(|error| match error.kind() {
        ErrorKind::Unsupported => error.help(format!(
            "or have it served from this host: volmux attach {name} {holder} --gateway \
             /run/volmux/{name}.sock"
        )),
        _ => error,
    })?;
    let error = match rendered(&attached, rendering) {
        Ok(rendered) => return show(app, &attached, rendered.as_ref()),
        Err(error) if had_it => return Err(error),
        Err(error) => error,
    };
    // Without the guard: it is short, and a signal must not leave the volume attached.
    match pool.detach_volume(name, &holder).await {
        Ok(()) => Err(error),
        Err(left) => Err(error
            .with("still_attached_to", holder)
            .with("detaching", left)),
    }
}

/// Has a volume served over NBD, and shows where.
async fn serve(
    app: &App,
    pool: &dyn Pool,
    name: &VolumeName,
    options: &AttachOptions,
    socket: &Path,
    rendering: Rendering<'_>,
) -> Result<u8> {
    let socket = std::path::absolute(socket).map_err(|e| Error::from_io("start_gateway", e))?;
    let volume = app.guard("volume", pool.volume(name)).await?;
    let attached = Attachment {
        volume: name.clone(),
        id: volume.id,
        holder: options.holder.clone(),
        access: options.access,
        target: AttachTarget::Nbd {
            address: NbdAddress::Unix {
                path: socket.clone(),
            },
            export: name.to_string(),
            tls: false,
        },
    };
    // Before: then nothing has to be undone if it can't be said.
    let rendered = rendered(&attached, rendering)?;
    match background::start(app, &socket, &Order::new(name, volume.id, options)).await? {
        0 => show(app, &attached, rendered.as_ref()),
        code => Ok(code),
    }
}

fn rendered(attached: &Attachment, rendering: Rendering<'_>) -> Result<Option<Descriptor>> {
    let rendered = rendering.map(|(for_whom, options)| attached.render(for_whom, options));
    rendered.transpose()
}

fn show(app: &App, attached: &Attachment, rendered: Option<&Descriptor>) -> Result<u8> {
    let document = AttachmentDoc::from(attached);
    if let Some(rendered) = rendered {
        let document = document.with_rendered(rendered);
        app.out.show(&document, || rendered.text.clone())?;
        return Ok(0);
    }
    app.out.show(&document, || path(attached))?;
    if let Some(text) = format_text(attached).filter(|_| !app.out.json()) {
        app.warn(&text);
    }
    Ok(0)
}

/// The holder that is named, or this host.
fn holder(named: Option<&str>) -> Result<Holder> {
    match named {
        Some(holder) => Holder::new(holder),
        None => {
            let host = rustix::system::uname();
            Holder::new(host.nodename().to_string_lossy()).map_err(|error| {
                error.help("this host's name is none: name the holder (volmux attach NAME HOLDER)")
            })
        }
    }
}

/// The path or the URL alone, for scripts.
fn path(attached: &Attachment) -> String {
    match &attached.target {
        AttachTarget::File { path }
        | AttachTarget::BlockDevice { path }
        | AttachTarget::Qcow2 { path } => path.display().to_string(),
        // As libiscsi and QEMU write it.
        AttachTarget::Iscsi {
            portal,
            target,
            lun,
            ..
        } => format!("iscsi://{portal}/{target}/{lun}"),
        AttachTarget::Nbd {
            address,
            export,
            tls,
        } => address.uri(export, *tls),
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
pub async fn detach(app: &App, args: &DetachArgs) -> Result<u8> {
    let (name, holder) = (
        VolumeName::new(&args.name)?,
        holder(args.holder.as_deref())?,
    );
    if let Some(socket) = &args.gateway {
        let socket = std::path::absolute(socket).map_err(|e| Error::from_io("stop_gateway", e))?;
        background::stop(app, &socket, name.as_str(), holder.as_str()).await?;
    } else {
        let pool = app.pool().await?;
        app.guard("detach_volume", pool.detach_volume(&name, &holder))
            .await?;
    }
    let document = DetachDoc {
        schema: "volmux.detach.v1",
        name: name.as_str(),
        holder: holder.as_str(),
    };
    app.out
        .show(&document, || format!("{name} is not attached to {holder}"))?;
    Ok(0)
}
