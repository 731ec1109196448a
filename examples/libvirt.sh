#!/usr/bin/env bash
# Guests of libvirt on volumes: files of a directory, an object pool that is served, and an iSCSI
# array with CHAP (a tgtd of its own on loopback). Disks come and go, a guest that runs is
# snapshotted, its clone boots. docs/libvirt.md explains the steps. Needs root, libvirt-clients,
# libxml2-utils and tgt, and ends with an exit code other than 0 if anything is not as it should be.
# What it makes is removed again.
#
# usage: examples/libvirt.sh DIRECTORY IMAGE
# DIRECTORY is on XFS or btrfs, and QEMU's user can get to it. IMAGE is the disk of a guest, raw.
# VOLMUX names the program (without it, it is built), LIBVIRT_DEFAULT_URI the libvirtd. In the
# environment may be, as in the domain's XML or as told below: TYPE, OS, QEMU_USER, READY.
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
export LC_ALL=C.UTF-8 PATH="$PATH:/usr/sbin:/sbin"

usage='usage: examples/libvirt.sh DIRECTORY IMAGE'
image=$(realpath "${2:?which image? $usage}")
srv=$(mktemp -d "$(realpath "${1:?which directory? $usage}")/volmux-example-XXXXXX")
type=${TYPE:-qemu} # kvm, where there is KVM
os=${OS:-<os><type arch='x86_64' machine='q35'>hvm</type></os>}
qemu_user=${QEMU_USER:-libvirt-qemu}
ready=${READY:-login:} # what a guest that has booted says on its console
if [ -z "${VOLMUX:-}" ]; then
    cargo build --locked --manifest-path "$here/../Cargo.toml" -p volmux-cli
    VOLMUX=${CARGO_TARGET_DIR:-$here/../target}/debug/volmux
fi
VOLMUX=$(realpath "$VOLMUX")
host=iqn.2026-11.org.example:host-1

domains=()
tgtd=
uuid=
clean_up() {
    # How much of it there is depends on how far it came.
    for name in "${domains[@]}"; do
        virsh destroy "$name" || true
        virsh undefine "$name" || true
    done
    [ -z "$uuid" ] || virsh secret-undefine "$uuid" || true
    export VOLMUX_POOL="file+object://$srv/objects"
    volmux detach db "$host" --gateway "$srv/db.sock" || true
    if [ -n "$tgtd" ]; then
        kill -9 "$tgtd" || true
        wait "$tgtd" || true
    fi
    rm -rf "$srv"
} >/dev/null 2>&1
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
    [ "$status" = "$code" ]
}

fails() { # COMMAND…
    ! "$@" >/dev/null 2>&1
}

wait_until() { # COMMAND…: for three minutes at most
    for _ in $(seq 900); do
        "$@" && return
        sleep 0.2
    done
    echo "FAILED: $* does not come true" >&2
    exit 1
}

volmux() {
    "$VOLMUX" "$@"
}

virsh() {
    command virsh --quiet "$@"
}

booted() { # NAME
    grep -q "$ready" "$srv/$1.console" 2>/dev/null
}

is_off() { # NAME
    [ "$(virsh domstate "$1")" = 'shut off' ]
}

has_disk() { # NAME DEVICE; waits for what libvirt does just now
    virsh domblkinfo "$1" "$2" >/dev/null 2>&1
}

has_no_disk() { # NAME DEVICE
    ! has_disk "$@"
}

has_capacity() { # NAME DEVICE BYTES
    virsh domblkinfo "$1" "$2" | grep "^Capacity: *$3$" >/dev/null
}

new() { # NAME: of a domain; what another one has is left alone
    if virsh dominfo "$1" >/dev/null 2>&1; then
        echo "there is a domain $1 already" >&2
        exit 2
    fi
    domains+=("$1")
}

domain() { # NAME: the domain that boots from the disk NAME.xml
    cat <<XML
<domain type='$type'>
  <name>$1</name>
  <memory unit='MiB'>512</memory>
  $os
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <devices>
    $(cat "$srv/$1.xml")
    <serial type='file'><source path='$srv/$1.console'/></serial>
  </devices>
</domain>
XML
}

start_target() { # An address of its own spares looking for a free port.
    address=127.$((RANDOM % 254 + 1)).$((RANDOM % 254 + 1)).$((RANDOM % 254 + 1))
    # Ends with this script, however that ends.
    TGT_IPC_SOCKET=$srv/tgtd setpriv --pdeathsig KILL -- \
        tgtd -f -C 0 --iscsi "portal=$address:3260" >"$srv/tgtd.log" 2>&1 &
    tgtd=$!
    wait_until [ -S "$srv/tgtd.0" ]
}

echo 'a guest on a file'
chmod 711 "$srv"
mkdir "$srv/pool"
export VOLMUX_POOL="dir://$srv/pool"
volmux volume import "$image" web --format raw
chmod 711 "$srv/pool" "$srv/pool/data"
new web
volmux attach web "$host" --for libvirt >"$srv/web.xml"
domain web >"$srv/domain.xml"
virt-xml-validate "$srv/domain.xml" domain
virsh define "$srv/domain.xml"
virsh start web
check 'another host is refused (Busy)' refused 17 volmux attach web "$host-2"
wait_until booted web

echo 'a second disk, while it runs'
volmux volume create data 1GiB
volmux attach data "$host" --for libvirt --device vdb >"$srv/data.xml"
virsh attach-device web "$srv/data.xml" --live
check 'the guest has it' has_disk web vdb
volmux volume resize data 2GiB
virsh blockresize web vdb --size 2GiB
check 'larger than it was' has_capacity web vdb 2147483648
check 'it can not be detached meanwhile (Busy)' refused 17 volmux detach data "$host"
virsh detach-device web "$srv/data.xml" --live
wait_until has_no_disk web vdb
volmux detach data "$host"

echo 'a snapshot, while it runs'
volmux volume snapshot web monday
check 'libvirt takes none itself' fails virsh snapshot-create web --disk-only
virsh shutdown web
wait_until is_off web
volmux detach web "$host"
virsh undefine web

echo 'a guest on a clone of the snapshot'
volmux volume clone monday test
new test
volmux attach test "$host" --for libvirt >"$srv/test.xml"
domain test >"$srv/domain.xml"
virsh define "$srv/domain.xml"
virsh start test
wait_until booted test
check 'the clone boots' virsh destroy test
virsh undefine test
volmux detach test "$host"

echo 'a guest on objects, which are served over NBD'
export VOLMUX_POOL="file+object://$srv/objects"
mkdir "$srv/objects"
volmux volume import "$image" db --format raw
new db
volmux attach db "$host" --gateway "$srv/db.sock" --for libvirt >"$srv/db.xml"
chown "$qemu_user" "$srv/db.sock"
domain db >"$srv/domain.xml"
virt-xml-validate "$srv/domain.xml" domain
virsh define "$srv/domain.xml"
virsh start db
wait_until booted db
volmux volume snapshot db monday
virsh shutdown db
wait_until is_off db
volmux detach db "$host" --gateway "$srv/db.sock"
check 'the server is gone' [ ! -e "$srv/db.sock" ]

echo 'a guest on a logical unit, with CHAP'
mkdir "$srv/array"
start_target
(umask 077 && printf a-secret-of-chap >"$srv/chap")
store="dir%3A%2F%2F${srv//\//%2F}%2Farray"
VOLMUX_POOL="iscsi://$address/iqn.2026-11.org.example:array?control=tgt&store=$store"
VOLMUX_POOL+="&tgt_socket=$srv/tgtd.0&locks=$srv/locks&chap_user=volmux&chap_file=$srv/chap"
volmux volume import "$image" mail --format raw
new mail
volmux attach mail "$host" --for libvirt >"$srv/mail.xml"
domain mail >"$srv/domain.xml"
virt-xml-validate "$srv/domain.xml" domain
virsh define "$srv/domain.xml"
check 'it does not start without the secret' fails virsh start mail
uuid=$(cat /proc/sys/kernel/random/uuid)
usage="<usage type='iscsi'><target>volmux</target></usage>"
echo "<secret private='yes'><uuid>$uuid</uuid>$usage</secret>" >"$srv/secret.xml"
virsh secret-define "$srv/secret.xml"
virsh secret-set-value "$uuid" --file "$srv/chap" --plain
virsh start mail
wait_until booted mail
virsh shutdown mail
wait_until is_off mail
volmux detach mail "$host"
echo "$checks checks passed"
