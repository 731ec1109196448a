//! Opens a pool, a directory or a URL, lists it, makes a volume, and prints how each went. For tests
//! that must not run as root, whom no file mode stops; started by `tests/bad_input.rs` and
//! `tests/lvm_bad.rs`.

use std::sync::Arc;

use futures::TryStreamExt;
use volmux::nfs::{DirConfig, DirPool};
use volmux::{ByteSize, CreateOptions, Pool, Result, Volume};
use volmux_conformance::checked_name;

fn print<T>(step: &str, result: &Result<T>) {
    match result {
        Ok(_) => println!("{step} Ok"),
        Err(error) => println!("{step} {} {error}", error.kind().name()),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let place = std::env::args().nth(1).expect("usage: open-pool POOL");
    let opened: Result<Arc<dyn Pool>> = if place.contains("://") {
        volmux::registry().open(&place).await
    } else {
        let opened = DirPool::open(DirConfig::new(place)).await;
        opened.map(|pool| pool as _)
    };
    print("open", &opened);
    let Ok(pool) = opened else {
        return;
    };
    let listed: Result<Vec<Volume>> = pool.list_volumes().try_collect().await;
    print("list", &listed);
    let options = CreateOptions::thin(ByteSize::mib(1));
    let created = pool.create_volume(&checked_name("new"), options).await;
    print("create", &created);
}
