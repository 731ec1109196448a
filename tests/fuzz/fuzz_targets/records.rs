//! The decoders of catalogue records, descriptions, envelopes, journals' parts and secrets.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    volmux_object::fuzz::records(bytes);
});
