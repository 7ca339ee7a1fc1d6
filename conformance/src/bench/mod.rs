//! The benchmark of shims: their calls by several paths in turn, and what is said of the figures.

#![allow(dead_code, reason = "the paths and the reports that use it follow")]

mod record;
#[cfg(test)]
mod samples;
mod statistics;
