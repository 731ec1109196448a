//! Processes that take a volume from each other: the one before is fenced, and nothing that it was
//! told is flushed is lost.

mod writer;

use std::path::Path;

use volmux::{AuditOptions, ByteSize, CreateOptions};
use volmux_conformance::chains::Chains;
use volmux_conformance::checked_name;
use volmux_conformance::scratch::LoopFs;
use writer::{BLOCK, BLOCKS, Writer, check};

const WRITERS: u64 = 5;

#[test]
fn a_volume_of_an_object_pool_goes_from_writer_to_writer() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("file+object://{}", directory.path().display());
    take_over_again_and_again(&url, false);
}

#[test]
fn a_volume_goes_from_writer_to_writer_where_files_share_blocks() {
    in_directory(&LoopFs::xfs(320 << 20), false);
}

#[test]
fn a_volume_goes_from_writer_to_writer_where_files_do_not() {
    in_directory(&LoopFs::ext4(256 << 20), false);
}

#[test]
fn a_chain_goes_from_writer_to_writer() {
    in_directory(&LoopFs::ext4(256 << 20), true);
}

fn in_directory(fs: &LoopFs, chain: bool) {
    let root = fs.path().join("pool");
    std::fs::create_dir(&root).expect("a directory");
    take_over_again_and_again(&format!("dir://{}", root.display()), chain);
    assert_whole(&root, chain);
}

/// One data file for each volume, or two where there is a snapshot, and no damage.
fn assert_whole(root: &Path, chain: bool) {
    let chains = Chains::of(root);
    assert_eq!(chains.files, chains.needed);
    assert_eq!(chains.files.len(), 1 + usize::from(chain));
    chains.check();
}

fn take_over_again_and_again(url: &str, chain: bool) {
    // Whose threads see what is mounted here.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().expect("a runtime");
    let name = checked_name("shared");
    runtime.block_on(async {
        let pool = volmux::registry().open(url).await.expect("the pool opens");
        let size = ByteSize::new(WRITERS * BLOCKS * BLOCK);
        let made = pool.create_volume(&name, CreateOptions::thin(size));
        made.await.expect("create");
        if chain {
            let snapshot = checked_name("before");
            let made = pool.snapshot_volume(&name, &snapshot, Default::default());
            made.await.expect("snapshot");
        }
    });

    let mut flushed = Vec::new();
    let mut writer = Writer::start(url, 0);
    for next in 1..WRITERS {
        writer.until_flushed(10);
        let before = writer;
        writer = if next % 2 == 1 {
            // Both run; the one before goes on until it is told.
            let after = Writer::start(url, next);
            flushed.push(before.until_fenced());
            after
        } else {
            flushed.push(before.kill());
            Writer::start(url, next)
        };
    }
    writer.until_flushed(10);
    flushed.push(writer.kill());
    runtime.block_on(async {
        check(url, &flushed).await;
        let pool = volmux::registry().open(url).await.expect("the pool opens");
        let report = pool.audit(AuditOptions { repair: true }).await;
        assert!(report.expect("audit").is_clean());
    });
}
