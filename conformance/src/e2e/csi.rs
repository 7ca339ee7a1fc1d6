//! A plugin of the Container Storage Interface as a docker job, and jobs with a volume of it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use harness::agent::SOON;
use harness::context::agent::{AgentContext, eventually};
use harness::fixture::Form;
use harness::fixture::images::libraries;
use harness::leaks::inspect::mounts_under;
use harness::leaks::sweep;
use nix::mount::{MsFlags, mount};
use serde_json::json;

use super::{Case, named_cases};

pub const CASES: &[(&str, Case)] = named_cases![a_volume_is_made_written_read_and_removed];

const PLUGIN: &str = include_str!("../../../hack/jobs/docker/csi-plugin.nomad.hcl");
const JOB: &str = include_str!("../../../hack/jobs/docker/csi-volume.nomad.hcl");
const VOLUME: &str = r#"
id        = "stored"
name      = "stored"
type      = "csi"
plugin_id = "directories"

capability {
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}
"#;

/// A directory that is a mount of its own, of the shared kind that systemd gives to all: what a task mounts there is seen
/// by the host.
struct SharedMount(PathBuf);

impl SharedMount {
    fn make(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory)?;
        let (here, none) = (Self(directory), None::<&str>);
        mount(Some(&here.0), &here.0, none, MsFlags::MS_BIND, none).context("mount a directory on itself")?;
        mount(none, &here.0, none, MsFlags::MS_SHARED, none).context("share a mount")?;
        Ok(here)
    }
}

impl Drop for SharedMount {
    fn drop(&mut self) {
        sweep::unmount_under(&self.0);
    }
}

/// Pushes the image of the plugin, which is this program, and returns its name.
fn push_plugin(context: &AgentContext) -> Result<String> {
    let program = std::env::current_exe()?;
    let image = context.environment.catalog().with(|tree| {
        tree.file("csi-plugin", 0o755, &fs::read(&program)?)?;
        libraries(&program)?.iter().try_for_each(|library| tree.host_file(library, 0o755))
    });
    let mut image = image.context("the plugin's image")?;
    image.settings = json!({"Entrypoint": ["/csi-plugin", "csi-plugin"]});
    image.push(context.environment.registry(), "csi", "directories", Form::OciIndex)?;
    Ok(context.environment.image("csi:directories"))
}

/// Runs a job with the volume, waits until nobody has the volume any more, and returns the job's output.
fn output(context: &mut AgentContext, name: &str, script: &str) -> Result<String> {
    let image = context.busybox();
    let id = context.start(name, JOB, &[("image", &image), ("script", script)])?;
    context.done(&id, "main")?;
    eventually("volume without a writer", || Ok(context.agent.csi_writers("stored")? == 0))?;
    Ok(String::from_utf8_lossy(&context.log(&id, "main", false)?).into_owned())
}

/// Waits until a `nomad` command succeeds.
fn told(context: &AgentContext, arguments: &[&str]) -> Result<()> {
    let mut said = String::new();
    eventually("success", || {
        let output = context.agent.ask(arguments)?;
        said = output.stderr();
        Ok(output.code == Some(0))
    })
    .with_context(|| format!("nomad {}: {said}", arguments.join(" ")))
}

fn a_volume_is_made_written_read_and_removed(context: &mut AgentContext) -> Result<()> {
    let directory = context.environment.directory().to_owned();
    let published = SharedMount::make(directory.join("agent/client-state/csi"))?;
    let volumes = directory.join("csi-volumes");
    fs::create_dir_all(&volumes)?;
    let image = push_plugin(context)?;
    let shown = |path: &Path| path.display().to_string();
    let plugin = context.start("csi-plugin", PLUGIN, &[("image", &image), ("volumes", &shown(&volumes))])?;
    let healthy = |allocation: &harness::agent::Allocation| {
        allocation.task("plugin").count("Plugin became healthy") > 0
    };
    context.agent.allocation_until(&plugin, "healthy plugin", SOON, healthy)?;
    let specification = directory.join("csi-volume.hcl");
    fs::write(&specification, VOLUME)?;
    told(context, &["volume", "create", &shown(&specification)])?;

    let said =
        output(context, "csi-writer", "echo written > /stored/file; grep -c ' /stored ' /proc/mounts")?;
    ensure!(said == "1\n", "there are {said:?} mounts");
    ensure!(fs::read(volumes.join("stored/file"))? == b"written\n");
    let said = output(context, "csi-reader", "cat /stored/file")?;
    ensure!(said == "written\n", "the volume has {said:?}");

    told(context, &["volume", "delete", "stored"])?;
    ensure!(fs::read_dir(&volumes)?.next().is_none(), "the volume is still there");
    let mounts: Vec<_> =
        mounts_under(&published.0).into_iter().filter(|point| *point != published.0).collect();
    ensure!(mounts.is_empty(), "these mounts are left: {mounts:?}");
    Ok(())
}
