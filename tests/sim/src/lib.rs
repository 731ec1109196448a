//! Deterministic simulation of pools in object stores.
//!
//! A seed decides everything: what the programs do that use a pool, what becomes of their requests,
//! and when they are killed. The store ([`store`]) outlives them. What a volume may hold at any
//! time is computed beside ([`history`]) and compared with what is read ([`verify`]).

pub mod control;
pub mod data;
pub mod doubt;
pub mod faults;
pub mod history;
pub mod life;
pub mod model;
pub mod moved;
pub mod pattern;
pub mod rng;
pub mod runs;
pub mod seed;
pub mod shape;
pub mod sim;
pub mod store;
pub mod trace;
pub mod verify;
pub mod view;
pub mod world;
