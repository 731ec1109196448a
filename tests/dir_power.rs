//! A virtual machine in which a process works on a directory pool on ext4, where snapshots and clones
//! are chains of images, loses its power again and again, and its disk what was not flushed.

use volmux_conformance::power::Machine;

const MIB: u64 = 1 << 20;
const BOOT: &str = "
    mkdir -p /mnt/v
    mount /dev/vda /mnt/v
    mkdir -p /mnt/v/pool";

fn cut(times: u64) {
    let make = "mkfs.ext4 -q /dev/vda && sync /dev/vda";
    let worker = env!("CARGO_BIN_EXE_crash-worker");
    Machine::new(worker, 400 * MIB, make, BOOT, "/mnt/v/pool").cut_again_and_again(times);
}

#[test]
#[ignore = "boots the lab many times: make check-lab"]
fn a_pool_of_chains_survives_some_power_cuts() {
    cut(8);
}

#[test]
#[ignore = "boots the lab many times: make check-nfs"]
fn a_pool_of_chains_survives_every_power_cut() {
    cut(40);
}
