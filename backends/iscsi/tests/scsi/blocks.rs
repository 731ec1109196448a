//! Zeroing, giving back, asking, comparing.

use volmux_iscsi::scsi::{BlockState, LbaStatus};

use crate::disk::{self, Act, COMPARE_AND_WRITE, Disk, WRITE_SAME, sense};
use crate::{content, kind};

/// Flags of the logical block provisioning page.
fn provisioning(disk: &Disk, flags: u8) {
    disk.state().pages.insert(0xb2, vec![0, flags, 2, 0]);
}

fn filled(disk: &Disk) {
    let mut state = disk.state();
    state.data.fill(7);
    state.mapped.fill(true);
}

/// The second bytes of the commands that came.
fn flags(disk: &Disk) -> Vec<u8> {
    disk.seen().iter().map(|seen| seen.cdb[1]).collect()
}

#[tokio::test]
async fn zeros_unmap_only_where_that_reads_as_zeros() {
    const UNMAP: u8 = 8;
    for (promised, may_unmap, expected) in [
        (0x44, true, UNMAP),
        (0x44, false, 0),
        (0x40, true, 0),
        (0x04, true, 0),
        (0x48, true, 0),
    ] {
        let disk = Disk::new(64, 512);
        provisioning(&disk, promised);
        filled(&disk);
        let unit = disk.open().await;
        unit.zero(None, 8, 16, may_unmap).await.expect("zeroed");
        assert_eq!(flags(&disk), [expected], "{promised:#x} {may_unmap}");
        let state = disk.state();
        for (at, byte) in state.data.iter().enumerate() {
            assert_eq!(*byte, if (8..24).contains(&(at / 512)) { 0 } else { 7 });
        }
        assert_eq!(state.mapped[8], expected == 0);
    }
}

#[tokio::test]
async fn no_data_are_left_out_only_if_the_unit_knows_that() {
    for (usage, flag, written) in [(Some(0x19), 1, 0), (Some(0x18), 0, 512), (None, 0, 512)] {
        let disk = Disk::new(64, 512);
        disk.state().same_usage = usage;
        filled(&disk);
        let unit = disk.open().await;
        unit.zero(None, 0, 64, false).await.expect("zeroed");
        let seen = disk.seen();
        assert_eq!((seen[0].cdb[1], seen[0].written), (flag, written));
        assert!(disk.state().data.iter().all(|byte| *byte == 0));
    }
}

#[tokio::test]
async fn a_broken_promise_to_unmap_is_lived_with() {
    for code in [0x2400, 0x2000] {
        let disk = Disk::new(64, 512);
        let unit = disk.open().await;
        filled(&disk);
        disk.on(WRITE_SAME, 1, Act::Sense(sense(5, code)));
        unit.zero(None, 0, 8, true).await.expect("zeroed");
        unit.zero(None, 8, 8, true).await.expect("zeroed");
        assert_eq!(flags(&disk), [8, 0, 0], "it is not tried again");
        assert!(disk.state().data[..16 * 512].iter().all(|byte| *byte == 0));
    }
}

#[tokio::test]
async fn without_write_same_zeros_are_unsupported() {
    let disk = Disk::new(64, 512);
    disk.state().without.insert(WRITE_SAME);
    let unit = disk.open().await;
    filled(&disk);
    for may_unmap in [true, false] {
        assert!(kind(unit.zero(None, 0, 8, may_unmap).await).contains("Unsupported"));
    }
    assert!(disk.seen().is_empty(), "it said so");
    // That it said nothing is found out once.
    let disk = Disk::new(64, 512);
    disk.state().without = [WRITE_SAME, disk::REPORT_OPERATIONS].into();
    let unit = disk.open().await;
    assert!(kind(unit.zero(None, 0, 8, false).await).contains("Unsupported"));
    assert!(kind(unit.zero(None, 0, 8, true).await).contains("Unsupported"));
    assert_eq!(disk.codes(), [WRITE_SAME]);
    assert!(disk.state().data.iter().all(|byte| *byte == 0));
    // Other failures are not that.
    let disk = Disk::new(64, 512);
    let unit = disk.open().await;
    disk.on(WRITE_SAME, 1, Act::Sense(sense(7, 0x2707)));
    assert_eq!(kind(unit.zero(None, 0, 8, true).await), "NoSpace");
    assert_eq!(disk.codes(), [WRITE_SAME]);
}

#[tokio::test]
async fn long_zeros_keep_the_limit() {
    let disk = Disk::new(2000, 512);
    disk.state().pages.get_mut(&0xb0).expect("the page")[32..40]
        .copy_from_slice(&600_u64.to_be_bytes());
    filled(&disk);
    let unit = disk.open().await;
    for may_unmap in [true, false] {
        unit.zero(None, 0, 2000, may_unmap).await.expect("zeroed");
        let lengths: Vec<u32> = disk.seen().iter().map(|seen| seen.range().1).collect();
        assert_eq!(lengths.iter().sum::<u32>(), 2000);
        assert!(lengths.iter().all(|length| *length <= 600));
    }
}

#[tokio::test]
async fn units_that_cannot_unmap_are_not_asked_to() {
    let no_blocks = |disk: &Disk| disk.state().pages.get_mut(&0xb0).expect("it")[16..20].fill(0);
    let no_ranges = |disk: &Disk| disk.state().pages.get_mut(&0xb0).expect("it")[20..24].fill(0);
    let no_unmap = |disk: &Disk| provisioning(disk, 0x44);
    for spoil in [&no_blocks as &dyn Fn(&Disk), &no_ranges, &no_unmap] {
        let disk = Disk::new(64, 512);
        spoil(&disk);
        let unit = disk.open().await;
        assert!(!unit.can_unmap());
        assert!(kind(unit.unmap(None, &[(0, 8)]).await).contains("Unsupported"));
        assert!(disk.seen().is_empty());
    }
}

#[tokio::test]
async fn the_state_of_blocks_is_told_from_where_it_was_asked() {
    let disk = Disk::new(3000, 512);
    disk.state().mapped[10..1500].fill(true);
    let unit = disk.open().await;
    let range = |lba, blocks, state| LbaStatus { lba, blocks, state };
    let (ranges, nexus) = unit.lba_status(None, 5).await.expect("ranges");
    let expected = [
        range(5, 5, BlockState::Deallocated),
        range(10, 995, BlockState::Mapped),
    ];
    assert_eq!((&ranges[..], nexus), (&expected[..], 1));
    let (ranges, _) = unit.lba_status(None, 2999).await.expect("ranges");
    assert_eq!(ranges, [range(2999, 1, BlockState::Deallocated)]);
    // It answers a question about another block.
    let mut other = vec![
        0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 50, 0, 0, 0, 9, 1, 0, 0, 0,
    ];
    disk.on(disk::SERVICE_IN, 1, Act::Data(other.clone().into()));
    assert!(kind(unit.lba_status(None, 5).await).contains("Malformed"));
    // More than there is.
    other[16..20].fill(0xff);
    disk.on(disk::SERVICE_IN, 1, Act::Data(other.into()));
    let (ranges, _) = unit.lba_status(None, 60).await.expect("ranges");
    assert_eq!(ranges, [range(60, 2940, BlockState::Deallocated)]);
    for code in [0x2000, 0x2400] {
        disk.on(disk::SERVICE_IN, 1, Act::Sense(sense(5, code)));
        assert!(kind(unit.lba_status(None, 0).await).contains("Unsupported"));
    }
}

#[tokio::test]
async fn blocks_are_written_if_they_hold_what_is_expected() {
    for block in [512, 4096] {
        let disk = Disk::new(64, block);
        let unit = disk.open().await;
        let [zeros, one, two] = [
            vec![0; 2 * block],
            content(1, 2 * block).to_vec(),
            content(2, 2 * block).to_vec(),
        ];
        unit.compare_and_write(None, 8, &zeros, &one)
            .await
            .expect("zeros are there");
        let mut almost = one.clone();
        almost[block + 100] ^= 1;
        let compared = unit.compare_and_write(None, 8, &almost, &two).await;
        assert_eq!(
            kind(compared),
            format!("Miscompare {{ offset: Some({}) }}", block + 100)
        );
        assert_eq!(unit.read(None, 8, 2).await.expect("read").0, one);
        unit.compare_and_write(Some(1), 8, &one, &two)
            .await
            .expect("one is there");
        assert_eq!(unit.read(None, 8, 2).await.expect("read").0, two);
        disk.seen();
        let long = vec![0; 17 * block];
        assert!(kind(unit.compare_and_write(None, 0, &long, &long).await).contains("Unsupported"));
        assert!(disk.seen().is_empty());
    }
    let disk = Disk::new(64, 512);
    disk.state().without.insert(COMPARE_AND_WRITE);
    let unit = disk.open().await;
    let compared = unit.compare_and_write(None, 0, &[0; 512], &[1; 512]).await;
    assert!(
        kind(compared).contains("Unsupported"),
        "as tgt, which promises it"
    );
}
