//! Whether this machine has AppArmor.

use std::fs;

/// Returns whether the kernel has AppArmor enabled.
pub fn is_enabled() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|word| word.starts_with('Y'))
}
