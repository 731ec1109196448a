//! The suite on a directory pool on XFS, which shares blocks between files.
use volmux_conformance::scratch::LoopFs;
use volmux_conformance::{DirStorage, Expect, Storage, conformance};

fn xfs() -> Box<dyn Storage> {
    Box::new(DirStorage::new(LoopFs::xfs(512 << 20)))
}

conformance!(pool, xfs, Expect::DIR_REFLINK);
