//! The QEMU process and its lines.

use std::ffi::OsString;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use crate::job::Job;
use crate::{Error, Lab};

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
    qemu: Child,
    /// Closed once QEMU has ended and all is read.
    pub(crate) messages: Receiver<Message>,
    /// Ends the thread that QEMU's life hangs on.
    _keeper: Sender<()>,
}

impl Machine {
    /// Starts QEMU. It ends with this process, even if that is killed.
    pub(crate) fn start(
        lab: &Lab,
        image: &Path,
        job: &Job,
        disks: &[PathBuf],
    ) -> Result<Machine, Error> {
        let (status, status_end) = pair()?;
        let (out, out_end) = pair()?;
        let (err, err_end) = pair()?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"])
            .args(arguments(lab, image, job, disks))
            .stdin(Stdio::from(status_end))
            .stdout(Stdio::from(out_end))
            .stderr(Stdio::from(err_end));
        let (qemu, keeper) = start_kept(command)?;
        // What the guest prints waits for whoever reads it.
        let (sender, messages) = sync_channel(64);
        read_from(status, sender.clone(), Message::Status);
        read_from(out, sender.clone(), Message::Out);
        read_from(err, sender, Message::Err);
        Ok(Machine {
            qemu,
            messages,
            _keeper: keeper,
        })
    }

    /// Pulls the plug, and returns when QEMU has let go of its files.
    pub(crate) fn kill(&mut self) -> Result<(), Error> {
        // Fails only if it has ended.
        let _ = self.qemu.kill();
        let ended = self.qemu.wait();
        ended.map_err(|error| Error::new(format!("waiting for QEMU: {error}")))?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.kill();
    }
}

fn pair() -> Result<(UnixStream, OwnedFd), Error> {
    let pair = UnixStream::pair();
    let (ours, theirs) = pair.map_err(|error| Error::new(format!("a pair of sockets: {error}")))?;
    Ok((ours, theirs.into()))
}

/// A process that asks to be killed with its parent is killed with the thread that started it. So that
/// threads may come and go here, one of its own starts it, and stays until the sender is dropped.
fn start_kept(mut command: Command) -> Result<(Child, Sender<()>), Error> {
    let (keeper, kept) = channel::<()>();
    let (sender, started) = channel();
    let thread = std::thread::Builder::new().name("lab".into());
    let thread = thread.spawn(move || {
        let child = command.spawn();
        // Only a child's own end closes the sockets: this process must hold no copy.
        drop(command);
        if sender.send(child).is_ok() {
            let _ = kept.recv();
        }
    });
    thread.map_err(|error| Error::new(format!("a thread for QEMU: {error}")))?;
    match started.recv() {
        Ok(Ok(child)) => Ok((child, keeper)),
        Ok(Err(error)) => Err(Error::new(format!("setpriv: {error}; run .ci/setup"))),
        Err(_) => Err(Error::new("the thread that starts QEMU ended")),
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

fn arguments(lab: &Lab, image: &Path, job: &Job, disks: &[PathBuf]) -> Vec<OsString> {
    let memory = format!("{}M", lab.memory >> 20);
    // An oops ends the guest: what runs after one proves nothing. What watches for lost time finds
    // nothing but a host that is busy.
    let kernel = "console=ttyS0 panic=-1 oops=panic mitigations=off loglevel=5 nowatchdog \
         workqueue.watchdog_thresh=0 rcupdate.rcu_cpu_stall_suppress=1 random.trust_cpu=on";
    let mut arguments: Vec<OsString> = [
        "-machine",
        "q35",
        "-accel",
        "tcg,thread=multi,tb-size=512",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        &memory,
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-append",
        kernel,
        "-device",
        "virtio-rng-pci",
        "-device",
        "virtio-serial-pci",
    ]
    .map(OsString::from)
    .to_vec();
    let mut add = |option: &str, value: OsString| arguments.extend([option.into(), value]);
    add("-kernel", image.join("kernel/vmlinux").into());
    add("-initrd", image.join("initramfs").into());
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
    for (number, path) in disks.iter().enumerate() {
        // Only QEMU is ever killed, not its host, so the host's cache is as durable as a disk.
        let start = format!(
            "driver=raw,node-name=lab{number},cache.no-flush=on,discard=unmap,file.driver=file,\
             file.discard=unmap,file.cache.no-flush=on,file.filename="
        );
        add("-blockdev", list(&[&start, &escaped(path)]));
        let device = format!("virtio-blk-pci,drive=lab{number},serial=lab{number},discard=on");
        add("-device", device.into());
    }
    arguments
}
