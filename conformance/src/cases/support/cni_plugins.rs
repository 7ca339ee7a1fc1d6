//! A directory of CNI plugins of which some can be replaced.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::Result;
use harness::context::CaseContext;
use serde_json::{Value, json};

const SUCCESSOR: &str = ".new";

/// The directory, which begins with a link to each CNI plugin of the machine.
pub struct Plugins {
    directory: PathBuf,
    installed: PathBuf,
}

impl Plugins {
    pub fn install(case: &CaseContext) -> Result<Self> {
        let directory = case.directory().join("plugins");
        fs::create_dir_all(&directory)?;
        let installed = case.programs().cni().to_owned();
        for plugin in fs::read_dir(&installed)? {
            let plugin = plugin?;
            symlink(plugin.path(), directory.join(plugin.file_name()))?;
        }
        Ok(Self { directory, installed })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn remove(&self, plugin: &str) -> Result<()> {
        Ok(fs::remove_file(self.directory.join(plugin))?)
    }

    pub fn restore(&self, plugin: &str) -> Result<()> {
        symlink(self.installed.join(plugin), self.successor()?)?;
        self.succeed(plugin)
    }

    /// Returns a path where nothing is, for what is about to take the place of a plugin that somebody may be running.
    fn successor(&self) -> Result<PathBuf> {
        let at = self.directory.join(SUCCESSOR);
        match fs::remove_file(&at) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(at),
        }
    }

    fn succeed(&self, plugin: &str) -> Result<()> {
        Ok(fs::rename(self.directory.join(SUCCESSOR), self.directory.join(plugin))?)
    }

    /// Replaces a CNI plugin by a script for the command `when`. The script can run the real plugin as `"$real"`, which
    /// also serves all other commands.
    pub fn replace(&self, plugin: &str, when: &str, script: &str) -> Result<()> {
        let text = format!(
            "#!/bin/sh\nreal={}\nif [ \"$CNI_COMMAND\" = {when} ]; then\n{script}\nfi\nexec \"$real\"\n",
            self.installed.join(plugin).display()
        );
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o755).open(self.successor()?)?;
        file.write_all(text.as_bytes())?;
        drop(file);
        self.succeed(plugin)
    }

    /// Has the driver use these plugins.
    pub fn add_to(&self, options: &mut Value) {
        options["cni_path"] = json!(self.directory.display().to_string());
    }
}
