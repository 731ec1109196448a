//! LVM pools: `lvm://group/pool`, thin volumes in a thin pool, and `lvm://group`, thick volumes in a
//! volume group.
//!
//! A volume is a logical volume of the same name; all else that volmux knows of it stands in tags of
//! that logical volume (`tags`), so it survives whatever is done to it by hand. `group` keeps what lvm2
//! reports as long as it is true, `change` runs the commands that change it; `disk` is the data path.

mod active;
mod aligned;
mod attach;
mod audit;
mod change;
mod command;
mod config;
mod device;
mod disk;
mod dm;
mod duplicate;
mod extents;
mod group;
mod growth;
mod lifecycle;
mod limits;
mod locks;
mod metadata;
mod names;
mod open;
mod opened;
mod orphans;
mod pending;
mod pool;
mod raw;
mod report;
mod reserved;
mod revert;
mod ring;
mod stamp;
mod tags;
mod thick;
mod thin_xml;
mod trouble;
mod turns;
mod usage;
mod users;
mod view;

#[cfg(any(test, fuzzing))]
pub mod fuzz;
#[cfg(test)]
mod lab;

pub use config::LvmConfig;
pub use pool::{LvmBackend, LvmPool};
