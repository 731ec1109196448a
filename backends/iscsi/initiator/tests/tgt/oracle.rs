//! The tools of libiscsi see the same as this crate.

use std::process::{Command, Stdio};

use volmux_iscsi_initiator::discover;

use crate::{MIB, scsi, within};
use volmux_iscsi_server::Setup;

/// What a program says.
fn said(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    let output = command.args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}; run .ci/setup"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test]
async fn libiscsi_sees_the_same() {
    const SIZE: u64 = 64 * MIB;
    for block in [512, 4096] {
        let server = Setup::disk(SIZE, block).start();
        within(async {
            let session = scsi::login(server.options(1)).await;
            let found = discover(&server.options(1)).await.expect("targets");
            let (size, found_block) = scsi::capacity(&session).await;
            let serial = scsi::good(&session, 1, scsi::vital(0x80)).await;
            let serial = String::from_utf8(serial[4..].to_vec()).expect("text");
            let identity = scsi::good(&session, 1, scsi::inquiry(96)).await;
            session.logout().await.expect("logout");

            let portal = format!("iscsi://{}", server.portal());
            let unit = format!("{portal}/{}/1", found[0].name);
            let listed = said("iscsi-ls", &["--show-luns", &portal]);
            let target = format!("Target:{} Portal:{}\n", found[0].name, found[0].portals[0]);
            assert!(listed.contains(&target), "{listed}");
            // It rounds the address of the last block down.
            let megabytes = (size - u64::from(found_block)) / MIB;
            assert!(listed.contains(&format!("(Size:{megabytes}M)")), "{listed}");

            let read = said("iscsi-readcapacity16", &[&unit]);
            assert!(read.contains(&format!("Total size:{size}\n")), "{read}");
            let length = format!("LENGTH IN BYTES:{found_block}\n");
            assert!(read.contains(&length), "{read}");

            let inquired = said("iscsi-inq", &["--evpd=1", "--pagecode=128", &unit]);
            assert!(inquired.contains(&format!("[{serial}]")), "{inquired}");
            let inquired = said("iscsi-inq", &[&unit]);
            for (name, at) in [("Vendor", 8..16), ("Product", 16..32), ("Revision", 32..36)] {
                let text = String::from_utf8_lossy(&identity[at]);
                assert!(inquired.contains(&format!("{name}:{text}\n")), "{inquired}");
            }
        })
        .await;
    }
}
