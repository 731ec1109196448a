//! A virtual machine in which a process works on an LVM pool loses its power again and again. Each
//! time its disk loses what was not flushed. After each boot the thin pool's metadata must be
//! whole, the pool must open and hold exactly what the process was told is done, and an audit must
//! clear it of what is left over.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use volmux_conformance::crash::Images;
use volmux_conformance::killed::Expected;
use volmux_lab::{Disk, End, Lab, Running};

const MIB: u64 = 1 << 20;
/// How long a life may take until its worker begins, on a busy machine.
const SLOW: Duration = Duration::from_secs(300);

#[test]
#[ignore = "boots the lab many times: make check-lab"]
fn a_thin_pool_survives_every_power_cut() {
    let make = "lvcreate -q -y --type thin-pool -L 48M --poolmetadatasize 4M -c 64k -n pool vg";
    Machine::new("lvm://vg/pool", make).cut_again_and_again(50);
}

#[test]
#[ignore = "boots the lab many times: make check-lvm"]
fn a_group_survives_every_power_cut() {
    Machine::new("lvm://vg", "true").cut_again_and_again(12);
}

/// A machine with one disk, and what it shares with this side.
struct Machine {
    lab: Lab,
    pool: &'static str,
    /// The log, and what the pool is held against.
    shared: TempDir,
    _disk: TempDir,
}

impl Machine {
    /// `make` makes the pool in the group `vg`.
    fn new(pool: &'static str, make: &str) -> Machine {
        let shared = tempfile::tempdir().expect("a directory");
        let disk = tempfile::tempdir().expect("a directory");
        let lab = Lab::new()
            .disk(Disk::file(disk.path().join("disk"), 96 * MIB))
            .volatile()
            .share(shared.path());
        let script = format!(
            "pvcreate -q --metadatasize 8m /dev/vda && vgcreate -q -s 64k vg /dev/vda && {make} &&
            vgchange -q -an vg && sync /dev/vda"
        );
        let running = lab.run(["sh", "-euxc", &script]).expect("a lab");
        let done = running.finish().expect("an end");
        assert_eq!(done.end, End::Exit(0), "{}\n{}", done.stderr, done.console);
        Machine {
            lab,
            pool,
            shared,
            _disk: disk,
        }
    }

    fn shared(&self, name: &str) -> PathBuf {
        self.shared.path().join(name)
    }

    fn cut_again_and_again(&self, cuts: u64) {
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
        let script = "
            pool=$1 shared=$2 seed=$3 worker=$4
            # udev has activated what it may.
            vgchange -q -an vg
            if lvs vg/pool >/dev/null 2>&1; then
                lvchange -q -ay -y vg/pool_tmeta
                thin_check /dev/vg/pool_tmeta >&2
                lvchange -q -an vg/pool_tmeta
            fi
            exec \"$worker\" \"$pool\" \"$shared/log\" \"$seed\" v \"$shared\"";
        let worker = env!("CARGO_BIN_EXE_crash-worker");
        let shared = self.shared.path().to_str().expect("a path of ASCII");
        let command = ["sh", "-euc", script, "sh", self.pool, shared, seed, worker];
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
