//! What a task writes much of: to an exec, or to its logs.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::interrupt::check;
use rustix::fs::OFlags;

use super::exec;
use super::many::{MAIN, Many, REST, STEP, settle};
use super::side::{Side, Work};
use crate::measure::logs;
use crate::report_data::PointKind;

/// The command that prints much, and how much it prints. It stays a while: Nomad's docker driver drops what it hasn't
/// read yet when a command ends.
const PRINT: [&str; 3] = ["sh", "-c", "cat /alloc/data/pattern; sleep 1"];
pub(crate) const OUTPUT_BYTES: usize = 64 << 20;
/// The pipe by which a task is told to write, and what it writes again and again, in its `alloc/data`.
const SIGNAL: &str = "go";
const PIECE: &str = "piece";

/// What a task writes to its logs.
pub(crate) struct Pieces {
    pub(crate) piece: Vec<u8>,
    pub(crate) count: usize,
    sum: Vec<u8>,
}

impl Pieces {
    pub(crate) fn new(count: usize) -> Self {
        let piece = logs::piece();
        Self { sum: logs::sum_of(&piece, count), piece, count }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.piece.len() * self.count
    }
}

/// Starts a task that can print the pattern, and has it do so once.
pub(crate) fn start_printing<'a, 'b>(side: &'a Side<'b>, name: &str, pattern: &[u8]) -> Result<Many<'a, 'b>> {
    let job = Many::start(side, name.to_owned(), 1, PointKind::Flood)?;
    let id = job.only()?;
    fs::write(side.allocation(id).join("alloc/data/pattern"), pattern)?;
    side.client().running(id, MAIN)?;
    // However it ends.
    let _ = print_all(side, id, pattern);
    Ok(job)
}

/// Prints the pattern by an exec, and returns the time until all of it has come.
pub(crate) fn print_all(side: &Side<'_>, id: &str, pattern: &[u8]) -> Result<Duration> {
    let done = exec::run(side.client().own_http(), id, &PRINT)?;
    ensure!(done.stdout == pattern, "{} bytes came, and not those of the file", done.stdout.len());
    Ok(done.printed)
}

/// Has a task write so many pieces, and returns the time until its log files have them. Nothing is left of it, and its
/// files are removed: the agent keeps those of many tasks that have ended.
pub(crate) fn write(side: &Side<'_>, name: &str, pieces: &Pieces) -> Result<Duration> {
    let mut directory = None;
    let written = side
        .submit(name, &Work { script: &script(pieces.count), count: 1, group: 1, writes_much: true })
        .and_then(|()| side.client().placed(name, 1))
        .and_then(|ids| {
            let id = ids.first().context("no allocation")?;
            directory = Some(side.allocation(id));
            write_in(side, id, pieces)
        });
    let cleared = settle(side, name);
    if let Some(directory) = directory {
        remove_files(&directory.join("alloc"));
    }
    written.and_then(|took| cleared.map(|()| took))
}

fn write_in(side: &Side<'_>, id: &str, pieces: &Pieces) -> Result<Duration> {
    side.client().running(id, MAIN)?;
    let (data, files) = (side.allocation(id).join("alloc/data"), side.allocation(id).join("alloc/logs"));
    fs::write(data.join(PIECE), &pieces.piece)?;
    // Nobody else's data is to be written meanwhile.
    rustix::fs::sync();
    sleep(REST / 2);
    let begun = signal(&data.join(SIGNAL))?;
    let wanted = pieces.bytes() as u64;
    while logs::size(&logs::files(&files)?) < wanted {
        check()?;
        ensure!(begun.elapsed() < STEP, "the output is not there after {} s", STEP.as_secs());
        sleep(logs::LOOK);
    }
    let took = begun.elapsed();
    ensure!(logs::is_whole(&files, &pieces.sum)?, "what is in the files is not what the task wrote");
    Ok(took)
}

/// Returns the script of a task that waits for a word by its pipe, and then writes the piece so many times. It doesn't poll:
/// a part of the time would be that of a sleep.
fn script(pieces: usize) -> String {
    format!(
        "trap 'exit 0' TERM; mkfifo /alloc/data/{SIGNAL}; read word </alloc/data/{SIGNAL}; i=0; \
         while [ $i -lt {pieces} ]; do cat /alloc/data/{PIECE}; i=$((i+1)); done; sleep 1000 & wait"
    )
}

/// Tells a task to write by its pipe, once it reads from there. Returns the time at which it was told.
fn signal(pipe: &Path) -> Result<Instant> {
    let begun = Instant::now();
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits())?;
    loop {
        check()?;
        // Fails while nobody reads.
        match OpenOptions::new().write(true).custom_flags(nonblocking).open(pipe) {
            Ok(mut pipe) => {
                let told = Instant::now();
                pipe.write_all(b"go\n").context("tell the task to write")?;
                return Ok(told);
            }
            Err(error) if begun.elapsed() > STEP => {
                return Err(error).with_context(|| format!("nobody reads from {}", pipe.display()));
            }
            Err(_) => sleep(logs::LOOK),
        }
    }
}

/// Removes the logs and the piece below an allocation's directory `alloc`, as far as they are there.
fn remove_files(directory: &Path) {
    let logs = fs::read_dir(directory.join("logs")).into_iter().flatten().flatten();
    for path in logs.map(|entry| entry.path()).chain([directory.join("data").join(PIECE)]) {
        let _ = fs::remove_file(path);
    }
}

/// Returns bytes in which a lost, doubled or displaced part is noticed: each group of eight is different.
pub(crate) fn pattern() -> Vec<u8> {
    let groups = OUTPUT_BYTES as u64 / 8;
    (0..groups).flat_map(|count| count.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_script_writes_all_pieces_once_it_is_told_and_its_files_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        fs::create_dir_all(&data).unwrap();
        fs::create_dir_all(directory.path().join("logs")).unwrap();
        fs::write(data.join(PIECE), "line\n").unwrap();
        let script = script(3).replace("/alloc", &directory.path().display().to_string());
        let script = script.replace("sleep 1000 & wait", "true");
        let log = directory.path().join("logs/main.stdout.0");
        let stdout = fs::File::create(&log).unwrap();
        let mut shell = Command::new("sh").args(["-c", &script]).stdout(stdout).spawn().unwrap();
        signal(&data.join(SIGNAL)).unwrap();
        assert!(shell.wait().unwrap().success());
        assert_eq!(fs::read_to_string(&log).unwrap(), "line\n".repeat(3));
        remove_files(directory.path());
        assert!(!log.exists() && !data.join(PIECE).exists());
    }
}
