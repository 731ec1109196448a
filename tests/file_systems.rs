//! What an open volume of a directory pool does where file systems differ.

use std::fs::File;
use std::io::Read;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use rustix::fs::Advice;
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

/// The volume's data file.
fn data_file(fs: &LoopFs) -> File {
    let mut files = std::fs::read_dir(fs.path().join("data")).expect("the data directory");
    let path = files.next().expect("a file").expect("a file").path();
    let file = File::options().read(true).write(true).open(path);
    file.expect("open the data file")
}

/// Makes the kernel forget the file's pages.
fn make_cold(file: &File) {
    file.sync_all().expect("sync");
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed).expect("fadvise");
}

fn is_ready<T>(work: impl Future<Output = T>) -> bool {
    let work = pin!(work);
    let mut context = Context::from_waker(Waker::noop());
    work.poll(&mut context).is_ready()
}

/// Reads and writes answered from memory, by the disk, and by both.
async fn reads_and_writes(fs: &LoopFs) {
    const SIZE: usize = MIB as usize;
    let device = filled(fs, CreateOptions::thin(ByteSize::new(MIB))).await;
    let file = data_file(fs);
    let mut data = pattern(1, SIZE).to_vec();
    let ranges = [
        (0, 1),
        (4095, 2),
        (8192, 4096),
        (10_000, 256 << 10),
        (10_000, (256 << 10) + 1),
        (SIZE - 5000, 5000),
        (SIZE, 0),
        (0, SIZE),
    ];
    for round in 0..3u64 {
        for (i, (offset, length)) in ranges.into_iter().enumerate() {
            let what = format!("{offset}+{length} in round {round}");
            let end = offset + length;
            make_cold(&file);
            if round == 1 {
                // The first half is in memory again.
                let half = device.read_at(0, offset + length / 2).await;
                half.expect("read the first half");
            }
            let found = device.read_at(offset as u64, length).await;
            assert_eq!(found.expect(&what), data[offset..end], "read {what}");
            if round == 2 {
                make_cold(&file);
            }
            let new = pattern(10 * round + i as u64, length);
            let written = device.write_at(offset as u64, new.clone()).await;
            written.expect(&what);
            data[offset..end].copy_from_slice(&new);
            let found = device.read_at(offset as u64, length).await;
            assert_eq!(found.expect(&what), new, "read back {what}");
        }
    }
    let hole = ByteRange::new(4096, 500_000);
    device.discard(hole).await.expect("discard");
    data[4096..hole.end() as usize].fill(0);
    for _ in 0..2 {
        make_cold(&file);
        let found = device.read_at(0, SIZE).await.expect("read");
        assert_eq!(found, data, "with a hole");
        let found = device.read_at(4000, 200_000).await.expect("read");
        assert_eq!(found, data[4000..204_000], "over the edge of a hole");
    }
    device.flush().await.expect("flush");
    drop(device);
    let mut found = Vec::new();
    (&file).read_to_end(&mut found).expect("read the file");
    assert!(found == data, "the data file");
}

#[test]
fn ext4_reads_and_writes() {
    let fs = LoopFs::ext4(64 * MIB);
    on(reads_and_writes(&fs));
}

#[test]
fn xfs_reads_and_writes() {
    let fs = LoopFs::xfs(300 * MIB);
    on(reads_and_writes(&fs));
}

#[test]
fn btrfs_reads_and_writes() {
    let fs = LoopFs::btrfs(128 * MIB);
    on(reads_and_writes(&fs));
}

/// Where nothing can be tried without waiting, which the kernel says with EOPNOTSUPP.
#[test]
fn tmpfs_reads_and_writes() {
    let fs = LoopFs::tmpfs(64 * MIB);
    on(reads_and_writes(&fs));
}

#[test]
fn what_is_in_memory_is_read_without_waiting() {
    let (ext4, xfs) = (LoopFs::ext4(64 * MIB), LoopFs::xfs(300 * MIB));
    on(async {
        for fs in [ext4, xfs] {
            let device = filled(&fs, CreateOptions::thin(ByteSize::new(MIB))).await;
            // The kernel may have other plans with its memory once, but hardly each time.
            let read = (0..100).any(|_| is_ready(device.read_at(5000, 100_000)));
            assert!(read, "a request that is done when it is first looked at");
        }
    });
}

#[test]
fn xfs_takes_what_fits_into_memory_without_waiting() {
    let fs = LoopFs::xfs(300 * MIB);
    on(async {
        let device = filled(&fs, CreateOptions::thin(ByteSize::new(MIB))).await;
        // The first write within a tick of the clock waits, for it sets the file's time.
        for i in 0..1000 {
            let data = pattern(i, 4096);
            let ready = is_ready(device.write_at(8192, data.clone()));
            if ready {
                let found = device.read_at(8192, 4096).await.expect("read");
                assert_eq!(found, data);
                return;
            }
            device.write_at(0, data).await.expect("write");
        }
        panic!("each one of a thousand writes had to wait");
    });
}

#[test]
fn a_data_file_that_was_cut_off_is_told_wherever_it_is_read() {
    let (ext4, tmpfs) = (LoopFs::ext4(64 * MIB), LoopFs::tmpfs(64 * MIB));
    on(async {
        for fs in [ext4, tmpfs] {
            let device = filled(&fs, CreateOptions::thin(ByteSize::new(MIB))).await;
            data_file(&fs).set_len(MIB / 2).expect("cut it off");
            for (offset, length) in [(MIB / 2 - 100, 200), (MIB / 2, 1), (0, MIB as usize)] {
                let read = device.read_at(offset, length).await;
                let error = read.expect_err("past the end of the file");
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
                assert_eq!(error.get("volume"), Some("a"));
            }
            let found = device.read_at(0, MIB as usize / 2).await;
            assert_eq!(
                found.expect("what is left"),
                pattern(1, MIB as usize)[..MIB as usize / 2]
            );
        }
    });
}
