//! The file system below the unit is full.

use volmux_core::{ErrorKind, VolumeName};
use volmux_iscsi::scsi::ScsiErrorKind;
use volmux_iscsi_server::Setup;

use crate::{MIB, content, open, within};

#[tokio::test]
async fn a_full_file_system_is_no_space() {
    let server = Setup::disk(64 * MIB, 512).room(8 * MIB).start();
    within(async {
        let unit = open(&server).await;
        let mib = MIB / 512;
        let data = content(1, MIB);
        let mut written = 0;
        let error = loop {
            match unit.write(None, written * mib, data.clone()).await {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
            assert!(written < 9, "there is room for 8 MiB");
        };
        assert!(written >= 6, "{written} MiB");
        assert!(matches!(error.kind(), ScsiErrorKind::NoSpace), "{error}");
        let core = error.into_core("write_at", &VolumeName::new("a").expect("a name"));
        assert_eq!(core.kind(), ErrorKind::NoSpace);
        assert!(core.get("help").is_some(), "{core}");

        let zero = unit.zero(None, 20 * mib, 4 * mib, false).await;
        let error = zero.expect_err("zeros need space too");
        assert!(matches!(error.kind(), ScsiErrorKind::NoSpace), "{error}");
        unit.flush(None).await.expect("what was written is kept");
        for part in 0..written {
            let (read, _) = unit.read(None, part * mib, mib as u32).await.expect("read");
            assert!(read == data, "MiB {part}");
        }
        unit.unmap(None, &[(0, 2 * mib)]).await.expect("unmapped");
        unit.write(None, 30 * mib, data.clone())
            .await
            .expect("there is room again");
        let (read, _) = unit.read(None, 30 * mib, mib as u32).await.expect("read");
        assert!(read == data);
    })
    .await;
}
