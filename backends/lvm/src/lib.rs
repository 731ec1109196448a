//! LVM pools: `lvm://group/pool`, thin volumes in a thin pool, and `lvm://group`, thick volumes in a
//! volume group.
//!
//! A volume is a logical volume of the same name; all else that volmux knows of it stands in tags of
//! that logical volume (`tags`), so it survives whatever is done to it by hand. `group` runs lvm2's
//! commands and keeps what they report as long as it is true.

mod command;
mod config;
mod dm;
mod group;
mod names;
mod report;
mod stamp;
mod tags;
mod view;

pub use config::LvmConfig;
