//! The programs of a network's plugins: all of them are looked up in one go, on one thread.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::path::PathBuf;
use std::time::SystemTime;

use super::error::Error;
use super::network::Network;
use crate::sys::blocking;

/// The programs that a network needs, as they were found in directories with plugins.
#[derive(Debug)]
pub(super) struct Programs {
    /// Name of the network, for errors.
    network: String,
    /// Directories in which the programs were looked for (`CNI_PATH`), in this order.
    pub directories: Vec<PathBuf>,
    found: HashMap<String, Program>,
}

/// The file of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    pub path: PathBuf,
    /// Time of the file's last change, if the file system tells it.
    pub modified: Option<SystemTime>,
}

impl Programs {
    /// Looks up the programs of a network, and checks that all of them are there.
    ///
    /// # Errors
    /// Says which program is missing, and where it was looked for.
    pub(super) async fn find(network: &Network, directories: &[PathBuf]) -> Result<Self, Error> {
        let programs = Self::look_up(network, directories).await;
        network.programs().into_iter().try_for_each(|name| programs.get(name).map(drop))?;
        Ok(programs)
    }

    /// Looks up the programs of a network, of which some may be missing.
    pub(super) async fn look_up(network: &Network, directories: &[PathBuf]) -> Self {
        let names: Vec<String> = network.programs().into_iter().map(str::to_owned).collect();
        let places = directories.to_owned();
        let look = move || {
            let names = names.into_iter();
            let found: HashMap<_, _> =
                names.filter_map(|name| find(&name, &places).map(|program| (name, program))).collect();
            (found, places)
        };
        let (found, directories) = blocking::run(look).await;
        Self { network: network.name.clone(), directories, found }
    }

    /// Returns a program by its name.
    ///
    /// # Errors
    /// Says where the program was looked for, if it is missing.
    pub(super) fn get(&self, name: &str) -> Result<&Program, Error> {
        self.found.get(name).ok_or_else(|| {
            let shown: Vec<String> =
                self.directories.iter().map(|directory| directory.display().to_string()).collect();
            Error::Missing {
                plugin: name.to_owned(),
                network: self.network.clone(),
                directories: shown.join(", "),
            }
        })
    }
}

fn find(name: &str, directories: &[PathBuf]) -> Option<Program> {
    directories.iter().find_map(|directory| {
        let path = directory.join(name);
        let file = fs::metadata(&path).ok().filter(Metadata::is_file)?;
        Some(Program { path, modified: file.modified().ok() })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::network::Plugin;
    use super::*;

    fn network() -> Network {
        let config = json!({"type": "bridge", "ipam": {"type": "host-local"}});
        Network {
            name: "web".to_owned(),
            origin: "x".to_owned(),
            versions: vec!["1.0.0".parse().unwrap()],
            disable_check: false,
            plugins: vec![Plugin::new(config.as_object().unwrap().clone()).unwrap()],
            rules: Vec::new(),
        }
    }

    #[tokio::test]
    async fn programs_are_found_in_the_first_directory_that_has_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let places = ["none", "first", "second"].map(|name| directory.path().join(name));
        for place in &places[1..] {
            fs::create_dir(place).unwrap();
            fs::write(place.join("host-local"), "").unwrap();
        }
        fs::create_dir(places[1].join("bridge")).unwrap();
        fs::write(places[2].join("bridge"), "").unwrap();
        let programs = Programs::find(&network(), &places).await.unwrap();
        assert_eq!(programs.directories, places);
        assert_eq!(programs.get("host-local").unwrap().path, places[1].join("host-local"));
        let bridge = programs.get("bridge").unwrap();
        assert_eq!(bridge.path, places[2].join("bridge"), "a directory is no program");
        assert_eq!(bridge.modified, fs::metadata(&bridge.path).unwrap().modified().ok());
        assert!(programs.get("portmap").is_err(), "it is none of the network's");
    }

    #[tokio::test]
    async fn a_missing_program_is_told_with_its_network_and_the_directories() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("bridge"), "").unwrap();
        let places = [directory.path().to_owned(), PathBuf::from("/none")];
        let error = Programs::find(&network(), &places).await.unwrap_err().to_string();
        for words in ["\"host-local\"", "network web", &directory.path().display().to_string(), ", /none"] {
            assert!(error.contains(words), "{error}");
        }
        let programs = Programs::look_up(&network(), &places).await;
        assert!(programs.get("bridge").is_ok() && programs.get("host-local").is_err());
    }
}
