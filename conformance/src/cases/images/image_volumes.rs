//! The volumes that an image declares (`VOLUME`): fresh for each task, filled from the image, and gone with the task;
//! and those that no honest image declares.

use anyhow::{Context, Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::fixture::Form;
use harness::fixture::containerd::NAMESPACE;
use harness::fixture::layer::Tree;
use harness::host::Plugin;
use harness::leaks::inspect::active_snapshots;
use serde_json::{Value, json};

use crate::cases::support::{cases, ensure_eq, refused};

cases!["image volumes":
    a_volume_is_filled_from_the_image_and_writable_under_a_read_only_root,
    a_volume_at_a_path_that_no_layer_has_is_made,
    each_task_has_fresh_volumes_which_end_with_it,
    a_mount_of_the_jobs_or_of_nomads_takes_the_place_of_a_volume,
    volumes_are_ignored_where_the_job_says_so,
    a_volume_outlives_the_plugin_and_ends_with_the_task,
    paths_at_which_no_volume_can_be_are_refused,
    links_of_a_hostile_image_do_not_lead_a_volume_outside,
];

/// Pushes busybox with these volumes and another layer. Returns the image's name.
fn push(
    case: &CaseContext,
    name: &str,
    volumes: &[&str],
    fill: impl FnOnce(&mut Tree) -> Result<()>,
) -> Result<String> {
    let mut image = case.environment().catalog().with(fill)?;
    let volumes: serde_json::Map<String, Value> =
        volumes.iter().map(|path| ((*path).to_owned(), json!({}))).collect();
    image.settings["Volumes"] = volumes.into();
    image.push(case.environment().registry(), name, "v1", Form::Oci)?;
    Ok(case.image(&format!("{name}:v1")))
}

/// Runs a script in a task of a job, and returns its output.
async fn output(case: &CaseContext, plugin: &Plugin, job: &Value, script: &str) -> Result<String> {
    let mut job = job.clone();
    job["command"] = json!("/bin/sh");
    job["args"] = json!(["-c", script]);
    let task = case.run(plugin, &job).await?;
    let output = task.stdout(plugin).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 0);
    task.destroy(plugin).await?;
    Ok(output)
}

/// Fills a layer with a directory of a database's.
fn database(tree: &mut Tree) -> Result<()> {
    tree.directory("var/lib", 0o755, 0)?;
    tree.directory("var/lib/db", 0o750, 1000)?;
    tree.file("var/lib/db/first", 0o640, b"from the image\n")?;
    tree.link("var/lib/db/link", "first")?;
    tree.directory("var/lib/db/sub", 0o1777, 0)
}

async fn a_volume_is_filled_from_the_image_and_writable_under_a_read_only_root(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let image = push(case, "volumes-database", &["/var/lib/db/"], database)?;
    let script = "cd /var/lib/db; cat link; stat -c %a-%u . first sub; echo more >> first; cat first; touch new; \
                  grep -c ' /var/lib/db ' /proc/self/mountinfo; touch /x 2>/dev/null || echo root is read-only";
    let job = config! { image = image, readonly_rootfs = true };
    let wanted = "from the image\n750-1000\n640-0\n1777-0\nfrom the image\nmore\n1\nroot is read-only\n";
    ensure_eq!(output(case, plugin, &job, script).await?, wanted);
    Ok(())
}

async fn a_volume_at_a_path_that_no_layer_has_is_made(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let image = push(case, "volumes-made", &["/none/at/all", "relative", "/../up"], |_| Ok(()))?;
    let script = "stat -c %a-%u /none/at/all /relative /up; for at in /none/at/all /relative /up; do \
                  touch $at/x; grep -c \" $at \" /proc/self/mountinfo; done";
    let wanted = "755-0\n755-0\n755-0\n1\n1\n1\n";
    for readonly_rootfs in [false, true] {
        let job = config! { image = image, readonly_rootfs = readonly_rootfs };
        ensure_eq!(output(case, plugin, &job, script).await?, wanted);
    }
    Ok(())
}

async fn each_task_has_fresh_volumes_which_end_with_it(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let image = push(case, "volumes-fresh", &["/var/lib/db", "/var/lib/db/sub"], database)?;
    let script = "ls /var/lib/db /var/lib/db/sub; echo x > /var/lib/db/mine; echo y > /var/lib/db/sub/mine";
    for _ in 0..2 {
        let listed = output(case, plugin, &config! { image = image }, script).await?;
        ensure_eq!(listed, "/var/lib/db:\nfirst\nlink\nsub\n\n/var/lib/db/sub:\n");
        let left = active_snapshots(case.environment().containerd(), NAMESPACE)?;
        ensure!(left.is_empty(), "snapshots are left: {left:?}");
    }
    Ok(())
}

async fn a_mount_of_the_jobs_or_of_nomads_takes_the_place_of_a_volume(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let volumes = ["/var/lib/db", "/local", "/alloc/", "/etc/hosts", "/dev/shm"];
    let image = push(case, "volumes-replaced", &volumes, database)?;
    let job = config! { image = image, tmpfs = ["/var/lib/db"] };
    let script = "grep ' /var/lib/db ' /proc/self/mountinfo | grep -c ' - tmpfs '; ls /var/lib/db; \
                  grep -q localhost /etc/hosts && echo hosts; test -d /alloc/logs && touch /local/x && echo nomads; \
                  grep ' /dev/shm ' /proc/self/mountinfo | grep -vc tmpfs; touch /dev/shm/x";
    ensure_eq!(output(case, plugin, &job, script).await?, "1\nhosts\nnomads\n1\n");
    Ok(())
}

async fn volumes_are_ignored_where_the_job_says_so(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let image = push(case, "volumes-ignored", &["/var/lib/db", "/", "/proc/x"], database)?;
    let job = config! { image = image, image_volumes = "ignore" };
    let script = "grep -c ' /var/lib/db ' /proc/self/mountinfo; cat /var/lib/db/first";
    ensure_eq!(output(case, plugin, &job, script).await?, "0\nfrom the image\n");
    let task = case.prepare(plugin, &config! { image = image, image_volumes = "bind" }).await?;
    refused(plugin.start_task(task.config.clone()).await, &["image_volumes", "anonymous"])?;
    Ok(())
}

async fn a_volume_outlives_the_plugin_and_ends_with_the_task(case: &CaseContext) -> Result<()> {
    let image = push(case, "volumes-outlives", &["/var/lib/db"], database)?;
    let mut plugin = case.plugin().await?;
    let script = "echo x > /var/lib/db/mine; while sleep 1; do :; done";
    let job = config! { image = image, command = "/bin/sh", args = ["-c", script] };
    let task = case.run(&plugin, &job).await?;
    while task.exec(&plugin, "test -s /var/lib/db/mine").await?.0 != 0 {}
    plugin.kill().await?;
    let mut plugin = case.next_plugin(&mut plugin).await?;
    task.recover(&plugin).await?;
    let (exit_code, kept) = task.exec(&plugin, "cat /var/lib/db/mine /var/lib/db/first").await?;
    ensure_eq!((exit_code, kept.as_str()), (0, "x\nfrom the image\n"));
    task.end(&plugin).await?;
    let left = active_snapshots(case.environment().containerd(), NAMESPACE)?;
    ensure!(left.is_empty(), "snapshots are left: {left:?}");
    plugin.shut_down().await
}

async fn paths_at_which_no_volume_can_be_are_refused(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let many: Vec<String> = (0..1000).map(|number| format!("/v/{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (name, volumes, word) in [
        ("root", &["/../.."][..], "root directory"),
        ("proc", &["/proc/sys/kernel"], "/proc"),
        ("file", &["/etc/passwd"], "a file"),
        ("many", &many, "1000 volumes"),
    ] {
        let image = push(case, &format!("volumes-at-{name}"), volumes, |_| Ok(()))?;
        let task = case.prepare(plugin, &config! { image = image, command = "true" }).await?;
        let answer = plugin.start_task(task.config.clone()).await;
        refused(answer, &["VOLUME", word, "image_volumes"]).context(name)?;
        case.nothing_left()?;
    }
    case.still_works(plugin).await
}

async fn links_of_a_hostile_image_do_not_lead_a_volume_outside(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let outside = case.directory().join("outside");
    std::fs::create_dir(&outside)?;
    std::fs::write(outside.join("secret"), "secret\n")?;
    let hostile = |tree: &mut Tree| {
        tree.link("absolute", &outside.display().to_string())?;
        tree.link("up", &format!("../../../../../../../../..{}", outside.display()))?;
        tree.directory("real", 0o700, 1000)?;
        tree.file("real/file", 0o644, b"inside\n")?;
        tree.link("inside", "/real")
    };
    let image = push(case, "volumes-links", &["/absolute", "/up/below", "/inside"], hostile)?;
    let script = "find / -xdev -name secret 2>/dev/null; ls /absolute /up/below; cat /inside/file; \
                  touch /absolute/x /up/below/x /inside/x";
    let listed = output(case, plugin, &config! { image = image }, script).await?;
    ensure_eq!(listed, "/absolute:\nbelow\n\n/up/below:\ninside\n");
    let names: Vec<_> = std::fs::read_dir(&outside)?.flatten().map(|entry| entry.file_name()).collect();
    ensure_eq!(names, ["secret"]);
    Ok(())
}
