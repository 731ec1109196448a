//! The suite on object pools in memory: a plain one, an encrypted one with journals, and both again
//! with compression.
use volmux::object::Compression;
use volmux_conformance::{Expect, ObjectStorage, Storage, conformance};

fn memory() -> Box<dyn Storage> {
    Box::new(ObjectStorage::in_memory())
}

fn sealed() -> Box<dyn Storage> {
    Box::new(ObjectStorage::in_memory().encrypted().journaled())
}

fn compressed() -> Box<dyn Storage> {
    Box::new(ObjectStorage::in_memory().compressed(Compression::Lz4))
}

fn compressed_sealed() -> Box<dyn Storage> {
    let storage = ObjectStorage::in_memory().encrypted().journaled();
    Box::new(storage.compressed(Compression::Zstd))
}

conformance!(plain, memory, Expect::OBJECT);
conformance!(journaled, sealed, Expect::OBJECT_JOURNALED);
conformance!(compressed, compressed, Expect::OBJECT);
conformance!(
    compressed_sealed,
    compressed_sealed,
    Expect::OBJECT_JOURNALED
);
