//! One question and one answer over HTTP, on a connection of its own.
//!
//! targetd answers by HTTP/1.0: the end of the connection ends the answer. Over TLS it ends it
//! without saying so (no `close_notify`; seen with Python 3.11), so that only the answer itself can
//! tell whether all of it is there.

use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::{Host, Url};
use volmux_core::Result;

use super::config::TargetdConfig;
use super::trust;

const PORT: u16 = 18700;
const PATH: &str = "/targetrpc";
/// The longest that a connection, or TLS on it, is waited for.
const LONGEST_PATIENCE: Duration = Duration::from_secs(15);
/// The longest answer that is read.
pub(super) const LONGEST_ANSWER: usize = 16 << 20;
/// The longest head of an answer.
const LONGEST_HEAD: usize = 64 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("there is no connection")]
    Connect(#[source] io::Error),
    #[error("the service's certificate is not accepted")]
    Certificate(#[source] rustls::Error),
    #[error("the service does not speak TLS as it should")]
    Tls(#[source] io::Error),
    #[error("the connection broke, or what answers does not speak HTTP")]
    Broken(#[source] hyper::Error),
    #[error("the answer is longer than {LONGEST_ANSWER} bytes")]
    TooLong,
    #[error("the answer is {0}")]
    Status(StatusCode),
    /// The call has a deadline, and this is it.
    #[error("there is no answer in time")]
    TimedOut,
    /// Says what is wrong, and repeats nothing of it.
    #[error("the answer is not what JSON-RPC wants: {0}")]
    Malformed(String),
    #[error("error {code}: {message}")]
    Refused { code: i64, message: String },
}

/// Where the service is, and whom to trust.
pub(super) struct Endpoint {
    host: String,
    port: u16,
    path: Uri,
    /// As errors name it, and as `Host` wants it.
    pub authority: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// Within which a connection is made, and within which TLS is there.
    patience: Duration,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("authority", &self.authority)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// As the configuration says, for calls that may take so long.
    ///
    /// # Errors
    /// `InvalidConfig`; `NotFound` or `PermissionDenied` for a file of authorities that can't be
    /// read.
    pub fn new(config: &TargetdConfig, timeout: Duration) -> Result<Endpoint> {
        const HELP: &str = "write https://host, https://host:port or https://host:port/targetrpc";
        let wrong = |reason: &str| Err(config.wrong("url", reason).help(HELP));
        let Ok(url) = Url::parse(&config.url) else {
            return wrong("this is not a URL");
        };
        if !url.username().is_empty() || url.password().is_some() {
            return wrong("it holds a user's name or a password: they have options of their own");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return wrong("it ends with the path");
        }
        let Some(host) = url.host() else {
            return wrong("the host is missing");
        };
        let plain = match url.scheme() {
            "https" => false,
            "http" if is_local(&host) => true,
            "http" => return wrong("the password would go over the network for all to read"),
            _ => return wrong("the scheme is https"),
        };
        let bare = host.to_string();
        let bare = bare.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned());
        let Ok(name) = name else {
            return wrong("the host is no name that a certificate can have");
        };
        let path = if url.path() == "/" { PATH } else { url.path() };
        let Ok(path) = path.parse::<Uri>() else {
            return wrong("the path is wrong");
        };
        let port = url.port().or(explicit_port(&config.url)).unwrap_or(PORT);
        let tls = match plain {
            true => None,
            false => Some((TlsConnector::from(trust::tls(config)?), name)),
        };
        Ok(Endpoint {
            host: bare.to_owned(),
            port,
            path,
            authority: format!("{host}:{port}"),
            tls,
            patience: LONGEST_PATIENCE.min(timeout / 2),
        })
    }

    /// Sends `body`, and returns what the service answers with status 200.
    pub async fn ask(&self, body: Bytes, authorization: &HeaderValue) -> Result<Vec<u8>, Failure> {
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        let stream = TcpStream::connect((self.host.as_str(), self.port));
        let stream = timeout(self.patience, stream).await;
        let stream = stream.unwrap_or_else(|_| Err(late()));
        let stream = stream.map_err(Failure::Connect)?;
        stream.set_nodelay(true).map_err(Failure::Connect)?;
        let Some((connector, name)) = &self.tls else {
            let peer = stream.peer_addr().map_err(Failure::Connect)?;
            if !peer.ip().is_loopback() {
                let reason = "the name does not mean this machine, and there is no TLS";
                return Err(Failure::Connect(io::Error::other(reason)));
            }
            return self.exchange(stream, body, authorization).await;
        };
        let stream = timeout(self.patience, connector.connect(name.clone(), stream)).await;
        // Who does not know TLS waits for the end of a line.
        let stream = stream.map_err(|_| Failure::Tls(late()))?;
        let stream = stream.map_err(tls_failure)?;
        self.exchange(stream, body, authorization).await
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        body: Bytes,
        authorization: &HeaderValue,
    ) -> Result<Vec<u8>, Failure> {
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(LONGEST_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(Failure::Broken)?;
        let request = self.request(body, authorization);
        let answered = async move {
            let response = sender
                .send_request(request)
                .await
                .map_err(Failure::Broken)?;
            read(response).await
        };
        let (mut answered, mut connection) = (std::pin::pin!(answered), std::pin::pin!(connection));
        tokio::select! {
            biased;
            answer = &mut answered => answer,
            // What it had read is still to be had, and why it ended.
            _ = &mut connection => answered.await,
        }
    }

    fn request(&self, body: Bytes, authorization: &HeaderValue) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.path.clone();
        let headers = request.headers_mut();
        let host = HeaderValue::from_str(&self.authority);
        headers.insert(HOST, host.expect("a URL's host is plain text"));
        headers.insert(AUTHORIZATION, authorization.clone());
        let json = HeaderValue::from_static("application/json");
        headers.insert(CONTENT_TYPE, json.clone());
        headers.insert(ACCEPT, json);
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        request
    }
}

async fn read(response: Response<Incoming>) -> Result<Vec<u8>, Failure> {
    if response.status() != StatusCode::OK {
        return Err(Failure::Status(response.status()));
    }
    let mut body = response.into_body();
    let mut answer = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            // Who can parse it knows that it is complete.
            Err(error) if !answer.is_empty() && is_end(&error) => break,
            Err(error) => return Err(Failure::Broken(error)),
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if answer.len() + data.len() > LONGEST_ANSWER {
            return Err(Failure::TooLong);
        }
        answer.extend_from_slice(&data);
    }
    Ok(answer)
}

/// Whether the connection ended, for whatever was still to come.
fn is_end(error: &hyper::Error) -> bool {
    let mut cause = error.source();
    while let Some(source) = cause {
        if let Some(error) = source.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::UnexpectedEof;
        }
        cause = source.source();
    }
    false
}

fn tls_failure(error: io::Error) -> Failure {
    let tls = error.get_ref().and_then(|e| e.downcast_ref());
    match tls {
        Some(tls @ rustls::Error::InvalidCertificate(_)) => Failure::Certificate(tls.clone()),
        Some(_) => Failure::Tls(error),
        None => Failure::Connect(error),
    }
}

fn is_local(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => name.eq_ignore_ascii_case("localhost"),
        Host::Ipv4(address) => IpAddr::V4(*address).is_loopback(),
        Host::Ipv6(address) => IpAddr::V6(*address).is_loopback(),
    }
}

/// The port that stands in a URL, where it is the one of its scheme and so not kept.
fn explicit_port(url: &str) -> Option<u16> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    authority.rsplit_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use volmux_core::ErrorKind;

    use super::*;

    fn endpoint(url: &str) -> Result<Endpoint> {
        let target = "iqn.2026-01.org.example:array";
        let config = TargetdConfig::new(url, "vg/pool", "/nowhere", "10.0.0.1:3260", target);
        Endpoint::new(&config, Duration::from_secs(1))
    }

    #[test]
    fn urls_are_completed() {
        for (url, authority, path) in [
            ("http://localhost", "localhost:18700", "/targetrpc"),
            ("http://127.0.0.1:5/", "127.0.0.1:5", "/targetrpc"),
            ("http://[::1]:80/other", "[::1]:80", "/other"),
            ("http://[::1]", "[::1]:18700", "/targetrpc"),
        ] {
            let endpoint = endpoint(url).expect(url);
            assert_eq!(endpoint.authority, authority, "{url}");
            assert_eq!(endpoint.path.path(), path, "{url}");
            assert!(endpoint.tls.is_none());
        }
        assert_eq!(explicit_port("https://a:443/x"), Some(443));
        assert_eq!(explicit_port("https://[::1]/x"), None);
    }

    #[test]
    fn wrong_urls_are_refused_and_secrets_in_them_not_shown() {
        for url in [
            "",
            "array",
            "ftp://array",
            "http://array",
            "http://10.0.0.1",
            "http://localhost.example",
            "https://user:canary@array",
            "https://user@array",
            "https://array?password=canary",
            "https://array#canary",
        ] {
            let error = endpoint(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
            assert!(error.get("help").is_some());
        }
    }
}
