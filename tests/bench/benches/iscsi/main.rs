//! The iSCSI initiator against libiscsi, both as clients of the same tgtd, one session each.
//!
//! The disk has 1 GiB in blocks of 4 KiB, in memory, by tgt's cheapest way to a file (`aio`): what
//! is measured is the client. All of one comparison in one run, taking turns, medians. Needs root,
//! which tgtd does.
//!
//! | what | volmux | libiscsi, the faster of |
//! |---|---|---|
//! | reads | this program, started again | `iscsi-perf -r` and `qemu-img bench` |
//! | writes | this program, started again | `qemu-img bench -w` |
//!
//! Each sends READ(16) or WRITE(16) of the same length, as many at a time. volmux and qemu-img go
//! the same way over the disk, in strides of 0.618 of it, and do the same number of requests;
//! iscsi-perf takes blocks at random, for a fixed time that is about as long. Processor time is
//! that of the whole process, with its start and its login. fio has no libiscsi in Debian.
//!
//! tgtd has the first processor for itself, and the clients have the others: left to chance, one
//! and the same client is twice as fast at one time as at another.
//!
//! volmux runs on a runtime of one thread, as libiscsi does; lines with `threads` tell what one of
//! several threads gives.
//!
//! In the end, snapshots and clones of an array of tgt, of short and of long volumes.
//!
//! `cargo bench … -- randread 1m` runs only lines with that in their name; `--quick` once and
//! shortly.

use std::env;

use volmux_bench::{Figures, Result, header, ratio_of_turns};

mod array;
mod ours;
mod rivals;
mod target;

use target::Target;

const MIB: u64 = 1 << 20;
/// Of the disk.
const SIZE: u64 = 1 << 30;

/// What a client does.
#[derive(Clone, Copy)]
struct Job {
    name: &'static str,
    write: bool,
    /// Bytes of a request.
    block: u64,
    /// Requests in flight.
    depth: u64,
    /// Requests in all: such that it takes one or two seconds.
    requests: u64,
}

/// What a client did.
struct Outcome {
    requests: f64,
    seconds: f64,
    /// Processor time, in seconds.
    cpu: f64,
}

const fn job(name: &'static str, write: bool, block: u64, depth: u64, requests: u64) -> Job {
    Job {
        name,
        write,
        block,
        depth,
        requests,
    }
}

const JOBS: [Job; 8] = [
    job("randread-qd1", false, 4096, 1, 30_000),
    job("randread-qd8", false, 4096, 8, 80_000),
    job("randread-qd32", false, 4096, 32, 80_000),
    job("randwrite-qd1", true, 4096, 1, 30_000),
    job("randwrite-qd8", true, 4096, 8, 80_000),
    job("randwrite-qd32", true, 4096, 32, 80_000),
    job("read-1m", false, MIB, 4, 1500),
    job("write-1m", true, MIB, 4, 1000),
];
/// Where processor time is compared.
const BUSY: &str = "randread-qd32";

impl Job {
    /// From one request to the next, in bytes: it comes everywhere before it begins again.
    fn stride(&self) -> u64 {
        let blocks = SIZE / self.block;
        ((blocks * 618 / 1000) | 1) * self.block
    }
}

/// How one of the clients does a job.
type Run = fn(&Job, &Target) -> Result<Outcome>;

/// A client, and what came of its turns.
struct Client {
    run: Run,
    rate: Figures,
    cpu: Figures,
}

impl Client {
    fn new(name: &str, job: &Job, run: Run) -> Client {
        Client {
            run,
            rate: Figures::new(format!("{}: {name}", job.name), "/s"),
            cpu: Figures::new(
                format!("{}: {name}, processor time", job.name),
                "us/request",
            ),
        }
    }

    fn turn(&mut self, job: &Job, target: &Target) -> Result<()> {
        let outcome = (self.run)(job, target)?;
        self.rate.add(outcome.requests / outcome.seconds);
        self.cpu.add(outcome.cpu * 1e6 / outcome.requests);
        Ok(())
    }
}

fn compare(job: &Job, target: &Target, repeats: usize) -> Result<()> {
    let mut clients = vec![
        Client::new("volmux", job, ours::run),
        Client::new("volmux, threads", job, ours::run_on_threads),
        Client::new("qemu-img", job, rivals::qemu_img),
    ];
    if !job.write {
        clients.push(Client::new("iscsi-perf", job, rivals::iscsi_perf));
    }
    for repeat in 0..repeats {
        // Nobody always comes first.
        for turn in 0..clients.len() {
            let one = (repeat + turn) % clients.len();
            clients[one].turn(job, target)?;
        }
    }
    clients.iter().for_each(|client| client.rate.print());
    clients.iter().for_each(|client| client.cpu.print());
    let [ours, _, rivals @ ..] = clients.as_slice() else {
        return Err("there are rivals".into());
    };
    let fastest = rivals
        .iter()
        .max_by(|a, b| a.rate.median().total_cmp(&b.rate.median()));
    let thriftiest = rivals
        .iter()
        .min_by(|a, b| a.cpu.median().total_cmp(&b.cpu.median()));
    let (fastest, thriftiest) = fastest.zip(thriftiest).ok_or("there are rivals")?;
    let name = format!("iscsi-{}-vs-libiscsi", job.name);
    ratio_of_turns(&name, &ours.rate, &fastest.rate);
    let cpu = ours.cpu.median() / thriftiest.cpu.median();
    match job.name == BUSY {
        true => ratio_of_turns("iscsi-cpu-per-read-vs-libiscsi", &ours.cpu, &thriftiest.cpu),
        false => println!("info {}: {cpu:.3} of libiscsi's processor time", job.name),
    }
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some(result) = ours::if_asked(&arguments) {
        return result;
    }
    header("iSCSI over loopback; a disk of 1 GiB in memory, written before; one tgtd")?;
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let target = Target::start()?;
    println!("info tgtd has the disk by {}", target.store());
    for job in JOBS {
        let mut named = arguments.iter().filter(|a| !a.starts_with("--")).peekable();
        if named.peek().is_none() || named.any(|name| job.name.contains(name.as_str())) {
            let requests = job.requests / if quick { 4 } else { 1 };
            let job = Job { requests, ..job };
            compare(&job, &target, if quick { 1 } else { 7 })?;
        }
    }
    let mut named = arguments.iter().filter(|a| !a.starts_with("--")).peekable();
    match named.peek().is_none() || named.any(|name| "snapshot".contains(name.as_str())) {
        true => array::compare(if quick { 3 } else { 21 }),
        false => Ok(()),
    }
}
