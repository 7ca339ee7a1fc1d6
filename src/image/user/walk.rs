//! Resolves a path inside of a tree as a container would: absolute symbolic links are relative to the tree's root.
//! Returns the final place even if nothing exists there. Pure: the caller looks up the kind of each file.

use std::collections::VecDeque;

/// Maximum number of symbolic links in one path, the same as the kernel's.
const LINKS_LIMIT: usize = 40;
/// Maximum number of names in a path, including those of its links: each is looked up, and links could expand to
/// millions.
const NAMES_LIMIT: usize = 1024;

/// The kind of a file in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Nothing,
    File,
    Directory,
    Link(String),
    /// Something that is opened with an effect, or that blocks its opener; its name in words.
    Other(&'static str),
}

/// The place that a path resolves to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    /// Absolute path, without symbolic links and dots.
    pub path: String,
    /// Kind of the file at the path; never a link.
    pub kind: Kind,
    /// The outermost places that the path goes through: each link, each directory that a `..` leads back from, and the
    /// end.
    pub passed: Vec<String>,
}

/// Resolves `path` from the tree's root on. A path below something missing, or below something other than a directory,
/// is missing; a `..` leads back from there all the same, since a mount may put a directory there.
///
/// # Errors
/// The errors of `look`.
pub(super) fn resolve<E>(path: &str, mut look: impl FnMut(&str) -> Result<Kind, E>) -> Result<End, E> {
    let parts = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
    let mut rest: VecDeque<String> = parts(path).into();
    let mut done: Vec<(String, Kind)> = Vec::new();
    let (mut links, mut names, mut passed) = (0, 0, Vec::new());
    while let Some(part) = rest.pop_front() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                passed.push(absolute(&done));
                done.pop();
            }
            _ => {
                let is_below_directory = done.last().is_none_or(|(_, kind)| *kind == Kind::Directory);
                done.push((part, Kind::Nothing));
                let place = absolute(&done);
                let kind = if is_below_directory { look(&place)? } else { Kind::Nothing };
                if let Kind::Link(target) = kind {
                    links += 1;
                    passed.push(place);
                    done.pop();
                    if target.starts_with('/') {
                        done.clear();
                    }
                    for part in parts(&target).into_iter().rev() {
                        rest.push_front(part);
                    }
                } else if let Some((_, of_it)) = done.last_mut() {
                    *of_it = kind;
                }
            }
        }
        names += 1;
        if links > LINKS_LIMIT || names > NAMES_LIMIT {
            return Ok(End { path: absolute(&done), kind: Kind::Other("a loop of symbolic links"), passed });
        }
    }
    let kind = done.last().map_or(Kind::Directory, |(_, kind)| kind.clone());
    let path = absolute(&done);
    passed.push(path.clone());
    Ok(End { path, kind, passed })
}

fn absolute(parts: &[(String, Kind)]) -> String {
    if parts.is_empty() { "/".to_owned() } else { parts.iter().map(|(name, _)| format!("/{name}")).collect() }
}

/// Returns true if `path` is `directory` or lies below it; both are absolute and without dots.
pub(super) fn is_within(path: &str, directory: &str) -> bool {
    let directory = directory.trim_end_matches('/');
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Resolves a path in a tree with these entries; everything above them is a directory.
    fn end(path: &str, tree: &[(&str, Kind)]) -> (String, Kind) {
        let look = |path: &str| {
            let found = tree.iter().find(|(at, _)| *at == path).map(|(_, kind)| kind.clone());
            let is_above = tree.iter().any(|(at, _)| is_within(at, path));
            let otherwise = if is_above { Kind::Directory } else { Kind::Nothing };
            Ok::<_, Infallible>(found.unwrap_or(otherwise))
        };
        let End { path, kind, passed: _ } = resolve(path, look).unwrap();
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
    fn missing_paths_resolve_to_their_end() {
        let tree =
            [("/etc/passwd", link("/proc/self/fd/1")), ("/w", link("/local/x")), ("/file", Kind::File)];
        assert_eq!(end("/etc/passwd", &tree), ("/proc/self/fd/1".to_owned(), Kind::Nothing));
        assert_eq!(end("/w/y/../z", &tree), ("/local/x/z".to_owned(), Kind::Nothing));
        assert_eq!(end("/file/x", &tree), ("/file/x".to_owned(), Kind::Nothing));
    }

    #[test]
    fn parents_of_missing_paths_and_passed_directories_are_known() {
        let tree = [
            ("/etc/passwd", link("../missing/../pipe")),
            ("/pipe", Kind::Other("a pipe")),
            ("/w", link("/proc/self/cwd/../../../w2")),
        ];
        assert_eq!(end("/etc/passwd", &tree), ("/pipe".to_owned(), Kind::Other("a pipe")));
        let look = |path: &str| {
            let found = tree.iter().find(|(at, _)| *at == path).map(|(_, kind)| kind.clone());
            Ok::<_, Infallible>(found.unwrap_or(Kind::Nothing))
        };
        let End { path, passed, .. } = resolve("/w", look).unwrap();
        assert_eq!(path, "/w2");
        assert!(passed.contains(&"/proc/self/cwd".to_owned()), "{passed:?}");
    }

    #[test]
    fn the_length_of_a_path_is_limited() {
        let tree = [("/a", Kind::Directory)];
        assert!(matches!(end(&"/a/..".repeat(NAMES_LIMIT), &tree).1, Kind::Other(_)));
    }

    #[test]
    fn a_loop_of_links_ends() {
        let tree = [("/a", link("/b")), ("/b", link("a"))];
        assert!(matches!(end("/a/x", &tree).1, Kind::Other(_)));
    }

    #[test]
    fn paths_are_compared_by_components() {
        assert!(is_within("/proc", "/proc") && is_within("/proc/1", "/proc") && is_within("/x", "/"));
        assert!(!is_within("/process", "/proc") && !is_within("/", "/proc"));
    }
}

#[cfg(test)]
mod fuzz {
    use std::convert::Infallible;

    use super::*;

    /// Reads a tree, a place on each line: `f` and its path, `d` and its path, or `l`, its path, a blank and its target.
    fn kind(tree: &str, path: &str) -> Kind {
        let found = tree.lines().find_map(|line| {
            let (at, target) = line.get(1..)?.split_once(' ').unwrap_or((line.get(1..)?, ""));
            (at == path).then(|| match line.as_bytes()[0] {
                b'l' => Kind::Link(target.to_owned()),
                b'f' => Kind::File,
                b'd' => Kind::Directory,
                _ => Kind::Other("something else"),
            })
        });
        found.unwrap_or(if path.len().is_multiple_of(3) { Kind::Nothing } else { Kind::Directory })
    }

    #[test]
    fn paths() {
        crate::fuzz::text("image-paths", |input| {
            let (path, tree) = input.split_once('\n').unwrap_or((input, ""));
            let mut looks = 0;
            let mut resolved = |path: &str| {
                resolve(path, |path| {
                    looks += 1;
                    Ok::<_, Infallible>(kind(tree, path))
                })
                .unwrap()
            };
            let end = resolved(path);
            let again = resolved(&end.path);
            for place in end.passed.iter().chain([&end.path]) {
                assert!(place.starts_with('/'), "{place:?}");
                let is_part = |part: &str| !matches!(part, "" | "." | "..");
                assert!(place == "/" || place[1..].split('/').all(is_part), "{place:?}");
            }
            assert!(looks <= 2 * (NAMES_LIMIT + 1) && end.passed.len() <= NAMES_LIMIT + LINKS_LIMIT + 2);
            assert!(!matches!(end.kind, Kind::Link(_)));
            if !matches!(end.kind, Kind::Other(_)) {
                assert_eq!((again.path, again.kind), (end.path, end.kind));
            }
        });
    }
}
