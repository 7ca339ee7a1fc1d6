//! The attempts of one task: Nomad gives each an id of its own, and all of them the same cgroup.
//!
//! An attempt that is left over, such as one whose handle the agent never wrote down, is taken down before the next one
//! is made, and no process is ever killed by a cgroup that another attempt has, too. Each bundle identifies its attempt
//! in a file of its own; a bundle of an earlier build has at least the cgroup, in its specification.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::attempt::Attempt;
use super::container::ContainerHandles;
use super::error::{Error, Result};
use super::slot::Occupant;
use super::{Identity, Settings, Slot, Tasks};
use crate::shim::{self, Bundle, bundles};
use crate::sys::error_chain::Chained;

/// An attempt's cgroup, by what a teardown may do to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Group {
    /// A cgroup that no other attempt has: every process in it is this attempt's.
    Own(PathBuf),
    /// A cgroup that another attempt has, too.
    Shared(PathBuf),
    /// A cgroup of which it can't be told whether another attempt has it, too.
    Unread(PathBuf),
    /// No cgroup is known: the bundle doesn't name one.
    Unknown,
    /// No cgroup is known: the bundle can't be read, for this reason.
    Unreadable(String),
}

impl Group {
    /// Judges an attempt's cgroup by the number of other attempts that may have it, too.
    pub(super) fn among<E>(cgroup: PathBuf, others: &std::result::Result<usize, E>) -> Self {
        match others {
            Ok(0) => Self::Own(cgroup),
            Ok(_) => Self::Shared(cgroup),
            Err(_) => Self::Unread(cgroup),
        }
    }

    /// Returns the cgroup in which every process is this attempt's, and may be killed as such.
    pub(super) fn own(&self) -> Option<&Path> {
        if let Self::Own(path) = self { Some(path) } else { None }
    }
}

impl ContainerHandles {
    /// Determines the cgroup of this attempt, and whether other attempts have it. Blocking: not for an async thread.
    pub(super) fn group(&self) -> Group {
        self.restore();
        let attempt = match Attempt::read(&self.bundle) {
            Ok(Some(attempt)) => attempt,
            Ok(None) => return Group::Unknown,
            Err(error) => return Group::Unreadable(error.chain().to_string()),
        };
        let others = others(self.state_dir(), &self.launcher.namespace, &self.id, |_, other| {
            other.may_share_cgroup(&attempt)
        });
        match &others {
            Ok(others) if others.is_empty() => {}
            Ok(others) => {
                tracing::warn!(container = self.id, ?others, "other attempts of this task share its cgroup");
            }
            Err(error) => {
                tracing::warn!(container = self.id, error = %error.chain(), "can't tell whether other attempts share its cgroup");
            }
        }
        Group::among(attempt.cgroup, &others.map(|others| others.len()))
    }
}

/// Returns the ids of the other containers whose attempts `is_meant` selects.
fn others(
    state_dir: &Path,
    namespace: &str,
    own_id: &str,
    is_meant: impl Fn(&str, &Attempt) -> bool,
) -> std::result::Result<Vec<String>, shim::Error> {
    let mut found = bundles(state_dir, namespace)?;
    // A task has one name, with which the ids of all its attempts begin.
    found.retain(|id| id != own_id && has_same_name(id, own_id));
    let is_other = |id: &String| {
        let other = Attempt::read(&Bundle::at(state_dir, namespace, id))?;
        Ok(other.is_some_and(|other| is_meant(id, &other)))
    };
    let meant = found.into_iter().filter_map(|id| is_other(&id).map(|is_it| is_it.then_some(id)).transpose());
    meant.collect()
}

fn has_same_name(one: &str, other: &str) -> bool {
    let name = |id: &str| id.rsplit_once('-').map(|(name, _)| name.to_owned());
    name(one) == name(other)
}

impl Tasks {
    /// Takes down whatever earlier attempts of a task have left, in whichever state they are, before another attempt is
    /// made: Nomad has given up all of them. Parts that are left after the end of an attempt's processes, such as an
    /// address that a CNI plugin doesn't release, are removed later: they keep no other attempt from running. `order`
    /// is the number of the start that asks.
    ///
    /// # Errors
    /// [`Error::Transient`] names a container that may still run.
    pub(super) async fn end_earlier_attempts(
        self: &Arc<Self>,
        settings: &Arc<Settings>,
        container: &ContainerHandles,
        attempt: Attempt,
        order: u64,
    ) -> Result<()> {
        let mut earlier = live_attempts(&self.lock(), &attempt, &container.id, order);
        earlier.extend(self.left_attempts(container, attempt).await?);
        for id in earlier {
            tracing::warn!(
                container = id,
                by = container.id,
                "Nomad starts this task again; removing an earlier attempt first"
            );
            let Err(error) = self.destroy_container(Arc::clone(settings), &id, true).await else { continue };
            let bundle = Bundle::at(container.state_dir(), settings.namespace(), &id);
            if !bundle.off_thread(Bundle::has_no_processes).await {
                return Err(Error::transient(error).context(format_args!(
                    "container {id}, an earlier attempt of this task, can't be removed yet, and two attempts must \
                     not run at once"
                )));
            }
            tracing::warn!(
                container = id,
                error = %error.chain(),
                "no process of an earlier attempt is running; the rest of it is removed later"
            );
        }
        Ok(())
    }

    /// Returns the earlier attempts of which only the bundle is left.
    async fn left_attempts(&self, container: &ContainerHandles, attempt: Attempt) -> Result<Vec<String>> {
        let known: Vec<String> = {
            let slots = self.lock();
            slots
                .iter()
                .filter(|(_, slot)| Occupant::of(Some(slot)).is_known())
                .map(|(id, _)| id.clone())
                .collect()
        };
        let (state_dir, id) = (container.state_dir().to_owned(), container.id.clone());
        let namespace = container.launcher.namespace.clone();
        let is_meant = move |id: &str, other: &Attempt| {
            !known.iter().any(|known| known == id) && other.is_of_same_task(&attempt)
        };
        let look = move || others(&state_dir, &namespace, &id, is_meant);
        let found = tokio::task::spawn_blocking(look).await;
        let found = found.map_err(|error| Error::failed(error).context("look for earlier attempts"))?;
        found.map_err(|error| {
            let doing = "can't tell whether an earlier attempt of this task is running";
            Error::transient(error).context(doing)
        })
    }
}

/// Returns the earlier attempts in this plugin's registry. Of two that are started at the same time only the later one
/// ends the other.
fn live_attempts(slots: &HashMap<String, Slot>, attempt: &Attempt, own_id: &str, order: u64) -> Vec<String> {
    let is_it = |Identity { task_id: _, alloc_id, name }: &Identity| {
        !alloc_id.is_empty() && *alloc_id == attempt.alloc_id && *name == attempt.task
    };
    let found = slots.iter().filter(|(id, slot)| {
        let (identity, its_order) = match slot {
            Slot::Starting(starting) => (&starting.identity, Some(starting.order)),
            Slot::Active(task) => (&task.identity, None),
            Slot::Removing => return false,
        };
        *id != own_id && is_it(identity) && Occupant::of(Some(slot)).is_ended_by(its_order, order)
    });
    found.map(|(id, _)| id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::task::Starting;
    use crate::task::attempt::FILE;

    fn bundle(state: &Path, id: &str) -> Bundle {
        let bundle = Bundle::at(state, "nomad", id);
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
            let is_meant = |id: &str, other: &Attempt| id != "web-known" && other.is_of_same_task(of);
            let mut found = others(path, "nomad", id, is_meant).unwrap();
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
    fn an_unreadable_attempt_may_be_of_any_task() {
        let state = tempfile::tempdir().unwrap();
        let read = bundle(state.path(), "web-1");
        attempt("a", "web").write(&read).unwrap();
        let unread = bundle(state.path(), "web-2");
        std::os::unix::fs::symlink(FILE, unread.directory().join(FILE)).unwrap();
        assert!(Attempt::read(&unread).is_err());
        let found = |id: &str| {
            others(state.path(), "nomad", id, |_, other| other.may_share_cgroup(&attempt("a", "web")))
        };
        assert!(found("web-1").is_err(), "whether it has the cgroup, too, is not known");
        assert!(found("db-1").unwrap().is_empty(), "its name says that it is none");
    }

    #[test]
    fn names_count_before_cgroups_and_a_shared_cgroup_is_never_ones_own() {
        let (web, mut db) = (attempt("a", "web"), attempt("a", "db"));
        db.cgroup.clone_from(&web.cgroup);
        assert!(!web.is_of_same_task(&db) && web.may_share_cgroup(&db));
        let elsewhere = Attempt { cgroup: "/nomad.slice/reserve.slice/a.web.scope".into(), ..web.clone() };
        assert!(web.is_of_same_task(&elsewhere) && web.may_share_cgroup(&elsewhere));
        assert!(!web.may_share_cgroup(&attempt("a", "db")));
    }

    #[test]
    fn of_two_starts_at_the_same_time_the_later_one_ends_the_other() {
        let start = |order, alloc: &str, name: &str| {
            let identity =
                Identity { task_id: String::new(), alloc_id: alloc.to_owned(), name: name.to_owned() };
            let (cancelled, is_in_line) = (CancellationToken::new(), Arc::default());
            Slot::Starting(Starting { identity, cancelled, is_in_line, order })
        };
        let slots = [
            ("web-1", start(4, "a", "web")),
            ("web-2", start(5, "a", "web")),
            ("db-1", start(3, "a", "db")),
            ("web-3", start(2, "b", "web")),
            ("web-4", start(1, "", "web")),
        ];
        let slots = slots.map(|(id, slot)| (id.to_owned(), slot)).into();
        assert_eq!(live_attempts(&slots, &attempt("a", "web"), "web-2", 5), ["web-1"]);
        assert_eq!(live_attempts(&slots, &attempt("a", "web"), "web-1", 4), [""; 0]);
        assert_eq!(live_attempts(&slots, &attempt("", "web"), "web-5", 6), [""; 0], "it has no allocation");
    }

    #[test]
    fn an_attempt_of_an_earlier_build_is_known_by_its_cgroup() {
        let state = tempfile::tempdir().unwrap();
        let old = bundle(state.path(), "web-1");
        assert_eq!(Attempt::read(&old).unwrap(), None, "nothing was made yet");
        let spec = r#"{"ociVersion":"1.0.2","linux":{"cgroupsPath":"/nomad/a.web"}}"#;
        std::fs::write(old.directory().join("config.json"), spec).unwrap();
        let read = Attempt::read(&old).unwrap().unwrap();
        assert!(read.is_of_same_task(&attempt("a", "web")) && !read.is_of_same_task(&attempt("b", "web")));
        std::fs::write(old.directory().join("config.json"), &spec[..30]).unwrap();
        assert_eq!(Attempt::read(&old).unwrap(), None);
        attempt("a", "web").write(&old).unwrap();
        assert_eq!(Attempt::read(&old).unwrap(), Some(attempt("a", "web")));
        Attempt::forget(&old).unwrap();
        old.record_end_of_processes().unwrap();
        assert_eq!(Attempt::read(&old).unwrap(), None, "its end was seen");
    }
}
