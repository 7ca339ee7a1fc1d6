//! Garbage collection: removes what nobody needs any more, for as long as the plugin lives. Leftovers of containers
//! that are marked for it, containers that no agent knows, and images that no container uses.

mod images;
mod leftovers;
mod orphans;
mod remains;

pub(super) use images::ImageUses;
#[cfg(test)]
pub(super) use remains::{Remains, has_settled};
