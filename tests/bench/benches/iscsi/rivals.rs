//! The clients that use libiscsi, and what programs cost.

use std::fs;
use std::process::{Command, Stdio};

use volmux_bench::Result;

use crate::target::{BLOCK, FOR_CLIENTS, Target, on};
use crate::{Job, Outcome};

/// For how long iscsi-perf reads, in seconds. It knows no shorter time.
const READS: u32 = 1;

/// Reads at random.
pub fn iscsi_perf(job: &Job, target: &Target) -> Result<Outcome> {
    let mut command = on(FOR_CLIENTS, "iscsi-perf");
    let blocks = job.block / BLOCK;
    command
        .args(["-m", &job.depth.to_string(), "-b", &blocks.to_string()])
        .args(["-t", &READS.to_string(), "-r", &target.url()]);
    let (said, cpu) = finish(&mut command)?;
    // The last of many: "iops average 21503 (83 MB/s)".
    let average = said.rsplit_once("iops average ");
    let average = average.and_then(|(_, rest)| rest.split_whitespace().next());
    let rate: Option<f64> = average.and_then(|rate| rate.parse().ok());
    let rate = rate.ok_or_else(|| format!("{command:?} printed {said}"))?;
    Ok(Outcome {
        requests: rate * f64::from(READS),
        seconds: f64::from(READS),
        cpu,
    })
}

/// Reads or writes in strides.
pub fn qemu_img(job: &Job, target: &Target) -> Result<Outcome> {
    let mut command = on(FOR_CLIENTS, "qemu-img");
    command.args(["bench", "-f", "raw", "-t", "none"]);
    for (option, value) in [
        ("-c", job.requests),
        ("-d", job.depth),
        ("-s", job.block),
        ("-S", job.stride()),
    ] {
        command.args([option, &value.to_string()]);
    }
    if job.write {
        command.arg("-w");
    }
    command.arg(target.url());
    let (said, cpu) = finish(&mut command)?;
    // "Run completed in 1.234 seconds."
    let seconds = said.rsplit_once("completed in ");
    let seconds = seconds.and_then(|(_, rest)| rest.split_whitespace().next());
    let seconds = seconds.and_then(|seconds| seconds.parse().ok());
    Ok(Outcome {
        requests: job.requests as f64,
        seconds: seconds.ok_or_else(|| format!("{command:?} printed {said}"))?,
        cpu,
    })
}

/// Runs a program to its end: what it printed, and the processor time that it took, in seconds.
pub fn finish(command: &mut Command) -> Result<(String, f64)> {
    let before = of_children()?;
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{command:?}: {error}: run .ci/setup"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?}: {}: {error}{said}", output.status).into());
    }
    Ok((said, of_children()? - before))
}

/// The processor time of all programs that this one started and that have ended, in seconds: fields
/// 16 and 17 of proc_pid_stat(5).
fn of_children() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let ticks = || -> Option<u64> {
        // The second field is the program's name, which may hold anything.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace().skip(13);
        Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
    };
    let ticks = ticks().ok_or_else(|| format!("no times in {stat}"))?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}
