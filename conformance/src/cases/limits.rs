//! What a job's options limit, and what the operator's do, seen from inside.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{cases, refused, same};
use crate::scene::Scene;

cases!["limits":
    a_task_has_no_more_processes_than_its_pids_limit,
    the_operators_pids_limit_is_the_default_and_the_most,
    a_process_and_an_exec_have_the_limits_that_the_job_sets,
    a_limit_that_can_not_be_is_refused_by_name,
    how_likely_a_task_is_killed_for_memory_is_the_jobs_word_and_else_the_operators,
];

/// More processes than any limit here.
const MANY: &str =
    "(for i in $(seq 1 40); do sleep 5 & done) 2>&1 | grep -q \"can't fork\" && echo limited || echo free";

fn with(mut config: Value, option: &str, value: Value) -> Value {
    config[option] = value;
    config
}

/// That a start with an option is refused with these words, and leaves nothing.
async fn start_is_refused(scene: &Scene, option: &str, value: Value, words: &[&str]) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let task = scene.prepare(&plugin, &with(scene.shell("true"), option, value)).await?;
    refused(plugin.start_task(task.config.clone()).await, &[&[option], words].concat())?;
    scene.nothing_left()?;
    plugin.shut_down().await
}

/// What a script says in a task with an option, under a plugin with options.
async fn said(scene: &Scene, options: &Value, config: &Value) -> Result<String> {
    let mut plugin = scene.plugin_as(&scene.launch(), options).await?;
    let task = scene.run(&plugin, config).await?;
    let said = task.stdout(&plugin).await?;
    task.destroy(&plugin).await?;
    plugin.shut_down().await?;
    Ok(said)
}

async fn a_task_has_no_more_processes_than_its_pids_limit(scene: &Scene) -> Result<()> {
    for (limit, wanted) in [(json!(20), "limited\n"), (json!(-1), "free\n"), (json!(null), "free\n")] {
        let config = with(scene.shell(MANY), "pids_limit", limit.clone());
        let said = said(scene, &scene.options(), &config).await?;
        ensure!(said == wanted, "{limit}: {said}");
    }
    Ok(())
}

async fn the_operators_pids_limit_is_the_default_and_the_most(scene: &Scene) -> Result<()> {
    let options = with(scene.options(), "pids_limit", json!(20));
    same!(said(scene, &options, &scene.shell(MANY)).await?, "limited\n");
    let mut plugin = scene.plugin_as(&scene.launch(), &options).await?;
    for limit in [21, -1] {
        let task = scene.prepare(&plugin, &with(scene.shell(MANY), "pids_limit", json!(limit))).await?;
        let words = ["pids_limit", &limit.to_string(), "operator"];
        refused(plugin.start_task(task.config.clone()).await, &words)?;
        scene.nothing_left()?;
    }
    plugin.shut_down().await
}

async fn a_process_and_an_exec_have_the_limits_that_the_job_sets(scene: &Scene) -> Result<()> {
    let show = "ulimit -Sn; ulimit -Hn; ulimit -c";
    let mut plugin = scene.plugin().await?;
    let limits = json!({"nofile": "100:200", "core": "0"});
    let config = with(scene.shell(&format!("{show}; sleep 600")), "ulimit", limits);
    let task = scene.run(&plugin, &config).await?;
    task.alloc.stdout.to_contain("100\n200\n0\n", crate::task::LIMIT).await?;
    same!(task.exec(&plugin, show).await?, (0, "100\n200\n0\n".to_owned()));
    task.end(&plugin).await?;
    plugin.shut_down().await?;
    let config = with(scene.shell(show), "file_limit", json!(300));
    let said = said(scene, &scene.options(), &config).await?;
    ensure!(said.starts_with("300\n300\n"), "{said}");
    Ok(())
}

async fn a_limit_that_can_not_be_is_refused_by_name(scene: &Scene) -> Result<()> {
    start_is_refused(scene, "ulimit", json!({"files": "1"}), &["files", "nofile"]).await?;
    start_is_refused(scene, "ulimit", json!({"nofile": "2:1"}), &["nofile", "soft"]).await?;
    start_is_refused(scene, "file_limit", json!(0), &["0"]).await?;
    start_is_refused(scene, "oom_score_adj", json!(-500), &["-500", "1000"]).await
}

async fn how_likely_a_task_is_killed_for_memory_is_the_jobs_word_and_else_the_operators(
    scene: &Scene,
) -> Result<()> {
    let show = scene.shell("cat /proc/self/oom_score_adj");
    let options = with(scene.options(), "oom_score_adj", json!(300));
    same!(said(scene, &options, &show).await?, "300\n");
    same!(said(scene, &options, &with(show, "oom_score_adj", json!(700))).await?, "700\n");
    Ok(())
}
