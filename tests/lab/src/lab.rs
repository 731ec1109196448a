//! What a lab is made of.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::job::Job;
use crate::machine::Machine;
use crate::{Disk, Error, Running};

const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// A virtual machine that is described, but does not run. It boots anew for each command.
#[derive(Clone, Debug)]
pub struct Lab {
    pub(crate) disks: Vec<Disk>,
    pub(crate) shares: Vec<PathBuf>,
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) volatile: bool,
    pub(crate) memory: u64,
    pub(crate) time: Duration,
    pub(crate) xen: bool,
}

impl Default for Lab {
    fn default() -> Lab {
        Lab::new()
    }
}

impl Lab {
    /// Memory of a lab, in bytes, if nothing else is said. QEMU takes it as the guest uses it.
    pub const MEMORY: u64 = 2 << 30;
    /// What there is besides for the guests of [Xen](Lab::xen), in bytes.
    pub const XEN_GUESTS: u64 = 1 << 30;
    /// How long a lab may run if nothing else is said.
    pub const TIME: Duration = Duration::from_secs(600);

    /// A lab without disks. Its commands get the caller's variables `PATH`, `HOME`, `TERM`, and
    /// those that begin with `CARGO`, `RUST` or `VOLMUX`.
    pub fn new() -> Lab {
        let passed = |name: &OsStr| {
            let name = name.to_string_lossy();
            matches!(&*name, "PATH" | "HOME" | "TERM")
                || ["CARGO", "RUST", "VOLMUX"]
                    .iter()
                    .any(|start| name.starts_with(start))
        };
        Lab {
            disks: Vec::new(),
            shares: Vec::new(),
            environment: std::env::vars_os()
                .filter(|(name, _)| passed(name) && is_name(name))
                .collect(),
            volatile: false,
            memory: Lab::MEMORY,
            time: Lab::TIME,
            xen: false,
        }
    }

    /// Adds a disk.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Lab {
        self.disks.push(disk);
        self
    }

    /// Gives the disks a write cache that a power cut empties: all is lost that was written after
    /// the last flush. Without this, all stays that the guest's kernel has been told is written.
    #[must_use]
    pub fn volatile(mut self) -> Lab {
        self.volatile = true;
        self
    }

    /// Lets what is inside write to a directory of the host, at the same path.
    #[must_use]
    pub fn share(mut self, directory: impl Into<PathBuf>) -> Lab {
        self.shares.push(directory.into());
        self
    }

    /// Sets a variable of the command's environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Lab {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets the memory, in bytes.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Lab {
        self.memory = bytes;
        self
    }

    /// Sets how long it may run, booting included.
    #[must_use]
    pub fn time(mut self, time: Duration) -> Lab {
        self.time = time;
        self
    }

    /// Boots under Xen, as its dom0: with the memory of a lab, and [`Lab::XEN_GUESTS`] more for
    /// guests. Xen's daemons do not run; the script `xen-dom0` starts them.
    #[must_use]
    pub fn xen(mut self) -> Lab {
        self.xen = true;
        self
    }

    /// Boots, and runs a command inside: a program and its arguments.
    ///
    /// # Errors
    /// If the lab can't be made or started as it is described.
    pub fn run<I, S>(&self, command: I) -> Result<Running, Error>
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        let command: Vec<OsString> = command.into_iter().map(Into::into).collect();
        if command.is_empty() {
            return Err(Error::new("no command to run"));
        }
        let mut lab = self.clone();
        for (name, _) in &lab.environment {
            if !is_name(name) {
                let name = name.to_string_lossy();
                return Err(Error::new(format!("{name:?} is no name of a variable")));
            }
        }
        if lab.memory < 256 << 20 {
            return Err(Error::new("a lab needs 256M of memory at least"));
        }
        if lab.time > LONGEST {
            return Err(Error::new("a lab may run for a week at most"));
        }
        for share in &mut lab.shares {
            let path =
                std::fs::canonicalize(&*share).map_err(|error| Error::file(share, &error))?;
            if !path.is_dir() {
                return Err(Error::new(format!("{}: not a directory", path.display())));
            }
            *share = path;
        }
        let image = made("image")?;
        let kernel = std::fs::canonicalize(image.join("kernel"));
        let kernel = kernel.map_err(|error| Error::file(&image, &error))?;
        let job = Job::new(&image.with_file_name("runs"))?;
        let mut disks = Vec::new();
        for (number, disk) in lab.disks.iter().enumerate() {
            disks.push(disk.take(job.scratch(number))?);
        }
        job.write(&lab, &kernel, &command)?;
        if lab.xen {
            job.link("xen", &made("xen")?.join("xen.elf"))?;
            job.link("vmlinux", &kernel.join("vmlinux"))?;
            job.link("initramfs", &image.join("initramfs"))?;
        }
        let machine = Machine::start(&lab, &image, &job, disks)?;
        Ok(Running::new(machine, job, lab.time))
    }
}

/// A word that a shell takes as the name of a variable.
fn is_name(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    name.first().is_some_and(|first| !first.is_ascii_digit()) && name.iter().all(inner)
}

/// The directory that a script prints, which makes it if need be.
fn made(script: &str) -> Result<PathBuf, Error> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let output = Command::new(&script).output();
    let output = output.map_err(|error| Error::file(&script, &error))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(Error::new(format!(
            "the lab can't be made: {}",
            why.trim_end()
        )));
    }
    Ok(PathBuf::from(said.trim_end()))
}
