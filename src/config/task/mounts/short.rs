//! The options `volumes` and `tmpfs`: a mount as one string, in the format of docker's command line.

use super::fstab::Fstab;
use super::{HostSource, JobMount, MountSource, NAMED_VOLUME, target};
use crate::config::{ConfigError, value};

/// Docker's default options of a tmpfs.
pub(super) const TMPFS_DEFAULTS: [&str; 3] = ["nosuid", "nodev", "noexec"];

/// Words that ask docker for a label or for nothing: the image's files are never copied into a volume, and a host has
/// no copy of its files whose consistency there would be something to say about.
const WITHOUT_OPTION: [&str; 6] = ["z", "Z", "nocopy", "consistent", "cached", "delegated"];

/// Decodes `source:target[:options]`, or a target alone. With a volume driver of docker's (`has_driver`) a source that
/// is no absolute path is the name of a volume; without one it is in the task's directory.
///
/// # Errors
/// Says what in it is invalid.
pub(super) fn volume(text: &str, has_driver: bool) -> Result<JobMount, ConfigError> {
    let option = "volumes";
    let (source, target, options) = match text.split(':').collect::<Vec<_>>()[..] {
        [target] => (None, target, ""),
        [source, target] => (Some(source), target, ""),
        [source, target, options] => (Some(source), target, options),
        _ => {
            let why = "it must be \"source:target\" or \"source:target:options\"; the option mount takes paths with a \":\"";
            return Err(value(option, text, why));
        }
    };
    if source == Some("") {
        return Err(value(option, text, "the source is missing in front of the \":\""));
    }
    if has_driver && source.is_some_and(|source| !source.starts_with('/')) {
        return Err(value(option, text, NAMED_VOLUME));
    }
    let target = target::decode(option, Some(target.to_owned()))?;
    let mut list: Vec<String> =
        options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
    let is_labelled = list.iter().any(|option| matches!(option.as_str(), "z" | "Z"));
    list.retain(|option| !WITHOUT_OPTION.contains(&option.as_str()));
    let options = Fstab::new(option, &target, list)?.of_bind()?;
    let source = source.map_or(MountSource::Volume, |path| {
        MountSource::Host(HostSource { path: path.into(), is_made: true, is_labelled })
    });
    Ok(JobMount { option, target, source, options })
}

/// Decodes `target[:options]`.
///
/// # Errors
/// Says what in it is invalid.
pub(super) fn tmpfs(text: &str) -> Result<JobMount, ConfigError> {
    let option = "tmpfs";
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let target = target::decode(option, Some(target.to_owned()))?;
    let list = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
    let options = Fstab::new(option, &target, list)?.of_tmpfs(&TMPFS_DEFAULTS)?;
    Ok(JobMount { option, target, source: MountSource::Memory, options })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn volume(text: &str) -> Result<JobMount, ConfigError> {
        super::volume(text, false)
    }

    #[test]
    fn a_volume_is_a_source_a_target_and_options() {
        let host = |mount: &JobMount| match &mount.source {
            MountSource::Host(source) => (source.path.clone(), source.is_labelled),
            other => panic!("{other:?}"),
        };
        let plain = volume("local/x:/x").unwrap();
        assert_eq!((plain.target.as_str(), plain.options.join(",")), ("/x", "rbind,rprivate".to_owned()));
        assert_eq!(host(&plain), (Path::new("local/x").to_owned(), false));
        let all = volume("/srv/x:/x/:ro,Z,rslave,nocopy,cached").unwrap();
        assert_eq!((all.target.as_str(), all.options.join(",")), ("/x", "rbind,ro,rslave".to_owned()));
        assert_eq!(host(&all), (Path::new("/srv/x").to_owned(), true));
        assert_eq!(volume("/x").unwrap().source, MountSource::Volume);
    }

    #[test]
    fn short_tmpfs_mounts_get_dockers_defaults() {
        let plain = tmpfs("/run").unwrap();
        assert_eq!((plain.target.as_str(), plain.source), ("/run", MountSource::Memory));
        assert_eq!(plain.options, ["noexec", "nodev", "nosuid"]);
        assert_eq!(tmpfs("/run:size=1m,exec").unwrap().options.join(","), "nodev,nosuid,size=1048576,exec");
    }

    #[test]
    fn an_invalid_mount_is_refused() {
        for text in ["", "x", "a:b", "a:/b:c:d", ":/b", "/a:/b:q", "/a:/../b", "/a:/b:ro,rw"] {
            let error = volume(text).unwrap_err().to_string();
            assert!(error.contains("volumes"), "{error}");
        }
        for text in ["", "x", "/a:huge", "/a:size=x", "/a:rbind"] {
            let error = tmpfs(text).unwrap_err().to_string();
            assert!(error.contains("tmpfs"), "{error}");
        }
    }
}
