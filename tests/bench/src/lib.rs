//! What the benchmarks share: samples and how they are printed, and scratch file systems.
//!
//! Each benchmark prints lines that a person and a program can read:
//! - `ratio NAME VALUE`: ours over the rival's, medians of one interleaved run
//! - `count NAME VALUE`: something counted
//! - `info …`: everything else, for the reader

mod measure;
mod scratch;

pub use measure::{Samples, count, header, peak_rss_bytes, ratio};
pub use scratch::{Result, Scratch, in_private_mounts, run};
