//! A disk that loses writes: nothing is said to be safe that is not.

use bytes::Bytes;
use volmux::nfs::{DirConfig, DirPool};
use volmux::{ByteSize, CreateOptions, ErrorKind, OpenOptions, VolumeName};
use volmux_conformance::scratch::LoopFs;

const MIB: u64 = 1 << 20;

/// The kernel reports a lost write to one fsync and then forgets it, so a second flush would
/// succeed if volmux believed it.
#[test]
fn a_flush_that_failed_is_not_made_good_by_the_next_one() {
    let fs = LoopFs::ext4_on_a_failing_disk(128 * MIB, 24 * MIB);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let pool = DirPool::open(DirConfig::new(fs.path()))
            .await
            .expect("open");
        let disk = VolumeName::new("disk").expect("a good name");
        let options = CreateOptions::thin(ByteSize::mib(100));
        pool.create_volume(&disk, options).await.expect("create");
        let device = pool
            .open_volume(&disk, OpenOptions::read_write())
            .await
            .expect("open");
        device
            .write_at(0, Bytes::from(vec![1; 4096]))
            .await
            .expect("write");
        device.flush().await.expect("the disk still works");

        // The file system has room for this, so the writes go into the page cache.
        let data = Bytes::from(vec![2; MIB as usize]);
        for i in 1..60 {
            // Where the disk's fault is noticed early, the write itself fails: as good.
            if device.write_at(i * MIB, data.clone()).await.is_err() {
                break;
            }
        }
        let first = device.flush().await.expect_err("the disk lost writes");
        assert!(
            matches!(first.kind(), ErrorKind::Unavailable | ErrorKind::NoSpace),
            "{first:?}"
        );
        assert_eq!(first.get("volume"), Some("disk"));
        for _ in 0..3 {
            let again = device
                .flush()
                .await
                .expect_err("nothing has made them good");
            assert_eq!(again.kind(), ErrorKind::Unavailable);
            assert!(
                again
                    .get("reason")
                    .is_some_and(|r| r.contains("earlier flush")),
                "{again}"
            );
        }
    });
}
