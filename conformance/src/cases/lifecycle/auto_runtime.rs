//! `oci_runtime = "auto"`: which program runs tasks, what the node is told of it, and what a running task has of it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::{Launch, Plugin};
use harness::task::LIMIT;
use nomad_proto::driver::fingerprint_response::HealthState;
use nomad_proto::structs::attribute::Value;
use serde_json::json;

use crate::case::skip;
use crate::cases::support::fingerprint::next;
use crate::cases::support::stoppable_task::{end_and_destroy, start_stoppable_with};
use crate::cases::support::{cases, ensure_eq, is_recoverable, refused, until};

cases!["auto runtime":
    crun_runs_tasks_where_it_fits_and_runc_elsewhere,
    a_crun_that_does_not_fit_is_passed_over_with_the_reason,
    a_crun_that_goes_comes_or_is_replaced_is_looked_at_again,
    a_crun_that_can_not_be_judged_is_judged_again,
    a_running_task_is_run_by_crun_of_which_one_that_does_not_fit_gets_no_exec,
    without_a_program_the_driver_is_unhealthy_and_says_what_each_lacks,
];

const FIT: &str = "printf 'crun version 1.21\\n+SYSTEMD +CAP +SECCOMP +YAJL\\n'; exit 0";
const OLD: &str = "printf 'crun version 0.17\\n+SYSTEMD +CAP +SECCOMP +YAJL\\n'; exit 0";

/// The programs `crun` and `runc` in the plugin's whole PATH. Both run the real runtime, and record their calls.
struct Choices {
    directory: PathBuf,
}

impl Choices {
    fn new(case: &CaseContext) -> Result<Self> {
        let directory = case.directory().join("choices");
        fs::create_dir_all(&directory)?;
        let shim = case.programs().shim();
        symlink(shim, directory.join(shim.file_name().context("the shim has no name")?))?;
        Ok(Self { directory })
    }

    /// Links the tools that CNI plugins need. On some systems the machine's own crun and runc are beside them.
    fn with_tools(self) -> Result<Self> {
        for tool in fs::read_dir("/usr/sbin")? {
            let tool = tool?;
            let place = self.directory.join(tool.file_name());
            if !["crun", "runc"].iter().any(|name| tool.file_name() == *name) && !place.exists() {
                symlink(tool.path(), place)?;
            }
        }
        Ok(self)
    }

    /// Makes both, with a crun that is chosen. Skips the case where crun never is.
    fn with_crun_chosen(case: &CaseContext) -> Result<Self> {
        if fitting() != "crun" {
            return skip("crun does not fit this machine, so that nothing else is ever chosen");
        }
        let choices = Self::new(case)?.with_tools()?;
        choices.put(case, "crun", FIT)?;
        choices.put(case, "runc", "true")?;
        Ok(choices)
    }

    /// Writes a program whose `--version` does what `version` says.
    fn put(&self, case: &CaseContext, name: &str, version: &str) -> Result<()> {
        let text = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then {version}; fi\necho \" $* \" >> {record}\nexec {real} \"$@\"\n",
            record = self.record(name).display(),
            real = case.programs().runtime().display(),
        );
        let new = self.directory.join("new");
        fs::write(&new, text)?;
        fs::set_permissions(&new, Permissions::from_mode(0o755))?;
        Ok(fs::rename(new, self.directory.join(name))?)
    }

    fn remove(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.directory.join(name))?)
    }

    fn record(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.ran"))
    }

    /// Returns which of the two was called with this argument since the last look.
    fn took(&self, word: &str) -> Vec<&'static str> {
        let took = ["crun", "runc"].into_iter().filter(|name| {
            let record = fs::read_to_string(self.record(name)).unwrap_or_default();
            let _ = fs::remove_file(self.record(name));
            record.contains(&format!(" {word} "))
        });
        took.collect()
    }

    /// Starts a plugin with these programs in its PATH, and the tools of CNI plugins.
    async fn plugin(&self, case: &CaseContext) -> Result<Plugin> {
        let mut options = case.options();
        options["oci_runtime"] = json!("auto");
        case.plugin_as(&self.launch(case), &options).await
    }

    fn launch(&self, case: &CaseContext) -> Launch {
        let mut launch = case.launch();
        launch.look_only_in(vec![self.directory.clone()]);
        launch
    }
}

/// Returns the controllers that crun would refuse: those of cgroup v2 on a machine that has v1 as well.
fn controllers_beside_v1() -> String {
    let listed = fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers").unwrap_or_default();
    listed.trim().to_owned()
}

fn fitting() -> &'static str {
    if controllers_beside_v1().is_empty() { "crun" } else { "runc" }
}

/// Returns the node's attribute once the driver is healthy.
async fn attribute(plugin: &Plugin) -> Result<String> {
    let found = next(&mut plugin.fingerprints().await?, HealthState::Healthy).await?;
    let attribute = found.attributes.get("driver.containerd-driver.oci_runtime");
    match attribute.and_then(|attribute| attribute.value.clone()) {
        Some(Value::StringVal(name)) => Ok(name),
        other => anyhow::bail!("the attribute is {other:?}"),
    }
}

/// Asserts that a task is made, and a command run in it, by this program.
async fn is_run_by(case: &CaseContext, plugin: &Plugin, choices: &Choices, name: &str) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    ensure_eq!(choices.took("create"), [name]);
    ensure_eq!(task.exec(plugin, "echo here").await?, (0, "here\n".to_owned()));
    ensure_eq!(choices.took("exec"), [name]);
    task.end(plugin).await?;
    ensure_eq!(choices.took("delete"), [name]);
    Ok(())
}

async fn crun_runs_tasks_where_it_fits_and_runc_elsewhere(case: &CaseContext) -> Result<()> {
    let choices = Choices::new(case)?.with_tools()?;
    choices.put(case, "crun", FIT)?;
    choices.put(case, "runc", "true")?;
    let mut plugin = choices.plugin(case).await?;
    ensure_eq!(attribute(&plugin).await?, fitting());
    is_run_by(case, &plugin, &choices, fitting()).await?;
    let said = || plugin.log().all().into_iter().filter(|line| line.contains("oci_runtime = \\\"auto\\\""));
    until(LIMIT, "the line of the log", || said().count() > 0).await?;
    let line = said().next().unwrap_or_default();
    for controller in controllers_beside_v1().split_whitespace() {
        ensure!(line.contains(controller) && line.contains("mount -t cgroup"), "{line}");
    }
    // A job may ask for the same, and for one of the two.
    let mut config = case.shell("true");
    config["oci_runtime"] = json!("auto");
    let task = case.run(&plugin, &config).await?;
    task.wait(&plugin).await?;
    ensure_eq!(choices.took("create"), [fitting()]);
    task.destroy(&plugin).await?;
    ensure!(said().count() == 1, "it was chosen more than once");
    plugin.shut_down().await?;
    let mut options = case.options();
    options["allow_runtimes"] = json!(["runc"]);
    let mut plugin = case.plugin_as(&choices.launch(case), &options).await?;
    let task = case.prepare(&plugin, &config).await?;
    refused(plugin.start_task(task.config.clone()).await, &["oci_runtime", "auto", "allow_runtimes"])?;
    plugin.shut_down().await
}

async fn a_crun_that_does_not_fit_is_passed_over_with_the_reason(case: &CaseContext) -> Result<()> {
    let choices = Choices::new(case)?.with_tools()?;
    choices.put(case, "runc", "true")?;
    for (version, reason) in [
        (Some(OLD), "older than 1.8"),
        (Some("printf 'crun version 1.21\\n+SYSTEMD +CAP +YAJL\\n'; exit 0"), "without SECCOMP"),
        (Some("echo 'libyajl.so.2 is missing' >&2; exit 127"), "libyajl.so.2 is missing"),
        (None, "crun is missing"),
    ] {
        match version {
            Some(version) => choices.put(case, "crun", version)?,
            None => choices.remove("crun")?,
        }
        let mut plugin = choices.plugin(case).await?;
        ensure_eq!(attribute(&plugin).await?, "runc");
        is_run_by(case, &plugin, &choices, "runc").await?;
        let log = plugin.log().all();
        ensure!(log.iter().any(|line| line.contains("auto") && line.contains(reason)), "{reason}: {log:?}");
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn a_crun_that_goes_comes_or_is_replaced_is_looked_at_again(case: &CaseContext) -> Result<()> {
    let choices = Choices::with_crun_chosen(case)?;
    let mut plugin = choices.plugin(case).await?;
    is_run_by(case, &plugin, &choices, "crun").await?;
    choices.remove("crun")?;
    is_run_by(case, &plugin, &choices, "runc").await?;
    ensure_eq!(attribute(&plugin).await?, "runc");
    choices.put(case, "crun", FIT)?;
    is_run_by(case, &plugin, &choices, "crun").await?;
    choices.put(case, "crun", OLD)?;
    is_run_by(case, &plugin, &choices, "runc").await?;
    ensure_eq!(attribute(&plugin).await?, "runc");
    plugin.shut_down().await
}

async fn a_crun_that_can_not_be_judged_is_judged_again(case: &CaseContext) -> Result<()> {
    let choices = Choices::with_crun_chosen(case)?;
    let unpacked = case.directory().join("unpacked");
    let needs = format!("[ -e {} ] || exit 127; {FIT}", unpacked.display());
    // Without another program nothing is final.
    choices.put(case, "crun", &needs)?;
    choices.remove("runc")?;
    let mut plugin = choices.plugin(case).await?;
    let mut stream = plugin.fingerprints().await?;
    let unhealthy = next(&mut stream, HealthState::Unhealthy).await?;
    ensure!(unhealthy.health_description.contains("exit status: 127"), "{}", unhealthy.health_description);
    let task = case.prepare(&plugin, &case.shell("true")).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &["crun --version fails", "runc"])?;
    ensure!(is_recoverable(&status)?, "Nomad would not try again: {}", status.message());
    case.nothing_left()?;
    fs::write(&unpacked, "")?;
    next(&mut stream, HealthState::Healthy).await?;
    is_run_by(case, &plugin, &choices, "crun").await?;
    plugin.shut_down().await?;
    // With another one, that is taken meanwhile.
    fs::remove_file(&unpacked)?;
    choices.put(case, "runc", "true")?;
    let mut plugin = choices.plugin(case).await?;
    is_run_by(case, &plugin, &choices, "runc").await?;
    fs::write(&unpacked, "")?;
    let limit = tokio::time::Instant::now() + LIMIT;
    while attribute(&plugin).await? != "crun" {
        ensure!(tokio::time::Instant::now() < limit, "crun is not judged again");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    is_run_by(case, &plugin, &choices, "crun").await?;
    plugin.shut_down().await
}

async fn a_running_task_is_run_by_crun_of_which_one_that_does_not_fit_gets_no_exec(
    case: &CaseContext,
) -> Result<()> {
    let choices = Choices::with_crun_chosen(case)?;
    let mut plugin = choices.plugin(case).await?;
    let task = start_stoppable_with(case, &plugin, |_| ()).await?;
    ensure_eq!(choices.took("create"), ["crun"]);
    plugin.kill().await?;
    choices.put(case, "crun", OLD)?;
    let mut plugin = choices.plugin(case).await?;
    ensure_eq!(attribute(&plugin).await?, "runc");
    task.recover(&plugin).await?;
    let refusal =
        task.exec(&plugin, "echo here").await.err().context("a command was run by a crun that is too old")?;
    for word in ["oci_runtime", "older than 1.8", "restart the task"] {
        ensure!(format!("{refusal:#}").contains(word), "{word}: {refusal:#}");
    }
    is_run_by(case, &plugin, &choices, "runc").await?;
    choices.put(case, "crun", FIT)?;
    ensure_eq!(task.exec(&plugin, "echo here").await?, (0, "here\n".to_owned()));
    ensure_eq!(choices.took("exec"), ["crun"]);
    // It ends by whatever crun is there.
    choices.put(case, "crun", OLD)?;
    end_and_destroy(&task, &plugin).await?;
    ensure_eq!(choices.took("delete"), ["crun"]);
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn without_a_program_the_driver_is_unhealthy_and_says_what_each_lacks(
    case: &CaseContext,
) -> Result<()> {
    let choices = Choices::new(case)?;
    choices.put(case, "crun", OLD)?;
    let mut launch = case.launch();
    launch.look_only_in(vec![choices.directory.clone()]);
    let mut options = case.options();
    options["oci_runtime"] = json!("auto");
    let mut plugin = case.plugin_as(&launch, &options).await?;
    let mut stream = plugin.fingerprints().await?;
    let unhealthy = next(&mut stream, HealthState::Unhealthy).await?;
    for word in ["oci_runtime", "auto", "crun", "runc is missing"] {
        ensure!(unhealthy.health_description.contains(word), "{word}: {:?}", unhealthy.health_description);
    }
    let task = case.prepare(&plugin, &case.shell("true")).await?;
    refused(plugin.start_task(task.config.clone()).await, &["oci_runtime", "crun", "runc"])?;
    case.nothing_left()?;
    choices.put(case, "runc", "true")?;
    next(&mut stream, HealthState::Healthy).await?;
    plugin.shut_down().await
}
