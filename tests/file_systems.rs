//! What an open volume of a directory pool does where file systems differ.

use std::sync::Arc;

use volmux::nfs::{DirConfig, DirPool};
use volmux::{
    BlockDevice, ByteRange, ByteSize, CreateOptions, ErrorKind, OpenOptions, ZeroOptions,
};
use volmux_conformance::scratch::LoopFs;
use volmux_conformance::{checked_name as n, pattern};

const MIB: u64 = 1 << 20;

/// Volume `a` of a pool on `fs`, full of the pattern 1.
async fn filled(fs: &LoopFs, options: CreateOptions) -> Arc<dyn BlockDevice> {
    let mut config = DirConfig::new(fs.path());
    config.init = true;
    let pool = DirPool::open(config).await.expect("open the pool");
    let made = pool.create_volume(&n("a"), options).await;
    let size = made.expect("create").virtual_size.bytes();
    let device = pool.open_volume(&n("a"), OpenOptions::read_write()).await;
    let device = device.expect("open");
    let data = pattern(1, size as usize);
    device.write_at(0, data).await.expect("write");
    device
}

fn on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(work)
}

#[test]
fn zeros_that_a_file_system_would_write_out_are_not_fast() {
    let fs = LoopFs::tmpfs(64 * MIB);
    on(async {
        let device = filled(&fs, CreateOptions::thin(ByteSize::new(MIB))).await;
        let data = pattern(1, MIB as usize);
        let range = ByteRange::new(5000, 100_000);
        let mut options = ZeroOptions {
            may_discard: false,
            fast_only: true,
        };
        let refused = device.write_zeroes(range, options).await;
        let error = refused.expect_err("tmpfs has no FALLOC_FL_ZERO_RANGE");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        assert_eq!(error.get("volume"), Some("a"));
        assert_eq!(device.read_at(0, MIB as usize).await.expect("read"), data);
        for (may_discard, fast_only) in [(true, true), (false, false)] {
            device.write_at(0, data.clone()).await.expect("write");
            options.may_discard = may_discard;
            options.fast_only = fast_only;
            let zeroed = device.write_zeroes(range, options).await;
            zeroed.expect("a hole, or zeros written out");
            let found = device.read_at(0, MIB as usize).await.expect("read");
            let (start, end) = (range.offset as usize, range.end() as usize);
            assert_eq!(found[..start], data[..start]);
            assert_eq!(found[start..end], vec![0; end - start]);
            assert_eq!(found[end..], data[end..]);
        }
    });
}
