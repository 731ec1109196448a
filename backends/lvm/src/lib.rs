//! LVM pools: `lvm://group/pool`, thin volumes in a thin pool, and `lvm://group`, thick volumes in a
//! volume group.
//!
//! A volume is a logical volume of the same name; all else that volmux knows of it stands in tags of
//! that logical volume (`tags`), so it survives whatever is done to it by hand. `group` runs lvm2's
//! commands and keeps what they report as long as it is true; `disk` is the data path.

pub(crate) mod aligned;
pub(crate) mod disk;
pub(crate) mod dm;
pub(crate) mod limits;
pub(crate) mod opened;
pub(crate) mod ring;
pub(crate) mod trouble;
pub(crate) mod turns;
