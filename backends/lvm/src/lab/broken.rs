//! Pools that are full or broken.

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

/// Replaces the metadata device below the pool by one that fails.
fn break_metadata(lab: &Lab) {
    let device = dm::dm_name(&lab.group, &format!("{}_tmeta", Lab::POOL));
    let sectors = dm::status(&device).expect("status")[0].length;
    std::fs::write("/dev/shm/error-table", format!("0 {sectors} error\n")).expect("write");
    run(&format!("dmsetup suspend --noflush --nolockfs {device}"));
    run(&format!("dmsetup load {device} /dev/shm/error-table"));
    run(&format!("dmsetup resume {device}"));
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
    break_metadata(&lab);
    let error = disk.flush().await.expect_err("the mappings are lost");
    println!("first: {error:?}");
    println!("{:?}", dm::pool_status(&lab.group, Lab::POOL));
    assert_eq!((error.kind(), error.op()), (ErrorKind::Corrupt, "flush"));
    let help = error.get("help").expect("help");
    assert!(help.contains("lvconvert --repair lab-lost/po-ol"), "{help}");
    // The kernel itself takes the next ones.
    for disk in [&disk, &other, &lab.open("b")] {
        println!("bare: {:?}", disk.file().sync_data());
        let error = disk.flush().await.expect_err("still lost");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    }
    let error = disk
        .write_at(8 * MIB, pattern(3, MIB))
        .await
        .expect_err("no new chunk");
    println!("write: {error:?}");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let error = lab
        .metadata()
        .usage("usage")
        .await
        .expect_err("not readable");
    println!("usage: {error:?}");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}
