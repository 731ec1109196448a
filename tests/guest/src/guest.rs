//! A guest that runs.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::Image;

/// The longest that any step of a guest may take, its boot included. A boot takes some seconds; what
/// else the machine has to do may make that far more.
const LIMIT: Duration = Duration::from_secs(180);

/// The disk of a guest: an NBD export on a Unix socket.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The socket.
    pub socket: PathBuf,
    /// The name of the export.
    pub export: String,
    /// The guest can't write it.
    pub read_only: bool,
    /// For how long QEMU tries to connect anew after it lost its server, in seconds; 0: the guest
    /// gets errors at once.
    pub reconnect: u32,
}

impl Disk {
    /// The export `export` on the socket `socket`, for reading and writing.
    pub fn new(socket: impl Into<PathBuf>, export: impl Into<String>) -> Self {
        Disk {
            socket: socket.into(),
            export: export.into(),
            read_only: false,
            reconnect: 0,
        }
    }
}

/// A guest that runs. Dropping it pulls its plug.
#[derive(Debug)]
pub struct Guest {
    qemu: Child,
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
    /// | `record` | writes N numbered records, N given as an argument `records=N` | `record 1` to `record N`, each once it is durable |
    /// | `nbd` | connects the kernel's NBD client to the export `second` on 127.0.0.1, port given as `port=N`; writes 4 MiB at 1 MiB, discards the first half | `size BYTES`; `second SHA256` of the second half |
    /// | `records` | looks for the records that `record` wrote | `records N`, if 1 to N are there |
    ///
    /// # Panics
    /// If QEMU can't be started.
    pub fn boot(image: &Image, disk: &Disk, work: &[&str]) -> Guest {
        let (arguments, words): (Vec<&str>, Vec<&str>) =
            work.iter().copied().partition(|word| word.contains('='));
        let mut kernel = String::from("console=ttyS0 panic=-1 mitigations=off quiet loglevel=2");
        kernel += if disk.read_only { " ro" } else { " rw" };
        kernel += &format!(" vmx.do={}", words.join(","));
        for argument in arguments {
            kernel += &format!(" vmx.{argument}");
        }
        // With `setpriv` it dies with the test, even if that is killed.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"])
            .args([
                "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256",
            ])
            .args([
                "-nodefaults",
                "-display",
                "none",
                "-serial",
                "stdio",
                "-no-reboot",
            ])
            .args(disk_arguments(disk))
            .args(network_arguments(work.contains(&"nbd")))
            .arg("-kernel")
            .arg(image.kernel())
            .arg("-initrd")
            .arg(image.initramfs())
            .args(["-append", &kernel])
            .stdin(Stdio::null())
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
            lines,
            log: Vec::new(),
        }
    }

    /// Waits until the guest says `line`.
    ///
    /// # Panics
    /// If it ends first, or does not say so in time.
    pub fn wait_for(&mut self, line: &str) {
        let start = Instant::now();
        while self.next(start, line).as_deref() != Some(line) {}
    }

    /// What the guest has said since the last call, without waiting.
    pub fn said(&mut self) -> Vec<String> {
        let lines: Vec<String> = self.lines.try_iter().collect();
        self.log.extend_from_slice(&lines);
        lines.iter().filter_map(|line| own(line)).collect()
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
pub struct Said(Vec<String>);

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

fn own(line: &str) -> Option<String> {
    // The firmware may have left bytes of its own before the first line.
    let (_, own) = line.split_once("vmx: ")?;
    Some(own.to_owned())
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

fn disk_arguments(disk: &Disk) -> Vec<String> {
    // A comma in a value is written twice.
    let escaped = |text: &str| text.replace(',', ",,");
    let on = if disk.read_only { "on" } else { "off" };
    let backend = format!(
        "driver=nbd,node-name=disk,server.type=unix,server.path={},export={},\
         reconnect-delay={},discard=unmap,read-only={on}",
        escaped(disk.socket.to_str().expect("a path in UTF-8")),
        escaped(&disk.export),
        disk.reconnect
    );
    [
        "-blockdev",
        &backend,
        "-device",
        "virtio-blk-pci,drive=disk,discard=on",
    ]
    .map(String::from)
    .to_vec()
}
