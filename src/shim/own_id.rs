//! Ids of the shims that this plugin launches for no container yet.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// What the ids of this plugin have behind their prefix. The pid of a plugin may be that of an earlier one.
static PLUGIN: LazyLock<String> = LazyLock::new(|| {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("{:x}-{now:x}-", std::process::id())
});

/// Returns an id that no other shim has.
pub(super) fn new(prefix: &str) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!("{prefix}{}{:x}", *PLUGIN, NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Returns whether an id was made by this plugin.
pub(super) fn is_own(prefix: &str, id: &str) -> bool {
    id.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(&*PLUGIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinct_and_fit_a_socket() {
        let (one, other) = (new("spare-"), new("spare-"));
        assert_ne!(one, other);
        assert!(one.len() < 76, "{one}");
        assert!(is_own("spare-", &one) && !is_own("shared-", &one) && !is_own("spare-", "spare-1-2-3"));
    }
}
