//! Opening: what is asked, and what is made of the answers.

use std::sync::Arc;

use volmux_iscsi::scsi::report_luns;
use volmux_iscsi::scsi::{Illegal, LogicalUnit, ProvisioningType, ScsiErrorKind, UnitOptions};
use volmux_iscsi_initiator::{ErrorKind, Replay};

use crate::disk::{self, Act, Disk, LUN, sense};
use crate::{illegal, kind};

async fn open(disk: &Arc<Disk>) -> Result<LogicalUnit, volmux_iscsi::scsi::ScsiError> {
    LogicalUnit::open(disk.clone(), LUN).await
}

#[tokio::test]
async fn everything_is_read_in_one_session() {
    let disk = Disk::new(64, 512);
    let unit = open(&disk).await.expect("a unit");
    assert_eq!(
        (unit.lun(), unit.opened_in(), unit.block_size()),
        (LUN, 1, 512)
    );
    assert_eq!(
        (&*unit.inquiry().vendor, unit.serial()),
        ("VOLMUX", Some("serial-1"))
    );
    assert_eq!(unit.designators().len(), 1);
    assert_eq!(unit.designators()[0].to_string(), "naa.6000000000000001");
    assert_eq!(unit.capacity().bytes(), 64 * 512);
    assert_eq!(unit.capacity().physical_exponent, 3);
    assert_eq!(unit.provisioning().kind, ProvisioningType::Thin);
    assert!(unit.can_unmap() && unit.reads_zeros() && !unit.write_protected());
    assert_eq!(
        (unit.write_cache(), unit.max_compare_and_write()),
        (Some(true), 16)
    );
    assert_eq!((unit.resets(), unit.capacity_stale()), (0, false));
    let seen = disk.seen();
    assert_eq!((seen[0].nexus, seen[0].replay), (None, Replay::Always));
    assert!(seen[1..].iter().all(|seen| seen.nexus == Some(1)));
}

#[tokio::test]
async fn a_session_that_ends_meanwhile_is_begun_anew() {
    let disk = Disk::new(64, 512);
    disk.on(disk::MODE_SENSE_6, 1, Act::NewSession);
    let unit = open(&disk).await.expect("a unit");
    assert_eq!(unit.opened_in(), 2);
    let again = Disk::new(64, 512);
    again.on(disk::MODE_SENSE_6, 9, Act::NewSession);
    let error = open(&again).await.expect_err("it never lasts");
    assert!(error.is_lost());
    assert!(again.seen().len() < 60);
    let refused = Disk::new(64, 512);
    refused.on(
        disk::INQUIRY,
        1,
        Act::Fail(ErrorKind::Unauthenticated, false),
    );
    assert!(!open(&refused).await.expect_err("refused").is_lost());
    assert_eq!(refused.codes(), [disk::INQUIRY]);
}

#[tokio::test]
async fn only_disks_are_opened() {
    for (device, expected) in [
        (0x7f, illegal(Illegal::LunNotSupported)),
        (0x60, illegal(Illegal::LunNotSupported)),
        (0x20, "NotADisk { qualifier: 1, device_type: 0 }".into()),
        (0x01, "NotADisk { qualifier: 0, device_type: 1 }".into()),
        (0x0c, "NotADisk { qualifier: 0, device_type: 12 }".into()),
    ] {
        let disk = Disk::new(64, 512);
        disk.state().device = device;
        assert_eq!(kind(open(&disk).await), expected);
        assert_eq!(disk.codes(), [disk::INQUIRY], "nothing else is asked");
    }
    let disk = Disk::new(64, 512);
    disk.on(disk::INQUIRY, 1, Act::Sense(sense(5, 0x2500)));
    assert_eq!(kind(open(&disk).await), illegal(Illegal::LunNotSupported));
}

#[tokio::test]
async fn what_a_plain_old_disk_does_not_tell_is_lived_without() {
    let disk = Disk::new(64, 512);
    {
        let mut state = disk.state();
        state.pages.clear();
        state.without = [
            disk::SERVICE_IN,
            disk::MODE_SENSE_6,
            disk::REPORT_OPERATIONS,
        ]
        .into();
        state.mode = (0x80, None);
    }
    let unit = open(&disk).await.expect("a unit");
    assert_eq!((unit.serial(), unit.designators().len()), (None, 0));
    assert_eq!(unit.capacity().bytes(), 64 * 512);
    assert!(unit.write_protected(), "told with all pages");
    assert_eq!(unit.write_cache(), None);
    assert!(!unit.can_unmap() && !unit.reads_zeros());
    assert!(matches!(
        unit.check_identity(None)
            .await
            .expect_err("it has no name")
            .kind(),
        ScsiErrorKind::Unsupported(_)
    ));
    disk.state().without.insert(disk::MODE_SENSE_10);
    let unit = open(&disk).await.expect("a unit");
    assert!(!unit.write_protected() && unit.write_cache().is_none());
}

#[tokio::test]
async fn a_reservation_of_others_does_not_keep_from_looking() {
    const CONFLICT: u8 = 0x18;
    let disk = Disk::new(64, 512);
    for code in [
        disk::MODE_SENSE_6,
        disk::MODE_SENSE_10,
        disk::REPORT_OPERATIONS,
    ] {
        disk.on(code, 9, Act::Status(CONFLICT));
    }
    let unit = open(&disk).await.expect("a unit");
    assert_eq!((unit.write_cache(), unit.write_protected()), (None, false));
}

#[tokio::test]
async fn everything_that_the_unit_has_to_tell_is_passed_over() {
    let disk = Disk::new(64, 512);
    for code in [0x2900, 0x2a03, 0x2a05, 0x3f0e, 0x3f03, 0x2a09, 0x9999] {
        disk.on(disk::TEST_UNIT_READY, 1, Act::Sense(sense(6, code)));
    }
    let unit = open(&disk).await.expect("a unit");
    assert_eq!(unit.resets(), 1);
    assert!(!unit.capacity_stale(), "it was read afterwards");
    // From then on they are told to the caller.
    disk.on(disk::READ, 1, Act::Sense(sense(6, 0x3f0e)));
    assert_eq!(
        kind(unit.read(None, 0, 1).await),
        "Attention { asc: 63, ascq: 14 }"
    );
}

#[tokio::test]
async fn answers_that_make_no_sense_are_errors() {
    let cases: [(u8, &[u8]); 6] = [
        (disk::INQUIRY, &[]),
        (disk::INQUIRY, &[0, 0, 6]),
        (disk::SERVICE_IN, &[0; 11]),
        (disk::SERVICE_IN, &[0; 32]),
        (disk::SERVICE_IN, &[0xff; 32]),
        (disk::MODE_SENSE_6, &[3, 0]),
    ];
    for (code, bytes) in cases {
        let disk = Disk::new(64, 512);
        disk.on(code, 1, Act::Data(bytes.to_vec().into()));
        let error = open(&disk).await.expect_err("nonsense");
        assert!(
            matches!(error.kind(), ScsiErrorKind::Malformed(_)),
            "{error}"
        );
    }
    // It gives page 80h, whatever is asked for.
    for page in [0x83, 0xb0, 0xb2] {
        let disk = Disk::new(64, 512);
        let unit = open(&disk).await;
        unit.expect("a unit");
        let at = disk
            .seen()
            .iter()
            .position(|seen| seen.cdb[..3] == [0x12, 1, page]);
        let before = at.expect("it is asked for") as u32;
        // Of INQUIRY alone: TEST UNIT READY comes second.
        let other = Disk::new(64, 512);
        for _ in 0..before - 1 {
            other.on(disk::INQUIRY, 1, Act::Late(std::time::Duration::ZERO));
        }
        other.on(disk::INQUIRY, 1, Act::Data(b"\0\x80\0\x01x"[..].into()));
        let error = open(&other).await.expect_err("another page");
        assert!(
            matches!(error.kind(), ScsiErrorKind::Malformed(_)),
            "{page:#x}: {error}"
        );
    }
}

#[tokio::test]
async fn long_pages_are_asked_for_twice() {
    let disk = Disk::new(64, 512);
    let name = |number: u8| [&[1, 3, 0, 16][..], &[number; 16]].concat();
    let names: Vec<u8> = (0..200).flat_map(name).collect();
    disk.state().pages.insert(0x83, names);
    let unit = open(&disk).await.expect("a unit");
    assert_eq!(unit.designators().len(), 200);
    let rooms: Vec<u16> = disk
        .seen()
        .iter()
        .filter(|seen| seen.cdb[..3] == [0x12, 1, 0x83])
        .map(|seen| disk::be16(&seen.cdb, 3))
        .collect();
    assert_eq!(rooms, [255, 4 + 200 * 20]);
    unit.check_identity(None).await.expect("itself");
}

#[tokio::test]
async fn long_lists_of_units_are_asked_for_twice() {
    let disk = Disk::new(64, 512);
    disk.state().luns = (0..2000).map(|lun| lun * 3).collect();
    let luns = report_luns(disk.clone(), UnitOptions::default())
        .await
        .expect("a list");
    assert_eq!(luns, (0..2000).map(|lun| lun * 3).collect::<Vec<u64>>());
    assert_eq!(disk.codes(), [disk::REPORT_LUNS; 2]);
    // It claims four gibibytes.
    let mut lie = vec![0xff; 4];
    lie.resize(16, 0);
    disk.on(disk::REPORT_LUNS, 9, Act::Data(lie.into()));
    let luns = report_luns(disk.clone(), UnitOptions::default())
        .await
        .expect("a list");
    assert_eq!(luns, [0]);
    let seen = disk.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(disk::be32(&seen[1].cdb, 6), 8 + 8 * 16384);
}

#[tokio::test]
async fn another_unit_is_noticed_by_its_serial_number_and_its_names() {
    let disk = Disk::new(64, 512);
    let unit = disk.open().await;
    assert_eq!(unit.check_identity(None).await.expect("itself"), 1);
    assert_eq!(unit.check_identity(Some(1)).await.expect("itself"), 1);
    let good = disk.state().pages.clone();
    disk.state().pages.insert(0x80, b"serial-2".to_vec());
    let error = kind(unit.check_identity(None).await);
    assert!(
        error.contains("OtherUnit") && error.contains("serial-2"),
        "{error}"
    );
    disk.state().pages.remove(&0x80);
    assert!(kind(unit.check_identity(None).await).contains("OtherUnit"));
    disk.state().pages = good.clone();
    disk.state()
        .pages
        .insert(0x83, vec![1, 3, 0, 8, 0x60, 0, 0, 0, 0, 0, 0, 2]);
    assert!(kind(unit.check_identity(None).await).contains("OtherUnit"));
    disk.state().pages = good;
    // The name of the port differs from way to way, and groups are the administrator's.
    let others = [1, 0x06, 0, 4, 0, 0, 0, 9];
    disk.state().pages.entry(0x83).or_default().extend(others);
    disk.state()
        .pages
        .entry(0x83)
        .or_default()
        .extend([1, 0x14, 0, 4, 0, 0, 0, 2]);
    unit.check_identity(None).await.expect("itself");
    disk.state().device = 0x7f;
    let gone = kind(unit.check_identity(None).await);
    assert_eq!(gone, illegal(Illegal::LunNotSupported));
    disk.state().device = 0;
    disk.state().nexus = 2;
    assert!(
        unit.check_identity(Some(1))
            .await
            .expect_err("over")
            .is_lost()
    );
    assert_eq!(unit.check_identity(None).await.expect("itself"), 2);
}
