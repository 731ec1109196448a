//! What the benchmarks share: samples, how they are printed, and running the rivals.
//!
//! Each benchmark prints lines that a person and a program can read:
//! - `ratio NAME VALUE`: ours over the rival's, medians of one interleaved run
//! - `count NAME VALUE`: something counted
//! - `info …`: everything else, for the reader

mod measure;
mod run;

pub use measure::{Samples, count, header, peak_rss_bytes, ratio};
pub use run::run;

/// `Result` with any error.
pub type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;
