//! The choice that `oci_runtime = "auto"` leaves to the driver: crun where it is there and fit for this host, else runc.
//! What a crun tells of itself is found out once for each file in PATH; the host's cgroups are looked at for each choice.
//! A running task's shim looks for crun in PATH at each call, so it is checked again before an exec.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::error::{Error, Result};
use crate::shim::{self, FileId, RUNC};
use crate::sys::error_chain::Chained;
use crate::sys::host_files;

const CRUN: &str = "crun";
/// Time after which a crun that could not be judged is judged again.
const REPEAT: Duration = Duration::from_secs(10);
const REPLACED: &str = "it is being replaced";

/// Shared by all configurations: PATH is that of the plugin.
static AUTO: AutoRuntime = AutoRuntime::new();

/// The reason why a crun can't be used, and `None` if it can. The error is the reason why that can't be told for now.
type Verdict = std::result::Result<Option<String>, String>;
/// The file of a program, or the error that there is none. `None` if it vanishes meanwhile.
type Found = std::result::Result<Option<FileId>, shim::Error>;

/// A program that was chosen.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) program: &'static str,
    /// The crun that fits; `None` if the program is runc.
    pub(super) crun: Option<FileId>,
}

/// Chooses the program.
///
/// # Errors
/// If there is neither a crun that fits nor a runc; says what each lacks. Transient if crun can't be judged for now.
pub(super) async fn choose() -> Result<Choice> {
    let look = || (shim::identify_program(CRUN), shim::unfit_crun_by_cgroups(), shim::identify_program(RUNC));
    let (crun, cgroups, runc) = look_in_path(look).await?;
    let verdict = match AUTO.verdict(&crun).await {
        Ok(None) => cgroups,
        verdict => verdict,
    };
    let choice = decide(crun.ok().flatten(), &verdict, runc)?;
    AUTO.say(verdict.unwrap_or_else(Some));
    Ok(choice)
}

/// Checks that crun is still the file that was chosen.
///
/// # Errors
/// Transient, if it isn't.
pub(super) async fn check_unchanged(crun: FileId) -> Result<()> {
    match look_in_path(|| shim::identify_program(CRUN)).await? {
        Ok(Some(found)) if found == crun => Ok(()),
        _ => Err(Error::transient(
            "the crun that oci_runtime = \"auto\" has chosen was replaced or removed since; the next start chooses anew",
        )),
    }
}

/// Checks the crun that a shim would run a command by, in a task for which crun was chosen.
///
/// # Errors
/// If it does not fit. Transient if it can't be judged for now.
pub(super) async fn check_for_exec() -> Result<()> {
    let crun = look_in_path(|| shim::identify_program(CRUN)).await?;
    let refusal = |reason: &str| {
        format!(
            "oci_runtime = \"auto\" has chosen crun for the task, and the crun that is there now can't be used ({reason}): put \
             one that fits into the agent's PATH, or restart the task"
        )
    };
    match AUTO.verdict(&crun).await {
        Ok(None) => Ok(()),
        Ok(Some(reason)) => Err(Error::failed(refusal(&reason))),
        Err(reason) => Err(Error::transient(refusal(&reason))),
    }
}

async fn look_in_path<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let looked = host_files::look(Path::new("/usr"), host_files::LIMIT, look).await;
    looked.map_err(|error| Error::system("find the programs of the runtime, by PATH", error))
}

fn decide(crun: Option<FileId>, verdict: &Verdict, runc: Found) -> Result<Choice> {
    let (reason, passes) = match verdict {
        Ok(None) => return Ok(Choice { program: CRUN, crun }),
        Ok(Some(reason)) => (reason, false),
        Err(reason) => (reason, true),
    };
    match runc {
        Ok(_) => Ok(Choice { program: RUNC, crun: None }),
        Err(error) => Err(Error::refused(error, passes).context(format_args!(
            "the option oci_runtime is \"auto\", and crun can't be used ({reason}); choose runc"
        ))),
    }
}

/// What is known of crun.
#[derive(Debug)]
struct AutoRuntime {
    judging: Mutex<Option<Judging>>,
    /// The reason against crun that the log has, `None` for one that fits.
    said: Mutex<Option<Option<String>>>,
}

/// The last judgement of a crun.
#[derive(Debug)]
struct Judging {
    crun: FileId,
    begun: Instant,
    /// `None` while a crun is judged for the first time.
    verdict: watch::Receiver<Option<Verdict>>,
}

impl AutoRuntime {
    const fn new() -> Self {
        Self { judging: Mutex::new(None), said: Mutex::new(None) }
    }

    async fn verdict(&self, crun: &Found) -> Verdict {
        match crun {
            Ok(Some(crun)) => self.judged(*crun, shim::unfit_crun(CRUN)).await,
            Ok(None) => Err(REPLACED.to_owned()),
            Err(missing) => Ok(Some(missing.chain().to_string())),
        }
    }

    /// Returns what is found by `judge`, which is run once for all that wait for it, and again only after it has failed.
    /// Until then, and while it is run again, the failure is returned.
    async fn judged(&self, crun: FileId, judge: impl Future<Output = Verdict> + Send + 'static) -> Verdict {
        let mut verdict = self.begin(crun, judge);
        let found = verdict.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
        found.unwrap_or_else(|| Err("the look at it was interrupted".to_owned()))
    }

    fn begin(
        &self,
        crun: FileId,
        judge: impl Future<Output = Verdict> + Send + 'static,
    ) -> watch::Receiver<Option<Verdict>> {
        let mut judging = self.judging.lock().unwrap_or_else(PoisonError::into_inner);
        let same = judging.as_ref().filter(|judging| judging.crun == crun);
        let last = same.and_then(|judging| judging.verdict.borrow().clone());
        if let Some(same) = same {
            let counts = match &last {
                None => same.verdict.has_changed().is_ok(),
                Some(Ok(_)) => true,
                Some(Err(_)) => same.begun.elapsed() < REPEAT,
            };
            if counts {
                return same.verdict.clone();
            }
        }
        let (sender, verdict) = watch::channel(last);
        tokio::spawn(async move { sender.send_replace(Some(judge.await)) });
        *judging = Some(Judging { crun, begun: Instant::now(), verdict: verdict.clone() });
        verdict
    }

    /// Logs a choice that differs from the last one.
    fn say(&self, reason: Option<String>) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.as_ref() == Some(&reason) {
            return;
        }
        match &reason {
            None => tracing::info!("oci_runtime = \"auto\": tasks are run by crun"),
            Some(reason) => {
                tracing::info!(reason, "oci_runtime = \"auto\": tasks are run by runc, not by crun");
            }
        }
        *said = Some(reason);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn files() -> (FileId, FileId) {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, name).unwrap();
            FileId::of(&path).unwrap()
        };
        (file("first"), file("second"))
    }

    async fn untouched() -> Verdict {
        panic!("it was judged again")
    }

    #[tokio::test]
    async fn a_crun_is_judged_once_and_another_anew() {
        let (first, second) = files();
        assert_ne!(first, second);
        let runtime = AutoRuntime::new();
        for (crun, verdict) in [(first, None), (second, Some("old")), (first, Some("no seccomp"))] {
            let verdict: Verdict = Ok(verdict.map(str::to_owned));
            let judge = std::future::ready(verdict.clone());
            assert_eq!(runtime.judged(crun, judge).await, verdict);
            assert_eq!(runtime.judged(crun, untouched()).await, verdict);
        }
        let missing = shim::identify_program("/no/such/crun");
        assert!(runtime.verdict(&missing).await.unwrap().unwrap().contains("/no/such/crun"));
        assert_eq!(runtime.verdict(&Ok(None)).await, Err(REPLACED.to_owned()));
        // Neither of them is kept.
        assert_eq!(runtime.judged(first, untouched()).await, Ok(Some("no seccomp".to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn a_crun_that_could_not_be_judged_is_judged_again_after_a_while() {
        let (crun, _) = files();
        let runtime = AutoRuntime::new();
        let failed: Verdict = Err("no memory".to_owned());
        assert_eq!(runtime.judged(crun, std::future::ready(failed.clone())).await, failed);
        assert_eq!(runtime.judged(crun, untouched()).await, failed);
        tokio::time::advance(REPEAT).await;
        let (send, judged) = tokio::sync::oneshot::channel::<Verdict>();
        let judge = async { judged.await.unwrap() };
        // Nobody waits for a repetition.
        assert_eq!(runtime.judged(crun, judge).await, failed);
        assert_eq!(runtime.judged(crun, untouched()).await, failed);
        send.send(Ok(None)).unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(runtime.judged(crun, untouched()).await, Ok(None));
    }

    #[tokio::test]
    async fn all_that_wait_share_one_judgement_and_one_may_leave() {
        let (crun, _) = files();
        let runtime = AutoRuntime::new();
        let judged = Arc::new(AtomicUsize::new(0));
        let (go_on, gate) = watch::channel(false);
        let judge = || {
            let (judged, mut gate) = (Arc::clone(&judged), gate.clone());
            async move {
                judged.fetch_add(1, Ordering::Relaxed);
                gate.wait_for(|open| *open).await.unwrap();
                Ok(None)
            }
        };
        tokio::select! {
            biased;
            verdict = runtime.judged(crun, judge()) => panic!("{verdict:?}"),
            () = tokio::task::yield_now() => {}
        }
        let open = async { go_on.send(true).unwrap() };
        let (first, second, ()) =
            tokio::join!(runtime.judged(crun, judge()), runtime.judged(crun, judge()), open);
        assert_eq!((first, second, judged.load(Ordering::Relaxed)), (Ok(None), Ok(None), 1));
    }

    #[test]
    fn runc_is_taken_for_a_crun_that_does_not_fit_and_nothing_is_final_that_may_pass() {
        let (crun, runc) = files();
        let missing = || shim::identify_program("/no/such/runc");
        let unfit: Verdict = Ok(Some("too old".to_owned()));
        let unknown: Verdict = Err("no memory".to_owned());
        let choice = decide(Some(crun), &Ok(None), missing()).unwrap();
        assert_eq!((choice.program, choice.crun), (CRUN, Some(crun)));
        for verdict in [&unfit, &unknown] {
            let choice = decide(Some(crun), verdict, Ok(Some(runc))).unwrap();
            assert_eq!((choice.program, choice.crun), (RUNC, None));
        }
        let error = decide(Some(crun), &unfit, missing()).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error:?}");
        let error = decide(Some(crun), &unknown, missing()).unwrap_err();
        assert!(matches!(error, Error::Transient(_)), "{error:?}");
        let text = error.chain().to_string();
        for word in ["no memory", "crun", "/no/such/runc"] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
    }
}
