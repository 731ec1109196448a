//! Who was shut out changes nothing any more.

use std::sync::Arc;
use std::time::Duration;

use volmux_core::ErrorKind;
use volmux_iscsi::control::TargetControl;
use volmux_iscsi_initiator::Session;

use crate::load::{SIZE, Writers, still};
use crate::login::HalfLogin;
use crate::scsi;
use crate::server::Server;
use crate::{MIB, ONE, OP, TARGET, TWO, export, within};

fn options(server: &Server, initiator: &str) -> volmux_iscsi_initiator::Options {
    let mut options = server.options(TARGET, initiator);
    options.command_timeout = Duration::from_secs(1);
    options
}

async fn loaded(server: &Server, initiator: &str) -> (Arc<Session>, Writers) {
    let session = Arc::new(scsi::login(options(server, initiator)).await);
    let writers = Writers::start(&session).await;
    (session, writers)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_once_a_target_is_gone() {
    let mut server = Server::start();
    let control = server.control();
    let export = export(&server.file("disk", SIZE), SIZE);
    within(async {
        for _ in 0..25 {
            control.export(OP, &export).await.expect("an export");
            let (_session, writers) = loaded(&server, ONE).await;
            control.unexport(OP, TARGET).await.expect("it goes");
            still(&export.path, "unexport").await;
            writers.end().await;
        }
    })
    .await;
    assert!(server.runs());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_who_is_denied_is_written_but_what_others_write_is() {
    let mut server = Server::start();
    let control = server.control();
    let mut export = export(&server.file("disk", SIZE), SIZE);
    export.initiators.push(TWO.into());
    within(async {
        for _ in 0..10 {
            control.export(OP, &export).await.expect("an export");
            let (denied, writers) = loaded(&server, ONE).await;
            let two = Arc::new(scsi::login(options(&server, TWO)).await);
            control.deny(OP, TARGET, ONE).await.expect("denied");
            still(&export.path, "deny").await;
            let shown = control.list(OP, TARGET).await.expect("a list").remove(0);
            assert_eq!(shown.initiators, [TWO]);
            assert!(
                shown
                    .sessions
                    .iter()
                    .all(|session| session.initiator == TWO)
            );
            scsi::settle(&two).await;
            scsi::good(&two, scsi::write(0, vec![2; 512].into())).await;
            denied
                .execute(1, scsi::read(0, 1))
                .await
                .expect_err("denied");
            writers.end().await;
            control.deny(OP, TARGET, ONE).await.expect("again");
        }
        // The last one.
        control.deny(OP, TARGET, TWO).await.expect("denied");
        control.deny(OP, TARGET, TWO).await.expect("again");
        Session::login(options(&server, TWO))
            .await
            .expect_err("denied");
    })
    .await;
    assert!(server.runs());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_taken_off_the_list_writes_no_more() {
    let mut server = Server::start();
    let control = server.control();
    let both = {
        let mut export = export(&server.file("disk", SIZE), SIZE);
        export.initiators.push(TWO.into());
        export
    };
    let mut two_alone = both.clone();
    two_alone.initiators.remove(0);
    within(async {
        control.export(OP, &both).await.expect("both");
        let two = scsi::login(options(&server, TWO)).await;
        for _ in 0..10 {
            control.export(OP, &both).await.expect("both");
            let (_one, writers) = loaded(&server, ONE).await;
            control.export(OP, &two_alone).await.expect("one of them");
            still(&both.path, "the change of initiators").await;
            scsi::good(&two, scsi::read(0, 1)).await;
            assert_eq!(two.nexus(), 1);
            writers.end().await;
        }
    })
    .await;
    assert!(server.runs());
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_are_denied_do_not_disturb_others() {
    let server = Server::start();
    let control = server.control();
    let mut export = export(&server.file("disk", MIB), MIB);
    export.read_only = true;
    export.initiators.push(TWO.into());
    within(async {
        control.export(OP, &export).await.expect("an export");
        let one = scsi::login(options(&server, ONE)).await;
        let two = scsi::login(options(&server, TWO)).await;
        control.deny(OP, TARGET, ONE).await.expect("denied");
        one.execute(1, scsi::read(0, 1)).await.expect_err("denied");
        scsi::good(&two, scsi::read(0, 1)).await;
        assert_eq!(two.nexus(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_login_that_began_before_does_not_end_after() {
    let server = Server::start();
    let control = server.control();
    let mut export = export(&server.file("disk", MIB), MIB);
    export.initiators.push(TWO.into());
    within(async {
        control.export(OP, &export).await.expect("an export");
        let login = HalfLogin::begin(&server.portal(), ONE, TARGET).await;
        assert!(login.end().await, "it ends if nothing happens");
        assert_eq!(
            std::fs::read(&export.path).expect("the file")[512],
            0xee,
            "and writes"
        );

        let login = HalfLogin::begin(&server.portal(), ONE, TARGET).await;
        control.deny(OP, TARGET, ONE).await.expect("denied");
        assert!(!login.end().await, "after deny");

        control.export(OP, &export).await.expect("an export");
        let login = HalfLogin::begin(&server.portal(), ONE, TARGET).await;
        control.unexport(OP, TARGET).await.expect("it goes");
        export.initiators.remove(0);
        control
            .export(OP, &export)
            .await
            .expect("for the other one");
        assert!(!login.end().await, "after unexport");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tgtd_that_hangs_is_not_said_to_be_fenced() {
    let server = Server::start();
    let control = server.control();
    let export = export(&server.file("disk", SIZE), SIZE);
    within(async {
        control.export(OP, &export).await.expect("an export");
        let (_session, writers) = loaded(&server, ONE).await;
        server.freeze();
        let hangs = control.unexport(OP, TARGET).await;
        server.go_on();
        assert_eq!(hangs.expect_err("it hangs").kind(), ErrorKind::TimedOut);
        control.unexport(OP, TARGET).await.expect("it goes");
        still(&export.path, "unexport").await;
        writers.end().await;
    })
    .await;
}

/// As of a host that lost its network while it read.
#[tokio::test]
async fn who_takes_no_data_is_shut_out_all_the_same() {
    let server = Server::start();
    let control = server.control();
    let export = export(&server.file("disk", MIB), MIB);
    within(async {
        control.export(OP, &export).await.expect("an export");
        let stalled = HalfLogin::begin(&server.portal(), ONE, TARGET).await;
        let stalled = stalled.stall().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        control.unexport(OP, TARGET).await.expect("it goes");
        drop(stalled);
    })
    .await;
}
