//! The suite on an object pool in memory.
use volmux_conformance::{Expect, ObjectStorage, Storage, conformance};

fn memory() -> Box<dyn Storage> {
    Box::new(ObjectStorage::in_memory())
}

conformance!(pool, memory, Expect::OBJECT);
