//! What a logical unit answers: to each question, and from its opening on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use volmux_iscsi::scsi::fuzz;

fuzz_target!(|bytes: &[u8]| {
    fuzz::parsers(bytes);
    fuzz::unit(bytes);
});
