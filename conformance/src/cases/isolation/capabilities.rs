//! Capabilities: those that a job adds and drops, and those that the operator's `allow_caps` permits.

use anyhow::{Context, Result};
use harness::config;
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::LIMIT;
use serde_json::{Value, json};
use tonic::Code;

use crate::cases::support::{cases, ensure_eq, refused};

cases!["capabilities":
    what_a_job_adds_and_drops_is_so_in_the_task_and_in_its_execs,
    capabilities_that_the_operator_does_not_allow_are_had_by_no_task,
    an_unknown_capability_is_refused_by_name,
];

const LOOK: &str = "awk '/^Cap(Prm|Eff|Bnd)/ { print $2 }' /proc/self/status | uniq";
const DEFAULT: u64 = 0xa804_25fb;
const CHOWN: u64 = 1;
const NET_ADMIN: u64 = 1 << 12;
const SYS_ADMIN: u64 = 1 << 21;

/// Returns this process' bounding set of capabilities, which is the plugin's too.
fn all() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).context("no line CapBnd")?;
    Ok(u64::from_str_radix(mask.trim(), 16)?)
}

fn with(mut config: Value, add: &[&str], drop: &[&str]) -> Value {
    config["cap_add"] = json!(add);
    config["cap_drop"] = json!(drop);
    config
}

async fn what_a_job_adds_and_drops_is_so_in_the_task_and_in_its_execs(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for (add, drop, wanted) in [
        (&["CAP_NET_ADMIN", "sys_admin"][..], &[][..], DEFAULT | NET_ADMIN | SYS_ADMIN),
        (&[], &["Chown", "cap_net_admin"], DEFAULT & !CHOWN),
        (&["chown"], &["chown"], DEFAULT),
        (&["chown"], &["ALL"], CHOWN),
        (&[], &["all"], 0),
        (&["all"], &["CAP_CHOWN"], all()? & !CHOWN),
    ] {
        let script = format!("{LOOK}; exec sleep 600");
        let task = case.run(plugin, &with(case.shell(&script), add, drop)).await?;
        let wanted = format!("{wanted:016x}\n");
        task.alloc.stdout.to_contain(&wanted, LIMIT).await?;
        ensure_eq!(task.exec(plugin, LOOK).await?, (0, wanted));
        task.end(plugin).await?;
    }
    Ok(())
}

async fn capabilities_that_the_operator_does_not_allow_are_had_by_no_task(case: &CaseContext) -> Result<()> {
    let mut options = case.options();
    options["allow_caps"] = json!(["CHOWN", "cap_net_admin"]);
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    for (add, wanted) in [(&[][..], CHOWN), (&["net_admin"][..], CHOWN | NET_ADMIN)] {
        let task = case.run(&plugin, &with(case.shell(LOOK), add, &[])).await?;
        ensure_eq!(task.stdout(&plugin).await?, format!("{wanted:016x}\n"));
        task.destroy(&plugin).await?;
    }
    for (add, named) in [(&["chown", "sys_admin", "kill"][..], "CAP_KILL, CAP_SYS_ADMIN"), (&["all"], "all")]
    {
        let task = case.prepare(&plugin, &with(case.shell("true"), add, &[])).await?;
        let status =
            refused(plugin.start_task(task.config.clone()).await, &["cap_add", named, "allow_caps"])?;
        ensure_eq!(status.code(), Code::InvalidArgument);
        case.nothing_left()?;
    }
    plugin.shut_down().await
}

async fn an_unknown_capability_is_refused_by_name(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    // The image doesn't exist: the capability is checked before the image is looked for.
    let image = case.image("library/nothing:latest");
    let config = |option: &str, name: &str| {
        let mut config = config! { image = image };
        config[option] = json!([name]);
        config
    };
    for option in ["cap_add", "cap_drop"] {
        let task = case.prepare(plugin, &config(option, "NET_ADMIM")).await?;
        refused(plugin.start_task(task.config.clone()).await, &[option, "NET_ADMIM", "capabilities(7)"])?;
    }
    // Sandboxes in which these cases run often lack CAP_SYS_RESOURCE.
    const SYS_RESOURCE: u64 = 1 << 24;
    if all()? & SYS_RESOURCE == 0 {
        let task = case.prepare(plugin, &config("cap_add", "sys_resource")).await?;
        let answer = plugin.start_task(task.config.clone()).await;
        refused(answer, &["cap_add", "CAP_SYS_RESOURCE", "this host"])?;
    }
    // A spare shim that is being launched looks like the rest of something.
    case.nothing_left_within(LIMIT)
}
