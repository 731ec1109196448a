#!/usr/bin/env bash
# The life of a volume that a target shows: a tgtd of its own on loopback, over a directory on XFS in a file.
# Needs root, tgt, xfsprogs, qemu-utils with qemu-block-extra and libiscsi-bin, and ends with an exit code other than
# 0 if anything is not as it should be.
#
# usage: examples/iscsi.sh     (VOLMUX names the program; without it, it is built)
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
export LC_ALL=C.UTF-8 PATH="$PATH:/usr/sbin:/sbin"

if [ -z "${VOLMUX:-}" ]; then
    cargo build --locked --manifest-path "$here/../Cargo.toml" -p volmux-cli
    VOLMUX=${CARGO_TARGET_DIR:-$here/../target}/debug/volmux
fi
VOLMUX=$(realpath "$VOLMUX")
if [ -z "${ISCSI_EXAMPLE:-}" ]; then
    # What is mounted here nobody else sees, and it is gone with the last process.
    export VOLMUX ISCSI_EXAMPLE=1
    exec unshare --mount --propagation private "${BASH_SOURCE[0]}"
fi

work=$(mktemp -d)
tgtd=
clean_up() {
    # It may have ended, or not been mounted: what is to be cleaned up depends on how far it came.
    if [ -n "$tgtd" ]; then
        kill -9 "$tgtd" 2>/dev/null || true
        wait "$tgtd" 2>/dev/null || true
    fi
    umount "$work/store" 2>/dev/null || true
    rm -rf "$work"
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
    [ "$status" = "$code" ]
}

fails() { # COMMAND…
    ! "$@" >/dev/null 2>&1
}

quietly() { # COMMAND…
    "$@" >/dev/null
}

volmux() {
    "$VOLMUX" "$@"
}

field() { # NAME: of the JSON document on standard input
    python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

# An address of its own spares looking for a free port.
address=127.$((RANDOM % 254 + 1)).$((RANDOM % 254 + 1)).$((RANDOM % 254 + 1))
start_target() {
    # Ends with this script, however that ends.
    TGT_IPC_SOCKET=$work/tgtd setpriv --pdeathsig KILL -- \
        tgtd -f -C 0 --iscsi "portal=$address:3260" >"$work/log" 2>&1 &
    tgtd=$!
    for _ in $(seq 100); do
        [ -S "$work/tgtd.0" ] && return
        sleep 0.1
    done
    cat "$work/log" >&2
    exit 1
}

mkdir "$work/store"
truncate -s 512M "$work/disk"
mkfs.xfs -q -m reflink=1 "$work/disk"
mount -o loop "$work/disk" "$work/store"
start_target
printf 'a-secret-of-chap\n' >"$work/chap"
printf 'a-secret-of-chap' >"$work/secret"
store=$(python3 -c 'import sys, urllib.parse; print(urllib.parse.quote(sys.argv[1], safe=""))' \
    "dir://$work/store?init=true")
array=iqn.2026-11.org.example:array
export VOLMUX_POOL="iscsi://$address/$array?control=tgt&store=$store&tgt_socket=$work/tgtd.0&locks=$work/locks"
VOLMUX_POOL+="&chap_user=volmux&chap_file=$work/chap"
host=iqn.2026-11.org.example:host-1

echo "volumes of an array on $address"
head -c 3000000 /dev/urandom >"$work/image"
truncate -s 8M "$work/image"
check "an image is imported, over iSCSI" volmux volume import "$work/image" web --format raw --verify
check "a snapshot is made, by the array" volmux volume snapshot web monday
check "and a clone of that" volmux volume clone monday test
check "the volume may go" volmux volume delete web
check "the clone holds what the volume held" volmux volume export test "$work/again" --format raw
check "byte by byte" cmp "$work/image" "$work/again"

volmux volume attach test "$host" --json >"$work/target"
target=$(field target <"$work/target")
url="iscsi://volmux%a-secret-of-chap@$address/$target/$(field lun <"$work/target")"
check "a volume is attached as a logical unit" [ "$(field kind <"$work/target")" = iscsi ]
check "whose serial number is the volume's id" \
    [ "$(field serial <"$work/target")" = "$(volmux volume info test --json | field id)" ]
check "which no second host may write" refused 17 volmux volume attach test "$host-2"
check "and no stranger reaches" fails iscsi-inq -i iqn.2026-11.org.example:stranger "$url"
check "libiscsi finds it" quietly iscsi-inq -i "$host" "$url"
disk=driver=iscsi,transport=tcp,portal=$address,target=$target,lun=1,initiator-name=$host
disk+=,user=volmux,password-secret=chap
check "QEMU reads what was imported" qemu-img compare -q --object "secret,id=chap,file=$work/secret" \
    --image-opts "driver=file,filename=$work/image" "$disk"
write=(-c "write -P 0x5a 6M 64k" -c flush)
check "and writes to it" quietly qemu-io --object "secret,id=chap,file=$work/secret" \
    --image-opts "$disk" "${write[@]}"
qemu-io -f raw "$work/image" "${write[@]}" >/dev/null
check "which volmux reads" quietly volmux volume export test "$work/written" --format raw
check "byte by byte, as well" cmp "$work/image" "$work/written"
check "a host's name is asked for" refused 14 volmux volume attach monday host-1
check "it is detached" volmux volume detach test "$host"

volmux volume attach test "$host" >/dev/null
kill -9 "$tgtd"
# It gives the status of a process that was killed.
wait "$tgtd" 2>/dev/null || true
check "a target that is down is told" refused 21 volmux volume list
start_target
check "after its start an audit finds what is missing" refused 1 volmux pool audit
check "and has the target show it again" quietly volmux pool audit --repair
check "as before" quietly iscsi-inq -i "$host" "$url"
check "a host that is lost is done with" volmux volume take-over test
check "the volume can be written again" volmux volume resize test 16MiB
check "and holds what it held" volmux volume export test "$work/later" --format raw
check "byte by byte, too" cmp -n 8388608 "$work/image" "$work/later"
check "an audit finds nothing" volmux pool audit
echo "$checks checks passed"
