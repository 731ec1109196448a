//! A virtual machine in which a process works on a pool in an NFS export loses its power again and
//! again: client and server at once, and the disk what was not flushed.

use volmux_conformance::power::Machine;

const MIB: u64 = 1 << 20;
const BOOT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/lab/nfs-server
    mkdir /srv/nfs/v
    mount /dev/vda /srv/nfs/v
    exportfs -o rw,sync,no_root_squash,insecure,no_subtree_check,fsid=1 127.0.0.1:/srv/nfs/v"
);

fn cut_on(make: &str) {
    let worker = env!("CARGO_BIN_EXE_crash-worker");
    let pool = "nfs://127.0.0.1/v?vers=4.2";
    Machine::new(worker, 400 * MIB, make, BOOT, pool).cut_again_and_again(20);
}

#[test]
#[ignore = "boots the lab many times: make check-nfs"]
fn a_pool_that_clones_survives_every_power_cut() {
    cut_on("mkfs.xfs -q /dev/vda && sync /dev/vda");
}

#[test]
#[ignore = "boots the lab many times: make check-nfs"]
fn a_pool_of_chains_survives_every_power_cut() {
    cut_on("mkfs.ext4 -q /dev/vda && sync /dev/vda");
}
