//! The transport with a target inside the test, which does what tgtd does not: answers that are
//! allowed and seldom seen, and such that are not. It is the one that the workspace's own
//! initiator is tested with: it panics at requests that are not right.

#[path = "../../../initiator/tests/mock/connection.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod connection;
#[path = "../../../initiator/tests/mock/disk.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod disk;
#[path = "../../../initiator/tests/mock/negotiation.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod negotiation;
#[path = "../../../initiator/tests/mock/target.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod target;
#[path = "../../../initiator/tests/mock/wire.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod wire;

mod commands;
mod hostile;
mod support;
