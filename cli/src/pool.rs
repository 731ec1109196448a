//! `volmux pool …`

use volmux::{AuditOptions, Result};

use crate::app::App;
use crate::args::{EXIT_UNCLEAN, PoolCommand};
use crate::output::{AuditDoc, CollectedDoc, PoolDoc, audit_text, collected_text, pool_text};

/// Runs a pool command and gives the exit code.
///
/// # Errors
/// Those of the pool.
pub async fn run(app: &App, command: PoolCommand) -> Result<u8> {
    match command {
        PoolCommand::Info => info(app).await,
        PoolCommand::Audit { repair, dry_run } => audit(app, repair, dry_run).await,
        PoolCommand::Scrub => scrub(app).await,
        PoolCommand::Gc => gc(app).await,
    }
}

async fn info(app: &App) -> Result<u8> {
    let pool = app.pool().await?;
    let usage = app.guard("usage", pool.usage()).await?;
    app.out.show(&PoolDoc::new(pool.as_ref(), &usage), || {
        pool_text(pool.as_ref(), &usage)
    })?;
    Ok(0)
}

async fn audit(app: &App, repair: bool, dry_run: bool) -> Result<u8> {
    let pool = app.pool().await?;
    let options = AuditOptions {
        repair: repair && !dry_run,
    };
    let report = app.guard("audit", pool.audit(options)).await?;
    let document = AuditDoc::new(pool.as_ref(), &report, repair, dry_run);
    app.out
        .show(&document, || audit_text(&report, repair && dry_run))?;
    Ok(if report.is_clean() { 0 } else { EXIT_UNCLEAN })
}

async fn scrub(app: &App) -> Result<u8> {
    let pool = app.pool().await?;
    let (bar, control) = app.progress("scrub");
    let report = app.guard("scrub", pool.scrub(control)).await?;
    drop(bar);
    let document = AuditDoc::new(pool.as_ref(), &report, false, false);
    app.out.show(&document, || audit_text(&report, false))?;
    Ok(if report.is_clean() { 0 } else { EXIT_UNCLEAN })
}

async fn gc(app: &App) -> Result<u8> {
    let pool = app.pool().await?;
    let collected = app.guard("collect_garbage", pool.collect_garbage()).await?;
    let document = CollectedDoc::new(pool.as_ref(), &collected);
    app.out.show(&document, || collected_text(&collected))?;
    Ok(0)
}
