//! Progress: a bar on a terminal, documents for who asks for them.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use volmux::{Control, Progress};

use super::error::print;

/// Between two documents; the last one, when all is done, comes at once.
const PAUSE: Duration = Duration::from_millis(500);

/// How far long work is, as one JSON document.
#[derive(Serialize)]
struct ProgressDoc {
    schema: &'static str,
    what: &'static str,
    done: u64,
    total: u64,
}

/// A progress bar on stderr, or nothing where stderr is no terminal or JSON is asked for. It
/// appears with the first report of work, so that what takes no time shows none, and is gone when
/// dropped. For JSON there are documents if they are asked for.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    visible: bool,
    documents: Option<Arc<Mutex<Told>>>,
}

/// What was told last.
#[derive(Debug)]
struct Told {
    what: &'static str,
    last: Option<Instant>,
}

impl Bar {
    /// A bar that says what is done. With `json` nothing is shown but, with `documents`, those.
    pub fn new(what: &'static str, json: bool, documents: bool) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let template =
            "{msg} [{bar:40}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what);
        let told = || Arc::new(Mutex::new(Told { what, last: None }));
        Bar {
            bar,
            visible: !json && std::io::stderr().is_terminal(),
            documents: (json && documents).then(told),
        }
    }

    /// A control that moves the bar and is cancelled by `cancel`.
    pub fn control(&self, cancel: &CancellationToken) -> Control {
        let (bar, visible) = (self.bar.clone(), self.visible);
        let documents = self.documents.clone();
        let watch = move |Progress { done, total }| {
            bar.set_length(total);
            bar.set_position(done);
            if visible && done > 0 && bar.is_hidden() {
                bar.set_draw_target(ProgressDrawTarget::stderr());
            }
            if let Some(told) = &documents {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                told.tell(done, total);
            }
        };
        Control::new()
            .with_cancel(cancel.clone())
            .with_progress(watch)
    }

    /// Names the next step and starts from nothing.
    pub fn step(&self, what: &'static str) {
        self.bar.set_message(what);
        self.bar.set_position(0);
        self.bar.reset_eta();
        if let Some(told) = &self.documents {
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Told { what, last: None };
        }
    }
}

impl Told {
    /// Tells, but not too often.
    fn tell(&mut self, done: u64, total: u64) {
        let now = Instant::now();
        let soon = |last: Instant| now.duration_since(last) < PAUSE;
        if self.last.is_some_and(soon) && done < total {
            return;
        }
        self.last = Some(now);
        let document = ProgressDoc {
            schema: "volmux.progress.v1",
            what: self.what,
            done,
            total,
        };
        print(&serde_json::to_string(&document).unwrap_or_default());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
