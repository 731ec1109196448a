//! Logical units on a disk in memory that answers what a test wants.

mod answers;
mod blocks;
mod data;
mod disk;
mod model;
mod pieces;
mod probe;
mod retries;

use bytes::Bytes;
use volmux_iscsi::scsi::{Illegal, ScsiError, ScsiErrorKind};

/// Bytes that differ by place and seed.
fn content(seed: u8, length: usize) -> Bytes {
    (0..length)
        .map(|at| {
            (at as u64)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .to_be_bytes()[1]
                ^ seed
        })
        .collect()
}

/// The name of the error's kind, with what it holds.
fn kind<T: std::fmt::Debug>(done: Result<T, ScsiError>) -> String {
    format!("{:?}", done.expect_err("it can't go well").kind())
}

fn illegal(illegal: Illegal) -> String {
    format!("{:?}", ScsiErrorKind::IllegalRequest(illegal))
}
