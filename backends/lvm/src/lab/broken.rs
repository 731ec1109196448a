//! Pools that are full or broken.

use std::time::{Duration, Instant};

use volmux_core::ErrorKind;

use super::*;

#[tokio::test]
#[ignore = "needs device-mapper: run in tests/lab/run"]
async fn a_full_pool_says_so_and_keeps_what_it_has() {
    let lab = Lab::new("full", 64 * KIB, "");
    run(&format!(
        "lvchange -q -q --errorwhenfull y {}/{}",
        lab.group,
        Lab::POOL
    ));
    lab.thin("a", "64M");
    let disk = lab.open("a");
    for i in 0..32 {
        disk.write_at(i * MIB, pattern(i as u8, MIB))
            .await
            .expect("write");
    }
    let error = disk
        .write_at(40 * MIB, pattern(1, MIB))
        .await
        .expect_err("full");
    assert_eq!(
        (error.kind(), error.op()),
        (ErrorKind::NoSpace, "write_at"),
        "{error:?}"
    );
    assert!(
        error.get("help").expect("help").contains("lvextend"),
        "{error:?}"
    );
    assert_eq!(lab.state().mode, PoolMode::OutOfDataSpace);
    disk.flush().await.expect("what was written is there");
    let found = disk.read_at(31 * MIB, MIB as usize).await.expect("read");
    assert!(found == pattern(31, MIB));
    run(&format!(
        "lvextend -q -q -L +8M {}/{}",
        lab.group,
        Lab::POOL
    ));
    disk.write_at(40 * MIB, pattern(1, MIB))
        .await
        .expect("there is space now");
    disk.flush().await.expect("flush");
}

/// Has the metadata device below the pool fail: all of it, or each write to it.
fn break_metadata(lab: &Lab, all: bool) {
    let device = dm::dm_name(&lab.group, &format!("{}_tmeta", Lab::POOL));
    let old = run(&format!("dmsetup table {device}"));
    let old: Vec<&str> = old.split_ascii_whitespace().collect();
    let (sectors, below, offset) = (old[1], old[3], old[4]);
    let table = if all {
        format!("0 {sectors} error\n")
    } else {
        run("modprobe dm-flakey");
        format!("0 {sectors} flakey {below} {offset} 0 3600 1 error_writes\n")
    };
    let path = format!("/dev/shm/table-{}", lab.group);
    std::fs::write(&path, table).expect("write");
    run(&format!("dmsetup suspend --noflush --nolockfs {device}"));
    run(&format!("dmsetup load {device} {path}"));
    run(&format!("dmsetup resume {device}"));
}

#[tokio::test]
#[ignore = "needs device-mapper: run in tests/lab/run"]
async fn no_flush_succeeds_once_changes_were_thrown_away() {
    let lab = Lab::new("thrown", 64 * KIB, "");
    lab.thin("a", "16M");
    lab.thin("b", "16M");
    let (disk, other) = (lab.open("a"), lab.open("b"));
    disk.write_at(0, pattern(1, MIB)).await.expect("write");
    disk.flush().await.expect("flush");
    break_metadata(&lab, false);
    // A flush of a volume that did not change commits nothing, but the kernel commits each
    // second by itself: who gets its only report is chance.
    let _reported = disk.write_at(MIB, pattern(2, MIB)).await;
    let _reported = other.file().sync_data();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !lab.state().needs_check {
        assert!(Instant::now() < deadline, "{:?}", lab.state());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(lab.state().mode, PoolMode::ReadOnly);
    let lost = disk.read_at(MIB, MIB as usize).await.expect("read");
    assert!(lost.iter().all(|&byte| byte == 0), "the write is gone");
    for disk in [&disk, &other, &lab.open("b")] {
        let error = disk.flush().await.expect_err("thrown away");
        assert_eq!(
            (error.kind(), error.op()),
            (ErrorKind::Corrupt, "flush"),
            "{error:?}"
        );
        assert!(
            error
                .get("reason")
                .expect("reason")
                .contains("needs a check"),
            "{error:?}"
        );
    }
    let found = disk.read_at(0, MIB as usize).await.expect("read");
    assert!(found == pattern(1, MIB), "what was flushed is there");
    let error = disk
        .write_at(8 * MIB, pattern(3, MIB))
        .await
        .expect_err("no new chunk");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    let error = lab.metadata().usage("usage").await.expect_err("not served");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
}

#[tokio::test]
#[ignore = "needs device-mapper: run in tests/lab/run"]
async fn no_flush_succeeds_once_the_metadata_is_lost() {
    let lab = Lab::new("lost", 64 * KIB, "");
    lab.thin("a", "16M");
    lab.thin("b", "16M");
    let (disk, other) = (lab.open("a"), lab.open("b"));
    disk.write_at(0, pattern(1, MIB)).await.expect("write");
    disk.flush().await.expect("flush");
    disk.write_at(MIB, pattern(2, MIB)).await.expect("write");
    break_metadata(&lab, true);
    let error = disk.flush().await.expect_err("the mappings are lost");
    assert_eq!((error.kind(), error.op()), (ErrorKind::Corrupt, "flush"));
    let help = error.get("help").expect("help");
    assert!(help.contains("lvconvert --repair lab-lost/po-ol"), "{help}");
    for disk in [&disk, &other, &lab.open("b")] {
        let error = disk.flush().await.expect_err("still lost");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    }
    let error = disk
        .write_at(8 * MIB, pattern(3, MIB))
        .await
        .expect_err("no new chunk");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let error = lab
        .metadata()
        .usage("usage")
        .await
        .expect_err("not readable");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}
