//! Shims and runtimes that fail, played by scripts in front of the real ones on the plugin's PATH. Removing a file ends
//! the failure, so that the same plugin shows that it still works.

use std::fs;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use harness::context::CaseContext;
use harness::task::{LIMIT, Task};
use nix::sys::signal::{Signal, kill};
use nomad_proto::driver::WaitTaskResponse;
use serde_json::json;

use crate::cases::support::processes::shim_pid;
use crate::cases::support::scripted::{SHIM, Scripted, refusal, runc};
use crate::cases::support::stoppable_task::{end_and_destroy, start_stoppable};
use crate::cases::support::{cases, ensure_eq, refused, until};

cases!["shim failure":
    a_shim_that_hangs_is_given_up,
    a_shim_that_fails_is_quoted,
    a_shim_that_answers_nonsense_is_refused,
    a_shim_that_dies_at_once_is_an_error,
    a_runtime_that_fails_to_create_is_quoted,
    a_runtime_that_fails_after_it_created_leaves_nothing,
    a_runtime_that_fails_to_start_is_quoted,
    a_missing_runtime_is_named,
    the_operators_runtime_runs_and_a_missing_one_is_named,
    a_start_that_is_called_off_while_the_runtime_creates_leaves_nothing,
    a_start_that_is_stopped_while_the_runtime_creates_leaves_nothing,
    a_create_cut_off_before_its_runtime_is_recorded_leaves_nothing,
    a_lost_shim_whose_clean_up_fails_leaves_nothing_that_runs,
    a_lost_shim_whose_binary_is_gone_is_cleaned_up_by_the_configured_one,
    a_connection_that_breaks_again_and_again_ends_no_task,
    a_shim_that_panics_is_quoted_with_its_last_words,
];

/// Asserts that a start with a scripted shim or runtime fails with these words and leaves nothing, and that starts work
/// once the script is mended.
async fn fails(case: &CaseContext, scripted: &Scripted, words: &[&str], left_within: Duration) -> Result<()> {
    refusal(case, scripted, words, left_within).await.map(drop)
}

const SOON: Duration = Duration::from_secs(3);

async fn a_shim_that_hangs_is_given_up(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    let script = "case \"$*\" in *start) sleep 600 & exec sleep 600;; esac";
    scripted.shim(script)?;
    fails(case, &scripted, &[SHIM], Duration::from_secs(10)).await
}

async fn a_shim_that_fails_is_quoted(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    scripted.shim("echo 'no shims on tuesdays' >&2; exit 1")?;
    fails(case, &scripted, &[SHIM, "no shims on tuesdays"], SOON).await
}

async fn a_shim_that_answers_nonsense_is_refused(case: &CaseContext) -> Result<()> {
    for answer in ["echo hello", "printf '{\"version\":99}'", "true", "echo unix:///no/such/socket"] {
        let scripted = Scripted::new(case)?;
        scripted.shim(&format!("case \"$*\" in *start) {answer}; exit 0;; esac"))?;
        fails(case, &scripted, &[], SOON).await?;
    }
    Ok(())
}

async fn a_shim_that_dies_at_once_is_an_error(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    // The script starts the real shim, and kills its server before its address is reported.
    let script = "case \"$*\" in *start)\n  answer=$($real \"$@\") || exit 1\n  \
                  for p in /proc/[0-9]*; do\n    \
                  line=$(tr '\\0' ' ' < $p/cmdline 2>/dev/null)\n    \
                  case \"$line\" in $real*-id*) [ \"$(readlink $p/cwd)\" = \"$PWD\" ] && kill -9 ${p#/proc/};; esac\n  \
                  done\n  printf %s \"$answer\"; exit 0;;\nesac";
    scripted.shim(script)?;
    fails(case, &scripted, &["shim"], SOON).await
}

async fn a_runtime_that_fails_to_create_is_quoted(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    scripted.runtime(&runc("create", "complain 'out of containers'"))?;
    fails(case, &scripted, &["out of containers"], SOON).await
}

async fn a_runtime_that_fails_after_it_created_leaves_nothing(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    scripted.runtime(&runc("create", "$real \"$@\"; complain 'second thoughts'"))?;
    fails(case, &scripted, &["second thoughts"], SOON).await
}

async fn a_runtime_that_fails_to_start_is_quoted(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    scripted.runtime(&runc("start", "complain 'not today'"))?;
    fails(case, &scripted, &["not today"], SOON).await
}

async fn a_missing_runtime_is_named(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    scripted.runtime("exec /no/such/runc")?;
    // The shim in Rust passes on the runtime's error only from the runtime's log.
    let runtime = case.programs().runtime_name();
    let words = if case.programs().is_rust_shim() { "OCI runtime create failed" } else { &runtime };
    fails(case, &scripted, &[words], SOON).await
}

async fn the_operators_runtime_runs_and_a_missing_one_is_named(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    let ran = scripted.directory.join("ran");
    scripted.runtime_as("mine", &format!("touch {}", ran.display()))?;
    let mut options = case.options();
    options["oci_runtime"] = json!(scripted.directory.join("mine"));
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    case.still_works(&plugin).await?;
    ensure!(ran.exists(), "another runtime ran");
    plugin.shut_down().await?;
    options["oci_runtime"] = json!("no-such-runtime");
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = case.prepare(&plugin, &case.shell("true")).await?;
    refused(plugin.start_task(task.config.clone()).await, &["no-such-runtime"])?;
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn a_start_that_is_called_off_while_the_runtime_creates_leaves_nothing(
    case: &CaseContext,
) -> Result<()> {
    let scripted = Scripted::new(case)?;
    scripted.runtime(&runc("create", "sleep 1; exec $real \"$@\""))?;
    let mut plugin = scripted.plugin(case).await?;
    let task = case.prepare(&plugin, &case.shell("sleep 600")).await?;
    let cut = tokio::time::timeout(Duration::from_millis(700), plugin.start_task(task.config.clone())).await;
    ensure!(cut.is_err(), "it was not held up: {cut:?}");
    case.nothing_left_within(Duration::from_secs(15))?;
    ensure_eq!(task.alloc.cgroup.pids(), Vec::<i32>::new());
    scripted.repair()?;
    case.still_works(&plugin).await?;
    plugin.shut_down().await
}

async fn a_start_that_is_stopped_while_the_runtime_creates_leaves_nothing(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    let reached = scripted.directory.join("reached");
    let slow = format!("touch {}; sleep 1; exec $real \"$@\"", reached.display());
    scripted.runtime(&runc("create", &slow))?;
    let mut plugin = scripted.plugin(case).await?;
    let task = case.prepare(&plugin, &case.shell("sleep 600")).await?;
    let stop = async {
        until(Duration::from_secs(30), "the create", || reached.exists()).await?;
        task.stop(&plugin, Duration::from_secs(60)).await?;
        case.nothing_left()
    };
    let (started, stopped) = tokio::join!(plugin.start_task(task.config.clone()), stop);
    stopped?;
    refused(started, &[task.id(), "cancelled"])?;
    scripted.repair()?;
    case.still_works(&plugin).await?;
    plugin.shut_down().await
}

/// The shim writes its options and its runtime's name into the bundle, and its clean-up needs both. A death right
/// between the two can't be timed, so the runtime removes them again.
async fn a_create_cut_off_before_its_runtime_is_recorded_leaves_nothing(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    let reached = scripted.directory.join("reached");
    let hang = format!("rm runtime; : > options.json; touch {}; exec sleep 600", reached.display());
    scripted.runtime(&runc("create", &hang))?;
    let mut plugin = scripted.plugin(case).await?;
    let task = case.prepare(&plugin, &case.shell("sleep 600")).await?;
    tokio::select! {
        started = plugin.start_task(task.config.clone()) => bail!("it was not held up: {started:?}"),
        there = until(Duration::from_secs(30), "the create", || reached.exists()) => there?,
    }
    plugin.kill().await?;
    scripted.repair()?;
    let mut next = scripted.plugin(case).await?;
    case.nothing_left_within(Duration::from_secs(40))?;
    case.still_works(&next).await?;
    next.shut_down().await
}

/// Asserts that a task's end is reported as that of a lost shim, and that none of its processes runs.
fn is_lost_whole(task: &Task, answer: &WaitTaskResponse) -> Result<()> {
    ensure!(answer.err.contains("shim"), "WaitTask's err is {:?}", answer.err);
    ensure_eq!(task.alloc.cgroup.pids(), Vec::<i32>::new());
    Ok(())
}

async fn a_lost_shim_whose_clean_up_fails_leaves_nothing_that_runs(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    scripted.shim("case \"$*\" in *delete) echo 'no clean-up on tuesdays' >&2; exit 1;; esac")?;
    for while_it_is_watched in [true, false] {
        let mut plugin = scripted.plugin(case).await?;
        let task = case.run(&plugin, &case.shell("sleep 600 & sleep 600")).await?;
        task.processes_become(2).await?;
        if while_it_is_watched {
            let waiting = task.wait_answer(&plugin);
            kill(shim_pid(case)?, Signal::SIGKILL)?;
            is_lost_whole(&task, &waiting.await?)?;
        } else {
            plugin.kill().await?;
            kill(shim_pid(case)?, Signal::SIGKILL)?;
            plugin = scripted.plugin(case).await?;
        }
        // The task needs no clean-up by the shim any more.
        task.end(&plugin).await?;
        case.nothing_left()?;
        ensure!(plugin.log().all().join("\n").contains("tuesdays"), "the clean-up was not tried");
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn a_lost_shim_whose_binary_is_gone_is_cleaned_up_by_the_configured_one(
    case: &CaseContext,
) -> Result<()> {
    let scripted = Scripted::new(case)?;
    scripted.shim("true")?;
    let mut plugin = scripted.plugin(case).await?;
    let task = case.run(&plugin, &case.shell("sleep 600 & sleep 600")).await?;
    plugin.kill().await?;
    // The shim's binary is removed, as by an upgrade.
    fs::remove_file(scripted.directory.join(SHIM))?;
    let mut next = case.plugin().await?;
    task.recover(&next).await?;
    let waiting = task.wait_answer(&next);
    kill(shim_pid(case)?, Signal::SIGKILL)?;
    is_lost_whole(&task, &waiting.await?)?;
    ensure!(!next.log().all().join("\n").contains("clean-up failed"), "nobody has cleaned up");
    task.destroy(&next).await?;
    case.nothing_left()?;
    next.shut_down().await
}

/// A proxy between a plugin and a shim. Its address is as long as the shim's, so it fits into any form of answer.
struct ShimProxy {
    address: PathBuf,
    connections: Arc<Mutex<Vec<UnixStream>>>,
}

impl ShimProxy {
    /// Passes connections on to the address that is in the file `real` by then.
    fn listen(real: PathBuf) -> Result<Self> {
        let address = Path::new("/run/containerd/s").join(format!("{:064x}", std::process::id()));
        let _ = fs::remove_file(&address);
        fs::create_dir_all("/run/containerd/s")?;
        let listener = UnixListener::bind(&address)?;
        let connections: Arc<Mutex<Vec<UnixStream>>> = Arc::default();
        let all = Arc::clone(&connections);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = fs::read_to_string(&real).and_then(|at| UnixStream::connect(at.trim()))
                else {
                    return;
                };
                let ends = [(&client, &server), (&server, &client)];
                for (from, to) in ends.map(|(from, to)| (from.try_clone(), to.try_clone())) {
                    let (Ok(mut from), Ok(mut to)) = (from, to) else { return };
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                all.lock().unwrap_or_else(PoisonError::into_inner).extend([client, server]);
            }
        });
        Ok(Self { address, connections })
    }

    /// Breaks all connections. Returns their number.
    fn cut(&self) -> usize {
        let all = std::mem::take(&mut *self.connections.lock().unwrap_or_else(PoisonError::into_inner));
        all.iter().for_each(|connection| drop(connection.shutdown(Shutdown::Both)));
        all.len() / 2
    }
}

impl Drop for ShimProxy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.address);
    }
}

async fn a_connection_that_breaks_again_and_again_ends_no_task(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    let real = scripted.directory.join("real");
    let between = ShimProxy::listen(real.clone())?;
    let sockets = "/run/containerd/s/[0-9a-f]*";
    scripted.shim(&format!(
        "case \"$*\" in *start)\n  $real \"$@\" > $0.answer || exit 1\n  grep -ao '{sockets}' $0.answer > {}\n  \
         sed 's,{sockets},{},' $0.answer; exit 0;;\nesac",
        real.display(),
        between.address.display(),
    ))?;
    let mut plugin = scripted.plugin(case).await?;
    let task = start_stoppable(case, &plugin).await?;
    for _ in 0..5 {
        until(LIMIT, "a connection", || between.cut() > 0).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    ensure_eq!(task.exec(&plugin, "echo here").await?, (0, "here\n".to_owned()));
    end_and_destroy(&task, &plugin).await?;
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn a_shim_that_panics_is_quoted_with_its_last_words(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    scripted.shim("head -c 3000000 /dev/zero | tr '\\0' x >&2; printf '\\377 goroutine 7' >&2; exit 2")?;
    let mut plugin = scripted.plugin(case).await?;
    let task = case.prepare(&plugin, &case.shell("exit 3")).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &[SHIM, "goroutine 7"])?;
    ensure!(status.message().len() < 16 * 1024, "{} bytes of a panic", status.message().len());
    case.nothing_left()?;
    plugin.shut_down().await
}
