//! The suite on arrays of LIO, over LVM thin pools and over directories on XFS.
use volmux_conformance::{Expect, LioStorage, Storage, conformance};

fn over_lvm() -> Box<dyn Storage> {
    Box::new(LioStorage::lvm_thin())
}

fn over_xfs() -> Box<dyn Storage> {
    Box::new(LioStorage::xfs())
}

conformance!(
    #[ignore = "needs LIO and device-mapper: tests/lab/run"]
    lvm_thin,
    over_lvm,
    Expect::LIO_LVM
);
conformance!(
    #[ignore = "needs LIO: tests/lab/run"]
    xfs,
    over_xfs,
    Expect::LIO_XFS
);
