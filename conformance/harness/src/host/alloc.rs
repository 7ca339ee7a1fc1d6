//! Prepares what a Nomad client prepares for one attempt at a task: the allocation's directories, the log pipes and
//! their readers, the control groups, and the TaskConfig that names them all.
//!
//! Source of the facts: hashicorp/nomad `client/allocdir`, `client/logmon`, `client/allocrunner/taskrunner`.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use nomad_proto::driver as pb;

use super::cgroup::TaskCgroup;
use super::logmon::Reader;

const MIB: i64 = 1024 * 1024;
const CPU_MHZ: i64 = 500;
const MEMORY_MB: i64 = 128;

/// An allocation with one task. On drop, its readers, control groups and directories are removed.
pub struct Alloc {
    pub id: String,
    pub task: String,
    /// Id of the attempt; each has its own.
    pub attempt: String,
    /// Directory of the allocation: `<client alloc dir>/<alloc>`.
    pub directory: PathBuf,
    pub stdout: Reader,
    pub stderr: Reader,
    /// The task's control groups. Shared with the leak check at the end of a case.
    pub cgroup: Arc<TaskCgroup>,
}

impl Alloc {
    /// Creates the directories, the control groups and, unless the driver declared that it needs none, the log pipes,
    /// which have no reader yet.
    ///
    /// # Errors
    /// Names what can't be created.
    pub fn create(client_alloc_dir: &Path, task: &str, pipes: bool) -> Result<Self> {
        let id = random_uuid()?;
        let directory = client_alloc_dir.join(&id);
        for (name, mode) in [
            ("alloc", 0o777),
            ("alloc/logs", 0o755),
            ("alloc/data", 0o777),
            ("alloc/tmp", 0o1777),
            (task, 0o755),
            (&*format!("{task}/local"), 0o777),
            (&*format!("{task}/secrets"), 0o777),
            (&*format!("{task}/tmp"), 0o1777),
        ] {
            let path = directory.join(name);
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
        }
        let pipe = |stream: &str| -> Result<PathBuf> {
            let path = directory.join("alloc/logs").join(format!(".{task}.{stream}.fifo"));
            if pipes {
                mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
                    .with_context(|| format!("make {}", path.display()))?;
            }
            Ok(path)
        };
        let cgroup = Arc::new(TaskCgroup::create(&format!("{id}.{task}"))?);
        let (stdout, stderr) = (Reader::absent(&pipe("stdout")?), Reader::absent(&pipe("stderr")?));
        let attempt = random_uuid()?[..8].to_owned();
        Ok(Self { id, task: task.to_owned(), attempt, directory, stdout, stderr, cgroup })
    }

    /// Starts the readers of the log pipes, as logmon does.
    ///
    /// # Errors
    /// Names the pipe that can't be opened.
    pub fn read_logs(&mut self) -> Result<()> {
        self.stdout.start(Duration::ZERO)?;
        self.stderr.start(Duration::ZERO)
    }

    /// Returns the id by which all calls name the task.
    pub fn task_id(&self) -> String {
        format!("{}/{}/{}", self.id, self.task, self.attempt)
    }

    pub fn log_path(&self, stream: &str) -> PathBuf {
        self.directory.join("alloc/logs").join(format!(".{}.{stream}.fifo", self.task))
    }

    pub fn logs(&self) -> PathBuf {
        self.directory.join("alloc/logs")
    }

    /// Returns a path below the task's own directory, e.g. `local/x`.
    pub fn task_path(&self, path: &str) -> PathBuf {
        self.directory.join(&self.task).join(path)
    }

    /// Returns the TaskConfig of a job with small resources. A case changes what it tests.
    pub fn config(&self, msgpack_driver_config: Vec<u8>) -> pb::TaskConfig {
        let text = |path: PathBuf| path.display().to_string();
        pb::TaskConfig {
            id: self.task_id(),
            name: self.task.clone(),
            msgpack_driver_config,
            env: self.environment(),
            resources: Some(self.resources()),
            alloc_dir: text(self.directory.clone()),
            stdout_path: text(self.log_path("stdout")),
            stderr_path: text(self.log_path("stderr")),
            task_group_name: "group".to_owned(),
            job_name: "conformance".to_owned(),
            job_id: "conformance".to_owned(),
            alloc_id: self.id.clone(),
            namespace: "default".to_owned(),
            node_name: "here".to_owned(),
            node_id: "00000000-1111-2222-3333-444444444444".to_owned(),
            ..pb::TaskConfig::default()
        }
    }

    fn environment(&self) -> HashMap<String, String> {
        [
            ("NOMAD_ALLOC_DIR", "/alloc"),
            ("NOMAD_TASK_DIR", "/local"),
            ("NOMAD_SECRETS_DIR", "/secrets"),
            ("NOMAD_ALLOC_ID", &self.id),
            ("NOMAD_TASK_NAME", &self.task),
            ("NOMAD_MEMORY_LIMIT", &MEMORY_MB.to_string()),
            ("NOMAD_CPU_LIMIT", &CPU_MHZ.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }

    fn resources(&self) -> pb::Resources {
        pb::Resources {
            allocated_resources: Some(pb::AllocatedTaskResources {
                cpu: Some(pb::AllocatedCpuResources { cpu_shares: CPU_MHZ }),
                memory: Some(pb::AllocatedMemoryResources { memory_mb: MEMORY_MB, memory_max_mb: 0 }),
                networks: Vec::new(),
            }),
            linux_resources: Some(pb::LinuxResources {
                cpu_shares: CPU_MHZ,
                memory_limit_bytes: MEMORY_MB * MIB,
                cpuset_cgroup: self.cgroup.cpuset.display().to_string(),
                percent_ticks: 0.125,
                ..pb::LinuxResources::default()
            }),
            ports: Vec::new(),
        }
    }
}

impl Drop for Alloc {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Changes the memory limits of a TaskConfig, in each of the fields that carry them.
pub fn set_memory(config: &mut pb::TaskConfig, memory_mb: i64, memory_max_mb: i64) {
    let Some(resources) = &mut config.resources else { return };
    if let Some(allocated) = &mut resources.allocated_resources {
        allocated.memory = Some(pb::AllocatedMemoryResources { memory_mb, memory_max_mb });
    }
    if let Some(linux) = &mut resources.linux_resources {
        linux.memory_limit_bytes = memory_mb.max(memory_max_mb) * MIB;
    }
}

/// Changes the part of the node's CPUs that a hard limit leaves a task.
pub fn set_part_of_node(config: &mut pb::TaskConfig, part: f64) {
    if let Some(linux) = config.resources.as_mut().and_then(|resources| resources.linux_resources.as_mut()) {
        linux.percent_ticks = part;
    }
}

/// # Errors
/// Fails if the kernel gives none.
pub(crate) fn random_uuid() -> Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/uuid").context("ask the kernel for a uuid")?;
    Ok(text.trim().to_owned())
}
