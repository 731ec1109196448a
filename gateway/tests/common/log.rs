//! What a server logs, line by line.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Id};
use tracing::field::{Field, Visit};
use tracing::span::{self, Attributes, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The logs of all runtimes: each server has a runtime, and so a log, of its own.
static LOGS: LazyLock<Mutex<HashMap<Id, Log>>> = LazyLock::new(|| {
    let router = tracing::subscriber::set_global_default(Router);
    router.expect("nobody else sets it");
    Mutex::default()
});

/// The lines of one server, from `info` up.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// The log of what runs in `runtime` from now on.
    pub fn of(runtime: &Handle) -> Log {
        let log = Log::default();
        let mut logs = LOGS.lock().expect("no test panics in here");
        logs.insert(runtime.id(), log.clone());
        log
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no test panics in here").clone()
    }

    /// The warnings and errors so far.
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
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.warned(parts) {
            let late = Instant::now() > deadline;
            assert!(!late, "no warning with {parts:?} in {:#?}", self.lines());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Forgets all lines.
    pub fn clear(&self) {
        self.0.lock().expect("no test panics in here").clear();
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

/// Gives each line to the log of the runtime that it comes from.
struct Router;

impl Subscriber for Router {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let logs = LOGS.lock().expect("no test panics in here");
        let Some(log) = logs.get(&runtime.id()).cloned() else {
            return;
        };
        drop(logs);
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        log.0.lock().expect("no test panics in here").push(line.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
