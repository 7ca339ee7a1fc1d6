//! The images that an archive says it holds, in either of the two forms of archives, and the choice among them.
//!
//! Source of the facts: docker `image/spec/spec-1.2.md` (`manifest.json`); OCI image-spec v1.1 `image-layout.md`,
//! `annotations.md`; containerd `images/archive/importer.go` @ v1.6.20 (the annotations that carry names).

use std::collections::HashMap;

use oci_spec::image::{Descriptor, ImageIndex};
use serde::Deserialize;

use super::archive::Archive;
use super::digest::digest_of;
use super::error::ImageError;
use super::go_json;
use super::manifest::{CONFIG_LIMIT_BYTES, MANIFEST_LIMIT_BYTES};
use super::platform::Target;
use super::reference::Reference;

/// Maximum number of images in an archive.
const IMAGES_LIMIT: usize = 1000;
/// Annotations with an image's name, the one with the complete name first.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

#[derive(Debug, PartialEq, Eq)]
/// An image in an archive.
pub(crate) struct ArchivedImage {
    /// Names as they are in the archive; one may be a mere tag.
    names: Vec<String>,
    /// Digest by which a job may choose the image, too.
    digest: String,
    /// Set if its platform is another than the wanted one.
    is_foreign: bool,
    pub(crate) form: Form,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// An index or a manifest among the archive's blobs.
    Oci(Box<Descriptor>),
    /// Paths of a configuration and of layers in the archive.
    Docker { config: String, layers: Vec<String> },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// Returns the path of a blob in an archive in the OCI's form.
pub(crate) fn blob_path(descriptor: &Descriptor) -> String {
    format!("blobs/{}", descriptor.digest().to_string().replacen(':', "/", 1))
}

/// Lists the images of an archive.
///
/// # Errors
/// Corrupt or unsupported if the file is no archive of images.
pub(crate) fn images(archive: &Archive, target: &Target) -> Result<Vec<ArchivedImage>, ImageError> {
    let images = if archive.find("oci-layout").is_some() && archive.find("index.json").is_some() {
        of_oci(&archive.read("index.json", MANIFEST_LIMIT_BYTES)?, target)?
    } else if archive.find("manifest.json").is_some() {
        let entries: Vec<DockerEntry> =
            go_json::read(&archive.read("manifest.json", MANIFEST_LIMIT_BYTES)?, go_json::ARCHIVE)
                .map_err(|error| ImageError::corrupt(format!("its manifest.json can't be read: {error}")))?;
        if entries.len() > IMAGES_LIMIT {
            return Err(ImageError::unsupported(format!("an archive of more than {IMAGES_LIMIT} images")));
        }
        let mut digests = HashMap::new();
        entries.into_iter().map(|entry| of_docker(archive, entry, &mut digests)).collect::<Result<_, _>>()?
    } else if archive.find("repositories").is_some() {
        let reason = "an archive of docker before 1.10; load it there, and save it again by a newer one";
        return Err(ImageError::unsupported(reason));
    } else {
        let reason = "an archive that is no image: it has neither manifest.json (docker save) nor oci-layout and index.json";
        return Err(ImageError::unsupported(reason));
    };
    if images.is_empty() {
        return Err(ImageError::Archive { reason: "there is no image in it".to_owned() });
    }
    Ok(images)
}

fn of_oci(index: &[u8], target: &Target) -> Result<Vec<ArchivedImage>, ImageError> {
    let index: ImageIndex = go_json::read(index, go_json::MANIFEST)
        .map_err(|error| ImageError::corrupt(format!("its index.json can't be read: {error}")))?;
    if index.manifests().len() > IMAGES_LIMIT {
        return Err(ImageError::unsupported(format!("an archive of more than {IMAGES_LIMIT} images")));
    }
    let saved = |descriptor: &Descriptor| {
        let none = HashMap::new();
        let annotations = descriptor.annotations().as_ref().unwrap_or(&none);
        let name = NAME_ANNOTATIONS.into_iter().find_map(|key| annotations.get(key));
        let platform = descriptor.platform().as_ref();
        ArchivedImage {
            names: name.cloned().into_iter().collect(),
            digest: descriptor.digest().to_string(),
            is_foreign: platform.is_some_and(|platform| target.rank(platform).is_none()),
            form: Form::Oci(Box::new(descriptor.clone())),
        }
    };
    Ok(index.manifests().iter().map(saved).collect())
}

/// Reads an entry of docker's `manifest.json`. Its digest is that of the configuration, docker's image id, which
/// several entries may share.
fn of_docker(
    archive: &Archive,
    entry: DockerEntry,
    digests: &mut HashMap<String, String>,
) -> Result<ArchivedImage, ImageError> {
    let DockerEntry { config, repo_tags, layers } = entry;
    let digest = match digests.get(&config) {
        Some(digest) => digest.clone(),
        None => {
            let digest = digest_of(&archive.read(&config, CONFIG_LIMIT_BYTES)?);
            digests.entry(config.clone()).or_insert(digest).clone()
        }
    };
    let form = Form::Docker { config, layers: layers.unwrap_or_default() };
    Ok(ArchivedImage { names: repo_tags.unwrap_or_default(), digest, is_foreign: false, form })
}

/// Chooses the image with the wanted name, or, where none is wanted, the only one. An image without any name fits each
/// wanted name if it is the only one.
///
/// # Errors
/// No image or several fit; lists the images that there are.
pub(crate) fn choose<'a>(
    images: &'a [ArchivedImage],
    wanted: Option<&Reference>,
) -> Result<&'a ArchivedImage, ImageError> {
    let native: Vec<&ArchivedImage> = images.iter().filter(|image| !image.is_foreign).collect();
    // An archive of foreign images alone is refused later, where their documents are read.
    let images: Vec<&ArchivedImage> = if native.is_empty() { images.iter().collect() } else { native };
    let fits = |image: &&&ArchivedImage| wanted.is_none_or(|wanted| image.is(wanted, images.len() == 1));
    let mut fitting = images.iter().filter(fits);
    match (fitting.next(), fitting.next(), wanted) {
        // Of two images with one name, the first: indexes are read in this way.
        (Some(image), None, _) | (Some(image), Some(_), Some(_)) => Ok(image),
        (_, _, Some(wanted)) => Err(ImageError::Archive {
            reason: format!("there is no {wanted} in it (the option image), only {}", named(&images)),
        }),
        (_, _, None) => Err(ImageError::Archive {
            reason: format!(
                "there are several images in it, {}; say which by the option image, and name the archive by load",
                named(&images)
            ),
        }),
    }
}

fn named(images: &[&ArchivedImage]) -> String {
    let name = |image: &&ArchivedImage| match &image.names[..] {
        [] => image.digest.clone(),
        names => names.join(", "),
    };
    images.iter().map(name).collect::<Vec<_>>().join(", ")
}

impl ArchivedImage {
    /// Returns a name for the image, if the archive has a complete one.
    pub(crate) fn name(&self) -> Option<Reference> {
        self.names.iter().filter(|name| name.contains([':', '/'])).find_map(|name| name.parse().ok())
    }

    fn is(&self, wanted: &Reference, is_only: bool) -> bool {
        let goes_by = |name: &String| {
            // Some tools write the tag alone.
            wanted.tag() == Some(name)
                || name.parse::<Reference>().is_ok_and(|name| wanted.is_named_as(&name))
        };
        let is_named = self.names.iter().any(goes_by) || (self.names.is_empty() && is_only);
        match wanted.digest() {
            None => is_named,
            // Few archives have the name of an image that was saved by its digest.
            Some(digest) => digest == self.digest && (is_named || wanted.tag().is_none()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::archive::tests::{archive, opened};
    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn saved(names: &[&str]) -> ArchivedImage {
        let form = Form::Docker { config: String::new(), layers: Vec::new() };
        let names = names.iter().map(ToString::to_string).collect();
        ArchivedImage { names, digest: A.to_owned(), is_foreign: false, form }
    }

    fn chosen(images: &[ArchivedImage], wanted: Option<&str>) -> Result<Vec<String>, String> {
        let wanted = wanted.map(|wanted| wanted.parse::<Reference>().unwrap());
        let chosen = choose(images, wanted.as_ref()).map_err(|error| error.to_string())?;
        Ok(chosen.names.clone())
    }

    #[test]
    fn the_named_image_of_an_archive_is_chosen() {
        let several = [saved(&["busybox:1"]), saved(&["docker.io/library/redis:7", "redis:alpine"])];
        for wanted in ["redis:alpine", "docker.io/library/redis:7", "docker.io/redis:7"] {
            assert_eq!(chosen(&several, Some(wanted)).unwrap()[1], "redis:alpine");
        }
        let error = chosen(&several, Some("redis")).unwrap_err();
        assert!(error.contains("library/redis:latest") && error.contains("busybox:1, docker.io"), "{error}");
        let error = chosen(&several, None).unwrap_err();
        assert!(error.contains("busybox:1") && error.contains("load"), "{error}");
        assert_eq!(chosen(&several[..1], None).unwrap(), ["busybox:1"]);
    }

    #[test]
    fn a_single_unnamed_image_is_chosen() {
        assert!(chosen(&[saved(&[])], Some("any:1")).is_ok());
        assert!(chosen(&[saved(&[]), saved(&["x:2"])], Some("any:1")).is_err());
        assert!(chosen(&[saved(&["alpine"])], Some("redis:alpine")).is_ok(), "a mere tag");
        assert!(chosen(&[saved(&["other:1"])], Some("any:1")).is_err());
    }

    #[test]
    fn a_digest_has_to_be_the_images_own() {
        let other = format!("sha256:{}", "b".repeat(64));
        assert!(chosen(&[saved(&["redis:7"])], Some(&format!("redis@{A}"))).is_ok());
        assert!(chosen(&[saved(&["redis:7"])], Some(&format!("redis:7@{A}"))).is_ok());
        assert!(chosen(&[saved(&["redis:7"])], Some(&format!("redis:8@{A}"))).is_err());
        assert!(chosen(&[saved(&["redis:7"])], Some(&format!("redis:7@{other}"))).is_err());
    }

    #[test]
    fn both_archive_forms_are_recognized() {
        let found = |files: &[(&str, &[u8])]| {
            images(&opened(&archive(files, &[])).unwrap(), &Target::from(oci_spec::image::Arch::Amd64))
                .map_err(|error| error.to_string())
        };
        let docker =
            json!([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l/layer.tar"]}]).to_string();
        let images = found(&[("manifest.json", docker.as_bytes()), ("c.json", b"{}")]).unwrap();
        assert_eq!((images[0].names[0].as_str(), images[0].digest.as_str()), ("a:1", &*digest_of(b"{}")));
        let entry = |architecture: &str| {
            json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": A, "size": 2,
                   "platform": {"os": "linux", "architecture": architecture},
                   "annotations": {"org.opencontainers.image.ref.name": "1"}})
        };
        let index = json!({"schemaVersion": 2, "manifests": [entry("arm64"), entry("amd64")]}).to_string();
        let images = found(&[("oci-layout", b"{}"), ("index.json", index.as_bytes())]).unwrap();
        assert_eq!(images.iter().map(|image| image.is_foreign).collect::<Vec<_>>(), [true, false]);
        assert!(!choose(&images, None).unwrap().is_foreign);
        for (files, words) in [
            (&[("repositories", &b"{}"[..])][..], "before 1.10"),
            (&[("etc/passwd", b"")], "neither manifest.json"),
            (&[("manifest.json", b"[]")], "no image"),
            (&[("manifest.json", b"{")], "manifest.json"),
            (&[("manifest.json", docker.as_bytes())], "c.json"),
            (&[("oci-layout", b"{}"), ("index.json", b"[]")], "index.json"),
        ] {
            let error = found(files).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}

#[cfg(test)]
mod fuzz {
    use super::super::archive::tests::opened;
    use super::*;

    #[test]
    fn archives() {
        crate::fuzz::bytes("image-archive", |bytes| {
            let Ok(archive) = opened(bytes) else { return };
            archive.check_paths();
            let Ok(images) = images(&archive, &Target::from(oci_spec::image::Arch::Amd64)) else { return };
            assert!(!images.is_empty() && images.len() <= IMAGES_LIMIT);
            for image in &images {
                let name = image.name();
                assert!(choose(&images, name.as_ref()).is_ok() || name.is_none() || image.is_foreign);
                if let Form::Docker { layers, .. } = &image.form {
                    for layer in layers {
                        let _ = archive.find(layer).map(|extent| archive.compression(extent));
                    }
                }
            }
            let _ = choose(&images, None);
        });
    }
}
