//! Resources of the host that a task's actions use up, beside its own limits.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::leaks::inspect::children;
use harness::task::LIMIT;

use crate::cases::support::{cases, until};

cases!["growth":
    commands_that_fail_do_not_fill_the_bundle,
];

/// Time for several rounds of the driver's garbage collection, which are ten seconds apart.
const ROUNDS: Duration = Duration::from_secs(40);
const MOST_COMMANDS: usize = 2000;
/// Length of the command's name. The runtime's error for each exec contains the name at least once. A longer name is
/// not even tried.
const NAME_BYTES: usize = 4000;
const MIB: u64 = 1 << 20;

/// The script of a check that is missing in the image is run every few seconds for years.
async fn commands_that_fail_do_not_fill_the_bundle(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    let bundle = case.bundle()?;
    let files = || -> Vec<(PathBuf, u64)> {
        let files = children(&bundle).into_iter().filter_map(|path| Some((fs::metadata(&path).ok()?, path)));
        files.filter(|(file, _)| file.is_file()).map(|(file, path)| (path, file.blocks() * 512)).collect()
    };
    let largest = || files().iter().map(|(_, bytes)| *bytes).max().unwrap_or_default();
    let before = files().len();
    let command = format!("/bin/{}", "x".repeat(NAME_BYTES));
    let mut commands = 0;
    while largest() <= MIB {
        ensure!(commands < MOST_COMMANDS, "{commands} commands have logged next to nothing: {:?}", files());
        // The command isn't there, which is reported as an error or as an exit code.
        let _ = plugin.exec_task(task.id(), &[&command], LIMIT).await;
        commands += 1;
    }
    until(ROUNDS, "the logs are emptied", || largest() <= MIB)
        .await
        .with_context(|| format!("{:?}", files()))?;
    let now = files();
    ensure!(now.len() <= before + 2, "each command leaves a file: {now:?}");
    task.end(plugin).await
}
