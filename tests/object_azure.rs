//! The suite on an object pool on Azure Blob Storage, for which Azurite stands in.
use volmux_conformance::servers::{AZURE, AZURITE};
use volmux_conformance::{Expect, ObjectStorage, Storage, conformance};

fn azurite() -> Box<dyn Storage> {
    Box::new(ObjectStorage::on(&AZURITE, AZURE))
}

conformance!(pool, azurite, Expect::OBJECT);
