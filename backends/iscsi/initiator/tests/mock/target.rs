//! A target inside the test: a thread listens, and each connection has one that runs a script.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use crate::connection::Connection;
use crate::wire::Pdu;

pub const BLOCK: usize = 512;
pub const BLOCKS: usize = 4096;

/// What a connection does. It ends with an error when the initiator is gone.
type Script = dyn Fn(&mut Connection) -> io::Result<()> + Send + Sync;

/// A request, and the number of the connection it came by.
#[derive(Clone, Debug)]
pub struct Seen {
    pub connection: usize,
    pub pdu: Pdu,
}

#[derive(Default, Debug)]
pub struct Record {
    pub connections: usize,
    /// Connections whose scripts have not ended.
    pub running: usize,
    pub seen: Vec<Seen>,
    /// Commands that waited for their answers at a time, at most.
    pub most_open: usize,
}

pub struct Shared {
    pub disk: Mutex<Vec<u8>>,
    record: Mutex<Record>,
    stopped: AtomicBool,
}

impl Shared {
    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("nobody panics with the record")
    }

    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

/// Stops when dropped, and panics if a script has.
pub struct Target {
    port: u16,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

impl Target {
    pub fn start<S>(script: S) -> Target
    where
        S: Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            disk: Mutex::new(pattern(0, BLOCKS * BLOCK)),
            record: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let listening = Arc::clone(&shared);
        let run = move || listen(&listener, &listening, &(Arc::new(script) as Arc<Script>));
        Target {
            port,
            shared,
            listener: Some(thread::spawn(run)),
        }
    }

    pub fn portal(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn connections(&self) -> usize {
        self.shared.record().connections
    }

    pub fn running(&self) -> usize {
        self.shared.record().running
    }

    pub fn most_open(&self) -> usize {
        self.shared.record().most_open
    }

    /// The requests with this opcode so far.
    pub fn seen(&self, opcode: u8) -> Vec<Seen> {
        let record = self.shared.record();
        let all = record.seen.iter();
        all.filter(|seen| seen.pdu.opcode() == opcode)
            .cloned()
            .collect()
    }

    pub fn disk(&self, block: usize, blocks: usize) -> Vec<u8> {
        let disk = self
            .shared
            .disk
            .lock()
            .expect("nobody panics with the disk");
        disk[block * BLOCK..][..blocks * BLOCK].to_vec()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes it from accepting.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        let ended = self.listener.take().expect("stopped once").join();
        if !thread::panicking() {
            ended.expect("no script panicked: see above");
        }
    }
}

fn listen(listener: &TcpListener, shared: &Arc<Shared>, script: &Arc<Script>) {
    let mut running: Vec<(TcpStream, JoinHandle<()>)> = Vec::new();
    loop {
        let (stream, _) = listener.accept().expect("accepting");
        if shared.stopped() {
            break;
        }
        let number = {
            let mut record = shared.record();
            record.connections += 1;
            record.running += 1;
            record.connections
        };
        let handle = stream.try_clone().expect("a second handle");
        let (shared, script) = (Arc::clone(shared), Arc::clone(script));
        let serve = move || {
            let mut connection = Connection::new(stream, number, shared);
            // An error only tells that the initiator is gone: tests look at what was seen.
            drop(script(&mut connection));
            connection.close();
            connection.shared.record().running -= 1;
        };
        running.push((handle, thread::spawn(serve)));
    }
    for (stream, _) in &running {
        drop(stream.shutdown(Shutdown::Both));
    }
    let ended: Vec<_> = running
        .into_iter()
        .map(|(_, thread)| thread.join())
        .collect();
    assert!(
        ended.iter().all(Result::is_ok),
        "a script of the target panicked"
    );
}

/// What the disk holds at first: every block differs, and so does every offset in it.
pub fn pattern(start: usize, length: usize) -> Vec<u8> {
    // Made once: every target needs it.
    static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let byte = |at: usize| (at / BLOCK).wrapping_mul(31).wrapping_add(at % 251) as u8;
        (0..BLOCKS * BLOCK).map(byte).collect()
    });
    IMAGE[start..start + length].to_vec()
}
