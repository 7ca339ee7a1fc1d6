//! Mounts of a job: they are there, as writable and as large as asked for, and gone at the end, with the host's own
//! files unharmed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use harness::context::CaseContext;
use harness::host::{Exec, Plugin};
use harness::leaks::inspect;
use harness::task::LIMIT;
use nix::mount::MsFlags;
use nomad_proto::driver as pb;
use serde_json::{Value, json};

use crate::cases::support::host_mounts::{HostMounts, bind, host_directory, shell_with};
use crate::cases::support::{cases, ensure_eq, refused, until};

cases!["mounts":
    a_bind_mount_shows_the_hosts_files_and_is_read_only_on_request,
    a_relative_source_is_in_the_tasks_directory,
    a_volume_without_a_source_is_the_allocations,
    a_tmpfs_has_the_options_it_asks_for,
    shared_memory_has_the_size_it_asks_for,
    what_is_below_another_mount_is_seen_whatever_the_order,
    dockers_block_mounts_as_in_docker,
    the_hosts_dev_takes_the_place_of_the_containers,
    what_can_not_be_mounted_is_refused_before_anything_is_made,
    a_volume_mount_is_not_mounted_over,
    what_is_mounted_below_a_read_only_source_is_read_only_too,
    what_the_operator_has_mounted_read_only_stays_so,
    a_failed_start_leaves_no_mount,
    a_start_that_the_plugin_does_not_survive_leaves_no_mount,
];

/// Returns the output of a script in a task with more options.
pub(super) async fn stdout_of(case: &CaseContext, script: &str, more: &Value) -> Result<String> {
    let mut plugin = case.plugin().await?;
    let task = case.run(&plugin, &shell_with(case, script, more)).await?;
    let output = task.stdout(&plugin).await?;
    task.destroy(&plugin).await?;
    case.nothing_left()?;
    plugin.shut_down().await?;
    Ok(output)
}

async fn a_bind_mount_shows_the_hosts_files_and_is_read_only_on_request(case: &CaseContext) -> Result<()> {
    let host = host_directory(case)?;
    let mounts = json!([
        bind(&host, "/ro", &["rbind", "ro"]),
        bind(&host, "/new/rw", &["rbind", "rw", "nosuid"]),
        bind(host.join("greeting"), "/etc/greeting", &["bind", "ro", "noexec"]),
    ]);
    let script = "cat /ro/greeting /etc/greeting /new/rw/sub/deeper; echo new > /new/rw/made; cat /ro/made; \
                  touch /ro/x 2>/dev/null && echo written; (echo x >> /etc/greeting) 2>/dev/null && echo written; \
                  grep -E ' /(ro|new/rw|etc/greeting) ' /proc/mounts | cut -d' ' -f2,4 | cut -d, -f1,2,3";
    let output = stdout_of(case, script, &json!({"mounts": mounts})).await?;
    let (files, table) = output.split_at(output.find("/ro ").context(output.clone())?);
    ensure_eq!(files, "hello from the host\nhello from the host\ndeeper\nnew\n");
    for words in ["/ro ro", "/new/rw rw,nosuid", "/etc/greeting ro"] {
        ensure!(table.contains(words), "{words:?} is not in {table}");
    }
    ensure!(table.contains("noexec"), "{table}");
    ensure_eq!(fs::read_to_string(host.join("made"))?, "new\n");
    Ok(())
}

async fn a_relative_source_is_in_the_tasks_directory(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let script = "cat /given /data/given; echo made > /made/file; echo w > /again/w";
    let more = json!({
        "mounts": [bind("local/given", "/given", &["rbind", "ro"])],
        "volumes": ["../alloc/data:/data:ro", "local/made/here:/made", "./local/made:/again:rw,z"],
    });
    let mut task = case.prepare(plugin, &shell_with(case, script, &more)).await?;
    fs::write(task.alloc.task_path("local/given"), "local\n")?;
    fs::write(task.alloc.directory.join("alloc/data/given"), "alloc\n")?;
    task.start(plugin).await?;
    ensure_eq!(task.stdout(plugin).await?, "local\nalloc\n");
    ensure_eq!(fs::read_to_string(task.alloc.task_path("local/made/here/file"))?, "made\n");
    ensure_eq!(fs::read_to_string(task.alloc.task_path("local/made/w"))?, "w\n");
    task.destroy(plugin).await
}

async fn a_volume_without_a_source_is_the_allocations(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let script =
        "(ls /var/lib/data | wc -l; id -un) > /alloc/data/said; touch /var/lib/data/x && touch /short/y";
    let more = json!({"mounts": [{"target": "/var/lib/data"}], "volumes": ["/short"]});
    let mut task = case.prepare(plugin, &shell_with(case, script, &more)).await?;
    task.config.user = "app".to_owned();
    for files in 0..2 {
        task.start(plugin).await?;
        ensure_eq!(task.wait(plugin).await?.exit_code, 0);
        let output = fs::read_to_string(task.alloc.directory.join("alloc/data/said"))?;
        ensure_eq!(output, format!("{files}\napp\n"));
        task.destroy(plugin).await?;
        case.nothing_left()?;
        task.next_attempt()?;
    }
    let volumes = task.alloc.task_path("volumes");
    ensure!(
        volumes.join("var%2Flib%2Fdata/x").exists() && volumes.join("short/y").exists(),
        "not in the task's directory"
    );
    Ok(())
}

async fn a_tmpfs_has_the_options_it_asks_for(case: &CaseContext) -> Result<()> {
    let more = json!({
        "mounts": [{"type": "tmpfs", "target": "/one", "options": ["size=2m", "mode=0750", "uid=1000", "gid=2000", "ro"]}],
        "tmpfs": ["/two", "/three:size=50%,exec,nr_inodes=2k"],
    });
    let script = "stat -c '%a %u %g %n' /one; df -k /one | tail -n 1 | tr -s ' ' | cut -d' ' -f2; \
                  touch /two/x /three/x && touch /one/x 2>/dev/null || echo read-only; \
                  grep -E ' /(one|two|three) ' /proc/mounts | cut -d' ' -f2-4";
    let output = stdout_of(case, script, &more).await?;
    let mut lines = output.lines();
    ensure_eq!(lines.next(), Some("750 1000 2000 /one"));
    ensure_eq!(lines.next(), Some("2048"));
    ensure_eq!(lines.next(), Some("read-only"));
    let table: Vec<&str> = lines.collect();
    let of = |target: &str| table.iter().copied().find(|line| line.starts_with(target)).unwrap_or_default();
    ensure!(of("/one tmpfs ro,nosuid,nodev").contains("size=2048k"), "{table:?}");
    ensure!(!of("/two tmpfs rw,nosuid,nodev,noexec").is_empty(), "{table:?}");
    let three = of("/three tmpfs rw,nosuid,nodev");
    ensure!(three.contains("nr_inodes=2048") && !three.contains("noexec"), "{table:?}");
    Ok(())
}

async fn shared_memory_has_the_size_it_asks_for(case: &CaseContext) -> Result<()> {
    let script = "df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d' ' -f2; stat -c %a /dev/shm";
    for (more, kib) in [
        (json!({}), "65536"),
        (json!({"shm_size": "1m"}), "1024"),
        (json!({"shm_size": 8_388_608}), "8192"),
        (json!({"tmpfs": ["/dev/shm:size=3m,mode=1777"]}), "3072"),
    ] {
        ensure_eq!(stdout_of(case, script, &more).await?, format!("{kib}\n1777\n"));
    }
    Ok(())
}

async fn what_is_below_another_mount_is_seen_whatever_the_order(case: &CaseContext) -> Result<()> {
    let host = host_directory(case)?;
    let mut plugin = case.plugin().await?;
    let more = json!({
        "mounts": [bind(host.join("greeting"), "/data/one/greeting", &["rbind", "ro"])],
        "tmpfs": ["/data/one", "/data"],
    });
    let script = "cat /data/one/greeting /data/one/two/deeper; touch /data/x /data/one/x; ls /data/one";
    let mut task = case.prepare(&plugin, &shell_with(case, script, &more)).await?;
    task.config.mounts.push(pb::Mount {
        task_path: "/data/one/two".to_owned(),
        host_path: host.join("sub").display().to_string(),
        readonly: true,
        ..pb::Mount::default()
    });
    task.start(&plugin).await?;
    ensure_eq!(task.stdout(&plugin).await?, "hello from the host\ndeeper\ngreeting\ntwo\nx\n");
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn dockers_block_mounts_as_in_docker(case: &CaseContext) -> Result<()> {
    let host = host_directory(case)?;
    let more = json!({"mount": [
        {"type": "bind", "source": host, "target": "/rw"},
        {"type": "bind", "source": host, "target": "/ro", "readonly": true},
        {"type": "tmpfs", "target": "/mem", "tmpfs_options": {"size": 1_048_576, "mode": 448}},
        {"type": "volume", "target": "/vol"},
    ]});
    let script = "cat /ro/greeting; touch /rw/x /vol/x && touch /ro/x 2>/dev/null || echo read-only; stat -c %a /mem; \
                  grep ' /mem ' /proc/mounts | grep -o size=1024k";
    ensure_eq!(stdout_of(case, script, &more).await?, "hello from the host\nread-only\n700\nsize=1024k\n");
    Ok(())
}

async fn the_hosts_dev_takes_the_place_of_the_containers(case: &CaseContext) -> Result<()> {
    let names = || -> Result<Vec<_>> {
        let mut names =
            fs::read_dir("/dev")?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    let before = names()?;
    let mut plugin = case.plugin().await?;
    let config = shell_with(case, "echo up; sleep 600", &json!({"volumes": ["/dev:/dev"]}));
    let task = case.run(&plugin, &config).await?;
    let script = "echo x > /dev/null && head -c 1 /dev/zero | wc -c; grep -c ' /dev tmpfs' /proc/mounts";
    ensure_eq!(task.exec(&plugin, script).await?.1, "1\n0\n");
    let mut exec =
        Exec::open(&plugin, task.id(), &["sh", "-c", "tty && echo on a terminal; sleep 600"], true).await?;
    exec.stdout_to_contain("on a terminal", LIMIT).await?;
    task.end(&plugin).await?;
    case.nothing_left()?;
    ensure_eq!(names()?, before);
    plugin.shut_down().await
}

async fn what_can_not_be_mounted_is_refused_before_anything_is_made(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let host = host_directory(case)?;
    let missing = host.join("missing");
    let shown = missing.display().to_string();
    let cases: [(Value, &[&str]); 14] = [
        (json!({"mounts": [bind(&host, "/t", &["ro"])]}), &["mounts", "/t", "rbind"]),
        (json!({"mounts": [bind(&host, "/t", &["rbind"])]}), &["mounts", "/t", "\"ro\""]),
        (json!({"mounts": [bind(&host, "t", &["rbind", "ro"])]}), &["mounts", "\"t\"", "absolute"]),
        (json!({"mounts": [bind(&host, "/a/../t", &["rbind", "ro"])]}), &["mounts", "/a/../t"]),
        (json!({"mounts": [bind(&missing, "/t", &["rbind", "ro"])]}), &["mounts", "/t", &shown]),
        (json!({"mount": [{"type": "bind", "source": missing, "target": "/t"}]}), &["mount", "/t", &shown]),
        (json!({"volumes": [format!("{shown}:/t")]}), &["volumes", "/t", &shown]),
        (json!({"mounts": [{"target": "/t", "source": "name"}]}), &["mounts", "name", "volume_mount"]),
        (json!({"tmpfs": ["/secrets"]}), &["tmpfs", "/secrets"]),
        (json!({"tmpfs": ["/proc/sys"]}), &["tmpfs", "/proc/sys"]),
        (json!({"tmpfs": ["/t", "/t/"]}), &["tmpfs", "/t"]),
        (json!({"tmpfs": ["/t:size=huge"]}), &["tmpfs", "/t", "size=huge"]),
        (json!({"shm_size": "64 apples"}), &["shm_size", "64 apples"]),
        (json!({"mounts": [bind(&host, "/t", &["rbind", "ro", "rshared"])]}), &["/t", "shared mount"]),
    ];
    // Neither an image nor a log is needed for a refusal.
    for (more, words) in cases {
        let mut config = shell_with(case, "true", &more);
        config["image"] = json!("127.0.0.1:1/no/such:image");
        let task = case.prepare(plugin, &config).await?;
        refused(plugin.start_task(task.config.clone()).await, words).with_context(|| format!("{more}"))?;
        case.nothing_left()?;
    }
    case.still_works(plugin).await
}

async fn a_volume_mount_is_not_mounted_over(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let host = host_directory(case)?;
    for (more, option) in [
        (json!({"tmpfs": ["/data"]}), "tmpfs"),
        // The second tmpfs hides the volume mount, the first one doesn't.
        (json!({"tmpfs": ["/scratch", "/data"]}), "tmpfs"),
        (json!({"volumes": ["local/a:/a", "local/b:/data"]}), "volumes"),
        (json!({"volumes": ["local/a:/a"], "mount": [{"type": "tmpfs", "target": "/data"}]}), "mount"),
    ] {
        let mut task = case.prepare(plugin, &shell_with(case, "cat /data/greeting", &more)).await?;
        task.config.mounts.push(volume_mount(&host, "/data/", false));
        refused(plugin.start_task(task.config.clone()).await, &[option, "/data", "volume_mount"])?;
        case.nothing_left()?;
    }
    Ok(())
}

fn volume_mount(host: &Path, task_path: &str, readonly: bool) -> pb::Mount {
    pb::Mount {
        task_path: task_path.to_owned(),
        host_path: host.display().to_string(),
        readonly,
        ..pb::Mount::default()
    }
}

async fn what_is_mounted_below_a_read_only_source_is_read_only_too(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let host = host_directory(case)?;
    let _mounts = HostMounts::nested(&host)?;
    let script = "cat '/t/sub/a b/deepest'; for d in /t /t/sub '/t/sub/a b'; do \
                  touch \"$d/x\" 2>/dev/null && echo written in $d; done; \
                  grep ' /t' /proc/mounts | cut -d' ' -f2,4 | cut -d, -f1,2,3";
    for (way, more) in [
        ("volumes", json!({"volumes": [format!("{}:/t:ro", host.display())]})),
        ("mounts", json!({"mounts": [bind(&host, "/t", &["rbind", "ro"])]})),
        ("mount", json!({"mount": [{"type": "bind", "source": host, "target": "/t", "readonly": true}]})),
        ("volume_mount", json!({})),
    ] {
        let mut task = case.prepare(plugin, &shell_with(case, script, &more)).await?;
        if way == "volume_mount" {
            task.config.mounts.push(volume_mount(&host, "/t", true));
        }
        task.start(plugin).await?;
        let output = task.stdout(plugin).await?;
        let lines: Vec<&str> = output.lines().collect();
        ensure_eq!((way, lines.len(), lines.first()), (way, 4, Some(&"deepest")));
        ensure!(lines[1].starts_with("/t ro") && lines[2].starts_with("/t/sub ro"), "{way}: {output}");
        ensure!(lines[2].contains("noexec") && lines[3].contains("a\\040b ro,nosuid"), "{way}: {output}");
        task.destroy(plugin).await?;
        case.nothing_left()?;
    }
    // The mounts are read-only only for the tasks: the host can still write.
    fs::write(host.join("sub/a b/written"), "")?;
    fs::write(host.join("sub/written"), "")?;
    Ok(())
}

async fn what_the_operator_has_mounted_read_only_stays_so(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let host = host_directory(case)?;
    let script = "touch /t/x 2>/dev/null && echo written; grep ' /t ' /proc/mounts | cut -d' ' -f4";
    for (flags, is) in [
        (MsFlags::MS_RDONLY, &["ro"][..]),
        (MsFlags::MS_RDONLY | MsFlags::MS_NODEV, &["ro", "nodev"]),
        (MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, &["rw", "nosuid", "noexec"]),
    ] {
        let _mounts = HostMounts::over(&host, flags)?;
        for options in ["rw", "rw,nosuid", "noatime", "rw,exec,dev,suid", "ro"] {
            let more = json!({"volumes": [format!("{}:/t:{options}", host.display())]});
            let task = case.run(plugin, &shell_with(case, script, &more)).await?;
            let output = task.stdout(plugin).await?;
            ensure!(output.contains("written") == (is[0] == "rw" && options != "ro"), "{options}: {output}");
            let table: Vec<&str> = output.lines().last().unwrap_or_default().split(',').collect();
            let is = is.iter().filter(|flag| options != "ro" || **flag != "rw");
            for flag in is {
                ensure!(table.contains(flag), "{options}, {flags:?}: no {flag} in {output}");
            }
            task.destroy(plugin).await?;
        }
        // The same directory as a volume of Nomad's own.
        let mut task = case.prepare(plugin, &shell_with(case, script, &json!({}))).await?;
        task.config.mounts.push(volume_mount(&host, "/t", true));
        task.start(plugin).await?;
        let output = task.stdout(plugin).await?;
        for flag in is.iter().filter(|flag| **flag != "rw").chain(&["ro"]) {
            ensure!(
                output.trim_end().split(',').any(|there| there == *flag),
                "{flags:?}: no {flag} in {output}"
            );
        }
        task.destroy(plugin).await?;
        case.nothing_left()?;
    }
    Ok(())
}

async fn a_failed_start_leaves_no_mount(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let host = host_directory(case)?;
    let mut config = case.shell("true");
    config["command"] = json!("/no/such/program");
    config["volumes"] = json!([format!("{}:/a", host.display()), format!("{}/greeting:/b", host.display())]);
    let task = case.prepare(plugin, &config).await?;
    refused(plugin.start_task(task.config.clone()).await, &["/no/such/program"])?;
    case.nothing_left()?;
    ensure_eq!(fs::read_to_string(host.join("sub/deeper"))?, "deeper\n");
    Ok(())
}

async fn a_start_that_the_plugin_does_not_survive_leaves_no_mount(case: &CaseContext) -> Result<()> {
    let host = host_directory(case)?;
    let (runtime, reached) = (case.directory().join("hangs"), case.directory().join("reached"));
    let script = format!(
        "#!/bin/sh\nfor word in \"$@\"; do [ \"$word\" = create ] && [ ! -e {0} ] && {{ touch {0}; exec sleep 600; }}; done\n\
         exec {1} \"$@\"\n",
        reached.display(),
        case.programs().runtime().display()
    );
    fs::write(&runtime, script)?;
    fs::set_permissions(&runtime, Permissions::from_mode(0o755))?;
    let mut options = case.options();
    options["oci_runtime"] = json!(runtime);
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let more =
        json!({"volumes": [format!("{}:/a", host.display()), format!("{}/greeting:/b", host.display())]});
    let task = case.prepare(&plugin, &shell_with(case, "sleep 600", &more)).await?;
    tokio::select! {
        started = plugin.start_task(task.config.clone()) => bail!("it was not held up: {started:?}"),
        there = until(LIMIT, "the create", || reached.exists()) => there?,
    }
    let pinned = inspect::mounts_under(&case.state_dir());
    // A staged mount for files, one for sources, Nomad's four directories and the job's two.
    ensure_eq!(pinned.iter().filter(|point| !point.ends_with("rootfs")).count(), 8);
    let mut next = case.next_plugin_with(&mut plugin, &options).await?;
    case.nothing_left_within(LIMIT * 2)?;
    ensure_eq!(fs::read_to_string(host.join("greeting"))?, "hello from the host\n");
    ensure_eq!(fs::read_to_string(host.join("sub/deeper"))?, "deeper\n");
    case.still_works(&next).await?;
    next.shut_down().await
}
