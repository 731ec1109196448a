//! TLS: certificates from files, a configuration for rustls.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use volmux_core::{Error, ErrorKind, Result};

const OP: &str = "tls";

/// Whether clients have to show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Any client may come.
    NotAsked,
    /// Only clients whose certificate was signed by the authority of `ca-cert.pem`.
    Required,
}

/// The server's certificate and key, and whom it lets in. TLS 1.2 and 1.3.
///
/// Keys shared beforehand (PSK) are not to be had: rustls does not have them.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    clients: ClientCertificates,
}

impl Tls {
    /// From a directory laid out as QEMU and nbdkit have it: `server-cert.pem` (with the
    /// certificates between it and the authority, if any), `server-key.pem` and, to let in only
    /// clients that have a certificate, the authority's `ca-cert.pem`.
    ///
    /// # Errors
    /// `InvalidConfig`, `NotFound` or `PermissionDenied`, with the file's name.
    pub fn from_directory(directory: &Path, clients: ClientCertificates) -> Result<Tls> {
        let certificates = read_certificates(&directory.join("server-cert.pem"))?;
        let key = directory.join("server-key.pem");
        let key = PrivateKeyDer::from_pem_file(&key).map_err(|e| wrong(&key, e))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::new(ErrorKind::Internal, OP).with_source(e))?;
        let builder = match clients {
            ClientCertificates::NotAsked => builder.with_no_client_auth(),
            ClientCertificates::Required => {
                let path = directory.join("ca-cert.pem");
                let mut roots = RootCertStore::empty();
                for certificate in read_certificates(&path)? {
                    roots.add(certificate).map_err(|e| unusable(&path, e))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|e| unusable(&path, e))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder
            .with_single_cert(certificates, key)
            .map_err(|e| unusable(directory, e).reason("certificate and key do not fit"))?;
        Ok(Tls {
            config: Arc::new(config),
            clients,
        })
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.clone())
    }
}

// The configuration holds the key.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("clients", &self.clients)
            .finish_non_exhaustive()
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|e| wrong(path, e))?;
    if certificates.is_empty() {
        return Err(Error::new(ErrorKind::InvalidConfig, OP)
            .with("file", path.display())
            .reason("there is no certificate in it"));
    }
    Ok(certificates)
}

fn wrong(path: &Path, error: rustls::pki_types::pem::Error) -> Error {
    use rustls::pki_types::pem::Error as Pem;
    match error {
        Pem::Io(error) => Error::from_io(OP, error).with("file", path.display()),
        error => unusable(path, error),
    }
}

fn unusable(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::InvalidConfig, OP)
        .with("file", path.display())
        .reason("it is not what TLS needs")
        .with_source(error)
}
