//! A running `volmux export`.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{Done, Place};

/// Nothing that a test waits for takes this long unless it is broken.
const LIMIT: Duration = Duration::from_secs(120);

/// A running `volmux export`, killed when dropped.
#[derive(Debug)]
pub struct Serving {
    child: Child,
    lines: Receiver<String>,
    stderr: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Serving {
    /// Starts it with these arguments after `export`.
    pub fn start(place: &Place, args: &[&str]) -> Self {
        Serving::spawn(place.command(&[&["export"], args].concat()))
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().expect("spawn");
        let stdout = child.stdout.take().expect("stdout");
        let stderr = child.stderr.take().expect("stderr");
        let (sender, lines) = channel();
        let seen = Arc::new(Mutex::new(String::new()));
        let into = seen.clone();
        let readers = vec![
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines() {
                    let _ = sender.send(line.expect("UTF-8"));
                }
            }),
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines() {
                    let line = line.expect("UTF-8") + "\n";
                    into.lock().expect("lock").push_str(&line);
                }
            }),
        ];
        Serving {
            child,
            lines,
            stderr: seen,
            readers,
        }
    }

    /// The next line of its output.
    #[track_caller]
    pub fn line(&self) -> String {
        let told = self.lines.recv_timeout(LIMIT);
        told.unwrap_or_else(|e| panic!("{e}: {}", self.stderr()))
    }

    /// What it said on stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().expect("lock").clone()
    }

    #[track_caller]
    pub fn wait_for_stderr(&self, part: &str) {
        super::wait_until(part, || self.stderr().contains(part));
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("kill");
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Waits for its end; `stdout` is what nobody read before.
    #[track_caller]
    pub fn finish(mut self) -> Done {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break status;
            }
            assert!(begin.elapsed() < LIMIT, "it goes on: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        };
        for reader in self.readers.drain(..) {
            reader.join().expect("reader");
        }
        Done {
            code: status.code(),
            stdout: self.lines.try_iter().map(|line| line + "\n").collect(),
            stderr: self.stderr(),
        }
    }

    /// Ends it with SIGTERM.
    #[track_caller]
    pub fn stop(self) -> Done {
        self.signal(Signal::TERM);
        let done = self.finish();
        assert_eq!(done.code, Some(0), "{done:?}");
        done
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program of others', which must end in time.
#[track_caller]
pub fn tool(program: &str, args: &[&str]) -> Done {
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap_or_else(|e| panic!("{program}: {e}"));
    let read = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            from.read_to_end(&mut text).expect("read");
            String::from_utf8(text).expect("UTF-8")
        })
    };
    let stdout = read(Box::new(child.stdout.take().expect("stdout")));
    let stderr = read(Box::new(child.stderr.take().expect("stderr")));
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        if begin.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{program} {args:?} goes on");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Done {
        code: status.code(),
        stdout: stdout.join().expect("stdout"),
        stderr: stderr.join().expect("stderr"),
    }
}
