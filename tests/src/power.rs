//! A virtual machine that loses its power again and again while a process works on a pool in it. Each
//! time its disk loses what was not flushed. After each boot the pool must open and hold exactly what
//! the process was told is done, and an audit must clear it of what is left over.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use volmux_lab::{Disk, End, Lab, Running};

use crate::crash::Images;
use crate::killed::Expected;

/// How long a life may take until its worker begins, on a busy machine.
const SLOW: Duration = Duration::from_secs(300);

/// A machine with one disk, and what it shares with this side.
#[derive(Debug)]
pub struct Machine {
    lab: Lab,
    pool: &'static str,
    boot: &'static str,
    worker: PathBuf,
    /// The log, and what the pool is held against.
    shared: TempDir,
    _disk: TempDir,
}

impl Machine {
    /// One with a disk `/dev/vda` of `bytes`. The script `make` makes a place for the pool with this URL
    /// on it, `boot` checks that place after each boot and readies it, and `worker` is the program
    /// that works.
    ///
    /// # Panics
    /// If it can't be made.
    pub fn new(
        worker: impl Into<PathBuf>,
        bytes: u64,
        make: &str,
        boot: &'static str,
        pool: &'static str,
    ) -> Machine {
        let shared = tempfile::tempdir().expect("a directory");
        let disk = tempfile::tempdir().expect("a directory");
        let lab = Lab::new()
            .disk(Disk::file(disk.path().join("disk"), bytes))
            .volatile()
            .share(shared.path());
        let running = lab.run(["sh", "-euxc", make]).expect("a lab");
        let done = running.finish().expect("an end");
        assert_eq!(done.end, End::Exit(0), "{}\n{}", done.stderr, done.console);
        Machine {
            lab,
            pool,
            boot,
            worker: worker.into(),
            shared,
            _disk: disk,
        }
    }

    fn shared(&self, name: &str) -> PathBuf {
        self.shared.path().join(name)
    }

    /// Cuts the power so often, at moments all over the work.
    ///
    /// # Panics
    /// If the pool does not hold what it must.
    pub fn cut_again_and_again(&self, cuts: u64) {
        let begun = Instant::now();
        let (mut expected, mut in_flight, mut done) = (Expected::default(), 0, 0);
        for seed in 0..cuts {
            let mut life = self.boot(&expected, &seed.to_string());
            let log = self.shared("log");
            wait_for_work(&mut life, &log);
            std::thread::sleep(Duration::from_millis(seed * 7919 % 2500));
            life.cut_power().expect("a power cut");
            let end = life.finish().expect("an end");
            assert_eq!(end.end, End::PowerCut, "{}\n{}", end.stderr, end.console);
            let log = std::fs::read_to_string(log).expect("the log");
            done += log.lines().filter(|line| *line == "done").count();
            // A line may be cut, too: then nothing of what it tells has begun.
            let log = &log[..log.rfind('\n').map_or(0, |end| end + 1)];
            println!(
                "life {seed}: {}",
                log.lines().collect::<Vec<_>>().join("; ")
            );
            expected = Expected::new(&Images::load(&self.shared("found")), log);
            in_flight += u64::from(expected.op.is_some());
        }
        let last = self.boot(&expected, "none").finish().expect("an end");
        let said = format!("{}\n{}\n{}", last.stdout, last.stderr, last.console);
        assert_eq!(last.end, End::Exit(0), "{said}");
        println!(
            "{cuts} power cuts in {} s: {done} operations were done, and {in_flight} cut",
            begun.elapsed().as_secs()
        );
        assert!(
            in_flight > cuts / 2,
            "only {in_flight} cuts hit an operation"
        );
    }

    /// Boots, holds the pool against what is expected of it, and works on it unless the seed is
    /// `none`.
    fn boot(&self, expected: &Expected, seed: &str) -> Running {
        expected.before.save(&self.shared("before"));
        expected.after.save(&self.shared("after"));
        let op = expected.op.as_ref().map(ToString::to_string);
        std::fs::write(self.shared("op"), op.unwrap_or_default()).expect("the operation");
        std::fs::write(self.shared("log"), "").expect("an empty log");
        let script = format!(
            "pool=$1 shared=$2 seed=$3 worker=$4
            {}
            exec \"$worker\" \"$pool\" \"$shared/log\" \"$seed\" v \"$shared\"",
            self.boot
        );
        let text = |path: &Path| path.to_str().expect("a path of UTF-8").to_owned();
        let (shared, worker) = (text(self.shared.path()), text(&self.worker));
        let command = [
            "sh", "-euc", &script, "sh", self.pool, &shared, seed, &worker,
        ];
        self.lab.run(command).expect("a lab")
    }
}

/// Waits until the worker has begun its first operation.
fn wait_for_work(life: &mut Running, log: &Path) {
    let begun = Instant::now();
    while std::fs::metadata(log).expect("the log").len() == 0 {
        match life.event(Duration::from_millis(5)).expect("an event") {
            volmux_lab::Event::Err(bytes) => eprint!("{}", String::from_utf8_lossy(&bytes)),
            volmux_lab::Event::End(end) => {
                panic!("{end:?} before the worker began\n{}", life.console())
            }
            _ => assert!(begun.elapsed() < SLOW, "the worker does not begin"),
        }
    }
}
