//! Checks that the file system of the state directory has room for what a shim and a runtime write of one container.

use std::path::Path;

use nix::sys::statvfs::statvfs;

const LEAST_ROOM_BYTES: u64 = 64 * 1024;
const LEAST_FILES: u64 = 16;

/// Returns whether the file system of a directory lacks room for a few files of a few pages, or for a few more files.
/// Where that can't be told, it has room.
pub(super) async fn is_full(directory: &Path) -> bool {
    let directory = directory.to_owned();
    let look = move || {
        let found = statvfs(&directory).ok()?;
        let free_bytes = found.blocks_available().saturating_mul(found.fragment_size());
        // A file system without a limit, such as a tmpfs with size=0, reports 0 of everything.
        let has_no_room = found.blocks() > 0 && free_bytes < LEAST_ROOM_BYTES;
        Some(has_no_room || (found.files() > 0 && found.files_available() < LEAST_FILES))
    };
    tokio::task::spawn_blocking(look).await.ok().flatten().unwrap_or(false)
}
