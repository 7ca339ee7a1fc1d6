//! A script in front of a runtime or shim that notes its calls.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use harness::context::CaseContext;

/// A script in front of a real program, which notes the arguments of each call.
pub struct Noting {
    pub program: PathBuf,
    pub notes: PathBuf,
}

impl Noting {
    pub fn new(case: &CaseContext, name: &str, real: &Path) -> Result<Self> {
        let directory = case.directory().join("bin");
        fs::create_dir_all(&directory)?;
        let noting = Self { program: directory.join(name), notes: directory.join(format!("{name}.ran")) };
        let script = format!(
            "#!/bin/sh\necho \" $* \" >> {}\nexec {} \"$@\"\n",
            noting.notes.display(),
            real.display()
        );
        fs::write(&noting.program, script)?;
        fs::set_permissions(&noting.program, Permissions::from_mode(0o755))?;
        Ok(noting)
    }

    pub fn shim(case: &CaseContext) -> Result<Self> {
        Self::new(case, "another-shim", case.programs().shim())
    }

    pub fn runtime(case: &CaseContext, name: &str) -> Result<Self> {
        Self::new(case, name, case.programs().runtime())
    }

    /// Returns whether the program was called with this argument since the last look.
    pub fn has_run(&self, word: &str) -> bool {
        let notes = fs::read_to_string(&self.notes).unwrap_or_default();
        let _ = fs::remove_file(&self.notes);
        notes.contains(&format!(" {word} "))
    }

    pub fn path(&self) -> String {
        self.program.display().to_string()
    }
}
