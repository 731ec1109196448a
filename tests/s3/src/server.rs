//! The server: connections, and what is wrong with it.

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::net::sockopt::set_socket_linger;

use crate::auth::{self, Keys};
use crate::counts::{Counters, Counts, Kind, Record, Stored};
use crate::faults::{Fault, Faults, Rule};
use crate::http::{Connection, Request, Response};
use crate::orders;
use crate::s3::{self, Target};
use crate::store::{Query, Store};

/// How a server is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens; port 0: any.
    pub listen: SocketAddr,
    /// Buckets that are there from the start; others are made by PUT.
    pub buckets: Vec<String>,
    /// Requests must be signed with this key; `None`: nobody looks at signatures.
    pub keys: Option<Keys>,
    /// Objects are held compressed (lz4), for data that would not fit into memory otherwise.
    pub compress: bool,
}

impl Default for Options {
    /// On any port of the loopback, with the bucket `bucket`, open to everybody.
    fn default() -> Self {
        Options {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            buckets: vec!["bucket".into()],
            keys: None,
            compress: false,
        }
    }
}

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Server(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    address: SocketAddr,
    keys: Option<Keys>,
    store: Store,
    counters: Counters,
    faults: Faults,
    read_only: AtomicBool,
    connections: Mutex<HashMap<u64, TcpStream>>,
    numbers: AtomicU64,
    door: Mutex<Door>,
    changed: Condvar,
}

/// Whether the server takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Open,
    /// Until then.
    Closing(Instant),
    /// The acceptor has seen it: nobody listens.
    Closed,
    Ended,
}

impl Server {
    /// Starts one.
    ///
    /// # Errors
    /// If it can't listen there.
    pub fn start(options: Options) -> io::Result<Server> {
        let listener = TcpListener::bind(options.listen)?;
        let shared = Arc::new(Shared {
            address: listener.local_addr()?,
            keys: options.keys,
            store: Store::new(options.compress),
            counters: Counters::default(),
            faults: Faults::default(),
            read_only: AtomicBool::new(false),
            connections: Mutex::default(),
            numbers: AtomicU64::new(0),
            door: Mutex::new(Door::Open),
            changed: Condvar::new(),
        });
        for bucket in &options.buckets {
            shared.store.make_bucket(bucket);
        }
        let acceptor = Arc::clone(&shared);
        thread::Builder::new()
            .name("s3-accept".into())
            .spawn(move || accept(&acceptor, listener))?;
        Ok(Server(shared))
    }

    /// Where it is: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.0.address)
    }

    /// What was asked so far.
    pub fn counts(&self) -> Counts {
        self.0.counts()
    }

    /// What is stored at the moment.
    pub fn stored(&self) -> Stored {
        self.0.stored()
    }

    /// Records every request from now on, or no longer; returns what was recorded so far.
    pub fn record(&self, on: bool) -> Vec<Record> {
        self.0.counters.record(on)
    }

    /// Every request, or every one of that kind, takes at least so long from now on. Without a
    /// kind, what was said of kinds before is void.
    pub fn latency(&self, kind: Option<Kind>, latency: Duration) {
        self.0.faults.latency(kind, latency);
    }

    /// Requests that fit fail. The first rule that fits counts.
    pub fn fail(&self, rule: Rule) {
        self.0.faults.add(rule);
    }

    /// So many of 1,000 requests fail, each in its own way; which, is up to the seed.
    pub fn fail_at_random(&self, seed: u64, per_mille: u32) {
        self.0.faults.random(seed, per_mille);
    }

    /// No more latency and no more failures.
    pub fn heal(&self) {
        self.0.faults.clear();
    }

    /// Cuts every connection off and refuses new ones for so long. Returns at once; from then on
    /// nobody gets through.
    pub fn outage(&self, time: Duration) {
        self.0.outage(time);
    }

    /// Refuses to change anything (403 AccessDenied), or no longer.
    pub fn read_only(&self, on: bool) {
        self.0.read_only(on);
    }

    /// The keys in `bucket` that begin with `prefix`, in order.
    pub fn keys(&self, bucket: &str, prefix: &str) -> Vec<String> {
        let query = Query {
            prefix: prefix.to_owned(),
            limit: usize::MAX,
            ..Query::default()
        };
        let page = self.0.store.list(bucket, &query).unwrap_or_default();
        page.objects.into_iter().map(|(key, _)| key).collect()
    }

    /// An object's content.
    pub fn object(&self, bucket: &str, key: &str) -> Option<Bytes> {
        let object = self.0.store.get(bucket, key)??;
        Some(object.read(0..object.length()))
    }

    /// Replaces the content of an object that is there, or removes it, behind everybody's back.
    /// `false` if it was not there.
    pub fn damage(&self, bucket: &str, key: &str, data: Option<Bytes>) -> bool {
        self.0.store.replace(bucket, key, data)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Shared {
    pub(crate) fn counts(&self) -> Counts {
        self.counters.get()
    }

    pub(crate) fn stored(&self) -> Stored {
        let (objects, bytes) = self.store.stored();
        Stored { objects, bytes }
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    pub(crate) fn read_only(&self, on: bool) {
        self.read_only.store(on, Ordering::SeqCst);
    }

    pub(crate) fn outage(&self, time: Duration) {
        let mut door = self.door.lock().expect("nobody panicked");
        *door = Door::Closing(Instant::now() + time);
        self.knock();
        while matches!(*door, Door::Closing(_)) {
            door = self.changed.wait(door).expect("nobody panicked");
        }
        drop(door);
        self.cut_off();
    }

    fn end(&self) {
        *self.door.lock().expect("nobody panicked") = Door::Ended;
        self.changed.notify_all();
        self.knock();
        self.cut_off();
    }

    /// Wakes the acceptor, which sleeps until somebody comes.
    fn knock(&self) {
        // Fails if nobody listens, and then there is nobody to wake.
        let _ = TcpStream::connect(self.address);
    }

    fn cut_off(&self) {
        let connections = self.connections.lock().expect("nobody panicked");
        for stream in connections.values() {
            // Fails if the client was faster.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept(shared: &Arc<Shared>, mut listener: TcpListener) {
    loop {
        let accepted = listener.accept();
        let mut door = shared.door.lock().expect("nobody panicked");
        if let Door::Closing(until) = *door {
            drop(listener);
            *door = Door::Closed;
            shared.changed.notify_all();
            while *door == Door::Closed && Instant::now() < until {
                let left = until.saturating_duration_since(Instant::now());
                door = shared
                    .changed
                    .wait_timeout(door, left)
                    .expect("nobody panicked")
                    .0;
            }
            if *door == Door::Ended {
                return;
            }
            *door = Door::Open;
            drop(door);
            listener = listen_again(shared.address);
            continue;
        }
        if *door == Door::Ended {
            return;
        }
        drop(door);
        let Ok((stream, _)) = accepted else {
            continue;
        };
        let shared = Arc::clone(shared);
        let serve = move || serve(&shared, stream);
        // Without a thread the connection is closed, which its client can see.
        let _ = thread::Builder::new().name("s3".into()).spawn(serve);
    }
}

/// The port was ours a moment ago, but anybody may have taken it for a connection of their own.
fn listen_again(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => return listener,
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn serve(shared: &Shared, stream: TcpStream) {
    let number = shared.numbers.fetch_add(1, Ordering::Relaxed);
    let Ok(copy) = stream.try_clone() else {
        return;
    };
    let connections = &shared.connections;
    connections
        .lock()
        .expect("nobody panicked")
        .insert(number, copy);
    // Errors of the connection are its end, and the client's to see.
    let _ = converse(shared, stream);
    let copy = connections.lock().expect("nobody panicked").remove(&number);
    drop(copy);
}

fn converse(shared: &Shared, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut connection = Connection::new(stream);
    if *shared.door.lock().expect("nobody panicked") != Door::Open {
        return Ok(());
    }
    while let Some(request) = connection.receive()? {
        let close = request
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"));
        if let Some(order) = request.target.strip_prefix(orders::PREFIX) {
            connection.send(&orders::obey(shared, order))?;
        } else if !treat(shared, &mut connection, &request)? {
            // The connection is reset, not just closed.
            set_socket_linger(connection.stream(), Some(Duration::ZERO))?;
            return Ok(());
        }
        if close {
            return Ok(());
        }
    }
    Ok(())
}

/// Answers `request`, or not; `false` if the connection is to be reset.
fn treat(shared: &Shared, connection: &mut Connection, request: &Request) -> io::Result<bool> {
    let target = Target::of(request);
    let (latency, fault) = shared.faults.next(target.kind, target.subject());
    if !latency.is_zero() {
        thread::sleep(latency);
    }
    let response = respond(shared, &target, request, fault);
    let answered = !matches!(
        fault,
        Some(Fault::Reset | Fault::LostAnswer | Fault::TornAnswer | Fault::Hang(_))
    );
    shared.counters.add(Record {
        kind: target.kind,
        key: target.subject().to_owned(),
        range: request.header("range").map(str::to_owned),
        bytes: (
            request.body.len() as u64,
            response.as_ref().map_or(0, |r| r.body.len() as u64),
        ),
        status: response
            .as_ref()
            .map_or(0, |response| if answered { response.status } else { 0 }),
    });
    match (fault, response) {
        (Some(Fault::Hang(time)), _) => thread::sleep(time),
        (Some(Fault::TornAnswer), Some(response)) => connection.send_half(&response)?,
        (_, Some(response)) if answered => connection.send(&response)?,
        _ => {}
    }
    Ok(answered)
}

/// What is to be answered; `None` if nothing was done.
fn respond(
    shared: &Shared,
    target: &Target,
    request: &Request,
    fault: Option<Fault>,
) -> Option<Response> {
    match fault {
        Some(Fault::Reset | Fault::Hang(_)) => return None,
        Some(Fault::SlowDown) => {
            return Some(Response::error(503, "SlowDown", "Please slow down"));
        }
        Some(Fault::Internal) => {
            return Some(Response::error(500, "InternalError", "Please try again"));
        }
        Some(Fault::Denied) => return Some(denied()),
        Some(Fault::LostAnswer | Fault::TornAnswer) | None => {}
    }
    let keys = shared.keys.as_ref();
    let refused = keys.and_then(|keys| auth::refuse(keys, request, &target.query));
    if refused.is_some() {
        return refused;
    }
    if target.kind.writes() && shared.read_only.load(Ordering::SeqCst) {
        return Some(denied());
    }
    Some(s3::answer(&shared.store, target, request))
}

fn denied() -> Response {
    Response::error(403, "AccessDenied", "Access denied")
}
