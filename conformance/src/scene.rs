//! One case's stage: a state directory of its own in a world, plugins and tasks on it, and the account at the end of what
//! they left. Knows nothing of what the case is about.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::config;
use crate::fixture::census::Census;
use crate::fixture::leftovers::{Leftovers, NULL_NETNS};
use crate::fixture::sweep;
use crate::fixture::traces::children;
use crate::fixture::{Programs, World};
use crate::host::cgroup::TaskCgroup;
use crate::host::stderr::{self, Lines};
use crate::host::{Alloc, Launch, Plugin, hcl};
use crate::task::Task;

/// How long a plugin may take to find what a start that was cut off has left.
const CUT_OFF: Duration = Duration::from_secs(15);
/// How many of a plugin's last log lines a failure shows.
const SHOWN_LINES: usize = 30;

pub struct Scene {
    world: Arc<World>,
    binary: PathBuf,
    name: String,
    before: Census,
    noted: Mutex<Noted>,
}

/// What the end has to look at.
#[derive(Default)]
struct Noted {
    logs: Vec<(u32, Lines)>,
    cgroups: Vec<Arc<TaskCgroup>>,
}

impl Scene {
    pub fn new(world: Arc<World>, binary: &Path, name: String) -> Self {
        let binary = binary.to_owned();
        let mut scene = Self { world, binary, name, before: Census::default(), noted: Mutex::default() };
        scene.before = scene.look(|leftovers| leftovers.all());
        scene
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn world(&self) -> &World {
        &self.world
    }

    /// The containerd, the shim and the runtime that the case is tried with.
    pub fn programs(&self) -> &Programs {
        self.world.containerd().programs()
    }

    /// Everything of the case is below it.
    pub fn directory(&self) -> PathBuf {
        self.world.directory().join(&self.name)
    }

    pub fn state_dir(&self) -> PathBuf {
        self.world.state_dir(&self.name)
    }

    pub fn image(&self, name: &str) -> String {
        self.world.image(name)
    }

    /// A job's config that has busybox' shell run a script.
    pub fn shell(&self, script: &str) -> Value {
        config! { image = self.image("busybox:latest"), command = "/bin/sh", args = ["-c", script] }
    }

    /// A launch whose socket lies in the case's directory, by which its process can be told as well.
    pub fn launch(&self) -> Launch {
        let temporary = self.directory().join("tmp");
        let _ = std::fs::create_dir_all(&temporary);
        let mut launch = Launch::new(&self.binary);
        launch.look_first_in(self.world.containerd().programs_directory());
        launch.environment.push(("TMPDIR".into(), temporary.into()));
        launch
    }

    /// The options of the plugin block; a case changes what it is about.
    pub fn options(&self) -> Value {
        let bridge = self.world.networks().tasks();
        let programs = self.programs();
        config! {
            bridge_network_name = bridge.name,
            bridge_network_subnet = bridge.subnet,
            containerd_runtime = programs.shim_runtime(),
            oci_runtime = programs.oci_runtime(),
            cni_path = programs.cni_path(),
            containerd_socket = self.world.containerd().socket().display().to_string(),
            state_dir = self.state_dir().display().to_string(),
            // What this machine has there is none of a case's business.
            registry_config_dir = "",
            allowed_modes = serde_json::json!({
                "pid": ["host"], "ipc": ["host"], "uts": ["host"], "cgroupns": ["host"], "userns": ["host"],
            }),
        }
    }

    /// As [`Self::options`], with the operator's word that a runtime by another name takes what the shim at hand does.
    pub fn options_with(&self, runtime: &str) -> Value {
        let mut options = self.options();
        let type_url = self.programs().options_type();
        options["runtime_options"] = serde_json::json!([{"runtime": runtime, "type_url": type_url}]);
        options
    }

    /// A plugin as it runs in an agent.
    ///
    /// # Errors
    /// Says at which step of the agent's start it failed.
    pub async fn plugin(&self) -> Result<Plugin> {
        self.plugin_as(&self.launch(), &self.options()).await
    }

    /// As [`Self::plugin`], started and configured otherwise.
    ///
    /// # Errors
    /// As [`Self::plugin`].
    pub async fn plugin_as(&self, launch: &Launch, options: &Value) -> Result<Plugin> {
        let mut plugin = self.bare_plugin(launch).await?;
        plugin.configure(options).await?;
        plugin.listen().await?;
        Ok(plugin)
    }

    /// Kills a plugin, as its agent's death does, and launches the next one.
    ///
    /// # Errors
    /// As [`Self::plugin`].
    pub async fn next_plugin(&self, killed: &mut Plugin) -> Result<Plugin> {
        self.next_plugin_with(killed, &self.options()).await
    }

    /// As [`Self::next_plugin`], configured otherwise.
    ///
    /// # Errors
    /// As [`Self::plugin`].
    pub async fn next_plugin_with(&self, killed: &mut Plugin, options: &Value) -> Result<Plugin> {
        killed.kill().await?;
        self.plugin_as(&self.launch(), options).await
    }

    /// A plugin that is connected to, and not configured.
    ///
    /// # Errors
    /// Says at which step of go-plugin's start it failed.
    pub async fn bare_plugin(&self, launch: &Launch) -> Result<Plugin> {
        let plugin = Plugin::launch(launch).await?;
        self.noted().logs.push((plugin.pid(), plugin.log()));
        Ok(plugin)
    }

    /// A task with its allocation, ready to be started. Its logs are read, unless the driver does so itself.
    ///
    /// # Errors
    /// Refuses a config that the plugin's schema doesn't have, as the agent would.
    pub async fn prepare(&self, plugin: &Plugin, config: &Value) -> Result<Task> {
        let mut task = self.prepare_unread(plugin, config).await?;
        if task.alloc.log_path("stdout").exists() {
            task.alloc.read_logs()?;
        }
        Ok(task)
    }

    /// As [`Self::prepare`], with nobody there who reads the logs.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub async fn prepare_unread(&self, plugin: &Plugin, config: &Value) -> Result<Task> {
        self.prepare_named(plugin, "web", config).await
    }

    /// As [`Self::prepare_unread`], for a task of another name.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub async fn prepare_named(&self, plugin: &Plugin, name: &str, config: &Value) -> Result<Task> {
        let msgpack = hcl::encode(&plugin.task_schema().await?, config).context("encode the job's config")?;
        let collects = !plugin.capabilities().await?.disable_log_collection;
        let alloc = Alloc::create(&self.directory().join("alloc"), name, collects)?;
        self.noted().cgroups.push(Arc::clone(&alloc.cgroup));
        Ok(Task::new(alloc, msgpack))
    }

    /// A task that runs.
    ///
    /// # Errors
    /// Carries the plugin's refusal.
    pub async fn run(&self, plugin: &Plugin, config: &Value) -> Result<Task> {
        let mut task = self.prepare(plugin, config).await?;
        task.start(plugin).await?;
        Ok(task)
    }

    /// That the plugin, whatever it has been through, still runs a task from start to end.
    ///
    /// # Errors
    /// Says what doesn't work.
    pub async fn still_works(&self, plugin: &Plugin) -> Result<()> {
        let task = self.run(plugin, &self.shell("exit 3")).await.context("a good task afterwards")?;
        let exit = task.wait(plugin).await?;
        ensure!(exit.exit_code == 3, "a good task afterwards ends with {exit:?}");
        task.destroy(plugin).await
    }

    /// The bundle of the case's only task.
    ///
    /// # Errors
    /// Says where there is none.
    pub fn bundle(&self) -> Result<PathBuf> {
        let bundles = self.state_dir().join("nomad");
        children(&bundles).pop().with_context(|| format!("no bundle in {}", bundles.display()))
    }

    /// Everything of this case that is there now, in words.
    pub fn census(&self) -> Vec<String> {
        self.look(|leftovers| [leftovers.census(), leftovers.records()].concat())
    }

    /// That nothing is left of a start whose answer nobody waited for. Where the start had just succeeded when its caller
    /// went away, no side can know; then the task is ended as an agent does, and true returned.
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
        self.look(|leftovers| leftovers.assert_nothing_left())
    }

    /// As [`Self::nothing_left`], where the plugin may take its time.
    ///
    /// # Errors
    /// Lists everything that is left.
    pub fn nothing_left_within(&self, limit: Duration) -> Result<()> {
        self.look(|leftovers| leftovers.assert_nothing_left_within(limit))
    }

    fn look<T>(&self, look: impl FnOnce(&Leftovers<'_>) -> T) -> T {
        let cgroups: Vec<String> =
            self.noted().cgroups.iter().map(|cgroup| cgroup.name().to_owned()).collect();
        look(&Leftovers {
            containerd: self.world.containerd(),
            networks: self.world.networks(),
            state_dir: &self.state_dir(),
            cgroups: &cgroups,
            before: &self.before,
        })
    }

    /// The account: every line that the plugins logged is in form, and nothing of theirs is left.
    ///
    /// # Errors
    /// Says what isn't so.
    pub fn close(&self) -> Result<()> {
        self.logs_are_in_form()?;
        self.nothing_left()?;
        sweep::unmount_under(&self.state_dir().join(NULL_NETNS));
        Ok(())
    }

    fn logs_are_in_form(&self) -> Result<()> {
        for (pid, log) in &self.noted().logs {
            for line in log.all() {
                stderr::check(&line).with_context(|| format!("a line of plugin {pid}'s stderr"))?;
            }
        }
        Ok(())
    }

    /// What the plugins said last, for a failure's message.
    pub fn last_words(&self) -> String {
        let noted = self.noted();
        let words = noted.logs.iter().map(|(pid, log)| format!("plugin {pid}:\n{}", log.tail(SHOWN_LINES)));
        words.collect::<Vec<_>>().join("\n")
    }

    /// Takes away by force what a case that failed has left, so that the next one finds the world clean.
    pub fn sweep(&self) {
        sweep::processes_under(&self.directory());
        self.noted().cgroups.clear();
        sweep::unmount_under(&self.directory());
        self.world.networks().clear();
        sweep::records(self.world.containerd());
        self.look(|leftovers| leftovers.remove_sockets());
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.noted().cgroups.clear();
        let _ = std::fs::remove_dir_all(self.directory());
    }
}
