//! The readers of what lvm2, the kernel and the thin tools say.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| volmux_lvm::fuzz::read(bytes));
