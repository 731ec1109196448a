//! `volmux export`: volumes as NBD exports.

mod args;
mod listen;
mod status;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use serde::Serialize;
use volmux::{Access, AttachOptions, Error, ErrorKind, Holder, Result, Sharing, VolumeName};
use volmux_gateway::{
    Address, ClientCertificates, ExportOptions, Exports, ServeOptions, Server, Tls, serve,
};

use crate::app::App;
use crate::background::{Order, Running};

pub use args::ServeArgs;

const OP: &str = "export";

/// Serves until a signal comes, or shows the status of who does.
///
/// # Errors
/// Those of the arguments, of the pool, of listening, and of the last flush.
pub async fn run(app: &App, args: &ServeArgs, handed_over: ListenFd) -> Result<u8> {
    if let Some(address) = &args.status {
        return status::show(app, address).await;
    }
    let limits = args.limits.limits()?;
    let volumes = names(&args.volumes)?;
    let mut background = background(args)?;
    let options = ServeOptions {
        exports: exports(args, &volumes),
        listen: listen::listen(args, handed_over)?,
        tls: tls(app, args)?,
        statistics: listen::statistics(args)?,
        limits,
    };
    let result = serve_until_stopped(app, args, &volumes, options, background.as_mut()).await;
    if let Some(background) = background {
        background.ended(&result);
    }
    result.map(|()| 0)
}

async fn serve_until_stopped(
    app: &App,
    args: &ServeArgs,
    volumes: &[VolumeName],
    options: ServeOptions,
    background: Option<&mut Running>,
) -> Result<()> {
    let pool = app.pool().await?;
    let served = app.guard(OP, serve(pool, options)).await;
    let server = served.map_err(|error| match error.kind() {
        ErrorKind::InvalidInput if error.op() == "open_volume" && !args.read_only => {
            error.help("or serve it with --read-only")
        }
        _ => error,
    })?;
    let told = match background {
        Some(background) => tell(background, &volumes[0], &server).await,
        None => announce(app, args, volumes, &server),
    };
    if told.is_ok() {
        notify(NotifyState::Ready);
        app.cancel.cancelled().await;
        notify(NotifyState::Stopping);
    }
    let stopped = server.stop(args.limits.drain_time.into()).await;
    told.and(stopped)
}

/// Tells whoever started this in the background.
async fn tell(background: &mut Running, volume: &VolumeName, server: &Server) -> Result<()> {
    let holder = Holder::new(background.holder())?;
    let served = server.attachment(0, volume, holder).await?;
    background.ready(served.id)
}

/// Leaves whoever started this, and takes the file that tells of it.
fn background(args: &ServeArgs) -> Result<Option<Running>> {
    let (Some(path), Some(holder), Some(id), [volume]) =
        (&args.background, &args.holder, args.id, &args.volumes[..])
    else {
        return Ok(None);
    };
    rustix::process::setsid().map_err(|e| Error::from_io(OP, e.into()))?;
    let options = AttachOptions {
        holder: Holder::new(holder)?,
        access: access(args),
        sharing: sharing(args),
    };
    let order = Order::new(&VolumeName::new(volume)?, id, &options);
    Running::new(path, order).map(Some)
}

/// The volumes that are named, each once.
fn names(volumes: &[String]) -> Result<Vec<VolumeName>> {
    let mut names: Vec<VolumeName> = Vec::new();
    for volume in volumes {
        let name = VolumeName::new(volume)?;
        if names.contains(&name) {
            return Err(Error::new(ErrorKind::InvalidInput, OP)
                .with("volume", name)
                .reason("it is named twice"));
        }
        names.push(name);
    }
    Ok(names)
}

fn access(args: &ServeArgs) -> Access {
    match args.read_only {
        true => Access::ReadOnly,
        false => Access::ReadWrite,
    }
}

fn sharing(args: &ServeArgs) -> Sharing {
    match args.shared {
        true => Sharing::Shared,
        false => Sharing::Exclusive,
    }
}

fn exports(args: &ServeArgs, volumes: &[VolumeName]) -> Exports {
    let (access, sharing) = (access(args), sharing(args));
    if args.all {
        return Exports::EveryVolume { access, sharing };
    }
    let option = |volume: &VolumeName| ExportOptions {
        volume: volume.clone(),
        access,
        sharing,
    };
    Exports::Volumes(volumes.iter().map(option).collect())
}

fn tls(app: &App, args: &ServeArgs) -> Result<Option<Tls>> {
    let Some(directory) = &args.tls else {
        return Ok(None);
    };
    let clients = match args.tls_verify_clients {
        true => ClientCertificates::Required,
        false => ClientCertificates::NotAsked,
    };
    let tls = Tls::from_directory(directory, clients)?;
    if !args.tls_verify_clients {
        app.warn("without --tls-verify-clients, TLS keeps others from reading along, but lets anybody in");
    }
    Ok(Some(tls))
}

/// Where everything can be reached.
#[derive(Serialize)]
struct ServeDoc<'a> {
    schema: &'static str,
    addresses: Vec<String>,
    statistics: Option<String>,
    all: bool,
    exports: Vec<ExportDoc<'a>>,
    /// With `all`: what to ask for the list of exports.
    uris: Vec<String>,
}

#[derive(Serialize)]
struct ExportDoc<'a> {
    name: &'a str,
    uris: Vec<String>,
}

fn announce(app: &App, args: &ServeArgs, volumes: &[VolumeName], server: &Server) -> Result<()> {
    let uris = |volume: Option<&VolumeName>| -> Vec<String> {
        let of = |address: &Address| address.uri(volume, args.tls.is_some());
        server.addresses().iter().map(of).collect()
    };
    let document = ServeDoc {
        schema: "volmux.serve.v1",
        addresses: server.addresses().iter().map(Address::to_string).collect(),
        statistics: server.statistics_address().map(Address::to_string),
        all: args.all,
        exports: volumes
            .iter()
            .map(|volume| ExportDoc {
                name: volume.as_str(),
                uris: uris(Some(volume)),
            })
            .collect(),
        uris: uris(None),
    };
    app.out.show(&document, || match args.all {
        true => document.uris.join("\n"),
        false => {
            let all = document.exports.iter().map(|export| export.uris.join("\n"));
            all.collect::<Vec<_>>().join("\n")
        }
    })?;
    app.out.flush()
}

/// Tells systemd, if it started this program. That it can't be told is no reason to stop.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd could not be told");
    }
}
