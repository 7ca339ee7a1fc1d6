//! The system calls that a task may make: by the built-in profile, by a job's own, or all.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::LIMIT;
use serde_json::{Value, json};

use crate::case::skip;
use crate::cases::support::{NO_FILTER_FOR_EXECS, cases, ensure_eq, is_recoverable, not_by_youki, refused};

cases!["seccomp":
    a_task_and_its_execs_have_the_built_in_profile_unless_the_job_says_otherwise,
    what_the_profile_allows_depends_on_the_tasks_capabilities,
    a_profile_of_the_jobs_own_is_what_holds,
    an_invalid_profile_is_refused_by_its_files_name,
    dockers_words_for_it_do_the_same,
    the_operator_says_where_the_profiles_of_jobs_lie,
    a_device_in_a_profiles_place_is_not_opened,
    a_program_of_an_architecture_that_the_filter_lacks_is_killed,
    profiles_of_the_same_letters_are_each_what_holds,
    a_filter_that_a_full_disk_has_cut_off_is_made_anew,
    a_profile_that_the_kernel_refuses_is_not_tried_again,
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

/// Returns a program for 32-bit x86 that exits with 7.
fn program_for_32_bits() -> Vec<u8> {
    const ADDRESS: u32 = 0x0804_8000;
    const HEADERS: u32 = 84;
    // mov eax, 1 (exit); mov ebx, 7; int 0x80
    let code = [0xb8, 1, 0, 0, 0, 0xbb, 7, 0, 0, 0, 0xcd, 0x80];
    let size = HEADERS + u32::try_from(code.len()).unwrap_or_default();
    let mut elf = b"\x7fELF\x01\x01\x01".to_vec();
    elf.resize(16, 0);
    let halves = |elf: &mut Vec<u8>, values: &[u16]| {
        elf.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    };
    let words = |elf: &mut Vec<u8>, values: &[u32]| {
        elf.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    };
    // ET_EXEC for EM_386, with one program header behind this one.
    halves(&mut elf, &[2, 3]);
    words(&mut elf, &[1, ADDRESS + HEADERS, 52, 0, 0]);
    halves(&mut elf, &[52, 32, 1, 0, 0, 0]);
    // PT_LOAD of the whole file, to read and to execute.
    words(&mut elf, &[1, 0, ADDRESS, ADDRESS, size, size, 5, 0x1000]);
    elf.extend(code);
    elf
}

async fn a_program_of_an_architecture_that_the_filter_lacks_is_killed(case: &CaseContext) -> Result<()> {
    not_by_youki(case, NO_FILTER_FOR_EXECS)?;
    let program = file(case, "for-32-bits", program_for_32_bits())?;
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
    if std::process::Command::new(&program).status().ok().and_then(|status| status.code()) != Some(7) {
        return skip("this machine runs no programs for 32-bit x86");
    }
    let volume = json!([format!("{}:/for-32-bits:ro", program.display())]);
    for (by_default, word, code) in [
        (None, None, 7),
        (None, Some("image"), 128 + 31),
        (Some("image"), None, 128 + 31),
        (Some("image"), Some("all"), 7),
    ] {
        let options = with(case.options(), "seccomp_architectures", json!(by_default));
        let mut plugin = case.plugin_as(&case.launch(), &options).await?;
        let config = with(case.shell(&format!("/for-32-bits; echo $?; {SLEEP}")), "volumes", volume.clone());
        let task = case.run(&plugin, &with(config, "seccomp_architectures", json!(word))).await?;
        task.alloc.stdout.to_contain(&format!("{code}\n"), LIMIT).await?;
        ensure_eq!(
            task.exec(&plugin, "exec 2> /dev/null; /for-32-bits; echo $?").await?,
            (0, format!("{code}\n"))
        );
        ensure_eq!(task.exec(&plugin, MODE).await?, (0, "2\n".to_owned()));
        task.end(&plugin).await?;
        plugin.shut_down().await?;
    }
    let mut plugin = case.plugin().await?;
    for (change, words) in [
        (json!({"seccomp_architectures": "native"}), &["seccomp_architectures", "image"][..]),
        (
            json!({"seccomp_architectures": "image", "seccomp": false}),
            &["seccomp_architectures", "seccomp = true"],
        ),
    ] {
        let mut config = case.shell("true");
        for (option, value) in change.as_object().into_iter().flatten() {
            config[option] = value.clone();
        }
        let task = case.prepare(&plugin, &config).await?;
        refused(plugin.start_task(task.config.clone()).await, words)?;
    }
    plugin.shut_down().await
}

async fn profiles_of_the_same_letters_are_each_what_holds(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let profile = |names: &[&str], errno: u32| {
        let rule = json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno});
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}).to_string()
    };
    let script = "mkdir /tmp/a 2>&1 && echo made; true";
    for (name, text, said) in [
        ("parts.json", profile(&["mk", "dir"], 30), "made"),
        ("whole.json", profile(&["mkdir"], 30), "Read-only file system"),
        ("other.json", profile(&["mkdir"], 28), "No space left on device"),
    ] {
        let path = file(case, name, text)?.display().to_string();
        let task = case.run(plugin, &with(case.shell(script), "seccomp_profile", path)).await?;
        let output = task.stdout(plugin).await?;
        ensure!(output.contains(said), "{name}: {output}");
        task.destroy(plugin).await?;
    }
    Ok(())
}

/// Returns the files of crun's cache of filters, by their path and inode.
fn cached(case: &CaseContext) -> Vec<(PathBuf, u64)> {
    let cache = case.state_dir().join("runc/nomad/.cache/seccomp");
    let entries = cache.read_dir().into_iter().flatten().flatten();
    let mut files: Vec<_> =
        entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.ino()))).collect();
    files.sort();
    files
}

async fn a_filter_that_a_full_disk_has_cut_off_is_made_anew(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let run = |script: &str| case.shell(script);
    let task = case.run(&plugin, &run("true")).await?;
    task.wait(&plugin).await?;
    task.destroy(&plugin).await?;
    let first = cached(case);
    if first.is_empty() {
        plugin.shut_down().await?;
        return skip("this runtime caches no filters, as crun does from 1.14 on");
    }
    ensure_eq!(first.len(), 1);
    let mode = |path: &Path| path.metadata().map(|found| found.permissions().mode() & 0o777);
    ensure_eq!(mode(first[0].0.parent().context("the cache is nowhere")?)?, 0o700);
    // The next task has it from there, also under the next plugin.
    let mut next = case.next_plugin_with(&mut plugin, &case.options()).await?;
    let task = case.run(&next, &run(SLEEP)).await?;
    ensure_eq!(cached(case), first);
    task.end(&next).await?;
    let other = case.run(&next, &with(run("true"), "cap_drop", json!(["all"]))).await?;
    other.wait(&next).await?;
    other.destroy(&next).await?;
    let kept: Vec<_> = cached(case).into_iter().filter(|file| !first.contains(file)).collect();
    ensure_eq!(kept.len(), 1);
    // The kernel gets the filter while the container is created or, without new privileges, when the program is due.
    for without_new_privileges in [false, true] {
        let run = |script: &str| with(run(script), "no_new_privileges", json!(without_new_privileges));
        for length in [0, 4095, 4096] {
            let cut = cached(case).into_iter().find(|file| !kept.contains(file)).context("no filter")?;
            std::fs::OpenOptions::new().write(true).open(&cut.0)?.set_len(length)?;
            let task = case.prepare(&next, &run("true")).await?;
            let words = &["filter", "cut off", "the next start makes it anew"];
            let status = refused(next.start_task(task.config.clone()).await, words)?;
            ensure!(is_recoverable(&status)?, "Nomad would not try again: {}", status.message());
            case.nothing_left()?;
            ensure_eq!(cached(case), kept);
            let task = case.run(&next, &run("exit 5")).await?;
            ensure_eq!(task.wait(&next).await?.exit_code, 5);
            ensure_eq!(cached(case).len(), 2);
            task.destroy(&next).await?;
        }
    }
    // Of starts that meet it at once, one finds it.
    let cut = cached(case).into_iter().find(|file| !kept.contains(file)).context("no filter")?;
    std::fs::OpenOptions::new().write(true).open(&cut.0)?.set_len(0)?;
    let mut tasks = Vec::new();
    for _ in 0..6 {
        tasks.push(case.prepare(&next, &run("true")).await?);
    }
    let starts = tasks.iter().map(|task| next.start_task(task.config.clone()));
    let answers = futures::future::join_all(starts).await;
    ensure!(answers.iter().any(Result::is_err), "no start has met it");
    for (task, answer) in tasks.iter().zip(answers) {
        if answer.is_ok() {
            task.wait(&next).await?;
            task.destroy(&next).await?;
        } else {
            let status = refused(answer, &["cut off", "the next start makes it anew"])?;
            ensure!(is_recoverable(&status)?, "Nomad would not try again: {}", status.message());
        }
    }
    case.nothing_left()?;
    next.shut_down().await
}

async fn a_profile_that_the_kernel_refuses_is_not_tried_again(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let rule = |value: u64| {
        let argument = json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"});
        json!({"names": ["close"], "action": "SCMP_ACT_ERRNO", "args": [argument]})
    };
    // Each takes two instructions at least, of which the kernel takes 4096.
    let rules: Vec<_> = (1..=2500).map(|value| rule(value << 32)).collect();
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules});
    let path = file(case, "long.json", profile.to_string())?.display().to_string();
    let before = cached(case);
    let config = with(case.shell("true"), "seccomp_profile", path.as_str());
    for without_new_privileges in [false, false, true, true] {
        let config = with(config.clone(), "no_new_privileges", json!(without_new_privileges));
        let task = case.prepare(plugin, &config).await?;
        let name = if without_new_privileges && case.programs().is_crun() { "long.json" } else { "" };
        let status = refused(plugin.start_task(task.config.clone()).await, &["seccomp", name])?;
        ensure!(!is_recoverable(&status).unwrap_or(false), "Nomad would try again: {}", status.message());
        case.nothing_left()?;
        ensure_eq!(cached(case), before);
    }
    Ok(())
}
