//! The volmux command line.
fn main() {}
