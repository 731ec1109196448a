//! The suite on a directory pool on btrfs, which shares blocks between files.
use volmux_conformance::scratch::LoopFs;
use volmux_conformance::{DirStorage, Expect, Storage, conformance};

fn btrfs() -> Box<dyn Storage> {
    Box::new(DirStorage::new(LoopFs::btrfs(1 << 30)))
}

conformance!(pool, btrfs, Expect::DIR_REFLINK);
