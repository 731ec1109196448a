//! A small Linux that a test makes, puts into a volume, and boots under QEMU without KVM.
//!
//! The guest does what the test asks for ([`Guest::boot`]) and tells the outcome on its console, in
//! lines that begin with `vmx: `. Every wait has a limit, and QEMU ends with the test, however that
//! ends.

mod disk;
mod guest;
mod image;
mod libvirt;
mod qmp;
mod reach;
mod store;

pub use disk::Disk;
pub use guest::{Guest, Said};
pub use image::Image;
pub use libvirt::{Domain, Libvirt, confined};
pub use qmp::Qmp;
pub use reach::{HOST, Reached, SECRET, STOP, Way, array, directory_url};
pub use store::{Store, name};

use std::path::{Path, PathBuf};
use std::process::Command;

/// A file of this package.
fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Runs a command to its end and returns what it printed.
///
/// # Panics
/// If it can't be run or fails: with what it printed to standard error.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}; run .ci/setup"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}: {said}",
        output.status
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}
