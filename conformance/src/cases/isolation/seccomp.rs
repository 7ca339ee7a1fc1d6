//! The system calls that a task may make: by the built-in profile, by a job's own, or all.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::LIMIT;
use serde_json::{Value, json};

use crate::cases::support::{NO_FILTER_FOR_EXECS, cases, ensure_eq, not_by_youki, refused};

cases!["seccomp":
    a_task_and_its_execs_have_the_built_in_profile_unless_the_job_says_otherwise,
    what_the_profile_allows_depends_on_the_tasks_capabilities,
    a_profile_of_the_jobs_own_is_what_holds,
    an_invalid_profile_is_refused_by_its_files_name,
    dockers_words_for_it_do_the_same,
    the_operator_says_where_the_profiles_of_jobs_lie,
    a_device_in_a_profiles_place_is_not_opened,
];

/// Command that prints a process' seccomp mode: 2 with a filter, 0 without.
const MODE: &str = "awk '/^Seccomp:/ { print $2 }' /proc/self/status";
const SLEEP: &str = "exec sleep 600";

fn with(mut config: Value, option: &str, value: impl Into<Value>) -> Value {
    config[option] = value.into();
    config
}

fn file(case: &CaseContext, name: &str, text: impl AsRef<[u8]>) -> Result<PathBuf> {
    let path = case.directory().join(name);
    std::fs::create_dir_all(path.parent().unwrap_or(&case.directory()))?;
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Asserts that the task and an exec in it have this seccomp mode.
async fn is_in_mode(case: &CaseContext, plugin: &Plugin, change: Value, mode: &str) -> Result<()> {
    let mut config = case.shell(&format!("{MODE}; {SLEEP}"));
    for (option, value) in change.as_object().into_iter().flatten() {
        config[option] = value.clone();
    }
    let task = case.run(plugin, &config).await?;
    task.alloc.stdout.to_contain("\n", LIMIT).await?;
    ensure_eq!(task.exec(plugin, MODE).await?, (0, format!("{mode}\n")));
    ensure_eq!(task.exec(plugin, &MODE.replace("self", "1")).await?, (0, format!("{mode}\n")));
    task.end(plugin).await
}

async fn a_task_and_its_execs_have_the_built_in_profile_unless_the_job_says_otherwise(
    case: &CaseContext,
) -> Result<()> {
    not_by_youki(case, NO_FILTER_FOR_EXECS)?;
    for (by_default, unsaid) in [(json!(null), "2"), (json!(false), "0")] {
        let options = with(case.options(), "seccomp", by_default);
        let mut plugin = case.plugin_as(&case.launch(), &options).await?;
        is_in_mode(case, &plugin, json!({}), unsaid).await?;
        is_in_mode(case, &plugin, json!({"seccomp": true}), "2").await?;
        is_in_mode(case, &plugin, json!({"seccomp": false}), "0").await?;
        if unsaid == "0" {
            let config = with(case.shell("true"), "seccomp_profile", "/x.json");
            let task = case.prepare(&plugin, &config).await?;
            refused(plugin.start_task(task.config.clone()).await, &["seccomp_profile", "seccomp = true"])?;
        }
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn what_the_profile_allows_depends_on_the_tasks_capabilities(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    // A user namespace of one's own needs no capability, so it is the profile that denies it.
    let script = "unshare -U true 2>/dev/null && echo it can || echo it can not";
    for (add, wanted) in [(json!([]), "it can not\n"), (json!(["sys_admin"]), "it can\n")] {
        let task = case.run(plugin, &with(case.shell(script), "cap_add", add)).await?;
        ensure_eq!(task.stdout(plugin).await?, wanted);
        task.destroy(plugin).await?;
    }
    let task = case.run(plugin, &with(case.shell(script), "seccomp", false)).await?;
    ensure_eq!(task.stdout(plugin).await?, "it can\n");
    task.destroy(plugin).await
}

/// Returns a profile that allows everything but three things: denied by name, by an argument, and by a capability that
/// the task does not have.
fn profile() -> String {
    let errno =
        |names: &[&str], errno: u32| json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno});
    let mut by_argument = errno(&["kill"], 16);
    by_argument["args"] = json!([{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]);
    let mut by_capability = errno(&["symlink", "symlinkat"], 28);
    by_capability["excludes"] = json!({"caps": ["CAP_SYS_ADMIN"]});
    let mut not_here = errno(&["rmdir", "unlinkat"], 28);
    not_here["includes"] = json!({"arches": ["s390x"]});
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [errno(&["mkdir", "mkdirat", "no_such_call"], 30), by_argument, by_capability, not_here],
    })
    .to_string()
}

async fn a_profile_of_the_jobs_own_is_what_holds(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    not_by_youki(case, NO_FILTER_FOR_EXECS)?;
    let path = file(case, "seccomp.json", profile())?;
    let tries = "cd /tmp; mkdir a 2>&1; kill -USR1 $$ 2>&1; ln -s a b 2>&1; unshare -U true && echo unshared; \
                 kill -URG $$ && echo killed; touch c && rm c && echo removed";
    let config =
        with(case.shell(&format!("{tries}; {SLEEP}")), "seccomp_profile", path.display().to_string());
    let task = case.run(plugin, &config).await?;
    let denied = ["Read-only file system", "resource busy", "No space left on device"];
    task.alloc.stdout.to_contain("removed\n", LIMIT).await?;
    let (_, again) = task.exec(plugin, tries).await?;
    for word in denied.into_iter().chain(["unshared", "killed", "removed"]) {
        task.alloc.stdout.to_contain(word, LIMIT).await?;
        ensure!(again.contains(word), "{word:?} is not in what an exec says: {again}");
    }
    task.end(plugin).await?;
    let admin = with(
        with(config, "cap_add", json!(["SYS_ADMIN"])),
        "args",
        json!(["-c", "ln -s a /tmp/b && echo linked"]),
    );
    let task = case.run(plugin, &admin).await?;
    ensure_eq!(task.stdout(plugin).await?, "linked\n");
    task.destroy(plugin).await
}

async fn an_invalid_profile_is_refused_by_its_files_name(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let at = |name: &str, text: &str| file(case, name, text);
    let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}).to_string();
    let like = rule(json!({"names": ["read"], "action": "SCMP_ACT_ALLOW",
                           "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_LIKE"}]}));
    let pipe = case.directory().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU)?;
    for (path, why) in [
        (case.directory().join("absent.json"), "does not exist"),
        (pipe, "not a regular file"),
        (case.directory(), "not a regular file"),
        ("/proc/kmsg".into(), "kernel"),
        (at("empty.json", "")?, "JSON"),
        (at("broken.json", "{\"defaultAction\": ")?, "EOF"),
        (at("action.json", &rule(json!({"names": ["read"], "action": "SCMP_ACT_SIGH"})))?, "SCMP_ACT_SIGH"),
        (at("operator.json", &like)?, "SCMP_CMP_LIKE"),
    ] {
        let name = path.display().to_string();
        let config = with(case.shell("true"), "seccomp_profile", name.as_str());
        let task = case.prepare(plugin, &config).await?;
        refused(plugin.start_task(task.config.clone()).await, &["seccomp_profile", &name, why])?;
        case.nothing_left()?;
    }
    Ok(())
}

async fn dockers_words_for_it_do_the_same(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    not_by_youki(case, NO_FILTER_FOR_EXECS)?;
    let path = file(case, "seccomp.json", profile())?.display().to_string();
    is_in_mode(case, plugin, json!({"security_opt": ["seccomp=unconfined"]}), "0").await?;
    is_in_mode(case, plugin, json!({"security_opt": ["seccomp=builtin"]}), "2").await?;
    let named = json!([format!("seccomp={path}")]);
    let task =
        case.run(plugin, &with(case.shell("mkdir /tmp/a 2>&1; true"), "security_opt", named.clone())).await?;
    let output = task.stdout(plugin).await?;
    ensure!(output.contains("Read-only file system"), "the profile does not hold: {output}");
    task.destroy(plugin).await?;
    let twice = with(with(case.shell("true"), "security_opt", named), "seccomp", true);
    let task = case.prepare(plugin, &twice).await?;
    refused(plugin.start_task(task.config.clone()).await, &["seccomp", "security_opt"])?;
    Ok(())
}

async fn the_operator_says_where_the_profiles_of_jobs_lie(case: &CaseContext) -> Result<()> {
    let outside = file(case, "outside.json", profile())?;
    let allowed = file(case, "profiles/own.json", profile())?;
    let directory = case.directory().join("profiles");
    std::os::unix::fs::symlink("../outside.json", directory.join("link.json"))?;
    let options = with(case.options(), "seccomp_profile_dirs", json!([directory.display().to_string()]));
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let config =
        with(case.shell("mkdir /tmp/a 2>&1; true"), "seccomp_profile", allowed.display().to_string());
    let task = case.run(&plugin, &config).await?;
    let output = task.stdout(&plugin).await?;
    ensure!(output.contains("Read-only file system"), "the profile does not hold: {output}");
    task.destroy(&plugin).await?;
    // The error is the same whether the path exists or not, and whether it is a file or not.
    for by_option in [true, false] {
        let mut words = std::collections::BTreeSet::new();
        for path in [&outside.display().to_string(), "/nowhere/x", "/etc", "/dev/null"] {
            let (option, value) = match by_option {
                true => ("seccomp_profile", json!(path)),
                false => ("security_opt", json!([format!("seccomp={path}")])),
            };
            let task = case.prepare(&plugin, &with(case.shell("true"), option, value)).await?;
            let status =
                refused(plugin.start_task(task.config.clone()).await, &[option, "seccomp_profile_dirs"])?;
            words.insert(status.message().replace(path, "").replace(task.id(), ""));
        }
        ensure!(words.len() == 1, "they are told apart: {words:?}");
    }
    for path in [directory.join("link.json"), directory.join("../outside.json")] {
        let config = with(case.shell("true"), "seccomp_profile", path.display().to_string());
        let task = case.prepare(&plugin, &config).await?;
        refused(plugin.start_task(task.config.clone()).await, &["seccomp_profile", "leads out"])?;
    }
    plugin.shut_down().await?;
    let options = with(case.options(), "seccomp_profile_dirs", json!([]));
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = case.prepare(&plugin, &config).await?;
    refused(plugin.start_task(task.config.clone()).await, &["seccomp_profile_dirs"])?;
    plugin.shut_down().await
}

async fn a_device_in_a_profiles_place_is_not_opened(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    // The device is /dev/urandom's, which may be opened without harm. A watchdog would reset the machine.
    let device = file(case, "device", "")?;
    std::fs::remove_file(&device)?;
    mknod(&device, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 9))?;
    let opens = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    opens.add_watch(&device, AddWatchFlags::IN_OPEN)?;
    let path = device.display().to_string();
    let task = case.prepare(plugin, &with(case.shell("true"), "seccomp_profile", path)).await?;
    refused(plugin.start_task(task.config.clone()).await, &["seccomp_profile", "regular file"])?;
    ensure!(opens.read_events().is_err(), "the device was opened");
    drop(std::fs::File::open(&device)?);
    ensure!(opens.read_events().is_ok(), "an open can't be seen: the case proves nothing");
    Ok(())
}
