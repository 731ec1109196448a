//! A virtual machine in which a process works on an LVM pool loses its power again and again. After
//! each boot the thin pool's metadata must be whole, too.

use volmux_conformance::power::Machine;

const MIB: u64 = 1 << 20;
const BOOT: &str = "
    # udev has activated what it may.
    vgchange -q -an vg
    if lvs vg/pool >/dev/null 2>&1; then
        lvchange -q -ay -y vg/pool_tmeta
        thin_check /dev/vg/pool_tmeta >&2
        lvchange -q -an vg/pool_tmeta
    fi";

/// `make` makes the pool in the group `vg`.
fn machine(pool: &'static str, make: &str) -> Machine {
    let script = format!(
        "pvcreate -q --metadatasize 8m /dev/vda && vgcreate -q -s 64k vg /dev/vda && {make} &&
        vgchange -q -an vg && sync /dev/vda"
    );
    let worker = env!("CARGO_BIN_EXE_crash-worker");
    Machine::new(worker, 96 * MIB, &script, BOOT, pool)
}

const THIN_POOL: &str =
    "lvcreate -q -y --type thin-pool -L 48M --poolmetadatasize 4M -c 64k -n pool vg";

#[test]
#[ignore = "boots the lab many times: make check-lab"]
fn a_thin_pool_survives_some_power_cuts() {
    machine("lvm://vg/pool", THIN_POOL).cut_again_and_again(8);
}

#[test]
#[ignore = "boots the lab many times: make check-lvm"]
fn a_thin_pool_survives_every_power_cut() {
    machine("lvm://vg/pool", THIN_POOL).cut_again_and_again(50);
}

#[test]
#[ignore = "boots the lab many times: make check-lvm"]
fn a_group_survives_every_power_cut() {
    machine("lvm://vg", "true").cut_again_and_again(12);
}
