//! Pools without control: the logical units that a target has.

mod pool;
mod reservation;

pub use pool::LunPool;
