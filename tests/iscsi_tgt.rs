//! The suite on an array of tgt over a directory on XFS.
use volmux_conformance::{Expect, Storage, TgtStorage, conformance};

fn tgt() -> Box<dyn Storage> {
    Box::new(TgtStorage::new())
}

conformance!(pool, tgt, Expect::TGT_XFS);
