//! The committed header is what cbindgen makes of the crate, and every export is guarded.

use std::fs;
use std::path::{Path, PathBuf};

/// Set to have the header written instead of compared (`make header`).
const WRITE: &str = "VOLMUX_WRITE_HEADER";

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_header_is_that_of_the_crate() {
    let config = cbindgen::Config::from_file(folder().join("cbindgen.toml")).expect("config");
    // Its modules are found from there.
    let builder = cbindgen::Builder::new().with_config(config);
    let builder = builder.with_src(folder().join("src/lib.rs"));
    let mut made = Vec::new();
    builder.generate().expect("a header").write(&mut made);
    let made = String::from_utf8(made).expect("UTF-8");
    let path = folder().join("include/volmux.h");
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, made).expect("write the header");
        return;
    }
    let committed = fs::read_to_string(&path).expect("include/volmux.h");
    assert!(made == committed, "the header is old: run make header");
}

#[test]
fn every_export_is_documented_and_stops_panics() {
    let mut exports = 0;
    for source in sources() {
        let text = fs::read_to_string(&source).expect("a source");
        let parts: Vec<&str> = text.split("#[unsafe(no_mangle)]\n").collect();
        for (before, export) in parts.iter().zip(&parts[1..]) {
            let name = export.split('(').next().expect("a name");
            let body = export.split("\n}\n").next().expect("a body");
            // Accessors only look into their handle, which cannot panic.
            let guarded = ["guard::call(", "quiet(", "free("];
            let guarded = guarded.iter().any(|guard| body.contains(guard));
            let accessor = !body.contains("unsafe {") && !body.contains("lock(");
            assert!(guarded || accessor, "{name} is not guarded");
            let documented = before.lines().last().is_some_and(|l| l.starts_with("///"));
            assert!(documented, "{name} has no documentation");
            exports += 1;
        }
    }
    assert!(exports > 100, "{exports} exports");
}

fn sources() -> Vec<PathBuf> {
    let mut sources: Vec<PathBuf> = fs::read_dir(folder().join("src"))
        .expect("src")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| !path.ends_with("tests.rs"))
        .collect();
    sources.sort();
    sources
}
