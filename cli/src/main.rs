//! The volmux command line.

mod app;
mod args;
mod attach;
mod background;
mod config;
mod destroy;
mod export;
mod extents;
mod for_qemu;
mod generate;
mod group;
mod image;
mod import;
mod output;
mod pool;
mod qemu_img;
mod raw_file;
mod serve;
mod signals;
mod verify;
mod vhdx;
mod volume;

use std::time::Duration;

use clap::Parser;
use listenfd::ListenFd;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use volmux::{Error, Result};

use crate::app::App;
use crate::args::{Cli, Command, Stop};

/// How long the end of what goes on in the background is waited for.
const SETTLE_TIME: Duration = Duration::from_secs(10);

fn main() {
    let cli = Cli::parse();
    let level = match cli.global.verbose {
        // Whom a server turned away and why is told nowhere else.
        0 if matches!(cli.command, Command::Export(_)) => LevelFilter::WARN,
        // What goes wrong is told in this program's own words, and as JSON where that is asked for.
        0 => LevelFilter::OFF,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let stop = cli.global.stop;
    let app = App::new(cli.global, CancellationToken::new());
    let code = run(&app, cli.command, stop)
        .and_then(|code| app.out.flush().map(|()| code))
        .unwrap_or_else(|error| {
            // What was printed before the error is still whole and wanted.
            let _ = app.out.flush();
            app.report(&error)
        });
    // Not by returning: a request that hangs in a dead store must not keep the program.
    std::process::exit(i32::from(code));
}

fn run(app: &App, command: Command, stop: Stop) -> Result<u8> {
    // It changes the environment, which is not safe once there are other threads.
    let handed_over = ListenFd::from_env();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::from_io("start_runtime", e))?;
    let result = runtime.block_on(async {
        signals::watch(app.cancel.clone(), stop)?;
        match command {
            Command::Pool(command) => Box::pin(pool::run(app, command)).await,
            Command::Volume(command) => Box::pin(volume::run(app, command)).await,
            Command::Attach(args) => Box::pin(attach::attach(app, &args)).await,
            Command::Detach(args) => Box::pin(attach::detach(app, &args)).await,
            Command::Export(args) => Box::pin(serve::run(app, &args, handed_over)).await,
            Command::Completions { shell } => generate::completions(app, shell),
            Command::Man { dir } => generate::man(app, dir.as_deref()),
        }
    });
    runtime.block_on(settle());
    runtime.shutdown_background();
    result
}

/// Waits, but not for ever, until what goes on in the background has ended: a volume that was
/// written is closed there, and a host that finds it open has to take it over.
async fn settle() {
    let end = Instant::now() + SETTLE_TIME;
    let runtime = Handle::current();
    let alive = || runtime.metrics().num_alive_tasks();
    // The one that is left watches for signals.
    while alive() > 1 && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
