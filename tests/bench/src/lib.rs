//! What the benchmarks share: samples, how they are printed, and running rivals,
//! servers and fio.
//!
//! Each benchmark prints lines that a person and a program can read:
//! - `ratio NAME VALUE`: ours over the rival's, medians of one interleaved run
//! - `count NAME VALUE`: something counted
//! - `info …`: everything else, for the reader

mod contest;
pub mod fio;
mod measure;
mod run;
mod server;

pub use contest::{Contender, contest};
pub use measure::{
    Figures, Median, Samples, count, header, peak_rss_bytes, ratio, ratio_of_turns, rss_bytes,
};
pub use run::run;
pub use server::Server;

/// `Result` with any error.
pub type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;
