//! volmux: one storage layer for every hypervisor.
//!
//! This crate is what a program links: the core and all backends. Open a pool with
//! [`registry`]`().open(url)`.

pub use volmux_core::*;
pub use volmux_iscsi as iscsi;
pub use volmux_lvm as lvm;
pub use volmux_nfs as nfs;
pub use volmux_object as object;

/// A registry of every backend in this build.
pub fn registry() -> Registry {
    stores()
        .with(memory::MemoryBackend)
        .with(nfs::NfsBackend)
        .with(object::ObjectBackend)
        .with(iscsi::IscsiBackend::new(stores()))
}

/// The backends whose volumes an iSCSI target on the same host can show.
pub fn stores() -> Registry {
    Registry::new().with(lvm::LvmBackend).with(nfs::DirBackend)
}

/// Runs the examples of the README as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
