//! How sessions begin, last and end.

use std::sync::Arc;
use std::time::Duration;

use volmux_iscsi_initiator::{ErrorKind, Session};

use crate::{MIB, eventually, scsi, within};
use volmux_iscsi_server::{INITIATOR, STRANGER, Setup};

#[tokio::test]
async fn an_unknown_target_is_not_found() {
    let server = Setup::disk(MIB, 512).start();
    let error = within(Session::login(server.options(2)))
        .await
        .expect_err("no such target");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert_eq!(error.portal(), server.portal());
    assert_eq!(error.target(), server.options(2).target.as_deref());
}

#[tokio::test]
async fn a_closed_port_is_a_lost_connection() {
    let server = Setup::disk(MIB, 512).start();
    let mut options = server.options(1);
    options.portal = server.closed_portal();
    let error = within(Session::login(options))
        .await
        .expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
}

#[tokio::test]
async fn a_target_for_another_initiator_is_not_found() {
    let server = Setup::new().target(Some(INITIATOR)).lun(MIB, 512).start();
    within(async {
        let mut options = server.options(1);
        scsi::login(options.clone())
            .await
            .logout()
            .await
            .expect("logout");
        options.initiator = STRANGER.into();
        let error = Session::login(options).await.expect_err("not for this one");
        // tgtd does not tell those whom it lets not in that the target is there.
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    })
    .await;
}

#[tokio::test]
async fn an_idle_session_stays() {
    let server = Setup::disk(MIB, 512).start();
    within(async {
        // On a busy machine a ping may be answered too late, but not each time.
        for _ in 0..5 {
            let mut options = server.options(1);
            options.keep_alive = Duration::from_millis(200);
            let session = scsi::login(options).await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            scsi::settle(&session, 1).await;
            if session.nexus() == 1 {
                return;
            }
        }
        panic!("the connection breaks each time");
    })
    .await;
}

#[tokio::test]
async fn a_target_that_pings_is_answered() {
    let setup = Setup::disk(MIB, 512);
    // It ends a connection whose initiator leaves two pings without an answer.
    let setup = setup
        .parameter("nop_interval", "1")
        .parameter("nop_count", "2");
    let server = setup.start();
    within(async {
        let session = scsi::login(server.options(1)).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(server.connections(1), 1);
        scsi::good(&session, 1, scsi::test_unit_ready()).await;
        assert_eq!(session.nexus(), 1);
    })
    .await;
}

#[tokio::test]
async fn logout_ends_the_connection() {
    let server = Setup::disk(MIB, 512).start();
    within(async {
        let session = scsi::login(server.options(1)).await;
        assert_eq!(server.connections(1), 1);
        session.logout().await.expect("logout");
        eventually("no connection", || server.connections(1) == 0).await;
    })
    .await;
}

#[tokio::test]
async fn dropping_a_session_ends_its_connection() {
    let server = Setup::disk(MIB, 512).start();
    within(async {
        let session = scsi::login(server.options(1)).await;
        assert_eq!(server.connections(1), 1);
        drop(session);
        eventually("no connection", || server.connections(1) == 0).await;
    })
    .await;
}

#[tokio::test]
async fn sessions_of_one_initiator_do_not_disturb_each_other() {
    let server = Setup::disk(MIB, 512).start();
    within(async {
        let one = scsi::login(server.options(1)).await;
        let other = scsi::login(server.options(1)).await;
        assert_eq!(server.connections(1), 2);
        for session in [&one, &other] {
            scsi::good(session, 1, scsi::test_unit_ready()).await;
            assert_eq!(session.nexus(), 1);
        }
    })
    .await;
}

#[tokio::test]
async fn a_session_of_the_same_name_takes_the_place() {
    let server = Setup::disk(MIB, 512).start();
    within(async {
        let mut options = server.options(1);
        options.isid_qualifier = Some(7);
        let old = scsi::login(options.clone()).await;
        let new = scsi::login(options).await;
        drop(old);
        eventually("one connection", || server.connections(1) == 1).await;
        drop(new);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_command_leaves_the_session_in_order() {
    let server = Setup::disk(8 * MIB, 512).start();
    within(async {
        let session = scsi::login(server.options(1)).await;
        for number in 0_u64..200 {
            let data = vec![number as u8; MIB as usize].into();
            let command = match number % 2 {
                0 => scsi::write(0, data, 512),
                _ => scsi::read(0, 2048, 512),
            };
            let patience = Duration::from_micros(number * 37 % 3000);
            // Whether it was done does not matter.
            let _ = tokio::time::timeout(patience, session.execute(1, command)).await;
        }
        let written = vec![0xee; 2 * MIB as usize];
        let command = scsi::write(8192, written.clone().into(), 512);
        scsi::good(&session, 1, command).await;
        let data = scsi::good(&session, 1, scsi::read(8192, 4096, 512)).await;
        assert!(data == written, "what was written after them differs");
        assert_eq!(session.nexus(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logical_unit_can_be_reset() {
    let server = Setup::disk(MIB, 512).start();
    within(async {
        let session = scsi::login(server.options(1)).await;
        let command = scsi::write(0, vec![9; 512].into(), 512);
        scsi::good(&session, 1, command).await;
        session.reset_lun(1).await.expect("reset");
        scsi::settle(&session, 1).await;
        let data = scsi::good(&session, 1, scsi::read(0, 1, 512)).await;
        assert_eq!(data, [9; 512][..]);
        assert_eq!(session.nexus(), 1, "a reset ends no session");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_ends_what_is_under_way() {
    let server = Setup::disk(8 * MIB, 512).start();
    within(async {
        let session = Arc::new(scsi::login(server.options(1)).await);
        for round in 0..6 {
            let write = |number: u64| {
                let session = session.clone();
                let data = vec![number as u8; MIB as usize].into();
                let command = scsi::write(number * 2048, data, 512);
                tokio::spawn(async move { session.execute(1, command).await })
            };
            let writes: Vec<_> = (0..8).map(write).collect();
            tokio::time::sleep(Duration::from_millis(round)).await;
            // tgtd answers some of them later, which may cost the connection.
            if let Err(error) = session.reset_lun(1).await {
                assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
            }
            for write in writes {
                match write.await.expect("no panic") {
                    Ok(reply) if reply.status == scsi::GOOD => {}
                    Ok(reply) => assert!(scsi::is_unit_attention(&reply), "{reply:?}"),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Lost, "{error}"),
                }
            }
            scsi::settle(&session, 1).await;
        }
        let command = scsi::write(5, vec![9; MIB as usize].into(), 512);
        scsi::stubborn(&session, 1, command).await;
        let data = scsi::stubborn(&session, 1, scsi::read(5, 2048, 512)).await;
        assert!(data == vec![9; MIB as usize], "it differs");
    })
    .await;
}
