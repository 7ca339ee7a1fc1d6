//! A script in front of a runtime or shim that records its calls.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use harness::context::CaseContext;

/// A script in front of a real program, which records the arguments of each call.
pub struct CallRecorder {
    pub program: PathBuf,
    pub record: PathBuf,
}

impl CallRecorder {
    /// Writes the script `name` in front of the program `real`.
    pub fn new(case: &CaseContext, name: &str, real: &Path) -> Result<Self> {
        let directory = case.directory().join("bin");
        fs::create_dir_all(&directory)?;
        let recorder = Self { program: directory.join(name), record: directory.join(format!("{name}.ran")) };
        let script = format!(
            "#!/bin/sh\necho \" $* \" >> {}\nexec {} \"$@\"\n",
            recorder.record.display(),
            real.display()
        );
        fs::write(&recorder.program, script)?;
        fs::set_permissions(&recorder.program, Permissions::from_mode(0o755))?;
        Ok(recorder)
    }

    /// Writes a script in front of the shim, under another name.
    pub fn shim(case: &CaseContext) -> Result<Self> {
        Self::new(case, "another-shim", case.programs().shim())
    }

    /// Writes a script called `name` in front of the OCI runtime.
    pub fn runtime(case: &CaseContext, name: &str) -> Result<Self> {
        Self::new(case, name, case.programs().runtime())
    }

    /// Returns whether the program was called with this argument since the last look.
    pub fn has_run(&self, word: &str) -> bool {
        let record = fs::read_to_string(&self.record).unwrap_or_default();
        let _ = fs::remove_file(&self.record);
        record.contains(&format!(" {word} "))
    }

    /// Returns the path of the script.
    pub fn path(&self) -> String {
        self.program.display().to_string()
    }
}
