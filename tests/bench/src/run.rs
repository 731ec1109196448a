//! Running the rivals.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use crate::Result;

/// Runs a command to its end, with its output thrown away.
///
/// # Errors
/// If it can't be run or fails: with what it printed to standard error.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program}: {}: {}", output.status, said.trim()).into());
    }
    Ok(())
}
