//! What an image is, without a network and without a daemon: names, digests, manifests, archives, and an image's own
//! user and account files, and its volumes. Knows neither registries nor containerd.

pub(crate) mod archive;
pub(crate) mod archive_index;
pub(crate) mod digest;
mod error;
pub(crate) mod go_json;
pub(crate) mod index_search;
pub(crate) mod manifest;
mod mount;
pub(crate) mod platform;
mod reference;
pub(crate) mod user;
pub(crate) mod volumes;

pub(crate) use error::{ImageError, Retry, too_large};
pub(crate) use reference::{Reference, ReferenceError, checked_digest};
