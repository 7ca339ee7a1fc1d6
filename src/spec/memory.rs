//! A task's memory and swap.

use nomad_proto::driver as pb;
use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxMemory, LinuxMemoryBuilder};

use super::host_facts::HostFacts;
use crate::config::{MemoryLimits, Swap};

const MIB: i64 = 1024 * 1024;
const UNLIMITED: i64 = -1;

/// Returns the hard limit of a task's memory in bytes: the larger of `memory_max` and the job's `memory_hard_limit` if
/// one is set, and then `memory` is the reservation, else `memory`. `None` is no limit.
pub(super) fn hard_limit(requested: &MemoryLimits, allotted: pb::AllocatedMemoryResources) -> Option<i64> {
    let pb::AllocatedMemoryResources { memory_mb, memory_max_mb } = allotted;
    let mib = match (requested.hard_limit_mib, memory_max_mb) {
        (None, 0) => memory_mb,
        (Some(hard), max) if max >= 0 => hard.max(max),
        (_, max) => max,
    };
    (mib > 0).then(|| bytes(mib))
}

/// Converts MiB to bytes. Saturates instead of overflowing.
fn bytes(mib: i64) -> i64 {
    mib.saturating_mul(MIB)
}

/// Returns the limits of memory and swap. A task gets swap only if its job asks for it, or if the operator's kernel
/// can't limit swap.
pub(super) fn limits(
    requested: &MemoryLimits,
    allotted: pb::AllocatedMemoryResources,
    host: &HostFacts,
) -> Result<LinuxMemory, OciSpecError> {
    let MemoryLimits { swap, swappiness, reservation_bytes, hard_limit_mib } = requested;
    let pb::AllocatedMemoryResources { memory_mb, memory_max_mb } = allotted;
    let mut limits = LinuxMemoryBuilder::default();
    let is_oversubscribed = memory_max_mb != 0 || hard_limit_mib.is_some();
    if memory_mb != 0 || is_oversubscribed {
        let limit = hard_limit(requested, allotted).unwrap_or(UNLIMITED);
        limits = limits.limit(limit);
        if host.can_limit_swap {
            limits = limits.swap(match swap {
                None => limit,
                Some(Swap::Unlimited) => UNLIMITED,
                Some(Swap::TotalBytes(bytes)) => *bytes,
            });
        }
    }
    let kept = (is_oversubscribed && memory_mb > 0).then(|| bytes(memory_mb));
    if let Some(bytes) = reservation_bytes.or(kept) {
        limits = limits.reservation(bytes);
    }
    if let Some(swappiness) = *swappiness {
        limits = limits.swappiness(swappiness);
    }
    limits.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(requested: &MemoryLimits, memory_mb: i64, memory_max_mb: i64) -> LinuxMemory {
        let host = HostFacts { can_limit_swap: true, ..HostFacts::default() };
        limits(requested, pb::AllocatedMemoryResources { memory_mb, memory_max_mb }, &host).unwrap()
    }

    #[test]
    fn memory_max_is_the_limit_and_memory_the_reservation() {
        let memory = |memory_mb, memory_max_mb| {
            let limits = made(&MemoryLimits::default(), memory_mb, memory_max_mb);
            (limits.limit(), limits.reservation(), limits.swap())
        };
        assert_eq!(memory(256, 0), (Some(256 * MIB), None, Some(256 * MIB)));
        assert_eq!(memory(256, 512), (Some(512 * MIB), Some(256 * MIB), Some(512 * MIB)));
        assert_eq!(memory(256, -1), (Some(-1), Some(256 * MIB), Some(-1)));
        assert_eq!(memory(0, 0), (None, None, None));
        // These values exceed 63 bits in bytes; Nomad's scheduler bounds neither.
        assert_eq!(memory(256, 8_800_000_000_000), (Some(i64::MAX), Some(256 * MIB), Some(i64::MAX)));
    }

    #[test]
    fn with_a_hard_limit_memory_is_the_reservation() {
        let memory = |hard, memory_mb, memory_max_mb| {
            let requested = MemoryLimits { hard_limit_mib: Some(hard), ..MemoryLimits::default() };
            let limits = made(&requested, memory_mb, memory_max_mb);
            (limits.limit(), limits.reservation(), limits.swap())
        };
        let limited = |mib: i64| (Some(mib * MIB), Some(256 * MIB), Some(mib * MIB));
        assert_eq!(memory(512, 256, 0), limited(512));
        assert_eq!(memory(512, 256, 300), limited(512));
        assert_eq!(memory(512, 256, 600), limited(600));
        assert_eq!(memory(512, 256, -1), (Some(-1), Some(256 * MIB), Some(-1)));
    }

    #[test]
    fn swap_and_reservation_options_override_the_defaults() {
        let requested = MemoryLimits {
            swap: Some(Swap::TotalBytes(300 * MIB)),
            swappiness: Some(10),
            reservation_bytes: Some(100 * MIB),
            hard_limit_mib: None,
        };
        let limits = made(&requested, 256, 0);
        assert_eq!((limits.swap(), limits.swappiness()), (Some(300 * MIB), Some(10)));
        assert_eq!(limits.reservation(), Some(100 * MIB));
        let unlimited = MemoryLimits { swap: Some(Swap::Unlimited), ..MemoryLimits::default() };
        assert_eq!(made(&unlimited, 256, 0).swap(), Some(UNLIMITED));
    }
}
