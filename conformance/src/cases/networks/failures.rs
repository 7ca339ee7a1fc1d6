//! Networks that can't be made, or can't be taken down at once: whatever a CNI plugin does, and whenever the driver
//! dies, nothing is left in the end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::context::CaseContext;
use harness::fixture::process;
use harness::fixture::registry::free_port;
use harness::host::Plugin;
use harness::task::{LIMIT, Task};
use serde_json::{Value, json};

use crate::cases::support::cni_plugins::Plugins;
use crate::cases::support::plugin_end::PluginEnd;
use crate::cases::support::web_server::{
    PORT, beside, fetch_hostname, network_override, offer, port, server, with,
};
use crate::cases::support::{cases, ensure_eq, is_recoverable, orphans, refused, until};

cases!["network failures":
    a_plugin_that_is_missing_fails_or_hangs_leaves_nothing,
    a_driver_that_dies_while_a_network_is_made_leaves_nothing,
    a_driver_that_dies_while_a_network_is_taken_down_leaves_nothing,
    a_network_is_taken_down_while_containerd_is_down,
    a_network_that_can_not_be_taken_down_is_taken_down_later,
    a_network_is_taken_down_beside_what_containerd_has,
    a_task_of_another_ones_network_is_cut_off_without_a_trace,
    an_address_that_is_held_for_no_task_is_given_up,
    a_bridge_that_has_other_addresses_is_refused_and_nothing_is_left,
    rules_that_somebody_else_has_removed_hold_up_no_end,
    rules_that_somebody_else_has_removed_come_back_while_a_task_runs,
    rules_that_somebody_else_has_removed_are_made_for_the_next_task,
    rules_that_can_not_be_made_leave_nothing,
];

/// Time for which the driver takes rules that it has found to be there still, and somewhat more.
const LOOKED_FOR: Duration = Duration::from_secs(6);

fn options(plugins: &Plugins, case: &CaseContext) -> Value {
    let mut options = case.options();
    plugins.add_to(&mut options);
    options["cni_timeout"] = json!("3s");
    options
}

/// Prepares a task with a network and a published port.
async fn published(case: &CaseContext, plugin: &Plugin) -> Result<Task> {
    let options = [("network_mode", json!("bridge")), ("ports", json!(["http"]))];
    let mut task = case.prepare(plugin, &with(case, "sleep 600", &options)).await?;
    offer(&mut task, vec![port("http", free_port()?, PORT, "127.0.0.1")]);
    Ok(task)
}

async fn a_plugin_that_is_missing_fails_or_hangs_leaves_nothing(case: &CaseContext) -> Result<()> {
    let plugins = Plugins::install(case)?;
    let mut plugin = case.plugin_as(&case.launch(), &options(&plugins, case)).await?;
    for (name, script, words) in [
        (
            "portmap",
            "echo '{\"code\": 100, \"msg\": \"no such luck\"}'; exit 1",
            &["portmap", "no such luck"][..],
        ),
        ("portmap", "echo garbage", &["portmap", "garbage"]),
        ("portmap", "exit 0", &["portmap", "no result"]),
        ("portmap", "kill -9 $$", &["portmap", "signal"]),
        ("portmap", "sleep 600", &["portmap", "did not exit"]),
        ("portmap", "echo broken >&2; exit 7", &["portmap", "broken"]),
        // The plugin does its work, and fails nevertheless.
        ("bridge", "\"$real\" >/dev/null; exit 3", &["bridge"]),
    ] {
        plugins.replace(name, "ADD", script)?;
        let task = published(case, &plugin).await?;
        refused(plugin.start_task(task.config.clone()).await, words)?;
        case.nothing_left().with_context(|| format!("{name}: {script}"))?;
        plugins.restore(name)?;
    }
    for name in ["portmap", "host-local", "bridge"] {
        plugins.remove(name)?;
        let task = published(case, &plugin).await?;
        let directory = plugins.directory().display().to_string();
        refused(plugin.start_task(task.config.clone()).await, &[name, &directory, "cni_path"])?;
        case.nothing_left().with_context(|| format!("without {name}"))?;
        plugins.restore(name)?;
    }
    let task = server(case, &plugin, &[("network_mode", json!("bridge"))]).await?;
    fetch_hostname(&network_override(&plugin, &task).await?.addr, PORT)?;
    task.end(&plugin).await?;
    plugin.shut_down().await
}

/// Waits until a call of the driver has led to the script of a CNI plugin, which notes that and goes on.
async fn reached(plugins: &Plugins, plugin: &str, call: impl Future<Output = Result<()>>) -> Result<()> {
    let note = plugins.directory().join(format!("{plugin}.reached"));
    tokio::select! {
        answer = call => bail!("the call was over before: {answer:?}"),
        seen = until(LIMIT, "the plugin's start", || note.exists()) => seen?,
    }
    Ok(fs::remove_file(note)?)
}

async fn a_driver_that_dies_while_a_network_is_made_leaves_nothing(case: &CaseContext) -> Result<()> {
    let plugins = Plugins::install(case)?;
    let options = options(&plugins, case);
    let mut first = case.plugin_as(&case.launch(), &options).await?;
    case.still_works(&first).await?;
    first.shut_down().await?;
    for how in [PluginEnd::Killed, PluginEnd::ShutDown] {
        for (name, script) in [
            ("bridge", "touch \"$0.reached\"; sleep 2"),
            ("bridge", "\"$real\" >/dev/null; touch \"$0.reached\"; sleep 600"),
            ("portmap", "touch \"$0.reached\"; sleep 600"),
            ("portmap", "\"$real\" >/dev/null; touch \"$0.reached\"; sleep 600"),
        ] {
            plugins.replace(name, "ADD", script)?;
            let mut plugin = case.plugin_as(&case.launch(), &options).await?;
            let mut task = published(case, &plugin).await?;
            reached(&plugins, name, task.start(&plugin)).await?;
            match how {
                PluginEnd::Killed => plugin.kill().await?,
                PluginEnd::ShutDown => plugin.shut_down().await?,
            }
            plugins.restore(name)?;
            let mut next = case.plugin_as(&case.launch(), &options).await?;
            let left = case.nothing_left_within(LIMIT);
            left.with_context(|| format!("{how:?} at {name}: {script}"))?;
            next.shut_down().await?;
        }
    }
    Ok(())
}

async fn a_driver_that_dies_while_a_network_is_taken_down_leaves_nothing(case: &CaseContext) -> Result<()> {
    let plugins = Plugins::install(case)?;
    let options = options(&plugins, case);
    for script in ["touch \"$0.reached\"; sleep 600", "\"$real\"; touch \"$0.reached\"; sleep 600"] {
        let mut plugin = case.plugin_as(&case.launch(), &options).await?;
        let mut task = published(case, &plugin).await?;
        task.start(&plugin).await?;
        plugins.replace("portmap", "DEL", script)?;
        reached(&plugins, "portmap", task.end(&plugin)).await?;
        plugin.kill().await?;
        plugins.restore("portmap")?;
        let mut next = case.plugin_as(&case.launch(), &options).await?;
        case.nothing_left_within(LIMIT).context(script)?;
        next.shut_down().await?;
    }
    Ok(())
}

async fn a_network_is_taken_down_while_containerd_is_down(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut task = published(case, plugin).await?;
    task.start(plugin).await?;
    case.environment().containerd().kill()?;
    let _ = tokio::time::timeout(LIMIT, task.end(plugin)).await?;
    // The rest of the teardown waits for containerd.
    let left = case.environment().networks().census();
    ensure!(left.is_empty(), "of the network there is left: {left:?}");
    case.environment().containerd().start()?;
    case.nothing_left_within(Duration::from_secs(60))?;
    Ok(())
}

async fn a_network_that_can_not_be_taken_down_is_taken_down_later(case: &CaseContext) -> Result<()> {
    let plugins = Plugins::install(case)?;
    let mut plugin = case.plugin_as(&case.launch(), &options(&plugins, case)).await?;
    for broken in ["missing", "failing"] {
        let mut task = published(case, &plugin).await?;
        task.start(&plugin).await?;
        match broken {
            "missing" => plugins.remove("portmap")?,
            _ => plugins.replace("portmap", "DEL", "echo broken >&2; exit 1")?,
        }
        refused(plugin.destroy_task(task.id(), true).await, &["portmap"])?;
        ensure!(!case.census().is_empty(), "nothing is left though it could not be taken down");
        plugins.restore("portmap")?;
        case.nothing_left_within(LIMIT).context(broken)?;
    }
    plugin.shut_down().await
}

/// Neither waits for the other one: what containerd has of a task goes while a CNI plugin is at work.
async fn a_network_is_taken_down_beside_what_containerd_has(case: &CaseContext) -> Result<()> {
    let plugins = Plugins::install(case)?;
    let mut options = options(&plugins, case);
    options["cni_timeout"] = json!("60s");
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let mut task = published(case, &plugin).await?;
    task.start(&plugin).await?;
    let goes_on = plugins.directory().join("goes-on");
    let waits = format!("while ! [ -e {} ]; do sleep 0.05; done", goes_on.display());
    plugins.replace("portmap", "DEL", &waits)?;
    let in_containerd = || {
        let kinds = ["container record", "active snapshot", "lease"];
        let all = case.census().into_iter();
        all.filter(|line| kinds.iter().any(|kind| line.starts_with(kind))).collect::<Vec<_>>()
    };
    ensure!(!in_containerd().is_empty(), "containerd has nothing of a task that runs");
    let others = async {
        until(LIMIT, "the end of what containerd has", || in_containerd().is_empty()).await?;
        ensure!(case.bundle()?.join("network.json").exists(), "the bundle has gone before its network");
        Ok::<_, anyhow::Error>(fs::write(&goes_on, "")?)
    };
    tokio::try_join!(task.end(&plugin), others)?;
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn a_task_of_another_ones_network_is_cut_off_without_a_trace(case: &CaseContext) -> Result<()> {
    for delay_ms in [20, 60, 100] {
        let mut plugin = case.plugin().await?;
        let first = server(case, &plugin, &[("network_mode", json!("bridge"))]).await?;
        let config = with(case, "sleep 600", &[("network_mode", json!("task:web"))]);
        let mut task = beside(case, &plugin, &first, &config).await?;
        let _ = tokio::time::timeout(Duration::from_millis(delay_ms), task.start(&plugin)).await;
        plugin.kill().await?;
        let options = orphans::options(case, &json!({"creation_grace": "5s"}));
        let mut next = case.plugin_as(&case.launch(), &options).await?;
        first.recover(&next).await?;
        fetch_hostname(&network_override(&next, &first).await?.addr, PORT)?;
        // The first task can be ended whether the other one had started or not.
        first.end(&next).await?;
        case.nothing_left_within(LIMIT)?;
        next.shut_down().await?;
    }
    Ok(())
}

async fn an_address_that_is_held_for_no_task_is_given_up(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let mut task = published(case, &plugin).await?;
    task.start(&plugin).await?;
    plugin.kill().await?;
    let bridge = case.environment().networks().tasks();
    let leases = case.state_dir().join("leases").join(&bridge.name);
    let of_nobody = leases.join(bridge.subnet.replace("0/25", "99"));
    let own = fs::read_dir(&leases)?.flatten().map(|file| file.path());
    let own = own.filter(|file| fs::read_to_string(file).is_ok_and(|text| text.contains("eth0")));
    let own: Vec<_> = own.collect();
    ensure!(own.len() == 1, "the task has {own:?}");
    fs::write(&of_nobody, "lost-1\r\neth0")?;
    let mut next = case.plugin().await?;
    until(LIMIT, "the end of a lease that nobody has", || !of_nobody.exists()).await?;
    ensure!(own[0].exists(), "the task that runs has lost its address");
    task.recover(&next).await?;
    task.end(&next).await?;
    case.nothing_left()?;
    next.shut_down().await
}

async fn a_bridge_that_has_other_addresses_is_refused_and_nothing_is_left(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = server(case, &plugin, &[("network_mode", json!("bridge"))]).await?;
    let mut options = case.options();
    options["bridge_network_subnet"] =
        json!(case.environment().networks().tasks().subnet.replace("0/25", "0/26"));
    let mut next = case.next_plugin_with(&mut plugin, &options).await?;
    task.recover(&next).await?;
    // The driver's processes come and go, and its spare shims.
    let comes_and_goes = |line: &String| ["process", "spare"].iter().any(|kind| line.starts_with(kind));
    let census = || case.census().into_iter().filter(|line| !comes_and_goes(line)).collect::<Vec<_>>();
    let before = census();
    let refused_one = published(case, &next).await?;
    let words = ["already has an IP address", "10.201."];
    refused(next.start_task(refused_one.config.clone()).await, &words)?;
    ensure_eq!(census(), before);
    task.end(&next).await?;
    case.nothing_left()?;
    next.shut_down().await
}

/// Lists the rules of a chain.
fn rules_in(table: &str, chain: &str) -> Result<Vec<String>> {
    let listed = process::output(Command::new("iptables").args(["--wait", "-t", table, "-S", chain]))?;
    Ok(listed.lines().filter(|line| line.starts_with("-A ")).map(str::to_owned).collect())
}

/// The rules of a table that lead to the chain of the driver's bridge, and those in it.
#[derive(Debug, PartialEq, Eq)]
struct BridgeRules {
    table: &'static str,
    chain: String,
    jump: String,
    rules: Vec<String>,
}

/// Returns the rules of the driver's bridge for its subnet, by their tables. Another case may have left those of another
/// subnet: they stay.
fn rules_of_bridge(case: &CaseContext) -> Result<Vec<BridgeRules>> {
    let bridge = case.environment().networks().tasks();
    let comment = format!(" on {}\"", bridge.name);
    let mut found = Vec::new();
    for (table, from) in [("nat", "POSTROUTING"), ("filter", "CNI-FORWARD")] {
        for jump in rules_in(table, from)?.into_iter().filter(|rule| rule.contains(&comment)) {
            let chain = jump.split("-j ").nth(1).context("a rule without a target")?.trim().to_owned();
            let rules = rules_in(table, &chain)?;
            if rules.iter().all(|rule| rule.contains(&bridge.subnet)) {
                found.push(BridgeRules { table, chain, jump, rules });
            }
        }
    }
    Ok(found)
}

/// Returns the rules of the driver's bridge once all are there.
fn complete_rules(case: &CaseContext) -> Result<Vec<BridgeRules>> {
    let found = rules_of_bridge(case)?;
    let counts: Vec<_> = found.iter().map(|of| (of.table, of.rules.len())).collect();
    ensure_eq!(counts, [("nat", 1), ("filter", 2)]);
    Ok(found)
}

/// Removes rules of the bridge as a restart of the host's firewall does, but leaves others' alone.
fn remove_rules(all: &[BridgeRules]) -> Result<()> {
    for BridgeRules { table, chain, jump, .. } in all {
        let of_table = format!("iptables --wait -t {table}");
        let delete = jump.replacen("-A", "-D", 1);
        let script = format!("{of_table} {delete}\n{of_table} -F {chain}\n{of_table} -X {chain}");
        process::output(Command::new("sh").args(["-ec", &script]))?;
    }
    Ok(())
}

async fn rules_that_somebody_else_has_removed_hold_up_no_end(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let mut task = published(case, plugin).await?;
    task.start(plugin).await?;
    remove_rules(&complete_rules(case)?)?;
    task.end(plugin).await?;
    case.nothing_left()
}

async fn rules_that_somebody_else_has_removed_come_back_while_a_task_runs(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = server(case, plugin, &[("network_mode", json!("bridge"))]).await?;
    let rules = complete_rules(case)?;
    // Each table by itself: a flush may be of one alone.
    for removed in [&rules[..1], &rules[1..], &rules[..]] {
        remove_rules(removed)?;
        let all_there = || rules_of_bridge(case).is_ok_and(|now| now == rules);
        until(LIMIT, "the rules that were removed", all_there).await?;
    }
    fetch_hostname(&network_override(plugin, &task).await?.addr, PORT)?;
    task.end(plugin).await?;
    case.nothing_left()
}

/// No task is left that they would be made for before.
async fn rules_that_somebody_else_has_removed_are_made_for_the_next_task(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let on_bridge = [("network_mode", json!("bridge"))];
    server(case, plugin, &on_bridge).await?.end(plugin).await?;
    let rules = complete_rules(case)?;
    remove_rules(&rules)?;
    tokio::time::sleep(LOOKED_FOR).await;
    ensure_eq!(rules_of_bridge(case)?, []);
    let next = server(case, plugin, &on_bridge).await?;
    ensure_eq!(rules_of_bridge(case)?, rules);
    fetch_hostname(&network_override(plugin, &next).await?.addr, PORT)?;
    next.end(plugin).await?;
    case.nothing_left()
}

async fn rules_that_can_not_be_made_leave_nothing(case: &CaseContext) -> Result<()> {
    let bin = case.directory().join("bin");
    fs::create_dir_all(&bin)?;
    let mut launch = case.launch();
    launch.look_first_in(bin.clone());
    let mut plugin = case.plugin_as(&launch, &case.options()).await?;
    let iptables = bin.join("iptables");
    fs::write(&iptables, "#!/bin/sh\necho no such luck >&2\nexit 4\n")?;
    fs::set_permissions(&iptables, fs::Permissions::from_mode(0o755))?;
    let config = with(case, "sleep 600", &[("network_mode", json!("bridge"))]);
    let task = case.prepare(&plugin, &config).await?;
    let path = iptables.display().to_string();
    let words = [path.as_str(), "make the rules", "no such luck"];
    let status = refused(plugin.start_task(task.config.clone()).await, &words)?;
    ensure!(is_recoverable(&status)?, "Nomad would not try again: {}", status.message());
    case.nothing_left()?;
    fs::remove_file(&iptables)?;
    let task = server(case, &plugin, &[("network_mode", json!("bridge"))]).await?;
    fetch_hostname(&network_override(&plugin, &task).await?.addr, PORT)?;
    task.end(&plugin).await?;
    case.nothing_left()?;
    plugin.shut_down().await
}
