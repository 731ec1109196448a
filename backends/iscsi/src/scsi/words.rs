//! What sense codes mean, for those that a block device meets (SPC-4 annex F.2).

/// The name of a sense key.
pub(crate) fn of_key(key: u8) -> &'static str {
    match key {
        0x0 => "no sense",
        0x1 => "recovered error",
        0x2 => "not ready",
        0x3 => "medium error",
        0x4 => "hardware error",
        0x5 => "illegal request",
        0x6 => "unit attention",
        0x7 => "data protect",
        0x8 => "blank check",
        0x9 => "vendor specific",
        0xa => "copy aborted",
        0xb => "aborted command",
        0xd => "volume overflow",
        0xe => "miscompare",
        0xf => "completed",
        _ => "reserved sense key",
    }
}

/// What an additional sense code with its qualifier says; of the code alone, if the qualifier is
/// not known.
pub(crate) fn of_code(asc: u8, ascq: u8) -> Option<&'static str> {
    let exact = |asc, ascq| {
        let at = WORDS.binary_search_by_key(&(asc, ascq), |(asc, ascq, _)| (*asc, *ascq));
        at.ok().map(|at| WORDS[at].2)
    };
    exact(asc, ascq).or_else(|| exact(asc, 0))
}

/// In order.
const WORDS: &[(u8, u8, &str)] = &[
    (0x02, 0x00, "no seek complete"),
    (0x03, 0x00, "peripheral device write fault"),
    (0x04, 0x00, "logical unit not ready, cause not reportable"),
    (0x04, 0x01, "logical unit is becoming ready"),
    (0x04, 0x02, "logical unit needs to be started"),
    (0x04, 0x03, "logical unit needs manual intervention"),
    (0x04, 0x04, "logical unit is being formatted"),
    (0x04, 0x07, "logical unit has an operation in progress"),
    (0x04, 0x0a, "asymmetric access state is changing"),
    (0x04, 0x0b, "target port is in standby state"),
    (0x04, 0x0c, "target port is in unavailable state"),
    (0x04, 0x12, "logical unit is offline"),
    (0x05, 0x00, "logical unit does not respond to selection"),
    (0x08, 0x00, "logical unit communication failure"),
    (0x0a, 0x00, "error log overflow"),
    (0x0c, 0x00, "write error"),
    (0x0c, 0x02, "write error, reallocation failed"),
    (0x0c, 0x03, "write error, reassignment recommended"),
    (0x0e, 0x00, "invalid information unit"),
    (0x10, 0x00, "ID CRC or ECC error"),
    (0x10, 0x01, "guard check failed"),
    (0x10, 0x02, "application tag check failed"),
    (0x10, 0x03, "reference tag check failed"),
    (0x11, 0x00, "unrecovered read error"),
    (0x14, 0x00, "recorded entity not found"),
    (0x17, 0x00, "recovered data without error correction"),
    (0x18, 0x00, "recovered data with error correction"),
    (0x1a, 0x00, "parameter list length error"),
    (0x1d, 0x00, "miscompare during verify operation"),
    (0x20, 0x00, "invalid command operation code"),
    (0x20, 0x02, "access denied, no access rights"),
    (0x21, 0x00, "logical block address out of range"),
    (0x22, 0x00, "illegal function"),
    (0x24, 0x00, "invalid field in CDB"),
    (0x25, 0x00, "logical unit not supported"),
    (0x26, 0x00, "invalid field in parameter list"),
    (0x26, 0x04, "invalid release of persistent reservation"),
    (0x27, 0x00, "write protected"),
    (0x27, 0x01, "hardware write protected"),
    (0x27, 0x02, "logical unit software write protected"),
    (0x27, 0x07, "space allocation failed, write protect"),
    (0x28, 0x00, "medium may have changed"),
    (0x29, 0x00, "power on, reset, or bus device reset occurred"),
    (0x29, 0x01, "power on occurred"),
    (0x29, 0x02, "SCSI bus reset occurred"),
    (0x29, 0x03, "bus device reset function occurred"),
    (0x29, 0x04, "device internal reset"),
    (0x29, 0x07, "I_T nexus loss occurred"),
    (0x2a, 0x00, "parameters changed"),
    (0x2a, 0x01, "mode parameters changed"),
    (0x2a, 0x02, "log parameters changed"),
    (0x2a, 0x03, "reservations preempted"),
    (0x2a, 0x04, "reservations released"),
    (0x2a, 0x05, "registrations preempted"),
    (0x2a, 0x06, "asymmetric access state changed"),
    (
        0x2a,
        0x07,
        "implicit asymmetric access state transition failed",
    ),
    (0x2a, 0x09, "capacity data has changed"),
    (0x2c, 0x00, "command sequence error"),
    (0x2f, 0x00, "commands cleared by another initiator"),
    (0x31, 0x00, "medium format corrupted"),
    (0x38, 0x07, "thin provisioning soft threshold reached"),
    (0x39, 0x00, "saving parameters not supported"),
    (0x3a, 0x00, "medium not present"),
    (0x3e, 0x00, "logical unit has not self-configured yet"),
    (0x3e, 0x01, "logical unit failure"),
    (0x3f, 0x00, "target operating conditions have changed"),
    (0x3f, 0x01, "microcode has been changed"),
    (0x3f, 0x03, "inquiry data has changed"),
    (0x3f, 0x04, "component device attached"),
    (0x3f, 0x0e, "reported LUNs data has changed"),
    (0x44, 0x00, "internal target failure"),
    (0x47, 0x00, "SCSI parity error"),
    (0x47, 0x05, "protocol service CRC error"),
    (0x49, 0x00, "invalid message"),
    (0x4b, 0x00, "data phase error"),
    (0x4e, 0x00, "overlapped commands attempted"),
    (0x55, 0x00, "system resource failure"),
    (0x55, 0x03, "insufficient resources"),
    (0x55, 0x04, "insufficient registration resources"),
    (0x5d, 0x00, "failure prediction threshold exceeded"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order() {
        assert!(WORDS.is_sorted_by(|a, b| (a.0, a.1) < (b.0, b.1)));
    }

    #[test]
    fn known_codes_have_words() {
        assert_eq!(of_code(0x2a, 9), Some("capacity data has changed"));
        assert_eq!(of_code(0x11, 0x77), Some("unrecovered read error"));
        assert_eq!(of_code(0x99, 0), None);
        assert_eq!(of_key(0xc), "reserved sense key");
    }
}
