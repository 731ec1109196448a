//! Other programs: each has a time limit, and none outlives its test.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::client::PATIENCE;

/// What a program did.
#[derive(Clone, Debug)]
pub struct Ran {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Its output, where it must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(
            self.status.success(),
            "{}\n{}\n{}",
            self.status,
            self.stdout,
            self.stderr
        );
        self.stdout
    }

    /// Its complaint, where it must have failed.
    #[track_caller]
    pub fn failed(self) -> String {
        assert!(
            !self.status.success(),
            "it succeeded: {}\n{}",
            self.stdout,
            self.stderr
        );
        self.stderr + &self.stdout
    }
}

/// Runs a program to its end.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Ran {
    let mut command = Command::new(program);
    command.args(args).env("LC_ALL", "C").stdin(Stdio::null());
    let mut running = Running::start(&mut command);
    let deadline = Instant::now() + 2 * PATIENCE;
    let status = loop {
        if let Some(status) = running.child.try_wait().expect("wait") {
            break status;
        }
        if Instant::now() > deadline {
            running.kill();
            panic!("{command:?} takes too long: {}", running.collect().1);
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (stdout, stderr) = running.collect();
    Ran {
        status,
        stdout,
        stderr,
    }
}

/// A program in the background, which is killed at the end.
#[derive(Debug)]
pub struct Running {
    child: Child,
    output: Vec<JoinHandle<String>>,
}

impl Running {
    #[track_caller]
    pub fn start(command: &mut Command) -> Running {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn();
        let mut child = child.unwrap_or_else(|e| panic!("{command:?}: {e}; run .ci/setup"));
        let stdout = child.stdout.take().expect("piped");
        let stderr = child.stderr.take().expect("piped");
        let output = vec![in_background(stdout), in_background(stderr)];
        Running { child, output }
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What it said, after its end.
    fn collect(&mut self) -> (String, String) {
        let mut texts = self
            .output
            .drain(..)
            .map(|t| t.join().expect("a reading thread"));
        let stdout = texts.next().unwrap_or_default();
        (stdout, texts.next().unwrap_or_default())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn in_background(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is shown.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits until something is so, but not for ever.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
