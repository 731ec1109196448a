//! The suite on LVM pools, thin and thick. In the lab: `make check-lab`.
use volmux_conformance::{Expect, LvmStorage, Storage, conformance};

fn thin_pool() -> Box<dyn Storage> {
    Box::new(LvmStorage::thin())
}

fn group() -> Box<dyn Storage> {
    Box::new(LvmStorage::thick())
}

conformance!(
    #[ignore = "needs device-mapper: tests/lab/run"]
    thin,
    thin_pool,
    Expect::LVM_THIN
);
conformance!(
    #[ignore = "needs device-mapper: tests/lab/run"]
    thick,
    group,
    Expect::LVM_THICK
);
