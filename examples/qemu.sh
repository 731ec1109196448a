#!/usr/bin/env bash
# From nothing to guests that run: on a volume of a directory pool, of an object pool and of an iSCSI array, by
# what `volmux attach` prints for QEMU; a snapshot of one that runs, its clone booted, a disk plugged in and out.
# The guest is Debian's kernel with a busybox. docs/qemu.md explains the steps.
# Needs root, qemu-system-x86, qemu-block-extra, busybox-static, cpio, e2fsprogs, xfsprogs, tgt and python3, and
# ends with an exit code other than 0 if anything is not as it should be.
#
# usage: examples/qemu.sh     (VOLMUX names the program; without it, it is built. ACCEL=kvm: not in software)
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
export LC_ALL=C.UTF-8 PATH="$PATH:/usr/sbin:/sbin"

if [ -z "${VOLMUX:-}" ]; then
    cargo build --locked --manifest-path "$here/../Cargo.toml" -p volmux-cli
    VOLMUX=${CARGO_TARGET_DIR:-$here/../target}/debug/volmux
fi
VOLMUX=$(realpath "$VOLMUX")
if [ -z "${QEMU_EXAMPLE:-}" ]; then
    # What is mounted here nobody else sees, and it is gone with the last process.
    export VOLMUX QEMU_EXAMPLE=1
    exec unshare --mount --propagation private "${BASH_SOURCE[0]}"
fi

kernel=$("$here/../tests/lab/kernel")
work=$(mktemp -d)
tgtd=
clean_up() {
    # What is to be cleaned up depends on how far it came.
    for process in $(jobs -rp) $tgtd; do
        kill -9 "$process" 2>/dev/null || true
    done
    wait 2>/dev/null
    [ ! -e "$work/objects.sock" ] || volmux detach web host-1 --gateway "$work/objects.sock" || true
    umount -l "$work/volumes" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT
cd "$work"

checks=0
check() { # WHAT COMMAND…: the command must succeed
    local what=$1
    shift
    if ! "$@"; then
        echo "FAILED: $what" >&2
        tail -n 20 ./*.log >&2 || true
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

volmux() {
    "$VOLMUX" "$@"
}

# It ends with this script, however that ends.
qemu-system-x86_64() {
    exec setpriv --pdeathsig KILL -- "$(type -P qemu-system-x86_64)" "$@"
}

# A guest that counts its boots, and then does what is written on its console.
make_guest() {
    mkdir -p root/{bin,dev,proc,sbin,sys}
    cp /bin/busybox root/bin/busybox
    for applet in cat cut dd grep mount poweroff sed sleep stty sync; do
        ln -s busybox "root/bin/$applet"
    done
    cat >root/sbin/init <<'INIT'
#!/bin/busybox sh
PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
stty -echo
echo "boot $(($(sed s/boot// /boots) + 1))" >/boots
sync
echo "guest: ready"
while read -r line; do
    eval "$line"
    echo "guest: ready"
done
INIT
    chmod +x root/sbin/init
    echo 'boot 0' >root/boots
    mke2fs -q -t ext4 -d root disk.img 64M 2>/dev/null
    "$here/../tests/lab/initramfs" "$kernel" "$here/../tests/guest/initramfs-init" initramfs \
        virtio_pci virtio_blk ext4
}

# Boots the guest $name from $disk. Its console is NAME.in and NAME.out.
start() {
    rm -f "$name.in" "$name.out"
    mkfifo "$name.in" "$name.out"
    (
        exec <"$name.in" >"$name.out" 2>"$name.log"
        eval "qemu-system-x86_64 $machine -qmp unix:$name.qmp,server=on,wait=off $disk"
    ) &
    process[$name]=$!
    exec {input}>"$name.in" {output}<"$name.out"
    to[$name]=$input from[$name]=$output
    answer >/dev/null
}
declare -A process to from

# What the guest $name prints until it is ready again.
answer() {
    local line
    while read -r -t 300 line <&"${from[$name]}"; do
        line=${line%$'\r'}
        case $line in
            *'guest: ready'*) return ;;
            *'vmx: failed'*) break ;;
            *) echo "$line" ;;
        esac
    done
    echo "FAILED: the guest $name is not ready" >&2
    return 1
}

guest() { # COMMAND…: has the guest $name do something
    echo "$*" >&"${to[$name]}"
    answer
}

# Powers the guest $name off.
off() {
    local input=${to[$name]} output=${from[$name]}
    echo 'sync; poweroff -f' >&"$input"
    cat <&"$output" >>"$name.log"
    exec {input}>&- {output}<&-
    wait "${process[$name]}"
}

# Sends the QMP commands on standard input, one a line, to the socket. A device is gone once QEMU says so.
qmp() { # SOCKET
    python3 -c '
import json, socket, sys
qemu = socket.socket(socket.AF_UNIX)
qemu.connect(sys.argv[1])
answers = map(json.loads, qemu.makefile())
next(answers)
for line in ["{\"execute\": \"qmp_capabilities\"}", *sys.stdin]:
    qemu.sendall(line.encode())
    answer = next(a for a in answers if "return" in a or "error" in a)
    if "error" in answer:
        sys.exit(answer["error"]["desc"])
    if "device_del" in line:
        next(a for a in answers if a.get("event") == "DEVICE_DELETED")
' "$1"
}

has() { # TEXT COMMAND…: what the guest $name prints for the command is that text
    local text=$1
    shift
    [ "$(guest "$@")" = "$text" ]
}

# The file /written in a snapshot of a guest that ran: what was written last may be in the journal.
written_in() { # VOLUME
    volmux volume export "$1" snapshot.raw --force --format raw >/dev/null
    # Status 1 says that there was a journal, and that it is replayed.
    e2fsck -y -E journal_only snapshot.raw >/dev/null 2>&1 || [ $? -eq 1 ]
    debugfs -R 'cat /written' snapshot.raw 2>/dev/null
}

make_guest
accel=${ACCEL:-tcg}
machine="-machine q35,accel=$accel -cpu max -m 256 -nodefaults -no-reboot -display none -serial stdio"
machine+=" -device pcie-root-port,id=port-1,chassis=1"
machine+=" -kernel $kernel/vmlinux -initrd initramfs -append 'console=ttyS0 panic=-1 mitigations=off quiet rw'"

echo "a guest on a file, with $accel"
mkdir volumes
truncate -s 512M xfs
mkfs.xfs -q -m reflink=1 xfs
mount -o loop xfs volumes
export VOLMUX_POOL=dir://$work/volumes
volmux volume import disk.img web --format raw
disk=$(volmux attach web host-1 --for qemu)
name=web
check "a guest boots from what attach prints" start
check "for the first time" has 'boot 1' cat /boots
check "it writes" guest 'echo before >/written; sync'
check "no second host gets the volume" refused 17 volmux attach web host-2
check "nobody takes it from the guest" refused 17 volmux detach web host-1
check "or deletes it" refused 17 volmux volume delete web

echo "a snapshot of the guest that runs, and its clone"
volmux volume snapshot web web-monday
check "the guest goes on" guest 'echo after >/written; sync'
volmux volume clone web-monday rescue
disk=$(volmux attach rescue host-1 --for qemu)
name=rescue
check "the clone boots beside it" start
check "and finds what was written before the snapshot" has before cat /written
off
volmux detach rescue host-1

echo "a disk for the guest that runs"
name=web
volmux volume create data 64MiB
volmux attach data host-1 --for qmp --node data --bus-id port-1 | qmp web.qmp
serial=$(volmux volume info data --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["id"][:20])')
# shellcheck disable=SC2016
find='until disk=$(grep -l "^'$serial'" /sys/block/*/serial); do sleep 0.1; done; disk=/dev/$(echo $disk | cut -d/ -f4)'
check "the guest finds it by its serial number" guest "$find"
# shellcheck disable=SC2016
check "and writes to it" guest 'echo plugged | dd of=$disk conv=fsync 2>/dev/null'
echo '{"execute": "device_del", "arguments": {"id": "data"}}' | qmp web.qmp
echo '{"execute": "blockdev-del", "arguments": {"node-name": "data"}}' | qmp web.qmp
volmux detach data host-1
volmux volume export data data.raw --format raw >/dev/null
check "what it wrote is there" [ "$(head -c 7 data.raw)" = plugged ]

echo "back to the snapshot"
off
volmux detach web host-1
volmux volume revert web web-monday
disk=$(volmux attach web host-1 --for qemu)
check "the guest boots again" start
check "the second time, as its later ones never were" has 'boot 2' cat /boots
check "and finds what was written before the snapshot" has before cat /written
off
volmux detach web host-1

echo "a guest on an object pool"
mkdir objects
export VOLMUX_POOL=file+object://$work/objects
volmux volume import disk.img web --format raw
disk=$(volmux attach web host-1 --gateway "$work/objects.sock" --for qemu)
name=objects
check "a guest boots from what is served" start
check "it writes" guest 'echo objects >/written; sync'
volmux volume snapshot web web-monday
off
volmux detach web host-1 --gateway "$work/objects.sock"
check "its snapshot holds that" [ "$(written_in web-monday)" = objects ]

echo "a guest on a logical unit"
# An address of its own spares looking for a free port.
address=127.$((RANDOM % 254 + 1)).$((RANDOM % 254 + 1)).$((RANDOM % 254 + 1))
TGT_IPC_SOCKET=$work/tgtd setpriv --pdeathsig KILL -- \
    tgtd -f -C 0 --iscsi "portal=$address:3260" >tgtd.log 2>&1 &
tgtd=$!
for _ in $(seq 100); do
    [ ! -S tgtd.0 ] || break
    sleep 0.1
done
printf a-secret-of-chap >chap
mkdir volumes/array
store=$(python3 -c 'import sys, urllib.parse; print(urllib.parse.quote(sys.argv[1], safe=""))' \
    "dir://$work/volumes/array?init=true")
VOLMUX_POOL="iscsi://$address/iqn.2026-11.org.example:array?control=tgt&store=$store"
VOLMUX_POOL+="&chap_user=volmux&chap_file=$work/chap&tgt_socket=$work/tgtd.0&locks=$work/locks"
volmux volume import disk.img web --format raw
disk=$(volmux attach web iqn.2026-11.org.example:host-1 --for qemu)
name=array
check "a guest logs in, with CHAP, and boots" start
check "it writes" guest 'echo array >/written; sync'
volmux volume snapshot web web-monday
off
volmux detach web iqn.2026-11.org.example:host-1
check "its snapshot holds that" [ "$(written_in web-monday)" = array ]

echo "$checks checks passed in $SECONDS s"
