//! What an image is, without a network and without a daemon.

mod error;

pub(crate) use error::{Problem, Retry};
