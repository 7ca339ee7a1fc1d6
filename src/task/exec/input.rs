//! The input of a running command: its stdin, and the size of its terminal. These are two handles, since a command that
//! does not read must not keep its terminal from being resized.

use std::time::Duration;

use crate::shim::{Connection, StdinPipe};
use crate::sys::error_chain::Chained;

/// Character that a terminal takes for the end of its input.
const END_OF_TRANSMISSION: &[u8] = &[4];
/// Number of times that the end of a terminal's input is sent, and the pause between: a program that was about to set
/// up its terminal when the end came has taken it for a character. Whatever reads a file that has ended may read the
/// end repeatedly, too.
const ENDS: u32 = 20;
const SAID_AGAIN: Duration = Duration::from_millis(500);

/// A command's stdin.
pub(crate) struct Stdin {
    pub(super) pipe: Option<StdinPipe>,
    pub(super) connection: Connection,
    pub(super) exec_id: String,
    pub(super) tty: bool,
}

impl Stdin {
    /// Writes at the command's speed. After the end of the input, further bytes are dropped.
    ///
    /// # Errors
    /// When the command no longer reads.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.pipe {
            Some(pipe) => {
                pipe.wait_for_shim().await?;
                pipe.write_all(bytes).await
            }
            None => Ok(()),
        }
    }

    /// Ends the command's input.
    pub(crate) async fn close(&mut self) {
        if self.tty {
            for _ in 0..ENDS {
                let _ = self.write(END_OF_TRANSMISSION).await;
                tokio::time::sleep(SAID_AGAIN).await;
            }
            return;
        }
        let Some(mut pipe) = self.pipe.take() else { return };
        if let Err(error) = pipe.wait_for_shim().await {
            tracing::debug!(exec = self.exec_id, %error, "the shim does not read the command's input");
        }
        // Closed before the shim is told: it passes on the end only when nobody else can write.
        drop(pipe);
        if let Err(error) = self.connection.exec_close_stdin(&self.exec_id).await {
            tracing::debug!(exec = self.exec_id, error = %error.chain(), "the command exited before the end of its input");
        }
    }
}

/// The handle that sets the size of a command's terminal.
pub(crate) struct Terminal {
    pub(super) connection: Connection,
    pub(super) exec_id: String,
}

impl Terminal {
    pub(crate) async fn resize(&self, size: TerminalSize) {
        let TerminalSize { width, height } = size;
        if let Err(error) = self.connection.exec_resize(&self.exec_id, width, height).await {
            tracing::debug!(exec = self.exec_id, error = %error.chain(), "can't resize the terminal");
        }
    }
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TerminalSize {
    pub width: u32,
    pub height: u32,
}
