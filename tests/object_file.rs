//! The suite on an object pool in a directory.
use volmux_conformance::{Expect, ObjectStorage, Storage, conformance};

fn directory() -> Box<dyn Storage> {
    Box::new(ObjectStorage::in_directory())
}

conformance!(pool, directory, Expect::OBJECT);
