//! What destroys or replaces data: delete, revert, resize. Each can be tried without effect.

use volmux::{
    ByteSize, Error, ErrorKind, OpenOptions, OriginKind, Pool, PoolExt, Provisioning,
    ResizeOptions, Result, RevertOptions, SpaceRequest, Support, Volume, VolumeName,
};

use crate::app::App;
use crate::output::{DeleteDoc, DryRunDoc, VolumeDoc};
use crate::volume::show_made;

/// Deletes each of `names`; one that can't be deleted does not stop the others.
///
/// # Errors
/// `InvalidInput` for a wrong name, before anything is deleted; those of opening the pool.
pub async fn delete(app: &App, names: &[String], dry_run: bool) -> Result<u8> {
    let names: Vec<VolumeName> = names.iter().map(VolumeName::new).collect::<Result<_>>()?;
    let pool = app.pool().await?;
    let mut code = 0;
    for name in &names {
        if let Err(error) = delete_one(app, pool.as_ref(), name, dry_run).await {
            let own = app.report(&error);
            code = if code == 0 { own } else { code };
            if app.cancel.is_cancelled() {
                break;
            }
        }
    }
    Ok(code)
}

async fn delete_one(app: &App, pool: &dyn Pool, name: &VolumeName, dry_run: bool) -> Result<()> {
    let found = app.guard("delete_volume", pool.find_volume(name)).await;
    // A volume that can't be read can still be deleted.
    let existed = !matches!(found, Ok(None));
    if dry_run {
        let volume = found?;
        if let Some(volume) = &volume {
            check_not_in_use(app, pool, volume, "delete_volume").await?;
        }
        let effect = match &volume {
            Some(volume) => delete_effect(volume),
            None => "it does not exist: nothing would change".into(),
        };
        return plan(app, "delete_volume", name, volume.as_ref(), &effect);
    }
    app.guard("delete_volume", pool.delete_volume(name)).await?;
    let document = DeleteDoc {
        schema: "volmux.delete.v1",
        name: name.as_str(),
        existed,
    };
    app.out.show(&document, || match existed {
        true => format!("deleted {name}"),
        false => format!("{name} does not exist: nothing to delete"),
    })
}

fn delete_effect(volume: &Volume) -> String {
    match volume.exclusive.or(volume.allocated) {
        Some(freed) if volume.exclusive.is_some() => {
            format!("it would be deleted, which frees {freed}")
        }
        Some(freed) => format!("it would be deleted, which frees at most {freed}"),
        None => "it would be deleted".into(),
    }
}

/// Shows what would happen.
fn plan(
    app: &App,
    op: &'static str,
    name: &VolumeName,
    volume: Option<&Volume>,
    effect: &str,
) -> Result<()> {
    let document = DryRunDoc {
        schema: "volmux.dry_run.v1",
        op,
        volume: volume.map(VolumeDoc::from),
        effect,
    };
    app.out
        .show(&document, || format!("{name}: {effect} (dry run)"))
}

/// Fails as the real run would if somebody writes to `volume` or has it attached. Readers are not
/// seen this way.
async fn check_not_in_use(
    app: &App,
    pool: &dyn Pool,
    volume: &Volume,
    op: &'static str,
) -> Result<()> {
    let options = match volume.is_snapshot() {
        true => OpenOptions::read_only(),
        false => OpenOptions::read_write(),
    };
    app.guard(op, pool.open_volume(&volume.name, options))
        .await
        .map(drop)
}

fn invalid(op: &'static str, volume: &Volume, reason: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidInput, op)
        .with("volume", &volume.name)
        .reason(reason)
}

/// Puts `name` back to `snapshot`.
///
/// # Errors
/// Those of the pool.
pub async fn revert(app: &App, name: &str, snapshot: &str, dry_run: bool) -> Result<u8> {
    let (name, snapshot) = (VolumeName::new(name)?, VolumeName::new(snapshot)?);
    let pool = app.pool().await?;
    if dry_run {
        plan_revert(app, pool.as_ref(), &name, &snapshot).await?;
        return Ok(0);
    }
    let (bar, control) = app.progress("revert");
    let options = RevertOptions { control };
    let volume = pool.revert_volume(&name, &snapshot, options).await?;
    drop(bar);
    show_made(app, pool.as_ref(), "reverted", &volume).await
}

async fn plan_revert(
    app: &App,
    pool: &dyn Pool,
    name: &VolumeName,
    snapshot: &VolumeName,
) -> Result<()> {
    const OP: &str = "revert_volume";
    let support = pool.capabilities().revert;
    if support == Support::None {
        return Err(Error::new(ErrorKind::Unsupported, OP).with("pool", pool));
    }
    let volume = app.guard(OP, pool.volume(name)).await?;
    let snapshot = app.guard(OP, pool.volume(snapshot)).await?;
    if volume.is_snapshot() {
        return Err(invalid(
            OP,
            &volume,
            "it is a snapshot, which never changes",
        ));
    }
    let own = snapshot
        .origin
        .as_ref()
        .is_some_and(|o| o.kind == OriginKind::Snapshot && o.parent_id == volume.id);
    if !own {
        return Err(invalid(
            OP,
            &volume,
            format!("{} is not one of its snapshots", snapshot.name),
        ));
    }
    check_not_in_use(app, pool, &volume, OP).await?;
    let grows = snapshot
        .virtual_size
        .bytes()
        .saturating_sub(volume.virtual_size.bytes());
    let moved = match support {
        Support::Emulated => snapshot.allocated.unwrap_or(snapshot.virtual_size),
        _ => ByteSize::ZERO,
    };
    admit(app, pool, OP, ByteSize::new(grows), moved).await?;
    let effect = format!(
        "it would be put back to {} of {}, {} in size; what was written since would be lost",
        snapshot.name,
        crate::output::rfc3339(snapshot.created, false),
        snapshot.virtual_size
    );
    plan(app, OP, name, Some(&volume), &effect)
}

/// Whether the pool's policy would let this pass.
async fn admit(
    app: &App,
    pool: &dyn Pool,
    op: &'static str,
    provisioned: ByteSize,
    reserved: ByteSize,
) -> Result<()> {
    let usage = app.guard(op, pool.usage()).await?;
    let request = SpaceRequest {
        provisioned,
        reserved,
    };
    pool.policy().admit(&usage, &request, op).map(drop)
}

/// Changes the size of `name`.
///
/// # Errors
/// Those of the pool.
pub async fn resize(app: &App, name: &str, size: &str, shrink: bool, dry_run: bool) -> Result<u8> {
    let name = VolumeName::new(name)?;
    let options = ResizeOptions {
        size: size.parse()?,
        allow_shrink: shrink,
    };
    let pool = app.pool().await?;
    if dry_run {
        plan_resize(app, pool.as_ref(), &name, options).await?;
        return Ok(0);
    }
    let resize = pool.resize_volume(&name, options);
    let volume = match app.guard("resize_volume", resize).await {
        Ok(volume) => volume,
        Err(error) if error.kind() == ErrorKind::InvalidInput && !shrink => {
            let smaller =
                matches!(pool.volume(&name).await, Ok(v) if options.size < v.virtual_size);
            return Err(if smaller {
                error.help("--shrink allows it")
            } else {
                error
            });
        }
        Err(error) => return Err(error),
    };
    show_made(app, pool.as_ref(), "resized", &volume).await
}

async fn plan_resize(
    app: &App,
    pool: &dyn Pool,
    name: &VolumeName,
    options: ResizeOptions,
) -> Result<()> {
    const OP: &str = "resize_volume";
    let volume = app.guard(OP, pool.volume(name)).await?;
    let (now, then) = (volume.virtual_size, options.size.round_up(512));
    let then = match then {
        Some(then) if then > ByteSize::ZERO && i64::try_from(then.bytes()).is_ok() => then,
        _ => {
            return Err(invalid(OP, &volume, "no volume can have this size")
                .with("size", options.size.bytes()));
        }
    };
    if volume.is_snapshot() {
        return Err(invalid(
            OP,
            &volume,
            "it is a snapshot, which never changes",
        ));
    }
    if then < now {
        if !options.allow_shrink {
            return Err(
                invalid(OP, &volume, format!("it has {now}, and {then} is less"))
                    .help("--shrink allows it; what lies past the new end is lost"),
            );
        }
        if pool.capabilities().shrink == Support::None {
            return Err(Error::new(ErrorKind::Unsupported, OP).with("pool", pool));
        }
        check_not_in_use(app, pool, &volume, OP).await?;
    } else {
        let grows = ByteSize::new(then.bytes() - now.bytes());
        let reserved = match volume.provisioning {
            Provisioning::Thick => grows,
            Provisioning::Thin => ByteSize::ZERO,
        };
        admit(app, pool, OP, grows, reserved).await?;
    }
    let effect = match then.cmp(&now) {
        std::cmp::Ordering::Less => {
            format!(
                "it would shrink from {now} to {then}; what lies past the new end would be lost"
            )
        }
        std::cmp::Ordering::Equal => format!("it has {now} already: nothing would change"),
        std::cmp::Ordering::Greater => format!("it would grow from {now} to {then}"),
    };
    plan(app, OP, name, Some(&volume), &effect)
}
