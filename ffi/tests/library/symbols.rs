//! What the shared library exports, and what it is called.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::build::{built, crate_folder, run};

/// Set to have the list written instead of compared (`make header`).
const WRITE: &str = "VOLMUX_WRITE_HEADER";

#[test]
fn the_library_exports_what_the_list_says_and_nothing_else() {
    let library = built().join("libvolmux_ffi.so");
    let mut nm = Command::new("nm");
    let symbols = run(nm
        .args(["-D", "--defined-only", "--format=posix"])
        .arg(library));
    let symbols = symbols
        .lines()
        .map(|line| line.split(' ').next().expect("a name"));
    let mut symbols: Vec<&str> = symbols.collect();
    symbols.sort_unstable();
    let list = symbols.join("\n") + "\n";
    let path = crate_folder().join("symbols.txt");
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, list).expect("write the list");
        return;
    }
    let committed = fs::read_to_string(&path).expect("symbols.txt");
    assert_eq!(committed, list, "run make header if this is meant");
}

#[test]
fn the_same_functions_are_listed_and_declared() {
    let header = fs::read_to_string(crate_folder().join("include/volmux.h")).expect("the header");
    let listed = fs::read_to_string(crate_folder().join("symbols.txt")).expect("symbols.txt");
    let listed: BTreeSet<&str> = listed.lines().collect();
    let declared: BTreeSet<&str> = header
        .lines()
        .filter(|line| !line.starts_with([' ', '/', '#', '}']) && line.contains('('))
        .filter(|line| !line.starts_with("typedef"))
        .map(|line| line.split('(').next().expect("a part"))
        .map(|line| line.rsplit([' ', '*']).next().expect("a name"))
        .collect();
    assert_eq!(declared, listed);
}

#[test]
fn every_function_is_tried_with_null() {
    let folder = crate_folder().join("tests/c");
    let tried = ["null.c", "errors.c"]
        .map(|name| fs::read_to_string(folder.join(name)).expect("a program"))
        .concat();
    let listed = fs::read_to_string(crate_folder().join("symbols.txt")).expect("symbols.txt");
    for function in listed.lines() {
        assert!(tried.contains(&format!("{function}(")), "{function}");
    }
}

#[test]
fn the_library_has_its_soname() {
    let library = built().join("libvolmux_ffi.so");
    let dynamic = run(Command::new("readelf").arg("-dW").arg(library));
    assert!(
        dynamic.contains("Library soname: [libvolmux.so.0]"),
        "{dynamic}"
    );
    // Nothing but the system's own libraries.
    for needed in dynamic.lines().filter(|line| line.contains("(NEEDED)")) {
        let known = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-"];
        assert!(known.iter().any(|name| needed.contains(name)), "{needed}");
    }
}
