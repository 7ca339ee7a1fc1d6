//! The options `memory_swap`, `memory_swappiness` and `memory_reservation`, as Nomad's podman driver has them.

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
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![
        ("memory_swap", optional("memory_swap", "string")),
        ("memory_swappiness", optional("memory_swappiness", "number")),
        ("memory_reservation", optional("memory_reservation", "string")),
    ]
}

impl Raw {
    pub(super) fn decode(self) -> Result<MemoryLimits, ConfigError> {
        let Self { memory_swap, memory_swappiness, memory_reservation } = self;
        let swap = |text: String| match text.as_str() {
            "-1" => Ok(Swap::Unlimited),
            _ => amount("memory_swap", text).map(Swap::TotalBytes),
        };
        let swappiness =
            memory_swappiness.map(|number| number.within("memory_swappiness", 0, 100)).transpose()?;
        let given = |text: &String| !text.is_empty();
        Ok(MemoryLimits {
            swap: memory_swap.filter(given).map(swap).transpose()?,
            swappiness: swappiness.and_then(|swappiness| u64::try_from(swappiness).ok()),
            reservation_bytes: memory_reservation
                .filter(given)
                .map(|text| amount("memory_reservation", text))
                .transpose()?,
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
        });
        let memory = decode(&options).unwrap().limits.memory;
        let wanted = MemoryLimits {
            swap: Some(Swap::TotalBytes(180 << 20)),
            swappiness: Some(60),
            reservation_bytes: Some(100 << 20),
        };
        assert_eq!(memory, wanted);
        let unlimited = decode(&json!({"image": "x", "memory_swap": "-1"})).unwrap().limits.memory;
        assert_eq!(unlimited.swap, Some(Swap::Unlimited));
        refusal("memory_swap", json!("lots"));
        refusal("memory_swap", json!("0"));
        refusal("memory_swappiness", json!(101));
        refusal("memory_reservation", json!("-1"));
    }
}
