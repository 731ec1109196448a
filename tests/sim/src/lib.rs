//! Deterministic simulation of pools in object stores.

pub mod faults;
pub mod pattern;
pub mod rng;
pub mod store;
pub mod trace;
pub mod view;
