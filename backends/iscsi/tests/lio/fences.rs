//! Who was shut out changes nothing any more.

use std::sync::Arc;

use volmux_iscsi::control::TargetControl;
use volmux_iscsi_initiator::Session;

use crate::load::{SIZE, Writers, still};
use crate::login::HalfLogin;
use crate::machine::Machine;
use crate::scsi;
use crate::{MIB, ONE, OP, TWO, within};

fn options(machine: &Machine, initiator: &str) -> volmux_iscsi_initiator::Options {
    let mut options = machine.options(&machine.target(), initiator);
    options.command_timeout = std::time::Duration::from_secs(5);
    options
}

async fn loaded(machine: &Machine) -> (Arc<Session>, Writers) {
    let session = Arc::new(scsi::login(options(machine, ONE)).await);
    let writers = Writers::start(&session).await;
    (session, writers)
}

/// For files and devices: nothing of who was shut out is written.
async fn fenced(machine: &Machine, path: &std::path::Path) {
    let control = machine.control();
    let mut export = machine.export(path, SIZE);
    export.initiators.push(TWO.into());
    let target = export.target.clone();
    for round in 0..9 {
        control.export(OP, &export).await.expect("an export");
        let two = scsi::login(options(machine, TWO)).await;
        let (one, writers) = loaded(machine).await;
        match round % 3 {
            0 => control.unexport(OP, &target).await.expect("it goes"),
            1 => control.deny(OP, &target, ONE).await.expect("denied"),
            _ => {
                let mut alone = export.clone();
                alone.initiators.remove(0);
                control
                    .export(OP, &alone)
                    .await
                    .map(drop)
                    .expect("for the other one");
            }
        }
        still(
            &machine.content(),
            ["unexport", "deny", "export"][round % 3],
        )
        .await;
        if round % 3 != 0 {
            scsi::settle(&two).await;
            scsi::good(&two, scsi::read(0, 1)).await;
            assert!(round % 3 == 1 || two.nexus() == 1, "it was disturbed");
        }
        one.execute(1, scsi::read(0, 1))
            .await
            .expect_err("shut out");
        writers.end().await;
    }
    control.unexport(OP, &target).await.expect("it goes");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs LIO: tests/lab/run"]
async fn nothing_is_written_to_a_file_once_it_is_fenced() {
    let machine = Machine::new("fenced-file");
    within(fenced(&machine, &machine.file(SIZE))).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs LIO: tests/lab/run"]
async fn nothing_is_written_to_a_device_once_it_is_fenced() {
    let machine = Machine::new("fenced-device");
    within(fenced(&machine, &machine.device(SIZE))).await;
}

#[tokio::test]
#[ignore = "needs LIO: tests/lab/run"]
async fn a_login_that_began_before_does_not_end_after() {
    let machine = Machine::new("half");
    let control = machine.control();
    let path = machine.file(MIB);
    let mut export = machine.export(&path, MIB);
    export.initiators.push(TWO.into());
    let target = export.target.clone();
    let begin = async || HalfLogin::begin(&machine.portal(), ONE, &target).await;
    within(async {
        control.export(OP, &export).await.expect("an export");
        assert!(begin().await.end().await, "it ends if nothing happens");
        assert_eq!(
            std::fs::read(&path).expect("the file")[512],
            0xee,
            "and writes"
        );
        for what in ["deny", "unexport", "export"] {
            std::fs::write(&path, vec![0; MIB as usize]).expect("empty again");
            control.export(OP, &export).await.expect("an export");
            let login = begin().await;
            let mut alone = export.clone();
            alone.initiators.remove(0);
            match what {
                "deny" => control.deny(OP, &target, ONE).await.expect("denied"),
                "unexport" => control.unexport(OP, &target).await.expect("it goes"),
                _ => {}
            }
            control.export(OP, &alone).await.expect("for the other one");
            assert!(!login.end().await, "after {what}");
            let content = std::fs::read(&path).expect("the file");
            assert!(content.iter().all(|byte| *byte == 0), "after {what}");
        }
        // The rest of what had to be left goes when there is nobody any more.
        control.export(OP, &export).await.expect("an export");
        let login = begin().await;
        control.unexport(OP, &target).await.expect("it goes");
        let directory = format!("/sys/kernel/config/target/iscsi/{target}");
        let directory = std::path::Path::new(&directory);
        assert!(directory.exists(), "who logs in holds it");
        assert_eq!(control.list(OP, &target).await.expect("a list"), []);
        drop(login);
        while directory.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            control.unexport(OP, &target).await.expect("there is none");
        }
    })
    .await;
}

/// As of a host that lost its network while it read.
#[tokio::test]
#[ignore = "needs LIO: tests/lab/run"]
async fn who_takes_no_data_is_shut_out_all_the_same() {
    let machine = Machine::new("stalled");
    let control = machine.control();
    let export = machine.export(&machine.file(MIB), MIB);
    let target = export.target.clone();
    within(async {
        for deny in [true, false] {
            control.export(OP, &export).await.expect("an export");
            let stalled = HalfLogin::begin(&machine.portal(), ONE, &target).await;
            let stalled = stalled.stall().await;
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            match deny {
                true => control.deny(OP, &target, ONE).await.expect("denied"),
                false => control.unexport(OP, &target).await.expect("it goes"),
            }
            drop(stalled);
        }
    })
    .await;
}
