//! Gives the shared library its soname.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libvolmux.so.0");
    // Some crates have C functions of their own, which are not ours to export.
    println!("cargo::rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
}
