//! A plugin of the Container Storage Interface as a docker job, and jobs with a volume of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use harness::agent::command::{Output, run_well};
use harness::agent::{Allocation, SOON, poll};
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
/// Names of the jobs: of the plugin, and of those with the volume.
const PLUGIN_JOB: &str = "csi-plugin";
const WRITER: &str = "csi-writer";
const READER: &str = "csi-reader";
/// Time for Nomad to know the plugin, and to make a volume by it.
const KNOWN: Duration = Duration::from_secs(120);
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

/// Waits until a `nomad` command succeeds, whatever became of it before.
fn told(context: &AgentContext, arguments: &[&str]) -> Result<()> {
    let mut said = String::new();
    poll("success", KNOWN, || {
        let output = context.agent.ask(arguments);
        said = output.as_ref().map_or_else(|error| format!("{error:#}"), Output::stderr);
        Ok(output.is_ok_and(|output| output.code == Some(0)))
    })
    .with_context(|| format!("nomad {}: {said}", arguments.join(" ")))
}

/// Ends what there is of the jobs, the volume and the plugin. The plugin comes last: Nomad can't take the volume from its
/// jobs without it.
fn end(context: &mut AgentContext) -> Result<()> {
    let users = context.end(&[WRITER, READER]);
    let volume = deregister(context);
    let plugin = context.end(&[PLUGIN_JOB]);
    users.and(volume).and(plugin)
}

/// Has Nomad forget the volume, if it knows it.
fn deregister(context: &AgentContext) -> Result<()> {
    if context.agent.csi_writers("stored").is_err() {
        return Ok(());
    }
    // The jobs have ended. What Nomad hasn't taken from them by then, it is forced to forget.
    let _ = eventually("volume without a writer", || Ok(context.agent.csi_writers("stored")? == 0));
    let mut command = context.agent.nomad(&["volume", "deregister", "-force", "stored"]);
    run_well(&mut command, b"y\n", SOON).map(drop)
}

fn a_volume_is_made_written_read_and_removed(context: &mut AgentContext) -> Result<()> {
    let published = SharedMount::make(context.environment.directory().join("agent/client-state/csi"))?;
    let played = play(context, &published.0);
    let ended = end(context);
    // With the plugin's task alone the mounts in here go.
    drop(published);
    played.map_err(|error| match &ended {
        Ok(()) => error,
        Err(left) => anyhow!("{error:#}\nand then: {left:#}"),
    })?;
    ended
}

/// Makes a volume, has one job write and another one read it, and removes it. `published` is the directory of Nomad's
/// that the plugin mounts volumes in.
fn play(context: &mut AgentContext, published: &Path) -> Result<()> {
    let directory = context.environment.directory().to_owned();
    let volumes = directory.join("csi-volumes");
    fs::create_dir_all(&volumes)?;
    let image = push_plugin(context)?;
    let shown = |path: &Path| path.display().to_string();
    let plugin = context.start(PLUGIN_JOB, PLUGIN, &[("image", &image), ("volumes", &shown(&volumes))])?;
    let healthy = |allocation: &Allocation| allocation.task("plugin").count("Plugin became healthy") > 0;
    context.agent.allocation_until(&plugin, "healthy plugin", KNOWN, healthy)?;
    let specification = directory.join("csi-volume.hcl");
    fs::write(&specification, VOLUME)?;
    told(context, &["volume", "create", &shown(&specification)])?;

    let said = output(context, WRITER, "echo written > /stored/file; grep -c ' /stored ' /proc/mounts")?;
    ensure!(said == "1\n", "there are {said:?} mounts");
    ensure!(fs::read(volumes.join("stored/file"))? == b"written\n");
    let said = output(context, READER, "cat /stored/file")?;
    ensure!(said == "written\n", "the volume has {said:?}");

    told(context, &["volume", "delete", "stored"])?;
    ensure!(fs::read_dir(&volumes)?.next().is_none(), "the volume is still there");
    let mounts: Vec<_> = mounts_under(published).into_iter().filter(|point| point != published).collect();
    ensure!(mounts.is_empty(), "these mounts are left: {mounts:?}");
    Ok(())
}
