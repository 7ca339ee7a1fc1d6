//! Images that no honest builder would make: each results in an error or a task, and never in a plugin that hangs or
//! looks outside the image.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::fixture::Form;
use harness::fixture::layer::Tree;
use harness::host::Plugin;
use harness::task::LIMIT;
use serde_json::json;

use crate::cases::support::{cases, ensure_eq, is_recoverable, orphans, refused};

cases!["hostile image":
    a_layer_with_other_bytes_than_its_digest_says_is_refused,
    an_image_for_another_platform_is_refused_by_its_platform,
    an_image_without_a_command_needs_one_from_the_job,
    account_files_that_are_no_files_are_refused_at_once_whoever_the_user_is,
    images_that_a_runtime_would_hang_on_keep_nobody_elses_task_waiting,
    accounts_that_are_a_link_are_looked_up_inside,
    mount_points_that_are_links_do_not_lead_outside,
    an_image_of_many_layers_runs,
    an_image_with_neither_accounts_nor_directories_runs,
    accounts_that_lead_through_what_a_mount_hides_or_makes_are_refused_at_once,
    a_working_directory_does_not_lead_into_proc,
    the_fields_of_an_images_documents_are_read_as_go_reads_them,
];

/// Maximum time for a start that waits for nothing, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Pushes busybox with another layer under this name. Returns the image's name.
fn push(case: &CaseContext, name: &str, fill: impl FnOnce(&mut Tree) -> Result<()>) -> Result<String> {
    let image = case.environment().catalog().with(fill)?;
    image.push(case.environment().registry(), name, "v1", Form::Oci)?;
    Ok(case.image(&format!("{name}:v1")))
}

async fn a_layer_with_other_bytes_than_its_digest_says_is_refused(case: &CaseContext) -> Result<()> {
    let options = orphans::options(case, &json!({"creation_grace": "1s"}));
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let image = case.image("broken:tampered");
    for _ in 0..2 {
        let task = case.prepare(&plugin, &config! { image = image }).await?;
        let words = [&image, "sha256:", "damaged on the way"];
        let status = refused(plugin.start_task(task.config.clone()).await, &words)?;
        ensure!(is_recoverable(&status)?, "a cache may have changed it, and not do so again: {status:?}");
        // The image's other layers are kept for the next try, if there is one.
        case.nothing_left_within(LIMIT)?;
    }
    case.still_works(&plugin).await?;
    plugin.shut_down().await
}

async fn an_image_for_another_platform_is_refused_by_its_platform(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let image = case.environment().catalog().busybox(json!({"Cmd": ["true"]}))?;
    image.push(case.environment().registry(), "elsewhere", "v1", Form::OtherPlatform)?;
    let image = case.image("elsewhere:v1");
    let task = case.prepare(plugin, &config! { image = image }).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &[&image, "amd64"])?;
    ensure!(!is_recoverable(&status).unwrap_or(false), "Nomad would try again");
    Ok(())
}

async fn an_image_without_a_command_needs_one_from_the_job(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let image = case.environment().catalog().busybox(json!({}))?;
    image.push(case.environment().registry(), "bare", "v1", Form::Oci)?;
    let image = case.image("bare:v1");
    let task = case.prepare(plugin, &config! { image = image }).await?;
    refused(plugin.start_task(task.config.clone()).await, &["command"])?;
    case.nothing_left()?;
    let task = case.run(plugin, &config! { image = image, command = "/bin/pwd" }).await?;
    ensure_eq!(task.stdout(plugin).await?, "/\n");
    task.destroy(plugin).await
}

/// Pushes an image with a file of this kind in place of an account file. Returns the image's name.
fn with_account_file(case: &CaseContext, kind: &str, file: &str) -> Result<String> {
    let at = format!("etc/{file}");
    let name = format!("accounts-{}-{file}", kind.replace(['/', ' '], "-").to_lowercase());
    push(case, &name, |tree| {
        // A whiteout removes the base image's own file first.
        tree.file(&format!("etc/.wh.{file}"), 0o644, b"")?;
        match kind {
            "pipe" => tree.pipe(&at),
            "link to a pipe" => {
                tree.pipe("pipe")?;
                tree.link(&at, "../pipe")
            }
            // /dev/urandom's number, which may be opened without harm.
            "device" => tree.device(&at, 1, 9),
            "directory" => tree.directory(&at, 0o755, 0),
            target => tree.link(&at, target),
        }
    })
}

async fn account_files_that_are_no_files_are_refused_at_once_whoever_the_user_is(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for (kind, word) in [
        ("pipe", "a pipe"),
        ("link to a pipe", "a pipe"),
        ("device", "a device"),
        ("directory", "a directory"),
        ("/proc/self/fd/1", "/proc/self/fd/1"),
        ("/dev/zero", "/dev/zero"),
    ] {
        for file in ["passwd", "group"] {
            let image = with_account_file(case, kind, file)?;
            for (user, groups) in [("", json!([])), ("1234:5678", json!([])), ("app", json!(["extra"]))] {
                let config = config! { image = image, command = "true", group_add = groups };
                let mut task = case.prepare(plugin, &config).await?;
                task.config.user = user.to_owned();
                let answer = tokio::time::timeout(AT_ONCE, plugin.start_task(task.config.clone())).await;
                let answer = answer.with_context(|| format!("{kind} as {file} for {user:?} hangs"))?;
                let status = refused(answer, &[&format!("/etc/{file}"), word])?;
                ensure!(!is_recoverable(&status)?, "Nomad would try again");
            }
        }
    }
    case.nothing_left()?;
    case.still_works(plugin).await
}

async fn images_that_a_runtime_would_hang_on_keep_nobody_elses_task_waiting(
    case: &CaseContext,
) -> Result<()> {
    const AT_ONCE: usize = 2;
    let mut options = case.options();
    options["max_concurrent_starts"] = json!(AT_ONCE);
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let hanging = config! { image = with_account_file(case, "pipe", "group")?, command = "true" };
    // A pipe that a task puts into its own directory: a link in the image leads there, or the job mounts it over the
    // image's file.
    let by_link = config! { image = with_account_file(case, "/local/pipe", "passwd")?, command = "true" };
    let mut by_mount = case.shell("true");
    by_mount["volumes"] = json!(["local/pipe:/etc/passwd"]);
    let mut tasks = Vec::new();
    for config in [&hanging, &by_link, &by_mount, &hanging] {
        let task = case.prepare(&plugin, config).await?;
        nix::unistd::mkfifo(&task.alloc.task_path("local/pipe"), nix::sys::stat::Mode::S_IRWXU)?;
        tasks.push(task);
    }
    let starts = futures::future::join_all(tasks.iter().map(|task| plugin.start_task(task.config.clone())));
    let sound = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        tokio::time::timeout(self::AT_ONCE, case.still_works(&plugin)).await.context("a sound task waits")?
    };
    let (refusals, sound) = tokio::join!(starts, sound);
    sound?;
    for (answer, file) in refusals.into_iter().zip(["group", "passwd", "passwd", "group"]) {
        refused(answer, &[&format!("/etc/{file}"), "a pipe"])?;
    }
    plugin.shut_down().await
}

async fn accounts_that_lead_through_what_a_mount_hides_or_makes_are_refused_at_once(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let with = |name: &str, links: &[(&str, &str)]| {
        push(case, name, |tree| {
            tree.pipe("pipe")?;
            tree.file("real", 0o644, b"root:x:0:0::/:/bin/sh\n")?;
            links.iter().try_for_each(|(at, target)| tree.link(at, target))
        })
    };
    let plain = json!([]);
    let own = json!(["local/etc:/m"]);
    for (name, links, volumes, word) in [
        // The image's link in `/local` leads to a file; the task's own directory hides it and has a pipe there.
        ("through-hidden", &[("etc/passwd", "/local/pipe"), ("local/pipe", "/real")][..], &plain, "a pipe"),
        // A mount's target that is missing in the image is made.
        ("through-made", &[("etc/passwd", "../scratch/../pipe")], &plain, "a pipe"),
        ("through-proc", &[("etc/passwd", "/proc/self/cwd/../../../real")], &plain, "/proc"),
        // The mount's target is a link.
        ("mount-aside", &[("m", "/etc")], &own, "a pipe"),
    ] {
        let image = with(name, links)?;
        let config = config! {
            image = image, command = "true", tmpfs = ["/scratch"], volumes = volumes, work_dir = "/bin",
        };
        for _ in 0..2 {
            let task = case.prepare(plugin, &config).await?;
            std::fs::create_dir(task.alloc.task_path("local/etc"))?;
            for pipe in ["local/pipe", "local/etc/passwd"] {
                nix::unistd::mkfifo(&task.alloc.task_path(pipe), nix::sys::stat::Mode::S_IRWXU)?;
            }
            let answer = tokio::time::timeout(AT_ONCE, plugin.start_task(task.config.clone())).await;
            refused(answer.with_context(|| format!("{name} hangs"))?, &["/etc/passwd", word])?;
        }
    }
    case.nothing_left()?;
    case.still_works(plugin).await
}

async fn accounts_that_are_a_link_are_looked_up_inside(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let outside = case.directory().join("passwd");
    std::fs::create_dir_all(case.directory())?;
    std::fs::write(&outside, "app:x:6666:6666::/:/bin/sh\n")?;
    let image = push(case, "links", |tree| {
        tree.link("etc/passwd", "/accounts/users")?;
        tree.link("etc/group", &format!("../../../../../..{}", outside.display()))?;
        tree.directory("accounts", 0o755, 0)?;
        tree.file("accounts/users", 0o644, b"app:x:1234:5678::/:/bin/sh\n")
    })?;
    let config = config! { image = image, command = "/bin/sh", args = ["-c", "id -u; id -g"] };
    let mut task = case.prepare(plugin, &config).await?;
    task.config.user = "app".to_owned();
    task.start(plugin).await?;
    ensure_eq!(task.stdout(plugin).await?, "1234\n5678\n");
    task.destroy(plugin).await?;

    let image = push(case, "outside", |tree| tree.link("etc/passwd", &outside.display().to_string()))?;
    let mut task = case.prepare(plugin, &config! { image = image, command = "true" }).await?;
    task.config.user = "app".to_owned();
    refused(plugin.start_task(task.config.clone()).await, &["app"])?;
    Ok(())
}

async fn mount_points_that_are_links_do_not_lead_outside(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let outside = case.directory().join("outside");
    std::fs::create_dir_all(&outside)?;
    let image = push(case, "mount-links", |tree| {
        for name in ["alloc", "local", "secrets"] {
            tree.link(name, &format!("../../../../..{}/{name}", outside.display()))?;
        }
        Ok(())
    })?;
    let config = config! { image = image, command = "/bin/sh", args = ["-c", "echo x > /local/x"] };
    let mut task = case.prepare(plugin, &config).await?;
    if task.start(plugin).await.is_ok() {
        task.wait(plugin).await?;
        task.end(plugin).await?;
    }
    ensure_eq!(std::fs::read_dir(&outside)?.count(), 0);
    Ok(())
}

async fn an_image_of_many_layers_runs(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    const LAYERS: usize = 90;
    let mut image = case.environment().catalog().busybox(json!({"Env": ["PATH=/bin"], "User": "app"}))?;
    for number in 0..LAYERS {
        let layer = case
            .environment()
            .catalog()
            .with(|tree| tree.file(&format!("layer-{number}"), 0o644, b"here\n"))?;
        image.layers.extend(layer.layers.into_iter().skip(1));
    }
    image.push(case.environment().registry(), "many", "v1", Form::Oci)?;
    let script = "ls -d /layer-* | wc -l; id -un";
    let config = config! { image = case.image("many:v1"), command = "sh", args = ["-c", script] };
    let task = case.run(plugin, &config).await?;
    ensure_eq!(task.stdout(plugin).await?, format!("{LAYERS}\napp\n"));
    task.destroy(plugin).await
}

async fn an_image_with_neither_accounts_nor_directories_runs(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let mut tree = Tree::new();
    tree.host_file(std::path::Path::new("/bin/busybox"), 0o755)?;
    let mut image = case.environment().catalog().busybox(json!({"Entrypoint": ["/bin/busybox"]}))?;
    image.layers = vec![tree.finish()?];
    image.push(case.environment().registry(), "scratch", "v1", Form::Oci)?;
    let script =
        "echo $HOME; busybox ls -d /alloc /local /secrets /proc /dev/null | busybox wc -l; busybox id";
    let config = config! { image = case.image("scratch:v1"), args = ["sh", "-c", script] };
    let task = case.run(plugin, &config).await?;
    ensure_eq!(task.stdout(plugin).await?, "/\n5\nuid=0 gid=0 groups=0\n");
    task.destroy(plugin).await
}

async fn a_working_directory_does_not_lead_into_proc(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let pushed = |name: &str, directory: &str, link: Option<&str>| {
        let mut image =
            case.environment().catalog().with(|tree| link.map_or(Ok(()), |link| tree.link("w", link)))?;
        image.settings["WorkingDir"] = json!(directory);
        image.push(case.environment().registry(), name, "v1", Form::Oci)?;
        anyhow::Ok(case.image(&format!("{name}:v1")))
    };
    for (name, directory, link) in [
        ("wd-proc", "/proc/self/fd/8", None),
        ("wd-up", "/bin/../proc/self/fd", None),
        ("wd-relative", "proc", None),
        ("wd-link", "/w", Some("/proc/self/fd/8")),
        ("wd-link-below", "/w/x", Some("proc/1/cwd")),
        // The runtime makes /dev/fd, a link to /proc/self/fd.
        ("wd-dev", "/dev/fd/8", None),
        ("wd-dev-link", "/w", Some("missing/../dev/fd/8")),
    ] {
        let image = pushed(name, directory, link)?;
        let task = case.prepare(plugin, &config! { image = image, command = "true" }).await?;
        refused(plugin.start_task(task.config.clone()).await, &["/proc", "work_dir"])?;
        // The job's `work_dir` takes precedence over the image's.
        let config = config! { image = image, command = "pwd", work_dir = "/bin" };
        let task = case.run(plugin, &config).await?;
        ensure_eq!(task.stdout(plugin).await?, "/bin\n");
        task.destroy(plugin).await?;
    }
    // As with docker, a relative directory is resolved from the root.
    let task =
        case.run(plugin, &config! { image = pushed("wd-short", "a/./b", None)?, command = "pwd" }).await?;
    ensure_eq!(task.stdout(plugin).await?, "/a/b\n");
    task.destroy(plugin).await?;
    let linked = pushed("wd-job", "/", Some("/proc/self/fd/8"))?;
    let task =
        case.prepare(plugin, &config! { image = linked.clone(), command = "pwd", work_dir = "/w" }).await?;
    refused(plugin.start_task(task.config.clone()).await, &["/w", "/proc/self/fd/8"])?;
    // A task of an earlier attempt may have put the link there.
    let mut own = case.shell("pwd");
    own["work_dir"] = json!("/local/w");
    let task = case.prepare(plugin, &own).await?;
    std::os::unix::fs::symlink("/proc/self/fd/8", task.alloc.task_path("local/w"))?;
    refused(plugin.start_task(task.config.clone()).await, &["/local/w", "/proc/self/fd/8"])?;
    // The link leads out of the task's directory, and from there on by a link of the image's.
    let config = config! { image = linked, command = "pwd", work_dir = "/local/out" };
    let task = case.prepare(plugin, &config).await?;
    std::os::unix::fs::symlink("/w", task.alloc.task_path("local/out"))?;
    refused(plugin.start_task(task.config.clone()).await, &["/local/out", "/proc/self/fd/8"])?;
    Ok(())
}

async fn the_fields_of_an_images_documents_are_read_as_go_reads_them(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let image = case.environment().catalog().busybox(json!({
        "user": "app", "env": ["PATH=/bin", "GREETING=small"], "cmd": ["sh", "-c", "exit 9"], "WORKINGDIR": "/app",
        "User": "root", "uSER": "app", "Labels": {"user": "x"},
    }))?;
    image.push(case.environment().registry(), "any-case", "v1", Form::Oci)?;
    let image = case.image("any-case:v1");
    let script = "echo $(id -un) $GREETING $(pwd)";
    let task = case.run(plugin, &config! { image = image, command = "sh", args = ["-c", script] }).await?;
    ensure_eq!(task.stdout(plugin).await?, "app small /app\n");
    task.destroy(plugin).await?;
    let task = case.run(plugin, &config! { image = image }).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 9);
    task.destroy(plugin).await
}
