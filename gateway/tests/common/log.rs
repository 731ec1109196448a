//! What a server logs, line by line.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The lines of one server, from `info` up. Each server of the tests has threads of its own, and so
/// a log of its own.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// All lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no test panics in here").clone()
    }

    /// The warnings so far.
    pub fn warnings(&self) -> Vec<String> {
        let mut lines = self.lines();
        lines.retain(|line| line.starts_with("WARN ") || line.starts_with("ERROR "));
        lines
    }

    /// Whether one warning holds all of these.
    pub fn warned(&self, parts: &[&str]) -> bool {
        let holds = |line: &String| parts.iter().all(|part| line.contains(part));
        self.warnings().iter().any(holds)
    }

    /// Waits for a warning that holds all of these.
    #[track_caller]
    pub fn expect_warning(&self, parts: &[&str]) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !self.warned(parts) {
            let late = std::time::Instant::now() > deadline;
            assert!(!late, "no warning with {parts:?} in {:#?}", self.lines());
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

struct Line(String);

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().expect("no test panics in here").push(line.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
