//! The documents of an image: index, manifest, configuration; the choice of a host's manifest in an index, and the
//! chain ids of layers. Pure.
//!
//! Source of the facts: OCI image-spec v1.1 `manifest.md`, `image-index.md`, `config.md` (chain ids); docker's
//! `image-manifest-v2-2`; containerd `platforms` @ v1.6.20.

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, Os};
use serde::Deserialize;

use super::digest::{check_algorithm, digest_of};
use super::error::ImageError;
use super::{go_json, platform};

pub(crate) const MANIFEST_LIMIT_BYTES: u64 = 4 * 1024 * 1024;
pub(crate) const CONFIG_LIMIT_BYTES: u64 = 8 * 1024 * 1024;

const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const LAYER_TYPES: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// Maximum number of an image's layers: the kernel's overlay has no more directories.
pub(crate) const LAYERS_LIMIT: usize = 500;

pub(crate) fn too_many_layers(count: usize) -> ImageError {
    ImageError::unsupported(format!("an image of {count} layers, more than {LAYERS_LIMIT}"))
}

/// Returns the media types for the `Accept` header of a manifest request.
pub(crate) fn accepted_types() -> String {
    INDEX_TYPES.iter().chain(&MANIFEST_TYPES).copied().collect::<Vec<_>>().join(", ")
}

#[derive(Debug)]
pub(crate) enum Document {
    Index(Box<ImageIndex>),
    Manifest(Box<ImageManifest>),
}

/// Fields that tell an index from a manifest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    schema_version: Option<i64>,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
}

/// Parses a document by its declared media type, or, if that is unknown, by the one in the document itself.
///
/// # Errors
/// Old and foreign kinds are unsupported. A document that could be read in two ways is corrupt: its digest would vouch
/// for both.
pub(crate) fn parse(header_type: &str, bytes: &[u8]) -> Result<(String, Document), ImageError> {
    let unreadable =
        |error: serde_json::Error| ImageError::corrupt(format!("the manifest can't be read: {error}"));
    let value: serde_json::Value = go_json::read(bytes, go_json::MANIFEST).map_err(unreadable)?;
    let kind = Kind::deserialize(&value).map_err(unreadable)?;
    if kind.schema_version != Some(2) {
        return Err(ImageError::unsupported(
            "the manifest is not of schema version 2: the image must be pushed again",
        ));
    }
    if kind.manifests.is_some() && kind.layers.is_some() {
        return Err(ImageError::corrupt("the manifest is an image and an index at once"));
    }
    let is_known =
        |media_type: &&str| INDEX_TYPES.contains(media_type) || MANIFEST_TYPES.contains(media_type);
    let header_type = Some(header_type).filter(is_known);
    let media_type = match (header_type, kind.media_type.as_deref()) {
        (Some(header_type), Some(own)) if header_type != own => {
            return Err(ImageError::corrupt(format!(
                "the manifest says it is {own}, the registry says {header_type}"
            )));
        }
        (Some(header_type), _) => header_type,
        (None, Some(own)) => own,
        (None, None) if kind.manifests.is_some() => INDEX_TYPES[0],
        (None, None) => MANIFEST_TYPES[0],
    };
    let document = if INDEX_TYPES.contains(&media_type) {
        Document::Index(Box::new(serde_json::from_value(value).map_err(unreadable)?))
    } else if MANIFEST_TYPES.contains(&media_type) {
        Document::Manifest(Box::new(serde_json::from_value(value).map_err(unreadable)?))
    } else {
        return Err(ImageError::unsupported(format!("a manifest of type {media_type}")));
    };
    Ok((media_type.to_owned(), document))
}

/// Chooses the manifest for a host, and returns its position and descriptor: the best of those that fit, or else the
/// first that names no platform, whose configuration then has to.
///
/// # Errors
/// No manifest fits; lists the platforms that there are.
pub(crate) fn choose<'a>(index: &'a ImageIndex, host: &Arch) -> Result<(usize, &'a Descriptor), ImageError> {
    let entries = || index.manifests().iter().enumerate();
    let rank =
        |entry: &Descriptor| platform::rank(entry.platform().as_ref()?, host, platform::variants(host));
    let fitting = entries().filter_map(|(place, entry)| Some((rank(entry)?, (place, entry))));
    let chosen = fitting
        .min_by_key(|(rank, (place, _))| (*rank, *place))
        .map(|(_, chosen)| chosen)
        .or_else(|| entries().find(|(_, entry)| entry.platform().is_none()))
        .ok_or_else(|| {
            ImageError::unsupported(format!("no image for linux/{host}, only for {}", platforms(index)))
        })?;
    let media_type = chosen.1.media_type().to_string();
    if !MANIFEST_TYPES.contains(&media_type.as_str()) {
        return Err(ImageError::unsupported(format!("an index that refers to {media_type}")));
    }
    Ok(chosen)
}

/// Maximum number of platforms that an error names. An index may have tens of thousands.
const PLATFORMS_SHOWN: usize = 20;

fn platforms(index: &ImageIndex) -> String {
    let mut names = Vec::new();
    for platform in index.manifests().iter().filter_map(|entry| entry.platform().as_ref()) {
        let mut name = format!("{}/{}", platform.os(), platform.architecture());
        if let Some(variant) = platform.variant().as_deref().filter(|variant| !variant.is_empty()) {
            name = format!("{name}/{variant}");
        }
        // Entries of this platform carry the attestations of a build.
        if name == "unknown/unknown" || names.contains(&name) {
            continue;
        }
        if names.len() == PLATFORMS_SHOWN {
            names.push("others".to_owned());
            break;
        }
        names.push(name);
    }
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// The facts needed to unpack an image and to start from it.
#[derive(Debug)]
pub(crate) struct Layout {
    pub manifest_digest: String,
    pub config_digest: String,
    pub config: ImageConfiguration,
    pub layers: Vec<Layer>,
}

/// A layer: its blob, the digest of its unpacked content (`diff_id`), and the snapshot of it and all below
/// (`chain_id`).
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub blob: Descriptor,
    pub diff_id: String,
    pub parent_chain_id: String,
    pub chain_id: String,
}

impl Layout {
    /// Builds the layout of an image from its manifest and configuration.
    ///
    /// # Errors
    /// Unsupported if the image is for another platform or its layers are of a kind that the daemon can't unpack;
    /// corrupt if configuration and manifest contradict each other.
    pub(crate) fn new(
        manifest_digest: &str,
        manifest: &ImageManifest,
        config: &[u8],
        host: &Arch,
    ) -> Result<Self, ImageError> {
        let mut config: ImageConfiguration = go_json::read(config, go_json::CONFIG)
            .map_err(|error| ImageError::corrupt(format!("the configuration can't be read: {error}")))?;
        if *config.os() != Os::Linux || platform::normal(config.architecture()).0 != *host {
            let theirs = format!("{}/{}", config.os(), config.architecture());
            return Err(ImageError::unsupported(format!("no image for linux/{host}, only for {theirs}")));
        }
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != manifest.layers().len() {
            return Err(ImageError::corrupt(format!(
                "the manifest has {} layers, the configuration {}",
                manifest.layers().len(),
                diff_ids.len()
            )));
        }
        if diff_ids.len() > LAYERS_LIMIT {
            return Err(too_many_layers(diff_ids.len()));
        }
        let mut layers = Vec::with_capacity(diff_ids.len());
        let mut parent_chain_id = String::new();
        for ((blob, diff_id), chain_id) in manifest.layers().iter().zip(diff_ids).zip(chain_ids(diff_ids)) {
            check_layer(blob)?;
            let layer = Layer { blob: blob.clone(), diff_id: diff_id.clone(), parent_chain_id, chain_id };
            parent_chain_id = layer.chain_id.clone();
            layers.push(layer);
        }
        // Labels and history have no readers, and may be most of the configuration.
        let own = config.config().clone().map(|mut own| {
            own.set_labels(None);
            own
        });
        config.set_history(None).set_config(own);
        let config_digest = manifest.config().digest().to_string();
        Ok(Self { manifest_digest: manifest_digest.to_owned(), config_digest, config, layers })
    }

    /// Returns the total size of the layers in the registry.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.blob.size()).fold(0, u64::saturating_add)
    }

    /// Returns the size of the cached part of the documents, as JSON.
    pub(crate) fn document_bytes(&self) -> usize {
        let blobs: Vec<_> = self.layers.iter().map(|layer| &layer.blob).collect();
        serde_json::to_vec(&(&self.config, blobs)).map_or(usize::MAX, |text| text.len())
    }

    /// Returns the chain id of the whole image; empty for an image without layers.
    pub(crate) fn chain_id(&self) -> &str {
        self.layers.last().map_or("", |layer| &layer.chain_id)
    }
}

/// Checks the descriptor of a configuration.
///
/// # Errors
/// Unsupported if it isn't a container's configuration, is too large, or has a digest of another algorithm.
pub(crate) fn check_config(descriptor: &Descriptor) -> Result<(), ImageError> {
    let media_type = descriptor.media_type().to_string();
    if !CONFIG_TYPES.contains(&media_type.as_str()) {
        return Err(ImageError::unsupported(format!(
            "not a container's image: its configuration is {media_type}"
        )));
    }
    check_size("the configuration", descriptor.size(), CONFIG_LIMIT_BYTES)?;
    check_algorithm(descriptor)
}

/// Checks a size against a limit.
///
/// # Errors
/// Unsupported above the limit.
pub(crate) fn check_size(what: &str, size_bytes: u64, limit_bytes: u64) -> Result<(), ImageError> {
    if size_bytes <= limit_bytes {
        return Ok(());
    }
    Err(ImageError::unsupported(format!("{what} has {size_bytes} bytes, more than {limit_bytes}")))
}

fn check_layer(blob: &Descriptor) -> Result<(), ImageError> {
    let media_type = blob.media_type().to_string();
    if !LAYER_TYPES.contains(&media_type.as_str()) {
        let digest = blob.digest();
        let kind = if media_type.contains("foreign") || media_type.contains("nondistributable") {
            "which is kept outside of registries"
        } else {
            "which can't be unpacked"
        };
        return Err(ImageError::unsupported(format!("layer {digest} is of type {media_type}, {kind}")));
    }
    check_algorithm(blob)
}

fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => diff_id.clone(),
            Some(below) => digest_of(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn index(platforms: &[(&str, &str, &str)]) -> ImageIndex {
        let manifests: Vec<_> = platforms
            .iter()
            .map(|(os, architecture, variant)| {
                let mut entry = json!({"mediaType": MANIFEST_TYPES[0], "digest": A, "size": 2});
                if !os.is_empty() {
                    entry["platform"] = json!({"os": os, "architecture": architecture, "variant": variant});
                }
                entry
            })
            .collect();
        serde_json::from_value(json!({"schemaVersion": 2, "manifests": manifests})).unwrap()
    }

    fn manifest(layer_type: &str) -> ImageManifest {
        serde_json::from_value(json!({
            "schemaVersion": 2,
            "config": {"mediaType": CONFIG_TYPES[0], "digest": B, "size": 2},
            "layers": [{"mediaType": layer_type, "digest": A, "size": 3}],
        }))
        .unwrap()
    }

    fn config(architecture: &str, diff_ids: &[&str]) -> Vec<u8> {
        let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
        json!({"os": "linux", "architecture": architecture, "rootfs": rootfs}).to_string().into_bytes()
    }

    #[test]
    fn the_manifest_of_this_host_is_chosen() {
        for (platforms, host, expected) in [
            (
                &[("unknown", "unknown", ""), ("linux", "arm64", "v8"), ("linux", "amd64", "")][..],
                Arch::Amd64,
                2,
            ),
            (&[("linux", "arm", "v7"), ("linux", "arm64", "v8")], Arch::ARM64, 1),
            (&[("linux", "arm64", ""), ("linux", "arm64", "v8")], Arch::ARM64, 0),
            (&[("linux", "amd64", "v3"), ("linux", "amd64", "v1")], Arch::Amd64, 1),
            (&[("windows", "amd64", ""), ("linux", "amd64", "")], Arch::Amd64, 1),
            (&[("", "", ""), ("linux", "amd64", "")], Arch::Amd64, 1),
            (&[("linux", "arm64", ""), ("", "", "")], Arch::Amd64, 1),
            (&[("linux", "amd64", "v1"), ("linux", "x86_64", "")], Arch::Amd64, 1),
        ] {
            assert_eq!(choose(&index(platforms), &host).unwrap().0, expected, "{platforms:?}");
        }
    }

    #[test]
    fn other_platforms_are_named_if_none_fits() {
        let index = index(&[("linux", "arm", "v7"), ("unknown", "unknown", ""), ("linux", "amd64", "v9")]);
        for (host, name) in [(Arch::ARM64, "arm64"), (Arch::Amd64, "amd64")] {
            let error = choose(&index, &host).unwrap_err().to_string();
            let wanted =
                format!("unsupported: no image for linux/{name}, only for linux/arm/v7, linux/amd64/v9");
            assert_eq!(error, wanted);
        }
    }

    #[test]
    fn a_long_list_of_platforms_is_shortened() {
        let variants: Vec<_> = (0..10_000).map(|number| format!("v{number}")).collect();
        let platforms: Vec<_> = variants.iter().map(|variant| ("linux", "arm", variant.as_str())).collect();
        let error = choose(&index(&platforms), &Arch::Amd64).unwrap_err().to_string();
        assert!(error.ends_with("linux/arm/v19, others") && !error.contains("v20"), "{error}");
    }

    #[test]
    fn chain_ids_hash_the_chain_below() {
        // The vector is from python's hashlib.
        assert_eq!(chain_ids(&[]), Vec::<String>::new());
        let expected = digest_of(format!("{A} {B}").as_bytes());
        assert_eq!(chain_ids(&[A.to_owned(), B.to_owned()]), [A.to_owned(), expected.clone()]);
        assert_eq!(expected, "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c");
    }

    #[test]
    fn layers_know_their_snapshots() {
        let layout = Layout::new(A, &manifest(LAYER_TYPES[1]), &config("amd64", &[B]), &Arch::Amd64).unwrap();
        assert_eq!((layout.chain_id(), layout.config_digest.as_str()), (B, B));
        assert_eq!(layout.layers[0].parent_chain_id, "");
    }

    #[test]
    fn images_for_other_platforms_are_unsupported() {
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        for (layer_type, architecture, text) in [
            (foreign, "amd64", "outside of registries"),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "amd64", "can't be unpacked"),
            (LAYER_TYPES[1], "arm64", "only for linux/arm64"),
        ] {
            let made = Layout::new(A, &manifest(layer_type), &config(architecture, &[B]), &Arch::Amd64);
            let error = made.unwrap_err();
            assert!(matches!(error, ImageError::Unsupported { .. }), "{error}");
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn a_configuration_with_other_layers_is_corrupt() {
        let made = Layout::new(A, &manifest(LAYER_TYPES[1]), &config("amd64", &[]), &Arch::Amd64);
        assert!(matches!(made, Err(ImageError::Corrupt { .. })));
    }

    #[test]
    fn names_of_an_architecture_and_the_number_of_layers_are_checked() {
        let mut several = manifest(LAYER_TYPES[1]);
        let named = Layout::new(A, &several, &config("x86_64", &[B]), &Arch::Amd64);
        assert!(named.is_ok());
        several.set_layers(vec![several.layers()[0].clone(); LAYERS_LIMIT + 1]);
        let made = Layout::new(A, &several, &config("amd64", &[B; LAYERS_LIMIT + 1]), &Arch::Amd64);
        assert!(made.unwrap_err().to_string().contains("501 layers"));
    }

    #[test]
    fn documents_are_parsed_by_their_media_type() {
        let plain =
            json!({"schemaVersion": 2, "config": {"mediaType": "c", "digest": A, "size": 1}, "layers": []});
        let parse_as = |header_type: &str, document: &serde_json::Value| {
            parse(header_type, document.to_string().as_bytes())
        };
        assert!(
            matches!(parse_as("text/plain", &plain), Ok((kind, Document::Manifest(_))) if kind == MANIFEST_TYPES[0])
        );
        assert!(matches!(parse_as(MANIFEST_TYPES[1], &plain), Ok((kind, _)) if kind == MANIFEST_TYPES[1]));
        let index = json!({"schemaVersion": 2, "manifests": []});
        assert!(matches!(parse_as("", &index), Ok((_, Document::Index(_)))));

        let schema_1 = json!({"schemaVersion": 1, "fsLayers": []});
        assert!(matches!(parse_as("", &schema_1), Err(ImageError::Unsupported { .. })));
        let artifact = json!({"schemaVersion": 2, "mediaType": "application/x"});
        assert!(matches!(parse_as("", &artifact), Err(ImageError::Unsupported { .. })));
        let both = json!({"schemaVersion": 2, "manifests": [], "layers": []});
        assert!(matches!(parse_as("", &both), Err(ImageError::Corrupt { .. })));
        let liar = json!({"schemaVersion": 2, "mediaType": INDEX_TYPES[0], "manifests": []});
        assert!(matches!(parse_as(MANIFEST_TYPES[0], &liar), Err(ImageError::Corrupt { .. })));
        assert!(matches!(parse("", b"<html>"), Err(ImageError::Corrupt { .. })));
    }

    #[test]
    fn a_configuration_has_a_limit_and_a_kind() {
        let descriptor = |media_type: &str, size: u64| -> Descriptor {
            serde_json::from_value(json!({"mediaType": media_type, "digest": A, "size": size})).unwrap()
        };
        assert!(check_config(&descriptor(CONFIG_TYPES[1], CONFIG_LIMIT_BYTES)).is_ok());
        assert!(check_config(&descriptor(CONFIG_TYPES[1], CONFIG_LIMIT_BYTES + 1)).is_err());
        let chart = check_config(&descriptor("application/vnd.cncf.helm.config.v1+json", 2)).unwrap_err();
        assert!(chart.to_string().contains("helm"), "{chart}");
    }

    #[test]
    fn documents_have_at_most_the_size_that_registries_allow() {
        assert_eq!((MANIFEST_LIMIT_BYTES, CONFIG_LIMIT_BYTES), (4 << 20, 8 << 20));
        check_size("it", MANIFEST_LIMIT_BYTES, MANIFEST_LIMIT_BYTES).unwrap();
        let error = check_size("it", MANIFEST_LIMIT_BYTES + 1, MANIFEST_LIMIT_BYTES).unwrap_err();
        assert!(error.to_string().contains("it has 4194305 bytes, more than 4194304"), "{error}");
    }
}

#[cfg(test)]
mod fuzz {
    use serde_json::Value;

    use super::*;

    fn printed(document: &Document) -> Vec<u8> {
        match document {
            Document::Index(index) => serde_json::to_vec(index),
            Document::Manifest(manifest) => serde_json::to_vec(manifest),
        }
        .unwrap()
    }

    fn value(json: &[u8]) -> Value {
        serde_json::from_slice(json).unwrap()
    }

    #[test]
    fn manifests() {
        crate::fuzz::pairs("image-manifest", |header, body| {
            let Ok((media_type, document)) = parse(&String::from_utf8_lossy(header), body) else { return };
            let json = printed(&document);
            let (same_type, same) = parse(&media_type, &json).unwrap();
            assert_eq!((same_type, value(&printed(&same))), (media_type, value(&json)));
            match document {
                Document::Index(index) => {
                    let Ok((place, chosen)) = choose(&index, &Arch::Amd64) else { return };
                    assert_eq!(&index.manifests()[place], chosen);
                    assert!(MANIFEST_TYPES.contains(&chosen.media_type().to_string().as_str()));
                }
                Document::Manifest(manifest) => {
                    let config = manifest.config();
                    assert!(check_config(config).is_err() || config.size() <= CONFIG_LIMIT_BYTES);
                }
            }
        });
    }

    /// The manifest has as many layers as the configuration seems to have.
    #[test]
    fn configs() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let layer = serde_json::json!({"mediaType": LAYER_TYPES[1], "digest": digest, "size": 3});
        crate::fuzz::text("image-config", |config| {
            let layers = vec![layer.clone(); config.matches("sha256:").count()];
            let manifest = serde_json::json!({
                "schemaVersion": 2, "config": {"mediaType": CONFIG_TYPES[0], "digest": digest, "size": 2}, "layers": layers,
            });
            let manifest = serde_json::from_value(manifest).unwrap();
            let Ok(layout) = Layout::new(&digest, &manifest, config.as_bytes(), &Arch::Amd64) else { return };
            assert!(layout.layers.len() == layers.len() && layers.len() <= LAYERS_LIMIT);
            assert_eq!(layout.size_bytes(), 3 * layers.len() as u64);
            // Numbers may be printed with more digits than they had.
            assert!(layout.document_bytes() <= 10 * config.len() + 1000 * (layers.len() + 1));
            let mut below = "";
            for layer in &layout.layers {
                assert_eq!(layer.parent_chain_id, below);
                below = &layer.chain_id;
            }
            assert_eq!(layout.chain_id(), below);
        });
    }
}
