//! A service as targetd is one: JSON-RPC over HTTP/1.0, with or without TLS, that ends its answers
//! by ending the connection, and without `close_notify`. It misbehaves when told to.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use volmux_iscsi::targetd::TargetdConfig;

use crate::array::{Array, POOL};
use crate::certificates::Certificates;
use crate::tgt::{TARGET, Tgt};

pub const PASSWORD: &str = "canary-password-7d1f";

/// What goes wrong with a call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It ends when the request was read; nothing is done.
    CloseAfterRequest,
    /// It is done, and then the connection ends.
    DoAndClose,
    /// It is done, and the connection ends in the middle of the answer.
    DoAndCut,
    /// There is no answer, and nothing is done.
    Hang,
    /// There is no answer. It is done when this is notified.
    HangUntil(Arc<Notify>),
    /// It is done so much later.
    Delay(Duration),
    /// Answered by this status.
    Status(u16),
    /// Answered by this body; nothing is done.
    Body(String),
    /// Answered by these bytes; nothing is done.
    Bytes(Vec<u8>),
    /// Answered by a body of so many bytes.
    Huge(usize),
    /// It is done, and answered as if it were another request.
    WrongId,
    /// Answered by an error; nothing is done.
    Error(i64, String),
    /// Something happens first, then it is done as it should be.
    First(fn(&mut Array)),
    /// It is done, and then something happens before anything else is.
    Then(fn(&mut Array)),
}

/// When a connection is closed, before a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Phase {
    #[default]
    Connected,
    Encrypted,
}

/// A call that came.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: String,
    pub params: Value,
}

#[derive(Debug)]
struct Shared {
    array: Mutex<Array>,
    faults: Mutex<VecDeque<(String, Fault)>>,
    calls: Mutex<Vec<Call>>,
    connections: Mutex<u64>,
    /// So many connections are closed: at once, or when TLS is there.
    refuse: Mutex<(Phase, u64)>,
}

/// A service that ends with its test.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    port: u16,
    tls: bool,
    pub certificates: Certificates,
    dir: TempDir,
    portal: String,
    _tasks: JoinSet<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// With TLS, for `localhost`, and nothing behind it.
    pub async fn new() -> Server {
        Server::start(true, &["localhost"], None).await
    }

    pub async fn plain() -> Server {
        Server::start(false, &["localhost"], None).await
    }

    /// With a real target behind it.
    pub async fn with_target() -> Server {
        let tgt = Tgt::start();
        Server::start(true, &["localhost"], Some(tgt)).await
    }

    pub async fn start(tls: bool, names: &[&str], tgt: Option<Tgt>) -> Server {
        let dir = tempfile::tempdir().expect("a directory");
        let certificates = Certificates::new(dir.path(), names);
        Server::start_in(dir, tls, certificates, tgt).await
    }

    /// With a certificate that is its own authority.
    pub async fn self_signed(names: &[&str], years: [i32; 2]) -> Server {
        let dir = tempfile::tempdir().expect("a directory");
        let certificates = Certificates::self_signed(dir.path(), names, years);
        Server::start_in(dir, true, certificates, None).await
    }

    async fn start_in(
        dir: TempDir,
        tls: bool,
        certificates: Certificates,
        tgt: Option<Tgt>,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let portal = tgt.as_ref().map(Tgt::portal);
        let shared = Arc::new(Shared {
            array: Mutex::new(Array::new(tgt)),
            faults: Mutex::default(),
            calls: Mutex::default(),
            connections: Mutex::default(),
            refuse: Mutex::default(),
        });
        let acceptor = tls.then(|| TlsAcceptor::from(certificates.server.clone()));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, acceptor, shared.clone()));
        Server {
            shared,
            port,
            tls,
            certificates,
            dir,
            portal: portal.unwrap_or("127.0.0.1:3260".into()),
            _tasks: tasks,
        }
    }

    /// How it is reached.
    pub fn config(&self) -> TargetdConfig {
        let scheme = if self.tls { "https" } else { "http" };
        let url = format!("{scheme}://localhost:{}", self.port);
        let password = self.secret("password", PASSWORD);
        let mut config = TargetdConfig::new(url, POOL, password, &self.portal, TARGET);
        config.ca_file = Some(self.certificates.ca_file());
        config.timeout = Some(20);
        config.clones = true;
        config
    }

    /// A file with a secret.
    pub fn secret(&self, name: &str, secret: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.dir.path().join(name);
        std::fs::write(&path, format!("{secret}\n")).expect("written");
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, mode).expect("mode set");
        path
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn array(&self) -> MutexGuard<'_, Array> {
        lock(&self.shared.array)
    }

    /// The next call of `method` goes wrong.
    pub fn fault(&self, method: &str, fault: Fault) {
        lock(&self.shared.faults).push_back((method.into(), fault));
    }

    /// The next connections are closed.
    pub fn refuse(&self, phase: Phase, connections: u64) {
        *lock(&self.shared.refuse) = (phase, connections);
    }

    /// Whether everything that was to go wrong did.
    pub fn no_fault_left(&self) -> bool {
        lock(&self.shared.faults).is_empty() && lock(&self.shared.refuse).1 == 0
    }

    /// The calls of a method so far.
    pub fn calls(&self, method: &str) -> Vec<Call> {
        let calls = lock(&self.shared.calls);
        let of_it = calls.iter().filter(|call| call.method == method);
        of_it.cloned().collect()
    }

    /// The methods that change something, in the order of their calls.
    pub fn changes(&self) -> Vec<String> {
        let calls = lock(&self.shared.calls);
        let changes = calls.iter().filter(|call| !call.method.ends_with("_list"));
        changes.map(|call| call.method.clone()).collect()
    }

    pub fn connections(&self) -> u64 {
        *lock(&self.shared.connections)
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, _) = listener.accept().await.expect("a connection");
        *lock(&shared.connections) += 1;
        if is_refused(&shared, Phase::Connected) {
            continue;
        }
        connections.spawn(connection(stream, tls.clone(), shared.clone()));
    }
}

fn is_refused(shared: &Shared, now: Phase) -> bool {
    let mut refuse = lock(&shared.refuse);
    let refused = refuse.0 == now && refuse.1 > 0;
    refuse.1 -= u64::from(refused);
    refused
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    match tls {
        // A client that does not trust us is gone.
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => serve(stream, shared).await,
            Err(error) => eprintln!("the server says: {error}"),
        },
        None => serve(stream, shared).await,
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    if is_refused(&shared, Phase::Encrypted) {
        return;
    }
    let Some((head, body)) = read(&mut stream).await else {
        return;
    };
    let answered = answer(&head, &body, &shared).await;
    // Whoever gave up has closed the connection.
    let _ = stream.write_all(&answered).await;
    let _ = stream.flush().await;
}

/// Head and body of a request.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        assert!(bytes.len() < 16384, "a long head");
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let mut body = bytes.split_off(head);
    let head = String::from_utf8(bytes).expect("text");
    let length: usize = header(&head, "content-length")?.parse().expect("a length");
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some((head, body))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

async fn answer(head: &str, body: &[u8], shared: &Shared) -> Vec<u8> {
    let expected = format!("Basic {}", STANDARD.encode(format!("admin:{PASSWORD}")));
    if header(head, "authorization") != Some(&expected) {
        return status(401);
    }
    if !head.starts_with("POST /targetrpc HTTP/1.1\r\n") {
        return status(404);
    }
    let request: Value = serde_json::from_slice(body).expect("JSON");
    assert_eq!(request["jsonrpc"], "2.0");
    let method = request["method"].as_str().expect("a method").to_owned();
    let params = request["params"].clone();
    lock(&shared.calls).push(Call {
        method: method.clone(),
        params: params.clone(),
    });
    let fault = {
        let mut faults = lock(&shared.faults);
        let at = faults.iter().position(|(of, _)| *of == method);
        at.and_then(|at| faults.remove(at)).map(|(_, fault)| fault)
    };
    let work = || tokio::task::block_in_place(|| lock(&shared.array).call(&method, &params));
    let id = request["id"].clone();
    let respond = |done: Result<Value, (i64, String)>, id: Value| match done {
        Ok(result) => ok(&json!({"result": result, "id": id, "jsonrpc": "2.0"}).to_string()),
        Err((code, message)) => ok(
            &json!({"error": {"code": code, "message": message}, "id": id,
                                            "jsonrpc": "2.0"})
            .to_string(),
        ),
    };
    match fault {
        None => respond(work(), id),
        Some(Fault::CloseAfterRequest) => Vec::new(),
        Some(Fault::DoAndClose) => {
            work().expect("it can be done");
            Vec::new()
        }
        Some(Fault::DoAndCut) => {
            let mut answer = respond(work(), id);
            answer.truncate(answer.len() - 10);
            answer
        }
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::HangUntil(told)) => {
            told.notified().await;
            // Who asked has gone; whether it can be done is for the test to see.
            drop(work());
            told.notify_one();
            Vec::new()
        }
        Some(Fault::Delay(delay)) => {
            tokio::time::sleep(delay).await;
            respond(work(), id)
        }
        Some(Fault::Status(code)) => status(code),
        Some(Fault::Body(body)) => ok(&body),
        Some(Fault::Bytes(bytes)) => bytes,
        Some(Fault::Huge(length)) => ok(&" ".repeat(length)),
        Some(Fault::WrongId) => respond(work(), json!(id.as_u64().expect("a number") + 1)),
        Some(Fault::Error(code, message)) => respond(Err((code, message)), id),
        Some(Fault::First(change)) => {
            change(&mut lock(&shared.array));
            respond(work(), id)
        }
        Some(Fault::Then(change)) => {
            let done = work();
            change(&mut lock(&shared.array));
            respond(done, id)
        }
    }
}

fn ok(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.0 200 OK\r\nServer: BaseHTTP/0.6\r\nContent-type: application/json\r\n\r\n{body}"
    )
    .into_bytes()
}

fn status(code: u16) -> Vec<u8> {
    format!("HTTP/1.0 {code} Something\r\nContent-Type: text/html\r\n\r\n<h1>no</h1>").into_bytes()
}
