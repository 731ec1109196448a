//! `tests/lab/run`: runs one command in the lab.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use volmux_lab::{Disk, End, Error, Event, Lab, Running};

/// Runs a command as root in a virtual machine that sees this machine's files.
///
/// The command runs in the current directory. What it writes is forgotten, but for disks and shared
/// directories. The virtual machine ends with its caller.
#[derive(Debug, Parser)]
#[command(bin_name = "tests/lab/run", after_help = STATUS)]
struct Options {
    /// A disk: of SIZE bytes (64M, 1G) for this run, or FILE, which is kept; a FILE that is
    /// missing is made with FILE:SIZE. /dev/vda, /dev/vdb… and /dev/disk/by-id/virtio-lab0…
    #[arg(long, value_name = "SIZE|FILE[:SIZE]", value_parser = Disk::parse)]
    disk: Vec<Disk>,
    /// Give the disks a write cache, of which a power cut loses what was not flushed
    #[arg(long)]
    volatile: bool,
    /// A directory that can be written to from inside, at the same path
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,
    /// A variable for the command, besides PATH, HOME, TERM, CARGO*, RUST* and VOLMUX*
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// How long it may run, booting included
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds)]
    time: Duration,
    /// Memory, in MiB
    #[arg(long, value_name = "MIB", default_value_t = Lab::MEMORY >> 20)]
    memory: u64,
    /// Boot under Xen, as its dom0, with 1 GiB of memory more for guests; tests/lab/xen-dom0 makes
    /// xl work
    #[arg(long)]
    xen: bool,
    /// Cut the power so long after the command's start
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    kill_after: Option<Duration>,
    /// Cut the power once this file exists on the host
    #[arg(long, value_name = "PATH")]
    kill_file: Option<PathBuf>,
    /// Keep here what the kernel prints
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

const STATUS: &str = "\
The exit status is the command's own (127: no such command), or
  121  the power was cut (--kill-after, --kill-file)
  122  the guest's kernel failed, or it powered off before the command had ended
  123  the guest did not boot
  124  the time was over
  125  wrong options, or the virtual machine can't be started";

const POWER_CUT: u8 = 121;
const CRASH: u8 = 122;
const NO_BOOT: u8 = 123;
const TIME_LIMIT: u8 = 124;
const WRONG: u8 = 125;

fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || "write a number of seconds like 30 or 0.5".to_owned();
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err("write it as NAME=VALUE".to_owned()),
    }
}

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            // Help that was asked for is not an error.
            let code = if error.use_stderr() { WRONG } else { 0 };
            let _ = error.print();
            return code.into();
        }
    };
    match run(&options) {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("lab: {error}");
            WRONG.into()
        }
    }
}

fn run(options: &Options) -> Result<u8, Error> {
    end_with_caller();
    let mut lab = Lab::new()
        .memory(options.memory.saturating_mul(1 << 20))
        .time(options.time);
    if options.volatile {
        lab = lab.volatile();
    }
    if options.xen {
        lab = lab.xen();
    }
    for disk in &options.disk {
        lab = lab.disk(disk.clone());
    }
    for share in &options.share {
        lab = lab.share(share);
    }
    for (name, value) in &options.env {
        lab = lab.env(name, value);
    }
    if let Some(path) = options.kill_file.as_ref().filter(|path| path.exists()) {
        let path = path.display();
        return Err(Error::new(format!(
            "--kill-file {path}: is there already: remove it"
        )));
    }
    let mut running = lab.run(&options.command)?;
    let end = follow(&mut running, options)?;
    if let Some(path) = &options.log {
        running.save_console(path)?;
    }
    let console = || eprintln!("lab: the kernel printed:\n{}", running.console().trim_end());
    Ok(match end {
        End::Exit(code) => code,
        End::PowerCut => POWER_CUT,
        End::TimeLimit => {
            console();
            eprintln!("lab: {} s were over: ended", options.time.as_secs_f64());
            TIME_LIMIT
        }
        End::NoBoot => {
            console();
            eprintln!("lab: the guest did not boot");
            NO_BOOT
        }
        End::Crash => {
            console();
            eprintln!("lab: the guest ended before the command had, or its kernel failed");
            CRASH
        }
    })
}

/// This process ends when the one that started it does, and QEMU with it.
fn end_with_caller() {
    let caller = getppid();
    // Fails for no signal that exists.
    let _ = set_parent_process_death_signal(Some(Signal::TERM));
    if getppid() != caller {
        std::process::exit(i32::from(WRONG));
    }
}

/// None for a time that never comes.
fn from_now(time: Duration) -> Option<Instant> {
    Instant::now().checked_add(time)
}

/// Passes on what the command writes, until the end.
fn follow(running: &mut Running, options: &Options) -> Result<End, Error> {
    let mut cut_at = None;
    loop {
        let due = cut_at.is_some_and(|at| Instant::now() >= at);
        if due || options.kill_file.as_ref().is_some_and(|path| path.exists()) {
            running.cut_power()?;
        }
        match running.event(Duration::from_millis(20))? {
            Event::Ready => cut_at = options.kill_after.and_then(from_now),
            // Whoever read it may have gone; the status is still of use.
            Event::Out(bytes) => {
                let mut out = std::io::stdout();
                let _ = out.write_all(&bytes).and_then(|()| out.flush());
            }
            Event::Err(bytes) => {
                let _ = std::io::stderr().write_all(&bytes);
            }
            Event::End(end) => return Ok(end),
            Event::Nothing => {}
        }
    }
}
