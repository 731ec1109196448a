//! From a URL to an open pool.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use volmux_core::{Backend, Error, ErrorKind, Pool, PoolUrl, Registry, Result};

use crate::array::LocalArray;
use crate::config::{ControlKind, IscsiConfig};
use crate::control::TargetControl;
use crate::control::lio::Lio;
use crate::control::tgt::Tgt;
use crate::luns::LunPool;
use crate::open::Opener;
use crate::remote::RemotePool;
use crate::targetd::TargetdPool;
use crate::transport::{Connector, Native};

const OP: &str = "open_pool";

/// Opens iSCSI pools.
#[derive(Debug)]
pub struct IscsiBackend {
    stores: Registry,
    transports: Vec<Arc<dyn Connector>>,
}

impl IscsiBackend {
    /// With the backends of the pools that can be behind a target on this host.
    pub fn new(stores: Registry) -> Self {
        IscsiBackend {
            stores,
            transports: vec![Arc::new(Native)],
        }
    }

    /// Adds a transport, which option `transport` then chooses by its name.
    #[must_use]
    pub fn with_transport(mut self, transport: impl Connector) -> Self {
        self.transports.push(Arc::new(transport));
        self
    }

    /// Opens the pool that `config` describes.
    ///
    /// # Errors
    /// `InvalidConfig`; those of the store, of the control interface, and of the session.
    pub async fn open_config(&self, config: &IscsiConfig) -> Result<Arc<dyn Pool>> {
        let wrong = |reason: String| Error::new(ErrorKind::InvalidConfig, OP).reason(reason);
        config.check().map_err(wrong)?;
        let opener = Opener::new(self.transport(config)?, config.sessions()?);
        let (portal, prefix) = (config.portal(), config.target.clone());
        let control: Arc<dyn TargetControl> = match config.control {
            ControlKind::None => return Ok(Arc::new(LunPool::open(config, opener).await?)),
            ControlKind::Targetd => {
                return Ok(TargetdPool::open(config.targetd()?, Arc::new(opener)).await?);
            }
            _ if config.ssh.is_some() => {
                let remote = config.remote(opener.chap())?;
                return Ok(Arc::new(RemotePool::open(remote, Arc::new(opener)).await?));
            }
            ControlKind::Tgt => Arc::new(Tgt::new(config.tgt_socket.clone())),
            ControlKind::Lio => Arc::new(Lio::new(self.portals(config).await?)),
        };
        let store = self
            .stores
            .open(config.store.as_deref().unwrap_or_default())
            .await;
        let store = store.map_err(|error| error.with("option", "store"))?;
        let locks = config.locks.as_deref();
        let array = LocalArray::open(store, control, portal, prefix, opener, locks).await?;
        Ok(Arc::new(array))
    }

    fn transport(&self, config: &IscsiConfig) -> Result<Arc<dyn Connector>> {
        let wanted = config.transport.as_deref().unwrap_or(Native.name());
        let found = self.transports.iter().find(|known| known.name() == wanted);
        found.cloned().ok_or_else(|| {
            let known: Vec<&str> = self.transports.iter().map(|known| known.name()).collect();
            Error::new(ErrorKind::InvalidConfig, OP)
                .with("option", format!("transport={wanted}"))
                .reason("this program was not built with that transport")
                .help(format!("it has these: {}", known.join(", ")))
        })
    }

    /// Where LIO listens.
    async fn portals(&self, config: &IscsiConfig) -> Result<Vec<SocketAddr>> {
        let portal = config.portal();
        let found = tokio::net::lookup_host(&portal).await;
        let found: Vec<SocketAddr> = found
            .map_err(|error| {
                Error::new(ErrorKind::InvalidConfig, OP)
                    .with("portal", &portal)
                    .reason("the portal's name is not known")
                    .with_source(error)
            })?
            .collect();
        Ok(found)
    }
}

#[async_trait]
impl Backend for IscsiBackend {
    fn schemes(&self) -> &'static [&'static str] {
        &["iscsi"]
    }

    async fn open(&self, url: &PoolUrl) -> Result<Arc<dyn Pool>> {
        let config = IscsiConfig::from_url(url)?;
        let pool = self.open_config(&config).await;
        pool.map_err(|error| match error.get("url") {
            None => error.with("url", url),
            Some(_) => error,
        })
    }
}
