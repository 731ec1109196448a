//! The suite on an array of tgt whose volumes are read and written by this transport.

use volmux::Registry;
use volmux::iscsi::IscsiBackend;
use volmux_conformance::{Expect, Storage, TgtStorage, conformance};
use volmux_iscsi_client_rs::ClientRs;

fn tgt() -> Box<dyn Storage> {
    let backend = IscsiBackend::new(volmux::stores()).with_transport(ClientRs);
    let registry = Registry::new().with(backend);
    Box::new(TgtStorage::opened_by(
        registry,
        "&transport=iscsi-client-rs",
    ))
}

conformance!(pool, tgt, Expect::TGT_XFS);
