//! Targets are made, changed, shown and taken away.

use std::path::PathBuf;

use volmux_core::ErrorKind;
use volmux_iscsi::control::{ExportedUnit, Resized, TargetControl};
use volmux_iscsi::scsi::BlockLimits;
use volmux_iscsi_initiator::{Credentials, ErrorKind as Refusal, Options, Session};

use crate::machine::{Machine, set_size};
use crate::scsi;
use crate::{MIB, ONE, OP, TWO, within};

const STORES: [&str; 2] = ["fileio_8653", "iblock_8653"];

/// Whether the kernel has a backstore for it.
fn is_known(machine: &Machine) -> bool {
    STORES.iter().any(|adapter| {
        let path = format!(
            "/sys/kernel/config/target/core/{adapter}/{}",
            machine.serial()
        );
        PathBuf::from(path).exists()
    })
}

async fn becomes_a_disk(machine: &Machine, path: PathBuf) {
    let control = machine.control();
    let (target, serial) = (machine.target(), machine.serial());
    let export = machine.export(&path, 16 * MIB);
    let unit = control.export(OP, &export).await.expect("an export");
    let expected = ExportedUnit {
        lun: 1,
        path: path.clone(),
        serial: serial.clone(),
        size: Some(16 * MIB),
        read_only: false,
    };
    assert_eq!(unit, expected);
    control.export(OP, &export).await.expect("again");
    let session = scsi::login(machine.options(&target, ONE)).await;
    assert_eq!(scsi::serial(&session).await, serial);
    assert_eq!(scsi::capacity(&session).await, 16 * MIB);
    let inquiry = scsi::good(&session, scsi::inquiry(None)).await;
    assert_eq!(&inquiry[8..32], b"VOLMUX  VOLUME          ");
    let luns = scsi::good(&session, scsi::report_luns()).await;
    assert_eq!(luns[..4], [0, 0, 0, 8], "this logical unit alone");
    // UNMAP is there, and a cache that is flushed.
    let provisioning = scsi::good(&session, scsi::inquiry(Some(0xb2))).await;
    assert_eq!(provisioning[5] & 0x80, 0x80);
    let limits = scsi::good(&session, scsi::inquiry(Some(0xb0))).await;
    let limits = BlockLimits::parse(&limits).expect("block limits");
    if path.is_file() {
        let expected = (1 << 21, 8);
        assert_eq!(
            (limits.max_unmap_blocks, limits.unmap_granularity),
            expected
        );
    }
    let caching = scsi::good(&session, scsi::caching()).await;
    assert_eq!(caching[4 + usize::from(caching[3]) + 2] & 0x04, 0x04);
    scsi::good(&session, scsi::write(8, vec![7; 4096].into())).await;
    scsi::good(&session, scsi::synchronize_cache()).await;
    assert_eq!(
        std::fs::read(machine.content()).expect("the content")[4096..8192],
        [7; 4096]
    );
    let shown = control.list(OP, &target).await.expect("a list").remove(0);
    assert_eq!(
        (shown.unit, shown.initiators),
        (Some(expected), vec![ONE.to_owned()])
    );
    assert_eq!(shown.sessions.len(), 1);
    assert_eq!(shown.sessions[0].initiator, ONE);
    assert!(
        shown.sessions[0]
            .address
            .as_deref()
            .is_some_and(|a| a.starts_with("127.0."))
    );
    let stranger = Session::login(machine.options(&target, TWO))
        .await
        .expect_err("a stranger");
    assert!(
        matches!(
            stranger.kind(),
            Refusal::NotFound | Refusal::Refused | Refusal::Unauthenticated
        ),
        "{stranger}"
    );
    session.logout().await.expect("logout");
    control.unexport(OP, &target).await.expect("it goes");
    control.unexport(OP, &target).await.expect("it is gone");
    assert!(!is_known(machine), "the backstore is gone");
    assert_eq!(control.list(OP, &target).await.expect("a list"), []);
    let gone = Session::login(machine.options(&target, ONE))
        .await
        .expect_err("gone");
    assert!(
        matches!(gone.kind(), Refusal::NotFound | Refusal::Lost),
        "{gone}"
    );
}

#[tokio::test]
#[ignore = "needs LIO: tests/lab/run"]
async fn a_file_becomes_a_disk() {
    let machine = Machine::new("file");
    within(becomes_a_disk(&machine, machine.file(16 * MIB))).await;
}

#[tokio::test]
#[ignore = "needs LIO: tests/lab/run"]
async fn a_device_becomes_a_disk() {
    let machine = Machine::new("device");
    within(becomes_a_disk(&machine, machine.device(16 * MIB))).await;
}

#[tokio::test]
#[ignore = "needs LIO: tests/lab/run"]
async fn initiators_and_targets_prove_who_they_are() {
    let machine = Machine::new("chap");
    let control = machine.control();
    let own = Credentials::new("initiator", "initiator-secret");
    let theirs = Credentials::new("target", "secret, of=target");
    let guessed = |of: &Credentials| Credentials::new(&of.name, "guessed-secret");
    let login = async |chap: Option<&Credentials>, mutual: Option<&Credentials>| {
        let mut options: Options = machine.options(&machine.target(), ONE);
        (options.chap, options.mutual_chap) = (chap.cloned(), mutual.cloned());
        match Session::login(options).await {
            Ok(session) => {
                scsi::settle(&session).await;
                scsi::good(&session, scsi::read(0, 1)).await;
                session.logout().await.expect("logout");
                true
            }
            Err(error) => {
                let what = (chap.map(|c| &c.name), mutual.map(|c| &c.name));
                // Who does not even offer CHAP is hung up on.
                let hung_up = chap.is_none() && error.kind() == Refusal::Lost;
                let refused = error.kind() == Refusal::Unauthenticated;
                assert!(hung_up || refused, "{what:?} {error}");
                false
            }
        }
    };
    let mut export = machine.export(&machine.file(MIB), MIB);
    within(async {
        export.chap = Some(own.clone());
        control.export(OP, &export).await.expect("CHAP");
        assert!(login(Some(&own), None).await);
        assert!(!login(None, None).await && !login(Some(&guessed(&own)), None).await);
        assert!(!login(Some(&own), Some(&theirs)).await);
        export.mutual_chap = Some(theirs.clone());
        control.export(OP, &export).await.expect("both ways");
        assert!(login(Some(&own), Some(&theirs)).await);
        assert!(!login(Some(&own), Some(&guessed(&theirs))).await);
        export.chap = Some(guessed(&own));
        control.export(OP, &export).await.expect("another secret");
        assert!(login(export.chap.as_ref(), Some(&theirs)).await && !login(Some(&own), None).await);
        (export.chap, export.mutual_chap) = (None, None);
        control.export(OP, &export).await.expect("no CHAP");
        assert!(login(None, None).await);
        export.chap = Some(Credentials::new("me", "NULLify"));
        let error = control.export(OP, &export).await.expect_err("no secret");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        control
            .unexport(OP, &machine.target())
            .await
            .expect("it goes");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs LIO: tests/lab/run"]
async fn readers_share_the_volume_and_do_not_write() {
    let machine = Machine::new("readers");
    let control = machine.control();
    let export = machine.export(&machine.device(MIB), MIB);
    let readers = machine.readers(&export);
    within(async {
        assert!(
            control
                .export(OP, &readers)
                .await
                .expect("readers")
                .read_only
        );
        let reader = scsi::login(machine.options(&readers.target, ONE)).await;
        assert!(
            !control
                .export(OP, &export)
                .await
                .expect("a writer")
                .read_only
        );
        let writer = scsi::login(machine.options(&export.target, ONE)).await;
        scsi::good(&writer, scsi::write(0, vec![5; 512].into())).await;
        assert_eq!(scsi::good(&reader, scsi::read(0, 1)).await, [5; 512][..]);
        let refused = scsi::execute(&reader, scsi::write(0, vec![7; 512].into())).await;
        assert_eq!(
            (refused.status, scsi::key(&refused)),
            (2, 7),
            "data protect"
        );
        assert_eq!(reader.nexus(), 1, "the writer did not disturb");
        control
            .unexport(OP, &export.target)
            .await
            .expect("the writer goes");
        assert!(is_known(&machine), "readers need it");
        assert_eq!(scsi::good(&reader, scsi::read(0, 1)).await, [5; 512][..]);
        control
            .unexport(OP, &readers.target)
            .await
            .expect("readers go");
        assert!(!is_known(&machine));
    })
    .await;
}

#[tokio::test]
#[ignore = "needs LIO: tests/lab/run"]
async fn a_device_that_takes_no_writes_is_read_and_may_be_written_later() {
    let machine = Machine::new("protected");
    let control = machine.control();
    let device = machine.device(MIB);
    let blockdev =
        |option: &str| crate::machine::run(&format!("blockdev {option} {}", device.display()));
    let export = machine.export(&device, MIB);
    let readers = machine.readers(&export);
    within(async {
        blockdev("--setro");
        control.export(OP, &readers).await.expect("readers");
        let reader = scsi::login(machine.options(&readers.target, ONE)).await;
        scsi::good(&reader, scsi::read(0, 1)).await;
        let error = control.export(OP, &export).await.expect_err("a writer");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        blockdev("--setrw");
        control.export(OP, &export).await.expect("a writer");
        let writer = scsi::login(machine.options(&export.target, ONE)).await;
        scsi::good(&writer, scsi::write(0, vec![5; 512].into())).await;
        scsi::settle(&reader).await;
        assert_eq!(scsi::good(&reader, scsi::read(0, 1)).await, [5; 512][..]);
        let refused = scsi::execute(&reader, scsi::write(0, vec![7; 512].into())).await;
        assert_eq!(refused.status, 2, "still not");
        for target in [&export.target, &readers.target] {
            control.unexport(OP, target).await.expect("it goes");
        }
    })
    .await;
}

async fn shows_another_size(machine: &Machine, path: PathBuf) {
    let control = machine.control();
    let mut export = machine.export(&path, 4 * MIB);
    control.export(OP, &export).await.expect("an export");
    let session = scsi::login(machine.options(&export.target, ONE)).await;
    for size in [8 * MIB, 8 * MIB + 4096] {
        set_size(&path, size);
        let wrong = control.resize(OP, &export).await.expect_err("the old size");
        assert_eq!(wrong.kind(), ErrorKind::InvalidInput, "{wrong}");
        export.size = size;
        assert_eq!(
            control.resize(OP, &export).await.expect("resized"),
            Resized::OnLine
        );
        assert_eq!(scsi::capacity(&session).await, size);
        scsi::good(&session, scsi::write(size / 512 - 1, vec![6; 512].into())).await;
        assert_eq!(session.nexus(), 1, "the session was kept");
    }
    control.unexport(OP, &export.target).await.expect("it goes");
}

#[tokio::test]
#[ignore = "needs LIO: tests/lab/run"]
async fn a_file_shows_another_size() {
    let machine = Machine::new("file-size");
    within(shows_another_size(&machine, machine.file(4 * MIB))).await;
}

#[tokio::test]
#[ignore = "needs LIO: tests/lab/run"]
async fn a_device_shows_another_size() {
    let machine = Machine::new("device-size");
    within(shows_another_size(&machine, machine.device(4 * MIB))).await;
}

#[tokio::test]
#[ignore = "needs LIO: tests/lab/run"]
async fn who_stays_does_not_notice_who_comes_and_goes() {
    let machine = Machine::new("comings");
    let control = machine.control();
    let mut export = machine.export(&machine.file(MIB), MIB);
    let target = export.target.clone();
    within(async {
        control.export(OP, &export).await.expect("one");
        let one = scsi::login(machine.options(&target, ONE)).await;
        export.initiators.push(TWO.into());
        control.export(OP, &export).await.expect("two");
        let two = scsi::login(machine.options(&target, TWO)).await;
        scsi::good(&two, scsi::write(0, vec![2; 512].into())).await;
        assert_eq!(scsi::good(&one, scsi::read(0, 1)).await, [2; 512][..]);
        export.initiators = vec![ONE.into()];
        control.export(OP, &export).await.expect("one again");
        two.execute(1, scsi::read(0, 1)).await.expect_err("out");
        scsi::good(&one, scsi::read(0, 1)).await;
        assert_eq!(one.nexus(), 1, "its session was not broken");
        control.unexport(OP, &target).await.expect("it goes");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs LIO: tests/lab/run"]
async fn devices_that_others_have_are_busy() {
    let machine = Machine::new("claimed");
    let device = machine.device(64 * MIB);
    let control = machine.control();
    let export = machine.export(&device, 64 * MIB);
    within(async {
        crate::machine::run(&format!("mke2fs -q {}", device.display()));
        std::fs::create_dir("/run/claimed").expect("a directory");
        crate::machine::run(&format!("mount {} /run/claimed", device.display()));
        let error = control
            .export(OP, &export)
            .await
            .expect_err("it is mounted");
        assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
        crate::machine::run("umount /run/claimed");
        control.export(OP, &export).await.expect("it is free");
        control.unexport(OP, &export.target).await.expect("it goes");
    })
    .await;
}
