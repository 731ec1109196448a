//! `/metrics` and `/status` over HTTP/1.1, and the client of the latter.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use volmux_core::{Error, ErrorKind, Result};

use crate::listen::Listener;
use crate::options::Address;
use crate::status::Status;

const OP: &str = "gateway_status";
/// Connections at a time. More wait to be accepted.
const MAX_CONNECTIONS: usize = 16;
/// How long one may last: a question and its answer.
const MAX_TIME: Duration = Duration::from_secs(10);
/// The longest head of a request; hyper takes no smaller limit.
const MAX_HEAD: usize = 8192;
/// The longest status that is read: several hundred bytes for each export.
const MAX_STATUS: usize = 64 << 20;
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers that stop when this is dropped.
#[derive(Debug)]
pub(crate) struct Answering {
    _tasks: JoinSet<()>,
}

/// Answers questions that come to `listener` until what it returns is dropped.
pub(crate) fn answer(
    listener: Listener,
    status: impl Fn() -> Status + Send + Sync + 'static,
) -> Answering {
    let mut tasks = JoinSet::new();
    tasks.spawn(accept(listener, Arc::new(status)));
    Answering { _tasks: tasks }
}

async fn accept<F>(listener: Listener, status: Arc<F>)
where
    F: Fn() -> Status + Send + Sync + 'static,
{
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = free.clone().acquire_owned().await else {
            return;
        };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "statistics: a connection could not be accepted");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let status = status.clone();
        connections.spawn(async move {
            let _permit = permit;
            match timeout(MAX_TIME, converse(stream, status)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%peer, %error, "statistics: broken off"),
                Err(_) => tracing::debug!(%peer, "statistics: too slow"),
            }
        });
    }
}

/// One question, one answer: a connection that is kept would count against the limit.
async fn converse<F>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    status: Arc<F>,
) -> hyper::Result<()>
where
    F: Fn() -> Status + Send + Sync + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let response = respond(request.method(), request.uri().path(), status.as_ref());
        async { Ok::<_, Infallible>(response) }
    });
    hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .timer(TokioTimer::new())
        .header_read_timeout(MAX_TIME)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn respond(method: &Method, path: &str, status: &impl Fn() -> Status) -> Response<Full<Bytes>> {
    let answer = |code, content_type: &'static str, text: String| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = code;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    };
    const PLAIN: &str = "text/plain; charset=utf-8";
    if !matches!(path, "/metrics" | "/status") {
        let text = "there are /metrics and /status\n".into();
        return answer(StatusCode::NOT_FOUND, PLAIN, text);
    }
    // hyper leaves the body out of what answers a HEAD.
    if !matches!(*method, Method::GET | Method::HEAD) {
        let text = "only GET\n".into();
        let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, PLAIN, text);
        let headers = response.headers_mut();
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if path == "/metrics" {
        return answer(StatusCode::OK, OPEN_METRICS, status().prometheus());
    }
    match serde_json::to_string(&status()) {
        Ok(text) => answer(StatusCode::OK, "application/json", text + "\n"),
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, error.to_string()),
    }
}

/// Asks a running server, at its statistics address, how it is.
///
/// # Errors
/// `NotFound` if there is no such socket; `Unavailable` if nobody listens there, or what answers is
/// no volmux server; `PermissionDenied`; `TimedOut` if there is no answer within ten seconds.
pub async fn status_of(address: &Address) -> Result<Status> {
    let asked = async {
        let wrong = |e| Error::from_io(OP, e);
        match address {
            Address::Unix(path) => ask(UnixStream::connect(path).await.map_err(wrong)?).await,
            Address::Tcp(address) => ask(TcpStream::connect(address).await.map_err(wrong)?).await,
        }
    };
    let answered = match timeout(MAX_TIME, asked).await {
        Ok(answered) => answered,
        Err(_) => Err(Error::new(ErrorKind::TimedOut, OP).reason("there is no answer")),
    };
    answered.map_err(|e| e.with("address", address))
}

async fn ask(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Status> {
    let broken = |e| strange("what answers does not speak HTTP").with_source(e);
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let mut request = Request::new(Full::<Bytes>::default());
    *request.uri_mut() = hyper::Uri::from_static("/status");
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(broken)?;
        let code = response.status();
        let body = Limited::new(response.into_body(), MAX_STATUS).collect();
        let body = body
            .await
            .map_err(|e| strange("the answer broke off").with_source(e))?;
        Ok((code, body.to_bytes()))
    };
    // The connection does the work, and may be done before its answer is read.
    let driven = async {
        let _ = connection.await;
    };
    let ((), answered) = tokio::join!(driven, exchange);
    let (code, body) = answered?;
    if code != StatusCode::OK {
        return Err(strange(format!("the answer is {code}")));
    }
    let status: Status = serde_json::from_slice(&body)
        .map_err(|e| strange("the answer can't be understood").with_source(e))?;
    if status.schema != Status::SCHEMA {
        return Err(strange(format!("it is of schema {}", status.schema)));
    }
    Ok(status)
}

fn strange(reason: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unavailable, OP)
        .reason(reason)
        .help("give the address that volmux export was started with as --statistics")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixListener};

    use super::*;
    use crate::status::tests::sample;

    fn serve(dir: &Path) -> (Answering, Address) {
        let path = dir.join("s");
        let listener = UnixListener::bind(&path).expect("bind");
        (
            answer(Listener::Unix(listener), sample),
            Address::Unix(path),
        )
    }

    /// What a client gets that sends these bytes.
    async fn talk(address: &Address, request: &[u8]) -> String {
        let Address::Unix(path) = address else {
            panic!("{address}")
        };
        let mut stream = UnixStream::connect(path).await.expect("connect");
        // The server may have hung up already, which is for the answer to tell.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).expect("UTF-8")
    }

    async fn get(address: &Address, method: &str, path: &str) -> String {
        talk(
            address,
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes(),
        )
        .await
    }

    #[tokio::test]
    async fn it_tells_status_and_metrics_and_nothing_else() {
        let dir = tempfile::tempdir().expect("dir");
        let (_answering, address) = serve(dir.path());
        let status = get(&address, "GET", "/status?x=1").await;
        assert!(status.starts_with("HTTP/1.1 200 OK\r\n"), "{status}");
        assert!(
            status.contains("content-type: application/json\r\n"),
            "{status}"
        );
        let metrics = get(&address, "GET", "/metrics").await;
        let (head, body) = metrics.split_once("\r\n\r\n").expect("head and body");
        assert!(
            head.contains(&format!("content-type: {OPEN_METRICS}")),
            "{head}"
        );
        assert_eq!(body, sample().prometheus());
        let head = get(&address, "HEAD", "/metrics").await;
        assert!(
            head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"),
            "{head}"
        );
        for path in ["/", "/metrics/", "/Status", "//status"] {
            let answer = get(&address, "GET", path).await;
            assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let answer = get(&address, method, "/status").await;
            assert!(answer.starts_with("HTTP/1.1 405 "), "{method}: {answer}");
            assert!(answer.contains("\r\nallow: GET, HEAD\r\n"), "{answer}");
        }
    }

    #[tokio::test]
    async fn heads_that_are_too_long_or_no_http_are_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let (_answering, address) = serve(dir.path());
        let long = format!("GET /status HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
        let answer = talk(&address, long.as_bytes()).await;
        assert!(!answer.contains(" 200 "), "{answer}");
        let answer = talk(&address, b"NBDMAGICIHAVEOPT\r\n\r\n").await;
        assert!(!answer.contains(" 200 "), "{answer}");
        status_of(&address).await.expect("it is still there");
    }

    #[tokio::test]
    async fn a_status_is_asked_for_over_unix_and_tcp() {
        let dir = tempfile::tempdir().expect("dir");
        let (_unix, address) = serve(dir.path());
        let mut status = status_of(&address).await.expect("status");
        status.uptime_seconds = 0.0;
        let mut wanted = sample();
        wanted.uptime_seconds = 0.0;
        assert_eq!(status, wanted);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = Address::Tcp(listener.local_addr().expect("address"));
        let _tcp = answer(Listener::Tcp(listener), sample);
        assert_eq!(
            status_of(&address).await.expect("status").exports,
            wanted.exports
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_keeps_nobody_waiting_for_ever() {
        let dir = tempfile::tempdir().expect("dir");
        let (_answering, address) = serve(dir.path());
        let Address::Unix(path) = &address else {
            panic!("{address}")
        };
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(UnixStream::connect(path).await.expect("connect"));
        }
        let answer = get(&address, "GET", "/status").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        for mut stream in silent {
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.expect("closed");
        }
    }

    #[tokio::test]
    async fn dropped_it_is_gone() {
        let dir = tempfile::tempdir().expect("dir");
        let (answering, address) = serve(dir.path());
        status_of(&address).await.expect("status");
        drop(answering);
        let gone = async {
            while status_of(&address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), gone).await.expect("gone");
        let error = status_of(&address).await.expect_err("gone");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.get("address"), Some(&*address.to_string()));
    }

    #[tokio::test(start_paused = true)]
    async fn strange_servers_are_told_of() {
        let dir = tempfile::tempdir().expect("dir");
        let missing = Address::Unix(dir.path().join("missing"));
        let error = status_of(&missing).await.expect_err("missing");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let mut other = sample();
        other.schema = "volmux.gateway.v9".into();
        let other = serde_json::to_string(&other).expect("JSON");
        for (name, answer, part) in [
            ("closed", String::new(), "does not speak HTTP"),
            ("greeting", "NBDMAGICIHAVEOPT".into(), "does not speak HTTP"),
            (
                "gone",
                "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".into(),
                "404",
            ),
            (
                "cut",
                "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{".into(),
                "broke off",
            ),
            (
                "other",
                format!("HTTP/1.1 200 OK\r\n\r\n{other}"),
                "volmux.gateway.v9",
            ),
            (
                "text",
                "HTTP/1.1 200 OK\r\n\r\nhello".into(),
                "can't be understood",
            ),
            (
                "list",
                "HTTP/1.1 200 OK\r\n\r\n[]".into(),
                "can't be understood",
            ),
        ] {
            let path = dir.path().join(name);
            let listener = UnixListener::bind(&path).expect("bind");
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let mut request = [0; 4096];
                let asked = stream.read(&mut request).await.expect("request");
                assert!(request[..asked].starts_with(b"GET /status HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).await.expect("write");
            });
            let error = status_of(&Address::Unix(path)).await.expect_err(name);
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{name}: {error}");
            let reason = error.get("reason").expect("reason");
            assert!(reason.contains(part), "{name}: {reason}");
            server.await.expect("server");
        }
        let path = dir.path().join("silent");
        let _listener = UnixListener::bind(&path).expect("bind");
        let error = status_of(&Address::Unix(path)).await.expect_err("silent");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
