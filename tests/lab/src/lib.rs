//! The lab: a virtual machine that boots Debian's kernel in seconds, without KVM, and sees the
//! whole file system of its host. It has what the kernel of a test machine may lack:
//! device-mapper, NBD, NFS.
//!
//! ```no_run
//! # fn main() -> Result<(), volmux_lab::Error> {
//! use volmux_lab::{Disk, End, Lab};
//!
//! let disk = Disk::file("/var/tmp/disk", 64 << 20);
//! let lab = Lab::new().disk(disk);
//! let mut running = lab.run(["sh", "-c", "for n in 1 2 3; do echo $n; done; sleep 9"])?;
//! while running.line()?.as_deref() != Some("2") {}
//! running.cut_power()?;
//! let done = lab.run(["blockdev", "--getsize64", "/dev/vda"])?.finish()?;
//! assert_eq!((done.end, done.stdout.as_str()), (End::Exit(0), "67108864\n"));
//! # Ok(())
//! # }
//! ```
//!
//! Inside, the command runs as root in the directory and with the `PATH` of its caller. What it
//! writes is kept in memory and forgotten, but for [disks](Disk) and [shared
//! directories](Lab::share). QEMU ends with the program that started it, however that ends. User
//! space is 10 to 20 times slower than on the host.

mod disk;
mod job;
mod lab;
mod machine;
mod running;

pub use disk::Disk;
pub use lab::Lab;
pub use running::{Done, End, Event, Running};

use std::path::Path;

/// Why a lab can't be used. To be read by people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl Error {
    /// With a text for people.
    pub fn new(what: impl Into<String>) -> Error {
        Error(what.into())
    }

    /// That something can't be done with a file.
    pub(crate) fn file(path: &Path, error: &std::io::Error) -> Error {
        Error(format!("{}: {error}", path.display()))
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}
