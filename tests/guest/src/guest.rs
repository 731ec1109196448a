//! A guest that runs.

use std::io::{BufRead, BufReader, Write};
use std::ops::RangeInclusive;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{Disk, Image, Qmp};

/// The longest that any step of a guest may take, its boot included. A boot takes some seconds;
/// what else the machine has to do may make that far more, and in the lab it takes minutes.
pub(crate) const LIMIT: Duration = Duration::from_secs(600);

/// A guest that runs. Dropping it pulls its plug.
#[derive(Debug)]
pub struct Guest {
    qemu: Child,
    directory: TempDir,
    lines: Receiver<String>,
    /// All of the console so far.
    log: Vec<String>,
}

impl Guest {
    /// Boots from `disk`. `work` names what the guest does, one thing after the other, and then
    /// powers off:
    ///
    /// | word | does | tells |
    /// |---|---|---|
    /// | `boots` | counts the boots | `boots 3` |
    /// | `write` | writes eight files of 1 MiB of new content, durably | as `sums` |
    /// | `sums` | | `sum 1 SHA256` to `sum 8 SHA256` |
    /// | `trim` | writes 24 MiB, deletes them, tells the disk | `junk written`, `junk trimmed` |
    /// | `record` | writes numbered records until it gets the order `end` | `record 1`, `record 2`…, each once it is durable |
    /// | `records` | looks for the records that `record` wrote | `records N`, if 1 to N are there |
    /// | `pair` | as `record`, but writes each record to a second disk too, whose serial number begins with S, given as `serial=S`; freezes and thaws both file systems when it gets the orders `freeze` and `thaw` | as `record`; `frozen`, `thawed` |
    /// | `pairs` | looks for the records that `pair` wrote | `records N`, `second N` |
    /// | `plugged` | waits for a disk whose serial number begins with S, writes 1 MiB at 1 MiB, waits until it is gone | `sum 9 SHA256` and `plugged`, `unplugged` |
    /// | `power` | waits until its power button is pressed | `running` |
    /// | `nbd` | connects the kernel's NBD client to the export `second` on 127.0.0.1, port given as `port=N`; writes 4 MiB at 1 MiB, discards the first half | `size BYTES`; `second SHA256` of the second half |
    ///
    /// # Panics
    /// If QEMU can't be started.
    pub fn boot(image: &Image, disk: &Disk, work: &[&str]) -> Guest {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("qmp");
        let mut command = command(image, disk, work);
        command
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut qemu = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}; run .ci/setup"));
        let console = BufReader::new(qemu.stdout.take().expect("a pipe"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in console.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                if sender.send(line.trim_end_matches('\r').to_owned()).is_err() {
                    break;
                }
            }
        });
        Guest {
            qemu,
            directory,
            lines,
            log: Vec::new(),
        }
    }

    /// Starts QEMU, which is to refuse its disks, and returns what it says.
    ///
    /// # Panics
    /// If it takes them.
    pub fn refused(image: &Image, disk: &Disk) -> String {
        let mut command = command(image, disk, &["sums"]);
        let output = command.stdin(Stdio::null()).output();
        let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let console = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success(), "it booted: {console}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Its QEMU.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn qmp(&self) -> Qmp {
        Qmp::connect(&self.directory.path().join("qmp"), LIMIT)
    }

    /// Gives the guest an order: a line on its console.
    ///
    /// # Panics
    /// If it is gone.
    pub fn order(&mut self, line: &str) {
        let console = self.qemu.stdin.as_mut().expect("a pipe");
        writeln!(console, "{line}").expect("the guest runs");
        console.flush().expect("the guest runs");
    }

    /// Waits until the guest says `line`.
    ///
    /// # Panics
    /// If it ends first, or does not say so in time.
    pub fn wait_for(&mut self, line: &str) {
        let start = Instant::now();
        while self.next(start, line).as_deref() != Some(line) {}
    }

    /// Waits until the guest tells of record number `record`, does `act`, and returns how many
    /// records a snapshot that was taken by `act` may hold: all that were durable before, and none
    /// that came after.
    ///
    /// # Panics
    /// If the guest does not get there.
    pub fn at_record(&mut self, record: u64, act: impl FnOnce()) -> RangeInclusive<u64> {
        self.wait_for(&format!("record {record}"));
        let durable = self.last_record();
        act();
        // One more may have been durable before the guest could tell.
        durable..=self.last_record() + 1
    }

    /// The number of the last record that the guest has told of; 0: of none yet.
    pub fn last_record(&mut self) -> u64 {
        self.log.extend(self.lines.try_iter());
        let own = self.log.iter().rev().filter_map(|line| own(line));
        let number = |line: String| line.strip_prefix("record ")?.parse().ok();
        own.filter_map(number).next().unwrap_or(0)
    }

    /// Has the guest stop writing records, and the rest as [`finish`](Self::finish).
    ///
    /// # Panics
    /// As there.
    pub fn end(mut self) -> Said {
        self.order("end");
        self.finish()
    }

    /// Waits until the guest has powered off, and returns all that it ever said, but for the last
    /// line, which is `done`.
    ///
    /// # Panics
    /// If it failed, or takes too long.
    pub fn finish(mut self) -> Said {
        self.wait_for("done");
        let start = Instant::now();
        while start.elapsed() < LIMIT {
            if let Some(status) = self.qemu.try_wait().expect("wait") {
                assert!(status.success(), "QEMU: {status}\n{}", self.log());
                let said = self.log.iter().filter_map(|line| own(line));
                return Said(said.filter(|line| line != "done").collect());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the guest is done, but QEMU does not end\n{}", self.log());
    }

    /// The next line, if it is the guest's own.
    fn next(&mut self, start: Instant, wanted: &str) -> Option<String> {
        let left = LIMIT.saturating_sub(start.elapsed());
        match self.lines.recv_timeout(left) {
            Ok(line) => self.log.push(line),
            Err(error) => {
                let what = match error {
                    RecvTimeoutError::Timeout => "does not say",
                    RecvTimeoutError::Disconnected => "ended before it said",
                };
                panic!("the guest {what} {wanted:?}. Its console:\n{}", self.log());
            }
        }
        let line = own(self.log.last()?)?;
        assert!(!line.starts_with("failed"), "{line}\n{}", self.log());
        Some(line)
    }

    fn log(&self) -> String {
        self.log.join("\n")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Fails only if it ended already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// What a guest said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said(pub(crate) Vec<String>);

impl Said {
    /// The lines that begin with `word`.
    ///
    /// # Panics
    /// If there is none.
    pub fn lines(&self, word: &str) -> Vec<&str> {
        let lines: Vec<&str> = self.0.iter().map(String::as_str).collect();
        let of = |line: &&str| line.split(' ').next() == Some(word);
        let found: Vec<&str> = lines.iter().copied().filter(of).collect();
        assert!(!found.is_empty(), "no {word} in {lines:?}");
        found
    }

    /// The number in the last line that begins with `word`.
    ///
    /// # Panics
    /// If there is none.
    pub fn number(&self, word: &str) -> u64 {
        let lines = self.lines(word);
        let number = lines.last().and_then(|line| line.split(' ').nth(1));
        let number = number.and_then(|number| number.parse().ok());
        number.unwrap_or_else(|| panic!("no number in {lines:?}"))
    }
}

pub(crate) fn own(line: &str) -> Option<String> {
    // The firmware may have left bytes of its own before the first line.
    let (_, own) = line.split_once("vmx: ")?;
    Some(own.to_owned())
}

/// The kernel's command line for a guest that does `work`.
pub(crate) fn command_line(read_only: bool, work: &[&str]) -> String {
    let (arguments, words): (Vec<&str>, Vec<&str>) =
        work.iter().copied().partition(|word| word.contains('='));
    let mut kernel = String::from("console=ttyS0 panic=-1 mitigations=off quiet loglevel=2");
    kernel += if read_only { " ro" } else { " rw" };
    kernel += &format!(" vmx.do={}", words.join(","));
    for argument in arguments {
        kernel += &format!(" vmx.{argument}");
    }
    kernel
}

/// QEMU with a guest that does `work`.
fn command(image: &Image, disk: &Disk, work: &[&str]) -> Command {
    // With `setpriv` it dies with the test, even if that is killed.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"])
        .args(["-machine", "q35", "-accel", "tcg", "-cpu", "max"])
        .args(["-m", "256", "-nodefaults", "-display", "none"])
        .args(["-serial", "stdio", "-no-reboot"])
        .args(&disk.arguments)
        .args(network_arguments(work.contains(&"nbd")))
        .arg("-kernel")
        .arg(image.kernel())
        .arg("-initrd")
        .arg(image.initramfs())
        .args(["-append", &command_line(disk.read_only, work)]);
    command
}

/// A network in which this host's loopback is 10.0.2.2.
fn network_arguments(wanted: bool) -> &'static [&'static str] {
    const NETWORK: [&str; 4] = [
        "-netdev",
        "user,id=net",
        "-device",
        "virtio-net-pci,netdev=net,romfile=",
    ];
    if wanted { &NETWORK } else { &[] }
}
