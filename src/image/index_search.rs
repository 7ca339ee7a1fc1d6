//! The search for this host's manifest in an index, which may have indexes in it: tools wrap an index in another one to
//! sign it, or to add attestations. Pure: says which document it needs next, and is given it.
//!
//! Entries whose platform fits come first, the best of them at the front; then entries that name no platform, in their
//! order. An index without a fitting entry is left for the next candidate. Depth, number and size of the documents are
//! bounded, since each is fetched.
//! Source of the facts: OCI image-spec v1.1 `image-index.md`; containerd `core/images/image.go`, `handlers.go` @ v2.1
//! (the order, and that an index names the platform of all in it).

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};

use super::digest::{check_algorithm, check_blob};
use super::error::ImageError;
use super::manifest::{self, Document, MANIFEST_LIMIT_BYTES};
use super::platform::Target;

/// Maximum number of indexes above a manifest. Those that are known have two.
const DEPTH_LIMIT: usize = 8;
/// Maximum number of documents that are read, and of their bytes in all.
const DOCUMENTS_LIMIT: usize = 32;
const SIZE_LIMIT_BYTES: u64 = 4 * MANIFEST_LIMIT_BYTES;
/// Maximum number of platforms that an error names. An index may have tens of thousands.
const PLATFORMS_SHOWN: usize = 20;

/// The manifest for a host, and the indexes above it, from the outermost on.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub indexes: Vec<IndexAbove>,
    pub descriptor: Descriptor,
    pub bytes: Vec<u8>,
    pub manifest: Box<ImageManifest>,
    /// Set if an index names this host's platform for it.
    pub is_named: bool,
}

/// An index, and the position in it of the next one, or of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexAbove {
    pub descriptor: Descriptor,
    pub bytes: Vec<u8>,
    pub place: usize,
}

impl Chosen {
    /// Returns the descriptor of the document that the image's name stands for.
    pub(crate) fn target(&self) -> &Descriptor {
        self.indexes.first().map_or(&self.descriptor, |index| &index.descriptor)
    }
}

/// An index that was read.
#[derive(Debug)]
struct Node {
    descriptor: Descriptor,
    bytes: Vec<u8>,
    above: Option<Position>,
}

/// An entry of a node, by its number.
#[derive(Debug, Clone, Copy)]
struct Position {
    node: usize,
    place: usize,
}

/// A document to be read, and where it is named.
#[derive(Debug)]
struct Candidate {
    descriptor: Descriptor,
    above: Option<Position>,
    depth: usize,
    is_named: bool,
}

#[derive(Debug)]
pub(crate) struct IndexSearch {
    platform: Target,
    nodes: Vec<Node>,
    /// Candidates, the next one last.
    candidates: Vec<Candidate>,
    documents: usize,
    size_bytes: u64,
    /// Platforms that were seen, and the type of an entry that fits and is neither an index nor a manifest.
    platforms: Vec<String>,
    other_type: Option<String>,
    /// Set if an index was left out since there were too many above it.
    is_too_deep: bool,
}

impl IndexSearch {
    /// Begins a search at the document of this descriptor, which may name a platform of its own.
    pub(crate) fn from(target: &Descriptor, platform: &Target) -> Self {
        let is_named = target.platform().as_ref().is_some_and(|named| platform.rank(named).is_some());
        let first = Candidate { descriptor: bare(target), above: None, depth: 0, is_named };
        Self {
            platform: platform.clone(),
            nodes: Vec::new(),
            candidates: vec![first],
            documents: 0,
            size_bytes: 0,
            platforms: Vec::new(),
            other_type: None,
            is_too_deep: false,
        }
    }

    /// Returns the descriptor of the document that the search needs next.
    ///
    /// # Errors
    /// Unsupported if no manifest fits, with the platforms that there are; or if too many or too large documents would
    /// be needed.
    pub(crate) fn next(&self) -> Result<&Descriptor, ImageError> {
        let Some(Candidate { descriptor, .. }) = self.candidates.last() else {
            return Err(self.nothing_fits());
        };
        check_algorithm(descriptor)?;
        manifest::check_size("it", descriptor.size(), MANIFEST_LIMIT_BYTES)?;
        let what = "the indexes above this host's manifest";
        manifest::check_size(what, self.size_bytes.saturating_add(descriptor.size()), SIZE_LIMIT_BYTES)?;
        if self.documents == DOCUMENTS_LIMIT {
            return Err(ImageError::unsupported(format!("{what} are more than {DOCUMENTS_LIMIT}")));
        }
        Ok(descriptor)
    }

    /// Leaves out the document that [`Self::next`] has named.
    pub(crate) fn skip(&mut self) {
        self.candidates.pop();
    }

    /// Reads the document that [`Self::next`] has named; `Some` once it is the manifest.
    ///
    /// # Errors
    /// Corrupt or unsupported if it can't be read, or is not what its descriptor says.
    pub(crate) fn read(&mut self, bytes: Vec<u8>) -> Result<Option<Chosen>, ImageError> {
        let Some(Candidate { descriptor, .. }) = self.candidates.last_mut() else {
            return Err(self.nothing_fits());
        };
        check_blob(descriptor, &bytes)?;
        let (media_type, document) = manifest::parse(descriptor.media_type().as_ref(), &bytes)?;
        descriptor.set_media_type(MediaType::from(media_type.as_str()));
        Ok(self.take(bytes, document))
    }

    /// Takes the document that [`Self::next`] has named, which the caller has checked and parsed.
    pub(crate) fn take(&mut self, bytes: Vec<u8>, document: Document) -> Option<Chosen> {
        let Candidate { descriptor, above, depth, is_named } = self.candidates.pop()?;
        self.documents += 1;
        self.size_bytes = self.size_bytes.saturating_add(bytes.len() as u64);
        match document {
            Document::Manifest(manifest) => {
                Some(Chosen { indexes: self.indexes_above(above), descriptor, bytes, manifest, is_named })
            }
            Document::Index(index) => {
                self.note_platforms(&index);
                let node = self.nodes.len();
                if depth < DEPTH_LIMIT {
                    let found = self.candidates_of(&index, node, depth + 1, is_named);
                    self.candidates.extend(found.into_iter().rev());
                } else {
                    self.is_too_deep = true;
                }
                self.nodes.push(Node { descriptor, bytes, above });
                None
            }
        }
    }

    /// Returns the entries of an index that may lead to the manifest, the best first.
    fn candidates_of(
        &mut self,
        index: &ImageIndex,
        node: usize,
        depth: usize,
        is_named: bool,
    ) -> Vec<Candidate> {
        let mut found = Vec::new();
        for (place, entry) in index.manifests().iter().enumerate() {
            let rank = match entry.platform() {
                Some(platform) => self.platform.rank(platform),
                None => Some(usize::MAX),
            };
            let Some(rank) = rank else { continue };
            let media_type = entry.media_type().to_string();
            if !manifest::is_index(&media_type) && !manifest::is_manifest(&media_type) {
                self.other_type.get_or_insert(media_type);
                continue;
            }
            let candidate = Candidate {
                descriptor: bare(entry),
                above: Some(Position { node, place }),
                depth,
                is_named: is_named || entry.platform().is_some(),
            };
            found.push((rank, candidate));
        }
        found.sort_by_key(|(rank, _)| *rank);
        found.truncate(DOCUMENTS_LIMIT);
        found.into_iter().map(|(_, candidate)| candidate).collect()
    }

    fn indexes_above(&mut self, mut above: Option<Position>) -> Vec<IndexAbove> {
        let mut indexes = Vec::new();
        while let Some(Position { node, place }) = above {
            let node = &mut self.nodes[node];
            let (descriptor, bytes) = (node.descriptor.clone(), std::mem::take(&mut node.bytes));
            indexes.push(IndexAbove { descriptor, bytes, place });
            above = node.above;
        }
        indexes.reverse();
        indexes
    }

    fn note_platforms(&mut self, index: &ImageIndex) {
        for platform in index.manifests().iter().filter_map(|entry| entry.platform().as_ref()) {
            let mut name = format!("{}/{}", platform.os(), platform.architecture());
            if let Some(variant) = platform.variant().as_deref().filter(|variant| !variant.is_empty()) {
                name = format!("{name}/{variant}");
            }
            // Entries of this platform carry the attestations of a build.
            if name == "unknown/unknown" || self.platforms.contains(&name) {
                continue;
            }
            if self.platforms.len() >= PLATFORMS_SHOWN {
                name = "others".to_owned();
            }
            if self.platforms.len() <= PLATFORMS_SHOWN {
                self.platforms.push(name);
            }
        }
    }

    fn nothing_fits(&self) -> ImageError {
        if let Some(other) = &self.other_type {
            return ImageError::unsupported(format!("an index that refers to {other:?}"));
        }
        if self.is_too_deep {
            let reason = format!("more than {DEPTH_LIMIT} indexes, each within the other");
            return ImageError::unsupported(reason);
        }
        let theirs = if self.platforms.is_empty() { "nothing".to_owned() } else { self.platforms.join(", ") };
        ImageError::unsupported(format!("no image for {}, only for {theirs}", self.platform))
    }
}

/// Copies an index's descriptor without the fields that only the index needs.
fn bare(descriptor: &Descriptor) -> Descriptor {
    Descriptor::new(descriptor.media_type().clone(), descriptor.size(), descriptor.digest().clone())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use oci_spec::image::Arch;
    use serde_json::{Value, json};

    use super::super::digest::digest_of;

    use super::*;

    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const LINUX: fn() -> Value = || json!({"os": "linux", "architecture": "amd64"});

    /// Documents by their digest.
    #[derive(Default)]
    struct Store(HashMap<String, Vec<u8>>);

    impl Store {
        fn put(&mut self, media_type: &str, document: &Value) -> Value {
            let bytes = document.to_string().into_bytes();
            let described =
                json!({"mediaType": media_type, "digest": digest_of(&bytes), "size": bytes.len()});
            self.0.insert(digest_of(&bytes), bytes);
            described
        }

        fn manifest(&mut self, name: &str) -> Value {
            let config = json!({"mediaType": "", "digest": digest_of(b""), "size": 0});
            let annotations = json!({"name": name});
            let manifest = json!({"schemaVersion": 2, "config": config, "annotations": annotations});
            self.put(MANIFEST, &manifest)
        }

        fn index(&mut self, entries: &[Value]) -> Value {
            self.put(INDEX, &json!({"schemaVersion": 2, "manifests": entries}))
        }

        fn find(&self, target: &Value, host: &Arch) -> Result<Chosen, ImageError> {
            let target = serde_json::from_value(target.clone()).unwrap();
            let mut search = IndexSearch::from(&target, &Target::from(host.clone()));
            loop {
                let digest = search.next()?.digest().to_string();
                if let Some(chosen) = search.read(self.0[&digest].clone())? {
                    return Ok(chosen);
                }
            }
        }
    }

    fn on(mut entry: Value, platform: Value) -> Value {
        entry["platform"] = platform;
        entry
    }

    fn name(chosen: &Chosen) -> &str {
        &chosen.manifest.annotations().as_ref().unwrap()["name"]
    }

    /// Returns an index of manifests for these platforms, each named by its position; an empty system is none.
    fn index(store: &mut Store, platforms: &[(&str, &str, &str)]) -> Value {
        let entries = platforms.iter().enumerate().map(|(place, (os, architecture, variant))| {
            let entry = store.manifest(&place.to_string());
            let platform = json!({"os": os, "architecture": architecture, "variant": variant});
            if os.is_empty() { entry } else { on(entry, platform) }
        });
        let entries: Vec<_> = entries.collect();
        store.index(&entries)
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
            let mut store = Store::default();
            let target = index(&mut store, platforms);
            let chosen = store.find(&target, &host).unwrap();
            assert_eq!(name(&chosen), expected.to_string(), "{platforms:?}");
            assert_eq!(chosen.indexes[0].place, expected);
            assert_eq!(chosen.is_named, !platforms[expected].0.is_empty());
            assert_eq!(chosen.target().digest().to_string(), target["digest"]);
        }
    }

    #[test]
    fn a_manifest_without_an_index_is_itself() {
        let mut store = Store::default();
        let target = store.manifest("alone");
        let chosen = store.find(&target, &Arch::Amd64).unwrap();
        assert!(chosen.indexes.is_empty() && !chosen.is_named && name(&chosen) == "alone");
        assert_eq!(chosen.target(), &chosen.descriptor);
    }

    #[test]
    fn an_index_in_an_index_is_followed() {
        let mut store = Store::default();
        let [inner, other] = ["inner", "other"].map(|name| store.manifest(name));
        let arm = json!({"os": "linux", "architecture": "arm64"});
        let attested = json!({"os": "unknown", "architecture": "unknown"});
        let inner = store.index(&[on(other.clone(), attested), on(inner, LINUX())]);
        let middle = store.index(std::slice::from_ref(&inner));
        let foreign = store.index(&[on(other, arm)]);
        let outer = store.index(&[foreign, middle]);
        let chosen = store.find(&outer, &Arch::Amd64).unwrap();
        assert_eq!(name(&chosen), "inner");
        let places: Vec<_> = chosen.indexes.iter().map(|index| index.place).collect();
        assert_eq!(places, [1, 0, 1]);
        for index in &chosen.indexes {
            assert_eq!(digest_of(&index.bytes), index.descriptor.digest().to_string());
        }
        let error = store.find(&outer, &Arch::RISCV64).unwrap_err().to_string();
        assert_eq!(error, "unsupported: no image for linux/riscv64, only for linux/arm64, linux/amd64");
    }

    #[test]
    fn an_index_names_the_platform_of_all_in_it() {
        let mut store = Store::default();
        let manifest = store.manifest("m");
        let inner = store.index(&[manifest]);
        let outer = store.index(&[on(inner, LINUX())]);
        assert!(store.find(&outer, &Arch::Amd64).unwrap().is_named);
    }

    #[test]
    fn depth_number_and_size_of_documents_are_limited() {
        let mut store = Store::default();
        let mut deep = store.manifest("deep");
        for _ in 0..DEPTH_LIMIT {
            deep = store.index(&[deep]);
        }
        store.find(&deep, &Arch::Amd64).unwrap();
        let deeper = store.index(&[deep]);
        assert!(store.find(&deeper, &Arch::Amd64).unwrap_err().to_string().contains("more than 8"));

        let wide: Vec<_> = (0..DOCUMENTS_LIMIT)
            .map(|number| {
                store.put(INDEX, &json!({"schemaVersion": 2, "annotations": {"n": number.to_string()}}))
            })
            .collect();
        let wide = store.index(&wide);
        let error = store.find(&wide, &Arch::Amd64).unwrap_err().to_string();
        assert!(error.contains("more than 32"), "{error}");

        let pad = "x".repeat(3 << 20);
        let mut large = store.manifest("large");
        for number in 0..6 {
            let annotations = json!({"n": number.to_string(), "pad": pad});
            let index = json!({"schemaVersion": 2, "manifests": [large], "annotations": annotations});
            large = store.put(INDEX, &index);
        }
        let error = store.find(&large, &Arch::Amd64).unwrap_err().to_string();
        assert!(error.contains("bytes, more than 16777216"), "{error}");
    }

    #[test]
    fn what_fits_and_is_no_image_is_named() {
        let mut store = Store::default();
        let chart = on(store.put("application/x-chart", &json!({})), LINUX());
        let target = store.index(&[chart]);
        let error = store.find(&target, &Arch::Amd64).unwrap_err().to_string();
        assert!(error.contains("application/x-chart"), "{error}");
    }

    #[test]
    fn other_platforms_are_named_if_none_fits() {
        let mut store = Store::default();
        let platforms = [("linux", "arm", "v7"), ("unknown", "unknown", ""), ("linux", "amd64", "v9")];
        let target = index(&mut store, &platforms);
        for (host, name) in [(Arch::ARM64, "arm64"), (Arch::Amd64, "amd64")] {
            let error = store.find(&target, &host).unwrap_err().to_string();
            let wanted =
                format!("unsupported: no image for linux/{name}, only for linux/arm/v7, linux/amd64/v9");
            assert_eq!(error, wanted);
        }
    }

    #[test]
    fn a_long_list_of_platforms_is_shortened() {
        let variants: Vec<_> = (0..10_000).map(|number| format!("v{number}")).collect();
        let platforms: Vec<_> = variants.iter().map(|variant| ("linux", "arm", variant.as_str())).collect();
        let mut store = Store::default();
        let target = index(&mut store, &platforms);
        let error = store.find(&target, &Arch::Amd64).unwrap_err().to_string();
        assert!(error.ends_with("linux/arm/v19, others") && !error.contains("v20"), "{error}");
    }
}

#[cfg(test)]
mod fuzz {
    use super::super::digest::digest_of;
    use super::*;

    /// Each document that the search asks for is the same index again, under the digest that it asks by.
    #[test]
    fn searches() {
        crate::fuzz::pairs("image-manifest", |header, body| {
            let Ok((media_type, _)) = manifest::parse(&String::from_utf8_lossy(header), body) else { return };
            let target =
                serde_json::json!({"mediaType": media_type, "digest": digest_of(body), "size": body.len()});
            let mut search = IndexSearch::from(
                &serde_json::from_value(target).unwrap(),
                &Target::new(Some("amd64"), None),
            );
            for _ in 0..=DOCUMENTS_LIMIT {
                if search.next().is_err() {
                    return;
                }
                let Ok((_, document)) = manifest::parse(&media_type, body) else { return };
                if let Some(chosen) = search.take(body.to_vec(), document) {
                    assert!(chosen.indexes.len() <= DEPTH_LIMIT);
                    return;
                }
            }
            panic!("the search doesn't end");
        });
    }
}
