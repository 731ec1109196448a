//! Samples, medians and printing.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use crate::Result;

/// The times that one thing took, in one run.
#[derive(Clone, Debug)]
pub struct Samples {
    name: String,
    times: Vec<Duration>,
}

impl Samples {
    /// None yet, of the thing `name`.
    pub fn new(name: impl Into<String>) -> Self {
        Samples {
            name: name.into(),
            times: Vec::new(),
        }
    }

    /// Adds the time that `work` takes.
    ///
    /// # Errors
    /// Those of `work`, whose time is then not added.
    pub fn time<T, E>(&mut self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let start = Instant::now();
        let done = work()?;
        self.times.push(start.elapsed());
        Ok(done)
    }

    /// Adds a time.
    pub fn add(&mut self, time: Duration) {
        self.times.push(time);
    }

    /// The median.
    ///
    /// # Panics
    /// Without samples.
    pub fn median(&self) -> Duration {
        let mut sorted = self.times.clone();
        sorted.sort_unstable();
        let middle = sorted.len() / 2;
        if sorted.len().is_multiple_of(2) {
            (sorted[middle - 1] + sorted[middle]) / 2
        } else {
            sorted[middle]
        }
    }

    /// Prints an `info` line with median, fastest, slowest and number.
    pub fn print(&self) {
        println!("info {self}");
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let fastest = self.times.iter().copied().min().unwrap_or_default();
        let slowest = self.times.iter().copied().max().unwrap_or_default();
        write!(
            f,
            "{:<46} {:>9.3} ms (fastest {:.3}, slowest {:.3}, n {})",
            self.name,
            ms(self.median()),
            ms(fastest),
            ms(slowest),
            self.times.len()
        )
    }
}

/// Numbers of one unit, measured in one run: requests a second, for instance.
#[derive(Clone, Debug)]
pub struct Figures {
    name: String,
    unit: &'static str,
    values: Vec<f64>,
}

impl Figures {
    /// None yet, of the thing `name`.
    pub fn new(name: impl Into<String>, unit: &'static str) -> Self {
        Figures {
            name: name.into(),
            unit,
            values: Vec::new(),
        }
    }

    /// Adds one.
    pub fn add(&mut self, value: f64) {
        self.values.push(value);
    }

    /// The median.
    ///
    /// # Panics
    /// Without values.
    pub fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        }
    }

    /// Prints an `info` line with median, least, greatest and number.
    pub fn print(&self) {
        println!("info {self}");
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = self.values.iter().copied().fold(0.0, f64::max);
        write!(
            f,
            "{:<46} {:>9.1} {} (least {least:.1}, greatest {greatest:.1}, n {})",
            self.name,
            self.median(),
            self.unit,
            self.values.len()
        )
    }
}

/// What has a median.
pub trait Median {
    /// The median, in whatever unit.
    fn median(&self) -> f64;
}

impl Median for Samples {
    fn median(&self) -> f64 {
        Samples::median(self).as_secs_f64()
    }
}

impl Median for Figures {
    fn median(&self) -> f64 {
        Figures::median(self)
    }
}

/// Prints a `ratio` line: the median of `ours` over that of `rival`.
pub fn ratio<M: Median>(name: &str, ours: &M, rival: &M) {
    println!("ratio {name} {:.3}", ours.median() / rival.median());
}

/// Prints a `ratio` line as [`ratio`] does, and between what bounds it lay in the single turns, in
/// which both had a value each.
pub fn ratio_of_turns(name: &str, ours: &Figures, rival: &Figures) {
    ratio(name, ours, rival);
    let turns = ours.values.iter().zip(&rival.values);
    let (mut least, mut greatest) = (f64::INFINITY, 0.0_f64);
    for ratio in turns.map(|(ours, rival)| ours / rival) {
        (least, greatest) = (least.min(ratio), greatest.max(ratio));
    }
    println!("info {name}: {least:.3} to {greatest:.3} in single turns");
}

/// Prints a `count` line.
pub fn count(name: &str, value: impl fmt::Display) {
    println!("count {name} {value}");
}

/// Prints what the benchmark runs on.
///
/// # Errors
/// If /proc can't be read.
pub fn header(title: &str) -> Result<()> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let memory = field(&fs::read_to_string("/proc/meminfo")?, "MemTotal")?;
    println!("info {title}");
    println!(
        "info on Linux {}, {} x {model}, {} MiB of memory, load {}",
        fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        std::thread::available_parallelism()?,
        memory >> 20,
        fs::read_to_string("/proc/loadavg")?.trim()
    );
    Ok(())
}

/// The most memory that this process has had, in bytes.
///
/// # Errors
/// If /proc can't be read.
pub fn peak_rss_bytes() -> Result<u64> {
    field(&fs::read_to_string("/proc/self/status")?, "VmHWM")
}

/// The memory that this process has now, in bytes.
///
/// # Errors
/// If /proc can't be read.
pub fn rss_bytes() -> Result<u64> {
    field(&fs::read_to_string("/proc/self/status")?, "VmRSS")
}

/// A `Name:   123 kB` line of a file in /proc, in bytes.
pub(crate) fn field(text: &str, name: &str) -> Result<u64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    value
        .map(|kib| kib << 10)
        .ok_or_else(|| format!("no {name} in kB").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ms: &[u64]) -> Samples {
        let mut samples = Samples::new("x");
        samples.times = ms.iter().map(|&ms| Duration::from_millis(ms)).collect();
        samples
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(of(&[9, 1, 5]).median(), Duration::from_millis(5));
        assert_eq!(of(&[9, 1, 5, 6]).median(), Duration::from_micros(5500));
    }

    #[test]
    fn figures_have_a_median_too() {
        let mut figures = Figures::new("x", "y");
        figures.values = vec![9.0, 1.0, 5.0];
        assert!((figures.median() - 5.0).abs() < 1e-9);
        figures.add(6.0);
        assert!((figures.median() - 5.5).abs() < 1e-9);
    }

    #[test]
    fn fields_of_proc_are_in_bytes() {
        let text = "VmPeak:\t  10 kB\nVmHWM:\t    3 kB\n";
        assert_eq!(field(text, "VmHWM").expect("there"), 3072);
        assert!(field(text, "VmRSS").is_err());
    }
}
