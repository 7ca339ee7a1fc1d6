//! The platforms of images that this host can run, and which of them it runs best.
//!
//! Source of the facts: containerd/platforms v1 `database.go` (names that mean the same), `compare.go`; the x86-64
//! psABI's levels; uname(2).

use std::fmt;
use std::sync::OnceLock;

use oci_spec::image::{Arch, Os, Platform};

/// The platform that an image is wanted for: linux on an architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    arch: Arch,
    /// `None` is the best variant that this host can run.
    variant: Option<String>,
}

impl Target {
    /// Returns the platform by its names in images; those that are `None` are this host's.
    pub(crate) fn new(arch: Option<&str>, variant: Option<&str>) -> Self {
        let (arch, implied) = match arch {
            Some(name) => normal(&Arch::from(name)),
            None => (Arch::default(), ""),
        };
        let implied = Some(implied).filter(|variant| !variant.is_empty());
        Self { arch, variant: variant.or(implied).map(str::to_owned) }
    }

    /// Returns the platform of this host.
    pub(crate) fn host() -> Self {
        Self::new(None, None)
    }

    pub(crate) fn arch(&self) -> &Arch {
        &self.arch
    }

    /// Returns the rank of a platform, the lower the better; `None` if it doesn't fit.
    pub(crate) fn rank(&self, platform: &Platform) -> Option<usize> {
        match &self.variant {
            None => rank(platform, &self.arch, variants(&self.arch)),
            Some(variant) => rank(platform, &self.arch, &named_variants(&self.arch, variant)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.arch)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl From<Arch> for Target {
    fn from(arch: Arch) -> Self {
        Self { arch, variant: None }
    }
}

/// Returns a variant that a job names, and what an image without one is taken for where that is the same.
fn named_variants<'a>(arch: &Arch, variant: &'a str) -> Vec<&'a str> {
    let usual = match arch {
        Arch::Amd64 => "v1",
        Arch::ARM64 => "v8",
        Arch::ARM => "v7",
        _ => "",
    };
    if variant == usual { vec![variant, ""] } else { vec![variant] }
}

/// Returns the variants of an architecture that this host can run, the best first. A variant that every host can run
/// comes before one that is faster on this host: other tools choose it, too.
fn variants(arch: &Arch) -> &'static [&'static str] {
    static AMD64: OnceLock<Vec<&'static str>> = OnceLock::new();
    static ARM: OnceLock<Vec<&'static str>> = OnceLock::new();
    match arch {
        Arch::Amd64 => AMD64.get_or_init(|| amd64_variants(amd64_level())),
        Arch::ARM64 => &["", "v8", "v8.0"],
        Arch::ARM => ARM.get_or_init(|| {
            let machine =
                nix::sys::utsname::uname().map(|name| name.machine().to_string_lossy().into_owned());
            arm_variants(&machine.unwrap_or_default())
        }),
        _ => &[""],
    }
}

fn rank(platform: &Platform, host: &Arch, variants: &[&str]) -> Option<usize> {
    let (arch, implied) = normal(platform.architecture());
    if *platform.os() != Os::Linux || arch != *host {
        return None;
    }
    let variant = platform.variant().as_deref().filter(|variant| !variant.is_empty()).unwrap_or(implied);
    variants.iter().position(|fits| *fits == variant)
}

/// Returns an architecture by its name in the specifications, and the variant that another name for it implies.
pub(crate) fn normal(arch: &Arch) -> (Arch, &'static str) {
    match arch.to_string().to_ascii_lowercase().as_str() {
        "x86_64" | "x86-64" => (Arch::Amd64, ""),
        "aarch64" => (Arch::ARM64, ""),
        "armhf" => (Arch::ARM, "v7"),
        "armel" => (Arch::ARM, "v6"),
        "i386" => (Arch::i386, ""),
        _ => (arch.clone(), ""),
    }
}

fn amd64_variants(level: usize) -> Vec<&'static str> {
    let higher = ["v2", "v3", "v4"].into_iter().take(level.saturating_sub(1)).rev();
    ["", "v1"].into_iter().chain(higher).collect()
}

/// Returns the variants that a 32-bit ARM program may have on this machine. A machine of 64 bits runs those of the
/// highest 32-bit level.
fn arm_variants(machine: &str) -> Vec<&'static str> {
    let all = ["v7", "", "v6", "v5"];
    let first = match machine {
        _ if machine.starts_with("armv5") => 3,
        _ if machine.starts_with("armv6") => 2,
        _ => 0,
    };
    let fits = all.into_iter().skip(first);
    if matches!(machine, "aarch64" | "armv8l") {
        ["v8"].into_iter().chain(fits).collect()
    } else {
        fits.collect()
    }
}

/// Returns the processor's level of the x86-64 psABI.
#[cfg(target_arch = "x86_64")]
fn amd64_level() -> usize {
    let two = is_x86_feature_detected!("sse3")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1")
        && is_x86_feature_detected!("sse4.2")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("cmpxchg16b");
    let three = two
        && is_x86_feature_detected!("avx")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("movbe");
    let four = three
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    1 + [two, three, four].into_iter().filter(|has| *has).count()
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_level() -> usize {
    1
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ranked(host: &Arch, variants: &[&str], architecture: &str, variant: &str) -> Option<usize> {
        let platform = json!({"os": "linux", "architecture": architecture, "variant": variant});
        rank(&serde_json::from_value(platform).unwrap(), host, variants)
    }

    #[test]
    fn variants_are_ranked() {
        let third = amd64_variants(3);
        assert_eq!(third, ["", "v1", "v3", "v2"]);
        assert_eq!(ranked(&Arch::Amd64, &third, "amd64", "v3"), Some(2));
        assert_eq!(ranked(&Arch::Amd64, &third, "amd64", "v4"), None);
        assert_eq!(ranked(&Arch::Amd64, &third, "arm64", ""), None);
        assert_eq!(amd64_variants(1), ["", "v1"]);
        assert!(variants(&Arch::Amd64).starts_with(&["", "v1"]));
    }

    #[test]
    fn a_variant_that_a_job_names_is_the_only_one() {
        let ranked = |target: &Target, architecture: &str, variant: &str| {
            let platform = json!({"os": "linux", "architecture": architecture, "variant": variant});
            target.rank(&serde_json::from_value(platform).unwrap())
        };
        let v6 = Target::new(Some("arm"), Some("v6"));
        assert_eq!(v6.to_string(), "linux/arm/v6");
        assert_eq!(
            (ranked(&v6, "arm", "v6"), ranked(&v6, "arm", "v7"), ranked(&v6, "arm", "")),
            (Some(0), None, None)
        );
        let v8 = Target::new(Some("aarch64"), Some("v8"));
        assert_eq!((ranked(&v8, "arm64", ""), ranked(&v8, "amd64", "")), (Some(1), None));
        assert_eq!(Target::new(Some("armhf"), None).to_string(), "linux/arm/v7");
        assert_eq!(Target::host(), Target::from(Arch::default()));
        assert_eq!(ranked(&Target::from(Arch::ARM64), "arm64", "v8"), Some(1));
    }

    #[test]
    fn a_32_bit_host_runs_lower_variants_only() {
        for (machine, wanted) in [
            ("armv7l", &["v7", "", "v6", "v5"][..]),
            ("armv6l", &["v6", "v5"]),
            ("armv5tel", &["v5"]),
            ("aarch64", &["v8", "v7", "", "v6", "v5"]),
        ] {
            assert_eq!(arm_variants(machine), wanted);
        }
        assert_eq!(ranked(&Arch::ARM, &arm_variants("armv7l"), "armhf", ""), Some(0));
        assert_eq!(ranked(&Arch::ARM, &arm_variants("armv6l"), "arm", "v7"), None);
    }

    #[test]
    fn architecture_aliases_are_normalized() {
        assert_eq!(ranked(&Arch::Amd64, &["", "v1"], "x86_64", ""), Some(0));
        assert_eq!(ranked(&Arch::ARM64, &["", "v8"], "aarch64", "v8"), Some(1));
        assert_eq!(normal(&Arch::RISCV64), (Arch::RISCV64, ""));
    }
}
