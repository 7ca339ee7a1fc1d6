//! Runs a command to its end without input: a script of a check or of a template.

use std::time::Duration;

use super::super::Task;
use super::{Exec, ExecRefused, Output};
use crate::task::error::{Error, Result};

/// Maximum size of a script's output; more is cut. Nomad takes a line or two of it.
const OUTPUT_LIMIT_BYTES: usize = 1024 * 1024;
const CUT: &[u8] = b"\n(output cut here)\n";
/// Size of the last output that is quoted of a script that took too long: Nomad shows the error, and nothing else.
const QUOTED_BYTES: usize = 1024;

/// The output and exit code of a command that took no input.
#[derive(Debug, Default)]
pub(crate) struct ExecOutput {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub code: i32,
}

impl Task {
    /// Runs a command without input to its end and returns what it wrote, cut where that is too much. The time counts
    /// from when the command runs.
    ///
    /// # Errors
    /// When the task has ended, or the command has not within `timeout`. It and all that it started are dead then.
    pub(crate) async fn exec_output(
        &self,
        command: &[String],
        timeout: Option<Duration>,
    ) -> Result<ExecOutput> {
        let mut exec = match self.exec(command, None, false).await? {
            Ok(exec) => exec,
            Err(ExecRefused { text, code }) => {
                return Ok(ExecOutput { stderr: text.into_bytes(), code, ..ExecOutput::default() });
            }
        };
        let mut output = ExecOutput::default();
        let Some(limit) = timeout else {
            output.collect(&mut exec).await?;
            return Ok(output);
        };
        if let Ok(ended) = tokio::time::timeout(limit, output.collect(&mut exec)).await {
            return ended.map(|()| output);
        }
        exec.end_by_force().await;
        let wrote = output.last_words();
        Err(Error::failed(format!(
            "exec in task {}: {:?} did not exit within {limit:?} and was killed with all that it started; {wrote}",
            self.id(),
            command[0],
        )))
    }
}

impl ExecOutput {
    async fn collect(&mut self, exec: &mut Exec) -> Result<()> {
        loop {
            match exec.next().await? {
                Output::Stdout(bytes) => append(&mut self.stdout, &bytes),
                Output::Stderr(bytes) => append(&mut self.stderr, &bytes),
                Output::Exited(code) => {
                    self.code = code;
                    return Ok(());
                }
            }
        }
    }

    fn last_words(&self) -> String {
        let end = |bytes: &[u8]| {
            String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(QUOTED_BYTES)..]).trim_end().to_owned()
        };
        match (end(&self.stdout), end(&self.stderr)) {
            (stdout, stderr) if stdout.is_empty() && stderr.is_empty() => "it wrote nothing".to_owned(),
            (stdout, stderr) if stderr.is_empty() => format!("it wrote: {stdout}"),
            (stdout, stderr) if stdout.is_empty() => format!("it wrote to stderr: {stderr}"),
            (stdout, stderr) => format!("it wrote: {stdout}\nand to stderr: {stderr}"),
        }
    }
}

fn append(whole: &mut Vec<u8>, bytes: &[u8]) {
    if whole.len() >= OUTPUT_LIMIT_BYTES {
        // An output that fills the limit exactly is whole, and gets no mark unless more comes.
        if !bytes.is_empty() && !whole.ends_with(CUT) {
            whole.truncate(OUTPUT_LIMIT_BYTES - CUT.len());
            whole.extend_from_slice(CUT);
        }
        return;
    }
    let room = OUTPUT_LIMIT_BYTES - whole.len();
    whole.extend_from_slice(&bytes[..bytes.len().min(room)]);
    if bytes.len() > room {
        whole.truncate(OUTPUT_LIMIT_BYTES - CUT.len());
        whole.extend_from_slice(CUT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_script_output_is_cut_with_a_note() {
        let mut whole = Vec::new();
        for _ in 0..40 {
            append(&mut whole, &[b'x'; 30_000]);
        }
        assert_eq!(whole.len(), OUTPUT_LIMIT_BYTES);
        assert!(whole.ends_with(CUT));
        let mut exact = vec![b'x'; OUTPUT_LIMIT_BYTES - 1];
        append(&mut exact, b"x");
        assert!(!exact.ends_with(CUT));
        append(&mut exact, b"x");
        assert!(exact.len() == OUTPUT_LIMIT_BYTES && exact.ends_with(CUT), "one byte more is one too many");
    }

    #[test]
    fn a_script_that_took_too_long_is_quoted_with_its_end() {
        let quoted = |stdout: &[u8], stderr: &[u8]| {
            ExecOutput { stdout: stdout.to_vec(), stderr: stderr.to_vec(), code: 0 }.last_words()
        };
        assert_eq!(quoted(b"", b""), "it wrote nothing");
        assert_eq!(quoted(b"half\n", b""), "it wrote: half");
        assert_eq!(quoted(b"", b"oops\n"), "it wrote to stderr: oops");
        assert_eq!(quoted(b"half\n", b"oops\n"), "it wrote: half\nand to stderr: oops");
        assert_eq!(quoted(&[b'x'; 5000], b"").len(), "it wrote: ".len() + QUOTED_BYTES);
    }
}
