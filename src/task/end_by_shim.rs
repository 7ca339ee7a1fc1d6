//! Ends a container by nothing but its shim.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::shim::{self, Connection, Shim, State, wait_pending};

/// Maximum time that a killed container may take to exit.
pub(super) const KILLED: Duration = Duration::from_secs(10);

/// Returns whether a container in this state has to be killed before its shim can delete it.
pub(super) fn may_run(state: State) -> bool {
    match state {
        State::Created | State::Running => true,
        State::Stopped => false,
    }
}

/// Kills a container and has its shim remove it.
pub(super) async fn end_in(shim: &Shim, id: &str) -> Result<(), shim::Error> {
    let connection = Connection::open(&shim.bootstrap, id).await?;
    if may_run(connection.state().await?) {
        let ended = wait_pending(&connection, "").await;
        // Its cgroup may be another attempt's by now. The others of a container's processes end with the first.
        connection.kill(Signal::SIGKILL as i32, false).await?;
        let _ = tokio::time::timeout(KILLED, ended).await;
    }
    connection.delete().await
}
