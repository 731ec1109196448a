//! Tests on device-mapper, and what they are made with.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use bytes::Bytes;
use volmux_core::ByteRange;

use crate::disk::{Disk, Kind};
use crate::dm::{self, PoolMode, PoolState, PoolStatus};
use crate::metadata::ThinMetadata;

mod broken;
mod disks;
mod extents;
mod volumes;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Runs a program, which must succeed, and gives what it prints.
fn run(command: &str) -> String {
    let mut words = command.split_ascii_whitespace();
    let output = Command::new(words.next().expect("a program"))
        .args(words)
        .output()
        .expect("it starts");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {complaints}");
    String::from_utf8(output.stdout).expect("text")
}

/// A volume group with a thin pool, on a loop device over a file in memory. The lab forgets it.
struct Lab {
    group: String,
    chunk: u64,
}

impl Lab {
    const POOL: &str = "po-ol";

    /// A group of 200 MiB, without a pool.
    fn group(name: &str) -> Lab {
        // Not on a machine that somebody needs.
        assert!(
            std::path::Path::new("/run/lab").exists(),
            "run this in tests/lab/run"
        );
        let path = format!("/dev/shm/{name}");
        let file = File::create(&path).expect("a file in memory");
        file.set_len(200 * MIB).expect("its size");
        run("modprobe loop");
        let device = run(&format!("losetup -f --show {path}"));
        let group = format!("lab-{name}");
        run(&format!("vgcreate -q {group} {}", device.trim()));
        Lab {
            group,
            chunk: 64 * KIB,
        }
    }

    /// A group with a pool of 32 MiB.
    fn new(name: &str, chunk: u64, options: &str) -> Lab {
        let lab = Lab {
            chunk,
            ..Lab::group(name)
        };
        let (group, pool) = (&lab.group, Lab::POOL);
        let what = "lvcreate -q -q -y --type thin-pool -L 32M --poolmetadatasize 4M";
        run(&format!(
            "{what} -c {}k -n {pool} {options} {group}",
            chunk / KIB
        ));
        lab
    }

    fn thin(&self, name: &str, size: &str) {
        let (group, pool) = (&self.group, Lab::POOL);
        run(&format!(
            "lvcreate -q -q -y -V {size} -n {name} --thinpool {pool} {group}"
        ));
    }

    fn snapshot(&self, source: &str, name: &str) {
        let group = &self.group;
        run(&format!(
            "lvcreate -q -q -y -s -kn -n {name} {group}/{source}"
        ));
    }

    fn id(&self, name: &str) -> u32 {
        let field = run(&format!(
            "lvs --noheadings -o thin_id {}/{name}",
            self.group
        ));
        field.trim().parse().expect("a number")
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/dev/mapper").join(dm::dm_name(&self.group, name))
    }

    fn open(&self, name: &str) -> Disk {
        let kind = Kind::Thin {
            chunk: self.chunk,
            group: self.group.clone(),
            pool: Lab::POOL.into(),
        };
        Disk::open(&self.path(name), true, kind).expect("open")
    }

    fn status(&self) -> PoolStatus {
        let found = dm::pool_status(&self.group, Lab::POOL).expect("status");
        found.expect("the pool is active").1
    }

    fn state(&self) -> PoolState {
        match self.status() {
            PoolStatus::Ok(state) => state,
            PoolStatus::Failed => panic!("the pool has failed"),
        }
    }

    /// Chunks in use.
    fn used(&self) -> u64 {
        self.state().data.used
    }

    fn metadata(&self) -> ThinMetadata {
        let lock = PathBuf::from(format!("/run/lock/lab/{}.metadata", self.group));
        ThinMetadata::new(&self.group, Lab::POOL, lock)
    }
}

fn pattern(seed: u8, length: u64) -> Bytes {
    (0..length)
        .map(|i| seed ^ (i % 251) as u8)
        .collect::<Vec<u8>>()
        .into()
}

fn range(from: u64, to: u64) -> ByteRange {
    ByteRange::from_to(from, to)
}

#[test]
#[ignore = "needs device-mapper: run in tests/lab/run"]
fn a_pool_is_looked_at() {
    let lab = Lab::new("look", 64 * KIB, "");
    let name = dm::dm_name(&lab.group, Lab::POOL);
    let (device, status) = dm::pool_status(&lab.group, Lab::POOL)
        .expect("status")
        .expect("active");
    assert_eq!(device, name, "no thin volume yet");
    assert!(matches!(status, PoolStatus::Ok(_)));
    lab.thin("v-1", "8M");
    let (device, _) = dm::pool_status(&lab.group, Lab::POOL)
        .expect("status")
        .expect("active");
    assert_eq!(device, format!("{name}-tpool"));
    let state = lab.state();
    assert_eq!((state.data.used, state.data.total), (0, 512));
    assert_eq!((state.mode, state.held_root), (PoolMode::ReadWrite, None));

    dm::message(&device, "reserve_metadata_snap").expect("reserve");
    assert!(lab.state().held_root.is_some());
    let again = dm::message(&device, "reserve_metadata_snap").expect_err("one at most");
    assert_eq!(again.raw_os_error(), Some(libc::EBUSY));
    dm::message(&device, "release_metadata_snap").expect("release");
    assert_eq!(lab.state().held_root, None);

    let volume = dm::dm_name(&lab.group, "v-1");
    let before = dm::info(&volume).expect("info").expect("it is there");
    let disk = lab.open("v-1");
    let now = dm::info(&volume).expect("info").expect("it is there");
    assert_eq!(now.open_count, before.open_count + 1);
    assert!(now.live_table && !now.suspended && !now.read_only);
    drop(disk);
    run(&format!("dmsetup suspend {volume}"));
    assert!(
        dm::info(&volume)
            .expect("info")
            .expect("it is there")
            .suspended
    );
    run(&format!("dmsetup resume {volume}"));
    let missing = dm::info("lab-no-such").expect("info");
    assert_eq!(missing, None);
    assert_eq!(dm::pool_status(&lab.group, "other").expect("none"), None);
    assert!(dm::status("lab-no-such").is_err());
}

#[test]
#[ignore = "needs device-mapper: run in tests/lab/run"]
fn a_long_table_is_read_whole() {
    let table: String = (0..300).map(|i| format!("{} 8 zero\n", i * 8)).collect();
    std::fs::write("/dev/shm/table", table).expect("write");
    run("dmsetup create lab-long /dev/shm/table");
    let targets = dm::status("lab-long").expect("status");
    assert_eq!(targets.len(), 300);
    for (i, target) in targets.iter().enumerate() {
        assert_eq!((target.start, target.length), (i as u64 * 8, 8));
        assert_eq!((target.kind.as_str(), target.params.as_str()), ("zero", ""));
    }
    run("dmsetup remove lab-long");
}
