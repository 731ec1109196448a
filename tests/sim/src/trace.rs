//! What happened, as a hash always and as text for a replay.

use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::rng::mix;

/// A log of events that several share. Its hash tells whether two runs were the same.
#[derive(Clone, Debug)]
pub struct Trace(Arc<Mutex<Log>>);

#[derive(Debug)]
struct Log {
    hash: u64,
    events: u64,
    now: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// An empty one, which keeps the text of events only if `text`.
    pub fn new(text: bool) -> Self {
        Trace(Arc::new(Mutex::new(Log {
            hash: 0,
            events: 0,
            now: 0,
            lines: text.then(Vec::new),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The virtual time, in milliseconds, of the events that follow.
    pub fn at(&self, now: u64) {
        self.lock().now = now;
    }

    /// Notes an event: `numbers` go into the hash, `text` is only asked for when it is kept.
    pub fn event(&self, numbers: &[u64], text: impl FnOnce() -> String) {
        let mut log = self.lock();
        log.events += 1;
        let mut hash = mix(log.hash ^ log.now);
        for number in numbers {
            hash = mix(hash ^ number);
        }
        log.hash = hash;
        let now = log.now;
        if let Some(lines) = &mut log.lines {
            lines.push(format!("{:>6}.{:03} {}", now / 1000, now % 1000, text()));
        }
    }

    /// The hash of all events, and their number.
    pub fn summary(&self) -> (u64, u64) {
        let log = self.lock();
        (log.hash, log.events)
    }

    /// The text so far, one line an event; empty if it is not kept.
    pub fn text(&self) -> String {
        let log = self.lock();
        let mut text = String::new();
        for line in log.lines.iter().flatten() {
            let _ = writeln!(text, "{line}");
        }
        text
    }
}

/// A number for a text, for the hash.
pub fn number(text: &str) -> u64 {
    text.bytes().fold(text.len() as u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
