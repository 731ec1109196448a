#!/usr/bin/env bash
# A volume as a disk of dom0, and as the root of a Xen guest: snapshotted while it is in use, and the clone
# of the snapshot booted as another guest. docs/xl.md tells it in words. Needs root, dom0 of Xen 4.17 or newer with
# xl, busybox-static, e2fsprogs, and for pools in object stores nbd-client. Leaves nothing behind, and ends with
# an exit code other than 0 if anything is not as it should be.
#
# usage: examples/xen.sh POOL     (VOLMUX names the program; without it, it is built. XEN_KERNEL and XEN_INITRAMFS
#                                  are what guests boot with, if not what this host boots with)
# In a virtual machine, on three kinds of pools: make lab-xen
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
export LC_ALL=C.UTF-8 PATH="$PATH:/usr/sbin:/sbin"

export VOLMUX_POOL=${1:?which pool? usage: examples/xen.sh POOL}
if [ -z "${VOLMUX:-}" ]; then
    cargo build --locked --manifest-path "$here/../Cargo.toml" -p volmux-cli
    VOLMUX=${CARGO_TARGET_DIR:-$here/../target}/debug/volmux
fi
VOLMUX=$(realpath "$VOLMUX")

kernel=/boot/vmlinuz-$(uname -r)
initramfs=/boot/initrd.img-$(uname -r)
kernel=${XEN_KERNEL:-$kernel}
initramfs=${XEN_INITRAMFS:-$initramfs}

volmux() {
    "$VOLMUX" "$@"
}

# Before anything is made, for what it makes is removed at the end.
for name in web test; do
    if xl domid "$name" >/dev/null 2>&1; then
        echo "a guest $name runs here already: see xl list" >&2
        exit 2
    fi
done
if [ -n "$(volmux volume list --json)" ]; then
    echo "$VOLMUX_POOL is not empty: see volmux --pool $VOLMUX_POOL volume list" >&2
    exit 2
fi
case $VOLMUX_POOL in
s3:* | az:* | gs:* | *+object:*) gateway=yes ;;
*) gateway= ;;
esac
work=$(mktemp -d)
cd "$work"

# After a failure: some may not have been made.
clean_up() {
    umount mnt
    xl destroy web
    xl destroy test
    xl block-detach 0 xvdz
    [ -z "$gateway" ] || nbd-client -d /dev/nbd0
    for volume in web test; do
        for holder in dom0 web test; do
            volmux volume detach "$volume" "$holder" ${gateway:+--gateway "$work/$volume.sock"}
        done
    done
    volmux volume delete web test web-monday web-tuesday
    rm -rf "$work"
}
trap 'clean_up >/dev/null 2>&1 || true' EXIT

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

refused() { # COMMAND…: the command must find something in use
    local status=0
    "$@" >/dev/null 2>&1 || status=$?
    [ "$status" -eq 17 ]
}

wait_for() { # COMMAND…: for five minutes at most
    local end=$((SECONDS + 300))
    until "$@"; do
        if [ "$SECONDS" -ge "$end" ]; then
            tail -n 50 ./*.log >&2 || true
            echo "FAILED: waited too long: $*" >&2
            exit 1
        fi
        sleep 1
    done
}

is_off() { # GUEST
    ! xl domid "$1" >/dev/null 2>&1
}

told() { # GUEST WORD: what it told last
    sed -n "s/.*guest: $2 \([^ ]*\).*/\1/p" "$1.log" | tr -d '\r' | tail -n 1
}

has_told() { # GUEST WORD
    [ -n "$(told "$1" "$2")" ]
}

goes_on() { # RECORD
    [ "$(told web record)" -gt "$1" ]
}

in_order() { # IMAGE
    e2fsck -fn "$1" >"$work/e2fsck.log" 2>&1 || { cat "$work/e2fsck.log" >&2 && false; }
}

inside() { # IMAGE FILE: a file of the image's file system
    debugfs -R "cat $2" "$1" 2>/dev/null
}

sum() {
    sha256sum | cut -d ' ' -f 1
}

echo "a disk of dom0, in $VOLMUX_POOL"
volmux volume create web 32MiB
if [ -n "$gateway" ]; then
    volmux volume attach web dom0 --gateway "$PWD/web.sock"
    modprobe nbd
    nbd-client -unix "$PWD/web.sock" /dev/nbd0 -name web
    disk=$(volmux volume attach web dom0 --gateway "$PWD/web.sock" --for xl --device xvdz --host-device /dev/nbd0)
else
    disk=$(volmux volume attach web dom0 --for xl --device xvdz)
fi
echo "  $disk"
xl block-attach 0 "$disk"
udevadm wait --timeout=60 /dev/xvdz

mkdir -p mnt root/bin root/dev root/proc root/run root/sbin root/sys
cp /bin/busybox root/bin
for name in dd mount poweroff sha256sum; do ln -s busybox "root/bin/$name"; done
touch root/records
cat >root/sbin/init <<'END'
#!/bin/busybox sh
# All that this guest does: it looks for what it wrote, or else writes until `xl shutdown`.
export PATH=/bin
n=0
while read -r word number && [ "$word $number" = "record $((n + 1))" ]; do
    n=$number
done </records
echo "guest: found $n"
if [ "$n" -eq 0 ]; then
    dd if=/dev/urandom of=/data bs=64k count=16 conv=fsync 2>/dev/null
    until [ -e /dev/shutdown ]; do
        n=$((n + 1))
        echo "record $n" | dd of=/records oflag=append conv=notrunc,fsync 2>/dev/null
        echo "guest: record $n"
    done
fi
echo "guest: data $(sha256sum </data)"
mount -o remount,ro /
poweroff -f
END
cat >root/sbin/poweroff <<'END'
#!/bin/busybox sh
: >/dev/shutdown
END
chmod +x root/sbin/init root/sbin/poweroff

mke2fs -q -t ext4 -d root /dev/xvdz
mount /dev/xvdz mnt
head -c 1M /dev/urandom >mnt/monday
sync -f mnt
volmux volume snapshot web web-monday
monday=$(sum <mnt/monday)
rm mnt/monday
check 'it is not deleted below who uses it (Busy)' refused volmux volume delete web
umount mnt
blockdev --flushbufs /dev/xvdz
read_back=$(sum </dev/xvdz)
xl block-detach 0 xvdz
if [ -n "$gateway" ]; then
    nbd-client -d /dev/nbd0
    volmux volume detach web dom0 --gateway "$PWD/web.sock"
else
    volmux volume detach web dom0
fi
volmux volume export web image --format raw
check 'the volume holds what dom0 read through Xen' [ "$(sum <image)" = "$read_back" ]
check 'its file system is in order' in_order image
volmux volume export web-monday monday --format raw
# It was mounted: its journal is replayed first.
e2fsck -fp monday >/dev/null || [ $? -eq 1 ]
check 'the snapshot holds what was flushed before' [ "$(inside monday /monday | sum)" = "$monday" ]

start() { # NAME: a guest that boots from $disk
    cat >"$1.cfg" <<END
name = "$1"
memory = 256
kernel = "$kernel"
ramdisk = "$initramfs"
extra = "root=/dev/xvda rw console=hvc0 quiet"
disk = [ '$disk' ]
END
    xl create "$1.cfg"
}

echo 'the root of a guest'
if [ -n "$gateway" ]; then
    volmux volume attach web web --gateway "$PWD/web.sock"
    nbd-client -unix "$PWD/web.sock" /dev/nbd0 -name web
    disk=$(volmux volume attach web web --gateway "$PWD/web.sock" --for xl --host-device /dev/nbd0)
else
    disk=$(volmux volume attach web web --for xl)
fi
echo "  $disk"
start web
xl console web </dev/null >web.log &
wait_for has_told web record
before=$(told web record)
volmux volume snapshot web web-tuesday
after=$(told web record)
wait_for goes_on "$after"
check 'it is not deleted below the guest (Busy)' refused volmux volume delete web
check 'nor detached (Busy)' refused volmux volume detach web web ${gateway:+--gateway "$PWD/web.sock"}
xl shutdown -w web
wait
wait_for is_off web
last=$(told web record)
if [ -n "$gateway" ]; then
    nbd-client -d /dev/nbd0
    volmux volume detach web web --gateway "$PWD/web.sock"
else
    volmux volume detach web web
fi
volmux volume export web image --format raw --force
check 'its file system is in order' in_order image
check 'it holds what the guest wrote' [ "$(inside image /data | sum)" = "$(told web data)" ]
check "and its $last records" [ "$(inside image /records | wc -l)" -eq "$last" ]

echo 'a clone of the snapshot, as the root of another guest'
volmux volume clone web-tuesday test
if [ -n "$gateway" ]; then
    volmux volume attach test test --gateway "$PWD/test.sock"
    nbd-client -unix "$PWD/test.sock" /dev/nbd0 -name test
    disk=$(volmux volume attach test test --gateway "$PWD/test.sock" --for xl --host-device /dev/nbd0)
else
    disk=$(volmux volume attach test test --for xl)
fi
echo "  $disk"
start test
xl console test </dev/null >test.log &
# It ends with the guest.
wait
wait_for is_off test
found=$(told test found)
check "it holds the $before records that were told before the snapshot ($found)" [ "$found" -ge "$before" ]
check "and none of after it" [ "$found" -lt "$last" ]
check 'and what else the guest wrote' [ "$(told test data)" = "$(told web data)" ]
if [ -n "$gateway" ]; then
    nbd-client -d /dev/nbd0
    volmux volume detach test test --gateway "$PWD/test.sock"
else
    volmux volume detach test test
fi

echo 'the end'
check 'an audit finds nothing' volmux pool audit
volmux volume delete web web-monday web-tuesday test
check 'nothing is left' [ -z "$(volmux volume list --json)" ]
trap 'rm -rf "$work"' EXIT
echo "$checks checks passed"
