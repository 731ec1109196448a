//! volmux: one storage layer for every hypervisor.
//!
//! This crate is what a program links: the core and all backends. Open a pool with
//! [`registry`]`().open(url)`.

pub use volmux_core::*;
pub use volmux_lvm as lvm;
pub use volmux_nfs as nfs;
pub use volmux_object as object;

/// A registry of every backend in this build.
pub fn registry() -> Registry {
    Registry::new()
        .with(memory::MemoryBackend)
        .with(lvm::LvmBackend)
        .with(nfs::DirBackend)
        .with(nfs::NfsBackend)
        .with(object::ObjectBackend)
}

/// Runs the examples of the README as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
