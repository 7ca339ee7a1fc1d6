//! Lists of host directories that the operator allows, and which of them a path is in. Nothing is looked up.

use std::path::{Path, PathBuf};

use crate::config::{ConfigError, reject_nulls, value};

/// Decodes a list of directories.
///
/// # Errors
/// Names a directory that is not absolute, or that has a part `..`.
pub(super) fn absolute(
    option: &'static str,
    raw: Option<Vec<Option<String>>>,
) -> Result<Vec<PathBuf>, ConfigError> {
    let directory = |path: String| {
        if path.starts_with('/') && !path.split('/').any(|part| part == "..") {
            return Ok(PathBuf::from(path));
        }
        Err(value(option, path, "it must be an absolute path without \"..\""))
    };
    reject_nulls(option, raw)?.into_iter().map(directory).collect()
}

/// Splits a path into the innermost listed directory that it is in and the rest; `None` if it is in none of them.
pub(super) fn split(path: &Path, directories: &[PathBuf]) -> Option<(PathBuf, PathBuf)> {
    let within = |root: &PathBuf| Some((root.clone(), path.strip_prefix(root).ok()?.to_owned()));
    directories.iter().filter_map(within).max_by_key(|(root, _)| root.components().count())
}
