//! Cases of tasks in gVisor's sandboxes: what a task has there, what it can't have, and that nothing of a sandbox is
//! left however it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::context::Scene;
use harness::host::alloc::set_memory;
use harness::host::cgroup::is_v2;
use harness::host::stats::Stats;
use harness::host::{Exec, Plugin};
use harness::leaks::inspect::{children, find_processes};
use harness::leaks::report::NULL_NETNS;
use harness::leaks::sweep;
use harness::task::{LIMIT, Task};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nomad_proto::driver as pb;
use serde_json::{Value, json};

use super::logs::prepare_unlogged;
use super::mounts::{HostMounts, host_directory};
use super::recover::shim_pid;
use super::runtimes::Noting;
use super::script_check::SCRIPTS_WITH_CHILDREN;
use super::shared_networks::GroupNetwork;
use super::web_server::{beside, with};
use super::{cases, refused, same, until};

cases!["gvisor":
    a_task_runs_on_a_kernel_of_its_own,
    tasks_that_end_at_once_show_their_codes,
    output_that_goes_nowhere_can_be_written,
    a_sandbox_that_is_killed_is_told_and_leaves_nothing,
    a_sandbox_that_runs_out_of_memory_is_told,
    a_keeper_that_is_killed_leaves_a_task_that_ends_with_its_shim,
    a_task_that_ends_while_nobody_is_there_keeps_its_code,
    the_operators_file_counts_and_the_drivers_root,
    an_operators_file_that_can_not_be_used_is_named,
    what_a_sandbox_can_not_have_is_refused_by_name,
    what_is_mounted_read_only_is_not_written_wherever_below,
    tasks_of_a_group_share_its_network_and_a_restart_has_it_again,
    a_task_of_another_runtime_runs_beside_it,
    its_use_of_the_machine_is_what_the_kernel_counts,
    its_processes_have_the_tasks_own_oom_score,
    a_plugin_that_is_replaced_under_it_starts_others_and_the_next_goes_on,
    a_runsc_that_hangs_when_the_plugin_dies_leaves_nothing,
    a_task_that_has_lost_its_bundle_keeps_its_runsc_and_its_code,
    what_a_script_has_started_is_killed_with_it_at_its_timeout,
    a_command_that_leaves_something_in_the_background_ends,
    a_command_that_runs_when_the_plugin_dies_is_killed_by_the_next,
    a_task_has_the_limits_that_the_kernel_has_and_is_not_started_without,
];

/// Prefixes of the names of other cases that don't hold in a sandbox, each with the reason.
pub const NOT_IN_A_SANDBOX: &[(&str, &str)] = &[
    ("account: a running task is seen in all its parts", OTHER_PARTS),
    ("devices: devices of nomads device plugins are there", REFUSED),
    ("ends: a child killed for want of memory", AS_A_WHOLE),
    (
        "ends: a kill is told from a code of the same number",
        "a sandbox tells of a signal as a code of 128 + n",
    ),
    ("ends::a_child_killed_for_want_of_memory_is_an_event", AS_A_WHOLE),
    ("environment::the_memory_limit_is_the_jobs", INSIDE),
    ("exec::a_terminal_has_the_size_of_the_callers", TERMINAL),
    ("exec::a_caller_that_is_killed_takes_its_command_along", PROCESSES),
    ("exec::what_it_writes_is_in_the_task_and_not_on_the_host", INSIDE),
    ("exec end: one in a task that ends ends with it", PROCESSES),
    ("exec terminal: a terminal has the size that it was given", TERMINAL),
    ("exec terminal: the first process ends it", PROCESSES),
    ("exec: an exec is what the task is", INSIDE),
    ("exec: an exec sees the tasks files and environment", INSIDE),
    ("exec: what an exec writes is in the task and not on the host", INSIDE),
    ("limits: a task has no more processes than its pids limit", PIDS),
    ("limits: the operators pids limit is the default and the most", PIDS),
    ("limits: a task runs on the processors that the job names", INSIDE),
    ("limits: how likely a task is killed for memory", INSIDE),
    ("limits: the score for the oom killer is that of the job and not the shims", INSIDE),
    ("modes: a task shares what it asks for and nothing else", REFUSED),
    ("modes: a task that sees its own control group alone sees it as the root", REFUSED),
    ("modes: parameters of the kernel are set where they are the tasks", REFUSED),
    ("modes: the hosts shared memory is seen where it is shared", REFUSED),
    (
        "mounts: a tmpfs has the options it asks for",
        "a file system in memory has the default size written out",
    ),
    ("mounts: the hosts dev takes the place of the containers", "a sandbox has devices of its own"),
    ("mounts: what can not be mounted is refused before anything is made", REFUSED),
    (
        "mounts: what is mounted below a read only source is read only too",
        "a mount is one, whatever is mounted below it",
    ),
    (
        "mounts: what the operator has mounted read only stays so",
        "a source that is mounted read-only is not mounted to write",
    ),
    ("mounts: a start that the plugin does not survive leaves no mount", OTHER_PARTS),
    ("networks: a task gets the address and the names that it asks for", SYS),
    ("networks: without a network a task has its loopback alone", SYS),
    ("networks::the_hosts_network_a_described_one_and_none", SYS),
    ("networks::twenty_tasks_at_once", "a sandbox needs more memory than twenty of them have there"),
    ("options::cpuset_cpus", INSIDE),
    ("options::defaults", INSIDE),
    ("options::devices", REFUSED),
    ("options::host_network", SYS),
    ("options::ipc_mode", REFUSED),
    ("options::mac_address", SYS),
    ("options::memory_", INSIDE),
    ("options::no_new_privileges", INSIDE),
    ("options::oom_score_adj", INSIDE),
    ("options::pid_mode", REFUSED),
    ("options::pids_limit", PIDS),
    ("options::privileged", REFUSED),
    ("options::readonly_rootfs", "a sandbox has a /tmp of its own, in memory"),
    ("options::resources", INSIDE),
    ("options::seccomp_profile", REFUSED),
    ("options::security_opt", INSIDE),
    ("options::snapshotter", INSIDE),
    ("options::sysctl", REFUSED),
    ("options::uts_mode", REFUSED),
    ("process: a task with a terminal has all its output in one", TERMINAL),
    ("resources::a_task_makes_room_for_one_with_cores_and_gets_them_back", INSIDE),
    ("resources: a task follows nomads shared processors", INSIDE),
    ("resources: a task with cores of its own runs on them", INSIDE),
    ("script check: at its timeout", PROCESSES),
    ("script check: one that leaves something in the background ends", PROCESSES),
    ("script check: one that takes too long is called off", PROCESSES),
    ("script check: one whose caller goes away is killed", PROCESSES),
    ("shared networks: a task is in the network of another one of its allocation", SYS),
    ("shim failure: a lost shim whose clean up fails leaves nothing that runs", PROCESSES),
    ("shim failure: a runtime that fails", "its shim quotes the log of the runtime alone"),
    ("stats: cpu time is what the kernel counts", PIPES),
    ("stats: memory is what the kernel counts", PIPES),
    ("stop: a task among the hosts processes", REFUSED),
];
const AS_A_WHOLE: &str = "the kernel kills a sandbox as a whole";
const INSIDE: &str = "the kernel that a task sees is its own, and tells nothing of the host's";
const OTHER_PARTS: &str = "a task has other parts there";
const PIDS: &str = "the threads of the sandbox count, too";
const PIPES: &str = "a pipe of the host's is not opened from a sandbox";
const PROCESSES: &str = "a task's processes are none of the host's";
const SYS: &str = "the interfaces are not in the sandbox's /sys, though they can be used";
const TERMINAL: &str = "a terminal has no name in a sandbox";
const REFUSED: &str = "it is refused, see what a sandbox can not have";

async fn a_task_runs_on_a_kernel_of_its_own(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let task = scene.run(&plugin, &scene.shell("dmesg; echo kept > /alloc/kept; exit 4")).await?;
    same!(task.wait(&plugin).await?.exit_code, 4);
    let said = String::from_utf8_lossy(&task.alloc.stdout.to_end(LIMIT).await?).into_owned();
    ensure!(said.contains("gVisor"), "the kernel says {said:?}");
    same!(fs::read_to_string(task.alloc.directory.join("alloc/kept"))?, "kept\n");
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn tasks_that_end_at_once_show_their_codes(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    for code in [0, 1, 0, 77, 0, 128] {
        let task = scene.run(&plugin, &scene.shell(&format!("exit {code}"))).await?;
        same!(task.wait(&plugin).await?.exit_code, code);
        task.destroy(&plugin).await?;
    }
    plugin.shut_down().await
}

async fn output_that_goes_nowhere_can_be_written(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let script = "head -c 1000000 /dev/zero && head -c 1000000 /dev/zero >&2 && exit 4";
    let mut task = prepare_unlogged(scene, &plugin, script).await?;
    task.start(&plugin).await?;
    same!(task.wait(&plugin).await?.exit_code, 4);
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn a_sandbox_that_is_killed_is_told_and_leaves_nothing(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    for recovered in [false, true] {
        let task = scene.run(&plugin, &scene.shell("sleep 600")).await?;
        if recovered {
            plugin = scene.next_plugin(&mut plugin).await?;
            task.recover(&plugin).await?;
        }
        kill(sandbox(&task)?, Signal::SIGKILL)?;
        let exit = task.wait(&plugin).await?;
        same!((exit.exit_code, exit.signal, exit.oom_killed), (137, 9, false));
        until(LIMIT, "the end of its processes", || task.alloc.cgroup.pids().is_empty()).await?;
        task.destroy(&plugin).await?;
        scene.nothing_left()?;
    }
    plugin.shut_down().await
}

async fn a_sandbox_that_runs_out_of_memory_is_told(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    // A tmpfs has half of the sandbox's memory.
    let script = "for at in a b c d; do dd if=/dev/urandom of=/$at/file bs=1M count=40; done; exit 0";
    let all = json!(["/a", "/b", "/c", "/d"]);
    let mut task = scene.prepare(&plugin, &with(scene, script, &[("tmpfs", all)])).await?;
    set_memory(&mut task.config, 100, 0);
    task.start(&plugin).await?;
    let exit = task.wait(&plugin).await?;
    let said = String::from_utf8_lossy(&task.alloc.stderr.to_end(LIMIT).await?).into_owned();
    ensure!(exit.exit_code == 137 && exit.oom_killed, "{exit:?}, and it said {said}");
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

/// Returns the process of a task's sandbox, found by the name that it gives itself.
fn sandbox(task: &Task) -> Result<Pid> {
    let pids = task.alloc.cgroup.pids();
    let is_sandbox = |pid: &&i32| command_line(**pid).starts_with("runsc-sandbox");
    Ok(Pid::from_raw(*pids.iter().find(is_sandbox).with_context(|| format!("no sandbox among {pids:?}"))?))
}

fn command_line(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ")
}

/// Returns the files of runsc's state directory for containers, without the one that newer releases keep for all.
fn known_to_runsc(scene: &Scene) -> Vec<PathBuf> {
    let kept = scene.state_dir().join(NULL_NETNS);
    children(&scene.state_dir().join("runsc/nomad")).into_iter().filter(|file| *file != kept).collect()
}

/// Returns the process of the keeper of a case's only task.
fn keeper(scene: &Scene) -> Result<Pid> {
    let found = find_processes(&scene.state_dir());
    let keeper = found.iter().find(|process| process.command.starts_with("gvisor-keeper"));
    Ok(Pid::from_raw(keeper.with_context(|| format!("no keeper among {found:?}"))?.pid))
}

async fn a_keeper_that_is_killed_leaves_a_task_that_ends_with_its_shim(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let task = scene.run(&plugin, &scene.shell("sleep 600")).await?;
    kill(keeper(scene)?, Signal::SIGKILL)?;
    let waiting = task.wait_answer(&plugin);
    // The shim has an event to send for the exec, and ends since nobody takes it.
    let _ = task.exec(&plugin, "true").await;
    let answer = waiting.await?;
    ensure!(answer.err.contains("shim"), "WaitTask's err is {:?}", answer.err);
    until(LIMIT, "the end of its processes", || task.alloc.cgroup.pids().is_empty()).await?;
    task.destroy(&plugin).await?;
    scene.nothing_left()?;
    plugin.shut_down().await
}

async fn a_task_that_ends_while_nobody_is_there_keeps_its_code(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let task = scene.run(&plugin, &scene.shell("sleep 2; exit 9")).await?;
    plugin.kill().await?;
    until(LIMIT, "the task's end", || task.alloc.cgroup.pids().is_empty()).await?;
    // Time for the events that the shim sends.
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(shim_pid(scene).is_ok(), "its shim is gone");
    let mut next = scene.plugin().await?;
    task.recover(&next).await?;
    same!(task.wait(&next).await?.exit_code, 9);
    task.destroy(&next).await?;
    next.shut_down().await
}

/// Returns the plugin's options with an operator's file of this content.
fn with_file(scene: &Scene, content: &str) -> Result<Value> {
    let file = scene.directory().join("runsc.toml");
    fs::create_dir_all(scene.directory())?;
    fs::write(&file, content)?;
    let mut options = scene.options();
    options["runtime_options"] = json!([{"runtime": scene.programs().shim_runtime(), "config_path": file}]);
    Ok(options)
}

async fn the_operators_file_counts_and_the_drivers_root(scene: &Scene) -> Result<()> {
    let options =
        with_file(scene, "root = \"/nowhere\"\n[runsc_config]\noverlay2 = \"none\"\nnetwork = \"none\"\n")?;
    let mut plugin = scene.plugin_as(&scene.launch(), &options).await?;
    let task = scene.run(&plugin, &scene.shell("sleep 600")).await?;
    let command = command_line(sandbox(&task)?.as_raw());
    let root = format!("--root={}", scene.state_dir().join("runsc/nomad").display());
    for flag in ["--overlay2=none", "--network=none", &root] {
        ensure!(command.contains(flag), "{flag} is not in {command}");
    }
    // A later change of the operator's file holds for later tasks only.
    fs::write(scene.directory().join("runsc.toml"), "this is no TOML")?;
    same!(task.exec(&plugin, "echo works").await?, (0, "works\n".to_owned()));
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn an_operators_file_that_can_not_be_used_is_named(scene: &Scene) -> Result<()> {
    for (content, word) in [
        ("binary_name =", "TOML"),
        ("[runsc_config]\nignore-cgroups = \"true\"\n", "ignore-cgroups"),
        ("[runsc_config]\nnetwork = \"sandbox\"\n", "runsc_config.network"),
        ("binary_name = \"/no/such/runsc\"\n", "/no/such/runsc"),
    ] {
        let mut options = with_file(scene, content)?;
        options["oci_runtime"] = Value::Null;
        let mut plugin = scene.plugin_as(&scene.launch(), &options).await?;
        let task = scene.prepare(&plugin, &scene.shell("true")).await?;
        refused(plugin.start_task(task.config.clone()).await, &[word])?;
        scene.nothing_left()?;
        plugin.shut_down().await?;
    }
    let mut options = with_file(scene, "")?;
    options["runtime_options"][0]["config_path"] = json!("/no/such/file.toml");
    let mut plugin = scene.plugin_as(&scene.launch(), &options).await?;
    let task = scene.prepare(&plugin, &scene.shell("true")).await?;
    let words = ["runtime_options.config_path", "/no/such/file.toml"];
    refused(plugin.start_task(task.config.clone()).await, &words)?;
    plugin.shut_down().await
}

async fn what_a_sandbox_can_not_have_is_refused_by_name(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    for (option, value) in [
        ("pid_mode", json!("host")),
        ("ipc_mode", json!("host")),
        ("uts_mode", json!("host")),
        ("cgroupns", json!("host")),
        ("privileged", json!(true)),
        ("seccomp_profile", json!("/etc/profile.json")),
        ("apparmor_profile", json!("docker-default")),
        ("sysctl", json!({"net.core.somaxconn": "16384"})),
        ("devices", json!(["/dev/fuse"])),
        ("pids_limit", json!(20)),
        (
            "mount",
            json!([{"type": "bind", "source": "local", "target": "/l", "bind_options": {"propagation": "rshared"}}]),
        ),
    ] {
        let task = scene.prepare(&plugin, &with(scene, "true", &[(option, value)])).await?;
        refused(plugin.start_task(task.config.clone()).await, &[option, "gVisor", "leave it out"])?;
        scene.nothing_left()?;
    }
    let mut task = scene.prepare(&plugin, &scene.shell("true")).await?;
    task.config.devices = vec![pb::Device {
        host_path: "/dev/fuse".to_owned(),
        task_path: "/dev/fuse".to_owned(),
        ..pb::Device::default()
    }];
    refused(
        plugin.start_task(task.config.clone()).await,
        &["/dev/fuse", "device block", "gVisor", "leave it out"],
    )?;
    scene.still_works(&plugin).await?;
    plugin.shut_down().await
}

async fn what_is_mounted_read_only_is_not_written_wherever_below(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let host = host_directory(scene)?;
    let _mounts = HostMounts::nested(&host)?;
    let script = "cat '/t/sub/a b/deepest'; for d in /t /t/sub '/t/sub/a b'; do touch \"$d/x\" && echo written; done; exit 0";
    let volumes = json!([format!("{}:/t:ro", host.display())]);
    let task = scene.run(&plugin, &with(scene, script, &[("volumes", volumes)])).await?;
    same!(task.stdout(&plugin).await?, "deepest\n");
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn tasks_of_a_group_share_its_network_and_a_restart_has_it_again(scene: &Scene) -> Result<()> {
    let network = GroupNetwork::make(&scene.directory())?;
    let mut plugin = scene.plugin().await?;
    let mut server = scene.prepare(&plugin, &scene.shell("httpd -f -p 127.0.0.1:8080 -h /etc")).await?;
    server.config.network_isolation_spec = Some(network.spec());
    server.start(&plugin).await?;
    let fetch = "until wget -q -O - http://127.0.0.1:8080/hostname; do sleep 0.1; done";
    for attempt in 0..2 {
        let mut client = beside(scene, &plugin, &server, &scene.shell(fetch)).await?;
        client.config.network_isolation_spec = Some(network.spec());
        client.start(&plugin).await?;
        let said = client.stdout(&plugin).await?;
        ensure!(said.contains("web-"), "attempt {attempt}: {said}");
        client.destroy(&plugin).await?;
    }
    server.end(&plugin).await?;
    plugin.shut_down().await
}

async fn a_task_of_another_runtime_runs_beside_it(scene: &Scene) -> Result<()> {
    let mut options = scene.options();
    options["allow_runtimes"] = json!(["io.containerd.runc.v2"]);
    let mut plugin = scene.plugin_as(&scene.launch(), &options).await?;
    let mut config = scene.shell("dmesg 2>&1 | head -3; echo ends");
    config["runtime"] = json!("io.containerd.runc.v2");
    let task = scene.run(&plugin, &config).await?;
    let said = task.stdout(&plugin).await?;
    ensure!(said.ends_with("ends\n") && !said.contains("gVisor"), "{said}");
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn its_use_of_the_machine_is_what_the_kernel_counts(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let task = scene.run(&plugin, &scene.shell("while :; do :; done")).await?;
    let mut stats = Stats::open(&plugin, task.id(), Duration::from_secs(1)).await?;
    stats.next(LIMIT).await?;
    let sample = stats.next(LIMIT).await?;
    ensure!(sample.cpu.percent > 0.0 && sample.cpu.user_mode > 0.0, "{:?}", sample.cpu);
    let memory = &sample.memory;
    ensure!(memory.usage > 5 << 20, "{memory:?}");
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn its_processes_have_the_tasks_own_oom_score(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let mut config = scene.shell("sleep 600");
    config["oom_score_adj"] = json!(300);
    let task = scene.run(&plugin, &config).await?;
    let score = |pid: i32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap_or_default();
    for pid in task.alloc.cgroup.pids() {
        ensure!(score(pid) == "300\n", "{}: {}", score(pid), command_line(pid));
    }
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn a_plugin_that_is_replaced_under_it_starts_others_and_the_next_goes_on(scene: &Scene) -> Result<()> {
    let mut launch = scene.launch();
    let (here, new) = (scene.directory().join("plugin"), scene.directory().join("new"));
    fs::copy(&launch.binary, &here)?;
    fs::copy(&launch.binary, &new)?;
    launch.binary = here.clone();
    let mut plugin = scene.plugin_as(&launch, &scene.options()).await?;
    let task = scene.run(&plugin, &scene.shell("sleep 600")).await?;
    fs::rename(&new, &here)?;
    let second = scene.run(&plugin, &scene.shell("sleep 600")).await?;
    for task in [&task, &second] {
        same!(task.exec(&plugin, "echo works").await?, (0, "works\n".to_owned()));
    }
    second.end(&plugin).await?;
    plugin.kill().await?;
    // The agent's plugins are elsewhere from now on.
    fs::remove_file(&here)?;
    let mut next = scene.plugin().await?;
    task.recover(&next).await?;
    same!(task.exec(&next, "echo works").await?, (0, "works\n".to_owned()));
    task.end(&next).await?;
    scene.nothing_left()?;
    next.shut_down().await
}

async fn a_runsc_that_hangs_when_the_plugin_dies_leaves_nothing(scene: &Scene) -> Result<()> {
    let (runsc, reached) = (scene.directory().join("hangs"), scene.directory().join("reached"));
    fs::create_dir_all(scene.directory())?;
    let real = scene.programs().runtime().display().to_string();
    let state = format!("{}/*.state", scene.state_dir().join("runsc/nomad").display());
    // At the hang, runsc has made the sandbox, and has not written down that it has.
    let hang = format!("{real} \"$@\"; rm {state}; touch {0}; exec sleep 600", reached.display());
    let is_first = format!("[ \"$word\" = create ] && [ ! -e {} ]", reached.display());
    let script =
        format!("#!/bin/sh\nfor word in \"$@\"; do {is_first} && {{ {hang}; }}; done\nexec {real} \"$@\"\n");
    fs::write(&runsc, script)?;
    fs::set_permissions(&runsc, fs::Permissions::from_mode(0o755))?;
    let mut options = scene.options();
    options["oci_runtime"] = json!(runsc);
    let mut plugin = scene.plugin_as(&scene.launch(), &options).await?;
    let task = scene.prepare(&plugin, &scene.shell("sleep 600")).await?;
    tokio::select! {
        started = plugin.start_task(task.config.clone()) => bail!("it was not held up: {started:?}"),
        there = until(LIMIT, "the create", || reached.exists()) => there?,
    }
    let mut next = scene.next_plugin_with(&mut plugin, &options).await?;
    scene.nothing_left_within(LIMIT * 2)?;
    same!(known_to_runsc(scene), Vec::<PathBuf>::new());
    scene.still_works(&next).await?;
    next.shut_down().await
}

async fn a_task_that_has_lost_its_bundle_keeps_its_runsc_and_its_code(scene: &Scene) -> Result<()> {
    let runsc = Noting::runtime(scene, "another-runsc")?;
    let mut options = scene.options();
    options["oci_runtime"] = json!(runsc.path());
    let mut plugin = scene.plugin_as(&scene.launch(), &options).await?;
    for (script, code) in
        [("trap 'exit 3' TERM; echo up; sleep 600 & wait", 3), ("echo up; sleep 2; exit 9", 9)]
    {
        let task = scene.run(&plugin, &scene.shell(script)).await?;
        task.alloc.stdout.to_contain("up\n", LIMIT).await?;
        let bundle = scene.bundle()?;
        sweep::unmount_under(&bundle);
        fs::remove_dir_all(&bundle)?;
        ensure!(runsc.has_run("start"), "another one was run");
        let begun = Instant::now();
        if code == 3 {
            task.stop(&plugin, LIMIT).await?;
            ensure!(runsc.has_run("kill"), "another one was run");
        }
        same!(task.wait(&plugin).await?.exit_code, code);
        ensure!(begun.elapsed() < Duration::from_secs(5), "its end took {:?}", begun.elapsed());
        task.destroy(&plugin).await?;
        scene.nothing_left()?;
        same!(known_to_runsc(scene), Vec::<PathBuf>::new());
    }
    plugin.shut_down().await
}

/// Returns the number of a task's processes that run `sleep` with a number that begins with these digits.
async fn sleeping(plugin: &Plugin, task: &Task, digits: &str) -> Result<usize> {
    let count = format!("ps -o args | grep -c '^sleep {digits}'; true");
    Ok(task.exec(plugin, &count).await?.1.trim().parse()?)
}

async fn what_a_script_has_started_is_killed_with_it_at_its_timeout(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let task = scene.run(&plugin, &scene.shell("sleep 600 & while :; do sleep 0.1 & wait $!; done")).await?;
    // A daemon of another command, which has ended well.
    same!(task.exec(&plugin, "setsid sleep 551 >/dev/null 2>&1 </dev/null &").await?.0, 0);
    for script in SCRIPTS_WITH_CHILDREN {
        let begun = Instant::now();
        let late = plugin.exec_task(task.id(), &["sh", "-c", script], Duration::from_secs(1)).await;
        refused(late, &["within 1s"])?;
        ensure!(begun.elapsed() < SOON, "{script}: it took {:?}", begun.elapsed());
        same!((script, sleeping(&plugin, &task, "77").await?), (script, 0));
    }
    // The task's own process and the daemon go on.
    same!((sleeping(&plugin, &task, "600").await?, sleeping(&plugin, &task, "551").await?), (1, 1));
    task.end(&plugin).await?;
    plugin.shut_down().await
}

/// Maximum time for a command that ends by itself, or at its timeout of a second, on a busy machine.
const SOON: Duration = Duration::from_secs(10);

async fn a_command_that_leaves_something_in_the_background_ends(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let task = scene.run(&plugin, &scene.shell("sleep 600")).await?;
    for (script, code) in [
        ("sleep 777 & echo done; exit 3", 3),
        ("echo done; sleep 778 & while sleep 1; do echo on >&2; done & exit 4", 4),
    ] {
        let begun = Instant::now();
        let answer = plugin.exec_task(task.id(), &["sh", "-c", script], LIMIT).await?;
        same!((answer.result.context("no result")?.exit_code, &*answer.stdout), (code, &b"done\n"[..]));
        ensure!(begun.elapsed() < SOON, "{script}: it took {:?}", begun.elapsed());
    }
    same!(sleeping(&plugin, &task, "77").await?, 2);
    task.end(&plugin).await?;
    scene.nothing_left()?;
    plugin.shut_down().await
}

async fn a_command_that_runs_when_the_plugin_dies_is_killed_by_the_next(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let task = scene.run(&plugin, &scene.shell("sleep 600")).await?;
    let pipes = scene.bundle()?.join("io");
    let has_pipes = || children(&pipes).iter().any(|pipe| pipe.display().to_string().contains("/exec-"));
    for terminal in [false, true] {
        let script = "sleep 777 & echo up; exec sleep 778";
        let mut exec = Exec::open(&plugin, task.id(), &["sh", "-c", script], terminal).await?;
        exec.stdout_to_contain("up", LIMIT).await?;
        ensure!(sleeping(&plugin, &task, "77").await? == 2, "it does not run");
        plugin = scene.next_plugin(&mut plugin).await?;
        task.recover(&plugin).await?;
        let begun = Instant::now();
        while sleeping(&plugin, &task, "77").await? > 0 {
            ensure!(begun.elapsed() < SOON, "it goes on");
        }
        until(LIMIT, "the end of its pipes", || !has_pipes()).await?;
    }
    task.end(&plugin).await?;
    scene.nothing_left()?;
    plugin.shut_down().await
}

async fn a_task_has_the_limits_that_the_kernel_has_and_is_not_started_without(scene: &Scene) -> Result<()> {
    let runsc = scene.directory().join("changing-runsc");
    fs::create_dir_all(scene.directory())?;
    let real = scene.programs().runtime().display();
    let change = |expression: &str| {
        let script = format!(
            "#!/bin/sh\nfor word; do [ \"$last\" = --bundle ] && sed -i '{expression}' \"$word/config.json\"; last=$word; done\n\
             exec {real} \"$@\"\n"
        );
        fs::write(&runsc, script)?;
        fs::set_permissions(&runsc, fs::Permissions::from_mode(0o755))
    };
    let mut options = scene.options();
    options["oci_runtime"] = json!(runsc);
    let mut plugin = scene.plugin_as(&scene.launch(), &options).await?;
    let job = with(scene, "sleep 600", &[("pids_limit", json!(100)), ("cpu_hard_limit", json!(true))]);
    for (expression, word) in [
        ("s/134217728/268435456/g", "memory limit, 134217728"),
        ("s/\"limit\":100\\b/\"limit\":200/", "pids_limit"),
        ("s/\"quota\":[0-9]*/\"quota\":-1/", "cpu_hard_limit"),
        ("s/\"shares\":[0-9]*/\"shares\":400/", "CPU weight"),
    ] {
        if is_v2() && word.starts_with("weight") {
            continue;
        }
        change(expression)?;
        let task = scene.prepare(&plugin, &job).await?;
        refused(plugin.start_task(task.config.clone()).await, &["gVisor has not set", word])?;
        scene.nothing_left()?;
    }
    change("")?;
    let task = scene.run(&plugin, &job).await?;
    same!(task.alloc.cgroup.read("pids", "pids.max", "pids.max")?, "100");
    let quota = task.alloc.cgroup.read("cpu", "cpu.cfs_quota_us", "cpu.max")?;
    ensure!(quota.starts_with(|first: char| first.is_ascii_digit()), "it may take all: {quota}");
    task.end(&plugin).await?;
    plugin.shut_down().await
}
