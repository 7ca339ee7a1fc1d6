//! The plugin block's `gc { .. }`: garbage collection of images, containers and orphans. The names are those of Nomad's
//! docker driver, and two more.
//!
//! Source of the facts: hashicorp/nomad `drivers/docker/config.go`.

use std::time::Duration;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::{block, default, object, optional};
use crate::config::{ConfigError, duration, value};

const DEFAULT_IMAGE_DELAY: &str = "3m";
const DEFAULT_PERIOD: &str = "5m";
const DEFAULT_CREATION_GRACE: &str = "5m";

/// Settings of the garbage collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gc {
    pub images: ImageGc,
    /// `true` to remove a task's container with the task; otherwise its record and its files stay.
    pub container: bool,
    pub dangling_containers: DanglingContainers,
}

/// Garbage collection of images that no container is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageGc {
    /// Time that an unused image is kept. `None` keeps it for good.
    pub delay: Option<Duration>,
    /// Usage of containerd's disk in percent above which unused images are removed before their delay is over.
    pub disk_high_water: Option<u64>,
    /// Whether images that the driver has not pulled are removed, too.
    pub foreign_images: bool,
}

/// Removal of orphans: containers that Nomad doesn't know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DanglingContainers {
    pub enabled: bool,
    /// Dry run: orphans are logged, not removed.
    pub dry_run: bool,
    pub period: Duration,
    pub creation_grace: Duration,
}

#[derive(Default, Deserialize)]
pub(super) struct RawGc {
    image: Option<bool>,
    image_delay: Option<String>,
    container: Option<bool>,
    disk_high_water: Option<String>,
    foreign_images: Option<bool>,
    dangling_containers: Option<RawDanglingContainers>,
}

#[derive(Default, Deserialize)]
struct RawDanglingContainers {
    enabled: Option<bool>,
    dry_run: Option<bool>,
    period: Option<String>,
    creation_grace: Option<String>,
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

pub(super) fn schema() -> Spec {
    let dangling_containers = object([
        ("enabled", default("enabled", "bool", "true")),
        ("dry_run", default("dry_run", "bool", "false")),
        ("period", default("period", "string", &quoted(DEFAULT_PERIOD))),
        ("creation_grace", default("creation_grace", "string", &quoted(DEFAULT_CREATION_GRACE))),
    ]);
    let options = object([
        ("image", default("image", "bool", "true")),
        ("image_delay", default("image_delay", "string", &quoted(DEFAULT_IMAGE_DELAY))),
        ("container", default("container", "bool", "true")),
        ("disk_high_water", optional("disk_high_water", "string")),
        ("foreign_images", default("foreign_images", "bool", "false")),
        ("dangling_containers", block("dangling_containers", dangling_containers)),
    ]);
    block("gc", options)
}

impl RawGc {
    /// # Errors
    /// Names the option with an invalid value.
    pub(super) fn decode(self) -> Result<Gc, ConfigError> {
        let Self { image, image_delay, container, disk_high_water, foreign_images, dangling_containers } =
            self;
        let delay = image_delay.unwrap_or_else(|| DEFAULT_IMAGE_DELAY.to_owned());
        let delay = duration("gc.image_delay", delay)?;
        let images = ImageGc {
            delay: image.unwrap_or(true).then_some(delay),
            disk_high_water: disk_high_water
                .filter(|text| !text.is_empty())
                .map(|text| percent("gc.disk_high_water", text))
                .transpose()?,
            foreign_images: foreign_images.unwrap_or(false),
        };
        let dangling_containers = dangling_containers.unwrap_or_default().decode()?;
        Ok(Gc { images, container: container.unwrap_or(true), dangling_containers })
    }
}

impl RawDanglingContainers {
    fn decode(self) -> Result<DanglingContainers, ConfigError> {
        let Self { enabled, dry_run, period, creation_grace } = self;
        let period = period.unwrap_or_else(|| DEFAULT_PERIOD.to_owned());
        let creation_grace = creation_grace.unwrap_or_else(|| DEFAULT_CREATION_GRACE.to_owned());
        Ok(DanglingContainers {
            enabled: enabled.unwrap_or(true),
            dry_run: dry_run.unwrap_or(false),
            period: duration("gc.dangling_containers.period", period)?,
            creation_grace: duration("gc.dangling_containers.creation_grace", creation_grace)?,
        })
    }
}

fn percent(option: &'static str, text: String) -> Result<u64, ConfigError> {
    let number = text.strip_suffix('%').and_then(|number| number.trim().parse().ok());
    match number {
        Some(number @ 1..=100) => Ok(number),
        _ => Err(value(option, text, "it must be a usage of containerd's disk, from \"1%\" to \"100%\"")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::plugin::tests::{decode, plugin};

    use super::*;

    #[test]
    fn image_gc_is_on_by_default() {
        let images = |gc| plugin(json!({"gc": gc})).gc.images;
        let usual =
            ImageGc { delay: Some(Duration::from_secs(180)), disk_high_water: None, foreign_images: false };
        assert_eq!(images(json!(null)), usual);
        assert_eq!(images(json!({"image": null, "disk_high_water": ""})), usual);
        assert_eq!(images(json!({"image": false, "image_delay": "1h"})).delay, None);
        assert_eq!(images(json!({"disk_high_water": "85%"})).disk_high_water, Some(85));
        for (option, value) in [
            ("image_delay", "0s"),
            ("disk_high_water", "0%"),
            ("disk_high_water", "101%"),
            ("disk_high_water", "20g"),
        ] {
            let gc = json!({"containerd_runtime": "io.containerd.runc.v2", "gc": {option: value}});
            let error = decode(&gc).unwrap_err().to_string();
            assert!(error.contains(&format!("gc.{option}")) && error.contains(value), "{error}");
        }
    }
}
