//! The jobs in `examples/task-options`, each of which shows an option and checks from inside that it does what it says;
//! a job whose option doesn't, fails.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use harness::context::agent::AgentContext;
use harness::fixture::auth_registry;
use harness::fixture::layer::sha256;
use harness::host::cgroup::is_v2;
use serde_json::json;

use crate::case::skip;

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/task-options");
/// Directory of the jobs in the guest, which has nothing else of the tree.
const IN_GUEST: &str = "/options";
const SUFFIX: &str = ".nomad.hcl";
/// Words in a job that can't run on cgroup v2.
const V1_ONLY: &str = "cgroup v1 only";
/// Content of a file on the host for jobs that declare the variable `directory`.
const GREETING: &str = "hello from the host\n";
/// Seccomp profile by which no directory can be made.
const SECCOMP: &str = r#"{
  "defaultAction": "SCMP_ACT_ALLOW",
  "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30 }]
}
"#;

/// Lists the jobs' files, with their paths in the guest's root.
///
/// # Errors
/// Fails if the directory can't be read.
pub fn for_guest() -> Result<Vec<(PathBuf, PathBuf)>> {
    let at = |path: &Path| Path::new(IN_GUEST).join(path.file_name().unwrap_or_default());
    Ok(files()?.into_iter().map(|path| (at(&path), path)).collect())
}

fn files() -> Result<Vec<PathBuf>> {
    let directory = if Path::new(IN_GUEST).is_dir() { IN_GUEST } else { DIRECTORY };
    let entries = fs::read_dir(directory).with_context(|| format!("read {directory}"))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Lists the jobs by the names of their files.
///
/// # Errors
/// Fails if the directory can't be read.
pub fn jobs() -> Result<Vec<(String, PathBuf)>> {
    let mut jobs = Vec::new();
    for path in files()? {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX));
        jobs.push((name.with_context(|| format!("{} is no job", path.display()))?.to_owned(), path));
    }
    jobs.sort();
    Ok(jobs)
}

/// Runs a job to its end.
///
/// # Errors
/// Fails with the task's events and output if a task of the job fails.
pub fn play(context: &mut AgentContext, name: &str, file: &Path) -> Result<()> {
    let hcl = fs::read_to_string(file)?;
    if is_v2() && hcl.contains(V1_ONLY) {
        return skip("it is for cgroup v1 only");
    }
    if hcl.contains("log_collection") {
        context.agent.collect_logs_by("driver")?;
    }
    let image = context.busybox();
    let directory = context.environment.directory().join("host");
    let shown = directory.display().to_string();
    let mut variables = vec![("image", image.as_str())];
    if hcl.contains("variable \"directory\"") {
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("greeting"), GREETING)?;
        fs::write(directory.join("seccomp.json"), SECCOMP)?;
        variables.push(("directory", &shown));
    }
    let networks = context.environment.networks();
    // Addresses at the end of the range that the driver gives away in turn.
    let ipv4 = networks.tasks().subnet.replace("0/25", "120");
    let ipv6 = networks.tasks_ipv6().replace("/64", "120");
    if hcl.contains("variable \"ipv4_address\"") {
        variables.extend([("ipv4_address", ipv4.as_str()), ("ipv6_address", &ipv6)]);
    }
    let locked = context.environment.directory().join("locked");
    // The registry is kept until the job has ended.
    let (private, _registry) = if hcl.contains("variable \"private_image\"") {
        let registry = auth_registry::registry(&locked, context.environment.catalog())?;
        (format!("{}/busybox:latest", registry.address()), Some(registry))
    } else {
        (String::new(), None)
    };
    if !private.is_empty() {
        variables = vec![("private_image", private.as_str()), ("password", auth_registry::PASSWORD)];
    }
    let registry = context.environment.registry().address();
    let with_volume = format!("{registry}/library/redis:alpine");
    if hcl.contains("variable \"volume_image\"") {
        variables = vec![("volume_image", with_volume.as_str())];
    }
    let archive = if hcl.contains("variable \"archive\"") { archive(context)? } else { String::new() };
    if !archive.is_empty() {
        variables = vec![("archive", archive.as_str())];
    }
    let played = ends_well(context, name, &hcl, &variables);
    let _ = fs::remove_dir_all(&directory);
    played
}

/// Returns a URL from which the agent can fetch an archive of busybox: the registry serves any file as a blob.
fn archive(context: &AgentContext) -> Result<String> {
    let registry = context.environment.registry();
    let image = context.environment.catalog().busybox(json!({"Env": ["PATH=/bin"]}))?;
    let archive = image.docker_archive(&["busybox:saved"])?;
    registry.put_blob("archives", &archive)?;
    Ok(format!("http://{}/v2/archives/blobs/{}", registry.address(), sha256(&archive)))
}

fn ends_well(context: &mut AgentContext, name: &str, hcl: &str, variables: &[(&str, &str)]) -> Result<()> {
    let id = context.start(&format!("option-{name}"), hcl, variables)?;
    let task = context.dead(&id, "main")?;
    let output = || {
        let log = |stderr| context.log(&id, "main", stderr).unwrap_or_default();
        String::from_utf8_lossy(&[log(false), log(true)].concat()).into_owned()
    };
    ensure!(!task.failed, "{}\nit said:\n{}", context.agent.allocation(&id)?.summary(), output());
    Ok(())
}
