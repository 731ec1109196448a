//! Targets are made, changed, shown and taken away.

use std::time::Duration;

use volmux_core::ErrorKind;
use volmux_iscsi::control::{Export, ExportedUnit, Resized, TargetControl};
use volmux_iscsi_initiator::{ErrorKind as Refusal, Session};

use crate::scsi;
use crate::server::Server;
use crate::{MIB, ONE, OP, SERIAL, TARGET, TWO, export, within};

#[tokio::test]
async fn a_file_becomes_a_disk() {
    let server = Server::start();
    let control = server.control();
    let export = export(&server.file("disk", 8 * MIB), 8 * MIB);
    within(async {
        let unit = control.export(OP, &export).await.expect("an export");
        let expected = ExportedUnit {
            lun: 1,
            path: export.path.clone(),
            serial: SERIAL.into(),
            size: Some(8 * MIB),
            read_only: false,
        };
        assert_eq!(unit, expected);
        let session = scsi::login(server.options(TARGET, ONE)).await;
        assert_eq!(scsi::serial(&session).await, SERIAL);
        assert_eq!(scsi::capacity(&session).await, 8 * MIB);
        let inquiry = scsi::good(&session, scsi::inquiry(None)).await;
        assert_eq!(&inquiry[8..32], b"IET     VOLUME          ");
        // The cache is on, and UNMAP is there.
        let caching = scsi::good(&session, scsi::caching()).await;
        assert_eq!(caching[4 + usize::from(caching[3]) + 2] & 0x04, 0x04);
        let provisioning = scsi::good(&session, scsi::inquiry(Some(0xb2))).await;
        assert_eq!(provisioning[5] & 0x80, 0x80);
        scsi::good(&session, scsi::write(8, vec![7; 4096].into())).await;
        scsi::good(&session, scsi::synchronize_cache()).await;
        let content = std::fs::read(&export.path).expect("the file");
        assert_eq!(content[4096..8192], [7; 4096]);
        let luns = scsi::good(&session, scsi::report_luns()).await;
        assert_eq!(
            luns[..4],
            [0, 0, 0, 16],
            "two logical units: tgtd's and this"
        );
        session.logout().await.expect("logout");
        control.unexport(OP, TARGET).await.expect("it goes");
        control.unexport(OP, TARGET).await.expect("it is gone");
        let error = Session::login(server.options(TARGET, ONE)).await;
        // A tgtd without any target hangs up.
        let kind = error.expect_err("gone").kind();
        assert!(matches!(kind, Refusal::NotFound | Refusal::Lost), "{kind}");
    })
    .await;
}

#[tokio::test]
async fn only_who_may_is_let_in() {
    let server = Server::start();
    let control = server.control();
    let mut export = export(&server.file("disk", MIB), MIB);
    within(async {
        control.export(OP, &export).await.expect("an export");
        let stranger = Session::login(server.options(TARGET, TWO)).await;
        assert_eq!(stranger.expect_err("a stranger").kind(), Refusal::NotFound);
        export.initiators.clear();
        control.export(OP, &export).await.expect("nobody");
        let nobody = Session::login(server.options(TARGET, ONE)).await;
        assert_eq!(nobody.expect_err("nobody").kind(), Refusal::NotFound);
    })
    .await;
}

#[tokio::test]
async fn who_stays_does_not_notice_who_comes_and_goes() {
    let server = Server::start();
    let control = server.control();
    let mut export = export(&server.file("disk", MIB), MIB);
    within(async {
        control.export(OP, &export).await.expect("one");
        let one = scsi::login(server.options(TARGET, ONE)).await;
        export.initiators.push(TWO.into());
        control.export(OP, &export).await.expect("two");
        let mut options = server.options(TARGET, TWO);
        options.command_timeout = Duration::from_secs(2);
        let two = scsi::login(options).await;
        scsi::good(&two, scsi::write(0, vec![2; 512].into())).await;
        assert_eq!(scsi::good(&one, scsi::read(0, 1)).await, [2; 512][..]);
        let shown = control.list(OP, TARGET).await.expect("a list").remove(0);
        let mut sessions = shown.sessions;
        sessions.sort_by(|a, b| a.initiator.cmp(&b.initiator));
        let names: Vec<_> = sessions.iter().map(|s| s.initiator.as_str()).collect();
        assert_eq!(names, [ONE, TWO]);
        assert!(
            sessions
                .iter()
                .all(|s| s.address.as_deref() == Some("127.0.0.1")),
            "{sessions:?}"
        );
        export.initiators = vec![ONE.into()];
        control.export(OP, &export).await.expect("one again");
        assert_eq!(
            control.list(OP, TARGET).await.expect("a list")[0]
                .sessions
                .len(),
            1
        );
        let error = two.execute(1, scsi::read(0, 1)).await.expect_err("out");
        assert!(
            matches!(error.kind(), Refusal::NotFound | Refusal::Lost),
            "{error}"
        );
        scsi::good(&one, scsi::read(0, 1)).await;
        assert_eq!(one.nexus(), 1, "its session was not broken");
    })
    .await;
}

#[tokio::test]
async fn readers_do_not_write() {
    let server = Server::start();
    let control = server.control();
    let mut export = export(&server.file("disk", MIB), MIB);
    export.read_only = true;
    within(async {
        assert!(
            control
                .export(OP, &export)
                .await
                .expect("an export")
                .read_only
        );
        let session = scsi::login(server.options(TARGET, ONE)).await;
        scsi::good(&session, scsi::read(0, 8)).await;
        let refused = scsi::execute(&session, scsi::write(0, vec![7; 512].into())).await;
        assert_eq!(
            (refused.status, scsi::key(&refused)),
            (2, 7),
            "data protect"
        );
        let content = std::fs::read(&export.path).expect("the file");
        assert!(content.iter().all(|byte| *byte == 0));
        export.read_only = false;
        control.export(OP, &export).await.expect("to be written");
        scsi::settle(&session).await;
        scsi::good(&session, scsi::write(0, vec![7; 512].into())).await;
    })
    .await;
}

#[tokio::test]
async fn a_target_is_made_anew_with_another_size() {
    let server = Server::start();
    let control = server.control();
    let mut export = export(&server.file("disk", MIB), MIB);
    within(async {
        let session = {
            control.export(OP, &export).await.expect("an export");
            scsi::login(server.options(TARGET, ONE)).await
        };
        // Also by so little that tgtd shows the same number of megabytes.
        for size in [MIB + 4096, 16 * MIB, 16 * MIB + 512] {
            let file = std::fs::OpenOptions::new().write(true).open(&export.path);
            file.and_then(|file| file.set_len(size))
                .expect("another size");
            let wrong = control.resize(OP, &export).await.expect_err("the old size");
            assert_eq!(wrong.kind(), ErrorKind::InvalidInput, "{wrong}");
            export.size = size;
            if size % 4096 == 0 {
                let resized = control.resize(OP, &export).await.expect("resized");
                assert_eq!(resized, Resized::Remade);
            } else {
                control
                    .export(OP, &export)
                    .await
                    .expect("exported with another size");
            }
            scsi::settle(&session).await;
            assert_eq!(scsi::capacity(&session).await, size);
        }
        control.unexport(OP, TARGET).await.expect("it goes");
        control
            .resize(OP, &export)
            .await
            .expect("made, if it was cut off before");
        scsi::settle(&session).await;
    })
    .await;
}

#[tokio::test]
async fn what_is_listed_is_what_there_is() {
    let server = Server::start();
    let control = server.control();
    within(async {
        assert_eq!(control.list(OP, "").await.expect("no target"), []);
        let mut exports: Vec<Export> = Vec::new();
        for (at, target) in [
            "iqn.2026-01.org.example:a.1",
            "iqn.2026-01.org.example:a.2",
            "iqn.2026-01.org.example:b.1",
        ]
        .into_iter()
        .enumerate()
        {
            let mut export = export(&server.file(&format!("disk {at} Size: 5"), MIB), MIB);
            export.target = target.into();
            export.read_only = at == 1;
            export.initiators.push(TWO.into());
            control.export(OP, &export).await.expect("an export");
            exports.push(export);
        }
        let mut shown = control
            .list(OP, "iqn.2026-01.org.example:a.")
            .await
            .expect("a list");
        shown.sort_by(|a, b| a.target.cmp(&b.target));
        assert_eq!(shown.len(), 2);
        for (shown, export) in shown.iter().zip(&exports) {
            assert_eq!(shown.target, export.target);
            assert_eq!(shown.initiators, export.initiators);
            assert_eq!(shown.sessions, []);
            let unit = shown.unit.as_ref().expect("a unit");
            assert_eq!(unit.path, export.path);
            assert_eq!(unit.read_only, export.read_only);
            assert_eq!((unit.lun, unit.serial.as_str()), (1, SERIAL));
        }
    })
    .await;
}

/// Every state that an export can be cut off in, and others that an administrator leaves.
#[tokio::test]
async fn an_export_goes_on_from_whatever_there_is() {
    let server = Server::start();
    let control = server.control();
    let path = server.file("disk", MIB);
    let other = server.file("other", MIB);
    let export = export(&path, MIB);
    let target = "--mode target --tid 77777";
    let unit = "--mode logicalunit --tid 77777";
    let (path, other) = (path.display(), other.display());
    let described =
        format!("{unit} --op update --lun 1 --params scsi_sn={SERIAL},thin_provisioning=1");
    let steps = [
        format!("{target} --op new --targetname {TARGET}"),
        format!("{unit} --op new --lun 1 --backing-store {path}"),
        described.clone(),
        format!("{target} --op bind --initiator-name {ONE}"),
        format!("{target} --op bind --initiator-name {TWO}"),
        format!("{target} --op bind --initiator-address ALL"),
        format!("{target} --op update --name state --value offline"),
    ];
    let mut states: Vec<Vec<String>> = (0..=steps.len()).map(|n| steps[..n].to_vec()).collect();
    states.push(vec![
        steps[0].clone(),
        format!("{unit} --op new --lun 1 --backing-store {other}"),
        described,
        steps[5].clone(),
    ]);
    states.push(vec![
        steps[0].clone(),
        format!("{unit} --op new --lun 5 --backing-store {path}"),
    ]);
    within(async {
        for state in states {
            for step in &state {
                server.admin(step);
            }
            control
                .export(OP, &export)
                .await
                .unwrap_or_else(|e| panic!("{state:?}: {e}"));
            control
                .export(OP, &export)
                .await
                .unwrap_or_else(|e| panic!("again {state:?}: {e}"));
            let shown = control.list(OP, TARGET).await.expect("a list");
            assert_eq!(shown.len(), 1);
            assert_eq!(shown[0].initiators, [ONE]);
            let session = scsi::login(server.options(TARGET, ONE)).await;
            assert_eq!(scsi::serial(&session).await, SERIAL, "{state:?}");
            scsi::good(&session, scsi::write(0, vec![9; 512].into())).await;
            let stranger = Session::login(server.options(TARGET, TWO)).await;
            assert_eq!(stranger.expect_err("a stranger").kind(), Refusal::NotFound);
            control.unexport(OP, TARGET).await.expect("it goes");
            assert_eq!(
                std::fs::read(&export.path).expect("the file")[..512],
                [9; 512]
            );
            let file = std::fs::OpenOptions::new().write(true).open(&export.path);
            file.and_then(|file| file.set_len(0).and_then(|()| file.set_len(MIB)))
                .expect("empty again");
        }
    })
    .await;
}

#[tokio::test]
async fn a_tgtd_that_was_started_again_knows_nothing() {
    let mut server = Server::start();
    let control = server.control();
    let export = export(&server.file("disk", MIB), MIB);
    within(async {
        control.export(OP, &export).await.expect("an export");
        let session = scsi::login(server.options(TARGET, ONE)).await;
        scsi::good(&session, scsi::write(0, vec![3; 512].into())).await;
        server.kill();
        for error in [
            control.check(OP).await,
            control.unexport(OP, TARGET).await,
            control.export(OP, &export).await.map(drop),
            control.list(OP, "").await.map(drop),
        ] {
            let error = error.expect_err("it does not run");
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            assert_eq!(error.get("help"), Some("start tgtd"), "{error}");
        }
        server.start_again();
        control.check(OP).await.expect("it runs");
        assert_eq!(control.list(OP, "").await.expect("a list"), []);
        control.export(OP, &export).await.expect("an export");
        scsi::settle(&session).await;
        assert_eq!(scsi::good(&session, scsi::read(0, 1)).await, [3; 512][..]);
    })
    .await;
}
