//! What a task finds in its file system under the driver's name `docker`, where docker has something else than this driver
//! has by its own name.

use anyhow::Result;
use harness::context::CaseContext;
use harness::host::Plugin;
use nomad_proto::driver as pb;
use serde_json::{Value, json};

use crate::cases::support::host_mounts::shell_with;
use crate::cases::support::{cases, ensure_eq};

cases!["files of docker":
    the_name_files_are_as_writable_as_the_root,
    a_tmpfs_is_noexec_and_a_list_of_mounts_has_dockers_form,
];

/// Returns the output of a script in a task with more options.
async fn output(case: &CaseContext, plugin: &Plugin, script: &str, more: &Value) -> Result<String> {
    let task = case.run(plugin, &shell_with(case, script, more)).await?;
    let output = task.stdout(plugin).await?;
    task.destroy(plugin).await?;
    Ok(output)
}

async fn the_name_files_are_as_writable_as_the_root(case: &CaseContext) -> Result<()> {
    let mut plugin = case.docker().await?;
    let script = "for file in hosts hostname resolv.conf; do (: >> /etc/$file) 2>/dev/null && echo $file; done; echo end";
    let all = "hosts\nhostname\nresolv.conf\nend\n";
    ensure_eq!(output(case, &plugin, script, &json!({})).await?, all);
    let read_only = json!({"readonly_rootfs": true});
    ensure_eq!(output(case, &plugin, script, &read_only).await?, "end\n");
    // Nomad mounts its own resolv.conf read-only.
    let mut task = case.prepare(&plugin, &case.shell(script)).await?;
    task.config.dns = Some(pb::DnsConfig { servers: vec!["192.0.2.53".to_owned()], ..Default::default() });
    task.start(&plugin).await?;
    ensure_eq!(task.stdout(&plugin).await?, "hosts\nhostname\nend\n");
    task.destroy(&plugin).await?;
    case.nothing_left()?;
    plugin.shut_down().await?;
    let mut own = case.plugin().await?;
    ensure_eq!(output(case, &own, script, &read_only).await?, all);
    own.shut_down().await
}

async fn a_tmpfs_is_noexec_and_a_list_of_mounts_has_dockers_form(case: &CaseContext) -> Result<()> {
    let mut plugin = case.docker().await?;
    let more = json!({
        "mount": [{"type": "tmpfs", "target": "/block", "tmpfs_options": {"mode": 448}}],
        "mounts": [{"type": "tmpfs", "target": "/list"}, {"type": "bind", "source": "local", "target": "/bound"}],
    });
    let script = "grep -E ' /(block|list) tmpfs rw,nosuid,nodev,noexec' /proc/mounts | wc -l; touch /bound/x; \
                  ls /local; stat -c %a /block";
    ensure_eq!(output(case, &plugin, script, &more).await?, "2\nx\n700\n");
    case.nothing_left()?;
    plugin.shut_down().await
}
