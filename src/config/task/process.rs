//! The options about a task's process: command, groups, terminal and working directory.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;
use serde_json::Value;

use crate::config::hclspec::optional;
use crate::config::{ConfigError, reject_nulls, string_map, value};

/// The options about a task's process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Process {
    /// Replaces the image's entrypoint. One that is not empty discards the image's command, too. A single empty word
    /// clears both.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command, followed by `args`; the entrypoint stays.
    pub command: Option<String>,
    pub args: Vec<String>,
    /// Supplementary groups, by name or number in the image, in addition to the user's own.
    pub group_add: Vec<String>,
    /// `true` to give the process a terminal.
    pub tty: bool,
    /// Whether stdin is a pipe that stays open; else it is at its end.
    pub interactive: bool,
    /// Whether process 1 is an init program, with the task's process as its child.
    pub init: bool,
    /// Working directory: an absolute path in the container that replaces the image's.
    pub cwd: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    entrypoint: Option<Value>,
    command: Option<String>,
    args: Option<Vec<Option<String>>>,
    group_add: Option<Vec<Option<String>>>,
    tty: Option<bool>,
    interactive: Option<bool>,
    init: Option<bool>,
    cwd: Option<String>,
    work_dir: Option<String>,
    working_dir: Option<String>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![
        // The type is a string, or a list of strings.
        ("entrypoint", optional("entrypoint", "any")),
        ("command", optional("command", "string")),
        ("args", optional("args", "list(string)")),
        ("group_add", optional("group_add", "list(string)")),
        ("tty", optional("tty", "bool")),
        ("interactive", optional("interactive", "bool")),
        ("init", optional("init", "bool")),
        ("cwd", optional("cwd", "string")),
        ("work_dir", optional("work_dir", "string")),
        ("working_dir", optional("working_dir", "string")),
    ]
}

impl Process {
    /// Returns whether the process needs a pipe for its stdin; a terminal is one that stays open.
    pub(crate) fn needs_stdin(&self) -> bool {
        self.interactive && !self.tty
    }
}

impl Raw {
    pub(super) fn decode(self) -> Result<Process, ConfigError> {
        let Self { entrypoint, command, args, group_add, tty, interactive, init, cwd, work_dir, working_dir } =
            self;
        let command = command.filter(|command| !command.is_empty());
        let group_add = reject_nulls("group_add", group_add)?;
        if group_add.iter().any(String::is_empty) {
            return Err(value(
                "group_add",
                "",
                "an element is empty; name a group of the image, or a number",
            ));
        }
        Ok(Process {
            entrypoint: entrypoint.map(|given| entrypoint_of(given, command.as_deref())).transpose()?,
            command,
            args: reject_nulls("args", args)?,
            group_add,
            tty: tty.unwrap_or_default(),
            interactive: interactive.unwrap_or_default(),
            init: init.unwrap_or_default(),
            cwd: working_directory([("cwd", cwd), ("work_dir", work_dir), ("working_dir", working_dir)])?,
        })
    }
}

/// Decodes the entrypoint. A string is one program, as the image's entrypoint often is; with a command beside it there
/// would be two programs, and either could be meant. A list may be a program with its first arguments, and a command
/// follows them. A single empty word clears the image's entrypoint, as under docker.
fn entrypoint_of(given: Value, command: Option<&str>) -> Result<Vec<String>, ConfigError> {
    let refused = |given: &Value, why: &str| value("entrypoint", given.to_string(), why);
    match (given, command) {
        (Value::String(text), command) if text.is_empty() || command.is_none() => Ok(vec![text]),
        (given @ Value::String(_), Some(command)) => Err(refused(
            &given,
            &format!(
                "command = {command:?} is set as well, and only one of the two can run: leave out one of them, or \
                 write the entrypoint as a list such as [{given}], whose first argument is then the command"
            ),
        )),
        (Value::Array(list), _) => {
            let words = list.iter().map(|word| string_map::text(word.clone()).ok().flatten());
            let words: Option<Vec<String>> = words.collect();
            let names_program = |words: &Vec<String>| words.len() < 2 || !words[0].is_empty();
            words.filter(names_program).ok_or_else(|| {
                refused(
                    &Value::Array(list),
                    "each element must be a string, and the first the name of a program; [] or [\"\"] runs the command \
                     without an entrypoint",
                )
            })
        }
        (other, _) => Err(refused(&other, "it must be a string or a list of strings")),
    }
}

/// Decodes the working directory from its option, which has a name of the Go driver's, one of docker's and one of
/// podman's. Its existence and symbolic links are checked inside of the container's root, once nothing outside can be
/// reached any more.
fn working_directory(names: [(&'static str, Option<String>); 3]) -> Result<Option<String>, ConfigError> {
    let given = |(option, path): (&'static str, Option<String>)| {
        Some((option, path.filter(|path| !path.is_empty())?))
    };
    let mut given = names.into_iter().filter_map(given);
    let Some((option, path)) = given.next() else { return Ok(None) };
    if let Some((other, another)) = given.find(|(_, another)| *another != path) {
        let why = format!("{option} is {path:?}, and both are the same option; leave out one of them");
        return Err(value(other, another, why));
    }
    if !path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == "..") {
        return Err(value(option, path, "it must be an absolute path in the container, without \"..\""));
    }
    // On its way into the container a process has descriptors of the runtime's in /proc, which have allowed escapes
    // from runtimes.
    if path.split('/').find(|part| !part.is_empty() && *part != ".") == Some("proc") {
        return Err(value(
            option,
            path,
            "a task can't run in /proc; choose a directory of the image, or a new one",
        ));
    }
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::config::task::tests::{decode, refusal};

    #[test]
    fn cwd_and_work_dir_are_absolute_aliases() {
        let cwd = |mut options: Value| {
            options["image"] = json!("redis");
            decode(&options).map(|options| options.process.cwd).map_err(|error| error.to_string())
        };
        assert_eq!(cwd(json!({})), Ok(None));
        assert_eq!(cwd(json!({"cwd": "", "work_dir": ""})), Ok(None));
        for options in [
            json!({"cwd": "/a"}),
            json!({"work_dir": "/a"}),
            json!({"working_dir": "/a"}),
            json!({"cwd": "/a", "work_dir": "/a"}),
        ] {
            assert_eq!(cwd(options), Ok(Some("/a".to_owned())));
        }
        let error = cwd(json!({"cwd": "/a", "work_dir": "/b"})).unwrap_err();
        assert!(error.contains("work_dir") && error.contains("/b") && error.contains("/a"), "{error}");
        let error = cwd(json!({"work_dir": "/a", "working_dir": "/b"})).unwrap_err();
        assert!(error.contains("working_dir") && error.contains("/b") && error.contains("/a"), "{error}");
        for option in ["cwd", "work_dir", "working_dir"] {
            for path in ["a", "./a", "/a/../b", "/..", "/a\0b"] {
                assert!(refusal(option, json!(path)).contains("absolute"));
            }
            for path in ["/proc", "/proc/self/fd/7", "//proc/", "/./proc/1/cwd"] {
                assert!(refusal(option, json!(path)).contains("/proc"));
            }
        }
    }

    #[test]
    fn null_in_a_list_is_refused() {
        refusal("args", json!(["a", null]));
        refusal("group_add", json!([null]));
        refusal("group_add", json!([""]));
    }

    #[test]
    fn an_entrypoint_is_a_program_or_a_list_of_words() {
        let of = |given| decode(&json!({"image": "redis", "entrypoint": given})).unwrap().process.entrypoint;
        assert_eq!(of(json!("/bin/sh -c")), Some(vec!["/bin/sh -c".to_owned()]));
        assert_eq!(of(json!(["/bin/sh", "-c"])), Some(vec!["/bin/sh".to_owned(), "-c".to_owned()]));
        assert_eq!(of(json!([])), Some(Vec::new()));
        // A word that Nomad has no type for, and that docker's option would turn into a string.
        assert_eq!(of(json!(["/bin/sleep", 10])), Some(vec!["/bin/sleep".to_owned(), "10".to_owned()]));
        assert_eq!(of(json!(["/bin/echo", ""])), Some(vec!["/bin/echo".to_owned(), String::new()]));
        for clears in [json!(""), json!([""])] {
            assert_eq!(of(clears), Some(vec![String::new()]));
        }
        assert_eq!(of(json!(null)), None);
        for wrong in [json!(7), json!({"a": "b"}), json!(["a", null]), json!(["a", ["b"]]), json!(["", "a"])]
        {
            refusal("entrypoint", wrong);
        }
    }

    #[test]
    fn conflicting_program_options_are_refused() {
        let both = |entrypoint| json!({"image": "redis", "entrypoint": entrypoint, "command": "serve"});
        let error = decode(&both(json!("/entry"))).unwrap_err().to_string();
        for word in ["entrypoint", "command = \"serve\"", "[\"/entry\"]"] {
            assert!(error.contains(word), "{error}");
        }
        let process = decode(&both(json!(["/entry"]))).unwrap().process;
        assert_eq!(
            (process.entrypoint, process.command),
            (Some(vec!["/entry".to_owned()]), Some("serve".to_owned()))
        );
    }
}
