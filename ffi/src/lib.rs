//! The C library of volmux. Its manual is `README.md`, its interface `include/volmux.h`, which is
//! made from this crate.
//!
//! Every export is a thin layer over [`volmux::blocking`]: it checks its arguments, calls, and
//! turns what comes back into handles. `guard::call` is around each of them.

#![allow(
    non_camel_case_types,
    reason = "the names of types and constants are those that C programs see"
)]
#![allow(
    clippy::missing_safety_doc,
    reason = "what callers owe is the same everywhere and stands in README.md; here it would be in the header"
)]

mod args;
mod attach;
mod audit;
mod completion;
mod control;
mod device;
mod enums;
mod error;
mod export;
mod extents;
mod group;
mod guard;
mod hypervisor;
mod operations;
mod plain;
mod pool;
mod space;
mod status;
#[cfg(test)]
mod tests;
mod text;
mod volume;
mod volumes;

pub use attach::*;
pub use audit::*;
pub use completion::*;
pub use control::*;
pub use device::*;
pub use enums::*;
pub use error::*;
pub use export::*;
pub use extents::*;
pub use group::*;
pub use hypervisor::*;
pub use operations::*;
pub use plain::VMX_NONE;
pub use pool::*;
pub use space::*;
pub use status::*;
pub use text::*;
pub use volume::*;
pub use volumes::*;
