//! The decoders of what an object store gives back.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| volmux_object::fuzz::decode(bytes));
