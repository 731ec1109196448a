#!/usr/bin/env bash
# Installs the C library: install.sh BUILT PREFIX, below DESTDIR if that is set. BUILT is where cargo has
# put libvolmux_ffi.so and libvolmux_ffi.a.
set -euo pipefail

[ $# -eq 2 ] || {
    echo "usage: [DESTDIR=DIR] install.sh BUILT PREFIX" >&2
    exit 2
}
built=$1 prefix=$2
case $prefix in
/*) ;;
*)
    echo "install: the prefix must be an absolute path: $prefix" >&2
    exit 2
    ;;
esac
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${DESTDIR:-}$prefix
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$here/../Cargo.toml" | head -n 1)

install -d "$root/include" "$root/lib/pkgconfig" "$root/share/doc/volmux"
install -m 644 "$here/include/volmux.h" "$root/include/volmux.h"
install -m 755 "$built/libvolmux_ffi.so" "$root/lib/libvolmux.so.$version"
ln -sf "libvolmux.so.$version" "$root/lib/libvolmux.so.0"
ln -sf libvolmux.so.0 "$root/lib/libvolmux.so"
install -m 644 "$built/libvolmux_ffi.a" "$root/lib/libvolmux.a"
install -m 644 "$here/README.md" "$root/share/doc/volmux/README.md"
escaped=$(printf '%s' "$prefix" | sed 's/[&|\\]/\\&/g')
sed -e "s|@PREFIX@|$escaped|" -e "s|@VERSION@|$version|" "$here/volmux.pc.in" \
    >"$root/lib/pkgconfig/volmux.pc"
chmod 644 "$root/lib/pkgconfig/volmux.pc"
