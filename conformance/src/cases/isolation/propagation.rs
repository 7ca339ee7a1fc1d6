//! Mounts made on the host after a task has started, or by the task: which of the two sees them, and that the host's
//! stay when the task is gone.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use harness::context::CaseContext;
use harness::fixture::process::output;
use harness::host::Plugin;
use harness::leaks::{inspect, sweep};
use harness::task::Task;
use nix::mount::{MsFlags, mount};
use nomad_proto::driver as pb;
use serde_json::json;

use crate::cases::support::host_mounts::bind;
use crate::cases::support::{cases, ensure_eq, refused};

cases!["propagation":
    mounts_spread_as_far_as_they_are_asked_to,
    what_the_host_has_mounted_below_a_source_stays_there,
];

/// A tmpfs with shared propagation, unmounted on drop.
struct SharedMount {
    at: PathBuf,
}

impl SharedMount {
    fn new(case: &CaseContext) -> Result<Self> {
        let at = case.directory().join("shared");
        fs::create_dir_all(&at)?;
        let shared = Self { at };
        shared.add("")?;
        let nothing: Option<&str> = None;
        mount(nothing, &shared.at, nothing, MsFlags::MS_SHARED, nothing)?;
        for name in ["early", "late", "inner"] {
            fs::create_dir(shared.at.join(name))?;
        }
        Ok(shared)
    }

    /// Mounts another tmpfs below this one, with a file in it.
    fn add(&self, name: &str) -> Result<()> {
        let at = self.at.join(name);
        mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
        Ok(fs::write(at.join(format!("in-{name}")), "")?)
    }
}

impl Drop for SharedMount {
    fn drop(&mut self) {
        sweep::unmount_under(&self.at);
    }
}

/// Mounts a tmpfs inside of a task's mount namespace, with privileges that no task has.
fn mount_inside(task: &Task, at: &str) -> Result<()> {
    let pid = task.pid()?.to_string();
    let words = ["-t", &pid, "-m", "mount", "-t", "tmpfs", "inside", at];
    output(Command::new("nsenter").args(words)).map(drop)
}

async fn mounts_spread_as_far_as_they_are_asked_to(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    // The propagation by the job's option and by Nomad's volume_mount, whether the task sees the host's new mounts, and
    // the host the task's.
    for (option, nomads, comes_in, goes_out) in [
        ("rprivate", "private", false, false),
        ("rslave", "host-to-task", true, false),
        ("rshared", "bidirectional", true, true),
    ] {
        for by_nomad in [false, true] {
            let shared = SharedMount::new(case)?;
            shared.add("early")?;
            let mut config = case.shell("echo up; sleep 600");
            if !by_nomad {
                config["mounts"] = json!([bind(&shared.at, "/s", &["rbind", "rw", option])]);
            }
            let mut task = case.prepare(plugin, &config).await?;
            if by_nomad {
                task.config.mounts.push(pb::Mount {
                    task_path: "/s".to_owned(),
                    host_path: shared.at.display().to_string(),
                    propagation_mode: nomads.to_owned(),
                    ..pb::Mount::default()
                });
            }
            task.start(plugin).await?;
            shared.add("late")?;
            let (_, seen) = task.exec(plugin, "ls /s/early /s/late").await?;
            ensure!(seen.contains("in-early"), "{option}: {seen}");
            ensure_eq!((option, by_nomad, seen.contains("in-late")), (option, by_nomad, comes_in));
            mount_inside(&task, "/s/inner")?;
            let inner = shared.at.join("inner");
            let mounted = inspect::mounts_under(&shared.at).contains(&inner);
            ensure_eq!((option, by_nomad, mounted), (option, by_nomad, goes_out));
            task.end(plugin).await?;
            case.nothing_left()?;
            let left = inspect::mounts_under(&shared.at);
            ensure!(
                left.contains(&shared.at.join("late")) && left.contains(&shared.at.join("early")),
                "{option}: {left:?}"
            );
        }
    }
    Ok(())
}

async fn what_the_host_has_mounted_below_a_source_stays_there(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let shared = SharedMount::new(case)?;
    shared.add("early")?;
    for option in ["rprivate", "rslave", "rshared"] {
        // One start ends well; the other one fails when everything is mounted.
        for (script, ends) in [("ls /s/early", true), ("", false)] {
            let mut config = case.shell(script);
            config["volumes"] = json!([format!("{}:/s:{option}", shared.at.display())]);
            if !ends {
                config["command"] = json!("/no/such/program");
            }
            let mut task = case.prepare(plugin, &config).await?;
            if ends {
                task.start(plugin).await?;
                ensure_eq!(task.stdout(plugin).await?, "in-early\n");
                task.destroy(plugin).await?;
            } else {
                refused(plugin.start_task(task.config.clone()).await, &["/no/such/program"])?;
            }
            case.nothing_left()?;
            ensure_eq!(inspect::mounts_under(&shared.at), [shared.at.clone(), shared.at.join("early")]);
        }
    }
    Ok(())
}
