//! The small calls: a signal, one sample of statistics, the state.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::bare::Bare;
use super::daemon::{Daemon, Pulled};
use super::driven::Driven;
use super::shim::Shim;
use super::table::{Call, Path, Probe};
use super::{Findings, Ground};

/// What a shell does not notice.
const SIGNAL: Signal = Signal::SIGWINCH;
/// These calls are so short that many more of them are affordable.
const TIMES_AS_MANY: u32 = 10;

pub fn measure(ground: &Ground<'_>, findings: &mut Findings) -> Result<()> {
    let runtime = ground.runtime;
    let _pulled = Pulled::pull(ground.world)?;
    let driven = runtime.block_on(Driven::start(ground, "calls", |_| {}))?;
    let bundle = driven.bundle()?;
    let shim = runtime.block_on(Shim::of(&bundle))?;
    let daemon = Daemon::start(ground)?;
    let runc = Bare::like(&bundle, "runc", ground.world)?;
    let number = u32::try_from(SIGNAL as i32)?;
    let (plugin, id) = (&driven.plugin, driven.task.id());

    let inspect = || runtime.block_on(async { Ok(plugin.inspect_task(id).await.map(drop)?) });
    let signal = || runtime.block_on(async { Ok(plugin.signal_task(id, SIGNAL.as_str()).await?) });
    let mut signals = [
        Probe::whole(Call::Signal, Path::Daemon, || runtime.block_on(daemon.signal(SIGNAL))),
        Probe::whole(Call::Signal, Path::Plugin, signal),
        Probe::whole(Call::Signal, Path::Shim, || runtime.block_on(shim.signal(number))),
        Probe::whole(Call::Signal, Path::Runc, || runc.signal(SIGNAL.as_str())),
    ];
    findings.table.interleave(&mut signals, ground.rounds)?;
    let mut quick = [
        Probe::whole(Call::Stats, Path::Daemon, || runtime.block_on(daemon.stats())),
        Probe::whole(Call::Stats, Path::Plugin, || runtime.block_on(sample(&driven))),
        Probe::whole(Call::Stats, Path::Shim, || runtime.block_on(shim.stats())),
        Probe::whole(Call::State, Path::Daemon, || runtime.block_on(daemon.state())),
        Probe::whole(Call::State, Path::Plugin, inspect),
        Probe::whole(Call::State, Path::Shim, || runtime.block_on(shim.state())),
    ];
    findings.table.interleave(&mut quick, ground.rounds * TIMES_AS_MANY)?;
    drop((signals, quick));
    runtime.block_on(driven.end())?.close()
}

/// The first message of a stream of statistics, which comes at once.
async fn sample(driven: &Driven) -> Result<()> {
    let mut stream = driven.plugin.stats(driven.task.id(), Duration::from_secs(1)).await?;
    stream.message().await?.context("the stream ended")?.stats.context("no stats").map(drop)
}
