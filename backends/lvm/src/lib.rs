//! LVM pools: `lvm://group/pool`, thin volumes in a thin pool, and `lvm://group`, thick volumes in a
//! volume group.

pub(crate) mod aligned;
pub(crate) mod dm;
pub(crate) mod ring;
pub(crate) mod turns;
