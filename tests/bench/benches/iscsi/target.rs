//! The tgtd that all clients use.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use volmux_bench::Result;

use crate::{MIB, SIZE};

/// Bytes of a block of the disk. With shorter ones iscsi-perf's requests would begin anywhere in a
/// page.
pub const BLOCK: u64 = 4096;
pub const LUN: u64 = 1;
/// The processors of tgtd, and those of its clients, where there are several.
const FOR_TARGET: &str = "0";
pub const FOR_CLIENTS: &str = "1-1023";

const NAME: &str = "iqn.2026-11.org.example:disk";
/// Below the ports that connections get for their own end.
const PORT: u16 = 13270;

/// A tgtd with one disk. Dropping it ends it.
pub struct Target {
    process: Child,
    portal: String,
    store: &'static str,
    /// Of the control socket and the log. The disk is there only until tgtd has it open, so that it
    /// can't be left behind.
    directory: TempDir,
}

impl Target {
    pub fn start() -> Result<Target> {
        let directory = tempfile::Builder::new()
            .prefix("volmux-bench-")
            .tempdir_in("/dev/shm")?;
        let disk = directory.path().join("disk");
        write(&disk)?;
        // An address of its own: others may run at the same time.
        let number = std::process::id();
        let [_, b, c, d] = number.to_be_bytes();
        let portal = format!("127.{}.{}.{}:{PORT}", b | 0x80, c, d.clamp(1, 254));
        // With `setpriv` it ends with this process, even if that is killed.
        let mut command = on(FOR_TARGET, "setpriv");
        let log = File::create(directory.path().join("log"))?;
        command
            .args(["--pdeathsig", "KILL", "--", "tgtd", "-f", "-C", "0"])
            .args(["--iscsi", &format!("portal={portal}")])
            .env("TGT_IPC_SOCKET", directory.path().join("control"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let process = command.spawn().map_err(|e| format!("{command:?}: {e}"))?;
        let mut target = Target {
            process,
            portal,
            store: "aio",
            directory,
        };
        target.wait()?;
        target.admin(&["--mode=target", "--op=new", &format!("--targetname={NAME}")])?;
        target.admin(&["--mode=target", "--op=bind", "--initiator-address=ALL"])?;
        let path = format!("--backing-store={}", disk.display());
        let block = format!("--blocksize={BLOCK}");
        let new = ["--mode=logicalunit", "--op=new", "--lun=1", &path, &block];
        // It needs O_DIRECT, which memory has since Linux 6.6.
        if target
            .admin(&[&new[..], &["--bstype=aio"]].concat())
            .is_err()
        {
            target.store = "rdwr";
            target.admin(&new)?;
        }
        fs::remove_file(disk)?;
        Ok(target)
    }

    /// Until it answers.
    fn wait(&mut self) -> Result<()> {
        let start = Instant::now();
        while self.run(&["--mode=system", "--op=show"]).is_err() {
            if let Some(status) = self.process.try_wait()? {
                return Err(format!("tgtd: {status}: {}; run it as root", self.log()).into());
            }
            if start.elapsed() > Duration::from_secs(30) {
                return Err(format!("tgtd does not answer: {}", self.log()).into());
            }
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    pub fn portal(&self) -> &str {
        &self.portal
    }

    pub fn name(&self) -> &'static str {
        NAME
    }

    /// How tgt calls its way to the disk.
    pub fn store(&self) -> &'static str {
        self.store
    }

    /// The disk, for libiscsi.
    pub fn url(&self) -> String {
        format!("iscsi://{}/{NAME}/{LUN}", self.portal)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Has tgtadm do something with the target.
    fn admin(&self, arguments: &[&str]) -> Result<()> {
        self.run(&[arguments, &["--tid=1"]].concat())
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("tgtadm");
        command.args(["-C", "0", "--lld=iscsi"]).args(arguments);
        command.env("TGT_IPC_SOCKET", self.directory.path().join("control"));
        let output = command.stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("tgtadm: {error}: run .ci/setup"))?;
        match output.status.success() {
            true => Ok(()),
            false => {
                let said = String::from_utf8_lossy(&output.stderr);
                Err(format!("{command:?}: {said}{}", self.log()).into())
            }
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Fails only if it ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A program that stays on some processors. One that runs now beside the other, now in turns with
/// it, is as fast as chance has it.
pub fn on(processors: &str, program: impl AsRef<OsStr>) -> Command {
    if std::thread::available_parallelism().is_ok_and(|number| number.get() == 1) {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", processors]).arg(program);
    command
}

/// A disk that has all its blocks.
fn write(path: &Path) -> Result<()> {
    let mut file = File::create_new(path)?;
    for part in 0..SIZE / MIB {
        file.write_all(&[part as u8; MIB as usize])?;
    }
    Ok(())
}
