//! Image names, as docker reads them: `redis` is `docker.io/library/redis:latest`. Pure: the registry says which image
//! a name stands for.
//!
//! Source of the facts: distribution/reference `reference.go` (the grammar) and `normalize.go` (the short forms).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

const DEFAULT_HOST: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
const NAME_LIMIT_BYTES: usize = 255;
const TAG_LIMIT_BYTES: usize = 128;

/// The error of a text that is no image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not an image name: {why}")]
pub(crate) struct ReferenceError {
    input: String,
    why: &'static str,
}

/// A complete image name: it always has a host, a repository, and a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// Returns the registry's host as written in the name, with its port.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    pub(crate) fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns whether both have the same name and tag, whatever their digests.
    pub(crate) fn is_named_as(&self, other: &Self) -> bool {
        (&self.host, &self.repository, &self.tag) == (&other.host, &other.repository, &other.tag)
    }

    pub(crate) fn without_digest(self) -> String {
        Self { digest: None, ..self }.to_string()
    }

    pub(crate) fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// Returns the version to ask the registry for: the digest, else the tag.
    pub(crate) fn version(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or(DEFAULT_TAG)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(input: &str) -> Result<Self, ReferenceError> {
        parse(input).map_err(|why| ReferenceError { input: input.to_owned(), why })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn parse(input: &str) -> Result<Reference, &'static str> {
    if input.is_empty() {
        return Err("it is empty");
    }
    if input.contains(char::is_whitespace) {
        return Err("it has white space in it");
    }
    if input.contains("://") {
        return Err("it must not start with a scheme");
    }
    let (rest, digest) = match input.split_once('@') {
        Some((rest, digest)) => (rest, Some(checked_digest(digest)?)),
        None => (input, None),
    };
    let (host, path) = split_host(rest);
    let (path, tag) = match path.split_once(':') {
        Some((path, tag)) => (path, Some(checked_tag(tag)?)),
        None => (path, None),
    };
    check_repository(path)?;
    if host.is_none() && path.len() == 64 && path.bytes().all(is_lower_hex) {
        return Err("it looks like an id; name the image, or write name@sha256:<digest>");
    }
    let host = match host {
        None | Some("index.docker.io") => DEFAULT_HOST,
        Some(host) => checked_host(host)?,
    };
    let repository = match path {
        official if host == DEFAULT_HOST && !official.contains('/') => format!("library/{official}"),
        path => path.to_owned(),
    };
    if host.len() + 1 + repository.len() > NAME_LIMIT_BYTES {
        return Err("it is longer than 255 bytes");
    }
    let tag = tag.or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
    Ok(Reference { host: host.to_owned(), repository, tag, digest })
}

/// Splits off the host: the first component, if it could not be part of a repository on docker.io.
fn split_host(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':', '['])
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (Some(first), rest)
        }
        _ => (None, name),
    }
}

fn checked_host(host: &str) -> Result<&str, &'static str> {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    if port
        .is_some_and(|port| port.parse::<u16>().is_err() || !port.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return Err("the port of its registry is not a number");
    }
    if let Some(address) = name.strip_prefix('[') {
        let address = address.strip_suffix(']').ok_or("the address of its registry is not closed by ]")?;
        return match address.parse::<IpAddr>() {
            Ok(IpAddr::V6(_)) => Ok(host),
            _ => Err("the address of its registry is not IPv6"),
        };
    }
    let label_is_good = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if name.split('.').all(label_is_good) { Ok(host) } else { Err("its registry is not a host name") }
}

fn check_repository(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("the name of the repository is missing");
    }
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("the name of a repository is in lower case");
    }
    if path.split('/').all(component_is_good) {
        Ok(())
    } else {
        Err("a part of a repository's name is lower-case letters and digits, which one of . _ __ - may join")
    }
}

/// Checks a component of a repository: letters and digits at both ends; in between also single dots, one or two
/// underscores, and any run of dashes.
fn component_is_good(component: &str) -> bool {
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_are_good =
        bytes.first().is_some_and(is_alphanumeric) && bytes.last().is_some_and(is_alphanumeric);
    ends_are_good
        && component.split(|letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit()).all(
            |separator| {
                matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
            },
        )
}

fn checked_tag(tag: &str) -> Result<String, &'static str> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    if !bytes.next().is_some_and(is_word) {
        return Err("its tag must start with a letter, a digit or _");
    }
    if tag.len() > TAG_LIMIT_BYTES {
        return Err("its tag is longer than 128 bytes");
    }
    if bytes.all(|byte| is_word(byte) || matches!(byte, b'.' | b'-')) {
        Ok(tag.to_owned())
    } else {
        Err("its tag has a character other than letters, digits, _ . -")
    }
}

pub(crate) fn checked_digest(digest: &str) -> Result<String, &'static str> {
    match digest.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 && hex.bytes().all(is_lower_hex) => Ok(digest.to_owned()),
        Some(_) => Err("its digest is not sha256: and 64 lower-case hex digits"),
        None => Err("its digest is not a sha256"),
    }
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";

    #[test]
    fn short_names_are_completed_as_docker_does() {
        for (input, canonical) in [
            ("redis", "docker.io/library/redis:latest"),
            ("redis:alpine", "docker.io/library/redis:alpine"),
            ("docker.io/redis", "docker.io/library/redis:latest"),
            ("docker.io/library/redis", "docker.io/library/redis:latest"),
            ("index.docker.io/library/redis:7", "docker.io/library/redis:7"),
            ("grafana/loki", "docker.io/grafana/loki:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b:v1.2_3-x", "localhost:5000/a/b:v1.2_3-x"),
            ("127.0.0.1:5000/busybox", "127.0.0.1:5000/busybox:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("ghcr.io/a-b/c__d/e.f:x", "ghcr.io/a-b/c__d/e.f:x"),
            ("Registry.example/a", "Registry.example/a:latest"),
            ("a---b/c", "docker.io/a---b/c:latest"),
            // A lone first part with a port is a tag, not a host.
            ("redis:5000", "docker.io/library/redis:5000"),
        ] {
            assert_eq!(input.parse::<Reference>().unwrap().to_string(), canonical, "{input}");
        }
    }

    #[test]
    fn a_canonical_name_is_its_own_canonical_name() {
        for name in ["docker.io/library/redis:7", "ghcr.io/a/b:c"] {
            assert_eq!(name.parse::<Reference>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn a_digest_needs_no_tag_and_wins_over_one() {
        let bare: Reference = format!("redis@{DIGEST}").parse().unwrap();
        assert_eq!(bare.to_string(), format!("docker.io/library/redis@{DIGEST}"));
        let both: Reference = format!("redis:7@{DIGEST}").parse().unwrap();
        assert_eq!(both.to_string(), format!("docker.io/library/redis:7@{DIGEST}"));
        assert_eq!(both.version(), DIGEST);
        assert_eq!("redis:7".parse::<Reference>().unwrap().version(), "7");
    }

    #[test]
    fn invalid_references_are_refused_with_a_reason() {
        let id = &DIGEST["sha256:".len()..];
        let long = format!("{}/a", "a/".repeat(130));
        for (input, why) in [
            ("", "empty"),
            ("re dis", "white space"),
            ("redis\n", "white space"),
            ("https://docker.io/redis", "scheme"),
            ("Redis", "lower case"),
            ("ghcr.io/a/B", "lower case"),
            ("redis:", "tag must start"),
            ("redis:-a", "tag must start"),
            ("redis:a+b", "tag has a character"),
            ("redis:a:b", "tag has a character"),
            ("redis@", "not a sha256"),
            ("redis@sha512:00", "not a sha256"),
            ("redis@sha256:00", "64 lower-case hex"),
            (":tag", "repository is missing"),
            ("ghcr.io/", "repository is missing"),
            ("/redis", "part of a repository"),
            ("a//b", "part of a repository"),
            ("a..b", "part of a repository"),
            ("_a", "part of a repository"),
            ("a___b", "part of a repository"),
            ("host.io:port/a", "port"),
            ("host.io:+80/a", "port"),
            ("ho_st.io/a", "not a host name"),
            ("-host.io/a", "not a host name"),
            ("host-.io/a", "not a host name"),
            ("host..io/a", "not a host name"),
            ("[::1/a", "not closed"),
            ("[12]:80/a", "not IPv6"),
            ("ümlaut", "part of a repository"),
            (id, "looks like an id"),
            (&long, "part of a repository"),
            (&format!("{}a", "a/".repeat(130)), "255 bytes"),
            (&format!("a:{}", "t".repeat(129)), "128 bytes"),
        ] {
            let error = input.parse::<Reference>().unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
            assert!(error.to_string().starts_with(&format!("{input:?}")), "{error}");
        }
    }

    #[test]
    fn a_name_has_255_bytes_at_most_and_a_tag_128() {
        let name = |length: usize| format!("ghcr.io/{}", "a".repeat(length - "ghcr.io/".len()));
        assert!(name(255).parse::<Reference>().is_ok() && name(256).parse::<Reference>().is_err());
        let tagged = |length: usize| format!("a:{}", "t".repeat(length)).parse::<Reference>();
        assert!(tagged(128).is_ok() && tagged(129).is_err());
    }

    #[test]
    fn names_are_compared_without_their_digests() {
        let parsed = |name: &str| name.parse::<Reference>().unwrap();
        let bare = parsed("redis:7");
        assert_eq!((bare.host(), bare.repository(), bare.tag()), ("docker.io", "library/redis", Some("7")));
        assert!(bare.is_named_as(&parsed(&format!("redis:7@{DIGEST}"))));
        for other in ["redis:8", "redis", "me/redis:7", "ghcr.io/library/redis:7"] {
            assert!(!bare.is_named_as(&parsed(other)), "{other}");
        }
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        /// Generates valid names, and nearly valid ones.
        fn name() -> impl Strategy<Value = String> {
            let host = "((localhost|[a-z][a-z0-9-]{0,5}(\\.[a-z0-9]{1,4}){1,2}|\\[::1\\]|127\\.0\\.0\\.1)(:[0-9]{1,6})?/)?";
            let path = "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,3}){0,2}(/[a-z0-9]{1,5}){0,3}";
            let version = "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,10})?(@sha256:[0-9a-f]{64})?";
            proptest::string::string_regex(&format!("{host}{path}{version}")).unwrap()
        }

        /// Checks that a name consists of letters that are safe in a URL and in a header, and is the same when read
        /// again.
        fn check(input: &str) -> Result<(), TestCaseError> {
            let Ok(reference) = input.parse::<Reference>() else { return Ok(()) };
            let text = reference.to_string();
            prop_assert!(
                text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#%\"<>\\".contains(&byte)),
                "{text}"
            );
            prop_assert!(!reference.host().contains('/') && !reference.host().contains('@'), "{text}");
            prop_assert!(
                !reference.repository().split('/').any(|part| matches!(part, "" | "." | "..")),
                "{text}"
            );
            prop_assert_eq!(text.parse::<Reference>().unwrap(), reference);
            Ok(())
        }

        proptest! {
            #[test]
            fn any_input_is_canonical_or_refused(input in ".{0,60}") {
                check(&input)?;
            }

            #[test]
            fn references_are_parsed_and_near_misses_do_no_harm(
                input in name(),
                at in any::<prop::sample::Index>(),
                letter in any::<char>(),
            ) {
                check(&input)?;
                let at = at.index(input.len());
                check(&format!("{}{letter}{}", &input[..at], &input[at..]))?;
                check(&format!("{}{letter}{}", &input[..at], &input[at + 1..]))?;
            }
        }
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn references() {
        crate::fuzz::text("image-reference", |input| {
            let Ok(reference) = input.parse::<Reference>() else { return };
            let text = reference.to_string();
            assert!(
                text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#%\"<>\\".contains(&byte)),
                "{text}"
            );
            assert!(
                text.len() <= NAME_LIMIT_BYTES + 1 + TAG_LIMIT_BYTES + 1 + "sha256:".len() + 64,
                "{text}"
            );
            assert!(!reference.repository().split('/').any(|part| matches!(part, "" | "." | "..")), "{text}");
            assert_eq!(text.parse().as_ref(), Ok(&reference));
            assert!(
                reference.is_named_as(&reference.clone().without_digest().parse().unwrap())
                    || reference.tag().is_none()
            );
        });
    }
}
