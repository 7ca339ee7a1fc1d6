//! Linux, wrapped: processes, namespaces, mounts, paths, descriptors, locks and limits, each as a small type or a few
//! functions that the other rooms can't misuse. Knows none of the other rooms: no tasks, containers or options.

pub(crate) mod async_fd;
pub(crate) mod blocking;
pub(crate) mod cgroup_spawn;
pub(crate) mod error_chain;
pub(crate) mod host_files;
pub(crate) mod host_path;
pub(crate) mod ip_network;
pub(crate) mod malloc;
pub(crate) mod mount_table;
pub(crate) mod netns;
pub(crate) mod open_files;
pub(crate) mod os_error;
pub(crate) mod pidfd;
pub(crate) mod process_end;
pub(crate) mod process_group;
pub(crate) mod procfs;
pub(crate) mod state_lock;
