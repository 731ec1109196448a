//! What stops the program: Ctrl-C, SIGTERM, and what `--stop-at-eof` and `--time-limit` ask for.

use std::io::{Read, Write};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use volmux::{Error, ErrorKind, Result};

use crate::args::{Stop, exit_code};

/// How long cleaning up may take where nobody is there to send a second signal.
const GRACE: Duration = Duration::from_secs(60);

/// Cancels `cancel` at the first signal and ends the program at the second. The end of standard
/// input and of the time limit count as a first signal, and as a second one after a minute. All in
/// one task.
///
/// # Errors
/// `Unavailable` if the signals can't be caught, or standard input can't be read beside them.
pub fn watch(cancel: CancellationToken, stop: Stop) -> Result<()> {
    let wrong = |e| Error::from_io("watch_signals", e);
    let mut signals = Signals {
        interrupt: signal(SignalKind::interrupt()).map_err(wrong)?,
        terminate: signal(SignalKind::terminate()).map_err(wrong)?,
    };
    let eof = stop.stop_at_eof.then(end_of_input).transpose();
    let eof = eof.map_err(wrong)?;
    tokio::spawn(async move {
        let (why, grace) = tokio::select! {
            () = signals.next() => ("", None),
            () = ended(eof) => ("standard input has ended: ", Some(GRACE)),
            () = passed(stop.time_limit.map(u64::from).map(Duration::from_secs)) => {
                ("the time limit is over: ", Some(GRACE))
            }
        };
        let text = "stopping and cleaning up; the same again ends at once";
        let _ = writeln!(std::io::stderr().lock(), "{why}{text}");
        cancel.cancel();
        tokio::select! {
            () = signals.next() => {}
            () = passed(grace) => {}
        }
        std::process::exit(i32::from(exit_code(ErrorKind::TimedOut)));
    });
    Ok(())
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Reads standard input, and throws it away, on a thread of its own: a read of it can't be stopped.
fn end_of_input() -> std::io::Result<oneshot::Receiver<()>> {
    let (ended, eof) = oneshot::channel();
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            let (mut input, mut buffer) = (std::io::stdin().lock(), [0; 4096]);
            // An error is as good an end as any: nothing more will be heard.
            while input.read(&mut buffer).is_ok_and(|length| length > 0) {}
            // The program may be about to end anyway.
            let _ = ended.send(());
        })?;
    Ok(eof)
}

async fn ended(eof: Option<oneshot::Receiver<()>>) {
    match eof {
        Some(eof) => drop(eof.await),
        None => std::future::pending().await,
    }
}

async fn passed(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
