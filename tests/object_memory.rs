//! The suite on object pools in memory: a plain one, and an encrypted one with journals.
use volmux_conformance::{Expect, ObjectStorage, Storage, conformance};

fn memory() -> Box<dyn Storage> {
    Box::new(ObjectStorage::in_memory())
}

fn sealed() -> Box<dyn Storage> {
    Box::new(ObjectStorage::in_memory().encrypted().journaled())
}

conformance!(plain, memory, Expect::OBJECT);
conformance!(journaled, sealed, Expect::OBJECT_JOURNALED);
