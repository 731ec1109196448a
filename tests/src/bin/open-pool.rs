//! Opens a directory pool, lists it, makes a volume, and prints how each went. For tests that must
//! not run as root, whom no file mode stops; started by `tests/bad_input.rs`.

use futures::TryStreamExt;
use volmux::nfs::{DirConfig, DirPool};
use volmux::{ByteSize, CreateOptions, Result, Volume};
use volmux_conformance::checked_name;

fn print<T>(step: &str, result: &Result<T>) {
    match result {
        Ok(_) => println!("{step} Ok"),
        Err(error) => println!("{step} {} {error}", error.kind().name()),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let root = std::env::args().nth(1).expect("usage: open-pool POOL");
    let opened = DirPool::open(DirConfig::new(root)).await;
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
