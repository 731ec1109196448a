//! The suite on the reference backend.
use volmux_conformance::{Expect, MemoryStorage, Storage, conformance};

fn memory() -> Box<dyn Storage> {
    Box::new(MemoryStorage)
}

conformance!(pool, memory, Expect::MEMORY);
