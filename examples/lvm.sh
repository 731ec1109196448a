#!/usr/bin/env bash
# The life of a volume on LVM, on an empty disk that is given up for it. Needs root and lvm2, and ends
# with an exit code other than 0 if anything is not as it should be. What it made on the disk is
# removed again.
#
# usage: examples/lvm.sh DISK     (VOLMUX names the program; without it, it is built)
# In a virtual machine: tests/lab/run --disk 256M -- examples/lvm.sh /dev/vda
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
export LC_ALL=C.UTF-8 PATH="$PATH:/usr/sbin:/sbin"

disk=${1:?which disk? usage: examples/lvm.sh DISK}
group=volmux-example-$$
if [ -n "$(wipefs --no-act --parsable "$disk")" ]; then
    echo "$disk is not empty: see wipefs $disk" >&2
    exit 2
fi
if [ -z "${VOLMUX:-}" ]; then
    cargo build --locked --manifest-path "$here/../Cargo.toml" -p volmux-cli
    VOLMUX=${CARGO_TARGET_DIR:-$here/../target}/debug/volmux
fi
mount=$(mktemp -d)

clean_up() {
    umount "$mount" 2>/dev/null || true
    rmdir "$mount"
    vgremove -qq -ff -y "$group" >/dev/null 2>&1 || true
    pvremove -qq -ff -y "$disk" >/dev/null 2>&1 || true
}
trap clean_up EXIT

checks=0
check() { # WHAT COMMAND…: the command must succeed
    local what=$1
    shift
    if ! "$@"; then
        echo "FAILED: $what" >&2
        exit 1
    fi
    echo "  ok: $what"
    checks=$((checks + 1))
}

refused() { # CODE COMMAND…: the command must fail with this exit code
    local code=$1 status=0
    shift
    "$@" >/dev/null 2>&1 || status=$?
    [ "$status" -eq "$code" ]
}

volmux() {
    "$VOLMUX" "$@"
}

field() { # NAME: of the JSON document on standard input
    python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

echo "a thin pool on $disk"
vgcreate -qq "$group" "$disk" >/dev/null
lvcreate -qq --type thin-pool -L 96M -n pool "$group" >/dev/null 2>&1
export VOLMUX_POOL=lvm://$group/pool
check 'the pool is known' volmux pool info

echo 'a volume with a file system'
volmux volume create web 64MiB
path=$(volmux volume attach web host-1)
check 'attaching again gives the same path' [ "$(volmux volume attach web host-1)" = "$path" ]
check 'another writer is refused (Busy)' refused 17 volmux volume attach web host-2
mke2fs -q -t ext4 "$path"
mount "$path" "$mount"
echo monday >"$mount/file"
sync -f "$mount"

echo 'a snapshot while it is mounted'
volmux volume snapshot web web-monday
echo tuesday >"$mount/file"
check 'it can not be detached while it is mounted (Busy)' refused 17 volmux volume detach web host-1
umount "$mount"
volmux volume detach web host-1
check 'its device is gone' [ ! -e "$path" ]
changed=$(volmux --json volume extents web --changed-since web-monday | wc -l)
check 'what changed since is known' [ "$changed" -gt 1 ]

echo 'a clone of the snapshot'
volmux volume clone web-monday test
path=$(volmux volume attach test host-1)
mount "$path" "$mount"
check 'it holds what was written before' grep -qx monday "$mount/file"
echo clone >"$mount/file"
umount "$mount"
volmux volume detach test host-1

echo 'back to Monday'
volmux volume revert web web-monday
path=$(volmux volume attach web host-1 --read-only)
check 'the device is read-only' [ "$(blockdev --getro "$path")" -eq 1 ]
mount -o ro,noload "$path" "$mount"
check 'the volume is as it was' grep -qx monday "$mount/file"
umount "$mount"
volmux volume detach web host-1

echo 'renamed by hand'
lvrename -qq "$group" test trial >/dev/null
origin=$(volmux --json volume info trial | python3 -c 'import json, sys; print(json.load(sys.stdin)["origin"]["parent_name"])')
check 'it is still a clone of the snapshot' [ "$origin" = web-monday ]

echo 'taken over'
lvcreate -qq -T -V 8M -n old "$group/pool" >/dev/null 2>&1
check 'a logical volume in use is not adopted (Busy)' \
    refused 17 bash -c 'exec 9<"/dev/$0/old"; "$1" volume adopt old new' "$group" "$VOLMUX"
volmux volume adopt old new
check 'it is a volume' [ "$(volmux --json volume info new | field virtual_size)" -eq $((8 << 20)) ]

echo 'names of LVM, and pools that are not there'
check 'InvalidInput' refused 14 volmux volume create web_tmeta 1MiB
check 'InvalidInput' refused 14 volmux volume create snapshot1 1MiB
check 'NotFound' refused 11 volmux -p "lvm://$group/nothing" volume list
check 'InvalidConfig' refused 15 volmux -p "lvm://$group/web" volume list

echo 'thick volumes'
check 'a group makes no thin ones (Unsupported)' refused 13 volmux -p "lvm://$group" volume create data 8MiB
volmux -p "lvm://$group" volume create data 8MiB --thick
check 'it is listed' [ "$(volmux -p "lvm://$group" --json volume info data | field provisioning)" = thick ]
volmux -p "lvm://$group" volume delete data

echo 'the end'
check 'an audit finds nothing' volmux pool audit
volmux volume delete web web-monday trial new
check 'nothing is left' [ -z "$(lvs --noheadings -o lv_name -S 'segtype=thin' "$group")" ]
echo "$checks checks passed"
