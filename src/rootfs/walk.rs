//! Resolves a path inside of a tree whose links are absolute within it, as a container sees them, to the place where it
//! ends, also where nothing is there. Pure: what is at a place is asked of the caller.

use std::collections::VecDeque;

/// As many links in one path as the kernel follows.
const LINKS_LIMIT: usize = 40;

/// What is at a place of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Nothing,
    File,
    Directory,
    Link(String),
    /// Something that is opened with an effect, or that makes its opener wait; in words.
    Other(&'static str),
}

/// The place that a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    /// Absolute, without links and dots.
    pub path: String,
    /// Never a link.
    pub kind: Kind,
}

/// Follows `path` from the tree's root on. What lies behind something missing, or behind something that is no directory,
/// is missing.
///
/// # Errors
/// Those of `look`.
pub(super) fn resolve<E>(path: &str, mut look: impl FnMut(&str) -> Result<Kind, E>) -> Result<End, E> {
    let parts = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
    let mut rest: VecDeque<String> = parts(path).into();
    let mut done: Vec<String> = Vec::new();
    let (mut kind, mut links) = (Kind::Directory, 0);
    while let Some(part) = rest.pop_front() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                done.pop();
                continue;
            }
            _ => done.push(part),
        }
        if kind != Kind::Directory {
            kind = Kind::Nothing;
            continue;
        }
        kind = look(&absolute(&done))?;
        if let Kind::Link(target) = &kind {
            links += 1;
            if links > LINKS_LIMIT {
                return Ok(End { path: absolute(&done), kind: Kind::Other("a link without an end") });
            }
            done.pop();
            if target.starts_with('/') {
                done.clear();
            }
            for part in parts(target).into_iter().rev() {
                rest.push_front(part);
            }
            kind = Kind::Directory;
        }
    }
    Ok(End { path: absolute(&done), kind })
}

fn absolute(parts: &[String]) -> String {
    format!("/{}", parts.join("/"))
}

/// Whether `path` is `directory` or lies below it; both are absolute and without dots.
pub(super) fn is_within(path: &str, directory: &str) -> bool {
    let directory = directory.trim_end_matches('/');
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// A tree of these entries; what else there is above them are directories.
    fn end(path: &str, tree: &[(&str, Kind)]) -> (String, Kind) {
        let look = |path: &str| {
            let found = tree.iter().find(|(at, _)| *at == path).map(|(_, kind)| kind.clone());
            let is_above = tree.iter().any(|(at, _)| is_within(at, path));
            let otherwise = if is_above { Kind::Directory } else { Kind::Nothing };
            Ok::<_, Infallible>(found.unwrap_or(otherwise))
        };
        let End { path, kind } = resolve(path, look).unwrap();
        (path, kind)
    }

    fn link(target: &str) -> Kind {
        Kind::Link(target.to_owned())
    }

    #[test]
    fn links_are_followed_within_the_tree() {
        let tree = [
            ("/etc/passwd", link("/accounts/users")),
            ("/accounts/users", Kind::File),
            ("/up", link("../../../../accounts")),
            ("/here", link("etc")),
        ];
        for path in ["/etc/passwd", "etc/../etc/passwd", "/up/users", "/here/./passwd", "/../up/users/"] {
            assert_eq!(end(path, &tree), ("/accounts/users".to_owned(), Kind::File), "{path}");
        }
        assert_eq!(end("/", &tree), ("/".to_owned(), Kind::Directory));
    }

    #[test]
    fn the_end_is_known_where_nothing_is() {
        let tree =
            [("/etc/passwd", link("/proc/self/fd/1")), ("/w", link("/local/x")), ("/file", Kind::File)];
        assert_eq!(end("/etc/passwd", &tree), ("/proc/self/fd/1".to_owned(), Kind::Nothing));
        assert_eq!(end("/w/y/../z", &tree), ("/local/x/z".to_owned(), Kind::Nothing));
        assert_eq!(end("/file/x", &tree), ("/file/x".to_owned(), Kind::Nothing));
    }

    #[test]
    fn a_circle_of_links_ends() {
        let tree = [("/a", link("/b")), ("/b", link("a"))];
        assert!(matches!(end("/a/x", &tree).1, Kind::Other(_)));
    }

    #[test]
    fn a_directory_has_only_what_is_below_it() {
        assert!(is_within("/proc", "/proc") && is_within("/proc/1", "/proc") && is_within("/x", "/"));
        assert!(!is_within("/process", "/proc") && !is_within("/", "/proc"));
    }
}
