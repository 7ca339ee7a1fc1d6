//! The process of a container: arguments, environment and working directory; and the same for an exec.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use oci_spec::image::Config;
use oci_spec::runtime::{BoxBuilder, Process};

use super::SpecError;
use crate::config;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const DEFAULT_TERM: &str = "xterm";
/// Path in a container of the host's init program, as under docker.
pub(crate) const INIT: &str = "/sbin/docker-init";

/// Returns the arguments: the entrypoint of the job or the image, then the job's command and arguments. Without those,
/// the image's command follows, unless the job replaces the entrypoint, to which that command belongs.
pub(super) fn arguments(requested: &config::Process, image: Option<&Config>) -> Vec<String> {
    let config::Process {
        entrypoint,
        command,
        args,
        init,
        // Part of the user.
        group_add: _,
        // Set on the process itself.
        tty: _,
        // A pipe of the shim's.
        interactive: _,
        // Returned by `working_directory`.
        cwd: _,
    } = requested;
    let of_image = || image.and_then(|config| config.entrypoint().clone()).unwrap_or_default();
    let replaces_all = entrypoint.as_ref().is_some_and(|words| !words.is_empty());
    let mut entrypoint = entrypoint.clone().unwrap_or_else(of_image);
    // Also in an image, as docker has it.
    if entrypoint == [""] {
        entrypoint.clear();
    }
    let requested: Vec<String> = command.iter().chain(args).cloned().collect();
    let rest = if requested.is_empty() && !replaces_all {
        image.and_then(|config| config.cmd().clone()).unwrap_or_default()
    } else {
        requested
    };
    let words: Vec<String> = entrypoint.into_iter().chain(rest).collect();
    if *init && !words.is_empty() {
        return [INIT, "--"].into_iter().map(str::to_owned).chain(words).collect();
    }
    words
}

/// Returns the environment: the image's, overridden by the task's, and defaults for variables that every process
/// expects. Of a variable that the image has twice, the first counts, as for docker.
pub(super) fn environment(
    image: Option<&Config>,
    task: &HashMap<String, String>,
    hostname: &str,
    home: &str,
    tty: bool,
) -> Vec<String> {
    let from_image = image.and_then(|config| config.env().clone()).unwrap_or_default();
    let name_of = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut named = HashSet::new();
    let mut is_first = |name: String| !task.contains_key(&name) && named.insert(name);
    let mut environment: Vec<String> =
        from_image.into_iter().filter(|entry| is_first(name_of(entry))).collect();
    let mut from_task: Vec<String> = task.iter().map(|(name, value)| format!("{name}={value}")).collect();
    from_task.sort_unstable();
    environment.extend(from_task);
    let term = tty.then_some(("TERM", DEFAULT_TERM));
    for (name, value) in
        [("PATH", DEFAULT_PATH), ("HOSTNAME", hostname), ("HOME", home)].into_iter().chain(term)
    {
        if !environment.iter().any(|entry| name_of(entry) == name) {
            environment.push(format!("{name}={value}"));
        }
    }
    environment
}

/// Returns the task's variables, with the numbers in the task of ports that the job's `port_map` changes, as docker's
/// driver sets them (hashicorp/nomad `client/taskenv/env.go`, `helper/funcs.go`).
pub(super) fn with_port_map<'a>(
    task: &'a HashMap<String, String>,
    port_map: &BTreeMap<String, u16>,
) -> Cow<'a, HashMap<String, String>> {
    let mut variables = Cow::Borrowed(task);
    let in_name =
        |byte: u8| if byte.is_ascii_alphanumeric() || byte == b'.' { char::from(byte) } else { '_' };
    // Nomad says the number of a port that is the same on the host.
    for (label, number) in port_map.iter().filter(|(_, number)| **number > 0) {
        let label: String = label.bytes().map(in_name).collect();
        variables.to_mut().insert(format!("NOMAD_PORT_{label}"), number.to_string());
    }
    variables
}

/// Sets a variable from a `NAME=value`, replacing one of the same name.
pub(super) fn set_variable(environment: &mut Vec<String>, entry: &str) {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    match environment.iter_mut().find(|other| name(other) == name(entry)) {
        Some(other) => entry.clone_into(other),
        None => environment.push(entry.to_owned()),
    }
}

/// Returns the working directory of a task: the job's, else the image's, which is made absolute and cleaned, as docker
/// does. The runtime creates it if it is missing, once it is inside of the root.
///
/// # Errors
/// If the image's is below /proc: on its way into the container a process has descriptors of the runtime's there, which
/// have allowed escapes from runtimes (CVE-2024-21626). A job's is refused with its options.
pub(crate) fn working_directory(
    requested: &config::Process,
    image: Option<&Config>,
) -> Result<String, SpecError> {
    if let Some(directory) = &requested.cwd {
        return Ok(directory.clone());
    }
    let directory = image.and_then(|config| config.working_dir().clone()).unwrap_or_default();
    let mut parts: Vec<&str> = Vec::new();
    for part in directory.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    if parts.first() == Some(&"proc") || directory.contains('\0') {
        return Err(SpecError::ImageDirectory(directory));
    }
    Ok(format!("/{}", parts.join("/")))
}

/// Returns the process of an exec in a task's container: a copy of the task's own, except for the arguments and the
/// terminal, whose size is set before the command starts if it is known.
pub(crate) fn exec_process(
    task: &Process,
    command: &[String],
    tty: bool,
    size: Option<(u64, u64)>,
) -> Process {
    let mut process = task.clone();
    process.set_args(Some(command.to_vec())).set_terminal(Some(tty));
    if !tty {
        return process;
    }
    if let Some((width, height)) = size {
        process.set_console_size(BoxBuilder::default().width(width).height(height).build().ok());
    }
    if let Some(environment) = process.env_mut()
        && !environment.iter().any(|entry| entry.starts_with("TERM="))
    {
        environment.push(format!("TERM={DEFAULT_TERM}"));
    }
    process
}

#[cfg(test)]
mod tests {
    use oci_spec::image::ConfigBuilder;

    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn requested(command: Option<&str>, args: &str) -> config::Process {
        config::Process {
            command: command.map(str::to_owned),
            args: words(args),
            ..config::Process::default()
        }
    }

    #[test]
    fn a_jobs_command_replaces_the_images() {
        let image =
            ConfigBuilder::default().entrypoint(words("/entry -x")).cmd(words("serve")).build().unwrap();
        let run = |command, args| arguments(&requested(command, args), Some(&image)).join(" ");
        assert_eq!(run(None, ""), "/entry -x serve");
        assert_eq!(run(None, "a b"), "/entry -x a b");
        assert_eq!(run(Some("ls"), ""), "/entry -x ls");
        assert_eq!(run(Some("ls"), "a b"), "/entry -x ls a b");
        assert_eq!(arguments(&requested(Some("ls"), ""), None), ["ls"]);
        assert!(arguments(&requested(None, ""), None).is_empty());
    }

    #[test]
    fn a_jobs_entrypoint_replaces_the_images_with_its_command() {
        let image =
            ConfigBuilder::default().entrypoint(words("/entry -x")).cmd(words("serve")).build().unwrap();
        let run = |entrypoint: &str, command, args| {
            let requested =
                config::Process { entrypoint: Some(words(entrypoint)), ..requested(command, args) };
            arguments(&requested, Some(&image)).join(" ")
        };
        assert_eq!(run("/mine -y", None, ""), "/mine -y");
        assert_eq!(run("/mine -y", None, "a b"), "/mine -y a b");
        assert_eq!(run("/mine -y", Some("ls"), "a b"), "/mine -y ls a b");
        assert_eq!(run("", None, ""), "serve");
        assert_eq!(run("", Some("ls"), "a"), "ls a");
    }

    #[test]
    fn a_single_empty_word_clears_the_images_entrypoint_and_command() {
        let image =
            ConfigBuilder::default().entrypoint(words("/entry -x")).cmd(words("serve")).build().unwrap();
        let run = |command, args| {
            let entrypoint = Some(vec![String::new()]);
            arguments(&config::Process { entrypoint, ..requested(command, args) }, Some(&image)).join(" ")
        };
        assert_eq!(run(Some("ls"), "a b"), "ls a b");
        assert_eq!(run(None, "ls"), "ls");
        assert_eq!(run(None, ""), "", "docker has no command to run then, either");
        let image =
            ConfigBuilder::default().entrypoint(vec![String::new()]).cmd(words("serve")).build().unwrap();
        assert_eq!(arguments(&config::Process::default(), Some(&image)), ["serve"]);
    }

    #[test]
    fn init_precedes_all_arguments() {
        let with_init = |command| config::Process { init: true, ..requested(command, "a") };
        assert_eq!(arguments(&with_init(Some("ls")), None), words("/sbin/docker-init -- ls a"));
        let nothing = config::Process { init: true, ..config::Process::default() };
        assert!(arguments(&nothing, None).is_empty());
    }

    #[test]
    fn cwd_overrides_the_images_working_directory() {
        let image = ConfigBuilder::default().working_dir("/image").build().unwrap();
        let job = config::Process { cwd: Some("/job".to_owned()), ..config::Process::default() };
        assert_eq!(working_directory(&job, Some(&image)).unwrap(), "/job");
        assert_eq!(working_directory(&config::Process::default(), Some(&image)).unwrap(), "/image");
        assert_eq!(working_directory(&config::Process::default(), None).unwrap(), "/");
    }

    #[test]
    fn an_images_working_directory_is_normalized() {
        let of = |directory: &str| {
            let image = ConfigBuilder::default().working_dir(directory).build().unwrap();
            working_directory(&config::Process::default(), Some(&image))
        };
        for (directory, cleaned) in
            [("a/b", "/a/b"), ("/a//./b/", "/a/b"), ("../../x", "/x"), ("/a/../processes", "/processes")]
        {
            assert_eq!(of(directory).unwrap(), cleaned);
        }
        for directory in ["/proc", "proc/self/fd/8", "/x/../proc/1/cwd", "//proc//", "../proc", "/a\0b"] {
            let error = of(directory).unwrap_err().to_string();
            assert!(error.contains("WORKDIR") && error.contains("work_dir"), "{error}");
        }
    }

    #[test]
    fn task_variables_override_the_images() {
        let image =
            ConfigBuilder::default().env(words("PATH=/mine A=image B=image B=again")).build().unwrap();
        let task = HashMap::from([("A".to_owned(), "task=1".to_owned()), ("C".to_owned(), String::new())]);
        let of = |tty| environment(Some(&image), &task, "web-1", "/root", tty);
        let usual = ["PATH=/mine", "B=image", "A=task=1", "C=", "HOSTNAME=web-1", "HOME=/root"];
        assert_eq!(of(false), usual);
        assert_eq!(of(true), [&usual[..], &["TERM=xterm"]].concat());
    }

    #[test]
    fn mapped_ports_have_their_numbers_in_the_task() {
        let task = HashMap::from([
            ("NOMAD_PORT_http".to_owned(), "20000".to_owned()),
            ("NOMAD_HOST_PORT_http".to_owned(), "20000".to_owned()),
        ]);
        assert!(matches!(with_port_map(&task, &BTreeMap::new()), Cow::Borrowed(_)));
        let mapped = with_port_map(&task, &[("http".to_owned(), 80), ("my-db".to_owned(), 5432)].into());
        assert_eq!(mapped["NOMAD_PORT_http"], "80");
        assert_eq!(mapped["NOMAD_HOST_PORT_http"], "20000");
        assert_eq!(mapped["NOMAD_PORT_my_db"], "5432");
        let same = with_port_map(&task, &[("http".to_owned(), 0)].into());
        assert_eq!(same["NOMAD_PORT_http"], "20000");
    }

    #[test]
    fn an_exec_is_the_tasks_process_with_another_command() {
        let mut task = Process::default();
        task.set_env(Some(words("A=1"))).set_cwd("/data".into()).set_args(Some(words("redis-server")));
        let plain = exec_process(&task, &words("redis-cli ping"), false, None);
        assert_eq!(plain.args().clone().unwrap(), words("redis-cli ping"));
        assert_eq!(plain.env().clone().unwrap(), words("A=1"));
        assert_eq!(plain.cwd().as_os_str(), "/data");
        let tty = exec_process(&task, &words("sh"), true, Some((77, 33)));
        assert_eq!(tty.env().clone().unwrap(), words("A=1 TERM=xterm"));
        assert_eq!(tty.console_size().map(|size| (size.width(), size.height())), Some((77, 33)));
        assert_eq!(tty.terminal(), Some(true));
    }
}
