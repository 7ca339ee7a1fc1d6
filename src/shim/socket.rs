//! The socket at which a shim listens.
//!
//! Source of the facts: containerd `runtime/v2/shim/util_unix.go` (1.x), `pkg/shim/util_unix.go` (2.x).

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Directory of the shims' sockets, which is compiled into them.
const DIRECTORY: &str = "/run/containerd/s";

/// Returns the path of the socket of a shim that was launched with these words.
pub(super) fn path(address: &str, namespace: &str, id: &str) -> PathBuf {
    let hash = Sha256::digest(format!("{address}/{namespace}/{id}"));
    let name: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    Path::new(DIRECTORY).join(name)
}
