//! What an iSCSI target sends: answers to a login, and PDUs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use volmux_iscsi_initiator::fuzz;

fuzz_target!(|bytes: &[u8]| {
    fuzz::login(bytes);
    fuzz::pdus(bytes);
});
