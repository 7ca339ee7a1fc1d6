//! Namespaces that a task shares with the host: by default none, else those that the job asks for and the operator
//! allows by `allowed_modes`. And the kernel's parameters of a task's own namespaces.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::host::cgroup::is_v2;
use nomad_proto::driver as pb;
use nomad_proto::driver::network_isolation_spec::NetworkIsolationMode;
use serde_json::{Value, json};

use crate::cases::support::{cases, ensure_eq, refused};

cases!["modes":
    a_job_does_not_get_the_hosts_namespaces_unless_the_operator_allows_it,
    a_task_shares_what_it_asks_for_and_nothing_else,
    a_mode_that_there_is_not_is_refused_with_those_that_there_are,
    the_hosts_network_is_not_had_beside_the_groups,
    the_hosts_shared_memory_is_seen_where_it_is_shared,
    a_task_that_sees_its_own_control_group_alone_sees_it_as_the_root,
    parameters_of_the_kernel_are_set_where_they_are_the_tasks,
    parameters_of_the_kernel_that_are_the_hosts_are_refused,
];

const KINDS: [&str; 6] = ["cgroup", "ipc", "net", "pid", "user", "uts"];

fn with(case: &CaseContext, script: &str, options: &[(&str, Value)]) -> Value {
    let mut config = case.shell(script);
    for (option, value) in options {
        config[*option] = value.clone();
    }
    config
}

async fn start_is_refused(case: &CaseContext, plugin: &Plugin, config: &Value, words: &[&str]) -> Result<()> {
    let task = case.prepare(plugin, config).await?;
    refused(plugin.start_task(task.config.clone()).await, words)?;
    case.nothing_left()
}

async fn a_job_does_not_get_the_hosts_namespaces_unless_the_operator_allows_it(
    case: &CaseContext,
) -> Result<()> {
    let requests = [
        ("pid_mode", json!("host"), "pid"),
        ("ipc_mode", json!("host"), "ipc"),
        ("uts_mode", json!("host"), "uts"),
        ("cgroupns", json!("host"), "cgroupns"),
        ("userns_mode", json!("host"), "userns"),
        ("host_network", json!(true), "network"),
    ];
    for allow in [None, Some(json!([])), Some(json!(["private"]))] {
        let mut options = case.options();
        options["allowed_modes"] = match &allow {
            Some(list) => requests.iter().map(|(_, _, kind)| ((*kind).to_owned(), list.clone())).collect(),
            None => json!(null),
        };
        let mut plugin = case.plugin_as(&case.launch(), &options).await?;
        for (option, value, kind) in &requests {
            let plugin_option = format!("allowed_modes.{kind}");
            let config = with(case, "true", &[(option, value.clone())]);
            // The host's network is open unless the operator says otherwise.
            if *kind == "network" && allow.is_none() {
                let task = case.run(&plugin, &config).await?;
                task.stdout(&plugin).await?;
                task.destroy(&plugin).await?;
            } else {
                start_is_refused(case, &plugin, &config, &[option, &plugin_option]).await?;
            }
        }
        plugin.shut_down().await?;
    }
    Ok(())
}

/// Returns the kinds of namespaces that a task with these options shares with the host.
async fn shared(
    case: &CaseContext,
    plugin: &Plugin,
    options: &[(&str, Value)],
) -> Result<BTreeSet<&'static str>> {
    let script = format!("cd /proc/self/ns; for kind in {}; do readlink $kind; done", KINDS.join(" "));
    let task = case.run(plugin, &with(case, &script, options)).await?;
    let inside = task.stdout(plugin).await?;
    task.destroy(plugin).await?;
    let of_host = |kind: &&&str| -> bool {
        let of_host = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap_or_default();
        inside.lines().any(|line| line == of_host.to_string_lossy())
    };
    ensure_eq!(inside.lines().count(), KINDS.len());
    Ok(KINDS.iter().filter(of_host).copied().collect())
}

async fn a_task_shares_what_it_asks_for_and_nothing_else(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    // The same as docker shares.
    let usual = if is_v2() { BTreeSet::from(["user"]) } else { BTreeSet::from(["cgroup", "user"]) };
    ensure_eq!(shared(case, plugin, &[]).await?, usual);
    for (option, value, kind) in [
        ("pid_mode", json!("host"), "pid"),
        ("ipc_mode", json!("host"), "ipc"),
        ("uts_mode", json!("host"), "uts"),
        ("cgroupns", json!("host"), "cgroup"),
        ("userns_mode", json!("host"), "user"),
        ("host_network", json!(true), "net"),
    ] {
        let wanted = usual.iter().copied().chain([kind]).collect();
        ensure_eq!(shared(case, plugin, &[(option, value)]).await?, wanted);
    }
    let private = ["pid_mode", "ipc_mode", "uts_mode", "cgroupns"].map(|option| (option, json!("private")));
    ensure_eq!(shared(case, plugin, &private).await?, BTreeSet::from(["user"]));
    Ok(())
}

async fn a_mode_that_there_is_not_is_refused_with_those_that_there_are(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for option in ["pid_mode", "ipc_mode", "uts_mode", "cgroupns", "userns_mode"] {
        let config = with(case, "true", &[(option, json!("task:other"))]);
        start_is_refused(case, plugin, &config, &[option, "task:other", "\"host\""]).await?;
    }
    for (one, other) in [
        (("hostname", json!("web")), ("uts_mode", json!("host"))),
        (("init", json!(true)), ("pid_mode", json!("host"))),
    ] {
        let words = [one.0, other.0];
        start_is_refused(case, plugin, &with(case, "true", &[one, other]), &words).await?;
    }
    Ok(())
}

async fn the_hosts_network_is_not_had_beside_the_groups(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut task = case.prepare(plugin, &with(case, "true", &[("host_network", json!(true))])).await?;
    task.config.network_isolation_spec = Some(pb::NetworkIsolationSpec {
        mode: NetworkIsolationMode::Group.into(),
        path: "/var/run/netns/none".to_owned(),
        ..Default::default()
    });
    refused(plugin.start_task(task.config.clone()).await, &["host_network", "mode = \"bridge\""])?;
    case.nothing_left()
}

async fn the_hosts_shared_memory_is_seen_where_it_is_shared(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let name = format!("conformance-{}", std::process::id());
    let file = std::path::Path::new("/dev/shm").join(&name);
    fs::write(&file, "shared").with_context(|| format!("write {}", file.display()))?;
    let script = format!("cat /dev/shm/{name} 2>/dev/null || echo none");
    let mut output = Vec::new();
    for mode in ["host", "private"] {
        let task = case.run(plugin, &with(case, &script, &[("ipc_mode", json!(mode))])).await?;
        output.push(task.stdout(plugin).await);
        task.destroy(plugin).await?;
    }
    fs::remove_file(&file)?;
    ensure_eq!(output.into_iter().collect::<Result<Vec<_>>>()?, ["shared", "none\n"]);
    Ok(())
}

async fn a_task_that_sees_its_own_control_group_alone_sees_it_as_the_root(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for (mode, sees_nomad) in [("private", false), ("host", true)] {
        let config = with(case, "cat /proc/self/cgroup; ls /sys/fs/cgroup", &[("cgroupns", json!(mode))]);
        let task = case.run(plugin, &config).await?;
        let output = task.stdout(plugin).await?;
        // Nomad moves a task into a cpuset later, on v1.
        let groups: Vec<_> =
            output.lines().filter(|line| line.contains(':') && !line.contains("cpuset")).collect();
        ensure!(
            groups.iter().any(|line| line.contains("nomad")) == sees_nomad,
            "with {mode} it is in {groups:?}"
        );
        ensure!(output.lines().count() > groups.len() + 1, "its control groups are not mounted: {output}");
        task.destroy(plugin).await?;
    }
    Ok(())
}

async fn parameters_of_the_kernel_are_set_where_they_are_the_tasks(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let script = "cd /proc/sys; cat net/core/somaxconn kernel/shmmax fs/mqueue/msg_max kernel/domainname; \
                  echo 7 >net/core/somaxconn";
    let parameters = json!({
        "net.core.somaxconn": "1234", "kernel.shmmax": "65536", "fs.mqueue.msg_max": "17", "kernel.domainname": "example",
    });
    let mut config = with(case, &format!("{script} 2>/dev/null; echo end"), &[("sysctl", parameters)]);
    let read = || fs::read_to_string("/proc/sys/net/core/somaxconn");
    let before = read()?;
    let task = case.run(plugin, &config).await?;
    ensure_eq!(task.stdout(plugin).await?, "1234\n65536\n17\nexample\nend\n");
    task.destroy(plugin).await?;
    ensure_eq!(read()?, before);
    config["sysctl"] = json!({"net.core.no_such_thing": "1"});
    start_is_refused(case, plugin, &config, &["net/core/no_such_thing"]).await?;
    Ok(())
}

async fn parameters_of_the_kernel_that_are_the_hosts_are_refused(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for (name, other) in [
        ("vm.swappiness", None),
        ("kernel.panic", None),
        ("kernel.hostname", None),
        ("net.core.somaxconn", Some(("host_network", json!(true)))),
        ("kernel.shmmax", Some(("ipc_mode", json!("host")))),
        ("fs.mqueue.msg_max", Some(("ipc_mode", json!("host")))),
        ("kernel.domainname", Some(("uts_mode", json!("host")))),
    ] {
        let words: Vec<_> =
            ["sysctl", name].into_iter().chain(other.iter().map(|(option, _)| *option)).collect();
        let options: Vec<_> = [("sysctl", json!({name: "1"}))].into_iter().chain(other.clone()).collect();
        start_is_refused(case, plugin, &with(case, "true", &options), &words).await?;
    }
    Ok(())
}
