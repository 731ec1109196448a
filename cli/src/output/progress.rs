//! Progress bars: on a terminal only.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio_util::sync::CancellationToken;
use volmux::{Control, Progress};

/// A progress bar on stderr, or nothing where stderr is no terminal or JSON is asked for. It appears
/// with the first report of work, so that what takes no time shows none, and is gone when dropped.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    visible: bool,
}

impl Bar {
    /// A bar that says what is done.
    pub fn new(what: &'static str, json: bool) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let template =
            "{msg} [{bar:40}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what);
        Bar {
            bar,
            visible: !json && std::io::stderr().is_terminal(),
        }
    }

    /// A control that moves the bar and is cancelled by `cancel`.
    pub fn control(&self, cancel: &CancellationToken) -> Control {
        let (bar, visible) = (self.bar.clone(), self.visible);
        let watch = move |Progress { done, total }| {
            bar.set_length(total);
            bar.set_position(done);
            if visible && done > 0 && bar.is_hidden() {
                bar.set_draw_target(ProgressDrawTarget::stderr());
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
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
