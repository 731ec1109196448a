//! Pools in NFS exports: a directory pool, on a mount, that never waits for ever.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use volmux_core::layers::{Call, Hook, Layer, Limits};
use volmux_core::{Backend, Error, ErrorKind, Pool, PoolUrl, Result};

use crate::config::NfsConfig;
use crate::mount::Mount;
use crate::pool::DirPool;

/// How long a server may be silent unless the configuration says otherwise: longer than one that
/// was started again keeps its clients waiting for their locks.
const SILENCE: Duration = Duration::from_secs(120);

/// Backend of `nfs:` URLs.
#[derive(Clone, Copy, Debug, Default)]
pub struct NfsBackend;

#[async_trait]
impl Backend for NfsBackend {
    fn schemes(&self) -> &'static [&'static str] {
        &["nfs"]
    }

    async fn open(&self, url: &PoolUrl) -> Result<Arc<dyn Pool>> {
        open(NfsConfig::from_url(url)?).await
    }
}

/// Opens the pool in an NFS export, which is mounted if it is not. A directory that is not a pool yet
/// becomes one with its first volume. Needs a tokio runtime with time.
///
/// # Errors
/// As [`DirPool::open`]; `InvalidConfig` for wrong settings; `NotFound` if there is no such host or
/// export; `PermissionDenied` if the server does not let this host have it; `Unsupported` for a
/// version of the protocol that it does not have; `Unavailable` if it does not answer.
pub async fn open(config: NfsConfig) -> Result<Arc<dyn Pool>> {
    const OP: &str = "open_pool";
    config.check()?;
    let silence = config.timeout.map_or(SILENCE, Duration::from_secs);
    let answers = Answers {
        limits: Limits {
            control: silence,
            data: silence,
            stall: silence,
        },
        server: config.host.clone(),
    };
    let opened = tokio::time::timeout(silence, async {
        let mount = Mount::of(&config, silence).await?;
        let directory = config.directory(mount.path.clone());
        DirPool::opened(directory, Some(mount), config.identity()).await
    });
    let pool = opened.await;
    let pool = pool.map_err(|_| answers.silent(Error::new(ErrorKind::Unavailable, OP)))??;
    Ok(Layer::around(Arc::new(pool), answers))
}

/// Ends what a silent server holds up. The kernel goes on asking it for as long as it takes, so
/// that nothing written is lost; whoever waits for that is told.
#[derive(Debug)]
struct Answers {
    limits: Limits,
    server: String,
}

impl Answers {
    fn silent(&self, error: Error) -> Error {
        error
            .with("server", &self.server)
            .reason(format!(
                "the server has not answered for {} s",
                self.limits.control.as_secs()
            ))
            .help("see whether it runs and can be reached; what was begun ends once it answers")
    }
}

impl Hook for Answers {
    const EACH_ITEM: bool = true;

    async fn around<T: Send>(
        &self,
        call: &Call,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        match self.limits.around(call, work).await {
            Err(error) if error.kind() == ErrorKind::TimedOut && error.get("limit").is_some() => {
                let silent = Error::new(ErrorKind::Unavailable, call.op).with("pool", &call.pool);
                let silent = match &call.volume {
                    Some(volume) => silent.with("volume", volume),
                    None => silent,
                };
                Err(self.silent(silent))
            }
            done => done,
        }
    }
}
