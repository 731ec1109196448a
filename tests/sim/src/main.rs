//! Runs the simulation: many seeds, or one with everything that happens.

use std::env;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use volmux_sim::moved::Counts;
use volmux_sim::seed::{Report, note_panics, run};
use volmux_sim::world::{ObjectWorld, World};

const HELP: &str = "usage: sim [--seeds N] [--from N] [--threads N] [--failures N]
                                              run N seeds, until more than so many failed
       sim --seed N                               run one, and print what happens";

#[derive(Debug)]
struct Options {
    seeds: u64,
    from: u64,
    threads: u64,
    seed: Option<u64>,
    /// Go on after so many failures.
    failures: u64,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        seeds: 10_000,
        from: 0,
        threads: thread::available_parallelism().map_or(1, |n| n.get() as u64),
        seed: None,
        failures: 0,
    };
    let mut arguments = env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(HELP)?;
        let value: u64 = value.parse().map_err(|_| HELP)?;
        match name.as_str() {
            "--seeds" => options.seeds = value,
            "--from" => options.from = value,
            "--threads" => options.threads = value.max(1),
            "--failures" => options.failures = value,
            "--seed" => options.seed = Some(value),
            _ => return Err(HELP.into()),
        }
    }
    Ok(options)
}

fn world(seed: u64) -> Box<dyn World> {
    Box::new(ObjectWorld::by_seed(seed))
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(help) => {
            eprintln!("{help}");
            return ExitCode::from(2);
        }
    };
    note_panics();
    match options.seed {
        Some(seed) => replay(seed),
        None => run_many(&options),
    }
}

fn replay(seed: u64) -> ExitCode {
    let report = run(seed, world(seed), None, true);
    print!("{}", report.trace);
    println!("{:?}", volmux_sim::shape::Shape::by_seed(seed));
    println!(
        "seed {seed}: hash {:016x}, {} events, moved {:?}",
        report.hash, report.events, report.moved
    );
    match report.failure {
        Some(failure) => {
            println!("FAILED: {failure}");
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

/// What all threads share.
#[derive(Debug, Default)]
struct Progress {
    next: AtomicU64,
    done: AtomicU64,
    requests: AtomicU64,
    events: AtomicU64,
    /// What collections of garbage moved.
    moved: Mutex<Counts>,
    failed: AtomicU64,
    finished: AtomicBool,
}

impl Progress {
    fn moved(&self) -> MutexGuard<'_, Counts> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run_many(options: &Options) -> ExitCode {
    let began = Instant::now();
    let progress = Progress::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.threads)
            .map(|_| scope.spawn(|| work(options, &progress)))
            .collect();
        scope.spawn(|| tell(options, &progress, began));
        for worker in workers {
            let _ = worker.join();
        }
        progress.finished.store(true, Ordering::Relaxed);
    });
    let (done, took) = (
        progress.done.load(Ordering::Relaxed),
        began.elapsed().as_secs_f64(),
    );
    println!(
        "{done} seeds in {took:.1} s ({:.0} a second), {} requests, {} events, \
         moved {:?}: {}",
        done as f64 / took,
        progress.requests.load(Ordering::Relaxed),
        progress.events.load(Ordering::Relaxed),
        progress.moved(),
        if progress.failed.load(Ordering::Relaxed) > 0 {
            "FAILED"
        } else {
            "all as it must be"
        },
    );
    if progress.failed.load(Ordering::Relaxed) > 0 || done < options.seeds {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn work(options: &Options, progress: &Progress) {
    while progress.failed.load(Ordering::Relaxed) <= options.failures {
        let number = progress.next.fetch_add(1, Ordering::Relaxed);
        if number >= options.seeds {
            break;
        }
        let seed = options.from + number;
        let report = run(seed, world(seed), None, false);
        check_again(seed, number, &report, progress);
        if let Some(failure) = &report.failure {
            progress.failed.fetch_add(1, Ordering::Relaxed);
            println!("seed {seed} FAILED: {failure}\n  replay: make sim SEED={seed}");
        }
        progress
            .requests
            .fetch_add(report.requests, Ordering::Relaxed);
        progress.events.fetch_add(report.events, Ordering::Relaxed);
        for (what, count) in report.moved {
            *progress.moved().entry(what).or_default() += count;
        }
        progress.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Every so many seeds: the same again must be the same.
fn check_again(seed: u64, number: u64, report: &Report, progress: &Progress) {
    if !number.is_multiple_of(50) {
        return;
    }
    let again = run(seed, world(seed), None, false);
    if (again.hash, again.events) != (report.hash, report.events) {
        progress.failed.fetch_add(1, Ordering::Relaxed);
        println!("seed {seed} FAILED: two runs of it differ");
    }
}

fn tell(options: &Options, progress: &Progress, began: Instant) {
    let mut told = Instant::now();
    while !progress.finished.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(100));
        if told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            let done = progress.done.load(Ordering::Relaxed);
            let rate = done as f64 / began.elapsed().as_secs_f64();
            println!("{done} of {} seeds, {rate:.0} a second", options.seeds);
        }
    }
}
