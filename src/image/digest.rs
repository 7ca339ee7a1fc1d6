//! Digests of content: computed and checked.

use super::error::ImageError;
use oci_spec::image::{Descriptor, DigestAlgorithm};
use sha2::{Digest, Sha256};

/// Checks the algorithm of a digest.
///
/// # Errors
/// Unsupported unless it is sha256.
pub(crate) fn check_algorithm(descriptor: &Descriptor) -> Result<(), ImageError> {
    match descriptor.digest().algorithm() {
        DigestAlgorithm::Sha256 => Ok(()),
        _ => Err(ImageError::unsupported(format!("the digest {} is not a sha256", descriptor.digest()))),
    }
}

/// Checks the size of a blob.
///
/// # Errors
/// Corrupt if the blob doesn't have the size of its descriptor.
pub(crate) fn check_same_size(descriptor: &Descriptor, size_bytes: u64) -> Result<(), ImageError> {
    if descriptor.size() == size_bytes {
        return Ok(());
    }
    let digest = descriptor.digest();
    Err(ImageError::corrupt(format!("{digest} has {size_bytes} bytes instead of {}", descriptor.size())))
}

pub(crate) fn check_blob(descriptor: &Descriptor, bytes: &[u8]) -> Result<(), ImageError> {
    check_same_size(descriptor, bytes.len() as u64)?;
    check_digest(descriptor.digest().as_ref(), &digest_of(bytes))
}

pub(crate) fn check_digest(expected: &str, actual: &str) -> Result<(), ImageError> {
    if expected == actual {
        return Ok(());
    }
    Err(ImageError::corrupt(format!("it is {actual}, not {expected}")))
}

pub(crate) fn digest_of(bytes: &[u8]) -> String {
    digest_text(&Sha256::digest(bytes))
}

pub(crate) fn digest_text(hash: &[u8]) -> String {
    use std::fmt::Write;
    hash.iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_blob_has_the_size_and_the_digest_of_its_descriptor() {
        let descriptor = |digest: &str, size: u64| -> Descriptor {
            serde_json::from_value(json!({"mediaType": "text/plain", "digest": digest, "size": size}))
                .unwrap()
        };
        let digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest_of(b"abc"), digest);
        check_blob(&descriptor(digest, 3), b"abc").unwrap();
        for (descriptor, content) in [(descriptor(digest, 3), "abd"), (descriptor(digest, 4), "abc")] {
            let error = check_blob(&descriptor, content.as_bytes()).unwrap_err();
            assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
        }
    }
}
