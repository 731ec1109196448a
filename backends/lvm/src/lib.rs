//! LVM pools: `lvm://group/pool`, thin volumes in a thin pool, and `lvm://group`, thick volumes in a
//! volume group.

pub(crate) mod aligned;
pub(crate) mod disk;
pub(crate) mod dm;
pub(crate) mod limits;
pub(crate) mod metadata;
pub(crate) mod opened;
pub(crate) mod reserved;
pub(crate) mod ring;
pub(crate) mod thin_xml;
pub(crate) mod trouble;
pub(crate) mod turns;

#[cfg(test)]
mod lab;
