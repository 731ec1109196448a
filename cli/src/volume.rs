//! `volmux volume …`: what makes, shows and renames volumes.

use futures::StreamExt;
use volmux::{
    ByteSize, CloneOptions, CopyOptions, CreateOptions, FlattenOptions, OpenOptions, Pool, PoolExt,
    Provisioning, Result, SnapshotOptions, Volume, VolumeName,
};

use crate::app::App;
use crate::args::{SortKey, VolumeCommand};
use crate::output::{VolumeDoc, fragments_text, list_heading, list_line, made_line, volume_text};
use crate::{attach, destroy, export, extents, group, import};

/// Runs a volume command and gives the exit code.
///
/// # Errors
/// Those of the pool.
pub async fn run(app: &App, command: VolumeCommand) -> Result<u8> {
    use VolumeCommand as C;
    match command {
        C::Create { name, size, thick } => create(app, &name, &size, thick).await,
        C::List { sort } => list(app, sort).await,
        C::Info { name } => info(app, &name).await,
        C::Resize {
            name,
            size,
            shrink,
            dry_run,
        } => destroy::resize(app, &name, &size, shrink, dry_run).await,
        C::Rename { name, to } => rename(app, &name, &to).await,
        C::Delete { names, dry_run } => destroy::delete(app, &names, dry_run).await,
        C::Snapshot { source, name } => snapshot(app, &source, &name).await,
        C::SnapshotGroup(args) => group::run(app, &args).await,
        C::Clone { source, name } => clone(app, &source, &name).await,
        C::Revert {
            name,
            snapshot,
            dry_run,
        } => destroy::revert(app, &name, &snapshot, dry_run).await,
        C::Flatten { name } => flatten(app, &name).await,
        C::TakeOver { name } => take_over(app, &name).await,
        C::Copy { source, name, to } => copy(app, &source, &name, to.as_deref()).await,
        C::Extents {
            name,
            changed_since,
            offset,
            length,
        } => {
            let range = (offset.as_deref(), length.as_deref());
            extents::run(app, &name, changed_since.as_deref(), range).await
        }
        C::Import(args) => import::run(app, &args).await,
        C::Export(args) => export::run(app, &args).await,
        C::Attach(args) => attach::attach(app, &args).await,
        C::Detach(args) => attach::detach(app, &args).await,
        C::Adopt { what, name } => adopt(app, &what, &name).await,
    }
}

/// The provisioning that `--thick` asks for.
pub fn provisioning(thick: bool) -> Provisioning {
    if thick {
        Provisioning::Thick
    } else {
        Provisioning::Thin
    }
}

/// Shows a volume that was made or changed, and warns if its pool fills up.
///
/// # Errors
/// Those of printing.
pub async fn show_made(app: &App, pool: &dyn Pool, verb: &str, volume: &Volume) -> Result<u8> {
    app.out.show(&VolumeDoc::from(volume), || {
        format!("{verb} {}", made_line(volume))
    })?;
    app.warn_of_pressure(pool).await;
    Ok(0)
}

async fn create(app: &App, name: &str, size: &str, thick: bool) -> Result<u8> {
    let name = app.new_name(name)?;
    let options = CreateOptions {
        size: size.parse()?,
        provisioning: provisioning(thick),
    };
    let pool = app.pool().await?;
    let volume = app
        .guard("create_volume", pool.create_volume(&name, options))
        .await?;
    show_made(app, pool.as_ref(), "created", &volume).await
}

async fn info(app: &App, name: &str) -> Result<u8> {
    let name = VolumeName::new(name)?;
    let pool = app.pool().await?;
    let volume = app.guard("volume", pool.volume(&name)).await?;
    app.out
        .show(&VolumeDoc::from(&volume), || volume_text(&volume))?;
    if let Some(text) = fragments_text(&volume) {
        app.warn(&text);
    }
    Ok(0)
}

async fn rename(app: &App, name: &str, to: &str) -> Result<u8> {
    let (name, to) = (VolumeName::new(name)?, app.new_name(to)?);
    let pool = app.pool().await?;
    let volume = app
        .guard("rename_volume", pool.rename_volume(&name, &to))
        .await?;
    app.out.show(&VolumeDoc::from(&volume), || {
        format!("renamed {name} to {}", volume.name)
    })?;
    Ok(0)
}

async fn adopt(app: &App, what: &str, name: &str) -> Result<u8> {
    let name = app.new_name(name)?;
    let pool = app.pool().await?;
    let volume = app
        .guard("adopt_volume", pool.adopt_volume(what, &name))
        .await?;
    show_made(app, pool.as_ref(), "adopted", &volume).await
}

/// Whoever wrote it fails from now on; what was flushed there, or is in a journal here, is kept.
async fn take_over(app: &App, name: &str) -> Result<u8> {
    let name = VolumeName::new(name)?;
    let pool = app.pool().await?;
    let options = OpenOptions {
        take_over: true,
        ..OpenOptions::read_write()
    };
    let device = pool.open_volume(&name, options).await?;
    device.flush().await?;
    drop(device);
    let volume = pool.volume(&name).await?;
    show_made(app, pool.as_ref(), "took over", &volume).await
}

async fn snapshot(app: &App, source: &str, name: &str) -> Result<u8> {
    let (source, name) = (VolumeName::new(source)?, app.new_name(name)?);
    let pool = app.pool().await?;
    let (bar, control) = app.progress("snapshot");
    let volume = pool
        .snapshot_volume(&source, &name, SnapshotOptions { control })
        .await?;
    drop(bar);
    show_made(app, pool.as_ref(), "created", &volume).await
}

async fn clone(app: &App, source: &str, name: &str) -> Result<u8> {
    let (source, name) = (VolumeName::new(source)?, app.new_name(name)?);
    let pool = app.pool().await?;
    let (bar, control) = app.progress("clone");
    let volume = pool
        .clone_volume(&source, &name, CloneOptions { control })
        .await?;
    drop(bar);
    show_made(app, pool.as_ref(), "created", &volume).await
}

async fn copy(app: &App, source: &str, name: &str, to: Option<&str>) -> Result<u8> {
    let (source, name) = (VolumeName::new(source)?, app.new_name(name)?);
    let pool = app.pool().await?;
    let target = match to {
        Some(to) => app.named_pool(to).await?,
        None => pool.clone(),
    };
    let (bar, control) = app.progress("copy");
    let options = CopyOptions { control };
    let volume = match to {
        Some(_) => {
            pool.copy_volume_to(&source, target.as_ref(), &name, options)
                .await?
        }
        None => pool.copy_volume(&source, &name, options).await?,
    };
    drop(bar);
    show_made(app, target.as_ref(), "created", &volume).await
}

async fn flatten(app: &App, name: &str) -> Result<u8> {
    let name = VolumeName::new(name)?;
    let pool = app.pool().await?;
    let (bar, control) = app.progress("flatten");
    let volume = pool
        .flatten_volume(&name, FlattenOptions { control })
        .await?;
    drop(bar);
    show_made(app, pool.as_ref(), "flattened", &volume).await
}

/// Prints each volume as it comes, or sorted. One that can't be read is told of and does not stop
/// the others; the exit code is that of the first such error.
async fn list(app: &App, sort: Option<SortKey>) -> Result<u8> {
    let pool = app.pool().await?;
    let mut stream = pool.list_volumes();
    let mut code = 0;
    let mut kept = Vec::new();
    if !app.out.json() {
        app.out.line(&list_heading())?;
    }
    let mut next = async || {
        app.guard("list_volumes", async { stream.next().await.transpose() })
            .await
    };
    while !app.out.is_closed() {
        match next().await {
            Ok(None) => break,
            Ok(Some(volume)) if sort.is_some() => kept.push(volume),
            Ok(Some(volume)) => list_item(app, &volume)?,
            Err(error) if app.cancel.is_cancelled() => return Err(error),
            Err(error) => {
                let own = app.report(&error);
                code = if code == 0 { own } else { code };
            }
        }
    }
    if let Some(key) = sort {
        sort_volumes(&mut kept, key);
        kept.iter().try_for_each(|volume| list_item(app, volume))?;
    }
    Ok(code)
}

fn list_item(app: &App, volume: &Volume) -> Result<()> {
    app.out.show(&VolumeDoc::from(volume), || list_line(volume))
}

fn sort_volumes(volumes: &mut [Volume], key: SortKey) {
    let size = |v: &Volume| v.virtual_size;
    volumes.sort_by(|a, b| {
        let by_key = match key {
            SortKey::Name => std::cmp::Ordering::Equal,
            SortKey::Size => ByteSize::cmp(&size(a), &size(b)),
            SortKey::Created => a.created.cmp(&b.created),
        };
        by_key.then_with(|| a.name.cmp(&b.name))
    });
}
