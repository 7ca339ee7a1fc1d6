//! What a task finds in its file system under the driver's name `docker`, where docker has something else than this driver
//! has by its own name.

use std::path::Path;

use anyhow::{Result, ensure};
use harness::context::CaseContext;
use harness::fixture::Form;
use harness::fixture::containerd::DOCKERS_NAMESPACE;
use harness::fixture::layer::Tree;
use harness::host::Plugin;
use harness::leaks::inspect::active_snapshots;
use nomad_proto::driver as pb;
use serde_json::{Value, json};

use crate::cases::support::host_mounts::{host_directory, shell_with};
use crate::cases::support::{cases, ensure_eq, refused};

cases!["files of docker":
    the_name_files_are_as_writable_as_the_root,
    a_tmpfs_is_noexec_and_a_list_of_mounts_has_dockers_form,
    a_volume_without_a_source_is_fresh_and_filled_from_the_image,
    a_missing_source_of_volumes_is_made_where_jobs_may_mount,
    a_task_finds_a_file_dockerenv,
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

async fn a_volume_without_a_source_is_fresh_and_filled_from_the_image(case: &CaseContext) -> Result<()> {
    let mut plugin = case.docker().await?;
    let fill = |tree: &mut Tree| {
        tree.directory("var/lib", 0o755, 0)?;
        tree.directory("var/lib/db", 0o750, 1000)?;
        tree.file("var/lib/db/first", 0o640, b"from the image\n")
    };
    case.environment().catalog().with(fill)?.push(
        case.environment().registry(),
        "filled",
        "v1",
        Form::Oci,
    )?;
    let volume = |target: &str, more: Value| {
        let mut volume = json!({"type": "volume", "target": target});
        for (name, value) in more.as_object().into_iter().flatten() {
            volume[name] = value.clone();
        }
        volume
    };
    let no_copy = json!({"volume_options": {"no_copy": true}});
    let job =
        |volume: Value| json!({"image": case.image("filled:v1"), "readonly_rootfs": true, "mount": [volume]});
    let script = "ls /var/lib/db; stat -c %a-%u /var/lib/db; touch /var/lib/db/x 2>/dev/null && echo written";
    for (volume, wanted) in [
        (volume("/var/lib/db", json!({})), "first\n750-1000\nwritten\n"),
        (volume("/var/lib/db", json!({"readonly": true})), "first\n750-1000\n"),
        (volume("/var/lib/db", no_copy), "755-0\nwritten\n"),
    ] {
        let said = format!("({script}) > /local/said; :");
        let mut task = case.prepare_unread(&plugin, &shell_with(case, &said, &job(volume))).await?;
        // What one attempt has written, the next one does not have.
        for _ in 0..2 {
            task.start(&plugin).await?;
            ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
            ensure_eq!(std::fs::read_to_string(task.alloc.task_path("local/said"))?, wanted);
            task.destroy(&plugin).await?;
            task.next_attempt()?;
        }
        let left = active_snapshots(case.environment().containerd(), DOCKERS_NAMESPACE)?;
        ensure!(left.is_empty(), "snapshots are left: {left:?}");
    }
    let over_a_file = shell_with(case, "true", &job(volume("/etc/passwd", json!({}))));
    let task = case.prepare(&plugin, &over_a_file).await?;
    refused(plugin.start_task(task.config.clone()).await, &["/etc/passwd", "no_copy = true"])?;
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn a_missing_source_of_volumes_is_made_where_jobs_may_mount(case: &CaseContext) -> Result<()> {
    let host = host_directory(case)?;
    std::os::unix::fs::symlink("sub", host.join("link"))?;
    let mut options = case.docker_options();
    options["volumes"] = json!({"enabled": true, "allowed_paths": [host]});
    let mut plugin = case.plugin_as(&case.launch_docker()?, &options).await?;
    let volume = |source: &Path| json!({"volumes": [format!("{}:/made", source.display())]});
    let made = host.join("not/there");
    let script = "stat -c '%F %a %u:%g' /made; touch /made/x";
    ensure_eq!(output(case, &plugin, script, &volume(&made)).await?, "directory 755 0:0\n");
    ensure!(made.join("x").exists(), "another directory was mounted");
    let outside = case.directory().join("outside");
    for (source, more, words) in [
        (&outside, volume(&outside), ["volumes.allowed_paths", "outside"]),
        (&host.join("link/new"), volume(&host.join("link/new")), ["does not exist", "link/new"]),
        (
            &host.join("bound"),
            json!({"mount": [{"type": "bind", "source": host.join("bound"), "target": "/made"}]}),
            ["does not exist", "bound"],
        ),
    ] {
        let task = case.prepare(&plugin, &shell_with(case, "true", &more)).await?;
        refused(plugin.start_task(task.config.clone()).await, &words)?;
        ensure!(!source.exists(), "{} was made", source.display());
    }
    ensure_eq!(std::fs::read_dir(host.join("sub"))?.count(), 1);
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn a_task_finds_a_file_dockerenv(case: &CaseContext) -> Result<()> {
    let mut plugin = case.docker().await?;
    let script = "stat -c '%F %a %u:%g' /.dockerenv; grep -c dockerenv /proc/self/mountinfo; rm /.dockerenv && echo gone";
    let found = "regular empty file 755 0:0\n0\ngone\n";
    for more in [json!({}), json!({"snapshotter": "native"})] {
        ensure_eq!(output(case, &plugin, script, &more).await?, found);
    }
    let test = "test -f /.dockerenv && echo found || echo none";
    ensure_eq!(output(case, &plugin, test, &json!({"readonly_rootfs": true})).await?, "found\n");
    case.nothing_left()?;
    plugin.shut_down().await?;
    let mut own = case.plugin().await?;
    ensure_eq!(output(case, &own, test, &json!({})).await?, "none\n");
    own.shut_down().await
}
