//! The options `memory_swap`, `memory_swappiness` and `memory_reservation`, as Nomad's podman driver has them, and
//! `memory_hard_limit`, as its docker driver has it.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::optional;
use crate::config::number::Number;
use crate::config::size::size;
use crate::config::{ConfigError, value};

/// The options about a task's memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MemoryLimits {
    /// Limit of swap; `None` gives the task no swap.
    pub swap: Option<Swap>,
    pub swappiness: Option<u64>,
    /// Memory that the kernel leaves to the task while others want it, in bytes.
    pub reservation_bytes: Option<i64>,
    /// Limit of memory in MiB, with which Nomad's `memory` is the reservation.
    pub hard_limit_mib: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Swap {
    Unlimited,
    /// Maximum of memory and swap together, in bytes.
    TotalBytes(i64),
}

#[derive(Deserialize)]
pub(super) struct Raw {
    memory_swap: Option<String>,
    memory_swappiness: Option<Number>,
    memory_reservation: Option<String>,
    memory_hard_limit: Option<Number>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![
        ("memory_swap", optional("memory_swap", "string")),
        ("memory_swappiness", optional("memory_swappiness", "number")),
        ("memory_reservation", optional("memory_reservation", "string")),
        ("memory_hard_limit", optional("memory_hard_limit", "number")),
    ]
}

impl Raw {
    pub(super) fn decode(self) -> Result<MemoryLimits, ConfigError> {
        let Self { memory_swap, memory_swappiness, memory_reservation, memory_hard_limit } = self;
        let swap = |text: String| match text.as_str() {
            "-1" => Ok(Swap::Unlimited),
            _ => amount("memory_swap", text).map(Swap::TotalBytes),
        };
        let swappiness =
            memory_swappiness.map(|number| number.within("memory_swappiness", 0, 100)).transpose()?;
        let given = |text: &String| !text.is_empty();
        let hard_limit = memory_hard_limit.map(|number| number.within("memory_hard_limit", 0, i64::MAX));
        Ok(MemoryLimits {
            swap: memory_swap.filter(given).map(swap).transpose()?,
            swappiness: swappiness.and_then(|swappiness| u64::try_from(swappiness).ok()),
            reservation_bytes: memory_reservation
                .filter(given)
                .map(|text| amount("memory_reservation", text))
                .transpose()?,
            hard_limit_mib: hard_limit.transpose()?.filter(|mib| *mib > 0),
        })
    }
}

fn amount(option: &'static str, text: String) -> Result<i64, ConfigError> {
    let bytes = size(option, text.clone())?;
    match i64::try_from(bytes) {
        Ok(0) | Err(_) => Err(value(option, text, "it must be greater than 0 and less than 8 EiB")),
        Ok(bytes) => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::task::tests::{decode, refusal};

    #[test]
    fn memory_sizes_follow_docker() {
        let options = json!({
            "image": "x", "memory_swap": "180m", "memory_swappiness": 60, "memory_reservation": "100m",
            "memory_hard_limit": 160,
        });
        let memory = decode(&options).unwrap().limits.memory;
        let wanted = MemoryLimits {
            swap: Some(Swap::TotalBytes(180 << 20)),
            swappiness: Some(60),
            reservation_bytes: Some(100 << 20),
            hard_limit_mib: Some(160),
        };
        assert_eq!(memory, wanted);
        let unlimited = decode(&json!({"image": "x", "memory_swap": "-1"})).unwrap().limits.memory;
        assert_eq!(unlimited.swap, Some(Swap::Unlimited));
        refusal("memory_swap", json!("lots"));
        refusal("memory_swap", json!("0"));
        refusal("memory_swappiness", json!(101));
        refusal("memory_reservation", json!("-1"));
        let unset = decode(&json!({"image": "x", "memory_hard_limit": 0})).unwrap().limits.memory;
        assert_eq!(unset, MemoryLimits::default());
        refusal("memory_hard_limit", json!(-1));
        refusal("memory_hard_limit", json!(0.5));
    }
}
