//! Compilers, and the library to build with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// The folder of the crate.
pub fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where cargo has put the libraries of this test's build: beside the test.
pub fn built() -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    test.parent().expect("a folder").to_owned()
}

/// A folder for a test, on the file system of the build.
pub fn folder() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder")
}

/// The shared library in a folder of its own, under the names that linkers and loaders look for.
/// Another build may replace cargo's own at any time.
pub fn shared_library(folder: &Path) -> PathBuf {
    let to = folder.join("lib");
    fs::create_dir(&to).expect("a folder");
    let from = built().join("libvolmux_ffi.so");
    let library = to.join("libvolmux.so.0");
    if fs::hard_link(&from, &library).is_err() {
        fs::copy(&from, &library).expect("the library");
    }
    std::os::unix::fs::symlink("libvolmux.so.0", to.join("libvolmux.so")).expect("a link");
    to
}

/// The language that a program is compiled as.
#[derive(Clone, Copy, Debug)]
pub enum Language {
    C,
    Cpp,
}

impl Language {
    /// A compiler with all warnings as errors.
    pub fn compiler(self) -> Command {
        let (program, options) = match self {
            Language::C => ("gcc", ["-std=c11", "-xc"]),
            Language::Cpp => ("g++", ["-std=c++17", "-xc++"]),
        };
        let mut compiler = Command::new(program);
        compiler
            .args(options)
            .args(["-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic"]);
        compiler
    }
}

/// Builds a program of `tests/c` with the library in `library`.
pub fn program(name: &str, language: Language, options: &[&str], library: &Path) -> PathBuf {
    let source = crate_folder().join("tests/c").join(format!("{name}.c"));
    let suffix = options.concat();
    let out = library.join(format!("{name}-{language:?}{suffix}"));
    let mut compiler = language.compiler();
    compiler.args(options).arg(source);
    // Whatever follows is no source any more.
    compiler.args(["-xnone", "-pthread", "-o"]).arg(&out);
    compiler.arg("-I").arg(crate_folder().join("include"));
    compiler.arg("-L").arg(library).arg("-lvolmux");
    compiler.arg(format!("-Wl,-rpath,{}", library.display()));
    run(&mut compiler);
    out
}

/// Runs a command, which has to succeed, and returns what it prints.
pub fn run(command: &mut Command) -> String {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}\n{}", said(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// All that a command has printed.
pub fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "{}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}
