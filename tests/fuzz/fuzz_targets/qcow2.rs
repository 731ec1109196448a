//! The check of the headers of qcow2 images.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| volmux_nfs::fuzz::header(bytes));
