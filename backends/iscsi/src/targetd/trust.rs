//! Whom to trust: the authorities of a file or of the system.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    SignatureScheme,
};
use volmux_core::Result;

use super::config::TargetdConfig;

/// Where Debian, and what is made of it, keeps the authorities that it trusts.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// TLS with whom the configuration trusts.
///
/// # Errors
/// `InvalidConfig`; `NotFound` or `PermissionDenied` for a file that can't be read.
pub(super) fn tls(config: &TargetdConfig) -> Result<Arc<ClientConfig>> {
    let (path, own) = match &config.ca_file {
        Some(path) => (path.clone(), true),
        None => (PathBuf::from(SYSTEM_AUTHORITIES), false),
    };
    let named = certificates(config, &path)?;
    let mut roots = RootCertStore::empty();
    let (_, unusable) = roots.add_parsable_certificates(named.iter().cloned());
    // In the system's store there is one or another that TLS does not like.
    if roots.is_empty() || own && unusable > 0 {
        let error = config.wrong(
            "ca_file",
            "it holds no certificates of authorities, or wrong ones",
        );
        return Err(error.with("path", path.display()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let by_authority =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| {
                config
                    .wrong("ca_file", "it can't be used")
                    .with_source(error)
            })?;
    let verifier = Verifier {
        by_authority,
        named: if own { named } else { Vec::new() },
    };
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| {
            config
                .wrong("url", "TLS can't be set up")
                .with_source(error)
        })?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Arc::new(tls))
}

/// As rustls verifies; but a certificate that the configuration names itself may be one of an
/// authority. Such are those that `openssl req -x509` makes, and with it targetd's own script.
struct Verifier {
    by_authority: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let verified = self.by_authority.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            // That it is an authority's has no error of its own. One that is too old has.
            Err(TlsError::InvalidCertificate(CertificateError::Other(_)))
                if self.named.contains(end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.by_authority.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.by_authority.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_authority.supported_verify_schemes()
    }
}

fn certificates(config: &TargetdConfig, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    use rustls::pki_types::pem::Error as Pem;
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    read.map_err(|error| {
        let wrong = config
            .wrong("ca_file", "the authorities can't be read")
            .with("path", path.display())
            .help("name a file with the certificates, in PEM, of those that you trust");
        match error {
            Pem::Io(error) => {
                let kind = volmux_core::ErrorKind::of_io(&error);
                wrong.with_kind(kind).with_source(error)
            }
            error => wrong.with_source(error),
        }
    })
}

#[cfg(test)]
mod tests {
    use volmux_core::ErrorKind;

    use super::*;

    #[test]
    fn authorities_come_from_a_file_that_has_to_be_right() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ca.pem");
        let target = "iqn.2026-01.org.example:array";
        let mut config = TargetdConfig::new("https://a", "vg/pool", "/n", "a:3260", target);
        config.ca_file = Some(path.clone());
        let missing = tls(&config).expect_err("missing");
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        for text in [
            "",
            "no certificate",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            std::fs::write(&path, text).expect("written");
            let error = tls(&config).expect_err("no certificate");
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{text}");
        }
    }
}
