//! Blocks that are given back.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::{MIB, random, scsi, within};
use volmux_iscsi_server::{Server, Setup};

/// Bytes that the LUN's file occupies.
fn occupied(server: &Server) -> u64 {
    let data = fs::metadata(server.file(1, 1)).expect("the file");
    512 * data.blocks()
}

#[tokio::test]
async fn unmap_and_write_same_free_blocks() {
    for block in [512, 4096] {
        let server = Setup::disk(32 * MIB, block).start();
        within(frees(&server, block)).await;
    }
}

async fn frees(server: &Server, block: u32) {
    let mib = (MIB / u64::from(block)) as u32;
    let at = |mebibyte: u64| mebibyte * u64::from(mib);
    let session = scsi::login(server.options(1)).await;
    let content = random::pool(3, 8 * MIB as usize);
    for part in 0..8 {
        let from = (part * MIB) as usize;
        let data = content.slice(from..from + MIB as usize);
        scsi::good(&session, 1, scsi::write(at(part), data, block)).await;
    }
    scsi::good(&session, 1, scsi::synchronize_cache()).await;
    let full = occupied(server);
    assert!((8 * MIB..9 * MIB).contains(&full), "{full} bytes written");

    scsi::good(&session, 1, scsi::unmap(&[(at(1), mib), (at(5), 2 * mib)])).await;
    let unmapped = occupied(server);
    // A file system may need a little for the hole.
    let little = 64 << 10;
    assert!(
        unmapped <= full - 3 * MIB + little,
        "{full}, after UNMAP {unmapped}"
    );
    scsi::good(&session, 1, scsi::write_zeros(at(3), mib, block)).await;
    let zeroed = occupied(server);
    assert!(
        zeroed <= full - 4 * MIB + little,
        "{full}, after WRITE SAME {zeroed}"
    );

    for part in 0..8 {
        let data = scsi::good(&session, 1, scsi::read(at(part), mib, block)).await;
        let from = (part * MIB) as usize;
        match part {
            1 | 3 | 5 | 6 => assert!(data.iter().all(|byte| *byte == 0), "part {part}"),
            _ => assert!(data == content[from..from + MIB as usize], "part {part}"),
        }
    }
    let beyond = scsi::unmap(&[(at(31), 2 * mib)]);
    let reply = scsi::execute(&session, 1, beyond).await;
    assert_eq!(scsi::sense(&reply), Some((5, 0x21, 0)), "{reply:?}");
    scsi::good(&session, 1, scsi::unmap(&[])).await;
}
