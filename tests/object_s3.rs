//! The suite on an object pool on S3, which SeaweedFS speaks here.
use volmux_conformance::servers::{OWNER, SEAWEED};
use volmux_conformance::{Expect, ObjectStorage, Storage, conformance};

fn seaweed() -> Box<dyn Storage> {
    Box::new(ObjectStorage::on(&SEAWEED, OWNER))
}

conformance!(pool, seaweed, Expect::OBJECT);
