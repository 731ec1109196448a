//! A libvirtd of its own for each test.
//!
//! It runs as root. What it keeps, and what it finds under /run, /etc/libvirt and in /var, is in a
//! directory of the test, seen there by itself and its guests alone. No service of the system is
//! needed. It ends with the thread that started it, however that ends, and so do its guests.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::guest::{LIMIT, command_line, own};
use crate::{Image, Said, run};

/// The user that QEMU runs as: `libvirt-qemu`, which Debian gives this number.
const USER: u32 = 64055;

/// Seen from within: what each mounted directory is to stand for. A process that waits for others
/// must be the first one, as libvirtd takes no care of the QEMU processes that it left.
const SCRIPT: &str = r#"
    cd "$1"
    for place in /etc/passwd /etc/group /etc/libvirt /var/lib /var/cache /var/log /run; do
        mount --bind ".$place" "$place"
    done
    libvirtd &
    wait $!"#;

/// A libvirtd. It is gone when this is dropped.
#[derive(Debug)]
pub struct Libvirt {
    daemon: Child,
    directory: TempDir,
}

/// A domain that was started.
#[derive(Debug)]
pub struct Domain<'a> {
    libvirt: &'a Libvirt,
    name: String,
    /// All lines of the guest that were waited for.
    seen: usize,
}

impl Libvirt {
    /// Starts one, in the mount namespace of this thread, for guests that are made of `image`.
    ///
    /// # Panics
    /// If it does not start, as everything here if it fails: these are tests.
    pub fn start(image: &Image) -> Libvirt {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path();
        fs::set_permissions(root, Permissions::from_mode(0o711)).expect("its mode");
        set_up(root);
        fs::copy(image.kernel(), root.join("kernel")).expect("the kernel");
        fs::copy(image.initramfs(), root.join("initramfs")).expect("the initramfs");
        let log = File::create(root.join("log")).expect("a log file");
        let mut command = confined("sh");
        command
            .args(["-ec", SCRIPT, "sh"])
            .arg(root)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second descriptor"))
            .stderr(log);
        let daemon = command.spawn();
        let daemon = daemon.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut libvirt = Libvirt { daemon, directory };
        libvirt.wait();
        libvirt
    }

    fn wait(&mut self) {
        let start = Instant::now();
        while let Err(why) = self.try_virsh(&["uri"]) {
            let ended = self.daemon.try_wait().expect("its status");
            let late = start.elapsed() > LIMIT;
            if ended.is_some() || late {
                panic!("libvirtd: {ended:?} {why} {}; run .ci/setup", self.log());
            }
            pause();
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// What virsh, and programs that use libvirt, must be given to find it.
    pub fn uri(&self) -> String {
        let socket = self.path("run/libvirt/libvirt-sock");
        format!("qemu+unix:///system?socket={}", socket.display())
    }

    /// A path that QEMU's user can reach.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The number of the user that QEMU runs as.
    pub fn user(&self) -> String {
        USER.to_string()
    }

    /// Lets QEMU open `path`, as an administrator does.
    pub fn give(&self, path: &Path) {
        chown(path, Some(USER), Some(USER)).expect("its owner");
    }

    /// Has virsh do something.
    ///
    /// # Errors
    /// What it says.
    pub fn try_virsh(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("timeout");
        let output = command
            .arg(LIMIT.as_secs().to_string())
            .args(["virsh", "--quiet", "--connect", &self.uri()])
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output();
        let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    /// Has virsh do something.
    pub fn virsh(&self, arguments: &[&str]) -> String {
        let done = self.try_virsh(arguments);
        done.unwrap_or_else(|why| panic!("virsh {arguments:?}: {why}\n{}", self.log()))
    }

    /// Writes a file for virsh, and returns its path.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).expect("write");
        path.display().to_string()
    }

    /// Makes a domain that boots from `disk`, a `<disk>` exactly as it was rendered, and then does
    /// `work`, as [`Guest::boot`](crate::Guest::boot) has it.
    pub fn define(&self, name: &str, disk: &str, work: &[&str]) {
        let text = self.domain(name, disk, work);
        let file = self.file(&format!("{name}.xml"), &text);
        run(Command::new("virt-xml-validate").args([&file, "domain"]));
        self.virsh(&["define", "--validate", &file]);
    }

    /// Starts a domain that is defined.
    ///
    /// # Errors
    /// What virsh says.
    pub fn start_domain(&self, name: &str) -> Result<Domain<'_>, String> {
        self.try_virsh(&["start", name])?;
        Ok(Domain {
            libvirt: self,
            name: name.to_owned(),
            seen: 0,
        })
    }

    /// Makes a domain and starts it.
    pub fn boot(&self, name: &str, disk: &str, work: &[&str]) -> Domain<'_> {
        self.define(name, disk, work);
        let started = self.start_domain(name);
        started.unwrap_or_else(|why| panic!("{name}: {why}\n{}", self.log()))
    }

    /// The `<os>` of a domain whose guest does `work`.
    pub fn os(&self, read_only: bool, work: &[&str]) -> String {
        let root = self.directory.path().display();
        format!(
            "<os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{root}/kernel</kernel>
    <initrd>{root}/initramfs</initrd>
    <cmdline>{}</cmdline>
  </os>",
            command_line(read_only, work),
        )
    }

    fn domain(&self, name: &str, disk: &str, work: &[&str]) -> String {
        let os = self.os(disk.contains("<readonly/>"), work);
        let console = self.path(&format!("{name}.console"));
        format!(
            "<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>256</memory>
  {os}
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <on_reboot>destroy</on_reboot>
  <devices>
{disk}
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{}'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
",
            console.display(),
        )
    }
}

/// What libvirtd finds in place of what the system has.
fn set_up(root: &Path) {
    for directory in ["etc/libvirt", "run", "var/lib", "var/cache", "var/log"] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    let user = format!("libvirt-qemu:x:{USER}:{USER}::/nonexistent:/usr/sbin/nologin\n");
    let group = format!("libvirt-qemu:x:{USER}:\n");
    for (file, line) in [("etc/passwd", user), ("etc/group", group)] {
        let all = fs::read_to_string(Path::new("/").join(file)).expect("it is there");
        fs::write(root.join(file), all + &line).expect("write");
    }
    let qemu = "security_driver = 'none'\ncgroup_controllers = []\nstdio_handler = 'file'\n";
    let daemon = "auth_unix_ro = 'none'\nauth_unix_rw = 'none'\n";
    for (file, text) in [("qemu.conf", qemu), ("libvirtd.conf", daemon)] {
        let path = root.join("etc/libvirt").join(file);
        fs::write(path, text.replace('\'', "\"")).expect("write");
    }
}

impl Domain<'_> {
    /// Waits until the guest says `line`.
    ///
    /// # Panics
    /// If it fails, or does not say so in time.
    pub fn wait_for(&mut self, line: &str) {
        let start = Instant::now();
        loop {
            let said = self.said();
            let failed = said.iter().find(|said| said.starts_with("failed"));
            assert!(failed.is_none(), "{failed:?}\n{}", self.console());
            if let Some(found) = said.iter().skip(self.seen).position(|said| said == line) {
                self.seen += found + 1;
                return;
            }
            let late = start.elapsed() > LIMIT;
            assert!(!late, "no {line:?}. Its console:\n{}", self.console());
            pause();
        }
    }

    /// Waits until the guest has powered off, and returns all that it said but for the last line,
    /// which is `done`. Nothing remains of the domain.
    ///
    /// # Panics
    /// If it failed, or takes too long.
    pub fn finish(mut self) -> Said {
        self.wait_for("done");
        let start = Instant::now();
        while self.libvirt.virsh(&["domstate", &self.name]) != "shut off" {
            assert!(start.elapsed() < LIMIT, "{} does not end", self.name);
            pause();
        }
        self.libvirt.virsh(&["undefine", &self.name]);
        let mut said = self.said();
        fs::remove_file(self.file()).expect("the console's file");
        said.retain(|line| line != "done");
        Said(said)
    }

    fn said(&self) -> Vec<String> {
        self.console().lines().filter_map(own).collect()
    }

    fn console(&self) -> String {
        let text = fs::read(self.file()).unwrap_or_default();
        // The last line may not be complete.
        let end = text.iter().rposition(|&byte| byte == b'\n').unwrap_or(0);
        String::from_utf8_lossy(&text[..end]).replace('\r', "")
    }

    fn file(&self) -> PathBuf {
        self.libvirt.path(&format!("{}.console", self.name))
    }
}

/// A program that ends, with all that it ever starts, when the thread ends that starts it.
pub fn confined(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--pid"])
        .args(["--fork", "--kill-child", "--mount-proc", "--"])
        .arg(program);
    command
}

fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        // Fails only if it ended already.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
