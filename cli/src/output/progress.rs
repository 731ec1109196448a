//! Progress bars: on a terminal only.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio_util::sync::CancellationToken;
use volmux::{Control, Progress};

/// A progress bar on stderr, or nothing where stderr is no terminal or JSON is asked for. Gone when
/// it is dropped.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Bar {
    /// A bar that says what is done.
    pub fn new(what: &'static str, json: bool) -> Self {
        if json || !std::io::stderr().is_terminal() {
            return Bar(ProgressBar::hidden());
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let template =
            "{msg} [{bar:40}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what);
        Bar(bar)
    }

    /// A control that moves the bar and is cancelled by `cancel`.
    pub fn control(&self, cancel: &CancellationToken) -> Control {
        let bar = self.0.clone();
        Control::new()
            .with_cancel(cancel.clone())
            .with_progress(move |Progress { done, total }| {
                bar.set_length(total);
                bar.set_position(done);
            })
    }

    /// Names the next step and starts from nothing.
    pub fn step(&self, what: &'static str) {
        self.0.set_message(what);
        self.0.set_position(0);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
