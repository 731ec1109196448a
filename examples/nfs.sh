#!/usr/bin/env bash
# The life of a volume in an NFS export: an empty directory that is given up for it, and emptied again.
# Needs root and nfs-common, and ends with an exit code other than 0 if anything is not as it should be.
#
# usage: examples/nfs.sh nfs://host/export     (VOLMUX names the program; without it, it is built)
# In a virtual machine: tests/lab/run -- tests/lab/nfs-server examples/nfs.sh
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
export LC_ALL=C.UTF-8 PATH="$PATH:/usr/sbin:/sbin"

url=${1:?which export? usage: examples/nfs.sh nfs://host/export}
if [ -z "${VOLMUX:-}" ]; then
    cargo build --locked --manifest-path "$here/../Cargo.toml" -p volmux-cli
    VOLMUX=${CARGO_TARGET_DIR:-$here/../target}/debug/volmux
fi
export VOLMUX_POOL=$url
# Before anything is made, for what it makes is removed at the end.
volumes=$("$VOLMUX" volume list --json)
if [ -n "$volumes" ]; then
    echo "$url is not empty: see volmux --pool $url volume list" >&2
    exit 2
fi
work=$(mktemp -d)

clean_up() {
    for volume in web monday test; do
        # Some may not have been made, or be attached; then the next run says that it is not empty.
        "$VOLMUX" volume delete "$volume" >/dev/null 2>&1 || true
    done
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

refused() { # CODE COMMAND…: the command must fail with an exit code of this pattern
    local code=$1 status=0
    shift
    "$@" >/dev/null 2>&1 || status=$?
    # shellcheck disable=SC2053
    [[ $status == $code ]]
}

volmux() {
    "$VOLMUX" "$@"
}

field() { # NAME: of the JSON document on standard input
    python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

mounted() {
    # None is a number, too.
    grep -c " /run/volmux/nfs/" /proc/self/mountinfo || true
}

echo "volumes in $url"
before=$(mounted)
head -c 3000000 /dev/urandom >"$work/image"
truncate -s 8M "$work/image"
check "an image is imported" volmux volume import "$work/image" web --format raw --verify
check "a snapshot is made" volmux volume snapshot web monday
check "and a clone of that" volmux volume clone monday test
check "the volume may go" volmux volume delete web
check "the clone holds what the volume held" \
    volmux volume export test "$work/again" --format raw
check "byte by byte" cmp "$work/image" "$work/again"
volmux pool info --json >"$work/info"
check "the pool says how it clones" grep -q '"clone"' "$work/info"
volmux volume attach test host-1 --json >"$work/target"
check "a volume is attached as a file" grep -q '"path"' "$work/target"
check "which no second host may write" refused 17 volmux volume attach test host-2
# Where the server can't clone, a clone is a qcow2 image above the snapshot's file.
kind=$(field kind <"$work/target")
check "its path can be read as long as it is attached" \
    qemu-img compare -q -f raw -F "${kind/file/raw}" "$work/image" "$(field path <"$work/target")"
check "a host that is lost is done with" volmux volume take-over test
check "the volume is free for another one" volmux volume attach test host-2
check "it is detached" volmux volume detach test host-2
check "what nothing needs is given back" volmux pool gc
check "the clone comes to stand on a file of its own" volmux volume flatten test
check "and holds what it held" volmux volume export test "$work/flat" --format raw
check "byte by byte, too" cmp "$work/image" "$work/flat"
check "nothing stays mounted" [ "$(mounted)" = "$before" ]
# A server may say that there is none, or that this host may not have it.
check "an export that is not there is told" refused '1[19]' volmux --pool "$url-nix" volume list
check "an audit finds nothing" volmux pool audit
echo "$checks checks passed"
