//! What is asked for again, how often, and what is not. Time is tokio's, and stands still but for
//! pauses.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use volmux_iscsi::scsi::{LogicalUnit, UnitOptions};
use volmux_iscsi_initiator::{ErrorKind, Replay};

use crate::disk::{self, Act, Disk, LUN, READ, WRITE, sense};
use crate::{content, kind};

const BUSY: u8 = 0x08;
const TASK_SET_FULL: u8 = 0x28;
const ACA_ACTIVE: u8 = 0x30;
const TASK_ABORTED: u8 = 0x40;
const RESERVATION_CONFLICT: u8 = 0x18;

async fn two() -> (Arc<Disk>, LogicalUnit) {
    let disk = Disk::new(64, 512);
    let unit = disk.open().await;
    (disk, unit)
}

#[tokio::test(start_paused = true)]
async fn a_busy_target_is_waited_for() {
    for status in [BUSY, TASK_SET_FULL] {
        let (disk, unit) = two().await;
        disk.on(WRITE, 6, Act::Status(status));
        let start = Instant::now();
        unit.write(None, 0, content(1, 512))
            .await
            .expect("in the end");
        assert_eq!(disk.codes(), [WRITE; 7]);
        // 10 ms, doubled each time, and each of them at least half of that.
        let waited = start.elapsed();
        let most = Duration::from_millis(10 + 20 + 40 + 80 + 160 + 320);
        assert!(
            (most / 2..=most + Duration::from_millis(7)).contains(&waited),
            "{waited:?}"
        );
        assert_eq!(disk.state().data[..512], content(1, 512));
    }
}

#[tokio::test(start_paused = true)]
async fn not_longer_than_the_deadline() {
    for (act, expected) in [
        (Act::Status(BUSY), "Busy"),
        (Act::Status(TASK_SET_FULL), "Busy"),
        (Act::Sense(sense(2, 0x0401)), "NotReady"),
        (Act::Sense(sense(2, 0x040a)), "NotReady"),
    ] {
        let disk = Disk::new(64, 512);
        let options = UnitOptions {
            deadline: Duration::from_secs(20),
            ..UnitOptions::default()
        };
        let unit = LogicalUnit::open_with(disk.clone(), LUN, options)
            .await
            .expect("a unit");
        disk.seen();
        disk.on(READ, 1000, act);
        let start = Instant::now();
        assert_eq!(kind(unit.read(None, 0, 1).await), expected);
        let waited = start.elapsed();
        let wanted = Duration::from_secs(18)..=Duration::from_secs(20);
        assert!(wanted.contains(&waited), "{waited:?}");
        let seen = disk.seen();
        // Pauses of 0.5 to 1 second, after the first ones.
        assert!((20..60).contains(&seen.len()), "{}", seen.len());
        // What is left of the time goes down to the transport.
        assert_eq!(seen[0].timeout, Duration::from_secs(20));
        assert!(seen.is_sorted_by(|a, b| a.timeout > b.timeout));
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_is_sixty_seconds_if_nothing_else_is_said() {
    let (disk, unit) = two().await;
    disk.on(READ, 1000, Act::Status(BUSY));
    let start = Instant::now();
    unit.read(None, 0, 1).await.expect_err("busy");
    let waited = start.elapsed().as_secs();
    assert!((58..=60).contains(&waited), "{waited}");
}

#[tokio::test(start_paused = true)]
async fn what_was_aborted_is_asked_for_three_times_more() {
    for (act, expected) in [
        (Act::Status(TASK_ABORTED), "Aborted"),
        (Act::Status(ACA_ACTIVE), "Busy"),
        (Act::Sense(sense(0xb, 0x4700)), "Aborted"),
    ] {
        let (disk, unit) = two().await;
        disk.on(WRITE, 3, act.clone());
        unit.write(None, 0, content(1, 512))
            .await
            .expect("the fourth time");
        assert_eq!(disk.codes(), [WRITE; 4]);
        disk.on(WRITE, 4, act);
        assert_eq!(kind(unit.write(None, 0, content(1, 512)).await), expected);
        assert_eq!(disk.codes(), [WRITE; 4]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_done_twice_is_not() {
    let (zeros, data) = (vec![0; 512], content(1, 512));
    for act in [Act::Status(TASK_ABORTED), Act::Sense(sense(0xb, 0))] {
        let (disk, unit) = two().await;
        disk.on(disk::COMPARE_AND_WRITE, 1, act.clone());
        let done = unit.compare_and_write(None, 0, &zeros, &data).await;
        assert_eq!(kind(done), "Aborted");
        assert_eq!(disk.codes(), [disk::COMPARE_AND_WRITE]);
        disk.on(disk::RESERVE_OUT, 1, act);
        assert_eq!(kind(unit.register(None, 0, 1, false).await), "Aborted");
        assert_eq!(disk.codes(), [disk::RESERVE_OUT]);
    }
    // What was not begun may.
    let (disk, unit) = two().await;
    disk.on(disk::COMPARE_AND_WRITE, 2, Act::Status(BUSY));
    disk.on(disk::COMPARE_AND_WRITE, 2, Act::Sense(sense(6, 0x2900)));
    unit.compare_and_write(None, 0, &zeros, &data)
        .await
        .expect("in the end");
}

#[tokio::test(start_paused = true)]
async fn attentions_are_taken_note_of() {
    for (code, resets, stale) in [
        (0x2900, 1, false),
        (0x2901, 1, false),
        (0x2907, 1, false),
        (0x2a01, 0, false),
        (0x2a02, 0, false),
        (0x2a06, 0, false),
        (0x2a09, 0, true),
        (0x3807, 0, false),
        (0x3f01, 0, false),
        (0x3f04, 0, false),
        (0x9999, 0, false),
    ] {
        let (disk, unit) = two().await;
        disk.on(WRITE, 2, Act::Sense(sense(6, code)));
        let start = Instant::now();
        unit.write(None, 0, content(1, 512))
            .await
            .expect("in the end");
        assert_eq!(disk.codes(), [WRITE; 3], "{code:#x}");
        assert_eq!(start.elapsed(), Duration::ZERO, "nothing to wait for");
        assert_eq!(
            (unit.resets(), unit.capacity_stale()),
            (2 * resets, stale),
            "{code:#x}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_to_be_looked_at_is_told() {
    for code in [0x2a03, 0x2a04, 0x2a05, 0x3f03, 0x3f0e_u16] {
        let (disk, unit) = two().await;
        disk.on(WRITE, 1, Act::Sense(sense(6, code)));
        let [asc, ascq] = code.to_be_bytes();
        let error = unit
            .write(None, 0, content(1, 512))
            .await
            .expect_err("told");
        assert_eq!(
            format!("{:?}", error.kind()),
            format!("Attention {{ asc: {asc}, ascq: {ascq} }}")
        );
        assert_eq!(
            (error.nexus(), error.status(), error.command()),
            (Some(1), Some(2), "WRITE(16)")
        );
        assert_eq!(disk.codes(), [WRITE], "it was not repeated");
        assert!(disk.state().data.iter().all(|byte| *byte == 0));
        unit.write(None, 0, content(1, 512))
            .await
            .expect("told once");
    }
}

#[tokio::test(start_paused = true)]
async fn attentions_without_an_end_end() {
    let (disk, unit) = two().await;
    disk.on(READ, 1000, Act::Sense(sense(6, 0x2900)));
    assert_eq!(
        kind(unit.read(None, 0, 1).await),
        "Attention { asc: 41, ascq: 0 }"
    );
    assert_eq!(disk.seen().len(), 33);
}

#[tokio::test(start_paused = true)]
async fn nothing_else_is_asked_for_again() {
    for (act, expected) in [
        (Act::Status(RESERVATION_CONFLICT), "ReservationConflict"),
        (Act::Status(0x04), "Malformed(\"the status is 0x04\")"),
        (Act::Status(0xff), "Malformed(\"the status is 0xff\")"),
        (
            Act::Status(0x02),
            "Malformed(\"CHECK CONDITION without sense data\")",
        ),
        (
            Act::Sense(vec![0x70, 0]),
            "Malformed(\"CHECK CONDITION without sense data\")",
        ),
        (Act::Sense(sense(0, 0)), "Other"),
        (Act::Sense(sense(2, 0x0403)), "NotReady"),
        (Act::Sense(sense(2, 0x3a00)), "NotReady"),
        (Act::Sense(sense(3, 0x1100)), "Medium { lba: None }"),
        (Act::Sense(sense(4, 0x4400)), "Hardware"),
        (
            Act::Sense(sense(5, 0x2100)),
            "IllegalRequest(LbaOutOfRange)",
        ),
        (Act::Sense(sense(7, 0x2700)), "WriteProtected"),
        (Act::Sense(sense(7, 0x2707)), "NoSpace"),
        (Act::Sense(sense(0xd, 0)), "Other"),
    ] {
        let (disk, unit) = two().await;
        disk.on(WRITE, 1, act);
        let start = Instant::now();
        assert_eq!(kind(unit.write(None, 0, content(1, 512)).await), expected);
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(disk.codes(), [WRITE]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_transport_decides_about_lost_sessions() {
    let (disk, unit) = two().await;
    for kind in [ErrorKind::Lost, ErrorKind::TimedOut, ErrorKind::Protocol] {
        disk.on(WRITE, 1, Act::Fail(kind, true));
        let error = unit
            .write(None, 0, content(1, 512))
            .await
            .expect_err("lost");
        assert_eq!(error.is_lost(), kind != ErrorKind::Protocol);
        assert_eq!(disk.codes(), [WRITE]);
    }
    // What may be sent twice in a new session is said beforehand.
    unit.read(None, 0, 1).await.expect("read");
    unit.read(Some(1), 0, 1).await.expect("read");
    unit.write(None, 0, content(1, 512)).await.expect("written");
    unit.write(Some(1), 0, content(1, 512))
        .await
        .expect("written");
    unit.flush(None).await.expect("flushed");
    unit.unmap(None, &[(0, 1)]).await.expect("unmapped");
    unit.zero(None, 0, 1, true).await.expect("zeroed");
    unit.read_capacity(None).await.expect("the size");
    let seen: Vec<_> = disk
        .seen()
        .iter()
        .map(|seen| (seen.replay, seen.nexus))
        .collect();
    use Replay::{Always, Unsent};
    assert_eq!(
        seen,
        [
            (Always, None),
            (Unsent, Some(1)),
            (Unsent, None),
            (Unsent, Some(1)),
            (Unsent, None),
            (Unsent, None),
            (Unsent, None),
            (Always, None),
        ]
    );
}
