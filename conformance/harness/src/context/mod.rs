//! The contexts of cases: of one against a plugin alone, and of those under a real agent.

pub mod agent;
mod case;

pub use case::CaseContext;
