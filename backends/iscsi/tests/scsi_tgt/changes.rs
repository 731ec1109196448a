//! What changes while a unit is open.

use volmux_iscsi::scsi::{Illegal, ScsiErrorKind};
use volmux_iscsi_initiator::ErrorKind;
use volmux_iscsi_server::Setup;

use crate::{MIB, content, open, within};

/// tgt 1.0.85 tells the sessions nothing when a unit is deleted and another one takes its number.
#[tokio::test]
async fn a_unit_that_is_made_anew_shows_its_size_and_who_it_is() {
    let server = Setup::disk(MIB, 512).update("scsi_sn=first").start();
    within(async {
        let unit = open(&server).await;
        let data = content(1, 512);
        unit.write(Some(1), 0, data.clone()).await.expect("written");
        server.resize(1, 1, 4 * MIB);
        assert!(unit.read(Some(1), 0, 1).await.expect("read").0 == data);
        assert!(!unit.capacity_stale(), "nothing was told");
        assert_eq!(unit.capacity().bytes(), MIB);
        let beyond = unit.write(Some(1), 4096, data.clone()).await;
        beyond.expect_err("the new size is not known yet");
        let (capacity, nexus) = unit.read_capacity(Some(1)).await.expect("the size");
        assert_eq!((capacity.bytes(), nexus), (4 * MIB, 1));
        assert_eq!(unit.capacity(), capacity);
        unit.write(Some(1), 4096, data).await.expect("written");
        unit.check_identity(Some(1)).await.expect("the same");

        let which = ["--mode", "logicalunit", "--tid", "1", "--lun", "1"];
        let update = ["--op", "update", "--params", "scsi_sn=second"];
        server
            .admin(&[&which[..], &update].concat())
            .expect("another serial number");
        let error = unit
            .check_identity(Some(1))
            .await
            .expect_err("another unit");
        let ScsiErrorKind::OtherUnit { found } = error.kind() else {
            panic!("{error}");
        };
        assert!(found.contains("second"), "{error}");
        let delete = [&which[..], &["--op", "delete"]].concat();
        server.admin(&delete).expect("deleted");
        let error = unit.check_identity(Some(1)).await.expect_err("no unit");
        let gone = ScsiErrorKind::IllegalRequest(Illegal::LunNotSupported);
        assert_eq!(
            format!("{:?}", error.kind()),
            format!("{gone:?}"),
            "{error}"
        );
        unit.read(Some(1), 0, 1).await.expect_err("no unit");
    })
    .await;
}

#[tokio::test]
async fn another_session_is_noticed() {
    let mut server = Setup::disk(MIB, 512).start();
    within(async {
        let unit = open(&server).await;
        unit.write(Some(1), 0, content(1, 512))
            .await
            .expect("written");
        let resets = unit.resets();
        server.kill();
        server.start();
        let error = unit
            .read(Some(1), 0, 1)
            .await
            .expect_err("that session is over");
        let ScsiErrorKind::Transport(transport) = error.kind() else {
            panic!("{error}");
        };
        assert_eq!(transport.kind(), ErrorKind::Lost);
        assert!(error.is_lost());
        let (_, nexus) = unit.read(None, 0, 1).await.expect("in a new session");
        assert_eq!(nexus, 2);
        assert_eq!(unit.resets(), resets + 1);
        assert_eq!(unit.check_identity(Some(2)).await.expect("itself"), 2);
        unit.check_identity(Some(1))
            .await
            .expect_err("that session is over");
    })
    .await;
}
