//! Paths that a job or an image names: none leads to where the operator does not let it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use anyhow::{Context, Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::fixture::Form;
use harness::fixture::layer::Tree;
use harness::host::Plugin;
use harness::task::LIMIT;
use serde_json::{Value, json};

use crate::cases::support::host_mounts::{host_directory, shell_with};
use crate::cases::support::{cases, ensure_eq, refused, until};

cases!["paths":
    without_volumes_a_job_mounts_what_is_its_allocations_only,
    with_allowed_paths_a_job_mounts_what_is_beneath_them_only,
    directories_of_nomad_and_other_tasks_are_mounted_into_no_task,
    links_that_a_task_has_made_do_not_lead_its_next_start_outside,
    a_directory_of_nomads_that_something_has_replaced_is_not_mounted,
    a_task_can_not_move_the_directories_that_nomad_has_made,
    a_checked_source_is_the_one_mounted_whatever_replaces_it,
    a_source_is_not_looked_for_through_the_kernels_own_links,
    a_target_that_is_a_link_in_the_image_does_not_lead_outside,
    a_plugin_block_that_can_not_be_is_refused,
    a_working_directory_is_made_where_it_is_missing,
    a_working_directory_does_not_lead_outside,
    a_working_directory_that_can_not_be_is_refused_before_anything_is_made,
];

async fn plugin_with(case: &CaseContext, volumes: &Value) -> Result<Plugin> {
    let mut options = case.options();
    options["volumes"] = volumes.clone();
    case.plugin_as(&case.launch(), &options).await
}

/// Returns a configuration for each way to mount a source at `/t`.
fn ways(source: &str) -> [Value; 3] {
    [
        json!({"volumes": [format!("{source}:/t:ro")]}),
        json!({"mount": [{"type": "bind", "source": source, "target": "/t"}]}),
        json!({"mounts": [{"source": source, "target": "/t", "options": ["rbind", "rw"]}]}),
    ]
}

async fn says(case: &CaseContext, plugin: &Plugin, script: &str, more: &Value) -> Result<String> {
    let task = case.run(plugin, &shell_with(case, script, more)).await?;
    let output = task.stdout(plugin).await?;
    task.destroy(plugin).await?;
    Ok(output)
}

async fn is_refused(case: &CaseContext, plugin: &Plugin, source: &str, words: &[&str]) -> Result<()> {
    for more in ways(source) {
        let task = case.prepare(plugin, &shell_with(case, "cat /t/*", &more)).await?;
        refused(plugin.start_task(task.config.clone()).await, words).with_context(|| format!("{more}"))?;
        case.nothing_left()?;
    }
    Ok(())
}

async fn without_volumes_a_job_mounts_what_is_its_allocations_only(case: &CaseContext) -> Result<()> {
    let host = host_directory(case)?;
    let mut plugin = plugin_with(case, &json!({"enabled": false})).await?;
    let option = "volumes.enabled";
    is_refused(case, &plugin, &host.display().to_string(), &[&host.display().to_string(), option]).await?;
    is_refused(case, &plugin, "/", &[option]).await?;
    // The directory of all allocations, and another allocation's.
    is_refused(case, &plugin, &case.directory().join("alloc").display().to_string(), &[option]).await?;
    is_refused(case, &plugin, "../..", &["leads out"]).await?;
    is_refused(case, &plugin, "local/../../../../host", &["leads out"]).await?;
    let mut task = case.prepare(&plugin, &config! { image = case.image("busybox:latest") }).await?;
    let own = task.alloc.directory.join("alloc/data").display().to_string();
    let more = json!({"volumes": [format!("{own}:/own"), "local:/mine", "/made"], "tmpfs": ["/mem"]});
    let script = "touch /own/x /mine/y /made/z /mem/a";
    let again = case.prepare(&plugin, &shell_with(case, script, &more)).await?;
    task.config.msgpack_driver_config = again.config.msgpack_driver_config;
    task.start(&plugin).await?;
    task.stdout(&plugin).await?;
    ensure!(task.alloc.directory.join("alloc/data/x").exists() && task.alloc.task_path("local/y").exists());
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn with_allowed_paths_a_job_mounts_what_is_beneath_them_only(case: &CaseContext) -> Result<()> {
    let host = host_directory(case)?;
    let outside = case.directory().join("outside");
    fs::create_dir_all(&outside)?;
    fs::write(outside.join("secret"), "secret\n")?;
    symlink("sub", host.join("inside"))?;
    symlink("../outside", host.join("up"))?;
    symlink(&outside, host.join("out"))?;
    symlink("up", host.join("twice"))?;
    let root = host.display().to_string();
    let mut plugin =
        plugin_with(case, &json!({"enabled": true, "allowed_paths": ["/no/such/root", root]})).await?;
    for (source, expected) in [
        (root.clone(), "hello from the host\n"),
        (format!("{root}/sub/../."), "hello from the host\n"),
        (format!("{root}/inside"), "deeper\n"),
    ] {
        for more in ways(&source) {
            ensure_eq!(
                says(case, &plugin, "cat /t/greeting /t/deeper 2>/dev/null; true", &more).await?,
                expected
            );
        }
    }
    for path in ["up", "up/secret", "out", "out/secret", "twice", "../outside", "sub/../../outside", ".."] {
        is_refused(case, &plugin, &format!("{root}/{path}"), &["/t", "leads out of", &root]).await?;
    }
    for source in ["/", "/etc", &outside.display().to_string(), &format!("{root}x"), "/proc/self/root"] {
        is_refused(case, &plugin, source, &[source, "volumes.allowed_paths"]).await?;
    }
    is_refused(case, &plugin, "/no/such/root/x", &["/no/such/root"]).await?;
    // A mount from the task's own allocation needs no root.
    ensure_eq!(says(case, &plugin, "touch /t/x; ls /t", &json!({"volumes": ["local:/t"]})).await?, "x\n");
    plugin.shut_down().await
}

/// The logs can be mounted read-only, and nothing else of Nomad's or of other tasks at all.
async fn directories_of_nomad_and_other_tasks_are_mounted_into_no_task(case: &CaseContext) -> Result<()> {
    for volumes in [json!({"enabled": true}), json!({"enabled": false})] {
        let mut plugin = plugin_with(case, &volumes).await?;
        let mut task = case.prepare(&plugin, &case.shell("true")).await?;
        let alloc = task.alloc.directory.clone();
        for directory in ["db/local", "db/secrets", "web/private", "alloc/logs2"] {
            fs::create_dir_all(alloc.join(directory))?;
        }
        let own = |path: &str| alloc.join(path).display().to_string();
        let (sources, logs) = (
            [
                ("..", "docker's driver"),
                (".", "docker's driver"),
                ("local/..", "whole directory of the task"),
                ("local/../..", "whole directory of the allocation"),
                ("../alloc", "/alloc"),
                ("../alloc/data/..", "/alloc"),
                ("../db", "another task's"),
                ("../db/local", "another task's"),
                ("../db/secrets", "another task's"),
                ("private", "Nomad's own"),
                ("private/token", "Nomad's own"),
                ("../web/private", "Nomad's own"),
            ],
            ["../alloc/logs", "../alloc/logs/web.stdout.0"],
        );
        let absolute = ["", "web", "alloc", "db/local", "web/private"].map(|path| (own(path), "can't be"));
        let sources = sources.map(|(source, word)| (source.to_owned(), word));
        for (source, word) in sources.into_iter().chain(absolute) {
            for more in ways(&source) {
                let config = shell_with(case, "ls /t", &more);
                let next = case.prepare(&plugin, &config).await?;
                task.config.msgpack_driver_config = next.config.msgpack_driver_config;
                refused(plugin.start_task(task.config.clone()).await, &[&source, word])
                    .with_context(|| format!("{more}"))?;
            }
        }
        for source in logs {
            // The logs are there only read-only.
            for more in ways(source).into_iter().skip(1) {
                let next = case.prepare(&plugin, &shell_with(case, "ls /t", &more)).await?;
                task.config.msgpack_driver_config = next.config.msgpack_driver_config;
                refused(plugin.start_task(task.config.clone()).await, &[source, "ro", "/alloc/logs"])?;
            }
        }
        case.nothing_left()?;
        fs::write(alloc.join("alloc/logs/web.stdout.0"), "logged\n")?;
        let more = json!({"volumes": ["../alloc/logs:/t:ro", "../alloc/logs2:/u", "secrets:/s"]});
        let script = "cat /t/web.stdout.0; touch /t/x 2>/dev/null && echo written; touch /u/x /s/x";
        let next = case.prepare(&plugin, &shell_with(case, script, &more)).await?;
        task.config.msgpack_driver_config = next.config.msgpack_driver_config;
        task.start(&plugin).await?;
        // Writing the logs fails, writing the other two works.
        ensure_eq!(task.stdout(&plugin).await?, "logged\n");
        ensure!(alloc.join("alloc/logs2/x").exists() && alloc.join("web/secrets/x").exists());
        task.destroy(&plugin).await?;
        plugin.shut_down().await?;
    }
    Ok(())
}

/// Something like a task of another driver, or one with the allocation's directory mounted, has replaced the directory.
async fn a_directory_of_nomads_that_something_has_replaced_is_not_mounted(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let mut task = case.prepare(plugin, &case.shell("ls /local /secrets /alloc; touch /local/x")).await?;
    let alloc = task.alloc.directory.clone();
    let outside = case.directory().join("outside");
    for directory in ["", "logs", "local", "secrets"] {
        fs::create_dir_all(outside.join(directory))?;
    }
    for replaced in ["web/local", "web/secrets", "alloc", "alloc/logs", "web"] {
        let (path, was) = (alloc.join(replaced), alloc.join("was"));
        let shown = path.display().to_string();
        fs::rename(&path, &was)?;
        for target in [outside.as_path(), was.as_path()] {
            symlink(target, &path)?;
            refused(plugin.start_task(task.config.clone()).await, &[&shown, "symbolic link"])
                .with_context(|| replaced.to_owned())?;
            fs::remove_file(&path)?;
        }
        fs::write(&path, "")?;
        refused(
            plugin.start_task(task.config.clone()).await,
            &[replaced.split('/').next().unwrap_or_default()],
        )?;
        fs::remove_file(&path)?;
        fs::rename(&was, &path)?;
        case.nothing_left()?;
    }
    for directory in ["", "logs", "local", "secrets"] {
        ensure!(!outside.join(directory).join("x").exists(), "it was written to");
    }
    task.start(plugin).await?;
    task.stdout(plugin).await?;
    task.destroy(plugin).await
}

async fn a_task_can_not_move_the_directories_that_nomad_has_made(case: &CaseContext) -> Result<()> {
    let script = "for d in /alloc/logs /alloc /local /secrets; do mv $d /moved 2>/dev/null && echo moved $d; \
                  rmdir $d 2>/dev/null && echo removed $d; done; touch /alloc/logs/x 2>/dev/null && echo written; true";
    let more = json!({"volumes": ["../alloc/data:/data", "local:/mine", "secrets:/hidden"]});
    let mut plugin = case.plugin().await?;
    ensure_eq!(says(case, &plugin, script, &more).await?, "");
    plugin.shut_down().await
}

async fn links_that_a_task_has_made_do_not_lead_its_next_start_outside(case: &CaseContext) -> Result<()> {
    let host = host_directory(case)?;
    let mut plugin = plugin_with(case, &json!({"enabled": false})).await?;
    let targets = [
        ("absolute", host.display().to_string()),
        ("relative", format!("../../../../{}", host.file_name().unwrap_or_default().to_string_lossy())),
        ("top", "/".to_owned()),
        ("magic", "/proc/1/root".to_owned()),
    ];
    for (name, target) in targets {
        for source in [format!("local/{name}"), format!("local/{name}/sub")] {
            let more = json!({"volumes": [format!("{source}:/t")]});
            let mut task =
                case.prepare(&plugin, &case.shell(&format!("ln -s {target} /local/{name}"))).await?;
            task.start(&plugin).await?;
            task.stdout(&plugin).await?;
            task.destroy(&plugin).await?;
            task.next_attempt()?;
            let next = case.prepare(&plugin, &shell_with(case, "ls /t; touch /t/x", &more)).await?;
            task.config.msgpack_driver_config = next.config.msgpack_driver_config;
            refused(plugin.start_task(task.config.clone()).await, &["volumes", "/t", "leads out"])?;
            case.nothing_left()?;
        }
    }
    ensure!(!host.join("x").exists() && !host.join("sub/x").exists(), "it was written to");
    plugin.shut_down().await
}

/// Uses a runtime that waits before it creates, so that there is time to put something else in the source's place.
async fn a_checked_source_is_the_one_mounted_whatever_replaces_it(case: &CaseContext) -> Result<()> {
    let host = host_directory(case)?;
    let outside = case.directory().join("outside");
    fs::create_dir_all(&outside)?;
    fs::write(outside.join("deeper"), "secret\n")?;
    let (runtime, reached, go) =
        (case.directory().join("waits"), case.directory().join("reached"), case.directory().join("go"));
    let script = format!(
        "#!/bin/sh\nfor word in \"$@\"; do [ \"$word\" = create ] && {{ touch {}; until [ -e {} ]; do sleep 0.05; done; }}; \
         done\nexec {} \"$@\"\n",
        reached.display(),
        go.display(),
        case.programs().runtime().display()
    );
    fs::write(&runtime, script)?;
    fs::set_permissions(&runtime, Permissions::from_mode(0o755))?;
    let mut options = case.options();
    options["oci_runtime"] = json!(runtime);
    options["volumes"] = json!({"enabled": true, "allowed_paths": [host]});
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let source = host.join("sub");
    let more = json!({"volumes": [format!("{}:/t", source.display())]});
    let mut task = case.prepare(&plugin, &shell_with(case, "cat /t/deeper; touch /t/x", &more)).await?;
    let swap = async {
        until(LIMIT, "the create", || reached.exists()).await?;
        fs::rename(&source, host.join("was"))?;
        symlink(&outside, &source)?;
        Ok(fs::write(&go, "")?)
    };
    let (started, swapped) = tokio::join!(task.start(&plugin), swap);
    swapped.and(started)?;
    ensure_eq!(task.stdout(&plugin).await?, "deeper\n");
    ensure!(host.join("was/x").exists() && !outside.join("x").exists());
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn a_source_is_not_looked_for_through_the_kernels_own_links(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for source in ["/proc/self/root/etc", "/proc/1/cwd", "/proc/thread-self/root", "/proc/self/fd/1"] {
        is_refused(case, plugin, source, &[source, "/proc"]).await?;
    }
    Ok(())
}

async fn a_target_that_is_a_link_in_the_image_does_not_lead_outside(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let host = host_directory(case)?;
    let outside = case.directory().join("outside");
    fs::create_dir_all(&outside)?;
    let up = format!("../../../../../../../..{}", outside.display());
    let image = case.environment().catalog().with(|tree: &mut Tree| {
        tree.link("up", &up)?;
        tree.link("down", &outside.display().to_string())?;
        tree.link("self", "/proc/self/root/data")
    })?;
    image.push(case.environment().registry(), "target-links", "v1", Form::Oci)?;
    for target in ["/up", "/up/new/deep", "/down", "/down/new", "/self/x"] {
        for mount in [
            json!({"type": "bind", "source": host, "target": target, "options": ["rbind", "rw"]}),
            json!({"type": "tmpfs", "target": target}),
        ] {
            let mut config = shell_with(case, &format!("touch {target}/x"), &json!({"mounts": [mount]}));
            config["image"] = json!(case.image("target-links:v1"));
            let mut task = case.prepare(plugin, &config).await?;
            // A runtime may follow the link inside of the root, or refuse.
            if task.start(plugin).await.is_ok() {
                task.wait(plugin).await?;
                task.end(plugin).await?;
            }
            case.nothing_left()?;
            ensure_eq!(fs::read_dir(&outside)?.count(), 0);
        }
    }
    Ok(())
}

async fn a_plugin_block_that_can_not_be_is_refused(case: &CaseContext) -> Result<()> {
    for (volumes, named) in [
        (json!({"allowed_paths": ["srv"]}), "volumes.allowed_paths"),
        (json!({"allowed_paths": ["/srv/../etc"]}), "volumes.allowed_paths"),
        (json!({"selinuxlabel": "z"}), "volumes.selinuxlabel"),
    ] {
        let mut plugin = case.bare_plugin(&case.launch()).await?;
        let mut options = case.options();
        options["volumes"] = volumes;
        let error = plugin.configure(&options).await.err().context("it was taken")?;
        ensure!(format!("{error:#}").contains(named), "{error:#}");
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn a_working_directory_is_made_where_it_is_missing(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    for (option, path, expected) in [
        ("cwd", "/new/deep/down", "/new/deep/down 755 0\n"),
        ("work_dir", "/new/deep/down", "/new/deep/down 755 0\n"),
        ("cwd", "/home/app", "/home/app 755 1000\n"),
        // Where something is mounted, the directory in the mount counts.
        ("cwd", "/local/made", "/local/made 755 0\n"),
        ("cwd", "/mem/made", "/mem/made 755 0\n"),
        ("cwd", "/", "/ 755 0\n"),
    ] {
        let mut more = json!({"tmpfs": ["/mem"]});
        more[option] = json!(path);
        let mut config = shell_with(case, "echo $(pwd) $(stat -c '%a %u' .)", &more);
        for user in ["", "app"] {
            let mut task = case.prepare(plugin, &config).await?;
            task.config.user = user.to_owned();
            task.start(plugin).await?;
            ensure_eq!((path, task.stdout(plugin).await?), (path, expected.to_owned()));
            task.destroy(plugin).await?;
        }
        // An exec has the task's working directory.
        config["args"] = json!(["-c", "sleep 600"]);
        let task = case.run(plugin, &config).await?;
        ensure_eq!(task.exec(plugin, "pwd").await?, (0, format!("{path}\n")));
        task.end(plugin).await?;
    }
    Ok(())
}

async fn a_working_directory_does_not_lead_outside(case: &CaseContext) -> Result<()> {
    let outside = case.directory().join("outside");
    fs::create_dir_all(&outside)?;
    let up = format!("../../../../../../../..{}", outside.display());
    let image = case.environment().catalog().with(|tree: &mut Tree| {
        tree.link("up", &up)?;
        tree.link("down", &outside.display().to_string())?;
        tree.link("magic", "/proc/self/root/../../../..")?;
        tree.link("one", "/proc/1/root")?;
        tree.link("descriptor", "/proc/self/fd/7")?;
        tree.link("loop", "loop")
    })?;
    image.push(case.environment().registry(), "cwd-links", "v1", Form::Oci)?;
    let mut plugin = case.plugin().await?;
    let mut config = case.shell("touch conformance-marked");
    config["image"] = json!(case.image("cwd-links:v1"));
    let tries = [
        "/up",
        "/up/new",
        "/down",
        "/down/new",
        "/magic/conformance-new",
        "/one/conformance-new",
        "/descriptor",
        "/loop/x",
    ];
    for cwd in tries {
        config["cwd"] = json!(cwd);
        let mut task = case.prepare(&plugin, &config).await?;
        // A runtime may follow the link inside of the root, or refuse.
        if task.start(&plugin).await.is_ok() {
            task.wait(&plugin).await?;
            task.end(&plugin).await?;
        }
        case.nothing_left().with_context(|| cwd.to_owned())?;
        ensure_eq!((cwd, fs::read_dir(&outside)?.count()), (cwd, 0));
        for path in ["/conformance-new", "/conformance-marked"] {
            ensure!(!fs::exists(path)?, "{cwd} has made {path}");
        }
    }
    plugin.shut_down().await
}

async fn a_working_directory_that_can_not_be_is_refused_before_anything_is_made(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for (more, words) in [
        (json!({"cwd": "relative"}), &["cwd", "relative"][..]),
        (json!({"cwd": "/a/../../etc"}), &["cwd", "/a/../../etc"]),
        (json!({"work_dir": "/.."}), &["work_dir", "/.."]),
        (json!({"cwd": "/proc/self/fd/7"}), &["cwd", "/proc/self/fd/7"]),
        (json!({"cwd": "/a", "work_dir": "/b"}), &["cwd", "/a", "work_dir", "/b"]),
    ] {
        let task = case.prepare(plugin, &shell_with(case, "true", &more)).await?;
        refused(plugin.start_task(task.config.clone()).await, words)?;
        case.nothing_left()?;
    }
    Ok(())
}
