//! Labels for a remote snapshotter, on the snapshot that is to be made of a layer: where the layer can be fetched, and
//! which other layers its image has. A snapshotter that can provide it by itself, whole or as it is read, answers that
//! it exists already; then it is not downloaded. Pure.
//!
//! The labels are those of containerd's own clients, which stargz, nydus, overlaybd and soci read.
//! Source of the facts: containerd `pkg/snapshotters/annotations.go`, `labels/validate.go` (the limit) @ v1.7.0,
//! `snapshots/snapshotter.go` (what a snapshot inherits of a layer's annotations).

use super::super::Labels;
use crate::image::Reference;
use crate::image::manifest::{Layer, Layout};

/// The daemon's limit for a label's key and value together.
const LABEL_LIMIT_BYTES: usize = 4096;
/// Prefix of the annotations of a layer that are passed on to its snapshotter.
const INHERITED: &str = "containerd.io/snapshot/";
/// Label with the name of the snapshot to be made, by which a remote snapshotter finds an existing one.
const TARGET: &str = "containerd.io/snapshot.ref";
/// Label with the digests of a layer and of those above it.
const LAYERS: &str = "containerd.io/snapshot/cri.image-layers";

/// An image and its layers, as labels describe them to a remote snapshotter.
pub(super) struct LayerLabels {
    image: String,
    manifest_digest: String,
    layers: Vec<(String, String)>,
}

impl LayerLabels {
    pub(super) fn new(reference: &Reference, layout: &Layout) -> Self {
        let layers =
            layout.layers.iter().map(|layer| (layer.chain_id.clone(), layer.blob.digest().to_string()));
        Self {
            image: reference.to_string(),
            manifest_digest: layout.manifest_digest.clone(),
            layers: layers.collect(),
        }
    }

    fn labels(&self, layer: &Layer) -> Labels {
        let annotations = layer.blob.annotations().iter().flatten();
        let inherited = annotations.filter(|(key, _)| key.starts_with(INHERITED));
        let own = [
            ("containerd.io/snapshot/cri.image-ref", self.image.clone()),
            ("containerd.io/snapshot/cri.manifest-digest", self.manifest_digest.clone()),
            ("containerd.io/snapshot/cri.layer-digest", layer.blob.digest().to_string()),
            (LAYERS, self.from(layer)),
        ];
        let own = own.map(|(key, value)| (key.to_owned(), value));
        let all = inherited.map(|(key, value)| (key.clone(), value.clone())).chain(own);
        all.filter(|(key, value)| key.len() + value.len() <= LABEL_LIMIT_BYTES).collect()
    }

    /// Returns the digests of a layer and of those above it, as many as a label can hold: a snapshotter prefetches by
    /// them.
    fn from(&self, layer: &Layer) -> String {
        let mut text = String::new();
        let above = self.layers.iter().skip_while(|(chain_id, _)| *chain_id != layer.chain_id);
        for (_, digest) in above {
            if LAYERS.len() + text.len() + 1 + digest.len() > LABEL_LIMIT_BYTES {
                break;
            }
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(digest);
        }
        text
    }
}

/// Returns the labels for the snapshot of a layer.
pub(super) fn labels(layer_labels: Option<&LayerLabels>, layer: &Layer) -> Labels {
    let mut labels = layer_labels.map(|layer_labels| layer_labels.labels(layer)).unwrap_or_default();
    labels.insert(TARGET.to_owned(), layer.chain_id.clone());
    labels
}

#[cfg(test)]
mod tests {
    use oci_spec::image::{Descriptor, ImageConfiguration, MediaType};

    use super::*;

    fn layer(number: usize) -> Layer {
        let digest = format!("sha256:{number:064x}");
        let annotations = [("containerd.io/snapshot/nydus-blob", "true"), ("org.example/x", "y")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut blob =
            Descriptor::new(MediaType::ImageLayerGzip, 1, digest.parse::<oci_spec::image::Digest>().unwrap());
        blob.set_annotations(Some(annotations.into()));
        let chain_id = format!("chain-{number}");
        Layer { blob, diff_id: digest, parent_chain_id: String::new(), chain_id }
    }

    fn layer_labels(layers: usize) -> LayerLabels {
        let layout = Layout {
            manifest_digest: "sha256:m".to_owned(),
            config_digest: String::new(),
            config: ImageConfiguration::default(),
            layers: (0..layers).map(layer).collect(),
        };
        LayerLabels::new(&"redis:7".parse().unwrap(), &layout)
    }

    #[test]
    fn remote_labels_name_the_image_and_the_layers_above() {
        let labels = labels(Some(&layer_labels(3)), &layer(1));
        let digest = |number| layer(number).blob.digest().to_string();
        let expected = [
            ("containerd.io/snapshot.ref", "chain-1".to_owned()),
            ("containerd.io/snapshot/cri.image-ref", "docker.io/library/redis:7".to_owned()),
            ("containerd.io/snapshot/cri.manifest-digest", "sha256:m".to_owned()),
            ("containerd.io/snapshot/cri.layer-digest", digest(1)),
            ("containerd.io/snapshot/cri.image-layers", format!("{},{}", digest(1), digest(2))),
            ("containerd.io/snapshot/nydus-blob", "true".to_owned()),
        ];
        assert_eq!(labels, expected.map(|(key, value)| (key.to_owned(), value)).into());
    }

    #[test]
    fn local_snapshotters_get_the_target_label_alone() {
        let labels = labels(None, &layer(1));
        assert_eq!(labels, [("containerd.io/snapshot.ref".to_owned(), "chain-1".to_owned())].into());
    }

    #[test]
    fn no_label_is_longer_than_the_daemon_takes() {
        let labels = labels(Some(&layer_labels(127)), &layer(0));
        assert!(labels.iter().all(|(key, value)| key.len() + value.len() <= LABEL_LIMIT_BYTES));
        let layers: Vec<_> = labels[LAYERS].split(',').collect();
        assert!(layers.len() > 50 && layers.iter().all(|digest| digest.len() == 71), "{layers:?}");
    }
}
