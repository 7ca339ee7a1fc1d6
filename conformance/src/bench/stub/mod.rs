//! A shim that is none: the harness' own, which runs processes without a container and answers each call after a known
//! time, so that it can be seen whether the harness measures right. It is started and asked as any other, over the same
//! ttrpc service.
//!
//! How it answers is said by the environment of `bench stub`, which writes it into the file that it makes, since a shim is
//! started without an environment.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};

mod delays;
mod process;
mod service;
mod shim;

pub use delays::{Answers, DELAYS};

/// As shims are named; not one of the runc family, whose options it wouldn't understand.
const FILE: &str = "containerd-shim-stub-v1";

#[derive(clap::Args)]
pub struct Args {
    /// Where to write it, as containerd-shim-stub-v1. CONFORMANCE_STUB_DELAY ("stats=10ms"), CONFORMANCE_STUB_SLOWDOWN
    /// ("stats=1.2") and CONFORMANCE_STUB_FAIL ("pids=5", each fifth call) say how it answers; several by commas.
    directory: PathBuf,
}

#[derive(clap::Args)]
pub struct ShimArgs {
    /// As containerd calls a shim.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// # Errors
/// Names the word of the environment that says nothing, or the file that can't be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    println!("{}", write(&args.directory, &Answers::of_environment()?)?.display());
    Ok(ExitCode::SUCCESS)
}

/// # Errors
/// Says what is wrong with the words, or what can't be served.
pub fn run_shim(args: &ShimArgs) -> Result<ExitCode> {
    shim::run(&args.words, Answers::of_environment()?).map(|()| ExitCode::SUCCESS)
}

/// Makes a shim that answers so, and returns its file.
///
/// # Errors
/// Names the file.
pub fn write(directory: &Path, answers: &Answers) -> Result<PathBuf> {
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let program = std::env::current_exe().context("find this program")?;
    let quoted = program.display().to_string().replace('\'', r"'\''");
    // What the words of answers are made of needs no quotes.
    let variables: String = answers.variables().map(|(name, words)| format!("{name}={words} ")).collect();
    let text = format!("#!/bin/sh\n{variables}exec '{quoted}' bench stub-shim \"$@\"\n");
    let file = std::path::absolute(directory.join(FILE))?;
    let written =
        fs::write(&file, text).and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(0o755)));
    written.with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}
