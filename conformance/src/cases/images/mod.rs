//! Images: pulls, archives, garbage collection, snapshotters, volumes, and those that are odd or that nobody honest made.

pub mod forms;
pub mod hostile_images;
pub mod hostile_layers;
pub mod image_gc;
pub mod image_volumes;
pub mod load;
pub mod odd_documents;
pub mod pull_policy;
pub mod pulls;
pub mod remote_snapshotters;
pub mod snapshotters;
