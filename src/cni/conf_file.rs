//! Networks in files of the operator's: `*.conflist`, and `*.conf` and `*.json` with one plugin, in one directory.
//!
//! Source of the facts: the CNI specification 1.1, section 1; libcni/conf.go at v1.3 for the names of files and their
//! order.

#![expect(
    clippy::disallowed_methods,
    reason = "opens the operator's files, which no job, image or task can shape"
)]

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::{Error, join_versions};
use super::network::{Network, Plugin, check_name};
use super::version::Version;

const FILE_LIMIT_BYTES: u64 = 1024 * 1024;

/// Finds the network `name`: in the first file that has it, lists before single plugins. A file that can't be read
/// matters only where the network is in no other.
///
/// # Errors
/// Lists the networks that there are, and the files that are of no use.
pub(super) fn find(directory: &Path, name: &str) -> Result<Network, Error> {
    check_name("network", name)?;
    let mut names = Vec::new();
    let mut broken = Vec::new();
    for path in files(directory, &["conflist"])?.into_iter().chain(files(directory, &["conf", "json"])?) {
        match read(&path) {
            Ok((found, body)) if found == name => return network(&path, found, body),
            Ok((found, _)) => names.push(found),
            Err(why) => broken.push(format!("{} can't be used: {why}", path.display())),
        }
    }
    names.dedup();
    let available = if names.is_empty() {
        "the directory has no networks".to_owned()
    } else {
        format!("it has {}", names.join(", "))
    };
    let available = [vec![available], broken].concat().join("; ");
    Err(Error::Unknown { name: name.to_owned(), directory: directory.to_owned(), available })
}

/// Returns the files with one of these endings, in the order of their names; none where there is no such directory.
fn files(directory: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", directory)(error)),
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(Error::io("list", directory))?;
    paths.retain(|path| path.extension().is_some_and(|ending| endings.iter().any(|one| ending == *one)));
    paths.sort();
    Ok(paths)
}

fn read_object(path: &Path) -> Result<Map<String, Value>, String> {
    // A pipe would not even open, and would never end.
    if !fs::metadata(path).map_err(|error| error.to_string())?.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let mut text = Vec::new();
    let mut file = fs::File::open(path).map_err(|error| error.to_string())?.take(FILE_LIMIT_BYTES + 1);
    file.read_to_end(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > FILE_LIMIT_BYTES {
        return Err(format!("it is larger than {FILE_LIMIT_BYTES} bytes"));
    }
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}

fn read(path: &Path) -> Result<(String, Map<String, Value>), String> {
    let body = read_object(path)?;
    match body.get("name") {
        Some(Value::String(name)) => Ok((name.clone(), body)),
        Some(_) => Err("its name is not a string".to_owned()),
        None => Err("it has no name".to_owned()),
    }
}

fn network(path: &Path, name: String, body: Map<String, Value>) -> Result<Network, Error> {
    let origin = path.display().to_string();
    let fail = |why: String| Error::Config { origin: origin.clone(), why };
    let versions = versions(&body).map_err(fail)?;
    let flag = |key| flag(&body, key).map_err(fail);
    let disable_check = flag("disableCheck")?;
    let is_list = path.extension().is_some_and(|ending| ending == "conflist");
    let plugins = if is_list {
        let inlined = flag("loadOnlyInlinedPlugins")?;
        let mut plugins = inline_plugins(&body).map_err(fail)?;
        if inlined && plugins.is_empty() {
            return Err(fail("it has loadOnlyInlinedPlugins, but no plugins".to_owned()));
        }
        if !inlined && let Some(directory) = path.parent() {
            plugins.extend(plugins_in_files(&directory.join(&name))?);
        }
        plugins
    } else {
        vec![Plugin::new(body).map_err(fail)?]
    };
    if plugins.is_empty() {
        return Err(fail("it has no plugins".to_owned()));
    }
    Ok(Network { name, origin, versions, disable_check, plugins, rules: Vec::new() })
}

/// Returns the plugins in the list itself.
fn inline_plugins(body: &Map<String, Value>) -> Result<Vec<Plugin>, String> {
    let plugins = match body.get("plugins") {
        None => return Ok(Vec::new()),
        Some(Value::Array(plugins)) if !plugins.is_empty() => plugins,
        Some(_) => return Err("its plugins are not a list, or the list is empty".to_owned()),
    };
    let one = |(number, plugin): (usize, &Value)| match plugin {
        Value::Object(config) => Plugin::new(config.clone()).map_err(|why| format!("plugin {number}: {why}")),
        _ => Err(format!("plugin {number} is not an object")),
    };
    (1..).zip(plugins).map(one).collect()
}

/// Returns the plugins in files of their own, in a directory named like the network.
fn plugins_in_files(directory: &Path) -> Result<Vec<Plugin>, Error> {
    let one = |path: PathBuf| {
        read_object(&path)
            .and_then(Plugin::new)
            .map_err(|why| Error::Config { origin: path.display().to_string(), why })
    };
    files(directory, &["conf"])?.into_iter().map(one).collect()
}

/// Returns the versions, in ascending order, that the network allows and that are known here.
fn versions(body: &Map<String, Value>) -> Result<Vec<Version>, String> {
    let list = match body.get("cniVersions") {
        None => &Vec::new(),
        Some(Value::Array(list)) => list,
        Some(_) => return Err("its cniVersions are not a list".to_owned()),
    };
    let texts = list.iter().chain(body.get("cniVersion")).map(|text| {
        text.as_str()
            .ok_or_else(|| format!("its version {text} is not a string"))
            .and_then(str::parse::<Version>)
    });
    let mut all = texts.collect::<Result<Vec<_>, _>>()?;
    all.sort();
    all.dedup();
    let known: Vec<_> = all.iter().copied().filter(|version| version.is_known()).collect();
    if !known.is_empty() {
        return Ok(known);
    }
    let (oldest, newest) = (Version::OLDEST, Version::NEWEST);
    match &all[..] {
        [] => Err(format!("it has no cniVersion; {oldest} to {newest} are supported")),
        all => Err(format!("its versions are {}; {oldest} to {newest} are supported", join_versions(all))),
    }
}

/// Reads a flag, `false` by default. Like libcni, takes the words "true" and "false" as well.
fn flag(body: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match body.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("its {key} is {other}, not true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)], name: &str) -> Result<Network, String> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        find(directory.path(), name).map_err(|error| error.to_string())
    }

    fn kinds(network: &Network) -> Vec<&str> {
        network.plugins.iter().map(|plugin| plugin.kind.as_str()).collect()
    }

    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "web", "disableCheck": "True",
        "plugins": [{"type": "bridge"}, {"type": "portmap"}]}"#;

    #[test]
    fn conflist_files_come_before_single_plugin_files_in_name_order() {
        let single = r#"{"cniVersion": "0.4.0", "name": "web", "type": "macvlan"}"#;
        let other = LIST.replace("bridge", "ptp");
        let network =
            found(&[("00.conf", single), ("20.conflist", &other), ("10.conflist", LIST)], "web").unwrap();
        assert_eq!(kinds(&network), ["bridge", "portmap"]);
        assert!(network.disable_check && network.origin.ends_with("10.conflist"));
        for name in ["00.conf", "00.json"] {
            let network = found(&[(name, single)], "web").unwrap();
            assert_eq!(
                (kinds(&network), network.version().to_string()),
                (vec!["macvlan"], "0.4.0".to_owned())
            );
        }
    }

    #[test]
    fn plugins_in_separate_files_follow_the_inline_ones() {
        let tuning = ("web/10.conf", r#"{"type": "tuning"}"#);
        assert_eq!(
            kinds(&found(&[("a.conflist", LIST), tuning], "web").unwrap()),
            ["bridge", "portmap", "tuning"]
        );
        let alone = r#"{"cniVersion": "1.1.0", "name": "web"}"#;
        assert_eq!(kinds(&found(&[("a.conflist", alone), tuning], "web").unwrap()), ["tuning"]);
        let inlined = LIST.replace("disableCheck", "loadOnlyInlinedPlugins");
        assert_eq!(kinds(&found(&[("a.conflist", &inlined), tuning], "web").unwrap()), ["bridge", "portmap"]);
        let error = found(&[("a.conflist", LIST), ("web/10.conf", "{\n\n")], "web").unwrap_err();
        assert!(error.contains("web/10.conf") && error.contains("line 3"), "{error}");
    }

    #[test]
    fn a_network_file_has_at_most_a_mebibyte() {
        let padded = |length: usize| format!("{LIST}{}", " ".repeat(length - LIST.len()));
        assert_eq!(kinds(&found(&[("a.conflist", &padded(1 << 20))], "web").unwrap()), ["bridge", "portmap"]);
        let error = found(&[("a.conflist", &padded((1 << 20) + 1))], "web").unwrap_err();
        assert!(error.contains("larger than 1048576 bytes"), "{error}");
    }

    #[test]
    fn an_unknown_network_lists_the_known_ones_and_broken_files() {
        let files = [("a.conflist", LIST), ("b.conf", "{\n\"name\": ]"), ("c.txt", "x")];
        let error = found(&files, "db").unwrap_err();
        assert!(error.contains("\"db\"") && error.contains("it has web"), "{error}");
        assert!(error.contains("b.conf") && error.contains("line 2") && !error.contains("c.txt"), "{error}");
        assert!(found(&files, "web").is_ok());
        let error = found(&[], "db").unwrap_err();
        assert!(error.contains("the directory has no networks"), "{error}");
        let missing = find(Path::new("/no/such/directory"), "db").unwrap_err().to_string();
        assert!(missing.contains("/no/such/directory"), "{missing}");
        assert!(found(&files, "../web").unwrap_err().contains("../web"));
    }

    #[test]
    fn an_invalid_network_file_is_refused_with_the_reason() {
        for (body, word) in [
            (r#""plugins": [{"type": "a"}]"#, "no cniVersion"),
            (r#""cniVersion": "0.2.0", "plugins": [{"type": "a"}]"#, "0.2.0"),
            (r#""cniVersions": ["2.0.0", "1.2.0"], "plugins": [{"type": "a"}]"#, "1.2.0, 2.0.0"),
            (r#""cniVersion": 1, "plugins": [{"type": "a"}]"#, "version 1"),
            (r#""cniVersion": "1.0.0""#, "no plugins"),
            (r#""cniVersion": "1.0.0", "plugins": []"#, "empty"),
            (r#""cniVersion": "1.0.0", "plugins": [{"type": "a"}, {}]"#, "plugin 2"),
            (r#""cniVersion": "1.0.0", "plugins": [{"type": "../a"}]"#, "../a"),
            (r#""cniVersion": "1.0.0", "plugins": [{"type": "a"}], "disableCheck": 1"#, "disableCheck"),
            (r#""cniVersion": "1.0.0", "loadOnlyInlinedPlugins": true"#, "loadOnlyInlinedPlugins"),
        ] {
            let error = found(&[("a.conflist", &format!("{{\"name\": \"n\", {body}}}"))], "n").unwrap_err();
            assert!(error.contains(word) && error.contains("a.conflist"), "{body}: {error}");
        }
    }

    #[test]
    fn unknown_versions_of_a_network_are_dropped() {
        let list = LIST.replace("\"name\"", "\"cniVersions\": [\"2.0.0\", \"1.1.0\", \"0.4.0\"], \"name\"");
        let network = found(&[("a.conflist", &list)], "web").unwrap();
        assert_eq!(join_versions(&network.versions), "0.4.0, 1.0.0, 1.1.0");
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn networks() {
        crate::fuzz::bytes("cni-conf", |text| {
            let Ok(body) = serde_json::from_slice::<Map<String, Value>>(text) else { return };
            for path in ["/nowhere/a.conflist", "/nowhere/a.conf"] {
                let Ok(found) = network(Path::new(path), "web".to_owned(), body.clone()) else { continue };
                assert!(
                    found.versions.iter().all(|version| version.is_known()) && found.versions.is_sorted()
                );
                assert!(!found.plugins.is_empty());
                for plugin in &found.plugins {
                    assert!(
                        Path::new(&plugin.kind).components().count() == 1 && plugin.kind != "..",
                        "{}",
                        plugin.kind
                    );
                    let request = plugin.request(&found, &Map::new(), None);
                    assert_eq!(
                        (&request["name"], &request["type"]),
                        (&"web".into(), &plugin.kind.clone().into())
                    );
                }
                let (programs, capabilities) = (found.programs().len(), found.capabilities().len());
                assert!(programs >= found.plugins.len() && capabilities <= text.len());
                let stored = serde_json::to_vec(&found).unwrap();
                assert_eq!(serde_json::from_slice::<Network>(&stored).unwrap(), found);
            }
        });
    }
}
