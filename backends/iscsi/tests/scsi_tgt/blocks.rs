//! Blocks that are zeroed, given back, asked about, compared.

use volmux_iscsi::scsi::{BlockState, LbaStatus, LogicalUnit, ScsiErrorKind};
use volmux_iscsi_server::Setup;

use crate::{MIB, content, occupied, open, within};

/// A file system may need a little for a hole.
const LITTLE: u64 = 64 << 10;

/// The state of all blocks.
async fn statuses(unit: &LogicalUnit) -> Vec<LbaStatus> {
    let (mut all, mut next) = (Vec::new(), 0);
    while next < unit.capacity().blocks {
        let (ranges, _) = unit.lba_status(None, next).await.expect("a status");
        let last = ranges[ranges.len() - 1];
        next = last.lba + last.blocks;
        all.extend(ranges);
    }
    all
}

fn range(lba: u64, blocks: u64, state: BlockState) -> LbaStatus {
    LbaStatus { lba, blocks, state }
}

#[tokio::test]
async fn unmapped_and_zeroed_blocks_are_zeros_and_free() {
    use BlockState::{Deallocated, Mapped};
    for block in [512, 4096] {
        let server = Setup::disk(32 * MIB, block).start();
        within(async {
            let unit = open(&server).await;
            let mib = MIB / u64::from(block);
            let data = content(1, 8 * MIB);
            unit.write(None, 0, data.clone()).await.expect("written");
            unit.flush(None).await.expect("flushed");
            let full = occupied(&server);
            assert_eq!(
                statuses(&unit).await,
                [
                    range(0, 8 * mib, Mapped),
                    range(8 * mib, 24 * mib, Deallocated)
                ]
            );

            let ranges = [(mib, mib), (0, 0), (5 * mib, 2 * mib)];
            unit.unmap(None, &ranges).await.expect("unmapped");
            let unmapped = occupied(&server);
            assert!(
                unmapped <= full - 3 * MIB + LITTLE,
                "{full}, then {unmapped}"
            );
            unit.zero(None, 3 * mib, mib, true).await.expect("zeroed");
            let zeroed = occupied(&server);
            assert!(zeroed <= full - 4 * MIB + LITTLE, "{full}, then {zeroed}");
            // Written out as zeros, where nothing was before.
            unit.zero(None, 10 * mib, mib, false).await.expect("zeroed");
            unit.zero(None, 7 * mib + 1, 1, false)
                .await
                .expect("zeroed");
            assert_eq!(
                statuses(&unit).await,
                [
                    range(0, mib, Mapped),
                    range(mib, mib, Deallocated),
                    range(2 * mib, mib, Mapped),
                    range(3 * mib, mib, Deallocated),
                    range(4 * mib, mib, Mapped),
                    range(5 * mib, 2 * mib, Deallocated),
                    range(7 * mib, mib, Mapped),
                    range(8 * mib, 2 * mib, Deallocated),
                    range(10 * mib, mib, Mapped),
                    range(11 * mib, 21 * mib, Deallocated),
                ]
            );
            let (ranges, _) = unit.lba_status(None, 5 * mib + 1).await.expect("a status");
            assert_eq!(ranges[0], range(5 * mib + 1, 2 * mib - 1, Deallocated));

            let mut expected = data.to_vec();
            expected.resize(32 * MIB as usize, 0);
            for (from, length) in [(MIB, MIB), (3 * MIB, MIB), (5 * MIB, 2 * MIB)] {
                expected[from as usize..(from + length) as usize].fill(0);
            }
            let from = (7 * MIB) as usize + block as usize;
            expected[from..from + block as usize].fill(0);
            let (read, _) = unit.read(None, 0, (32 * mib) as u32).await.expect("read");
            assert!(read == expected);

            let beyond = unit.unmap(None, &[(0, 1), (31 * mib, 2 * mib)]).await;
            beyond.expect_err("beyond the end");
            unit.unmap(None, &[(0, 0)]).await.expect_err("no blocks");
            unit.zero(None, 32 * mib, 1, true)
                .await
                .expect_err("beyond the end");
            let (read, _) = unit.read(None, 0, mib as u32).await.expect("read");
            assert!(read == data[..MIB as usize]);
        })
        .await;
    }
}

/// tgt counts the bytes of a range in 32 bits.
#[tokio::test]
async fn four_gibibytes_are_zeroed_as_a_whole() {
    const GIB: u64 = 1 << 30;
    let server = Setup::disk(10 * GIB, 512).start();
    within(async {
        let unit = open(&server).await;
        let places = [0, 1, 4 * GIB - 4096, 4 * GIB, 5 * GIB, 9 * GIB];
        let places = places.map(|at| at / 512);
        for may_be_unmap in [false, true] {
            for lba in places {
                unit.write(None, lba, content(lba + 1, 4096))
                    .await
                    .expect("written");
            }
            let all = 10 * GIB / 512;
            match may_be_unmap {
                true => unit.unmap(None, &[(0, all)]).await.expect("unmapped"),
                false => unit.zero(None, 0, all, true).await.expect("zeroed"),
            };
            for lba in places {
                let (read, _) = unit.read(None, lba, 8).await.expect("read");
                assert!(read.iter().all(|byte| *byte == 0), "block {lba}");
            }
            assert!(occupied(&server) < MIB);
        }
    })
    .await;
}

/// tgt 1.0.85 tells of 128 blocks (VPD page B0h), but does not have the command.
#[tokio::test]
async fn compare_and_write_that_is_promised_and_not_there_is_unsupported() {
    let server = Setup::disk(MIB, 512).start();
    within(async {
        let unit = open(&server).await;
        assert_eq!(unit.max_compare_and_write(), 128);
        let (zeros, data) = (vec![0; 512], content(1, 512));
        let error = unit.compare_and_write(None, 0, &zeros, &data).await;
        let error = error.expect_err("there is no such command");
        assert!(
            matches!(error.kind(), ScsiErrorKind::Unsupported(_)),
            "{error}"
        );
        let (read, _) = unit.read(None, 0, 1).await.expect("read");
        assert_eq!(read, zeros);
    })
    .await;
}
