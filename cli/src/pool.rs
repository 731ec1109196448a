//! `volmux pool …`

use volmux::{AuditOptions, Result};

use crate::app::App;
use crate::args::{EXIT_UNCLEAN, PoolCommand};
use crate::output::{AuditDoc, PoolDoc, audit_text, pool_text};

/// Runs a pool command and gives the exit code.
///
/// # Errors
/// Those of the pool.
pub async fn run(app: &App, command: PoolCommand) -> Result<u8> {
    match command {
        PoolCommand::Info => info(app).await,
        PoolCommand::Audit { repair, dry_run } => audit(app, repair, dry_run).await,
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
