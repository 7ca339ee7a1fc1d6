//! Runs AppArmor's parser, which compiles a profile and has the kernel load it. One of the few modules of the plugin that
//! start processes.
//!
//! The parser gets a clean environment, the profile on its stdin and pipes of its own; its process group is killed at the
//! deadline, and when the start is cancelled.
//!
//! Source of the facts: apparmor_parser(8).
#![allow(clippy::disallowed_methods, reason = "the parser is a program by design; its stdio is set here")]

use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::security::ConfinementError;
use crate::sys::os_error::{is_transient, reports_transient};
use crate::sys::process_group;

/// Timeout of the parser, which takes a fraction of a second for a small profile.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum size of what the parser prints.
const OUTPUT_LIMIT_BYTES: u64 = 64 * 1024;
/// Maximum length, in characters, of the parser's own words in an error.
const WORDS_LIMIT: usize = 300;
/// The parser's own words for a lack of memory, in small letters.
const OUT_OF_MEMORY: [&str; 2] = ["out of memory", "memory allocation error"];

/// Loads a profile, in the place of one by the same name.
///
/// # Errors
/// Quotes the parser's own words.
pub(super) async fn load(program: &Path, profile: &str) -> Result<(), ConfinementError> {
    let failed =
        |why: String, transient| ConfinementError::AppArmor { program: program.to_owned(), why, transient };
    // It has just been there: an update replaces it, or the next look decides without it.
    let is_transient = |error: &io::Error| is_transient(error) || error.kind() == ErrorKind::NotFound;
    let unrunnable = |error: io::Error| failed(format!("it can't be run: {error}"), is_transient(&error));
    let run = async {
        let (mut group, mut child) = process_group::spawn(command(program)).await?;
        let ended = process_group::exchange(&mut child, profile.as_bytes(), OUTPUT_LIMIT_BYTES).await?;
        group.ended();
        Ok(ended)
    };
    match tokio::time::timeout(TIMEOUT, run).await {
        Ok(Ok((status, ..))) if status.success() => Ok(()),
        Ok(Ok((status, _, words))) => {
            let words = quoted(&words);
            let transient = status.code().is_none() || tells_of_shortage(&words);
            Err(failed(format!("{status}{words}"), transient))
        }
        Ok(Err(error)) => Err(unrunnable(error)),
        Err(_) => {
            Err(failed(format!("it did not exit within {} s, and was killed", TIMEOUT.as_secs()), true))
        }
    }
}

fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    // What the parser keeps in its cache is by the name of a file, which this profile has none of.
    command
        .args(["--skip-cache", "--replace"])
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Returns whether the parser has failed for a lack of memory, or for another error that may pass.
fn tells_of_shortage(words: &str) -> bool {
    let small = words.to_ascii_lowercase();
    reports_transient(words) || OUT_OF_MEMORY.iter().any(|known| small.contains(known))
}

/// Returns the parser's words as a part of a sentence.
fn quoted(words: &[u8]) -> String {
    let words = String::from_utf8_lossy(words).trim().replace(char::is_control, " ");
    let shown: String = words.chars().take(WORDS_LIMIT).collect();
    if shown.is_empty() { shown } else { format!(": {shown}") }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn the_parsers_exit_decides_and_its_words_are_told() {
        load(Path::new("/bin/true"), "profile x {}").await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let killed = directory.path().join("killed");
        fs::write(&killed, "#!/bin/sh\nkill -KILL $$\n").unwrap();
        fs::set_permissions(&killed, fs::Permissions::from_mode(0o755)).unwrap();
        for (program, words, again) in [
            (Path::new("/bin/false"), "exit status: 1", false),
            // The word that the parser is run with is no option of this program.
            (Path::new("/bin/cat"), "--skip-cache", false),
            (Path::new("/no/such/parser"), "it can't be run: No such file", true),
            (&killed, "signal: 9", true),
        ] {
            let error = load(program, "profile x {}").await.unwrap_err();
            let ConfinementError::AppArmor { transient, .. } = error else { panic!("{error:?}") };
            assert_eq!(transient, again, "{error:?}");
            let error = error.to_string();
            assert!(error.contains(program.to_str().unwrap()) && error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_lack_of_memory_passes() {
        for (words, again) in [
            (r#"/sbin/apparmor_parser: Unable to replace "x".  Out of memory"#, true),
            ("Memory allocation error.", true),
            ("Failed to allocate memory: Cannot allocate memory", true),
            (r#"/sbin/apparmor_parser: Unable to replace "x".  Permission denied"#, false),
        ] {
            assert_eq!(tells_of_shortage(&quoted(words.as_bytes())), again, "{words}");
        }
    }

    #[test]
    fn the_parsers_words_are_one_short_line() {
        assert_eq!(quoted(b" \n"), "");
        assert_eq!(quoted(b"AppArmor parser error\n at line 2\n"), ": AppArmor parser error  at line 2");
        assert_eq!(quoted(&[b'x'; 1000]).len(), WORDS_LIMIT + 2);
    }
}
