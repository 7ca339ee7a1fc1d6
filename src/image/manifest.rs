//! The documents of an image: index, manifest, configuration, and the chain ids of layers. Pure.
//!
//! Documents are read as leniently as docker and containerd read them: lists and objects that are null or missing are
//! empty, and a configuration without a platform fits where nothing else names one.
//! Source of the facts: OCI image-spec v1.1 `manifest.md`, `image-index.md`, `config.md` (chain ids); docker's
//! `image-manifest-v2-2`; moby v28 `distribution/registry.go` (types of configurations); containerd v2.1
//! `core/images/mediatypes.go` (layers that may not be pushed).

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, Os};
use serde::Deserialize;
use serde_json::{Value, json};

use super::digest::{check_algorithm, digest_of};
use super::error::ImageError;
use super::{go_json, platform};

pub(crate) const MANIFEST_LIMIT_BYTES: u64 = 4 * 1024 * 1024;
pub(crate) const CONFIG_LIMIT_BYTES: u64 = 8 * 1024 * 1024;

const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
/// Types of a container's configuration. Registries of old, and tools that set none, have it under the last four.
const CONFIG_TYPES: [&str; 6] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
    "application/json",
    "text/html",
    "",
];
const LAYER_TYPES: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// Types of layers that may not be pushed everywhere. A registry that has one serves it as any other.
const RESTRICTED_LAYER_TYPES: [&str; 5] = [
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
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
    let mut value: Value = go_json::read(bytes, go_json::MANIFEST).map_err(unreadable)?;
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
    let document = if is_index(media_type) {
        fill(Some(&mut value), "manifests", &json!([]));
        let entries = value.get_mut("manifests").and_then(Value::as_array_mut);
        for entry in entries.into_iter().flatten() {
            fill(Some(&mut *entry), "mediaType", &json!(""));
            for field in ["architecture", "os"] {
                fill(entry.get_mut("platform"), field, &json!(""));
            }
        }
        Document::Index(Box::new(serde_json::from_value(value).map_err(unreadable)?))
    } else if is_manifest(media_type) {
        fill(Some(&mut value), "layers", &json!([]));
        // A descriptor without a type is one of a type that only the reader knows.
        fill(value.get_mut("config"), "mediaType", &json!(""));
        Document::Manifest(Box::new(serde_json::from_value(value).map_err(unreadable)?))
    } else {
        return Err(ImageError::unsupported(format!("a manifest of type {media_type}")));
    };
    Ok((media_type.to_owned(), document))
}

pub(super) fn is_index(media_type: &str) -> bool {
    INDEX_TYPES.contains(&media_type)
}

pub(super) fn is_manifest(media_type: &str) -> bool {
    MANIFEST_TYPES.contains(&media_type)
}

/// Gives an object's field a value where it is missing or null. Anything but an object stays as it is: whoever reads it
/// says what is wrong.
fn fill(object: Option<&mut Value>, field: &str, value: &Value) {
    if let Some(fields) = object.and_then(Value::as_object_mut)
        && fields.get(field).is_none_or(Value::is_null)
    {
        fields.insert(field.to_owned(), value.clone());
    }
}

/// Reads the configuration of an image. A platform that it doesn't name is `linux` on `host`.
///
/// # Errors
/// Corrupt if it can't be read.
pub(crate) fn read_config(bytes: &[u8], host: &Arch) -> Result<ImageConfiguration, ImageError> {
    let read = || {
        let mut value: Value = go_json::read(bytes, go_json::CONFIG)?;
        for (field, usual) in [("os", "linux".to_owned()), ("architecture", host.to_string())] {
            if value.get(field).and_then(Value::as_str) == Some("") {
                value[field] = Value::Null;
            }
            fill(Some(&mut value), field, &json!(usual));
        }
        let volumes = value.pointer_mut("/config/Volumes").and_then(Value::as_object_mut);
        for nothing in volumes.into_iter().flat_map(|volumes| volumes.values_mut()) {
            // Go reads null as an empty object.
            if nothing.is_null() {
                *nothing = json!({});
            }
        }
        fill(Some(&mut value), "rootfs", &json!({}));
        fill(value.get_mut("rootfs"), "type", &json!("layers"));
        fill(value.get_mut("rootfs"), "diff_ids", &json!([]));
        ImageConfiguration::deserialize(value)
    };
    read().map_err(|error: serde_json::Error| {
        ImageError::corrupt(format!("the configuration can't be read: {error}"))
    })
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
    /// Builds the layout of an image from its manifest and configuration. `is_named` says that an index has named this
    /// host's platform for the manifest, which counts more than what the configuration says.
    ///
    /// # Errors
    /// Unsupported if the image is for another platform or its layers are of a kind that the daemon can't unpack;
    /// corrupt if configuration and manifest contradict each other.
    pub(crate) fn new(
        manifest_digest: &str,
        manifest: &ImageManifest,
        config: &[u8],
        host: &Arch,
        is_named: bool,
    ) -> Result<Self, ImageError> {
        let mut config = read_config(config, host)?;
        let fits = *config.os() == Os::Linux && platform::normal(config.architecture()).0 == *host;
        if !fits && !is_named {
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
    if !LAYER_TYPES.contains(&media_type.as_str()) && !is_restricted(&media_type) {
        let digest = blob.digest();
        return Err(ImageError::unsupported(format!(
            "layer {digest} is of type {media_type}, which can't be unpacked"
        )));
    }
    check_algorithm(blob)
}

/// Returns whether layers of a type may not be pushed to every registry, so that one may lack them.
pub(crate) fn is_restricted(media_type: &str) -> bool {
    RESTRICTED_LAYER_TYPES.contains(&media_type)
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
    fn chain_ids_hash_the_chain_below() {
        // The vector is from python's hashlib.
        assert_eq!(chain_ids(&[]), Vec::<String>::new());
        let expected = digest_of(format!("{A} {B}").as_bytes());
        assert_eq!(chain_ids(&[A.to_owned(), B.to_owned()]), [A.to_owned(), expected.clone()]);
        assert_eq!(expected, "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c");
    }

    fn made(architecture: &str, is_named: bool) -> Result<Layout, ImageError> {
        let config = config(architecture, &[B]);
        Layout::new(A, &manifest(LAYER_TYPES[1]), &config, &Arch::Amd64, is_named)
    }

    #[test]
    fn layers_know_their_snapshots() {
        let layout = made("amd64", false).unwrap();
        assert_eq!((layout.chain_id(), layout.config_digest.as_str()), (B, B));
        assert_eq!(layout.layers[0].parent_chain_id, "");
    }

    #[test]
    fn images_for_other_platforms_are_unsupported() {
        let error = made("arm64", false).unwrap_err();
        assert!(error.to_string().contains("only for linux/arm64"), "{error}");
        let encrypted = manifest("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
        let error =
            Layout::new(A, &encrypted, &config("amd64", &[B]), &Arch::Amd64, true).unwrap_err().to_string();
        assert!(error.starts_with("unsupported") && error.contains("can't be unpacked"), "{error}");
    }

    #[test]
    fn an_indexs_word_counts_more_than_the_configurations() {
        for architecture in ["arm64", "x86_64", "", "unknown"] {
            assert!(made(architecture, true).is_ok(), "{architecture}");
        }
        for architecture in ["x86_64", ""] {
            assert!(made(architecture, false).is_ok(), "{architecture}");
        }
    }

    #[test]
    fn layers_that_may_not_be_pushed_are_unpacked() {
        for layer_type in RESTRICTED_LAYER_TYPES {
            Layout::new(A, &manifest(layer_type), &config("amd64", &[B]), &Arch::Amd64, false).unwrap();
        }
        assert!(is_restricted(RESTRICTED_LAYER_TYPES[4]) && !is_restricted(LAYER_TYPES[4]));
    }

    #[test]
    fn a_configuration_with_other_layers_is_corrupt() {
        let made = Layout::new(A, &manifest(LAYER_TYPES[1]), &config("amd64", &[]), &Arch::Amd64, false);
        assert!(matches!(made, Err(ImageError::Corrupt { .. })));
    }

    #[test]
    fn the_number_of_layers_is_limited() {
        let mut several = manifest(LAYER_TYPES[1]);
        several.set_layers(vec![several.layers()[0].clone(); LAYERS_LIMIT + 1]);
        let config = config("amd64", &[B; LAYERS_LIMIT + 1]);
        let made = Layout::new(A, &several, &config, &Arch::Amd64, false);
        assert!(made.unwrap_err().to_string().contains("501 layers"));
    }

    #[test]
    fn missing_lists_are_empty() {
        for layers in ["", r#","layers":null"#, r#","Layers":[]"#] {
            let text = format!(r#"{{"schemaVersion":2,"config":{{"digest":"{A}","size":1}}{layers}}}"#);
            let Ok((_, Document::Manifest(manifest))) = parse(MANIFEST_TYPES[1], text.as_bytes()) else {
                panic!("{text}");
            };
            assert!(manifest.layers().is_empty() && check_config(manifest.config()).is_ok());
            for config in [
                "{}",
                r#"{"rootfs":null}"#,
                r#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers"}}"#,
                r#"{"OS":null,"rootfs":{"diff_ids":null}}"#,
            ] {
                let layout = Layout::new(A, &manifest, config.as_bytes(), &Arch::Amd64, false).unwrap();
                assert_eq!((layout.chain_id(), layout.config.os()), ("", &Os::Linux), "{config}");
            }
        }
        let entry = format!(r#"[{{"digest":"{A}","size":1,"platform":{{"os":"linux"}}}}]"#);
        for manifests in ["null", "[]", &entry] {
            let index = format!(r#"{{"schemaVersion":2,"manifests":{manifests}}}"#);
            assert!(matches!(parse(INDEX_TYPES[0], index.as_bytes()), Ok((_, Document::Index(_)))));
        }
        for config in ["[]", "null", "{\"rootfs\":[]}", "{\"architecture\":1}"] {
            assert!(read_config(config.as_bytes(), &Arch::Amd64).is_err(), "{config}");
        }
    }

    #[test]
    fn documents_are_parsed_by_their_media_type() {
        let plain =
            json!({"schemaVersion": 2, "config": {"mediaType": "c", "digest": A, "size": 1}, "layers": []});
        let parse_as =
            |header_type: &str, document: &Value| parse(header_type, document.to_string().as_bytes());
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
        for kind in CONFIG_TYPES {
            assert!(check_config(&descriptor(kind, CONFIG_LIMIT_BYTES)).is_ok(), "{kind}");
        }
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
            if let Document::Manifest(manifest) = document {
                let config = manifest.config();
                assert!(check_config(config).is_err() || config.size() <= CONFIG_LIMIT_BYTES);
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
            let host = Arch::Amd64;
            let Ok(layout) = Layout::new(&digest, &manifest, config.as_bytes(), &host, false) else { return };
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
