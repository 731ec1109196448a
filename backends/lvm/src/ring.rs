//! Requests to disks by io_uring, or by threads where the kernel does not allow that.
//!
//! One thread serves the ring of the process. It alone submits: what io_uring still has to do for a
//! thread is cancelled when that thread ends, and this one never does. Whatever becomes of the
//! future, the ring owns memory, file and turn of a request until the kernel is done with it.

use std::collections::{HashMap, VecDeque};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use bytes::Bytes;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use tokio::sync::oneshot;

use crate::aligned::Aligned;
use crate::turns::Turn;

/// An open disk, closed when the last request is done with it.
pub type Owner = Arc<dyn AsFd + Send + Sync>;

/// Who carries requests out.
#[derive(Clone, Copy, Debug)]
pub enum Engine {
    /// The ring of the process.
    Ring(&'static Ring),
    /// The threads of the runtime that may block.
    Threads,
    /// Nobody, until a test says so.
    #[cfg(test)]
    Delayed(&'static Delayed),
}

/// Requests that wait for a test.
#[cfg(test)]
#[derive(Default)]
pub struct Delayed(Mutex<Vec<Request>>);

#[cfg(test)]
impl Delayed {
    /// How many wait.
    pub fn count(&self) -> usize {
        self.0.lock().expect("no panic").len()
    }

    /// Carries out those that wait, the last one first.
    pub fn run(&self) {
        let waiting = std::mem::take(&mut *self.0.lock().expect("no panic"));
        for request in waiting.into_iter().rev() {
            request.run_here();
        }
    }
}

#[cfg(test)]
impl std::fmt::Debug for Delayed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Delayed({})", self.count())
    }
}

impl Engine {
    /// The ring, if the kernel allows it.
    pub fn of_process() -> Engine {
        static RING: LazyLock<io::Result<Arc<Ring>>> = LazyLock::new(Ring::start);
        match &*RING {
            Ok(ring) => Engine::Ring(ring),
            Err(error) => {
                tracing::debug!(%error, "no io_uring: disks are read and written by threads");
                Engine::Threads
            }
        }
    }

    /// Reads until `buffer` is full or the disk ends.
    pub async fn read(self, owner: Owner, offset: u64, buffer: Aligned) -> io::Result<Bytes> {
        let transfer = Transfer::Read(buffer);
        match self.run(owner, offset, transfer, None).await? {
            // SAFETY: the kernel has read so many bytes.
            (Transfer::Read(buffer), done) => Ok(unsafe { buffer.filled(done) }),
            (Transfer::Write(_), _) => unreachable!("it was a read"),
        }
    }

    /// Writes all of `data`. Until that is done, `turn` is held.
    pub async fn write(self, owner: Owner, offset: u64, data: Bytes, turn: Turn) -> io::Result<()> {
        let length = data.len();
        let transfer = Transfer::Write(data);
        let (_, done) = self.run(owner, offset, transfer, Some(turn)).await?;
        if done < length {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    async fn run(
        self,
        owner: Owner,
        offset: u64,
        transfer: Transfer,
        turn: Option<Turn>,
    ) -> io::Result<(Transfer, usize)> {
        let (reply, answer) = oneshot::channel();
        let request = Request {
            transfer,
            offset,
            done: 0,
            patient: false,
            turn,
            owner,
            reply,
        };
        if request.transfer.len() == 0 {
            return Ok((request.transfer, 0));
        }
        match self {
            Engine::Ring(ring) => ring.submit(request),
            #[cfg(test)]
            Engine::Delayed(delayed) => delayed.0.lock().expect("no panic").push(request),
            Engine::Threads => drop(tokio::task::spawn_blocking(|| request.run_here())),
        }
        // Only a runtime that shuts down forgets a request.
        answer.await.map_err(io::Error::other)?
    }
}

enum Transfer {
    Read(Aligned),
    Write(Bytes),
}

impl Transfer {
    fn len(&self) -> usize {
        match self {
            Transfer::Read(buffer) => buffer.len(),
            Transfer::Write(data) => data.len(),
        }
    }
}

struct Request {
    transfer: Transfer,
    offset: u64,
    /// Bytes that are done.
    done: usize,
    /// Has been refused as one that would have to wait.
    patient: bool,
    turn: Option<Turn>,
    owner: Owner,
    reply: oneshot::Sender<io::Result<(Transfer, usize)>>,
}

impl Request {
    /// The part that is not done yet.
    ///
    /// # Safety
    /// `self.transfer` and `self.owner` must live until the kernel is done.
    unsafe fn entry(&mut self, key: u64) -> squeue::Entry {
        // More than the kernel takes at once is done in parts (MAX_RW_COUNT in linux/fs.h).
        const MOST: usize = 1 << 30;
        let fd = types::Fd(self.owner.as_fd().as_raw_fd());
        let length = (self.transfer.len() - self.done).min(MOST) as u32;
        let offset = self.offset + self.done as u64;
        let entry = match &mut self.transfer {
            Transfer::Read(buffer) => {
                let to = buffer.pointer().wrapping_add(self.done);
                opcode::Read::new(fd, to, length).offset(offset).build()
            }
            Transfer::Write(data) => {
                let from = data[self.done..].as_ptr();
                opcode::Write::new(fd, from, length).offset(offset).build()
            }
        };
        let entry = entry.user_data(key);
        if self.patient {
            entry.flags(squeue::Flags::ASYNC)
        } else {
            entry
        }
    }

    /// Takes note of what the kernel says. `Some` once it is over.
    fn progress(&mut self, result: i32) -> Option<io::Result<()>> {
        match result {
            // The disk ends here. A writer sees it from the number of bytes.
            0 => Some(Ok(())),
            count if count > 0 => {
                self.done += count as usize;
                (self.done >= self.transfer.len()).then_some(Ok(()))
            }
            error => match -error {
                libc::EINTR => None,
                // A file system or disk that does not take what must not wait.
                libc::EAGAIN | libc::EOPNOTSUPP if !self.patient => {
                    self.patient = true;
                    None
                }
                error => Some(Err(io::Error::from_raw_os_error(error))),
            },
        }
    }

    /// Gives up everything and then answers, so that who has the answer holds the disk alone.
    fn answer(self, result: io::Result<()>) {
        drop(self.turn);
        drop(self.owner);
        // Nobody may be there any more.
        let _unwanted = self.reply.send(result.map(|()| (self.transfer, self.done)));
    }

    fn run_here(mut self) {
        let result = self.transfer_here();
        self.answer(result);
    }

    fn transfer_here(&mut self) -> io::Result<()> {
        let file = self.owner.as_fd().try_clone_to_owned()?;
        let file = std::fs::File::from(file);
        while self.done < self.transfer.len() {
            let at = self.offset + self.done as u64;
            let result = match &mut self.transfer {
                Transfer::Read(buffer) => file.read_at(&mut buffer.slice()[self.done..], at),
                Transfer::Write(data) => file.write_at(&data[self.done..], at),
            };
            match result {
                Ok(0) => break,
                Ok(count) => self.done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What callers and the thread share.
pub struct Ring {
    incoming: Mutex<Vec<Request>>,
    /// The thread waits in the kernel, or is about to, and must be woken.
    asleep: AtomicBool,
    bell: PipeWriter,
}

impl Ring {
    fn start() -> io::Result<Arc<Ring>> {
        let (listener, bell) = io::pipe()?;
        let ring = Arc::new(Ring {
            incoming: Mutex::new(Vec::new()),
            asleep: AtomicBool::new(false),
            bell,
        });
        let (started, result) = mpsc::channel();
        std::thread::Builder::new()
            .name("volmux-disks".into())
            .spawn({
                let ring = ring.clone();
                // The ring is made by the thread that serves it, the only one that may then use it.
                move || match Server::new(ring, listener) {
                    Ok(server) => {
                        let _nobody = started.send(Ok(()));
                        server.serve();
                    }
                    Err(error) => {
                        let _nobody = started.send(Err(error));
                    }
                }
            })?;
        result.recv().map_err(io::Error::other)??;
        Ok(ring)
    }

    fn submit(&self, request: Request) {
        self.incoming().push(request);
        if self.asleep.swap(false, Ordering::SeqCst) {
            // It can't fail: the other end is never closed, and one byte a sleep never fills it.
            let _rung = (&self.bell).write(&[1]);
        }
    }

    fn incoming(&self) -> MutexGuard<'_, Vec<Request>> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

/// Stands for the bell among the keys of requests.
const BELL: u64 = 0;

/// The thread's part.
struct Server {
    ring: Arc<Ring>,
    kernel: IoUring,
    listener: PipeReader,
    heard: Box<[u8; 64]>,
    requests: HashMap<u64, Request>,
    last: u64,
    /// To be given to the kernel.
    ready: VecDeque<u64>,
}

/// Ends the process if it is dropped by a panic: the kernel may be writing to the memory of
/// requests, which unwinding would free.
struct MustNotUnwind;

impl Drop for MustNotUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}

impl Server {
    fn new(ring: Arc<Ring>, listener: PipeReader) -> io::Result<Server> {
        const ENTRIES: u32 = 256;
        // Since Linux 6.1: completions are worked off by this thread, when it asks for them.
        let deferred = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(ENTRIES);
        let kernel = match deferred {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(ENTRIES)?,
            deferred => deferred?,
        };
        let mut probe = Probe::new();
        kernel.submitter().register_probe(&mut probe)?;
        let needed = [opcode::Read::CODE, opcode::Write::CODE];
        if !needed.into_iter().all(|code| probe.is_supported(code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Server {
            ring,
            kernel,
            listener,
            heard: Box::new([0; 64]),
            requests: HashMap::new(),
            last: BELL,
            ready: VecDeque::from([BELL]),
        })
    }

    fn serve(mut self) -> ! {
        let _guard = MustNotUnwind;
        loop {
            self.take_incoming();
            self.fill_queue();
            self.ring.asleep.store(true, Ordering::SeqCst);
            // Who comes after this look sees that the bell must be rung.
            let busy = !self.ready.is_empty() || !self.ring.incoming().is_empty();
            let entered = self.kernel.submit_and_wait(usize::from(!busy));
            self.ring.asleep.store(false, Ordering::SeqCst);
            if let Err(error) = entered {
                self.not_now(&error);
            }
            self.take_completions();
        }
    }

    fn take_incoming(&mut self) {
        let incoming = std::mem::take(&mut *self.ring.incoming());
        for request in incoming {
            self.last += 1;
            self.requests.insert(self.last, request);
            self.ready.push_back(self.last);
        }
    }

    fn fill_queue(&mut self) {
        let mut queue = self.kernel.submission();
        while let Some(&key) = self.ready.front() {
            let entry = if key == BELL {
                let listener = types::Fd(self.listener.as_raw_fd());
                let (to, length) = (self.heard.as_mut_ptr(), self.heard.len() as u32);
                opcode::Read::new(listener, to, length)
                    .build()
                    .user_data(BELL)
            } else {
                let request = self.requests.get_mut(&key).expect("it is not over");
                // SAFETY: requests stay in the map, which unwinding does not drop, until their
                // completion has come.
                unsafe { request.entry(key) }
            };
            // SAFETY: what the entry points to is valid until the completion has come: for
            // requests see above, and `self`, with the bell's bytes, is never dropped.
            if unsafe { queue.push(&entry) }.is_err() {
                break;
            }
            self.ready.pop_front();
        }
    }

    fn take_completions(&mut self) {
        for completion in self.kernel.completion() {
            let key = completion.user_data();
            if key == BELL {
                self.ready.push_back(BELL);
                continue;
            }
            let request = self.requests.get_mut(&key).expect("it is not over");
            match request.progress(completion.result()) {
                None => self.ready.push_back(key),
                Some(result) => {
                    let request = self.requests.remove(&key).expect("seen just now");
                    request.answer(result);
                }
            }
        }
    }

    /// The kernel takes nothing for now. What was to be submitted still is.
    fn not_now(&self, error: &io::Error) {
        match error.raw_os_error() {
            // EBUSY: it wants its completions taken first.
            Some(libc::EINTR | libc::EBUSY) => {}
            _ => {
                tracing::warn!(%error, "io_uring_enter");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn file(length: usize) -> (Owner, Vec<u8>) {
        let data: Vec<u8> = (0..length).map(|i| (i % 253) as u8).collect();
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&data, 0).expect("write");
        (Arc::new(file), data)
    }

    fn engines() -> [Engine; 2] {
        let ring = Engine::of_process();
        assert!(
            matches!(ring, Engine::Ring(_)),
            "the test machine has io_uring"
        );
        [ring, Engine::Threads]
    }

    async fn read(engine: Engine, owner: &Owner, offset: u64, length: usize) -> io::Result<Bytes> {
        let buffer = Aligned::new(length, 512).expect("memory");
        engine.read(owner.clone(), offset, buffer).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_at_once_each_get_their_own() {
        for engine in engines() {
            let (owner, data) = file(1 << 20);
            let reads = (0..2000usize).map(|i| {
                let (offset, length) = (i * 37 % 500_000, 1 + i * 11 % 70_000);
                let (owner, expected) = (owner.clone(), &data[offset..offset + length]);
                async move {
                    let found = read(engine, &owner, offset as u64, length).await;
                    assert!(found.expect("read") == expected, "{engine:?} {i}");
                }
            });
            futures::future::join_all(reads).await;
        }
    }

    #[tokio::test]
    async fn the_end_and_errors_come_back() {
        for engine in engines() {
            let (owner, data) = file(5000);
            let found = read(engine, &owner, 4000, 4096).await.expect("to the end");
            assert_eq!(found, data[4000..]);
            assert!(
                read(engine, &owner, 5000, 1)
                    .await
                    .expect("none")
                    .is_empty()
            );
            assert!(read(engine, &owner, 0, 0).await.expect("none").is_empty());
            let read_only: Owner = Arc::new(File::open("/proc/self/exe").expect("open"));
            let turn = crate::turns::Turns::default();
            let turn = turn.write(volmux_core::ByteRange::new(0, 1)).await.share();
            let data = Bytes::from_static(b"x");
            let error = engine.write(read_only, 0, data, turn).await;
            assert_eq!(
                error.expect_err("read-only").raw_os_error(),
                Some(libc::EBADF)
            );
        }
    }

    #[test]
    fn a_request_goes_on_where_it_stopped() {
        let (reply, _answer) = oneshot::channel();
        let mut request = Request {
            transfer: Transfer::Write(Bytes::from_static(b"0123456789")),
            offset: 100,
            done: 0,
            patient: false,
            turn: None,
            owner: file(0).0,
            reply,
        };
        assert!(request.progress(4).is_none());
        assert!(request.progress(-libc::EINTR).is_none());
        assert!(request.progress(-libc::EAGAIN).is_none() && request.patient);
        assert!(request.progress(-libc::EAGAIN).expect("over").is_err());
        assert!(request.progress(6).expect("over").is_ok());
        assert_eq!(request.done, 10);
        assert!(request.progress(0).expect("over").is_ok());
    }
}
