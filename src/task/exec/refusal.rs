//! Why a command does not run, in the words and the code that users know from shells and from docker. A runtime only has
//! text for it.

use std::path::Path;

/// What a shell says of a command that isn't there, and of one that can't be run.
const NOT_FOUND: i32 = 127;
const NOT_RUNNABLE: i32 = 126;

/// Why a command does not run, in the words and the code that a shell would have for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExecRefused {
    pub text: String,
    pub code: i32,
}

/// What a runtime's text means for the command. None where it failed at something else.
pub(super) fn of(text: &str, command: &[String]) -> Option<ExecRefused> {
    let program = Path::new(&command[0]).display();
    // crun has the C library's words, runc has Go's.
    let words = text.to_lowercase();
    let code = if words.contains("executable file not found") || words.contains("no such file or directory") {
        NOT_FOUND
    } else if words.contains("permission denied")
        || words.contains("exec format error")
        || words.contains("is a directory")
        // crun's, of whatever is no file that could be run.
        || words.contains("open executable")
    {
        NOT_RUNNABLE
    } else {
        return None;
    };
    let what = if code == NOT_FOUND { "not found in the task" } else { "can't be run" };
    let reason = text.rsplit("exec failed: ").next().unwrap_or(text);
    Some(ExecRefused { text: format!("{program}: {what}: {reason}\n"), code })
}

/// Whether it was not the command but the task that could not be had: it ended while the command was being started.
pub(super) fn is_of_an_ended_task(text: &str) -> bool {
    ["stopped", "is not running", "container not found", "process already finished", "does not exist"]
        .iter()
        .any(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_cannot_run_has_a_shells_code() {
        let code = |text: &str| of(text, &["x".to_owned()]).map(|refused| refused.code);
        let not_found = r#"OCI runtime exec failed: exec failed: unable to start container process: exec: "x": executable file not found in $PATH: unknown"#;
        assert_eq!(code(not_found), Some(127));
        assert_eq!(code(r#"exec failed: exec: "/x": stat /x: no such file or directory"#), Some(127));
        assert_eq!(code(r#"exec failed: exec: "/x": permission denied"#), Some(126));
        assert_eq!(code(r#"exec failed: exec: "/x": is a directory"#), Some(126));
        assert_eq!(code("cannot exec in a stopped container"), None);
        assert_eq!(code("executable file `x` not found in $PATH: No such file or directory"), Some(127));
        assert_eq!(code("open executable: Permission denied"), Some(126));
        assert_eq!(code("open executable: Operation not permitted"), Some(126));
    }

    #[test]
    fn an_ended_task_is_told_from_a_command_that_cannot_run() {
        assert!(is_of_an_ended_task("cannot exec in a stopped container"));
        assert!(is_of_an_ended_task("cannot exec in a stopped state"));
        assert!(!is_of_an_ended_task(r#"exec: "x": executable file not found in $PATH"#));
    }
}
