//! Flushing, sizes, reservations.

use volmux_iscsi::scsi::{ReservationKind, ScsiErrorKind};

use crate::disk::{self, Act, Disk, FLUSH_10, FLUSH_16, TEST_UNIT_READY, sense};
use crate::{content, kind};

#[tokio::test]
async fn the_short_flush_is_for_those_without_the_long_one() {
    let disk = Disk::new(64, 512);
    disk.state().without.insert(FLUSH_16);
    let unit = disk.open().await;
    for expected in [&[FLUSH_16, FLUSH_10][..], &[FLUSH_10]] {
        assert_eq!(unit.flush(None).await.expect("flushed"), 1);
        assert_eq!(disk.codes(), expected);
    }
    // Any other failure is one.
    let disk = Disk::new(64, 512);
    let unit = disk.open().await;
    for (key, code) in [(5, 0x2400), (3, 0x0c00), (4, 0x4400)] {
        disk.on(FLUSH_16, 1, Act::Sense(sense(key, code)));
        unit.flush(None).await.expect_err("not flushed");
        assert_eq!(disk.codes(), [FLUSH_16]);
    }
}

#[tokio::test]
async fn without_a_flush_there_may_be_no_cache() {
    for (caching, good) in [(Some(0), true), (Some(4), false), (None, false)] {
        let disk = Disk::new(64, 512);
        disk.state().without = [FLUSH_16, FLUSH_10].into();
        disk.state().mode.1 = caching;
        let unit = disk.open().await;
        match good {
            true => {
                assert_eq!(unit.flush(None).await.expect("all is durable"), 1);
                assert_eq!(disk.codes(), [FLUSH_16, FLUSH_10, TEST_UNIT_READY]);
            }
            false => {
                let error = unit
                    .flush(None)
                    .await
                    .expect_err("it can't be made durable");
                assert!(
                    matches!(error.kind(), ScsiErrorKind::Unsupported(_)),
                    "{error}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_changed_size_is_known_once_it_is_read() {
    let disk = Disk::new(64, 512);
    let unit = disk.open().await;
    disk.state().data.resize(128 * 512, 0);
    disk.state().mapped.resize(128, false);
    disk.on(disk::READ, 1, Act::Sense(sense(6, 0x2a09)));
    unit.read(None, 0, 1).await.expect("read");
    assert!(unit.capacity_stale());
    assert_eq!(unit.capacity().blocks, 64);
    unit.write(None, 100, content(1, 512))
        .await
        .expect_err("not known yet");
    disk.on(disk::SERVICE_IN, 1, Act::Sense(sense(4, 0x4400)));
    unit.read_capacity(None)
        .await
        .expect_err("the target failed");
    assert!(unit.capacity_stale(), "still not known");
    // It changes once more while it is read.
    disk.on(disk::SERVICE_IN, 1, Act::Sense(sense(6, 0x2a09)));
    let (capacity, nexus) = unit.read_capacity(None).await.expect("read");
    assert_eq!(
        (capacity.blocks, nexus, unit.capacity().blocks),
        (128, 1, 128)
    );
    assert!(unit.capacity_stale());
    unit.read_capacity(None).await.expect("read");
    assert!(!unit.capacity_stale());
    unit.write(None, 100, content(1, 512))
        .await
        .expect("written");
    disk.state().block = 1024;
    let error = unit.read_capacity(None).await.expect_err("other blocks");
    assert!(
        matches!(error.kind(), ScsiErrorKind::OtherUnit { .. }),
        "{error}"
    );
    assert_eq!((unit.block_size(), unit.capacity().blocks), (512, 128));
}

#[tokio::test]
async fn reservations_are_sent_as_the_standard_has_them() {
    let disk = Disk::new(64, 512);
    let unit = disk.open().await;
    let kind = ReservationKind::WriteExclusive;
    unit.register(None, 1, 2, true).await.expect("registered");
    unit.register_ignoring(None, 2, false)
        .await
        .expect("registered");
    unit.reserve(None, 2, kind).await.expect("reserved");
    unit.release(None, 2, kind).await.expect("released");
    unit.preempt(None, 2, 3, kind, false)
        .await
        .expect("preempted");
    unit.preempt(None, 2, 3, kind, true)
        .await
        .expect("preempted");
    unit.clear_reservations(Some(1), 2).await.expect("cleared");
    let types: Vec<u8> = disk.seen().iter().map(|seen| seen.cdb[2]).collect();
    assert_eq!(types, [0, 0, 1, 1, 1, 1, 0]);
    let reserved = std::mem::take(&mut disk.state().reserved);
    let sent: Vec<_> = reserved
        .iter()
        .map(|(action, list)| (*action, disk::be64(list, 0), disk::be64(list, 8), list[20]))
        .collect();
    assert_eq!(
        sent,
        [
            (0, 1, 2, 1),
            (6, 0, 2, 0),
            (1, 2, 0, 0),
            (2, 2, 0, 0),
            (4, 2, 3, 0),
            (5, 2, 3, 0),
            (3, 2, 0, 0),
        ]
    );
}

#[tokio::test]
async fn what_is_read_about_reservations_is_not_made_up() {
    let disk = Disk::new(64, 512);
    let unit = disk.open().await;
    assert_eq!(unit.reservation(None).await.expect("none").0, None);
    assert!(
        unit.registered_keys(None)
            .await
            .expect("none")
            .0
            .keys
            .is_empty()
    );
    for bytes in [&[0; 7][..], &[0, 0, 0, 1, 0, 0, 0, 16, 0, 0], b""] {
        disk.on(disk::RESERVE_IN, 1, Act::Data(bytes.to_vec().into()));
        assert!(kind(unit.reservation(None).await).contains("Malformed"));
    }
    for _ in 0..3 {
        disk.on(disk::RESERVE_IN, 1, Act::Data(vec![0; 3].into()));
    }
    assert!(kind(unit.registered_keys(None).await).contains("Malformed"));
    assert!(kind(unit.full_reservation_status(None).await).contains("Malformed"));
    assert!(kind(unit.reservation_capabilities(None).await).contains("Malformed"));
}
