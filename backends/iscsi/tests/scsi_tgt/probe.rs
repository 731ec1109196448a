//! What a unit tells about itself.

use volmux_iscsi::scsi::{
    Association, DesignatorKind, Illegal, ProvisioningType, Rotation, ScsiErrorKind, UnitOptions,
    report_luns,
};
use volmux_iscsi_server::Setup;

use crate::{MIB, content, login, open, try_open, within};

#[tokio::test]
async fn a_thin_unit_is_known_by_all_that_it_tells() {
    for block in [512, 4096] {
        let setup = Setup::disk(8 * MIB, block).update("scsi_sn=volmux-0001,rotation_rate=1");
        let server = setup.start();
        within(async {
            let unit = open(&server).await;
            assert_eq!((unit.lun(), unit.opened_in()), (1, 1));
            assert_eq!(
                (&*unit.inquiry().vendor, unit.inquiry().device_type),
                ("IET", 0)
            );
            assert_eq!(unit.serial(), Some("volmux-0001"));
            let naa = unit.designators().iter().find(|one| {
                one.kind == DesignatorKind::Naa && one.association == Association::LogicalUnit
            });
            assert!(naa.is_some(), "{:?}", unit.designators());
            let capacity = unit.capacity();
            assert_eq!((capacity.bytes(), capacity.block_size), (8 * MIB, block));
            assert!(capacity.provisioned && capacity.reads_zeros);
            assert!(unit.provisioning().unmap && unit.provisioning().write_same_16);
            assert_eq!(unit.provisioning().kind, ProvisioningType::Thin);
            assert!(unit.reads_zeros() && unit.can_unmap());
            assert_eq!(unit.limits().max_transfer, 0, "it tells none");
            assert_eq!(unit.limits().max_unmap_blocks, u32::MAX);
            assert_eq!(unit.max_compare_and_write(), 128);
            assert_eq!(unit.rotation(), Rotation::None);
            assert_eq!(unit.write_cache(), Some(true));
            assert!(!unit.write_protected() && !unit.capacity_stale());
            assert_eq!(
                unit.resets(),
                1,
                "each session begins with a unit attention"
            );
            assert_eq!(unit.check_identity(None).await.expect("itself"), 1);
        })
        .await;
    }
}

#[tokio::test]
async fn a_thick_unit_gives_nothing_back() {
    let server = Setup::new().target(None).thick_lun(MIB, 512).start();
    within(async {
        let unit = open(&server).await;
        assert!(!unit.can_unmap() && !unit.reads_zeros());
        assert!(!unit.capacity().provisioned);
        let error = unit.unmap(None, &[(0, 8)]).await.expect_err("it can't");
        assert!(
            matches!(error.kind(), ScsiErrorKind::Unsupported(_)),
            "{error}"
        );
    })
    .await;
}

#[tokio::test]
async fn what_is_not_there_or_no_disk_is_an_error() {
    let server = Setup::disk(MIB, 512).start();
    within(async {
        let error = try_open(server.options(1), 9)
            .await
            .expect_err("no such unit");
        let kind = error.kind();
        let missing = ScsiErrorKind::IllegalRequest(Illegal::LunNotSupported);
        assert_eq!(format!("{kind:?}"), format!("{missing:?}"), "{error}");
        // tgt has a controller at number 0.
        let error = try_open(server.options(1), 0).await.expect_err("no disk");
        let ScsiErrorKind::NotADisk { device_type, .. } = error.kind() else {
            panic!("{error}");
        };
        assert_eq!(*device_type, 0x0c, "{error}");
    })
    .await;
}

#[tokio::test]
async fn units_are_listed() {
    let mut setup = Setup::new().target(None);
    for _ in 0..4 {
        setup = setup.lun(MIB, 512);
    }
    let server = setup.start();
    within(async {
        let session = login(server.options(1)).await;
        let luns = report_luns(session, UnitOptions::default()).await;
        assert_eq!(luns.expect("a list"), [0, 1, 2, 3, 4]);
    })
    .await;
}

#[tokio::test]
async fn sense_in_descriptor_format_is_understood() {
    let server = Setup::disk(MIB, 512)
        .update("sense_format=1,readonly=1")
        .start();
    within(async {
        let unit = open(&server).await;
        let error = unit.write(None, 0, content(1, 512)).await;
        let error = error.expect_err("it is protected");
        assert!(
            matches!(error.kind(), ScsiErrorKind::WriteProtected),
            "{error}"
        );
    })
    .await;
}
