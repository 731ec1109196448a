//! Pools in object stores.
