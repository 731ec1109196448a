//! Reading, writing, flushing.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use volmux_core::{ErrorKind, VolumeName};
use volmux_iscsi::scsi::{Illegal, ScsiErrorKind};
use volmux_iscsi_server::Setup;

use crate::{MIB, content, open, within};

#[tokio::test]
async fn what_was_written_is_read_and_lies_in_the_file() {
    for block in [512, 4096] {
        let server = Setup::disk(16 * MIB, block).start();
        within(async {
            let unit = open(&server).await;
            let blocks = |bytes: u64| bytes / u64::from(block);
            // Longer than eight commands may be, and at an odd place.
            let data = content(1, 11 * MIB + 3 * u64::from(block));
            assert_eq!(unit.write(None, 5, data.clone()).await.expect("written"), 1);
            let one = content(2, block.into());
            unit.write(Some(1), 0, one.clone()).await.expect("written");
            assert_eq!(unit.flush(Some(1)).await.expect("flushed"), 1);
            let (read, nexus) = unit
                .read(None, 5, blocks(data.len() as u64) as u32)
                .await
                .expect("read");
            assert!(read == data && nexus == 1);
            let (read, _) = unit.read(Some(1), 0, 2).await.expect("read");
            assert_eq!(read[..block as usize], one);
            assert_eq!(read[block as usize..], vec![0; block as usize]);
            let file = fs::read(server.file(1, 1)).expect("the file");
            let from = 5 * block as usize;
            assert!(file[from..from + data.len()] == data);
            assert!(file[from + data.len()..].iter().all(|byte| *byte == 0));
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_out_of_range_changes_nothing() {
    let server = Setup::disk(MIB, 512).start();
    within(async {
        let unit = open(&server).await;
        let beyond = unit.write(None, 2047, content(1, 1024)).await;
        let error = beyond.expect_err("beyond the end");
        let out = ScsiErrorKind::IllegalRequest(Illegal::LbaOutOfRange);
        assert_eq!(format!("{:?}", error.kind()), format!("{out:?}"));
        unit.read(None, u64::MAX, 2)
            .await
            .expect_err("beyond the end");
        for length in [0, 1, 511, 513] {
            let odd = unit.write(None, 0, content(1, length)).await;
            let error = odd.expect_err("no whole blocks");
            assert!(
                matches!(error.kind(), ScsiErrorKind::InvalidInput(_)),
                "{error}"
            );
        }
        unit.read(None, 0, 0).await.expect_err("no blocks");
        let (read, _) = unit.read(None, 0, 2048).await.expect("read");
        assert!(read.iter().all(|byte| *byte == 0));
        // The file is cut behind the target's back: what can't be read is no data.
        let file = File::options().write(true).open(server.file(1, 1));
        file.and_then(|file| file.set_len(MIB / 2)).expect("cut");
        let error = unit.read(None, 1000, 100).await.expect_err("half is there");
        assert!(
            matches!(error.kind(), ScsiErrorKind::Medium { .. }),
            "{error}"
        );
        let core = error.into_core("read_at", &VolumeName::new("a").expect("a name"));
        assert_eq!(core.kind(), ErrorKind::Corrupt);
        assert!(
            core.get("portal").is_some_and(|at| at == server.portal()),
            "{core}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_write_protected_unit_is_read_only() {
    let server = Setup::disk(MIB, 512).update("readonly=1").start();
    let file = File::options()
        .write(true)
        .open(server.file(1, 1))
        .expect("the file");
    file.write_all_at(&[7; 512], 512).expect("written");
    within(async {
        let unit = open(&server).await;
        assert!(unit.write_protected());
        let (read, _) = unit.read(None, 1, 1).await.expect("read");
        assert_eq!(read, [7; 512][..]);
        for refused in [
            unit.write(None, 0, content(1, 512)).await,
            unit.write(None, 0, content(1, MIB)).await,
            unit.zero(None, 0, 8, true).await,
            unit.zero(None, 0, 8, false).await,
            unit.unmap(None, &[(0, 8)]).await,
        ] {
            let error = refused.expect_err("it is protected");
            assert!(
                matches!(error.kind(), ScsiErrorKind::WriteProtected),
                "{error}"
            );
        }
        unit.flush(None).await.expect("nothing to flush");
        let (read, _) = unit.read(None, 1, 1).await.expect("read");
        assert_eq!(read, [7; 512][..]);
    })
    .await;
}

#[tokio::test]
async fn many_requests_at_once_do_not_mix() {
    let server = Setup::disk(32 * MIB, 512).start();
    within(async {
        let unit = open(&server).await;
        let length = MIB + 1024;
        let all = futures::future::join_all((0..16_u64).map(|part| {
            let unit = &unit;
            async move {
                let (lba, data) = (part * 3000, content(part + 1, length));
                unit.write(None, lba, data.clone()).await.expect("written");
                let read = unit.read(None, lba, (length / 512) as u32).await;
                assert!(read.expect("read").0 == data, "part {part}");
            }
        }));
        all.await;
    })
    .await;
}
