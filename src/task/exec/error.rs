//! Refusals of commands that do not run, in the words and with the exit code that users know from shells and from
//! docker. A runtime only has text for it.

use std::path::Path;

/// Exit codes of a shell for a command that isn't there, and for one that can't be run.
const NOT_FOUND: i32 = 127;
const NOT_RUNNABLE: i32 = 126;

/// The refusal of a command that does not run, with the text and exit code that a shell would have for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExecRefused {
    pub text: String,
    pub code: i32,
}

impl ExecRefused {
    /// Returns the refusal of a command that is not even tried.
    pub(super) fn not_runnable(why: &impl std::fmt::Display) -> Self {
        Self { text: format!("{why}\n"), code: NOT_RUNNABLE }
    }
}

/// Ends of a runtime's text about a program that isn't there, and about one that can't be run: crun in the C library's
/// words, runc in Go's, youki in its own.
const MISSING: [&str; 3] =
    ["executable file not found in $path", "no such file or directory", "' not found in $path"];
const BARRED: [&str; 5] = [
    "permission denied",
    "operation not permitted",
    "exec format error",
    "is a directory",
    "does not have correct permissions",
];
/// Beginnings of gVisor's text about a command that can't be run.
const OF_SANDBOX: [&str; 2] = ["error finding executable", "failed to load"];
/// Phrases of runtimes and shims about a container that has ended, or is ending.
const ENDED: [&str; 8] = [
    "cannot exec in a stopped container",
    "cannot exec in a stopped state",
    "cannot exec in a deleted state",
    "container not running",
    "is not running",
    "container not found",
    "process already finished",
    "container does not exist",
];

/// Returns the refusal that a runtime's text means; `None` where it failed at something else than running the command.
pub(super) fn of(text: &str, command: &[String]) -> Option<ExecRefused> {
    let program = Path::new(&command[0]).display();
    let (is_of_command, reason) = reason(text, &command[0])?;
    let words = reason.to_lowercase();
    let words = words.trim_end().trim_end_matches(": unknown");
    let code = if MISSING.iter().any(|missing| words.ends_with(missing)) {
        NOT_FOUND
    } else if BARRED.iter().any(|barred| words.ends_with(barred)) || is_of_command == ReasonForm::CannotOpen {
        NOT_RUNNABLE
    } else {
        return None;
    };
    let what = if code == NOT_FOUND { "not found in the task" } else { "can't be run" };
    let reason = text.rsplit("exec failed: ").next().unwrap_or(text);
    Some(ExecRefused { text: format!("{program}: {what}: {reason}\n"), code })
}

/// The sign that a runtime's text is about the command itself, and not about something else that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReasonForm {
    ByName,
    /// Text of crun's about whatever is no file that could be run.
    CannotOpen,
}

/// Returns the part of a runtime's text that says why the command can't be run. The command's own words are skipped:
/// they may be any.
fn reason<'a>(text: &'a str, program: &str) -> Option<(ReasonForm, &'a str)> {
    let after = |mark: &str| text.split_once(mark).map(|(_, rest)| rest);
    // runc: `exec: "x": executable file not found in $PATH`, and for a script without its interpreter
    // `exec x: no such ..`.
    let by_runc = after("exec: \"").map(past_quotes).or_else(|| after(&format!("exec {program}: ")));
    // crun: "executable file `x` not found in $PATH: No such file or directory", and in newer releases "the path `/x`
    // exists but it is not executable: Operation not permitted".
    let by_crun = || {
        let named = after("executable file `").or_else(|| after("OCI runtime exec failed: the path `"))?;
        Some(named.rsplit_once('`')?.1)
    };
    // youki: "executable 'x' not found in $PATH".
    let by_youki = || after(&format!("executable '{program}")).filter(|rest| rest.starts_with('\''));
    // gVisor: `executing command "x" in sandbox: error finding executable "x" in PATH [..]: no such file or directory`,
    // or `.. in sandbox: failed to load x: permission denied`.
    let by_gvisor = || {
        let reason = past_quotes(after("executing command \"")?).strip_prefix(" in sandbox: ")?;
        OF_SANDBOX.iter().any(|words| reason.starts_with(words)).then_some(reason)
    };
    if let Some(reason) = by_runc.or_else(by_crun).or_else(by_youki).or_else(by_gvisor) {
        return Some((ReasonForm::ByName, reason));
    }
    // crun, of a path that can't be searched: "cannot open `/x`: Permission denied", or "open `/x`: ..".
    let by_path = || {
        let named = after("OCI runtime exec failed: cannot open `")
            .or_else(|| after("OCI runtime exec failed: open `"))?;
        let (path, reason) = named.rsplit_once('`')?;
        path.ends_with(program).then_some(reason)
    };
    after("open executable").or_else(by_path).map(|reason| (ReasonForm::CannotOpen, reason))
}

/// Returns what comes after the end of a text in Go's quotes, in which quotes and backslashes are escaped.
fn past_quotes(quoted: &str) -> &str {
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            '"' if !escaped => return &quoted[at + 1..],
            '\\' if !escaped => escaped = true,
            _ => escaped = false,
        }
    }
    ""
}

/// Returns whether a text means that the task ended while the command was being started. To be asked of a text that is
/// not about the command.
pub(super) fn is_of_an_ended_task(text: &str) -> bool {
    ENDED.iter().any(|phrase| text.contains(phrase))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_for(text: &str, program: &str) -> Option<i32> {
        of(text, &[program.to_owned()]).map(|refused| refused.code)
    }

    #[test]
    fn a_command_that_cannot_run_has_exit_code_126_or_127() {
        let code = |text: &str| code_for(text, "x");
        let not_found = r#"OCI runtime exec failed: exec failed: unable to start container process: exec: "x": executable file not found in $PATH: unknown"#;
        assert_eq!(code(not_found), Some(127));
        assert_eq!(code(r#"exec failed: exec: "/x": stat /x: no such file or directory"#), Some(127));
        assert_eq!(
            code("exec failed: unable to start container process: exec x: no such file or directory"),
            Some(127)
        );
        assert_eq!(code(r#"exec failed: exec: "/x": permission denied"#), Some(126));
        assert_eq!(
            code("exec failed: unable to start container process: exec x: exec format error: unknown"),
            Some(126)
        );
        assert_eq!(code(r#"exec failed: exec: "/x": is a directory"#), Some(126));
        assert_eq!(code("cannot exec in a stopped container"), None);
        assert_eq!(code("executable file `x` not found in $PATH: No such file or directory"), Some(127));
        assert_eq!(code("open executable: Permission denied"), Some(126));
        let by_newer_crun = "exec in container web-1: OCI runtime exec failed: the path `/bin/x` exists but it is not executable";
        assert_eq!(code(&format!("{by_newer_crun}: Operation not permitted")), Some(126));
        let by_youki = "OCI runtime exec failed: youki did not terminate successfully: exit status 1: error in executing command: \
                        failed to create container: exec process failed with error error in executing process : executable 'x'";
        assert_eq!(code(&format!("{by_youki} not found in $PATH")), Some(127));
        assert_eq!(
            code(&format!("{by_youki} at path '\"/bin/x\"' does not have correct permissions")),
            Some(126)
        );
        assert_eq!(code("open executable: Operation not permitted"), Some(126));
        let in_crun =
            |reason: &str| code(&format!("exec in container web-1: OCI runtime exec failed: {reason}"));
        assert_eq!(in_crun("cannot open `x`: Permission denied"), Some(126));
        assert_eq!(in_crun("open `/root/x`: Not a directory"), Some(126));
        assert_eq!(in_crun("open `/proc/self/fd`: Permission denied"), None);
        let in_sandbox = |reason: &str| {
            code(&format!(
                "OCI runtime exec failed: executing processes for container: executing command \"x\" in sandbox: {reason}"
            ))
        };
        let not_found = "error finding executable \"x\" in PATH [/sbin /bin]: no such file or directory";
        assert_eq!(in_sandbox(not_found), Some(127));
        assert_eq!(in_sandbox("failed to load /x: permission denied"), Some(126));
        assert_eq!(in_sandbox("working directory /gone: no such file or directory"), None);
    }

    #[test]
    fn command_names_do_not_affect_the_classification() {
        for program in
            ["is-stopped", "is not running", "container does not exist", "permission denied", "a\"b"]
        {
            let quoted = format!("{program:?}");
            let text = format!("exec failed: exec: {quoted}: executable file not found in $PATH: unknown");
            assert_eq!(code_for(&text, program), Some(127), "{program}");
            let text = format!("exec failed: exec: {quoted}: stat /x: permission denied: unknown");
            assert_eq!(code_for(&text, program), Some(126), "{program}");
        }
    }

    #[test]
    fn other_start_failures_are_not_the_commands() {
        let cwd = r#"exec failed: unable to start container process: chdir to cwd ("/gone") set in config.json failed: no such file or directory"#;
        assert_eq!(code_for(cwd, "sh"), None);
        let pipe = "failed to create /run/x/io/exec-1.stdout: no such file or directory";
        assert_eq!(code_for(pipe, "sh"), None);
        assert!(!is_of_an_ended_task(cwd) && !is_of_an_ended_task(pipe));
    }

    #[test]
    fn an_ended_task_is_distinguished_from_a_command_that_cannot_run() {
        assert!(is_of_an_ended_task("cannot exec in a stopped container"));
        assert!(is_of_an_ended_task("cannot exec in a stopped state"));
        assert!(is_of_an_ended_task("the container `web-1` is not running"));
        assert!(!is_of_an_ended_task(r#"exec: "x": executable file not found in $PATH"#));
    }
}
