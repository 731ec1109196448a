//! One session, one command at a time.

use bytes::Bytes;
use volmux_iscsi_initiator::{Data, ErrorKind, Residual};

use crate::server::Setup;
use crate::{MIB, connectors, scsi, within};

#[tokio::test]
async fn a_disk_tells_what_it_is() {
    for connector in connectors() {
        let server = Setup::disk(64 * MIB, 512).lun(8 * MIB, 4096).start();
        within(async {
            let session = scsi::login(&*connector, server.options(1)).await;
            let session = &*session;
            let data = scsi::good(session, 1, scsi::inquiry(96)).await;
            assert_eq!(data[0], 0, "a disk: {data:02x?}");
            assert_eq!(&data[8..16], b"IET     ");
            assert_eq!(&data[16..32], b"VIRTUAL-DISK    ");
            let data = scsi::good(session, 1, scsi::vital(0x83)).await;
            assert_eq!(data[..2], [0, 0x83]);
            assert_eq!(usize::from(scsi::be16(&data, 2)) + 4, data.len());
            let data = scsi::good(session, 1, scsi::vital(0xb0)).await;
            assert_eq!(data[..2], [0, 0xb0]);
            assert_eq!(scsi::be32(&data, 20), u32::MAX, "blocks an UNMAP may have");
            assert_eq!(scsi::capacity(session).await, (64 * MIB, 512));
            scsi::settle(session, 2).await;
            let data = scsi::good(session, 2, scsi::read_capacity()).await;
            assert_eq!(
                (scsi::be64(&data, 0), scsi::be32(&data, 8)),
                (8 * MIB / 4096 - 1, 4096)
            );
            let data = scsi::good(session, 1, scsi::report_luns()).await;
            let luns = data[8..].chunks_exact(8).map(|lun| scsi::be64(lun, 0));
            // tgtd has a controller at LUN 0.
            assert_eq!(luns.collect::<Vec<_>>(), [0, 1 << 48, 2 << 48]);
            session.logout().await.expect("logout");
            assert_eq!(server.connections(1), 0, "{} left one", connector.name());
        })
        .await;
    }
}

#[tokio::test]
async fn a_new_session_is_told_of_by_unit_attention() {
    for connector in connectors() {
        let server = Setup::disk(MIB, 512).start();
        within(async {
            let session = connector.login(server.options(1)).await.expect("login");
            let reply = scsi::execute(&*session, 1, scsi::test_unit_ready()).await;
            assert_eq!(reply.status, scsi::CHECK_CONDITION, "{reply:?}");
            let sense = scsi::sense(&reply).map(|(key, code, _)| (key, code));
            assert_eq!(sense, Some((6, 0x29)));
            assert_eq!(reply.nexus, 1);
            scsi::settle(&*session, 1).await;
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_written_is_read() {
    for connector in connectors() {
        let server = Setup::disk(MIB, 512).start();
        within(async {
            let session = scsi::login(&*connector, server.options(1)).await;
            let written = Bytes::from(vec![0x5a; 1024]);
            scsi::good(&*session, 1, scsi::write(7, written, 512)).await;
            let data = scsi::good(&*session, 1, scsi::read(6, 4, 512)).await;
            let due = [[0; 512], [0x5a; 512], [0x5a; 512], [0; 512]].concat();
            assert_eq!(data, due);
        })
        .await;
    }
}

#[tokio::test]
async fn a_check_condition_is_an_answer() {
    for connector in connectors() {
        let server = Setup::disk(MIB, 512).start();
        within(async {
            let session = scsi::login(&*connector, server.options(1)).await;
            let end = MIB / 512;
            for command in [
                scsi::read(end, 1, 512),
                scsi::write(end - 1, vec![1; 1024].into(), 512),
                // More than goes with the command at once.
                scsi::write(end - 1, vec![1; MIB as usize].into(), 512),
            ] {
                let reply = scsi::execute(&*session, 1, command).await;
                assert_eq!(reply.status, scsi::CHECK_CONDITION, "{reply:?}");
                assert_eq!(scsi::sense(&reply), Some((5, 0x21, 0)), "{reply:?}");
            }
            let data = scsi::good(&*session, 1, scsi::read(end - 1, 1, 512)).await;
            assert_eq!(data, [0; 512][..], "nothing was written");
            // A code that nobody has.
            let mut command = scsi::test_unit_ready();
            command.cdb[0] = 0xff;
            let reply = scsi::execute(&*session, 1, command).await;
            assert_eq!(scsi::sense(&reply), Some((5, 0x20, 0)), "{reply:?}");
            scsi::good(&*session, 1, scsi::test_unit_ready()).await;
        })
        .await;
    }
}

#[tokio::test]
async fn a_lun_that_is_not_there_says_so() {
    for connector in connectors() {
        let server = Setup::disk(MIB, 512).start();
        within(async {
            let session = scsi::login(&*connector, server.options(1)).await;
            for lun in [9, 300, 16383] {
                let reply = scsi::execute(&*session, lun, scsi::test_unit_ready()).await;
                assert_eq!(scsi::sense(&reply), Some((5, 0x25, 0)), "LUN {lun}");
            }
            let command = scsi::test_unit_ready();
            let error = session.execute(16384, command).await.expect_err("too high");
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert_eq!(error.lun(), Some(16384));
        })
        .await;
    }
}

#[tokio::test]
async fn less_or_more_data_than_expected_is_told() {
    for connector in connectors() {
        let server = Setup::disk(MIB, 512).start();
        within(async {
            let session = scsi::login(&*connector, server.options(1)).await;
            let mut command = scsi::read(0, 2, 512);
            for (asked, due) in [
                (4096, (1024, Residual::Underflow(3072))),
                (512, (512, Residual::Overflow(512))),
                (1024, (1024, Residual::None)),
            ] {
                command.data = Data::Read(asked);
                let reply = scsi::execute(&*session, 1, command.clone()).await;
                assert_eq!(reply.status, scsi::GOOD, "{reply:?}");
                assert_eq!((reply.data.len(), reply.residual), due);
            }
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_no_command_is_not_sent() {
    for connector in connectors() {
        let server = Setup::disk(MIB, 512).start();
        within(async {
            let session = scsi::login(&*connector, server.options(1)).await;
            for length in [0, 5, 17] {
                let mut command = scsi::test_unit_ready();
                command.cdb = vec![0; length];
                let error = session.execute(1, command).await.expect_err("no command");
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                assert!(!error.sent());
            }
        })
        .await;
    }
}

/// Its sessions have a thread of their own, so nothing of the caller's runtime is needed.
#[test]
fn a_session_outlives_the_runtime_that_made_it() {
    let server = Setup::disk(MIB, 512).start();
    let connector = volmux_iscsi_client_rs::ClientRs;
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
    };
    let first = runtime().expect("a runtime");
    let session = first.block_on(scsi::login(&connector, server.options(1)));
    drop(first);
    let second = runtime().expect("a runtime");
    let data = second.block_on(scsi::good(&*session, 1, scsi::read(0, 1, 512)));
    assert_eq!(data, [0; 512][..]);
}
