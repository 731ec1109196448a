//! The suite on a directory pool on ext4, where snapshots and clones are chains of images.
use volmux_conformance::scratch::LoopFs;
use volmux_conformance::{DirStorage, Expect, Storage, conformance};

fn ext4() -> Box<dyn Storage> {
    Box::new(DirStorage::new(LoopFs::ext4(512 << 20)))
}

conformance!(pool, ext4, Expect::DIR_CHAIN);
