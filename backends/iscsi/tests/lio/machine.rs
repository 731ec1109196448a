//! What the lab's machine has for a test: a portal, files and devices of its own.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::time::Duration;

use volmux_iscsi::control::Export;
use volmux_iscsi::control::lio::Lio;
use volmux_iscsi_initiator::Options;

use crate::ONE;

/// Runs a program, which must succeed, and gives what it prints.
pub fn run(command: &str) -> String {
    let mut words = command.split_ascii_whitespace();
    let program = words.next().expect("a program");
    let output = Command::new(program).args(words).output();
    let output = output.unwrap_or_else(|e| panic!("{command}: {e}; run .ci/setup"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

/// Of one test. The lab forgets it all.
#[derive(Debug)]
pub struct Machine {
    name: &'static str,
    address: String,
}

impl Machine {
    pub fn new(name: &'static str) -> Machine {
        // Not on a machine that somebody needs.
        assert!(Path::new("/run/lab").exists(), "run this in tests/lab/run");
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            run("modprobe configfs");
            run("mount -t configfs configfs /sys/kernel/config");
            run("modprobe -a target_core_mod iscsi_target_mod target_core_iblock target_core_file");
            run("modprobe loop");
        });
        let [a, b, ..] = uuid::Uuid::new_v4().into_bytes().map(|byte| byte % 254 + 1);
        Machine {
            name,
            address: format!("127.0.{a}.{b}"),
        }
    }

    pub fn control(&self) -> Lio {
        Lio::new(vec![self.portal().parse().expect("an address")])
    }

    pub fn portal(&self) -> String {
        format!("{}:3260", self.address)
    }

    pub fn target(&self) -> String {
        format!("iqn.2026-01.org.example:{}", self.name)
    }

    pub fn serial(&self) -> String {
        let number = self.name.bytes().fold(7_u64, |n, byte| {
            n.wrapping_mul(31).wrapping_add(byte.into())
        });
        format!("0a1b2c3d-0000-4000-8000-{:012x}", number & 0xffff_ffff_ffff)
    }

    /// For one initiator, to be written.
    pub fn export(&self, path: &Path, size: u64) -> Export {
        Export {
            target: self.target(),
            path: path.into(),
            size,
            serial: self.serial(),
            read_only: false,
            thin: true,
            initiators: vec![ONE.into()],
            chap: None,
            mutual_chap: None,
        }
    }

    /// For readers of the same volume.
    pub fn readers(&self, export: &Export) -> Export {
        Export {
            target: format!("{}.ro", export.target),
            read_only: true,
            thin: true,
            ..export.clone()
        }
    }

    pub fn options(&self, target: &str, initiator: &str) -> Options {
        let mut options = Options::new(self.portal(), initiator);
        options.target = Some(target.to_owned());
        options.command_timeout = Duration::from_secs(20);
        options
    }

    /// What is written in the end. Of a device that is another file: its own has a cache, which
    /// does not see what LIO writes.
    pub fn content(&self) -> PathBuf {
        format!("/dev/shm/{}", self.name).into()
    }

    /// A file in memory.
    pub fn file(&self, size: u64) -> PathBuf {
        let path = self.content();
        let file = File::create_new(&path).expect("a new file");
        file.set_len(size).expect("a sparse file");
        path
    }

    /// A second one.
    pub fn other_file(&self, size: u64) -> PathBuf {
        let path = self.content().with_extension("other");
        let file = File::create_new(&path).expect("a new file");
        file.set_len(size).expect("a sparse file");
        path
    }

    /// A block device, over such a file.
    pub fn device(&self, size: u64) -> PathBuf {
        let file = self.file(size);
        let device = run(&format!("losetup -f --show {}", file.display()));
        device.trim().into()
    }
}

/// Has a file, or the device over it, another size.
pub fn set_size(path: &Path, size: u64) {
    let about = std::fs::metadata(path).expect("it is there");
    let file = match about.is_file() {
        true => path.to_owned(),
        false => run(&format!("losetup -n -O BACK-FILE {}", path.display()))
            .trim()
            .into(),
    };
    let file = OpenOptions::new().write(true).open(file);
    file.and_then(|file| file.set_len(size))
        .expect("another size");
    if !about.is_file() {
        run(&format!("losetup -c {}", path.display()));
    }
}
