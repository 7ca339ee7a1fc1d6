//! Measures how long a new plugin takes to recover many tasks after the one before it was killed: by requests one
//! after the other, as the agent makes them when it starts, and by all at once.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use futures::future::try_join_all;
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::interrupt;
use harness::task::Task;

use super::driven::IDLE;
use super::table::{Call, Path, RECOVERED, Table};
use super::{Findings, Session};

const ROUNDS: u32 = 10;
/// Number of concurrent starts and removals of tasks, which aren't measured.
const AT_A_TIME: usize = 10;

pub(crate) fn measure(session: &Session<'_>, findings: &mut Findings) -> Result<()> {
    let context = CaseContext::new(Arc::clone(session.environment), session.plugin, "recovery".to_owned());
    let rounds = session.rounds.min(ROUNDS);
    session.runtime.block_on(measure_on(&context, rounds, &mut findings.table))?;
    context.close()
}

async fn measure_on(context: &CaseContext, rounds: u32, table: &mut Table) -> Result<()> {
    let mut plugin = context.plugin().await?;
    let config = context.shell(IDLE);
    let mut tasks = Vec::new();
    while tasks.len() < RECOVERED {
        let some = AT_A_TIME.min(RECOVERED - tasks.len());
        tasks.extend(try_join_all((0..some).map(|_| context.run(&plugin, &config))).await?);
    }
    for _ in 0..rounds {
        for call in [Call::RecoveryInTurn, Call::RecoveryAtOnce] {
            interrupt::check()?;
            plugin.kill().await?;
            plugin = context.plugin().await?;
            let begun = Instant::now();
            let recovered = recover(&tasks, &plugin, call).await;
            table.record(call, Path::Plugin, recovered.map(|()| begun.elapsed()));
        }
    }
    for some in tasks.chunks(AT_A_TIME) {
        try_join_all(some.iter().map(|task| task.end(&plugin))).await?;
    }
    plugin.shut_down().await
}

async fn recover(tasks: &[Task], plugin: &Plugin, call: Call) -> Result<()> {
    if call == Call::RecoveryAtOnce {
        return try_join_all(tasks.iter().map(|task| task.recover(plugin))).await.map(drop);
    }
    for task in tasks {
        task.recover(plugin).await?;
    }
    Ok(())
}
