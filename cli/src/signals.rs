//! Ctrl-C and SIGTERM.

use std::io::Write;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use volmux::{Error, ErrorKind, Result};

use crate::args::exit_code;

/// Cancels `cancel` at the first signal and ends the program at the second, in one task.
///
/// # Errors
/// `Unavailable` if the signals can't be caught.
pub fn watch(cancel: CancellationToken) -> Result<()> {
    let wrong = |e| Error::from_io("watch_signals", e);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(wrong)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(wrong)?;
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if first {
                let text = "stopping and cleaning up; the same again ends at once";
                let _ = writeln!(std::io::stderr().lock(), "{text}");
                cancel.cancel();
            }
        }
        std::process::exit(i32::from(exit_code(ErrorKind::TimedOut)));
    });
    Ok(())
}
