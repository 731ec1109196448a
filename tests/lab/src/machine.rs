//! The QEMU process and its lines.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use crate::disk::Taken;
use crate::job::Job;
use crate::{Error, Lab};

/// How long a disk's cache may take to be there.
const CACHE: Duration = Duration::from_secs(30);

/// What comes from a guest.
#[derive(Debug)]
pub(crate) enum Message {
    /// What it tells of itself.
    Status(Vec<u8>),
    /// The command's standard output.
    Out(Vec<u8>),
    /// The command's standard error, and what QEMU itself complains of.
    Err(Vec<u8>),
}

/// A QEMU that runs. Dropping it pulls its plug.
#[derive(Debug)]
pub(crate) struct Machine {
    /// What holds the disks' write caches. Killed first: with QEMU gone they would be written back.
    caches: Vec<Kept>,
    qemu: Kept,
    disks: Vec<Taken>,
    /// Closed once QEMU has ended and all is read.
    pub(crate) messages: Receiver<Message>,
}

impl Machine {
    /// Starts QEMU. It ends with this process, even if that is killed.
    pub(crate) fn start(
        lab: &Lab,
        image: &Path,
        job: &Job,
        disks: Vec<Taken>,
    ) -> Result<Machine, Error> {
        let mut caches = Vec::new();
        if lab.volatile {
            for (number, disk) in disks.iter().enumerate() {
                caches.push(start_cache(job, number, &disk.path)?);
            }
        }
        let (status, status_end) = pair()?;
        let (out, out_end) = pair()?;
        let (err, err_end) = pair()?;
        let mut command = kept("qemu-system-x86_64");
        command
            .args(arguments(lab, image, job, &disks))
            .current_dir(job.path())
            .stdin(Stdio::from(status_end))
            .stdout(Stdio::from(out_end))
            .stderr(Stdio::from(err_end));
        let qemu = Kept::start(command)?;
        // What the guest prints waits for whoever reads it.
        let (sender, messages) = sync_channel(64);
        read_from(status, sender.clone(), Message::Status);
        read_from(out, sender.clone(), Message::Out);
        read_from(err, sender, Message::Err);
        Ok(Machine {
            caches,
            qemu,
            disks,
            messages,
        })
    }

    /// Pulls the plug, and returns when nothing holds the disks any more.
    pub(crate) fn kill(&mut self) -> Result<(), Error> {
        for process in self.caches.iter_mut().chain([&mut self.qemu]) {
            process.kill()?;
        }
        // Now others may take them.
        self.disks.clear();
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.kill();
    }
}

/// Serves a disk through a cache that holds what is written until the guest flushes it.
fn start_cache(job: &Job, number: usize, path: &Path) -> Result<Kept, Error> {
    let ready = job.path().join(socket(number));
    let log = File::create(job.path().join("nbdkit.log"));
    let log = log.map_err(|error| Error::file(job.path(), &error))?;
    let mut command = kept("nbdkit");
    command
        .args(["--foreground", "--filter=cache", "--unix"])
        // A path in full may be too long for a socket's name.
        .arg(Path::new("/proc/self/cwd").join(socket(number)))
        .arg("file")
        .arg(list(&[&"file=", &path]))
        .args(["cache=writeback", "cache-min-block-size=4096"])
        .env("TMPDIR", job.path())
        .current_dir(job.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(log));
    let mut cache = Kept::start(command)?;
    let start = Instant::now();
    while !ready.exists() {
        if cache.has_ended() || start.elapsed() > CACHE {
            // What it said tells more than that it can't be read.
            let said = std::fs::read_to_string(job.path().join("nbdkit.log")).unwrap_or_default();
            return Err(Error::new(format!("nbdkit does not serve a disk: {said}")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(cache)
}

/// The name of a disk's socket.
fn socket(number: usize) -> String {
    format!("disk{number}.socket")
}

fn pair() -> Result<(UnixStream, OwnedFd), Error> {
    let pair = UnixStream::pair();
    let (ours, theirs) = pair.map_err(|error| Error::new(format!("a pair of sockets: {error}")))?;
    Ok((ours, theirs.into()))
}

/// A program that is killed with whoever started it.
fn kept(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

/// A process that ends with this one. Dropping it kills it.
#[derive(Debug)]
struct Kept {
    child: Child,
    /// Ends the thread that the child's life hangs on.
    _keeper: Sender<()>,
}

impl Kept {
    /// Who asks to be killed with its parent is killed with the thread that started it. So that
    /// threads may come and go here, one of its own starts it, and stays until this is dropped.
    fn start(mut command: Command) -> Result<Kept, Error> {
        let (keeper, kept) = channel::<()>();
        let (sender, started) = channel();
        let thread = std::thread::Builder::new().name("lab".into());
        let thread = thread.spawn(move || {
            let child = command.spawn();
            // Only the child's own end closes the sockets: this process must hold no copy.
            drop(command);
            if sender.send(child).is_ok() {
                let _ = kept.recv();
            }
        });
        thread.map_err(|error| Error::new(format!("a thread for a process: {error}")))?;
        match started.recv() {
            Ok(Ok(child)) => Ok(Kept {
                child,
                _keeper: keeper,
            }),
            Ok(Err(error)) => Err(Error::new(format!("setpriv: {error}; run .ci/setup"))),
            Err(_) => Err(Error::new("the thread that starts a process ended")),
        }
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn kill(&mut self) -> Result<(), Error> {
        // Fails only if it has ended.
        let _ = self.child.kill();
        let ended = self.child.wait();
        ended.map_err(|error| Error::new(format!("waiting for a process: {error}")))?;
        Ok(())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.kill();
    }
}

fn read_from(
    mut line: UnixStream,
    sender: SyncSender<Message>,
    message: impl Fn(Vec<u8>) -> Message + Send + 'static,
) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        // An error is an end, too: QEMU was killed with unread bytes in the socket.
        while let Ok(count @ 1..) = line.read(&mut buffer) {
            if sender.send(message(buffer[..count].to_vec())).is_err() {
                break;
            }
        }
    });
}

/// A value in one of QEMU's lists: a comma in it is written twice.
fn escaped(path: &Path) -> OsString {
    match path.to_str() {
        Some(path) => path.replace(',', ",,").into(),
        None => path.into(),
    }
}

fn list(parts: &[&dyn AsRef<std::ffi::OsStr>]) -> OsString {
    parts.iter().fold(OsString::new(), |mut list, part| {
        list.push(part);
        list
    })
}

/// An oops ends the guest: what runs after one proves nothing. What watches for lost time finds
/// nothing but a host that is busy. Timers are periodic: on a host that was very busy, one that has
/// to be set anew each time was seen to stop for good on one processor.
const KERNEL: &str = "panic=-1 oops=panic mitigations=off loglevel=5 nowatchdog cryptomgr.notests \
                      no_timer_check highres=off nohz=off tsc=reliable \
                      workqueue.watchdog_thresh=0 rcupdate.rcu_cpu_stall_suppress=1 \
                      rcupdate.rcu_expedited=1 random.trust_cpu=on";

/// The kernel's console is the serial line.
fn boot_linux(image: &Path) -> [OsString; 6] {
    [
        "-kernel".into(),
        image.join("kernel/vmlinux").into(),
        "-initrd".into(),
        image.join("initramfs").into(),
        "-append".into(),
        format!("console=ttyS0 {KERNEL}").into(),
    ]
}

/// Xen has the serial line and takes kernel and initramfs as modules, which are named in one
/// list: the links of the job, in whose directory QEMU runs, have no names that would need quotes.
fn boot_xen(memory: u64) -> [OsString; 6] {
    let memory = memory >> 20;
    [
        "-kernel".into(),
        "xen".into(),
        "-initrd".into(),
        format!("vmlinux console=hvc0 {KERNEL},initramfs").into(),
        "-append".into(),
        format!(
            "dom0_mem={memory}M,max:{memory}M console=com1 com1=115200,8n1 bootscrub=off \
             spec-ctrl=no xpti=off pv-l1tf=off loglvl=warning guest_loglvl=warning"
        )
        .into(),
    ]
}

fn arguments(lab: &Lab, image: &Path, job: &Job, disks: &[Taken]) -> Vec<OsString> {
    let for_guests = if lab.xen { Lab::XEN_GUESTS } else { 0 };
    let memory = format!("{}M", lab.memory.saturating_add(for_guests) >> 20);
    let mut arguments: Vec<OsString> = [
        "-machine",
        "q35",
        "-accel",
        "tcg,thread=multi,tb-size=512",
        "-cpu",
        // What it has more than that is dear to emulate, and with SMAP dom0 does not boot.
        "Westmere",
        "-smp",
        "2",
        "-m",
        &memory,
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-device",
        "virtio-rng-pci",
        "-device",
        "virtio-serial-pci",
    ]
    .map(OsString::from)
    .to_vec();
    arguments.extend(if lab.xen {
        boot_xen(lab.memory)
    } else {
        boot_linux(image)
    });
    let mut add = |option: &str, value: OsString| arguments.extend([option.into(), value]);
    add("-serial", list(&[&"file:", &escaped(&job.console())]));
    for (fd, name) in ["status", "out", "err"].iter().enumerate() {
        add("-chardev", format!("socket,id={name},fd={fd}").into());
        add(
            "-device",
            format!("virtserialport,chardev={name},name={name}").into(),
        );
    }
    let mut directory = |tag: &str, path: &Path, options: &str| {
        let start = format!("local,id={tag},mount_tag={tag},multidevs=remap{options},path=");
        add("-virtfs", list(&[&start, &escaped(path)]));
    };
    directory("host", Path::new("/"), ",security_model=none,readonly=on");
    directory("job", &job.shown(), ",security_model=none,readonly=on");
    for (number, path) in lab.shares.iter().enumerate() {
        directory(&format!("share{number}"), path, ",security_model=none");
    }
    for (number, disk) in disks.iter().enumerate() {
        // Only QEMU is ever killed, not its host, so the host's cache is as durable as a disk.
        let start = format!("node-name=lab{number},discard=unmap,cache.no-flush=");
        let backend = if lab.volatile {
            let socket = socket(number);
            format!("{start}off,driver=nbd,server.type=unix,server.path={socket}").into()
        } else {
            let start = format!("{start}on,driver=file,filename=");
            list(&[&start, &escaped(&disk.path)])
        };
        add("-blockdev", backend);
        let device = format!("virtio-blk-pci,drive=lab{number},serial=lab{number},discard=on");
        add("-device", device.into());
    }
    arguments
}
