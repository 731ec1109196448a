//! The suite on pools in NFS exports: where the server clones, where it does not, and by old
//! versions of the protocol. In the lab: `make check-lab`.
use volmux_conformance::{Expect, NfsStorage, Storage, conformance};

fn clones() -> Box<dyn Storage> {
    Box::new(NfsStorage::new("xfs", "4.2"))
}

fn copies() -> Box<dyn Storage> {
    Box::new(NfsStorage::new("ext4", "4.2"))
}

fn version_4_0() -> Box<dyn Storage> {
    Box::new(NfsStorage::new("ext4", "4.0"))
}

fn version_3() -> Box<dyn Storage> {
    Box::new(NfsStorage::new("ext4", "3"))
}

conformance!(
    #[ignore = "needs the kernel's NFS server: tests/lab/run"]
    v42_xfs,
    clones,
    Expect::NFS_CLONE
);
conformance!(
    #[ignore = "needs the kernel's NFS server: tests/lab/run"]
    v42_ext4,
    copies,
    Expect::NFS_CHAIN
);
conformance!(
    #[ignore = "needs the kernel's NFS server: tests/lab/run"]
    v40_ext4,
    version_4_0,
    Expect::NFS_OLD
);
conformance!(
    #[ignore = "needs the kernel's NFS server: tests/lab/run"]
    v3_ext4,
    version_3,
    Expect::NFS_OLD
);
