//! Answers that lie about lengths, and those that come with sense data.

use bytes::Bytes;
use volmux_iscsi_initiator::Residual;

use crate::disk::{self, Act, Disk, READ, WRITE, deferred, sense};
use crate::{content, kind};

#[tokio::test]
async fn less_or_more_than_was_asked_for_is_an_error() {
    let disk = Disk::new(64, 512);
    let unit = disk.open().await;
    for act in [
        Act::Residual(Residual::Underflow(1)),
        Act::Residual(Residual::Underflow(512)),
        Act::Residual(Residual::Overflow(512)),
        Act::Data(Bytes::new()),
        Act::Data(content(1, 1023)),
        Act::Data(content(1, 1025)),
        Act::DoneWithSense(sense(3, 0x1100)),
    ] {
        disk.on(READ, 1, act.clone());
        let error = kind(unit.read(None, 0, 2).await);
        assert!(
            error.contains("Malformed") || error.contains("Medium"),
            "{act:?}: {error}"
        );
    }
    for act in [
        Act::Residual(Residual::Underflow(1)),
        Act::Residual(Residual::Overflow(1)),
        Act::Data(content(1, 1)),
    ] {
        for code in [
            WRITE,
            disk::WRITE_SAME,
            disk::COMPARE_AND_WRITE,
            disk::RESERVE_OUT,
        ] {
            disk.on(code, 1, act.clone());
        }
        let (zeros, data) = ([0; 512], content(1, 512));
        assert!(kind(unit.write(None, 0, data.clone()).await).contains("Malformed"));
        assert!(kind(unit.zero(None, 0, 1, true).await).contains("Malformed"));
        let compared = unit.compare_and_write(None, 5, &zeros, &zeros).await;
        assert!(kind(compared).contains("Malformed"));
        assert!(kind(unit.register(None, 0, 1, false).await).contains("Malformed"));
    }
    // Of each list tgt says that it took nothing.
    disk.on(disk::UNMAP, 1, Act::Residual(Residual::Underflow(24)));
    unit.unmap(None, &[(0, 1)]).await.expect("unmapped");
}

#[tokio::test]
async fn what_was_recovered_is_good_if_it_is_all_there() {
    let disk = Disk::new(64, 512);
    let unit = disk.open().await;
    let data = content(1, 1024);
    disk.on(WRITE, 1, Act::DoneWithSense(sense(1, 0x0c00)));
    unit.write(None, 4, data.clone()).await.expect("recovered");
    disk.on(READ, 1, Act::DoneWithSense(sense(1, 0x1700)));
    assert_eq!(unit.read(None, 4, 2).await.expect("recovered").0, data);
    assert_eq!(disk.codes(), [WRITE, READ]);
    disk.on(READ, 1, Act::Sense(sense(1, 0x1700)));
    assert!(
        kind(unit.read(None, 4, 2).await).contains("Malformed"),
        "no data came"
    );
}

#[tokio::test]
async fn a_medium_error_names_the_block() {
    let disk = Disk::new(64, 512);
    let unit = disk.open().await;
    let mut bytes = sense(3, 0x1100);
    bytes[0] |= 0x80;
    bytes[3..7].copy_from_slice(&9_u32.to_be_bytes());
    disk.on(READ, 1, Act::Sense(bytes));
    assert_eq!(kind(unit.read(None, 8, 2).await), "Medium { lba: Some(9) }");
    // This is not tgt, where it would mean that there is no space.
    disk.on(WRITE, 1, Act::Sense(sense(3, 0x1100)));
    let error = kind(unit.write(None, 8, content(1, 512)).await);
    assert_eq!(error, "Medium { lba: None }");
}

#[tokio::test]
async fn an_acknowledged_write_that_was_lost_fails_all_flushes() {
    let disk = Disk::new(64, 512);
    let unit = disk.open().await;
    unit.write(None, 0, content(1, 512))
        .await
        .expect("acknowledged");
    disk.on(READ, 1, Act::Sense(deferred(3, 0x0c00)));
    disk.seen();
    let error = unit.read(None, 20, 1).await.expect_err("of the write");
    assert!(error.is_deferred());
    assert_eq!(format!("{:?}", error.kind()), "Medium { lba: None }");
    assert_eq!(disk.codes(), [READ], "it is told, not passed over");
    unit.read(None, 20, 1)
        .await
        .expect("it is told once by the target");
    for _ in 0..2 {
        let error = unit.flush(None).await.expect_err("it is lost for good");
        assert!(error.is_deferred());
    }
    assert!(
        unit.deferred()
            .is_some_and(|error| error.command() == "READ(16)")
    );
}

#[tokio::test]
async fn a_flush_tells_of_lost_writes_whatever_their_sense() {
    for (key, code) in [
        (3, 0x0c00),
        (4, 0x4400),
        (5, 0x2000),
        (6, 0x2900),
        (7, 0x2707),
    ] {
        let disk = Disk::new(64, 512);
        let unit = disk.open().await;
        disk.on(disk::FLUSH_16, 1, Act::Sense(deferred(key, code)));
        let error = unit.flush(None).await.expect_err("of a write");
        assert!(error.is_deferred(), "{error}");
        assert_eq!(
            disk.codes(),
            [disk::FLUSH_16],
            "neither repeated nor done another way"
        );
        assert!(
            unit.flush(None)
                .await
                .expect_err("it stays lost")
                .is_deferred()
        );
    }
    // What was recovered in the end is no loss.
    let disk = Disk::new(64, 512);
    let unit = disk.open().await;
    disk.on(disk::FLUSH_16, 1, Act::Sense(deferred(1, 0x0c00)));
    unit.flush(None).await.expect("flushed");
    assert!(unit.deferred().is_none());
}
