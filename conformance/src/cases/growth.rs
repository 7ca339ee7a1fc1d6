//! What grows on the host by what a task does, beside its own limits.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{cases, until};
use crate::scene::Scene;
use crate::task::LIMIT;

cases!["growth":
    commands_that_fail_do_not_fill_the_bundle,
];

/// Rounds of the driver's are ten seconds apart.
const ROUNDS: Duration = Duration::from_secs(40);
const COMMANDS: usize = 120;
/// What the runtime says of each has it at least once.
const NAME_BYTES: usize = 16 * 1024;
const MIB: u64 = 1 << 20;

/// A script of a check that is missing in the image runs every few seconds for years.
async fn commands_that_fail_do_not_fill_the_bundle(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let task = scene.run(&plugin, &scene.shell("sleep 600")).await?;
    let bundles = fs::read_dir(scene.state_dir().join("nomad"))?;
    let bundle = bundles.flatten().next().context("there is no bundle")?.path();
    let files = || -> Vec<(String, u64)> {
        let entries = fs::read_dir(&bundle).into_iter().flatten().flatten();
        let files = entries.filter_map(|entry| Some((entry.file_name(), entry.metadata().ok()?)));
        let files = files.filter(|(_, metadata)| metadata.is_file());
        files.map(|(name, file)| (name.to_string_lossy().into_owned(), file.blocks() * 512)).collect()
    };
    let before = files().len();
    let command = format!("/bin/{}", "x".repeat(NAME_BYTES));
    for _ in 0..COMMANDS {
        // Not there, which is said in one way or the other.
        let _ = plugin.exec_task(task.id(), &[&command], LIMIT).await;
    }
    until(ROUNDS, "the logs are emptied", || files().iter().map(|(_, bytes)| bytes).sum::<u64>() < MIB)
        .await
        .with_context(|| format!("{:?}", files()))?;
    let now = files();
    ensure!(now.len() <= before + 2, "each command leaves a file: {now:?}");
    task.end(&plugin).await?;
    plugin.shut_down().await
}
