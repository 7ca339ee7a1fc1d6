//! The agent's units, and calls to systemd. Knows nothing of what is tried with them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use harness::fixture::process::output;

use super::UNDER_TEST;

/// Unit of the node's agent, and unit of the server that it is a client of.
pub const AGENT: &str = "nomad.service";
pub const SERVER: &str = "nomad-server.service";
pub const CONTAINERD: &str = "containerd.service";
const UNITS: &str = "/etc/systemd/system";
const DROP_IN: &str = "check.conf";

/// Returns the agent's unit as in Nomad's own packages, except for the dependency on the server's unit.
pub fn agent(configuration: &Path) -> String {
    format!(
        "[Unit]
Description=Nomad client
Wants=network.target containerd.service
After=network.target containerd.service {SERVER}

[Service]
ExecStart={UNDER_TEST}/nomad agent -config {configuration}
ExecReload=/bin/kill -HUP $MAINPID
KillMode=process
KillSignal=SIGINT
LimitNOFILE=65536
LimitNPROC=infinity
OOMScoreAdjust=-1000
Restart=on-failure
RestartSec=2
TasksMax=infinity

[Install]
WantedBy=multi-user.target
",
        configuration = configuration.display()
    )
}

pub fn server(configuration: &Path) -> String {
    format!(
        "[Unit]
Description=Nomad server
After=network.target

[Service]
ExecStart={UNDER_TEST}/nomad agent -config {configuration}
KillSignal=SIGINT
Restart=on-failure

[Install]
WantedBy=multi-user.target
",
        configuration = configuration.display()
    )
}

/// Writes a unit, and has systemd start it now and at each boot.
///
/// # Errors
/// Fails with systemd's error.
pub fn install(unit: &str, text: &str) -> Result<()> {
    fs::write(Path::new(UNITS).join(unit), text)?;
    systemctl(&["enable", "--now", unit])
}

/// Overrides some of the agent's settings, from its next start on.
///
/// # Errors
/// Fails with systemd's error.
pub fn change_agent(settings: &str) -> Result<()> {
    let directory = Path::new(UNITS).join(format!("{AGENT}.d"));
    fs::create_dir_all(&directory)?;
    fs::write(directory.join(DROP_IN), format!("[Service]\n{settings}\n"))?;
    systemctl(&["daemon-reload"])
}

/// Undoes [`change_agent`]. Returns whether there was anything to undo.
///
/// # Errors
/// Fails with systemd's error.
pub fn restore_agent() -> Result<bool> {
    let changed = fs::remove_dir_all(Path::new(UNITS).join(format!("{AGENT}.d"))).is_ok();
    if changed {
        systemctl(&["daemon-reload"])?;
    }
    Ok(changed)
}

/// Runs `systemctl`.
///
/// # Errors
/// Fails with systemd's error.
pub fn systemctl(arguments: &[&str]) -> Result<()> {
    output(Command::new("systemctl").args(arguments)).map(drop)
}

/// Returns a property of a unit.
///
/// # Errors
/// Fails with systemd's error.
pub fn property(unit: &str, name: &str) -> Result<String> {
    let shown = output(Command::new("systemctl").args(["show", "--value", "--property", name, unit]))?;
    Ok(shown.trim().to_owned())
}

/// Returns the pid of a unit's main process.
///
/// # Errors
/// Fails if the unit has none.
pub fn main_process(unit: &str) -> Result<i32> {
    let pid = property(unit, "MainPID")?.parse().ok().filter(|pid| *pid > 0);
    pid.with_context(|| format!("{unit} has no main process"))
}

/// Returns the last lines of a unit's journal.
pub fn journal(unit: &str, lines: usize) -> String {
    let lines = lines.to_string();
    let shown =
        output(Command::new("journalctl").args(["-o", "cat", "--no-pager", "-n", &lines, "-u", unit]));
    shown.unwrap_or_else(|error| format!("{error:#}"))
}
