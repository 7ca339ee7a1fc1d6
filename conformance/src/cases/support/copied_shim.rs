//! A shim whose binary is replaced, as by an upgrade.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use harness::context::CaseContext;
use serde_json::{Value, json};

/// A copy of the suite's shim, under a name of its own.
pub struct CopiedShim<'a> {
    case: &'a CaseContext,
    path: PathBuf,
}

impl<'a> CopiedShim<'a> {
    pub fn new(case: &'a CaseContext) -> Result<Self> {
        let path = case.directory().join("containerd-shim-copied");
        fs::create_dir_all(case.directory())?;
        let copied = Self { case, path };
        copied.replace()?;
        Ok(copied)
    }

    /// Puts another file in the place of the binary.
    pub fn replace(&self) -> Result<()> {
        let new = self.path.with_extension("new");
        fs::copy(self.case.programs().shim(), &new)?;
        Ok(fs::rename(&new, &self.path)?)
    }

    /// Returns the plugin's options with this shim.
    pub fn options(&self) -> Value {
        let runtime = self.path.display().to_string();
        let mut options = self.case.options_with(&runtime);
        options["containerd_runtime"] = json!(runtime);
        options
    }
}
