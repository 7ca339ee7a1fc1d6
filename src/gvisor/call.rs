//! A call of `runsc` by gVisor's shim: its action, and the bundle of its container.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::PROGRAM;

/// A call of `runsc` for one container.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) arguments: Vec<OsString>,
    /// Path of the container's bundle.
    pub(super) bundle: PathBuf,
    /// Path or name of the real `runsc`.
    pub(super) program: PathBuf,
}

impl Call {
    /// Reads a call from the arguments of `runsc`.
    ///
    /// # Errors
    /// When the arguments don't say which container the call is for.
    pub(super) fn of(arguments: Vec<OsString>) -> io::Result<Self> {
        let Some(bundle) = bundle(&arguments) else {
            return Err(io::Error::other(
                "it was called without a log in a bundle (--log=<bundle>/log.json)",
            ));
        };
        let named = std::fs::read(bundle.join(PROGRAM)).ok().filter(|name| !name.is_empty());
        let program = named.map_or_else(|| PathBuf::from("runsc"), |name| OsString::from_vec(name).into());
        Ok(Self { arguments, bundle, program })
    }

    /// Returns the action that `runsc` is called for, such as `create`. `None` if the arguments have none.
    pub(super) fn action(&self) -> Option<&str> {
        self.words().first()?.to_str()
    }

    /// Returns the arguments from the action on.
    pub(super) fn words(&self) -> &[OsString] {
        &self.arguments[self.action_at()..]
    }

    /// Returns the command of another call of `runsc`, with this call's flags before the action.
    pub(super) fn runsc(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments[..self.action_at()]).args(words);
        command
    }

    fn action_at(&self) -> usize {
        let is_flag = |word: &&OsString| word.as_bytes().starts_with(b"-");
        self.arguments.iter().take_while(is_flag).count()
    }
}

/// Returns the bundle that a call is for: the directory of its log, which the shim has in the bundle.
fn bundle(arguments: &[OsString]) -> Option<PathBuf> {
    let log = arguments.iter().find_map(|word| word.as_bytes().strip_prefix(b"--log="))?;
    let bundle = Path::new(OsStr::from_bytes(log)).parent()?;
    bundle.is_absolute().then(|| bundle.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_action_and_bundle_of_a_call_are_parsed() {
        let directory = tempfile::tempdir().unwrap();
        let log = format!("--log={}/log.json", directory.path().display());
        let call = |words: &[&str]| {
            let words = [&["--root=/r", &log, "--log-format=json", "--network=host"], words].concat();
            Call::of(words.into_iter().map(OsString::from).collect()).unwrap()
        };
        let create = call(&["create", "--bundle", "/elsewhere", "wait"]);
        assert_eq!((create.action(), create.bundle.as_path()), (Some("create"), directory.path()));
        assert_eq!(create.program, Path::new("runsc"));
        std::fs::write(directory.path().join(PROGRAM), "/opt/runsc").unwrap();
        assert_eq!(call(&["wait", "web-1"]).program, Path::new("/opt/runsc"));
        assert_eq!(call(&[]).action(), None);
        assert!(Call::of(vec!["create".into()]).is_err());
    }
}
