//! Servers in processes of their own, so that what they cost can be told from what their clients do.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Result;
use crate::measure::field;

/// An NBD server on a Unix socket, in a process of its own. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    process: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts `program` and waits until it answers on `socket`.
    ///
    /// # Errors
    /// If it can't be started, ends, or does not answer within half a minute.
    pub fn start<S: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = S>,
        socket: &Path,
    ) -> Result<Self> {
        // With `setpriv` it ends with this process, even if that is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&program);
        command.args(arguments).stdin(Stdio::null());
        let process = command.spawn().map_err(|e| format!("{command:?}: {e}"))?;
        let socket = socket.to_owned();
        let mut server = Server { process, socket };
        let start = Instant::now();
        while !answers(&server.socket) {
            if let Some(status) = server.process.try_wait()? {
                return Err(format!("{command:?}: {status}").into());
            }
            if start.elapsed() > Duration::from_secs(30) {
                return Err(format!("{command:?}: no NBD server on its socket").into());
            }
            sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The processor time that it has used, all threads together, those that ended included.
    ///
    /// # Errors
    /// If it ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let ticks = ticks(&stat).ok_or_else(|| format!("no times in {stat}"))?;
        let per_second = rustix::param::clock_ticks_per_second();
        Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
    }

    /// The most memory that it has had, in bytes.
    ///
    /// # Errors
    /// If it ended.
    pub fn peak_rss_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.process.id());
        field(&fs::read_to_string(path)?, "VmHWM")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only if it ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Keeps every processor of this machine busy with work that anything else goes before, so that none
/// of them halts. In a virtual machine it takes tens of microseconds to wake one that did: many times
/// what a server does for a request, and the same for each. Dropping it ends that.
#[derive(Debug)]
pub struct Awake(Vec<Child>);

impl Awake {
    /// Begins.
    ///
    /// # Errors
    /// If the programs for it (util-linux) can't be started.
    pub fn keep() -> Result<Self> {
        let mut awake = Awake(Vec::new());
        for _ in 0..std::thread::available_parallelism()?.get() {
            let spin = ["chrt", "--idle", "0", "sh", "-c", "while :; do :; done"];
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--"]).args(spin);
            let child = command.stdin(Stdio::null()).spawn();
            awake
                .0
                .push(child.map_err(|e| format!("{command:?}: {e}"))?);
        }
        Ok(awake)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Whether an NBD server greets its clients on `socket`. It is told goodbye properly.
fn answers(socket: &Path) -> bool {
    let greet = || -> std::io::Result<[u8; 18]> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        // Client flags (fixed newstyle), then IHAVEOPT, NBD_OPT_ABORT, no data.
        stream.write_all(b"\0\0\0\x01IHAVEOPT\0\0\0\x02\0\0\0\0")?;
        Ok(greeting)
    };
    greet().is_ok_and(|greeting| greeting.starts_with(b"NBDMAGICIHAVEOPT"))
}

/// User and system time in a line of /proc/PID/stat (proc(5), fields 14 and 15).
fn ticks(stat: &str) -> Option<u64> {
    // The second field is the program's name, which may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194560 97 0 0 0 300 21 5 6 20 0 1 0 100";
        assert_eq!(ticks(stat), Some(321));
        assert_eq!(ticks("12 (a"), None);
    }

    #[test]
    fn a_program_that_ends_is_no_server() {
        let error = Server::start("false", [""; 0], Path::new("/nowhere")).expect_err("ended");
        assert!(error.to_string().contains("exit status"), "{error}");
    }
}
