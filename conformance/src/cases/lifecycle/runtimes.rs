//! A job's choice of the runtime that makes its container; and a container of a runtime of its own is found and taken
//! down by a plugin that knows only its id.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::fixture::process::output;
use harness::task::LIMIT;
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use shim_protos::StartInput;

use crate::case::skip;
use crate::cases::support::call_recorder::CallRecorder;
use crate::cases::support::processes::shim_pid;
use crate::cases::support::stoppable_task::{end_and_destroy, start_stoppable_with};
use crate::cases::support::{cases, ensure_eq, refused, until};

cases!["runtimes":
    a_task_is_made_by_the_program_that_its_job_names,
    a_task_gets_the_shim_that_its_job_names,
    a_job_names_no_runtime_that_the_operator_does_not_list,
    a_missing_runtime_is_named_before_anything_is_made,
    a_task_of_another_shim_is_taken_down_by_its_id_alone,
    a_shim_that_is_replaced_gets_the_input_that_it_takes,
    a_shim_that_takes_no_input_at_all_is_quoted,
    a_runtime_whose_shim_has_no_reason_is_quoted,
    options_of_a_runtime_that_can_not_have_them_are_refused_by_the_plugin_block,
    options_of_a_runtime_whose_shim_is_missing_are_warned_of,
];

async fn a_task_is_made_by_the_program_that_its_job_names(case: &CaseContext) -> Result<()> {
    let (operators, jobs) = (CallRecorder::runtime(case, "operators")?, CallRecorder::runtime(case, "jobs")?);
    let mut options = case.options();
    options["oci_runtime"] = json!(operators.path());
    options["allow_runtimes"] = json!([jobs.path()]);
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    for (named, by_jobs) in [(jobs.path(), true), (operators.path(), false), (String::new(), false)] {
        let mut config = case.shell("sleep 600");
        config["oci_runtime"] = json!(named);
        let task = case.run(&plugin, &config).await?;
        ensure_eq!(task.exec(&plugin, "echo here").await?, (0, "here\n".to_owned()));
        task.end(&plugin).await?;
        case.nothing_left()?;
        ensure_eq!((jobs.has_run("create"), operators.has_run("create")), (by_jobs, !by_jobs));
    }
    plugin.shut_down().await
}

async fn a_task_gets_the_shim_that_its_job_names(case: &CaseContext) -> Result<()> {
    let shim = CallRecorder::shim(case)?;
    let mut options = case.options_with(&shim.path());
    options["allow_runtimes"] = json!([shim.path()]);
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    case.still_works(&plugin).await?;
    ensure!(!shim.has_run("start"), "the task that names none got it");
    let mut config = case.shell("exit 5");
    config["runtime"] = json!(shim.path());
    let task = case.run(&plugin, &config).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 5);
    ensure!(shim.has_run("start"), "another shim was started");
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn a_job_names_no_runtime_that_the_operator_does_not_list(case: &CaseContext) -> Result<()> {
    let shim = CallRecorder::shim(case)?;
    let path = shim.path();
    let other = if case.programs().oci_runtime().is_none() { "crun" } else { "runc" };
    for (listed, option, name) in [
        (json!(null), "runtime", path.as_str()),
        (json!(null), "oci_runtime", &path),
        (json!(["io.containerd.runc.v2"]), "oci_runtime", other),
        (json!(["io.containerd.runc.v2"]), "runtime", "io.containerd.runc.v1"),
    ] {
        let mut options = case.options();
        options["allow_runtimes"] = listed;
        let mut plugin = case.plugin_as(&case.launch(), &options).await?;
        let mut config = case.shell("true");
        config[option] = json!(name);
        let task = case.prepare(&plugin, &config).await?;
        refused(plugin.start_task(task.config.clone()).await, &[option, name, "allow_runtimes"])?;
        case.nothing_left()?;
        plugin.shut_down().await?;
    }
    ensure!(!shim.has_run("start"), "what was refused has run");
    Ok(())
}

async fn a_missing_runtime_is_named_before_anything_is_made(case: &CaseContext) -> Result<()> {
    let mut options = case.options();
    options["allow_runtimes"] = json!(["io.containerd.nowhere.v9"]);
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let mut config = case.shell("true");
    config["runtime"] = json!("io.containerd.nowhere.v9");
    let task = case.prepare(&plugin, &config).await?;
    refused(plugin.start_task(task.config.clone()).await, &["containerd-shim-nowhere-v9", "runtime"])?;
    case.nothing_left()?;
    case.still_works(&plugin).await?;
    plugin.shut_down().await
}

async fn a_task_of_another_shim_is_taken_down_by_its_id_alone(case: &CaseContext) -> Result<()> {
    let shim = CallRecorder::shim(case)?;
    let program = CallRecorder::runtime(case, "another-runtime")?;
    let mut options = case.options_with(&shim.path());
    options["allow_runtimes"] = json!([shim.path(), program.path()]);
    let job = |config: &mut serde_json::Value| {
        config["runtime"] = json!(shim.path());
        config["oci_runtime"] = json!(program.path());
    };
    // A recovered task goes on as any other.
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = start_stoppable_with(case, &plugin, job).await?;
    let mut next = case.next_plugin_with(&mut plugin, &options).await?;
    task.recover(&next).await?;
    end_and_destroy(&task, &next).await?;
    // Without plugin and shim, only a container in its bundle is left.
    let task = start_stoppable_with(case, &next, job).await?;
    next.kill().await?;
    kill(shim_pid(case)?, Signal::SIGKILL)?;
    let _ = shim.has_run("start");
    let mut last = case.plugin().await?;
    task.end(&last).await?;
    ensure!(shim.has_run("delete") && program.has_run("delete"), "another clean-up was run");
    until(LIMIT, "the container's end", || task.alloc.cgroup.pids().is_empty()).await?;
    case.nothing_left()?;
    last.shut_down().await
}

/// A script in place of a shim of another version: its `start` fails unless the length of its input is as `takes` says.
/// Notes whether there was input, and each `-v`.
struct Versioned {
    program: PathBuf,
    record: PathBuf,
}

impl Versioned {
    fn new(case: &CaseContext) -> Self {
        Self {
            program: case.directory().join("versioned-shim"),
            record: case.directory().join("versioned.ran"),
        }
    }

    /// Replaces the script, as an upgrade replaces a program.
    fn replace(&self, case: &CaseContext, version: &str, takes: &str) -> Result<()> {
        let script = format!(
            "#!/bin/sh\n\
             for word; do :; done\n\
             case $word in\n\
             -v) echo asked >> {record}; printf 'shim:\\n  Version:  {version}\\n'; exit;;\n\
             start) read=$(wc -c); echo $((read > 0)) >> {record}\n\
             [ \"$read\" {takes} ] || {{ echo \"it read $read bytes\" >&2; exit 1; }}\n\
             exec {real} \"$@\" < /dev/null;;\n\
             esac\n\
             exec {real} \"$@\"\n",
            record = self.record.display(),
            real = case.programs().shim().display(),
        );
        fs::create_dir_all(case.directory())?;
        let new = self.program.with_extension("new");
        fs::write(&new, script)?;
        fs::set_permissions(&new, Permissions::from_mode(0o755))?;
        Ok(fs::rename(&new, &self.program)?)
    }

    /// Returns the notes since the last look.
    fn has_run(&self) -> String {
        let record = fs::read_to_string(&self.record).unwrap_or_default();
        let _ = fs::remove_file(&self.record);
        record.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// Skips the case if the real shim's `start` fails on an empty input, so that it can't be behind the script.
fn require_shim_without_input(case: &CaseContext) -> Result<()> {
    let printed = output(Command::new(case.programs().shim()).arg("-v"))?;
    if StartInput::by_version(&printed) == StartInput::Params {
        return skip("the shim at hand is one of those that the case has a stand-in for");
    }
    Ok(())
}

async fn a_shim_that_is_replaced_gets_the_input_that_it_takes(case: &CaseContext) -> Result<()> {
    require_shim_without_input(case)?;
    let shim = Versioned::new(case);
    let mut options = case.options_with(&shim.program.display().to_string());
    options["spare_shims"] = json!(0);
    options["containerd_runtime"] = json!(shim.program.display().to_string());
    shim.replace(case, "1.6.20", "-eq 0")?;
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    for (version, takes, first, later) in [
        ("1.6.20~ds1", "-eq 0", "asked 0", "0"),
        ("v2.4.2", "-gt 0", "asked 1", "1"),
        // The version of a vendor's build.
        ("release-7", "-gt 0", "asked 0 1", "1"),
        ("v2.4.2", "-eq 0", "asked 1 0", "0"),
    ] {
        shim.replace(case, version, takes)?;
        for expected in [first, later] {
            let task = case.run(&plugin, &case.shell("exit 5")).await?;
            ensure_eq!(task.wait(&plugin).await?.exit_code, 5);
            ensure_eq!(shim.has_run(), expected);
            task.destroy(&plugin).await?;
            case.nothing_left()?;
        }
    }
    plugin.shut_down().await
}

async fn a_shim_that_takes_no_input_at_all_is_quoted(case: &CaseContext) -> Result<()> {
    let shim = Versioned::new(case);
    shim.replace(case, "2.4.2", "-lt 0")?;
    let mut options = case.options_with(&shim.program.display().to_string());
    options["spare_shims"] = json!(0);
    options["containerd_runtime"] = json!(shim.program.display().to_string());
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = case.prepare(&plugin, &case.shell("true")).await?;
    let refusal = plugin.start_task(task.config.clone()).await;
    refused(refusal, &["versioned-shim start failed", "it read"])?;
    ensure_eq!(shim.has_run(), "asked 1 0");
    case.nothing_left()?;
    plugin.shut_down().await
}

/// Script of a runtime that logs in youki's form, of which shims read nothing.
const MUTE: &str = r#"#!/bin/sh
case " $* " in *" COMMAND "*) ;; *) exec REAL "$@" ;; esac
log=$(echo " $*" | sed 's/.* --log \([^ ]*\).*/\1/')
now=$(date -u +%FT%TZ)
cat > "$log" <<END
{"timestamp":"$now","level":"ERROR","message":"failed to chdir","e":"ENOENT","target":"init"}
{"timestamp":"$now","level":"ERROR","message":"failed to COMMAND container","target":"youki"}
END
exit 1
"#;

async fn a_runtime_whose_shim_has_no_reason_is_quoted(case: &CaseContext) -> Result<()> {
    let directory = case.directory().join("mute");
    fs::create_dir_all(&directory)?;
    for command in ["create", "start", "exec"] {
        let program = directory.join(command);
        let real = case.programs().runtime().display().to_string();
        let script = MUTE.replace("COMMAND", command).replace("REAL", &real);
        fs::write(&program, script)?;
        fs::set_permissions(&program, Permissions::from_mode(0o755))?;
        let mut options = case.options();
        options["oci_runtime"] = json!(program.display().to_string());
        let mut plugin = case.plugin_as(&case.launch(), &options).await?;
        let task = case.prepare(&plugin, &case.shell("sleep 600")).await?;
        let words = ["failed to chdir: ENOENT", &format!("failed to {command} container")];
        if command == "exec" {
            plugin.start_task(task.config.clone()).await?;
            let output = task.exec(&plugin, "true").await;
            let output = format!("{output:?}");
            ensure!(words.iter().all(|word| output.contains(word)), "{output}");
            task.end(&plugin).await?;
        } else {
            refused(plugin.start_task(task.config.clone()).await, &words)?;
        }
        case.nothing_left()?;
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn options_of_a_runtime_that_can_not_have_them_are_refused_by_the_plugin_block(
    case: &CaseContext,
) -> Result<()> {
    let kata = "io.containerd.kata.v2.options";
    for (block, words) in [
        (
            json!({"runtime": "io.containerd.kata.v2", "type_url": kata}),
            &["runtime_options.runtime", "io.containerd.kata.v2", "allow_runtimes"][..],
        ),
        (
            json!({"runtime": case.programs().shim_runtime(), "type_url": kata}),
            &["runtime_options.type_url", kata, case.programs().options_type()],
        ),
        (
            json!({"runtime": "io.containerd.runc.v2", "config_path": "/etc/x.toml"}),
            &["runtime_options.config_path", "/etc/x.toml", "oci_runtime"],
        ),
    ] {
        let mut plugin = case.bare_plugin(&case.launch()).await?;
        let mut options = case.options();
        options["runtime_options"] = json!([block]);
        let error = format!("{:#}", plugin.configure(&options).await.err().context("it was taken")?);
        for word in words {
            ensure!(error.contains(word), "{word} is not in {error}");
        }
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn options_of_a_runtime_whose_shim_is_missing_are_warned_of(case: &CaseContext) -> Result<()> {
    let nowhere = "io.containerd.nowhere.v9";
    let mut options = case.options_with(nowhere);
    options["allow_runtimes"] = json!([nowhere]);
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let log = || plugin.log().all().into_iter().find(|line| line.contains("runtime_options"));
    until(LIMIT, "the warning", || log().is_some()).await?;
    let warning = log().context("no warning")?;
    for word in ["warn", nowhere, "containerd-shim-nowhere-v9"] {
        ensure!(warning.contains(word), "{word} is not in {warning}");
    }
    case.still_works(&plugin).await?;
    plugin.shut_down().await
}
