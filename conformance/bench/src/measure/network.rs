//! The cost of a task's own network: how much longer the start and the removal of a task take with a network than
//! without. For comparison, the same plugins are run by hand with the same configuration, which is the lower bound for
//! anything that uses them.
//!
//! Source of the facts: the CNI specification 1.0, sections 2 and 3.

use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use harness::context::CaseContext;
use harness::fixture::process::{output, output_of};
use harness::host::Plugin;
use harness::interrupt;
use harness::task::{LIMIT, Task};
use serde_json::{Value, json};

use super::ctr::Pulled;
use super::driven::{IDLE, read};
use super::table::{Call, Path, Table};
use super::{Findings, Session};

/// The calls whose times a round yields, in that order.
const CALLS: [Call; 2] = [Call::Attach, Call::Detach];
/// Directory of the network namespaces that `ip netns` creates.
const NAMESPACES: &str = "/run/netns";

pub(crate) fn measure(session: &Session<'_>, findings: &mut Findings) -> Result<()> {
    let runtime = session.runtime;
    let _pulled = Pulled::pull(session.environment)?;
    let context =
        CaseContext::new(std::sync::Arc::clone(session.environment), session.plugin, "network".to_owned());
    let mut plugin = runtime.block_on(context.plugin())?;
    let by_hand = runtime.block_on(ByHand::like_the_plugins(&context, &plugin))?;
    // The first round is a warm-up.
    let mut uncounted = Table::default();
    for round in 0..=session.rounds {
        interrupt::check()?;
        let table = if round == 0 { &mut uncounted } else { &mut findings.table };
        let mut driven =
            || record(table, Path::Plugin, &runtime.block_on(difference(&context, &plugin, round)));
        if round % 2 == 0 {
            driven();
        }
        let alone = by_hand.round();
        if round % 2 == 1 {
            driven();
        }
        record(table, Path::Plugins, &alone);
    }
    runtime.block_on(plugin.shut_down())?;
    context.close()
}

/// Records a round. A round that failed counts as a failure of each of its calls.
fn record(table: &mut Table, path: Path, round: &Result<[Duration; 2]>) {
    for (index, call) in CALLS.into_iter().enumerate() {
        let outcome = round.as_ref().map(|times| times[index]);
        table.record(call, path, outcome.map_err(|error| anyhow!("{error:#}")));
    }
}

/// Returns how much longer start and removal take with a network than without. The order of the two alternates.
async fn difference(context: &CaseContext, plugin: &Plugin, round: u32) -> Result<[Duration; 2]> {
    let (with, without) = if round % 4 < 2 {
        let with = life(context, plugin, "bridge").await?;
        (with, life(context, plugin, "none").await?)
    } else {
        let without = life(context, plugin, "none").await?;
        (life(context, plugin, "bridge").await?, without)
    };
    Ok([with[0].saturating_sub(without[0]), with[1].saturating_sub(without[1])])
}

/// Runs an idle task, and returns the times of its start and, after its stop, of its removal.
async fn life(context: &CaseContext, plugin: &Plugin, mode: &str) -> Result<[Duration; 2]> {
    let mut task = idle(context, plugin, mode).await?;
    let begun = Instant::now();
    task.start(plugin).await?;
    let start = begun.elapsed();
    task.stop(plugin, LIMIT).await?;
    task.wait(plugin).await?;
    let begun = Instant::now();
    task.destroy(plugin).await?;
    Ok([start, begun.elapsed()])
}

async fn idle(context: &CaseContext, plugin: &Plugin, mode: &str) -> Result<Task> {
    let mut config = context.shell(IDLE);
    config["network_mode"] = mode.into();
    context.prepare(plugin, &config).await
}

/// The CNI plugins of the driver's network, each with the configuration that the driver passed to it.
struct ByHand {
    directories: Vec<PathBuf>,
    requests: Vec<Value>,
    namespace: Namespace,
}

impl ByHand {
    /// Loads the plugins and their configurations from the network record of a task that the driver started.
    async fn like_the_plugins(context: &CaseContext, plugin: &Plugin) -> Result<Self> {
        let mut task = idle(context, plugin, "bridge").await?;
        task.start(plugin).await?;
        let mut bundles = std::fs::read_dir(context.state_dir().join("nomad"))?;
        let bundle = bundles.next().context("the plugin has no bundle")??.path();
        let record: Value = read(&bundle.join("network.json"))?;
        task.end(plugin).await?;
        let network = &record["network"];
        let plugins = network["plugins"].as_array().context("the network has no plugins")?;
        let requests = plugins.iter().map(|plugin| {
            let mut request = plugin["config"].clone();
            request["name"] = network["name"].clone();
            request["cniVersion"] = network["versions"][0].clone();
            request
        });
        let directories = serde_json::from_value(record["directories"].clone())?;
        Ok(Self { directories, requests: requests.collect(), namespace: Namespace::make()? })
    }

    /// Attaches the namespace to the network and detaches it, and returns the times of both.
    fn round(&self) -> Result<[Duration; 2]> {
        let begun = Instant::now();
        let mut result = Value::Null;
        for request in &self.requests {
            let answer = self.run("ADD", request, &result)?;
            result = serde_json::from_str(&answer).context("read a plugin's result")?;
        }
        let attached = begun.elapsed();
        let begun = Instant::now();
        for request in self.requests.iter().rev() {
            self.run("DEL", request, &result)?;
        }
        Ok([attached, begun.elapsed()])
    }

    fn run(&self, command: &str, request: &Value, previous: &Value) -> Result<String> {
        let mut request = request.clone();
        if !previous.is_null() {
            request["prevResult"] = previous.clone();
        }
        let program = FilePath::new(request["type"].as_str().unwrap_or_default());
        let places = self.directories.iter().map(|directory| directory.join(program));
        let program = places.into_iter().find(|place| place.exists()).context("a plugin is not there")?;
        let mut plugin = Command::new(program);
        plugin.envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", "by-hand"), ("CNI_IFNAME", "eth0")]);
        plugin.env("CNI_NETNS", FilePath::new(NAMESPACES).join(&self.namespace.0));
        plugin.env("CNI_PATH", std::env::join_paths(&self.directories)?);
        output_of(&mut plugin, json!(request).to_string().as_bytes())
    }
}

/// A network namespace, by its name. Removed on drop.
struct Namespace(String);

impl Namespace {
    fn make() -> Result<Self> {
        let name = format!("measure-{}", std::process::id());
        output(Command::new("ip").args(["netns", "add", &name]))?;
        Ok(Self(name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = output(Command::new("ip").args(["netns", "delete", &self.0]));
    }
}
