//! The stub shim: it runs processes without a container and answers each call after a known time, so that the harness
//! can be checked. It is started and called like any shim, over the same ttrpc service.
//!
//! Its answer times are set by the environment of `bench stub`, which writes them into the file that it creates, since
//! a shim is started without an environment.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};

mod delays;
mod process;
mod service;
mod shim;

pub(crate) use delays::{Answers, DELAYS};

/// File name of the stub, by the naming scheme of shims. Not one of the runc family, whose options it wouldn't
/// understand.
const FILE: &str = "containerd-shim-stub-v1";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory to write the stub to, as containerd-shim-stub-v1. Its answers are set by the environment:
    /// CONFORMANCE_STUB_DELAY ("stats=10ms"), CONFORMANCE_STUB_SLOWDOWN ("stats=1.2") and CONFORMANCE_STUB_FAIL
    /// ("pids=5", each fifth call). Several calls are separated by commas.
    directory: PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct ShimArgs {
    /// The arguments with which containerd calls a shim.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// # Errors
/// Names the part of the environment that can't be parsed, or the file that can't be written.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    println!("{}", write(&args.directory, &Answers::of_environment()?)?.display());
    Ok(ExitCode::SUCCESS)
}

/// # Errors
/// Names the argument that is missing, or what can't be served.
pub(crate) fn run_shim(args: &ShimArgs) -> Result<ExitCode> {
    shim::run(&args.words, Answers::of_environment()?).map(|()| ExitCode::SUCCESS)
}

/// Writes a stub with these answers, and returns the path of its file.
///
/// # Errors
/// Names the file.
pub(crate) fn write(directory: &Path, answers: &Answers) -> Result<PathBuf> {
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let program = std::env::current_exe().context("find this program")?;
    let quoted = program.display().to_string().replace('\'', r"'\''");
    // The values consist of characters that need no quotes.
    let variables: String = answers.variables().map(|(name, words)| format!("{name}={words} ")).collect();
    let text = format!("#!/bin/sh\n{variables}exec '{quoted}' bench stub-shim \"$@\"\n");
    let file = std::path::absolute(directory.join(FILE))?;
    let written =
        fs::write(&file, text).and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(0o755)));
    written.with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}
