#!/usr/bin/env bash
# The whole life of a volume, on an object pool in a temporary directory, with a real ext4 disk
# image made from the files of this repository. Needs no root and no special file system, leaves
# nothing behind, and ends with an exit code other than 0 if anything is not as it should be.
#
# usage: examples/demo.sh     (VOLMUX names the program; without it, it is built)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C.UTF-8 PATH="$PATH:/usr/sbin:/sbin"

if [ -z "${VOLMUX:-}" ]; then
    cargo build --locked -p volmux-cli
    VOLMUX=${CARGO_TARGET_DIR:-target}/debug/volmux
fi
VOLMUX=$(realpath "$VOLMUX")
repository=$PWD
work=$(mktemp -d)
server=
trap 'kill -KILL $server 2>/dev/null || true; rm -rf "$work"' EXIT
cd "$work"
mkdir pool files
export VOLMUX_POOL="file+object://$work/pool"
checks=0
bold='' plain=''
if [ -t 1 ]; then
    bold=$'\e[1m' plain=$'\e[0m'
fi

step() {
    printf '\n%s%s%s\n' "$bold" "$*" "$plain"
}

# Shows a command as a person would type it.
show() {
    local argument
    printf '$'
    for argument in "$@"; do
        [[ $argument =~ ^[A-Za-z0-9_./:=+,-]+$ ]] || argument=${argument@Q}
        printf ' %s' "$argument"
    done
    printf '\n'
}

run() {
    show "$@"
    "$@"
}

quietly() {
    "$@" >/dev/null 2>&1
}

volmux() {
    "$VOLMUX" "$@"
}

# check WHAT COMMAND…: the command must succeed.
check() {
    local what=$1
    shift
    if ! "$@"; then
        printf 'WRONG: %s\n' "$what" >&2
        exit 1
    fi
    checks=$((checks + 1))
    printf '  ok: %s\n' "$what"
}

# refused CODE COMMAND…: the command must fail with this exit code.
refused() {
    local code=$1 got=0
    shift
    show "$@"
    "$@" || got=$?
    check "refused with exit code $code" [ "$got" -eq "$code" ]
}

# serve VOLUME: serves it over NBD; $uri is where, $server the process.
serve() {
    rm -f uri
    "$VOLMUX" export "$1" --socket "$1.sock" >uri 2>server.log &
    server=$!
    until [ -s uri ]; do
        if ! kill -0 "$server" 2>/dev/null; then
            cat server.log >&2
            exit 1
        fi
        sleep 0.05
    done
    uri=$(cat uri)
}

# The server ends in order, with everything written.
stop_serving() {
    kill -TERM "$server"
    wait "$server"
    server=
}

sha256() {
    sha256sum <"$1" | cut -d' ' -f1
}

# The content of a volume as a raw image, read through volmux.
raw() {
    rm -f out.raw
    volmux volume export "$1" out.raw --format raw >/dev/null
    echo out.raw
}

# The checksum of a whole volume, read through volmux.
content() {
    sha256 "$(raw "$1")"
}

# cat_in VOLUME FILE: a file of the ext4 file system in a volume.
cat_in() {
    debugfs -R "cat $2" "$(raw "$1")" 2>/dev/null
}

has_file() {
    [ "$(cat_in "$1" "$2" | sha256sum)" = "$(sha256sum <"$3")" ]
}

has_no_file() {
    [ -z "$(cat_in "$1" "$2")" ]
}

# The numbers of the 4 KiB blocks in which two images differ, found by reading all of both.
differing_blocks() {
    # cmp says by its exit code that they differ, which is what is expected here.
    { cmp -l "$1" "$2" || true; } | awk '{ print int(($1 - 1) / 4096) }' | uniq
}

# Numbers in order, as runs: the first of each, and how many.
runs() {
    awk 'NR > 1 && $1 == start + count { count++; next }
        NR > 1 { print start, count }
        { start = $1; count = 1 }
        END { if (NR) print start, count }'
}

# guest VOLUME COMMAND…: what a guest does to its disk. The command changes guest.raw; the blocks
# in which that differs from the volume then go to it over NBD, as the writes of a guest do.
guest() {
    local volume=$1 start count blocks=0 writes=()
    shift
    cp "$(raw "$volume")" guest.raw
    show "$@"
    quietly "$@"
    while read -r start count; do
        dd if=guest.raw of="run-$start" bs=4096 skip="$start" count="$count" status=none
        writes+=(-c "write -q -s run-$start $((start * 4096)) $((count * 4096))")
        blocks=$((blocks + count))
    done < <(differing_blocks out.raw guest.raw | runs)
    serve "$volume"
    printf '  %d blocks of 4 KiB go to %s over NBD, in %d writes\n' \
        "$blocks" "$volume" $((${#writes[@]} / 2))
    qemu-io -f raw "${writes[@]}" "$uri"
    stop_serving
    rm -f run-*
}

# The data objects of the pool, which has no such folder once the last one is gone.
objects() {
    [ ! -d pool/logs ] || find pool/logs -path '*/d/*' -type f | sort
}

# The numbers of the 4 KiB blocks in a list of extents.
listed_blocks() {
    awk '/^ *[0-9]+ +[0-9]+$/ { for (at = $1; at < $1 + $2; at += 4096) print at / 4096 }'
}

step '1. A disk image as a guest has it: ext4, with the files of this repository'
(cd "$repository" && cp -r README.md CONTRIBUTING.md LICENSE-* docs core examples "$work/files/")
run mke2fs -q -t ext4 -L volmux-demo -d files disk.img 64M
original=$(sha256 disk.img)
printf '%s files, %s KiB of data in a 64 MiB image, sha256 %s\n' \
    "$(find files -type f | wc -l)" "$(du -k disk.img | cut -f1)" "${original:0:16}…"

step '2. An object pool in an empty directory; a bucket of S3 or Azure would do as well'
run volmux pool info

step '3. Import the image as a volume'
run volmux volume import disk.img web --format raw --verify
run volmux volume list
check 'the volume holds the image' [ "$(content web)" = "$original" ]
check 'README.md reads back out of the ext4 in the volume' has_file web /README.md files/README.md

step '4. Snapshot it: one small object; asking again is no error and makes nothing new'
objects >before
records=$(find pool/catalog -type f | wc -l)
run volmux volume snapshot web web-monday
run volmux volume snapshot web web-monday
objects >after
check 'no data was written' cmp before after
check 'one record was' [ "$(find pool/catalog -type f | wc -l)" -eq $((records + 1)) ]

step '5. The guest goes on: it writes a file, and loses another one'
printf 'written by the guest on tuesday\n' >tuesday.txt
guest web debugfs -w -R 'write tuesday.txt tuesday.txt' guest.raw
guest web debugfs -w -R 'rm README.md' guest.raw
check 'the new file is in the volume' has_file web /tuesday.txt tuesday.txt
check 'README.md is gone from the volume' has_no_file web /README.md
check 'the snapshot stays as it was' [ "$(content web-monday)" = "$original" ]

step '6. Compare: what changed since the snapshot, to the block'
run volmux volume extents web --changed-since web-monday
volmux volume extents web --changed-since web-monday | listed_blocks >listed
volmux volume export web tuesday.raw --format raw >/dev/null
differing_blocks tuesday.raw disk.img >differing
check "the $(wc -l <differing) blocks that differ are among the $(wc -l <listed) listed" \
    [ -z "$(comm -23 <(sort differing) <(sort listed))" ]
check 'and there are some' [ -s differing ]

step '7. Clone the snapshot and get the lost file out of the clone'
run volmux volume clone web-monday rescue
check 'README.md is in the clone' has_file rescue /README.md files/README.md
guest rescue debugfs -w -R 'write tuesday.txt rescued.txt' guest.raw
check 'the clone can be written' has_file rescue /rescued.txt tuesday.txt
check 'and does not touch its parent' [ "$(content web-monday)" = "$original" ]

step '8. Revert the volume to its snapshot'
run volmux volume revert web web-monday --dry-run
check 'a dry run changes nothing' has_file web /tuesday.txt tuesday.txt
run volmux volume revert web web-monday
check 'every byte is back' [ "$(content web)" = "$original" ]
check 'README.md is back' has_file web /README.md files/README.md

step '9. Copy it, make the copy larger, and let ext4 grow into it'
run volmux volume copy web spare
check 'the copy has the same content' [ "$(content spare)" = "$original" ]
run volmux volume resize spare 128MiB
run volmux volume info spare
guest spare resize2fs guest.raw
check 'ext4 is sound at the new size' quietly e2fsck -fn "$(raw spare)"
check 'README.md is in the larger copy' has_file spare /README.md files/README.md

step '10. Export for another hypervisor'
run volmux volume export web web.qcow2 --format qcow2 --verify
check 'qemu-img finds the qcow2 sound' qemu-img check -q -f qcow2 web.qcow2

step '11. Serve it over NBD, as a hypervisor anywhere would use it'
show volmux export web --socket web.sock
serve web
run qemu-img info -f raw "$uri"
check 'a client reads what the exported image holds' \
    qemu-img compare -q -f raw -F qcow2 "$uri" web.qcow2
run qemu-io -f raw -c 'write -P 0x5a 40M 1M' -c flush "$uri"
refused 17 volmux volume delete web

step '12. Kill the server: what a client flushed is there, and the volume is free at once'
show kill -KILL "$server"
{ kill -KILL "$server" && wait "$server"; } 2>/dev/null || true
server=
run volmux pool audit --repair
volmux volume export web served.raw --format raw >/dev/null
# 0x5a is the letter Z.
check 'what the client wrote is in the volume' \
    [ "$(dd if=served.raw bs=1M skip=40 count=1 2>/dev/null | tr -dc Z | wc -c)" -eq 1048576 ]
guest web debugfs -w -R 'rm CONTRIBUTING.md' guest.raw
check 'and it is written again' has_no_file web /CONTRIBUTING.md

step '13. Thin volumes take no space; mistakes are refused with a reason'
run volmux volume create big 100GiB
run volmux volume list --sort name
refused 12 volmux volume create big 200GiB
refused 14 volmux volume create ../big 1GiB
refused 14 volmux volume resize spare 1MiB
refused 11 volmux volume info nobody

step '14. Verify every block; a damaged one is found and named'
run volmux pool scrub
cp -r pool damaged
victim=$(find damaged/logs -path '*/d/*' -type f -size +1M | sort | head -n 1)
printf 'rot' | dd of="$victim" bs=1 seek=1000000 conv=notrunc status=none
VOLMUX_POOL=file+object://$work/damaged refused 1 volmux pool scrub | tee found
check 'by the name of its object' grep -q "${victim##*/}" found

step '15. Move a volume to another kind of pool: a directory, where it is a raw file to attach'
mkdir directory
run volmux volume export rescue rescue.qcow2 --format qcow2
run volmux -p "dir://$work/directory" volume import rescue.qcow2 rescue --format qcow2 --verify
run volmux -p "dir://$work/directory" volume attach rescue here
disk=$(volmux -p "dir://$work/directory" volume attach rescue here)
check 'its file holds what the volume held' cmp "$disk" "$(raw rescue)"
run volmux -p "dir://$work/directory" volume detach rescue here
run volmux -p "dir://$work/directory" volume snapshot rescue rescue-monday

step '16. Delete the parents first: what came from them does not mind'
run volmux volume delete web web-monday big
check 'the clone still reads' has_file rescue /README.md files/README.md
check 'there is data to collect' [ -n "$(objects)" ]
run volmux volume delete rescue spare
run volmux pool audit
run volmux pool gc
check 'the pool is empty' [ -z "$(volmux volume list --json)" ]
check 'no data is left in it' [ -z "$(objects)" ]

printf '\ndemo: %d checks passed in %d s; the pool was on %s\n' \
    "$checks" "$SECONDS" "$(stat -f -c %T .)"
