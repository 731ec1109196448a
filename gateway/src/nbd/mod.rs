//! The NBD protocol, as the specification `doc/proto.md` of the NetworkBlockDevice project has it,
//! with its extension for extended headers.

pub(crate) mod extents;
pub(crate) mod handle;
pub(crate) mod handshake;
pub(crate) mod input;
pub(crate) mod output;
pub(crate) mod patience;
pub(crate) mod request;
pub(crate) mod transmission;
pub(crate) mod wire;
