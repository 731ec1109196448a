//! One session, one command at a time.

use bytes::Bytes;
use volmux_iscsi_initiator::{Data, Residual};

use crate::{MIB, scsi, within};
use volmux_iscsi_server::Setup;

#[tokio::test]
async fn a_disk_tells_what_it_is() {
    let server = Setup::disk(64 * MIB, 512).lun(8 * MIB, 4096).start();
    within(async {
        let session = scsi::login(server.options(1)).await;
        let data = scsi::good(&session, 1, scsi::inquiry(96)).await;
        assert_eq!(data[0], 0, "a disk: {data:02x?}");
        assert_eq!(&data[8..16], b"IET     ");
        assert_eq!(&data[16..32], b"VIRTUAL-DISK    ");
        let data = scsi::good(&session, 1, scsi::vital(0x83)).await;
        assert_eq!(data[..2], [0, 0x83]);
        assert_eq!(usize::from(scsi::be16(&data, 2)) + 4, data.len());
        assert!(
            data.windows(16).any(|id| id == b"IET     00010001"),
            "{data:02x?}"
        );
        let data = scsi::good(&session, 1, scsi::vital(0xb0)).await;
        assert_eq!(data[..2], [0, 0xb0]);
        assert_eq!(scsi::be32(&data, 20), u32::MAX, "blocks an UNMAP may have");
        let data = scsi::good(&session, 1, scsi::vital(0xb2)).await;
        assert_eq!(data[..2], [0, 0xb2]);
        assert_eq!(
            data[5] & 0xc0,
            0xc0,
            "UNMAP and WRITE SAME(16) unmap: {data:02x?}"
        );
        let data = scsi::good(&session, 1, scsi::read_capacity()).await;
        assert_eq!(
            (scsi::be64(&data, 0), scsi::be32(&data, 8)),
            (64 * MIB / 512 - 1, 512)
        );
        assert_eq!(
            data[14] & 0xc0,
            0xc0,
            "thin, and unmapped blocks are zeros: {data:02x?}"
        );
        scsi::settle(&session, 2).await;
        let data = scsi::good(&session, 2, scsi::read_capacity()).await;
        assert_eq!(
            (scsi::be64(&data, 0), scsi::be32(&data, 8)),
            (8 * MIB / 4096 - 1, 4096)
        );
        let data = scsi::good(&session, 1, scsi::report_luns()).await;
        let luns: Vec<u64> = data[8..]
            .chunks_exact(8)
            .map(|lun| scsi::be64(lun, 0))
            .collect();
        // tgtd has a controller at LUN 0.
        assert_eq!(luns, [0, 1 << 48, 2 << 48]);
        session.logout().await.expect("logout");
    })
    .await;
}

#[tokio::test]
async fn a_new_session_is_told_of_by_unit_attention() {
    let server = Setup::disk(MIB, 512).start();
    within(async {
        let session = volmux_iscsi_initiator::Session::login(server.options(1)).await;
        let session = session.expect("login");
        let reply = scsi::execute(&session, 1, scsi::test_unit_ready()).await;
        assert_eq!(reply.status, scsi::CHECK_CONDITION, "{reply:?}");
        assert_eq!(
            scsi::sense(&reply).map(|(key, code, _)| (key, code)),
            Some((6, 0x29))
        );
        scsi::settle(&session, 1).await;
    })
    .await;
}

#[tokio::test]
async fn what_is_written_is_read() {
    let server = Setup::disk(MIB, 512).start();
    within(async {
        let session = scsi::login(server.options(1)).await;
        let written = Bytes::from(vec![0x5a; 1024]);
        scsi::good(&session, 1, scsi::write(7, written, 512)).await;
        let data = scsi::good(&session, 1, scsi::read(6, 4, 512)).await;
        assert_eq!(
            data,
            [[0; 512], [0x5a; 512], [0x5a; 512], [0; 512]].concat()
        );
    })
    .await;
}

#[tokio::test]
async fn a_check_condition_is_an_answer() {
    let server = Setup::disk(MIB, 512).start();
    within(async {
        let session = scsi::login(server.options(1)).await;
        let end = MIB / 512;
        for command in [
            scsi::read(end, 1, 512),
            scsi::write(end - 1, vec![1; 1024].into(), 512),
        ] {
            let reply = scsi::execute(&session, 1, command).await;
            assert_eq!(reply.status, scsi::CHECK_CONDITION, "{reply:?}");
            assert_eq!(scsi::sense(&reply), Some((5, 0x21, 0)), "{reply:?}");
        }
        let data = scsi::good(&session, 1, scsi::read(end - 1, 1, 512)).await;
        assert_eq!(data, [0; 512][..], "nothing was written");
        // A code that nobody has.
        let mut command = scsi::test_unit_ready();
        command.cdb[0] = 0xff;
        let reply = scsi::execute(&session, 1, command).await;
        assert_eq!(scsi::sense(&reply), Some((5, 0x20, 0)), "{reply:?}");
        scsi::good(&session, 1, scsi::test_unit_ready()).await;
    })
    .await;
}

#[tokio::test]
async fn a_lun_that_is_not_there_says_so() {
    let server = Setup::disk(MIB, 512).start();
    within(async {
        let session = scsi::login(server.options(1)).await;
        for lun in [9, 300, 16383] {
            let reply = scsi::execute(&session, lun, scsi::test_unit_ready()).await;
            assert_eq!(reply.status, scsi::CHECK_CONDITION, "LUN {lun}: {reply:?}");
            assert_eq!(
                scsi::sense(&reply),
                Some((5, 0x25, 0)),
                "LUN {lun}: {reply:?}"
            );
        }
        let data = scsi::good(&session, 9, scsi::inquiry(36)).await;
        assert_eq!(data[0], 0x7f, "no such device: {data:02x?}");
    })
    .await;
}

#[tokio::test]
async fn less_or_more_data_than_expected_is_told() {
    let server = Setup::disk(MIB, 512).start();
    within(async {
        let session = scsi::login(server.options(1)).await;
        let mut command = scsi::read(0, 2, 512);
        command.data = Data::Read(4096);
        let reply = scsi::execute(&session, 1, command).await;
        assert_eq!(reply.status, scsi::GOOD, "{reply:?}");
        assert_eq!(
            (reply.data.len(), reply.residual),
            (1024, Residual::Underflow(3072))
        );
        let mut command = scsi::read(0, 2, 512);
        command.data = Data::Read(512);
        let reply = scsi::execute(&session, 1, command).await;
        assert_eq!(reply.status, scsi::GOOD, "{reply:?}");
        assert_eq!(
            (reply.data.len(), reply.residual),
            (512, Residual::Overflow(512))
        );
        scsi::good(&session, 1, scsi::test_unit_ready()).await;
        assert_eq!(session.nexus(), 1);
    })
    .await;
}
