//! The programs of `tests/c`: each as C and as C++, by itself, under valgrind and under
//! AddressSanitizer.

use std::path::Path;
use std::process::Command;

use crate::build::{Language, folder, program, run, said, shared_library};

/// A program and its arguments.
type Program = (&'static str, &'static [&'static str]);

/// On pools in memory.
const IN_MEMORY: [Program; 10] = [
    ("story", &["memory:", "memory"]),
    ("story", &["memory+object:", "object"]),
    ("null", &[]),
    ("errors", &[]),
    ("callbacks", &["memory:"]),
    ("callbacks", &["memory+object:"]),
    ("group", &["memory:"]),
    ("group", &["memory+object:"]),
    ("export", &["POOL"]),
    ("fork", &["memory:"]),
];

/// On pools on a disk.
const ON_DISK: [Program; 6] = [
    ("errors", &["POOL"]),
    ("damage", &["POOL"]),
    ("story", &["dir://POOL", "dir"]),
    ("callbacks", &["dir://POOL"]),
    ("group", &["dir://POOL"]),
    ("fork", &["dir://POOL"]),
];

fn everywhere() -> impl Iterator<Item = Program> {
    IN_MEMORY.into_iter().chain(ON_DISK)
}

/// Runs `command` with a program's arguments, and an empty folder of its own in place of POOL.
fn run_with(command: &mut Command, arguments: &[&str], name: &str, place: &Path) {
    let pool = tempfile::tempdir_in(place).expect("a folder");
    let pool = pool.path().to_str().expect("UTF-8");
    command.args(arguments.iter().map(|a| a.replace("POOL", pool)));
    let printed = run(command);
    assert_eq!(printed, format!("{name}: ok\n"));
}

fn all(language: Language) {
    let place = folder();
    let library = shared_library(place.path());
    for (name, arguments) in everywhere() {
        let program = program(name, language, &[], &library);
        run_with(&mut Command::new(program), arguments, name, place.path());
    }
}

#[test]
fn programs_in_c() {
    all(Language::C);
}

#[test]
fn programs_in_cpp() {
    all(Language::Cpp);
}

/// Nothing is lost, and nothing is read that was not written. What is still reachable at the end
/// (the buffers that `volmux_core::Buffer` keeps, and what Rust's standard library holds for the
/// main thread) is not lost.
///
/// Without pools on a disk: these need openat2(2), which the valgrind of Debian 12 does not know. Their
/// leaks are left to AddressSanitizer.
#[test]
fn programs_under_valgrind() {
    let place = folder();
    let library = shared_library(place.path());
    for (name, arguments) in IN_MEMORY {
        let program = program(name, Language::C, &[], &library);
        let mut valgrind = Command::new("valgrind");
        valgrind.args([
            "-q",
            "--leak-check=full",
            "--error-exitcode=99",
            "--num-callers=40",
        ]);
        valgrind.args(["--errors-for-leak-kinds=definite,indirect,possible"]);
        valgrind.args(["--show-leak-kinds=definite,indirect,possible"]);
        // A child of a fork loses on purpose what its parent opened.
        valgrind.args(["--child-silent-after-fork=yes", "--fair-sched=yes"]);
        valgrind.arg(program);
        run_with(&mut valgrind, arguments, name, place.path());
    }
}

const ASAN: [&str; 2] = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"];

#[test]
fn programs_under_address_sanitizer() {
    let place = folder();
    let library = shared_library(place.path());
    for (name, arguments) in everywhere() {
        let program = program(name, Language::C, &ASAN, &library);
        let symbols = run(Command::new("nm").arg(&program));
        assert!(symbols.contains("__asan_"), "{name} is not instrumented");
        let mut command = Command::new(program);
        command.env("ASAN_OPTIONS", "abort_on_error=0:exitcode=98");
        run_with(&mut command, arguments, name, place.path());
    }
}

#[test]
fn address_sanitizer_would_notice() {
    let place = folder();
    let library = shared_library(place.path());
    let program = program("use_after_free", Language::C, &ASAN, &library);
    let output = Command::new(program)
        .env("ASAN_OPTIONS", "abort_on_error=0:exitcode=98")
        .output()
        .expect("it starts");
    let said = said(&output);
    assert_eq!(output.status.code(), Some(98), "{said}");
    assert!(said.contains("heap-use-after-free"), "{said}");
}
