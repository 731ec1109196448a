//! Recovery of journals that were damaged.
#![no_main]

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

/// In memory where that is possible: recovery syncs. Nothing is in it between two inputs.
static BASE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    match memory.is_dir() {
        true => memory,
        false => std::env::temp_dir(),
    }
});

fuzz_target!(|bytes: &[u8]| {
    let dir = BASE.join(format!("volmux-fuzz-{}", std::process::id()));
    let made = std::fs::DirBuilder::new().mode(0o700).create(&dir);
    made.expect("a directory");
    volmux_object::fuzz::journal(&dir, bytes);
    std::fs::remove_dir(&dir).expect("it is empty");
});
