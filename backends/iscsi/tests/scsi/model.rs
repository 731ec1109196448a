//! Random requests, held against what a plain array would hold.

use proptest::prelude::*;

use crate::content;
use crate::disk::Disk;

#[derive(Debug, Clone)]
enum Request {
    Read(u64, u32),
    Write(u64, u32, u8),
    Zero(u64, u64, bool),
    Unmap(Vec<(u64, u64)>),
}

const BLOCKS: u64 = 200;

fn range() -> impl Strategy<Value = (u64, u64)> {
    (0..BLOCKS).prop_flat_map(|lba| (Just(lba), 1..=BLOCKS - lba))
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        range().prop_map(|(lba, blocks)| Request::Read(lba, blocks as u32)),
        (range(), any::<u8>()).prop_map(|((lba, blocks), seed)| Request::Write(
            lba,
            blocks as u32,
            seed
        )),
        (range(), any::<bool>())
            .prop_map(|((lba, blocks), may_unmap)| Request::Zero(lba, blocks, may_unmap)),
        proptest::collection::vec(range(), 1..6).prop_map(Request::Unmap),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_request_touches_its_range_and_nothing_else(
        requests in proptest::collection::vec(request(), 1..20),
        (most, optimal, granularity) in (0_u32..40, 0_u32..40, 0_u16..12),
        (unmap_blocks, unmap_ranges, unmap_step) in (1_u32..60, 1_u32..5, 0_u32..12),
        (most_same, unmap_from) in (0_u64..50, 0_u32..20),
    ) {
        let disk = Disk::new(BLOCKS as usize, 512);
        {
            let mut state = disk.state();
            let limits = state.pages.get_mut(&0xb0).expect("the page");
            limits[2..4].copy_from_slice(&granularity.to_be_bytes());
            limits[4..8].copy_from_slice(&most.to_be_bytes());
            limits[8..12].copy_from_slice(&optimal.to_be_bytes());
            limits[16..20].copy_from_slice(&unmap_blocks.to_be_bytes());
            limits[20..24].copy_from_slice(&unmap_ranges.to_be_bytes());
            limits[24..28].copy_from_slice(&unmap_step.to_be_bytes());
            limits[28..32].copy_from_slice(&(unmap_from | 0x8000_0000).to_be_bytes());
            limits[32..40].copy_from_slice(&most_same.to_be_bytes());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(async {
            let unit = disk.open().await;
            let mut model = vec![0; BLOCKS as usize * 512];
            let bytes = |lba: u64, blocks: u64| lba as usize * 512..(lba + blocks) as usize * 512;
            for request in requests {
                match request {
                    Request::Read(lba, blocks) => {
                        let (read, _) = unit.read(None, lba, blocks).await.expect("read");
                        assert!(read == model[bytes(lba, blocks.into())]);
                    }
                    Request::Write(lba, blocks, seed) => {
                        let data = content(seed, blocks as usize * 512);
                        model[bytes(lba, blocks.into())].copy_from_slice(&data);
                        unit.write(Some(1), lba, data).await.expect("written");
                    }
                    Request::Zero(lba, blocks, may_unmap) => {
                        model[bytes(lba, blocks)].fill(0);
                        unit.zero(None, lba, blocks, may_unmap).await.expect("zeroed");
                    }
                    Request::Unmap(ranges) => {
                        for (lba, blocks) in &ranges {
                            model[bytes(*lba, *blocks)].fill(0);
                        }
                        unit.unmap(None, &ranges).await.expect("unmapped");
                    }
                }
                assert!(disk.state().data == model);
            }
            assert_eq!(disk.running().0, 0);
            assert!(disk.running().1 <= 8);
        });
    }
}
