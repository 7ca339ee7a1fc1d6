//! The context of one case: a state directory of its own in a test environment, plugins and tasks on it, and
//! the leak check at the end. Knows nothing of what the case is about.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::config;
use crate::environment::TestEnvironment;
use crate::fixture::Programs;
use crate::fixture::network::Bridge;
use crate::host::cgroup::TaskCgroup;
use crate::host::stderr::{self, Lines};
use crate::host::{Alloc, Launch, Plugin, hcl};
use crate::leaks::census::Census;
use crate::leaks::inspect::children;
use crate::leaks::report::{DOCKERS_STATE, LeakCheck, NULL_NETNS};
use crate::leaks::sweep;
use crate::task::Task;

/// Timeout for a plugin to clean up after a start that was cut off.
const CUT_OFF: Duration = Duration::from_secs(15);
/// Number of a plugin's last log lines that an error shows.
const SHOWN_LINES: usize = 30;

pub struct CaseContext {
    environment: Arc<TestEnvironment>,
    binary: PathBuf,
    /// Binary of each plugin after the case's first.
    successor: Option<PathBuf>,
    name: String,
    before: Census,
    noted: Mutex<Noted>,
}

/// The logs and control groups that are checked at the end.
#[derive(Default)]
struct Noted {
    logs: Vec<(u32, Lines)>,
    cgroups: Vec<Arc<TaskCgroup>>,
    has_own_shims: bool,
}

impl CaseContext {
    pub fn new(environment: Arc<TestEnvironment>, binary: &Path, name: String) -> Self {
        let binary = binary.to_owned();
        let (before, noted) = (Census::default(), Mutex::default());
        let mut context = Self { environment, binary, successor: None, name, before, noted };
        context.before = context.look(|check| check.all());
        context
    }

    /// Has every plugin after the case's first run another binary: an upgrade of the driver, or its way back.
    pub fn succeeded_by(mut self, successor: Option<PathBuf>) -> Self {
        self.successor = successor;
        self
    }

    /// Takes all that there is now for what was there before the case, such as a task that is to outlive others.
    pub fn count_from_now(&mut self) {
        self.before = self.look(|leftovers| leftovers.all());
    }

    /// Forgets the logs of the plugins so far, and the control groups of tasks that are over.
    pub fn forget_earlier_runs(&self) {
        let mut noted = self.noted();
        noted.logs.clear();
        noted.cgroups.retain(|cgroup| Arc::strong_count(cgroup) > 1);
    }

    /// Gives each task a shim of its own whatever the suite's choice is: for a case about what a shim does to its task, in
    /// which a shim of all tasks would be another case.
    pub fn with_own_shims(&self) -> &Self {
        self.noted().has_own_shims = true;
        self
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn environment(&self) -> &TestEnvironment {
        &self.environment
    }

    /// Returns the containerd, the shim and the runtime that the case is run with.
    pub fn programs(&self) -> &Programs {
        self.environment.containerd().programs()
    }

    /// Returns the root directory of all files of the case.
    pub fn directory(&self) -> PathBuf {
        self.environment.directory().join(&self.name)
    }

    pub fn state_dir(&self) -> PathBuf {
        self.environment.state_dir(&self.name)
    }

    pub fn image(&self, name: &str) -> String {
        self.environment.image(name)
    }

    /// Returns a job's config in which busybox' shell runs a script.
    pub fn shell(&self, script: &str) -> Value {
        config! { image = self.image("busybox:latest"), command = "/bin/sh", args = ["-c", script] }
    }

    /// Returns the settings for a plugin whose socket lies in the case's directory, by which its process can be found
    /// as well.
    pub fn launch(&self) -> Launch {
        let temporary = self.directory().join("tmp");
        let _ = std::fs::create_dir_all(&temporary);
        let is_first = self.noted().logs.is_empty();
        let successor = self.successor.as_ref().filter(|_| !is_first);
        let mut launch = Launch::new(successor.unwrap_or(&self.binary));
        launch.look_first_in(self.environment.containerd().programs_directory());
        launch.environment.push(("TMPDIR".into(), temporary.into()));
        launch
    }

    /// Returns [`Self::launch`] for a plugin that answers by the name `docker`, which is that of its file.
    ///
    /// # Errors
    /// Fails if the file can't be made.
    pub fn launch_docker(&self) -> Result<Launch> {
        let mut launch = self.launch();
        let link = self.directory().join("docker");
        if !link.exists() {
            std::os::unix::fs::symlink(std::path::absolute(&launch.binary)?, &link)?;
        }
        launch.binary = link;
        Ok(launch)
    }

    /// Returns the options of the plugin block of `docker`: only those that keep it within the test environment.
    pub fn docker_options(&self) -> Value {
        self.options_within(&self.environment.networks().docker(), &self.docker_state_dir())
    }

    /// Returns the options that keep a plugin with this bridge and state directory within the test environment.
    fn options_within(&self, bridge: &Bridge, state_dir: &Path) -> Value {
        let programs = self.programs();
        config! {
            bridge_network_name = bridge.name,
            bridge_network_subnet = bridge.subnet,
            containerd_runtime = programs.shim_runtime(),
            oci_runtime = programs.oci_runtime(),
            cni_path = programs.cni_path(),
            shim_sharing = programs.shim_sharing().filter(|_| !self.noted().has_own_shims),
            containerd_socket = self.environment.containerd().socket().display().to_string(),
            state_dir = state_dir.display().to_string(),
            // The machine's own registry configuration must not affect a case.
            registry_config_dir = "",
        }
    }

    /// Returns the state directory of the plugin `docker`, beneath the case's own.
    pub fn docker_state_dir(&self) -> PathBuf {
        self.state_dir().join(DOCKERS_STATE)
    }

    /// Starts a plugin as it runs in an agent under the name `docker`.
    ///
    /// # Errors
    /// Names the step of the agent's start that failed.
    pub async fn docker(&self) -> Result<Plugin> {
        self.plugin_as(&self.launch_docker()?, &self.docker_options()).await
    }

    /// Returns the options of the plugin block. A case changes what it tests.
    pub fn options(&self) -> Value {
        let mut options = self.options_within(&self.environment.networks().tasks(), &self.state_dir());
        options["allowed_modes"] = serde_json::json!({
            "pid": ["host"], "ipc": ["host"], "uts": ["host"], "cgroupns": ["host"], "userns": ["host"],
        });
        // The receivers of the cases are on this host.
        options["logging"] = serde_json::json!({"allowed_host_addresses": ["127.0.0.0/8"]});
        options
    }

    /// Returns [`Self::options`] with a `runtime_options` entry, by which an operator declares that a runtime of
    /// another name takes the options of the shim at hand.
    pub fn options_with(&self, runtime: &str) -> Value {
        let mut options = self.options();
        let type_url = self.programs().options_type();
        options["runtime_options"] = serde_json::json!([{"runtime": runtime, "type_url": type_url}]);
        options
    }

    /// Starts a plugin as it runs in an agent.
    ///
    /// # Errors
    /// Names the step of the agent's start that failed.
    pub async fn plugin(&self) -> Result<Plugin> {
        self.plugin_as(&self.launch(), &self.options()).await
    }

    /// Starts a plugin with other launch settings and options.
    ///
    /// # Errors
    /// Fails as [`Self::plugin`] does.
    pub async fn plugin_as(&self, launch: &Launch, options: &Value) -> Result<Plugin> {
        let mut plugin = self.bare_plugin(launch).await?;
        plugin.configure(options).await?;
        plugin.listen().await?;
        Ok(plugin)
    }

    /// Kills a plugin, as its agent's death does, and launches the next one.
    ///
    /// # Errors
    /// Fails as [`Self::plugin`] does.
    pub async fn next_plugin(&self, killed: &mut Plugin) -> Result<Plugin> {
        self.next_plugin_with(killed, &self.options()).await
    }

    /// Kills a plugin, and launches the next one with other options.
    ///
    /// # Errors
    /// Fails as [`Self::plugin`] does.
    pub async fn next_plugin_with(&self, killed: &mut Plugin, options: &Value) -> Result<Plugin> {
        killed.kill().await?;
        self.plugin_as(&self.launch(), options).await
    }

    /// Starts a plugin and connects to it, without configuring it.
    ///
    /// # Errors
    /// Names the step of go-plugin's start that failed.
    pub async fn bare_plugin(&self, launch: &Launch) -> Result<Plugin> {
        let plugin = Plugin::launch(launch).await?;
        self.noted().logs.push((plugin.pid(), plugin.log()));
        Ok(plugin)
    }

    /// Prepares a task with its allocation, to be started by the case. Its logs are read, unless the driver does that
    /// itself.
    ///
    /// # Errors
    /// Fails if the plugin's schema doesn't allow the config, as the agent does.
    pub async fn prepare(&self, plugin: &Plugin, config: &Value) -> Result<Task> {
        let mut task = self.prepare_unread(plugin, config).await?;
        if task.alloc.log_path("stdout").exists() {
            task.alloc.read_logs()?;
        }
        Ok(task)
    }

    /// Prepares a task whose logs nobody reads.
    ///
    /// # Errors
    /// Fails as [`Self::prepare`] does.
    pub async fn prepare_unread(&self, plugin: &Plugin, config: &Value) -> Result<Task> {
        self.prepare_named(plugin, "web", config).await
    }

    /// Prepares a task of another name, whose logs nobody reads.
    ///
    /// # Errors
    /// Fails as [`Self::prepare`] does.
    pub async fn prepare_named(&self, plugin: &Plugin, name: &str, config: &Value) -> Result<Task> {
        let msgpack = hcl::encode(&plugin.task_schema().await?, config).context("encode the job's config")?;
        let collects = !plugin.capabilities().await?.disable_log_collection;
        let alloc = Alloc::create(&self.directory().join("alloc"), name, collects)?;
        self.noted().cgroups.push(Arc::clone(&alloc.cgroup));
        Ok(Task::new(alloc, msgpack))
    }

    /// Starts a task.
    ///
    /// # Errors
    /// Carries the plugin's error.
    pub async fn run(&self, plugin: &Plugin, config: &Value) -> Result<Task> {
        let mut task = self.prepare(plugin, config).await?;
        task.start(plugin).await?;
        Ok(task)
    }

    /// Checks that the plugin, after whatever happened to it, still runs a task from start to end.
    ///
    /// # Errors
    /// Says what doesn't work.
    pub async fn still_works(&self, plugin: &Plugin) -> Result<()> {
        let task = self.run(plugin, &self.shell("exit 3")).await.context("a good task afterwards")?;
        let exit = task.wait(plugin).await?;
        ensure!(exit.exit_code == 3, "a good task afterwards ends with {exit:?}");
        task.destroy(plugin).await
    }

    /// Returns the bundle of the case's only task.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn bundle(&self) -> Result<PathBuf> {
        let bundles = self.state_dir().join("nomad");
        children(&bundles).pop().with_context(|| format!("no bundle in {}", bundles.display()))
    }

    /// Returns all that exists of this case now, as text.
    pub fn census(&self) -> Vec<String> {
        self.look(|check| [check.census(), check.records()].concat())
    }

    /// Checks that nothing is left of a start whose answer nobody waited for. If the start had just succeeded when its
    /// caller went away, neither side can know; then the task is ended as an agent does, and true is returned.
    ///
    /// # Errors
    /// Lists everything that is left even so.
    pub async fn nothing_left_of_cut_off(&self, task: &Task, plugin: &Plugin) -> Result<bool> {
        let Err(left) = self.nothing_left_within(CUT_OFF) else { return Ok(false) };
        task.end(plugin).await.context(left)?;
        self.nothing_left()?;
        Ok(true)
    }

    /// # Errors
    /// Lists everything that is left.
    pub fn nothing_left(&self) -> Result<()> {
        self.look(|check| check.assert_nothing_left())
    }

    /// Checks within `limit` that nothing is left, since the plugin may need time to clean up.
    ///
    /// # Errors
    /// Lists everything that is left.
    pub fn nothing_left_within(&self, limit: Duration) -> Result<()> {
        self.look(|check| check.assert_nothing_left_within(limit))
    }

    fn look<T>(&self, look: impl FnOnce(&LeakCheck<'_>) -> T) -> T {
        let cgroups: Vec<String> =
            self.noted().cgroups.iter().map(|cgroup| cgroup.name().to_owned()).collect();
        look(&LeakCheck {
            containerd: self.environment.containerd(),
            networks: self.environment.networks(),
            state_dir: &self.state_dir(),
            cgroups: &cgroups,
            before: &self.before,
        })
    }

    /// Does the leak check: each line that the plugins logged is well-formed, and nothing of theirs is left.
    ///
    /// # Errors
    /// Names what is wrong or left.
    pub fn close(&self) -> Result<()> {
        self.logs_are_in_form()?;
        self.nothing_left()?;
        sweep::unmount_under(&self.state_dir().join(NULL_NETNS));
        Ok(())
    }

    /// # Errors
    /// Shows the line that isn't well-formed.
    pub fn logs_are_in_form(&self) -> Result<()> {
        for (pid, log) in &self.noted().logs {
            for line in log.all() {
                stderr::check(&line).with_context(|| format!("a line of plugin {pid}'s stderr"))?;
            }
        }
        Ok(())
    }

    /// Returns the last log lines of the plugins, for the message of a failure.
    pub fn last_words(&self) -> String {
        let noted = self.noted();
        let words = noted.logs.iter().map(|(pid, log)| format!("plugin {pid}:\n{}", log.tail(SHOWN_LINES)));
        words.collect::<Vec<_>>().join("\n")
    }

    /// Removes by force what a failed case has left, so that the next one finds a clean environment.
    pub fn sweep(&self) {
        // First, since a process in a frozen cgroup can't be killed.
        self.noted().cgroups.clear();
        sweep::processes_under(&self.directory());
        sweep::unmount_under(&self.directory());
        self.environment.networks().clear();
        sweep::records(self.environment.containerd());
        self.look(|check| check.remove_sockets());
    }
}

impl Drop for CaseContext {
    fn drop(&mut self) {
        self.noted().cgroups.clear();
        let _ = std::fs::remove_dir_all(self.directory());
    }
}
