//! Logical units of LIO, the target in Linux. It is made through configfs, in the lab:
//!
//! ```text
//! CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$PWD/tests/lab/run --" \
//!     cargo test -p volmux-iscsi --test scsi_lio -- --ignored
//! ```

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use volmux_iscsi::scsi::{
    BlockState, LogicalUnit, Reservation, ReservationKind, ScsiError, ScsiErrorKind, UnitOptions,
    report_luns,
};
use volmux_iscsi_initiator::{Options, Session};

const MIB: u64 = 1 << 20;
const TARGET: &str = "iqn.2026-01.org.example:lio";
const PORTAL: &str = "127.0.0.1:3260";
const FILE: &str = "/tmp/volmux-lio";
const CONFIG: &str = "/sys/kernel/config/target";

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status();
    let status = status.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

fn write(path: &str, value: &str) {
    let path = Path::new(CONFIG).join(path);
    fs::write(&path, value).unwrap_or_else(|error| panic!("{path:?}, {value}: {error}"));
}

fn make(path: &str) {
    let path = Path::new(CONFIG).join(path);
    fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
}

/// Unit 1 is thin, over a file of 32 MiB in memory; the machine's end is the target's.
fn start_target() {
    if !Path::new(CONFIG).exists() {
        run("modprobe", &["-a", "configfs", "target_core_mod"]);
        run("mount", &["-t", "configfs", "none", "/sys/kernel/config"]);
    }
    run("modprobe", &["-a", "target_core_file", "iscsi_target_mod"]);
    run("mkdir", &["-p", "/var/target/pr", "/etc/target"]);
    run("ip", &["link", "set", "lo", "up"]);
    fs::File::create(FILE)
        .and_then(|file| file.set_len(32 * MIB))
        .expect("a file");
    let disk = "core/fileio_0/disk";
    make(disk);
    let size = 32 * MIB;
    write(
        &format!("{disk}/control"),
        &format!("fd_dev_name={FILE},fd_dev_size={size}"),
    );
    write(&format!("{disk}/control"), "fd_buffered_io=1");
    write(&format!("{disk}/enable"), "1");
    write(&format!("{disk}/wwn/vpd_unit_serial"), "volmux-0002");
    write(&format!("{disk}/attrib/emulate_tpu"), "1");
    write(&format!("{disk}/attrib/emulate_tpws"), "1");
    let group = format!("iscsi/{TARGET}/tpgt_1");
    make(&format!("{group}/np/{PORTAL}"));
    make(&format!("{group}/lun/lun_1"));
    let link = format!("{CONFIG}/{group}/lun/lun_1/disk");
    std::os::unix::fs::symlink(format!("{CONFIG}/{disk}"), link).expect("a link");
    for (name, value) in [
        ("authentication", "0"),
        ("generate_node_acls", "1"),
        ("cache_dynamic_acls", "1"),
        ("demo_mode_write_protect", "0"),
    ] {
        write(&format!("{group}/attrib/{name}"), value);
    }
    write(&format!("{group}/enable"), "1");
}

async fn login(who: &str) -> Arc<Session> {
    let mut options = Options::new(PORTAL, format!("iqn.2026-01.org.example:{who}"));
    options.target = Some(TARGET.into());
    // In the lab all is slow, and the first login loads modules.
    options.login_timeout = std::time::Duration::from_secs(40);
    Arc::new(Session::login(options).await.expect("a login"))
}

async fn open(who: &str) -> LogicalUnit {
    LogicalUnit::open(login(who).await, 1)
        .await
        .expect("a unit")
}

#[tokio::test]
#[ignore = "needs LIO, which the lab has: tests/lab/run"]
async fn a_unit_of_lio_does_everything() {
    start_target();
    let luns = report_luns(login("one").await, UnitOptions::default()).await;
    assert!(luns.expect("a list").contains(&1));
    let unit = open("one").await;
    tells_about_itself(&unit).await;
    holds_data(&unit).await;
    gives_back(&unit).await;
    compares(&unit).await;
    reserves(&unit, &open("two").await).await;
}

async fn tells_about_itself(unit: &LogicalUnit) {
    assert_eq!(unit.inquiry().vendor, "LIO-ORG");
    assert_eq!(unit.serial(), Some("volmux-0002"));
    assert_eq!(
        (unit.capacity().bytes(), unit.block_size()),
        (32 * MIB, 512)
    );
    // It does not tell of which type it is.
    assert!(unit.capacity().provisioned, "{unit:?}");
    assert!(
        unit.can_unmap() && unit.provisioning().write_same_16,
        "{unit:?}"
    );
    assert_eq!(unit.write_cache(), Some(true));
    assert!(!unit.write_protected() && unit.max_compare_and_write() > 0);
    unit.check_identity(None).await.expect("itself");
    assert!(!unit.reads_zeros(), "a file is not trusted to");
    let limits = unit.limits();
    assert!(limits.max_transfer > 0 && limits.max_write_same > 0 && limits.max_unmap_ranges == 1);
}

async fn holds_data(unit: &LogicalUnit) {
    let data: Vec<u8> = (0..5 * MIB + 512).map(|at| (at % 251) as u8).collect();
    let nexus = unit
        .write(None, 7, data.clone().into())
        .await
        .expect("written");
    assert_eq!(unit.flush(Some(nexus)).await.expect("flushed"), nexus);
    let (read, _) = unit
        .read(None, 7, (data.len() / 512) as u32)
        .await
        .expect("read");
    assert!(read == data);
    unit.read(None, 65_535, 2)
        .await
        .expect_err("beyond the end");
}

async fn gives_back(unit: &LogicalUnit) {
    let (from, blocks) = (2048, 4096);
    unit.unmap(None, &[(from, blocks)]).await.expect("unmapped");
    if unit.reads_zeros() {
        let (read, _) = unit.read(None, from, blocks as u32).await.expect("read");
        assert!(read.iter().all(|byte| *byte == 0));
    }
    for may_unmap in [true, false] {
        unit.write(None, 8192, vec![9; 8192].into())
            .await
            .expect("written");
        unit.zero(None, 8193, 14, may_unmap).await.expect("zeroed");
        let (read, _) = unit.read(None, 8192, 16).await.expect("read");
        assert!(read[512..8192 - 512].iter().all(|byte| *byte == 0));
        assert!(read[..512] == [9; 512] && read[8192 - 512..] == [9; 512]);
    }
    match unit.lba_status(None, 0).await {
        Ok((ranges, _)) => assert!(ranges.iter().any(|one| one.state == BlockState::Mapped)),
        Err(error) => assert!(
            matches!(error.kind(), ScsiErrorKind::Unsupported(_)),
            "{error}"
        ),
    }
}

async fn compares(unit: &LogicalUnit) {
    let (one, two) = (vec![1; 512], vec![2; 512]);
    unit.write(None, 5, one.clone().into())
        .await
        .expect("written");
    unit.compare_and_write(None, 5, &one, &two)
        .await
        .expect("one is there");
    assert_eq!(unit.read(None, 5, 1).await.expect("read").0, two);
    let mut almost = two.clone();
    almost[300] = 0;
    let error = unit.compare_and_write(None, 5, &almost, &one).await;
    let error = error.expect_err("two is there");
    let expected = ScsiErrorKind::Miscompare { offset: Some(300) };
    assert_eq!(
        format!("{:?}", error.kind()),
        format!("{expected:?}"),
        "{error}"
    );
    assert_eq!(unit.read(None, 5, 1).await.expect("read").0, two);
}

fn assert_conflict<T: std::fmt::Debug>(done: Result<T, ScsiError>) {
    let error = done.expect_err("it is reserved");
    assert!(
        matches!(error.kind(), ScsiErrorKind::ReservationConflict),
        "{error}"
    );
}

async fn reserves(one: &LogicalUnit, two: &LogicalUnit) {
    let kind = ReservationKind::WriteExclusiveRegistrants;
    let (can, _) = one
        .reservation_capabilities(None)
        .await
        .expect("capabilities");
    assert!(can.kinds.contains(&kind), "{can:?}");
    one.register(None, 0, 1, false).await.expect("registered");
    one.reserve(None, 1, kind).await.expect("reserved");
    assert_conflict(two.write(None, 0, vec![0; 512].into()).await);
    assert_conflict(two.unmap(None, &[(0, 8)]).await);
    assert_conflict(two.zero(None, 0, 8, true).await);
    two.register(None, 0, 2, false).await.expect("registered");
    let (status, _) = two
        .full_reservation_status(None)
        .await
        .expect("who is registered");
    assert_eq!(status.registrants.len(), 2);
    let holder = status.registrants.iter().find(|one| one.holds.is_some());
    let holder = holder.expect("one holds it");
    assert_eq!((holder.key, holder.holds), (1, Some(kind)));
    assert_eq!(
        holder.initiator.as_deref(),
        Some("iqn.2026-01.org.example:one")
    );
    two.preempt(None, 2, 1, kind, true)
        .await
        .expect("preempted");
    let held = Reservation { key: 2, kind };
    assert_eq!(two.reservation(None).await.expect("held").0, Some(held));
    let told = one
        .write(None, 0, vec![0; 512].into())
        .await
        .expect_err("preempted");
    let preempted = ScsiErrorKind::Attention { asc: 0x2a, ascq: 5 };
    assert_eq!(
        format!("{:?}", told.kind()),
        format!("{preempted:?}"),
        "{told}"
    );
    assert_conflict(one.write(None, 0, vec![0; 512].into()).await);
    two.clear_reservations(None, 2).await.expect("cleared");
    one.register(None, 0, 3, true)
        .await
        .expect("registered, and kept");
}
