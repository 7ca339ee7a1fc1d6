//! The attempts of one task: Nomad gives each an id of its own, and all of them the same cgroup.
//!
//! So an attempt that is left over, such as one whose handle the agent never wrote down, is taken down before the next one
//! is made; and nothing is ever killed by a cgroup that another attempt has, too. Each bundle says whose attempt it is in a
//! file of its own, and those of earlier builds say by their specification at least where their cgroup is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::place::Place;
use super::{Identity, NAMESPACE, Settings, Slot, Tasks};
use crate::error::{Error, Result};
use crate::shim::{self, Bundle, bundles};

/// The file in a bundle that says whose attempt it is.
const FILE: &str = "task";

/// Whose attempt a bundle is, and where its processes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attempt {
    pub(super) alloc_id: String,
    pub(super) task: String,
    /// Below the root of each hierarchy.
    pub(super) cgroup: PathBuf,
}

impl Attempt {
    /// Writes it into its bundle, whole or not at all.
    ///
    /// # Errors
    /// Names the file.
    pub(super) fn write(&self, bundle: &Bundle) -> Result<()> {
        let json = serde_json::to_vec(self)
            .map_err(|error| Error::Failed(format!("write down whose container it is: {error}")))?;
        Ok(bundle.write(FILE, &json)?)
    }

    /// Reads it from a bundle. None where the bundle doesn't say, as before its container is made.
    pub(super) fn read(bundle: &Bundle) -> Option<Self> {
        let written = std::fs::read(bundle.directory().join(FILE)).ok();
        let own = written.and_then(|json| serde_json::from_slice(&json).ok());
        own.or_else(|| {
            let spec = bundle.read_spec().ok()?;
            let cgroup = spec.linux().as_ref()?.cgroups_path().clone()?;
            Some(Self { alloc_id: String::new(), task: String::new(), cgroup })
        })
    }

    /// Whether both are attempts of one task.
    fn is_of_same_task(&self, other: &Self) -> bool {
        let same_name =
            !self.alloc_id.is_empty() && self.alloc_id == other.alloc_id && self.task == other.task;
        same_name || self.cgroup == other.cgroup
    }
}

/// What a teardown may do to the cgroup of its attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// Nobody else has it: whoever is in there is this attempt's.
    Own(PathBuf),
    /// Another attempt has it, too, or that can't be told.
    Shared(PathBuf),
    /// The bundle doesn't say which it is.
    Unknown,
}

impl Place {
    /// Looks for the cgroup of this attempt, and for others that have it. Blocking: not for an async thread.
    pub(super) fn group(&self) -> Group {
        let Some(attempt) = Attempt::read(&self.bundle) else { return Group::Unknown };
        match others(self.state_dir(), &self.id, &attempt, |_| false) {
            Ok(others) if others.is_empty() => Group::Own(attempt.cgroup),
            Ok(others) => {
                tracing::warn!(
                    container = self.id,
                    ?others,
                    "other attempts of this task have its cgroup, too"
                );
                Group::Shared(attempt.cgroup)
            }
            Err(error) => {
                tracing::warn!(container = self.id, %error, "can't tell whether other attempts have its cgroup");
                Group::Shared(attempt.cgroup)
            }
        }
    }
}

/// The containers of other attempts of the same task, but for those that are known not to be.
fn others(
    state_dir: &Path,
    own_id: &str,
    attempt: &Attempt,
    is_known: impl Fn(&str) -> bool,
) -> std::result::Result<Vec<String>, shim::Error> {
    let is_other = |id: &String| {
        // A task has one name, which the ids of all of its attempts begin with.
        id != own_id
            && has_same_name(id, own_id)
            && !is_known(id)
            && Attempt::read(&Bundle::at(state_dir, NAMESPACE, id))
                .is_some_and(|other| other.is_of_same_task(attempt))
    };
    Ok(bundles(state_dir, NAMESPACE)?.into_iter().filter(is_other).collect())
}

fn has_same_name(one: &str, other: &str) -> bool {
    let name = |id: &str| id.rsplit_once('-').map(|(name, _)| name.to_owned());
    name(one) == name(other)
}

impl Tasks {
    /// Takes down whatever earlier attempts of a task have left, in whichever state they are, before another one is made:
    /// Nomad has given up all of them.
    ///
    /// # Errors
    /// [`Error::Transient`] names the container that could not be taken down.
    pub(super) async fn end_earlier_attempts(
        self: &Arc<Self>,
        settings: &Arc<Settings>,
        place: &Place,
        attempt: Attempt,
    ) -> Result<()> {
        let mut earlier = self.live_attempts(&attempt, &place.id);
        earlier.extend(self.left_attempts(place, attempt).await?);
        for id in earlier {
            tracing::warn!(
                container = id,
                by = place.id,
                "Nomad starts this task anew; taking down an earlier attempt of it first"
            );
            self.destroy_container(Arc::clone(settings), &id, true).await.map_err(|error| {
                Error::Transient(format!(
                    "container {id}, an earlier attempt of this task, can't be taken down yet, and two must not run at \
                     once: {error}"
                ))
            })?;
        }
        Ok(())
    }

    /// Those of this plugin.
    fn live_attempts(&self, attempt: &Attempt, own_id: &str) -> Vec<String> {
        let is_it = |Identity { task_id: _, alloc_id, name }: &Identity| {
            !alloc_id.is_empty() && *alloc_id == attempt.alloc_id && *name == attempt.task
        };
        let slots = self.lock();
        let found = slots.iter().filter(|(id, slot)| {
            *id != own_id
                && match slot {
                    Slot::Starting(starting) => is_it(&starting.identity),
                    Slot::Here(task) => is_it(&task.identity),
                    Slot::Ending => false,
                }
        });
        found.map(|(id, _)| id.clone()).collect()
    }

    /// Those of which only the bundle is left.
    async fn left_attempts(&self, place: &Place, attempt: Attempt) -> Result<Vec<String>> {
        let known: Vec<String> = {
            let slots = self.lock();
            let is_known = |slot: &Slot| matches!(slot, Slot::Starting(_) | Slot::Here(_));
            slots.iter().filter(|(_, slot)| is_known(slot)).map(|(id, _)| id.clone()).collect()
        };
        let (state_dir, id) = (place.state_dir().to_owned(), place.id.clone());
        let look = move || others(&state_dir, &id, &attempt, |id| known.iter().any(|known| known == id));
        let found = tokio::task::spawn_blocking(look).await;
        found.map_err(|error| Error::Failed(format!("look for earlier attempts: {error}")))?.map_err(
            |error| {
                Error::Transient(format!("can't tell whether an earlier attempt of this task runs: {error}"))
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(state: &Path, id: &str) -> Bundle {
        let bundle = Bundle::at(state, NAMESPACE, id);
        bundle.create(Path::new("/bin/shim")).unwrap();
        bundle
    }

    fn attempt(alloc: &str, task: &str) -> Attempt {
        Attempt {
            alloc_id: alloc.to_owned(),
            task: task.to_owned(),
            cgroup: Path::new("/nomad").join(format!("{alloc}.{task}")),
        }
    }

    #[test]
    fn attempts_of_one_task_are_found_and_others_are_not() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path();
        let others = |id: &str, of: &Attempt| {
            let mut found = others(path, id, of, |id| id == "web-known").unwrap();
            found.sort();
            found
        };
        for (id, of) in [
            ("web-1", attempt("a", "web")),
            ("web-2", attempt("a", "web")),
            ("web-known", attempt("a", "web")),
            ("web-3", attempt("b", "web")),
            ("db-1", attempt("a", "db")),
        ] {
            of.write(&bundle(path, id)).unwrap();
        }
        bundle(path, "web-nothing-said");
        assert_eq!(others("web-1", &attempt("a", "web")), ["web-2"]);
        assert_eq!(others("web-new", &attempt("a", "web")), ["web-1", "web-2"]);
        assert_eq!(others("web-3", &attempt("b", "web")), [""; 0]);
        assert_eq!(others("db-1", &attempt("a", "db")), [""; 0]);
    }

    #[test]
    fn an_attempt_of_an_earlier_build_is_known_by_its_cgroup() {
        let state = tempfile::tempdir().unwrap();
        let old = bundle(state.path(), "web-1");
        assert_eq!(Attempt::read(&old), None, "nothing was made yet");
        let spec = r#"{"ociVersion":"1.0.2","linux":{"cgroupsPath":"/nomad/a.web"}}"#;
        std::fs::write(old.directory().join("config.json"), spec).unwrap();
        let read = Attempt::read(&old).unwrap();
        assert!(read.is_of_same_task(&attempt("a", "web")) && !read.is_of_same_task(&attempt("b", "web")));
        std::fs::write(old.directory().join("config.json"), &spec[..30]).unwrap();
        assert_eq!(Attempt::read(&old), None);
        attempt("a", "web").write(&old).unwrap();
        assert_eq!(Attempt::read(&old), Some(attempt("a", "web")));
    }
}
