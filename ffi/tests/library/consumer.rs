//! A program outside the tree, built with nothing but what `make install` has put in a prefix.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::build::{Language, built, crate_folder, folder, run};

fn tree() -> &'static Path {
    crate_folder().parent().expect("the repository")
}

/// `make install` of this test's build.
fn install(prefix: &Path, destination: Option<&Path>) {
    let mut make = Command::new("make");
    make.current_dir(tree()).args(["--silent", "install"]);
    make.arg(format!("PREFIX={}", prefix.display()));
    make.arg(format!("BUILT={}", built().display()));
    if let Some(destination) = destination {
        make.arg(format!("DESTDIR={}", destination.display()));
    }
    // A make that runs the tests hands its own options on.
    make.env_remove("MAKEFLAGS").env_remove("MFLAGS");
    run(&mut make);
}

fn pkg_config(prefix: &Path, options: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
    let printed = run(command.args(options).arg("volmux"));
    printed.split_whitespace().map(str::to_owned).collect()
}

/// The example, somewhere else.
fn source(place: &Path) -> PathBuf {
    let source = place.join("consumer.c");
    fs::copy(tree().join("examples/lifecycle.c"), &source).expect("a copy");
    source
}

#[test]
fn a_consumer_needs_only_pkg_config() {
    let place = folder();
    let prefix = place.path().join("prefix");
    install(&prefix, None);
    let source = source(place.path());
    for language in [Language::C, Language::Cpp] {
        let shared = place.path().join(format!("shared-{language:?}"));
        let mut compiler = language.compiler();
        compiler.arg(&source).args(["-xnone", "-o"]).arg(&shared);
        compiler.args(pkg_config(&prefix, &["--cflags", "--libs"]));
        run(&mut compiler);
        let linked = run(Command::new("readelf").arg("-dW").arg(&shared));
        assert!(linked.contains("[libvolmux.so.0]"), "{linked}");
        let printed = run(Command::new(shared).env("LD_LIBRARY_PATH", prefix.join("lib")));
        assert!(
            printed.ends_with("lifecycle: all as it should be\n"),
            "{printed}"
        );
    }
}

#[test]
fn a_consumer_can_be_static() {
    let place = folder();
    let prefix = place.path().join("prefix");
    install(&prefix, None);
    let program = place.path().join("static");
    let mut compiler = Language::C.compiler();
    compiler.arg(source(place.path()));
    compiler.args(["-xnone", "-static", "-o"]).arg(&program);
    compiler.args(pkg_config(&prefix, &["--cflags", "--static", "--libs"]));
    run(&mut compiler);
    let linked = run(Command::new("readelf").arg("-dW").arg(&program));
    assert!(!linked.contains("NEEDED"), "{linked}");
    let pool = place.path().join("pool");
    fs::create_dir(&pool).expect("a folder");
    let printed = run(Command::new(program).arg(format!("dir://{}", pool.display())));
    assert!(
        printed.ends_with("lifecycle: all as it should be\n"),
        "{printed}"
    );
}

#[test]
fn an_installation_can_be_staged() {
    let place = folder();
    install(Path::new("/opt/a&b"), Some(place.path()));
    let root = place.path().join("opt/a&b");
    let config = fs::read_to_string(root.join("lib/pkgconfig/volmux.pc")).expect("volmux.pc");
    assert!(config.starts_with("prefix=/opt/a&b\n"), "{config}");
    assert!(!config.contains(place.path().to_str().expect("UTF-8")));
    let link = fs::read_link(root.join("lib/libvolmux.so.0")).expect("a link");
    assert_eq!(link, Path::new("libvolmux.so.0.1.0"));
    for file in [
        "include/volmux.h",
        "lib/libvolmux.a",
        "lib/libvolmux.so",
        "share/doc/volmux/README.md",
    ] {
        assert!(root.join(file).exists(), "{file}");
    }
}
