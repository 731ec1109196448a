//! A process that writes to a volume, one flushed block after the other.
#![allow(dead_code)]

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use volmux::OpenOptions;
use volmux_conformance::{checked_name, pattern};

/// Bytes in a block.
pub const BLOCK: u64 = 4096;
/// Blocks that each writer has for itself.
pub const BLOCKS: u64 = 256;

/// A writer to the volume `shared`, killed when dropped.
pub struct Writer {
    child: Child,
    lines: BufReader<ChildStdout>,
    flushed: Option<u64>,
}

impl Writer {
    /// Starts it; the volume is open then.
    pub fn start(url: &str, writer: u64) -> Writer {
        let mut child = Command::new(env!("CARGO_BIN_EXE_object-writer"))
            .args([url, "shared", &writer.to_string(), &BLOCKS.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the writer starts");
        let lines = BufReader::new(child.stdout.take().expect("its output"));
        let mut writer = Writer {
            child,
            lines,
            flushed: None,
        };
        assert_eq!(writer.line().as_deref(), Some("open"));
        writer
    }

    /// What it says next; `None` once it has ended.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("its output");
        // A line that was cut by its death says nothing.
        let line = line.strip_suffix('\n')?;
        if let Some(number) = line.strip_prefix("flushed ") {
            self.flushed = Some(number.parse().expect("a number"));
        }
        Some(line.to_owned())
    }

    /// Waits until so many blocks are flushed.
    pub fn until_flushed(&mut self, number: u64) {
        while self.flushed.is_none_or(|flushed| flushed < number) {
            self.line().expect("it writes on");
        }
    }

    /// How far it came, once it was fenced.
    pub fn until_fenced(mut self) -> u64 {
        while let Some(line) = self.line() {
            if line == "fenced" {
                assert!(self.child.wait().expect("it ends").success());
                return self.flushed.expect("it wrote something");
            }
        }
        panic!("the writer ended before it was fenced");
    }

    /// How far it came before it was killed.
    pub fn kill(mut self) -> u64 {
        self.child.kill().expect("it is killed");
        while self.line().is_some() {}
        self.child.wait().expect("it ends");
        self.flushed.expect("it wrote something")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last block that each writer was told is flushed, and those before it, must be there.
pub async fn check(url: &str, flushed: &[u64]) {
    let pool = volmux::registry().open(url).await.expect("the pool opens");
    let name = checked_name("shared");
    let device = pool
        .open_volume(&name, OpenOptions::read_only())
        .await
        .expect("open");
    for (writer, last) in flushed.iter().enumerate() {
        let writer = writer as u64;
        for number in last.saturating_sub(BLOCKS - 2)..=*last {
            let block = writer * BLOCKS + number % BLOCKS;
            let read = device
                .read_at(block * BLOCK, BLOCK as usize)
                .await
                .expect("read");
            // The write that was under way at the end may be there as well.
            let next = number + BLOCKS;
            let right = [number, next]
                .iter()
                .any(|n| read == pattern(writer << 32 | n, BLOCK as usize));
            assert!(
                right,
                "writer {writer}: block {number} of {last} is not there"
            );
        }
    }
}
