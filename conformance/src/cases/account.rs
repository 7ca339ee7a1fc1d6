//! The account that is taken at the end of each case sees what it is there to see, and a plugin that has done much holds
//! no more than one that has done little.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{cases, same};
use crate::host::cgroup::is_v2;
use crate::host::{Exec, Plugin};
use crate::scene::Scene;
use crate::task::{LIMIT, Task};

cases!["account":
    a_running_task_is_seen_in_all_its_parts,
    a_plugin_that_has_done_much_holds_no_more_than_before,
];

async fn a_running_task_is_seen_in_all_its_parts(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let task = scene.run(&plugin, &scene.shell("sleep 600")).await?;
    let seen = scene.census();
    for kind in [
        "process ",
        "process in a task's cgroup ",
        "bundle ",
        "runc state ",
        "container record ",
        "lease ",
        "active snapshot ",
    ] {
        ensure!(seen.iter().any(|line| line.starts_with(kind)), "no {kind}among {seen:?}");
    }
    // On v2 all of them are the one that the agent made.
    ensure!(seen.iter().any(|line| line.starts_with("cgroup ")) != is_v2(), "cgroups among {seen:?}");
    task.end(&plugin).await?;
    same!(scene.census(), Vec::<String>::new());
    plugin.shut_down().await
}

/// Open files and threads of the plugin.
fn held(plugin: &Plugin) -> Result<(usize, usize)> {
    let count = |name: &str| {
        Ok::<_, anyhow::Error>(std::fs::read_dir(format!("/proc/{}/{name}", plugin.pid()))?.count())
    };
    Ok((count("fd")?, count("task")?))
}

async fn exec_around(plugin: &Plugin, task: &Task) -> Result<()> {
    same!(task.exec(plugin, "exit 4").await?.0, 4);
    let exec = Exec::open(plugin, task.id(), &["sh", "-c", "exit 5"], true).await?;
    same!(exec.finish(LIMIT).await?.code()?, 5);
    drop(Exec::open(plugin, task.id(), &["sleep", "600"], false).await?);
    let _ = Exec::open(plugin, task.id(), &["no-such-command"], false).await?.finish(LIMIT).await?;
    Ok(())
}

async fn a_plugin_that_has_done_much_holds_no_more_than_before(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let once = || async {
        let task =
            scene.run(&plugin, &scene.shell("trap 'exit 0' TERM; while :; do sleep 0.1; done")).await?;
        let mut stats = plugin.stats(task.id(), Duration::from_millis(50)).await;
        exec_around(&plugin, &task).await?;
        if let Ok(stream) = &mut stats {
            stream.message().await?;
        }
        task.stop(&plugin, LIMIT).await?;
        task.wait(&plugin).await?;
        task.destroy(&plugin).await
    };
    once().await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (files, threads) = held(&plugin)?;
    for _ in 0..4 {
        tokio::try_join!(once(), once(), once())?;
    }
    // Threads that have nothing to do end by themselves, after a while.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (files_after, threads_after) = held(&plugin)?;
    ensure!(files_after <= files + 3, "{files} open files became {files_after}");
    ensure!(threads_after <= threads + 20, "{threads} threads became {threads_after}");
    plugin.shut_down().await
}
