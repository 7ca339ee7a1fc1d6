//! The plugin itself: its launch, fingerprint and input, and others beside it.

pub mod bad_input;
pub mod coexistence;
pub mod docker;
pub mod docker_words;
pub mod fingerprint;
pub mod launch;
pub mod leak_check;
pub mod two_plugins;
