//! Tasks while the plugin, containerd or their files are gone, and afterwards.

pub mod containerd_down;
pub mod full_state_dir;
pub mod gvisor;
pub mod hung_filesystems;
pub mod interrupted_calls;
pub mod lost_bundles;
pub mod orphans;
pub mod recover;
pub mod while_plugin_down;
