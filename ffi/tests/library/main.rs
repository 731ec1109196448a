//! The library as C programs have it: what it exports, and programs that are built with it and run.

mod build;
mod consumer;
mod nbdkit;
mod programs;
mod symbols;
