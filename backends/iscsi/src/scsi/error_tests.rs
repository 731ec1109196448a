use std::error::Error as _;

use super::*;

fn sense(key: u8, code: u16) -> Sense {
    let [asc, ascq] = code.to_be_bytes();
    Sense {
        deferred: false,
        key,
        asc,
        ascq,
        information: Some(7),
    }
}

fn error(kind: ScsiErrorKind) -> ScsiError {
    let place = Place {
        portal: Some("10.0.0.1:3260".into()),
        target: Some("iqn.2026-01.org.example:disk".into()),
        lun: 3,
    };
    ScsiError::new(kind, "WRITE(16)", Arc::new(place))
}

fn core(error: ScsiError) -> CoreError {
    error.into_core("write_at", &VolumeName::new("web-1").expect("a name"))
}

#[test]
fn sense_becomes_a_kind_and_an_error_of_the_core() {
    for (key, code, scsi, expected) in [
        (2, 0x0403, "NotReady", CoreKind::Unavailable),
        (3, 0x1100, "Medium { lba: Some(7) }", CoreKind::Corrupt),
        (4, 0x4400, "Hardware", CoreKind::Unavailable),
        (
            5,
            0x2000,
            "IllegalRequest(InvalidOpcode)",
            CoreKind::Unsupported,
        ),
        (
            5,
            0x2400,
            "IllegalRequest(InvalidField)",
            CoreKind::Unsupported,
        ),
        (
            5,
            0x2602,
            "IllegalRequest(InvalidField)",
            CoreKind::Unsupported,
        ),
        (
            5,
            0x2100,
            "IllegalRequest(LbaOutOfRange)",
            CoreKind::InvalidInput,
        ),
        (
            5,
            0x2500,
            "IllegalRequest(LunNotSupported)",
            CoreKind::NotFound,
        ),
        (5, 0x5504, "IllegalRequest(Other)", CoreKind::Unavailable),
        (
            6,
            0x2a03,
            "Attention { asc: 42, ascq: 3 }",
            CoreKind::Fenced,
        ),
        (
            6,
            0x3f0e,
            "Attention { asc: 63, ascq: 14 }",
            CoreKind::Unavailable,
        ),
        (7, 0x2700, "WriteProtected", CoreKind::PermissionDenied),
        (7, 0x2707, "NoSpace", CoreKind::NoSpace),
        (0xb, 0x4e00, "Aborted", CoreKind::Unavailable),
        (
            0xe,
            0x1d00,
            "Miscompare { offset: Some(7) }",
            CoreKind::Busy,
        ),
        (0xd, 0, "Other", CoreKind::Unavailable),
    ] {
        let sense = sense(key, code);
        let kind = classify(&sense);
        assert_eq!(format!("{kind:?}"), scsi, "{sense}");
        let core = core(error(kind).answered(2, Some(sense), 5));
        assert_eq!(core.kind(), expected, "{core:?}");
        assert_eq!(core.get("sense"), Some(&*sense.to_string()));
    }
}

#[test]
fn errors_name_everything_that_is_known() {
    let error = error(ScsiErrorKind::Medium { lba: Some(7) });
    let error = error.answered(2, Some(sense(3, 0x0c00)), 5);
    assert_eq!(
        error.to_string(),
        "WRITE(16): the medium failed at block 7 (lun=3, status=0x02, sense: medium error, \
         write error (03/0c/00), information 0x7)"
    );
    assert_eq!(
        (error.nexus(), error.status(), error.lun()),
        (Some(5), Some(2), 3)
    );
    let core = core(error);
    for (key, value) in [
        ("volume", "web-1"),
        ("portal", "10.0.0.1:3260"),
        ("target", "iqn.2026-01.org.example:disk"),
        ("lun", "3"),
        ("command", "WRITE(16)"),
        ("reason", "the medium failed at block 7"),
    ] {
        assert_eq!(core.get(key), Some(value), "{core}");
    }
    assert!(core.get("help").is_some_and(|help| help.contains("backup")));
    let source = core.source().expect("a source");
    assert!(source.to_string().contains("write error"));
}

#[test]
fn what_was_acknowledged_and_lost_is_corrupt_whatever_the_sense() {
    for (key, code) in [
        (3, 0x0c00),
        (4, 0x4400),
        (7, 0x2707),
        (5, 0x2000),
        (6, 0x2900),
    ] {
        let sense = Sense {
            deferred: true,
            ..sense(key, code)
        };
        let error = error(classify(&sense)).answered(2, Some(sense), 1);
        assert!(error.is_deferred() && !error.is_not_known());
        let core = core(error);
        assert_eq!(core.kind(), CoreKind::Corrupt);
        assert!(
            core.get("reason")
                .is_some_and(|reason| reason.contains("acknowledged"))
        );
    }
}

#[test]
fn errors_of_the_transport_keep_where_they_were() {
    let kinds = [
        (TransportKind::Unauthenticated, CoreKind::Unauthenticated),
        (TransportKind::NotFound, CoreKind::NotFound),
        (TransportKind::Refused, CoreKind::PermissionDenied),
        (TransportKind::Lost, CoreKind::Unavailable),
        (TransportKind::TimedOut, CoreKind::TimedOut),
        (TransportKind::Protocol, CoreKind::Unavailable),
        (TransportKind::InvalidInput, CoreKind::InvalidInput),
    ];
    for (kind, expected) in kinds {
        let transport = TransportError::new(kind, "why").between("[::1]:1", Some("iqn.x".into()));
        let error = error(ScsiErrorKind::Transport(transport));
        let lost = matches!(kind, TransportKind::Lost | TransportKind::TimedOut);
        assert_eq!(error.is_lost(), lost);
        assert!(
            error
                .source()
                .is_some_and(|source| source.to_string().contains("why"))
        );
        let core = core(error);
        assert_eq!(core.kind(), expected);
        assert_eq!(
            (core.get("portal"), core.get("target")),
            (Some("[::1]:1"), Some("iqn.x"))
        );
    }
    let nowhere = TransportError::new(TransportKind::Lost, "why");
    let core = core(error(ScsiErrorKind::Transport(nowhere)));
    assert_eq!(core.get("portal"), Some("10.0.0.1:3260"));
}

#[test]
fn what_was_never_sent_has_a_kind_too() {
    let other = ScsiErrorKind::OtherUnit {
        found: "serial number x".into(),
    };
    let tape = ScsiErrorKind::NotADisk {
        qualifier: 0,
        device_type: 1,
    };
    for (kind, expected) in [
        (other, CoreKind::NotFound),
        (tape, CoreKind::Unsupported),
        (ScsiErrorKind::Unsupported("UNMAP"), CoreKind::Unsupported),
        (
            ScsiErrorKind::InvalidInput("odd".into()),
            CoreKind::InvalidInput,
        ),
        (
            ScsiErrorKind::Malformed("short".into()),
            CoreKind::Unavailable,
        ),
        (ScsiErrorKind::ReservationConflict, CoreKind::Fenced),
        (ScsiErrorKind::Busy, CoreKind::Unavailable),
    ] {
        assert_eq!(core(error(kind)).kind(), expected);
    }
}
