//! Requests that take several commands.

use std::time::Duration;

use volmux_iscsi::scsi::LogicalUnit;
use volmux_iscsi_initiator::ErrorKind;

use crate::disk::{self, Act, Disk, READ, UNMAP, WRITE, sense};
use crate::{content, kind};

/// The maximum transfer length, the optimal one.
fn limit(disk: &Disk, most: u32, optimal: u32) {
    let mut state = disk.state();
    let limits = state.pages.get_mut(&0xb0).expect("the page");
    limits[4..8].copy_from_slice(&most.to_be_bytes());
    limits[8..12].copy_from_slice(&optimal.to_be_bytes());
}

#[tokio::test]
async fn what_is_given_back_is_cut_at_multiples_of_the_longest() {
    for (most, granularity, expected) in [
        (16_u64, 0, vec![(3, 13), (16, 16), (32, 11)]),
        (18, 4, vec![(3, 13), (16, 16), (32, 11)]),
        (4, 8, vec![(3, 4), (7, 1), (8, 4), (12, 4), (16, 4)]),
    ] {
        let disk = Disk::new(64, 512);
        if let Some(limits) = disk.state().pages.get_mut(&0xb0) {
            limits.resize(60, 0);
            limits[24..28].copy_from_slice(&u32::to_be_bytes(granularity));
            limits[32..40].copy_from_slice(&most.to_be_bytes());
        }
        let unit = disk.open().await;
        disk.seen();
        let end = expected.last().map_or(0, |(lba, blocks)| lba + blocks);
        let zeroed = unit.zero(None, 3, u64::from(end - 3), true).await;
        zeroed.expect("zeroed");
        let seen: Vec<_> = disk.seen().iter().map(disk::Seen::range).collect();
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(lba, n)| (u64::from(lba), n))
            .collect();
        assert_eq!(seen, expected, "{most} {granularity}");
    }
}

async fn ranges(disk: &Disk, unit: &LogicalUnit, lba: u64, blocks: usize) -> Vec<(u64, u32)> {
    disk.seen();
    let data = content(1, blocks * unit.block_size() as usize);
    unit.write(None, lba, data.clone()).await.expect("written");
    let written: Vec<_> = disk.seen().iter().map(disk::Seen::range).collect();
    let (read, _) = unit.read(None, lba, blocks as u32).await.expect("read");
    assert!(read == data);
    let read: Vec<_> = disk.seen().iter().map(disk::Seen::range).collect();
    assert_eq!(read, written);
    written
}

#[tokio::test]
async fn commands_keep_the_limits_of_the_unit() {
    for (most, optimal, expected) in [
        (16, 0, vec![(3, 13), (16, 16), (32, 11)]),
        (
            16,
            8,
            vec![(3, 5), (8, 8), (16, 8), (24, 8), (32, 8), (40, 3)],
        ),
        (0, 8, vec![(3, 40)]),
        (1 << 20, 0, vec![(3, 40)]),
    ] {
        let disk = Disk::new(64, 512);
        limit(&disk, most, optimal);
        let unit = disk.open().await;
        assert_eq!(
            ranges(&disk, &unit, 3, 40).await,
            expected,
            "{most} {optimal}"
        );
    }
    // Without a limit it is one mebibyte, and with a large one four.
    for (most, length) in [(0, 2048), (u32::MAX, 8192), (4096, 4096)] {
        let disk = Disk::new(20_000, 512);
        limit(&disk, most, 0);
        let unit = disk.open().await;
        let ranges = ranges(&disk, &unit, 0, 20_000).await;
        assert_eq!(ranges[0], (0, length));
        assert_eq!(ranges.len(), 20_000_usize.div_ceil(length as usize));
    }
    let disk = Disk::new(600, 4096);
    let unit = disk.open().await;
    assert_eq!(
        ranges(&disk, &unit, 0, 600).await,
        [(0, 256), (256, 256), (512, 88)]
    );
}

#[tokio::test(start_paused = true)]
async fn eight_commands_of_a_request_go_out_at_a_time() {
    let disk = Disk::new(2000, 512);
    limit(&disk, 8, 0);
    let unit = disk.open().await;
    for nth in 0..40 {
        disk.on(READ, 1, Act::Late(Duration::from_millis(100 - nth)));
    }
    let start = tokio::time::Instant::now();
    let data = content(1, 2000 * 512);
    disk.state().data.copy_from_slice(&data);
    let (read, _) = unit.read(None, 0, 320).await.expect("read");
    assert!(read == data[..320 * 512], "in order, whatever comes first");
    assert_eq!(disk.running(), (0, 8));
    assert!(
        start.elapsed() < Duration::from_millis(600),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_when_nothing_is_in_flight() {
    let disk = Disk::new(2000, 512);
    limit(&disk, 8, 0);
    let unit = disk.open().await;
    for nth in 0..8 {
        disk.on(
            WRITE,
            1,
            match nth {
                2 => Act::Sense(sense(3, 0x0c00)),
                5 => Act::Sense(sense(4, 0x4400)),
                nth => Act::Late(Duration::from_secs(nth)),
            },
        );
    }
    let start = tokio::time::Instant::now();
    let error = unit
        .write(None, 0, content(1, 1600 * 512))
        .await
        .expect_err("it fails");
    assert_eq!(
        format!("{:?}", error.kind()),
        "Medium { lba: None }",
        "the first one"
    );
    assert_eq!(
        start.elapsed(),
        Duration::from_secs(7),
        "the last was waited for"
    );
    assert_eq!(disk.running().0, 0);
    // Of 200 some more may have been sent before the failure was seen, in place of the first one.
    assert!(disk.seen().len() <= 10, "and no more was sent");
}

#[tokio::test(start_paused = true)]
async fn what_is_told_once_goes_before_other_failures() {
    for (first, second, expected) in [
        (
            sense(3, 0x0c00),
            sense(6, 0x2a03),
            "Attention { asc: 42, ascq: 3 }",
        ),
        (sense(6, 0x2a03), disk::deferred(4, 0), "Hardware"),
        (
            sense(6, 0x2a03),
            sense(6, 0x3f0e),
            "Attention { asc: 42, ascq: 3 }",
        ),
        (sense(3, 0x0c00), sense(4, 0x4400), "Medium { lba: None }"),
    ] {
        let disk = Disk::new(64, 512);
        limit(&disk, 8, 0);
        let unit = disk.open().await;
        disk.on(WRITE, 1, Act::Sense(first));
        disk.on(WRITE, 1, Act::Sense(second));
        assert_eq!(
            kind(unit.write(None, 0, content(1, 16 * 512)).await),
            expected
        );
    }
}

#[tokio::test]
async fn the_oldest_session_is_told() {
    let disk = Disk::new(64, 512);
    limit(&disk, 8, 0);
    let unit = disk.open().await;
    disk.on(WRITE, 1, Act::Late(Duration::ZERO));
    disk.on(WRITE, 1, Act::NewSession);
    let nexus = unit
        .write(None, 0, content(1, 64 * 512))
        .await
        .expect("written");
    assert_eq!(nexus, 1, "a part was written in it");
    assert_eq!(unit.flush(None).await.expect("flushed"), 2);
    disk.on(WRITE, 1, Act::NewSession);
    let error = unit
        .write(Some(2), 0, content(1, 64 * 512))
        .await
        .expect_err("over");
    assert!(error.is_lost());
    assert_eq!(disk.running().0, 0);
}

#[tokio::test]
async fn bad_ranges_are_refused_before_anything_is_sent() {
    let disk = Disk::new(64, 512);
    let unit = disk.open().await;
    for (lba, blocks) in [(64, 1), (0, 65), (63, 2), (u64::MAX, 1), (u64::MAX - 1, 2)] {
        let out = "IllegalRequest(LbaOutOfRange)";
        let data = content(1, blocks * 512);
        assert_eq!(kind(unit.read(None, lba, blocks as u32).await), out);
        assert_eq!(kind(unit.write(None, lba, data).await), out);
        assert_eq!(kind(unit.zero(None, lba, blocks as u64, true).await), out);
        assert_eq!(
            kind(unit.unmap(None, &[(0, 1), (lba, blocks as u64)]).await),
            out
        );
    }
    assert_eq!(
        kind(unit.lba_status(None, 64).await),
        "IllegalRequest(LbaOutOfRange)"
    );
    assert_eq!(
        kind(unit.unmap(None, &[(0, u64::MAX)]).await),
        "IllegalRequest(LbaOutOfRange)"
    );
    for done in [
        unit.write(None, 0, content(1, 0)).await,
        unit.write(None, 0, content(1, 511)).await,
        unit.write(None, 0, content(1, 1000)).await,
        unit.unmap(None, &[]).await,
        unit.unmap(None, &[(5, 0)]).await,
        unit.zero(None, 0, 0, true).await,
        unit.compare_and_write(None, 0, &[0; 512], &[0; 1024]).await,
        unit.compare_and_write(None, 0, &[], &[]).await,
    ] {
        assert!(kind(done).contains("InvalidInput"));
    }
    assert!(kind(unit.read(None, 0, 0).await).contains("InvalidInput"));
    assert!(disk.seen().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_request_starts_nothing_more() {
    let disk = Disk::new(2000, 512);
    limit(&disk, 8, 0);
    let unit = disk.open().await;
    disk.on(WRITE, 1000, Act::Late(Duration::from_secs(1)));
    let written = unit.write(None, 0, content(1, 1600 * 512));
    let late = tokio::time::timeout(Duration::from_millis(1500), written).await;
    late.expect_err("it takes longer");
    let sent = disk.seen().len();
    assert_eq!(sent, 16);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(disk.seen().is_empty());
}

#[tokio::test]
async fn unmaps_are_split_by_both_limits() {
    let disk = Disk::new(2000, 512);
    {
        let mut state = disk.state();
        let limits = state.pages.get_mut(&0xb0).expect("the page");
        limits[16..20].copy_from_slice(&100_u32.to_be_bytes());
        limits[20..24].copy_from_slice(&2_u32.to_be_bytes());
        // Groups of 8, of which the first whole one begins at 4.
        limits[24..28].copy_from_slice(&8_u32.to_be_bytes());
        limits[28..32].copy_from_slice(&0x8000_0004_u32.to_be_bytes());
        state.data.fill(1);
        state.mapped.fill(true);
    }
    let unit = disk.open().await;
    let ranges = [(0, 10), (20, 10), (40, 10), (100, 350), (1999, 1)];
    unit.unmap(None, &ranges).await.expect("unmapped");
    let seen = disk.seen();
    assert!(seen.iter().all(|seen| seen.cdb[0] == UNMAP));
    // Two ranges; one and what still fits of the long one, cut at 4 + 8 n.
    let lengths: Vec<usize> = seen.iter().map(|seen| (seen.written - 8) / 16).collect();
    assert_eq!(lengths, [2, 1, 1, 1, 1, 2]);
    let state = disk.state();
    for (at, mapped) in state.mapped.iter().enumerate() {
        let named = ranges
            .iter()
            .any(|(lba, blocks)| (*lba..lba + blocks).contains(&(at as u64)));
        assert_eq!(*mapped, !named, "block {at}");
    }
}

#[tokio::test]
async fn a_piece_that_the_transport_lost_fails_the_request() {
    let disk = Disk::new(64, 512);
    limit(&disk, 8, 0);
    let unit = disk.open().await;
    disk.on(READ, 3, Act::Late(Duration::ZERO));
    disk.on(READ, 1, Act::Fail(ErrorKind::TimedOut, true));
    assert!(
        unit.read(None, 0, 64)
            .await
            .expect_err("one is missing")
            .is_lost()
    );
}
