//! `true` in a running container, from the request to the exit code.

use anyhow::{Context as _, Result, ensure};
use nomad_proto::hclspec::{Spec, spec::Block};

use super::bare::Bare;
use super::daemon::{Daemon, Pulled};
use super::driven::Driven;
use super::shim::Shim;
use super::table::{Call, Path, Probe};
use super::{Findings, Ground};
use crate::host::Exec;
use crate::task::LIMIT;

/// The plugin's option for another runtime than runc.
const RUNTIME_OPTION: &str = "oci_runtime";

pub fn measure(ground: &Ground<'_>, findings: &mut Findings) -> Result<()> {
    let runtime = ground.runtime;
    let _pulled = Pulled::pull(ground.world)?;
    let driven = runtime.block_on(Driven::start(ground, "exec", |_| {}))?;
    let bundle = driven.bundle()?;
    let shim = runtime.block_on(Shim::of(&bundle))?;
    let daemon = Daemon::start(ground)?;
    let runc = Bare::like(&bundle, "runc", ground.world)?;
    let mut skipped = |what: &str, error: &anyhow::Error| {
        findings.not_measured.push(format!("{what}: {error:#}"));
    };
    let crun = Bare::like(&bundle, "crun", ground.world);
    let crun = crun.inspect_err(|error| skipped("exec by crun", error)).ok();
    let on_crun = runtime.block_on(with_crun(ground, &driven));
    let on_crun = on_crun.inspect_err(|error| skipped("exec by the plugin with crun", error)).ok();

    let mut probes = vec![
        whole(Path::Runc, || runc.exec(&["true"]).map(drop)),
        whole(Path::Plugin, || runtime.block_on(unary(&driven))),
        whole(Path::PluginStreaming, || runtime.block_on(streaming(&driven))),
        whole(Path::Shim, || runtime.block_on(shim.exec())),
        whole(Path::Daemon, || runtime.block_on(daemon.exec())),
    ];
    if let Some(crun) = &crun {
        probes.push(whole(Path::Crun, || crun.exec(&["true"]).map(drop)));
    }
    if let Some(on_crun) = &on_crun {
        probes.push(whole(Path::PluginCrun, || runtime.block_on(unary(on_crun))));
        probes.push(whole(Path::PluginCrunStreaming, || runtime.block_on(streaming(on_crun))));
    }
    findings.table.interleave(&mut probes, ground.rounds)?;
    drop(probes);
    let scenes: Vec<_> = runtime.block_on(futures::future::try_join_all(
        [Some(driven), on_crun].into_iter().flatten().map(Driven::end),
    ))?;
    scenes.iter().try_for_each(crate::scene::Scene::close)
}

fn whole<'a>(path: Path, run: impl FnMut() -> Result<()> + 'a) -> Probe<'a> {
    Probe::whole(Call::Exec, path, run)
}

/// A plugin whose tasks are run by crun, if it can have one.
async fn with_crun(ground: &Ground<'_>, other: &Driven) -> Result<Driven> {
    ensure!(
        has_option(&other.plugin.config_schema().await?, RUNTIME_OPTION),
        "it has no option {RUNTIME_OPTION}"
    );
    Driven::start(ground, "exec-crun", |options| options[RUNTIME_OPTION] = "crun".into()).await
}

fn has_option(schema: &Spec, name: &str) -> bool {
    matches!(&schema.block, Some(Block::Object(object)) if object.attributes.contains_key(name))
}

async fn unary(driven: &Driven) -> Result<()> {
    let answer = driven.plugin.exec_task(driven.task.id(), &["true"], LIMIT).await?;
    let code = answer.result.context("no result")?.exit_code;
    ensure!(code == 0, "true ends with {code}");
    Ok(())
}

async fn streaming(driven: &Driven) -> Result<()> {
    let exec = Exec::open(&driven.plugin, driven.task.id(), &["true"], false).await?;
    let code = exec.finish(LIMIT).await?.code()?;
    ensure!(code == 0, "true ends with {code}");
    Ok(())
}
