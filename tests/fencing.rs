//! Processes that take a volume of an object pool from each other: the one before is fenced, and
//! nothing that it was told is flushed is lost.

mod writer;

use volmux::{ByteSize, CreateOptions};
use volmux_conformance::checked_name;
use writer::{BLOCK, BLOCKS, Writer, check};

const WRITERS: u64 = 5;

#[test]
fn writers_in_other_processes_are_fenced_and_lose_nothing_that_was_flushed() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("file+object://{}", directory.path().display());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let pool = volmux::registry().open(&url).await.expect("the pool opens");
        let size = ByteSize::new(WRITERS * BLOCKS * BLOCK);
        let name = checked_name("shared");
        let made = pool.create_volume(&name, CreateOptions::thin(size));
        made.await.expect("create");
    });

    let mut flushed = Vec::new();
    let mut writer = Writer::start(&url, 0);
    for next in 1..WRITERS {
        writer.until_flushed(10);
        let before = writer;
        writer = if next % 2 == 1 {
            // Both run; the one before goes on until it is told.
            let after = Writer::start(&url, next);
            flushed.push(before.until_fenced());
            after
        } else {
            flushed.push(before.kill());
            Writer::start(&url, next)
        };
    }
    writer.until_flushed(10);
    flushed.push(writer.kill());
    runtime.block_on(check(&url, &flushed));
}
