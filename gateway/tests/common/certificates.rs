//! Certificates for one test, laid out as QEMU, nbdkit and libnbd want them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;

/// A certificate authority with a directory for a server and one for a client.
#[derive(Debug)]
pub struct Certificates {
    dir: TempDir,
}

impl Certificates {
    /// A new authority.
    pub fn new() -> Certificates {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = authority();
        for (role, usage) in [
            ("server", ExtendedKeyUsagePurpose::ServerAuth),
            ("client", ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            let at = dir.path().join(role);
            std::fs::create_dir(&at).expect("a directory");
            let write = |file: &str, text: String| {
                std::fs::write(at.join(file), text).expect("a file of the test");
            };
            let key = KeyPair::generate().expect("a key");
            let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
            let mut params = CertificateParams::new(names).expect("names");
            params.distinguished_name.push(DnType::CommonName, role);
            params.key_usages = vec![
                KeyUsagePurpose::DigitalSignature,
                KeyUsagePurpose::KeyEncipherment,
            ];
            params.extended_key_usages = vec![usage];
            let signed = params.signed_by(&key, &authority).expect("a certificate");
            write("ca-cert.pem", authority.pem());
            write(&format!("{role}-cert.pem"), signed.pem());
            write(&format!("{role}-key.pem"), key.serialize_pem());
        }
        let nobody = dir.path().join("nobody");
        std::fs::create_dir(&nobody).expect("a directory");
        std::fs::write(nobody.join("ca-cert.pem"), authority.pem()).expect("a file");
        Certificates { dir }
    }

    /// For a server.
    pub fn server(&self) -> PathBuf {
        self.dir.path().join("server")
    }

    /// For a client that shows a certificate.
    pub fn client(&self) -> PathBuf {
        self.dir.path().join("client")
    }

    /// For a client that shows none.
    pub fn nobody(&self) -> PathBuf {
        self.dir.path().join("nobody")
    }

    /// TLS of a client that trusts this authority, and shows a certificate if `show`.
    pub fn config(&self, show: bool) -> Arc<ClientConfig> {
        self.config_of(show, rustls::DEFAULT_VERSIONS)
    }

    /// As [`config`](Self::config), with these versions of TLS only.
    pub fn config_of(
        &self,
        show: bool,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        self.configured(show.then_some(self), versions)
    }

    /// TLS of a client that trusts this authority, and shows a certificate of another one.
    pub fn trusting_but_showing(&self, other: &Certificates) -> Arc<ClientConfig> {
        self.configured(Some(other), rustls::DEFAULT_VERSIONS)
    }

    fn configured(
        &self,
        shown: Option<&Certificates>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots
            .add(certificate(&self.client().join("ca-cert.pem")))
            .expect("a root");
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots);
        Arc::new(if let Some(shown) = shown {
            let key = PrivateKeyDer::from_pem_file(shown.client().join("client-key.pem"));
            let shown = certificate(&shown.client().join("client-cert.pem"));
            let config = builder.with_client_auth_cert(vec![shown], key.expect("a key"));
            config.expect("a certificate and its key")
        } else {
            builder.with_no_client_auth()
        })
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params
        .distinguished_name
        .push(DnType::CommonName, "volmux test authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).expect("a certificate")
}
