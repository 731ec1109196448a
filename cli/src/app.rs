//! What every command works with.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use volmux::{Control, Error, ErrorKind, Pool, Result, VolumeName};

use crate::args::{Global, exit_code};
use crate::config;
use crate::output::{self, Bar, Output};

/// What every command works with.
#[derive(Debug)]
pub struct App {
    pub out: Output,
    pub cancel: CancellationToken,
    pool: Option<String>,
    config: Option<PathBuf>,
    progress: bool,
    any_name: bool,
}

impl App {
    /// From the options that every command takes.
    pub fn new(global: Global, cancel: CancellationToken) -> Self {
        App {
            out: Output::new(global.json),
            cancel,
            pool: global.pool,
            config: global.config,
            progress: global.progress,
            any_name: global.any_name,
        }
    }

    /// The pool that `--pool` or `VOLMUX_POOL` names.
    ///
    /// # Errors
    /// `InvalidInput` if none does; those of opening it.
    pub async fn pool(&self) -> Result<Arc<dyn Pool>> {
        match self.pool.as_deref() {
            Some(pool) if !pool.is_empty() => self.named_pool(pool).await,
            _ => Err(Error::new(ErrorKind::InvalidInput, "open_pool")
                .reason("no pool is named")
                .help("say -p dir:///srv/volumes or -p NAME, or set VOLMUX_POOL")),
        }
    }

    /// Has this program, which `command` starts, work on the same pool, and print in the same way. By the
    /// environment: others see arguments, and a URL may be nobody's business.
    pub fn for_the_same_pool(&self, command: &mut Command) {
        if let Some(pool) = &self.pool {
            command.env("VOLMUX_POOL", pool);
        }
        if let Some(config) = &self.config {
            command.env("VOLMUX_CONFIG", config);
        }
        if self.out.json() {
            command.arg("--json");
        }
    }

    /// The pool that `pool`, a URL or a name, stands for.
    ///
    /// # Errors
    /// Those of the configuration and of opening it.
    pub async fn named_pool(&self, pool: &str) -> Result<Arc<dyn Pool>> {
        let url = config::resolve(pool, self.config.as_deref())?;
        tracing::debug!(%url, "opening pool");
        let registry = volmux::registry();
        self.guard("open_pool", registry.open_url(&url)).await
    }

    /// Runs `work`, which has no control of its own, and drops it on Ctrl-C.
    ///
    /// # Errors
    /// Those of `work`; `TimedOut` on Ctrl-C.
    pub async fn guard<T>(
        &self,
        op: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tracing::debug!(op, "starting");
        tokio::select! {
            biased;
            result = work => result,
            () = self.cancel.cancelled() => {
                Err(Error::new(ErrorKind::TimedOut, op).reason(STOPPED))
            }
        }
    }

    /// A progress bar and the control that goes with it.
    pub fn progress(&self, what: &'static str) -> (Bar, Control) {
        let bar = Bar::new(what, self.out.json(), self.progress);
        let control = bar.control(&self.cancel);
        (bar, control)
    }

    /// A name for a new volume. Those of unfinished imports are not for other use: the next import
    /// would take it for its own leftover and delete it. `--any-name` is for programs that import.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn new_name(&self, name: &str) -> Result<VolumeName> {
        if name.ends_with(STAGING_SUFFIX) && !self.any_name {
            return Err(Error::new(ErrorKind::InvalidInput, "volume_name")
                .with("volume", name)
                .reason(format!(
                    "names with {STAGING_SUFFIX} are for unfinished imports"
                ))
                .help("choose another name"));
        }
        VolumeName::new(name)
    }

    /// Tells of `error` and gives its exit code.
    pub fn report(&self, error: &Error) -> u8 {
        output::report(error, self.out.json());
        exit_code(error.kind())
    }

    /// Warns.
    pub fn warn(&self, message: &str) {
        output::warn(message, self.out.json());
    }

    /// Warns if `pool` fills up. The operation before it is done: nothing here makes it fail.
    pub async fn warn_of_pressure(&self, pool: &dyn Pool) {
        match self.guard("usage", pool.usage()).await {
            Ok(usage) => {
                if let Some(text) = output::pressure_text(pool, &usage) {
                    self.warn(&text);
                }
            }
            Err(error) => self.warn(&format!("how full the pool is can't be told: {error}")),
        }
    }
}

/// What the names of unfinished imports end with.
pub const STAGING_SUFFIX: &str = ".importing";

/// Why something was stopped.
pub const STOPPED: &str = "stopped by a signal, --time-limit or --stop-at-eof";
