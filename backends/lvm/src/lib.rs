//! LVM pools: `lvm://group/pool`, thin volumes in a thin pool, and `lvm://group`, thick volumes in a
//! volume group.
