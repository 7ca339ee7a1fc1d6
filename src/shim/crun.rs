//! Whether crun can run the tasks of this host: by its version, by what it is built with, and by the host's cgroups.
//!
//! Source of the facts: containers/crun `src/crun.c` (`print_version`), `src/libcrun/cgroup-utils.c`
//! (`libcrun_get_cgroup_mode`), `cgroup.c` (`libcrun_cgroup_enter`), `seccomp.c` and `linux.c` (what is left out of a build
//! without a library is left out of containers, silently).

use std::io;
use std::path::Path;

use rustix::fs::statfs;

use super::launch::printed_version;

const CGROUPS: &str = "/sys/fs/cgroup";
/// Magic numbers of file systems, as statfs(2) has them.
const CGROUP2: u64 = 0x6367_7270;
const TMPFS: u64 = 0x0102_1994;
/// The oldest version that the driver is tested with.
const OLDEST: (u32, u32) = (1, 8);
/// What crun has to be built with: without seccomp or capabilities it would run tasks that have more rights than they
/// should, and say nothing.
const FEATURES: [&str; 2] = ["+SECCOMP", "+CAP"];

/// Returns the reason in the file that a program's name leads to why tasks can't be run by it; `None` if they can. Runs
/// it once, for its version.
///
/// # Errors
/// Says why the program can't tell its version, which it may be able to later: it, or a library of its, may be in the
/// middle of an upgrade, or memory be short.
pub(crate) async fn unfit(program: &str) -> Result<Option<String>, String> {
    match printed_version(program).await {
        Ok(printed) => Ok(unfit_by_version(&printed)),
        Err(error) => Err(format!("{program} --version fails: {error}")),
    }
}

/// Returns the reason why no crun can use the cgroups of this host.
///
/// # Errors
/// Says what can't be looked at.
pub(crate) fn unfit_by_cgroups() -> Result<Option<String>, String> {
    unfit_by_cgroups_in(Path::new(CGROUPS))
}

fn unfit_by_cgroups_in(root: &Path) -> Result<Option<String>, String> {
    let unknown = |path: &Path, error: io::Error| Err(format!("can't look at {}: {error}", path.display()));
    match file_system(root) {
        Ok(CGROUP2) => return Ok(None),
        Ok(TMPFS) => {}
        Ok(_) => return Ok(Some(format!("{} is neither cgroup v2 nor a tmpfs", root.display()))),
        Err(error) => return unknown(root, error),
    }
    let unified = root.join("unified");
    match file_system(&unified) {
        Ok(CGROUP2) => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return unknown(&unified, error),
    }
    let controllers = unified.join("cgroup.controllers");
    #[expect(clippy::disallowed_methods, reason = "reads what the kernel makes, below /sys")]
    match std::fs::read_to_string(&controllers) {
        Ok(listed) => Ok(unfit_by_controllers(root, &listed)),
        Err(error) => unknown(&controllers, error),
    }
}

fn file_system(path: &Path) -> io::Result<u64> {
    let found = statfs(path)?;
    Ok(u64::try_from(found.f_type).unwrap_or_default())
}

/// Returns the reason why crun can't be used where these controllers are on cgroup v2, and v1 is mounted beside it.
fn unfit_by_controllers(root: &Path, listed: &str) -> Option<String> {
    let mut names = listed.split_whitespace();
    let first = names.next()?;
    let all = listed.trim();
    let at = root.join(first);
    let at = at.display();
    Some(format!(
        "cgroup v1 and v2 are in use at once (on v2: {all}), which crun refuses; boot with cgroup v2 alone, or mount each of \
         these controllers as v1 (mkdir {at}; mount -t cgroup -o {first} cgroup {at})"
    ))
}

/// Returns the reason why tasks can't be run by a crun that prints this for `--version`.
fn unfit_by_version(printed: &str) -> Option<String> {
    let mut lines = printed.lines().map(str::trim);
    let first = lines.next().unwrap_or_default();
    let version = first.strip_prefix("crun version ").and_then(|rest| {
        let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next().and_then(Result::ok).unwrap_or_default()))
    });
    match version {
        None => return Some(format!("its version is not known: it prints {first:?}")),
        Some(version) if version < OLDEST => {
            let (major, minor) = OLDEST;
            return Some(format!("{first} is older than {major}.{minor}"));
        }
        Some(_) => {}
    }
    let built_with = printed.split_whitespace().filter(|word| word.starts_with('+')).collect::<Vec<_>>();
    let lacking = FEATURES.into_iter().find(|feature| !built_with.contains(feature))?;
    Some(format!("{first} is built without {}", &lacking[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_fit_that_is_not_old_and_has_what_confines_tasks() {
        let printed = |first: &str, features: &str| {
            format!("{first}\ncommit: f8a096be\nrundir: /run/crun\nspec: 1.0.0\n{features}\n")
        };
        let all = "+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF +YAJL";
        for version in ["1.8.1", "1.8", "1.21", "2.0-dev", "1.14.4-1.fc39"] {
            assert_eq!(
                unfit_by_version(&printed(&format!("crun version {version}"), all)),
                None,
                "{version}"
            );
        }
        for (text, word) in [
            (printed("crun version 1.7.2", all), "older than 1.8"),
            (printed("crun version 0.17", all), "older than 1.8"),
            (printed("crun version unknown", all), "not known"),
            (printed("runc version 1.1.5", all), "runc version 1.1.5"),
            (String::new(), "not known"),
            (printed("crun version 1.21", "+SYSTEMD +CAP +YAJL"), "without SECCOMP"),
            (printed("crun version 1.21", "+SECCOMP"), "without CAP"),
        ] {
            let reason = unfit_by_version(&text).unwrap();
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn controllers_on_v2_beside_v1_are_named_with_the_way_out() {
        let root = Path::new(CGROUPS);
        for none in ["", "\n"] {
            assert_eq!(unfit_by_controllers(root, none), None);
        }
        let reason = unfit_by_controllers(root, "hugetlb misc\n").unwrap();
        let mount = "mount -t cgroup -o hugetlb cgroup /sys/fs/cgroup/hugetlb";
        assert!(reason.contains("hugetlb misc") && reason.contains(mount), "{reason}");
    }

    #[tokio::test]
    async fn a_program_that_can_not_tell_its_version_is_not_judged() {
        assert!(unfit("/no/such/crun").await.unwrap_err().contains("/no/such/crun --version fails"));
        assert!(unfit("false").await.unwrap_err().contains("exit status: 1"));
        assert!(unfit("true").await.unwrap().unwrap().contains("not known"));
    }

    #[test]
    fn cgroups_are_looked_at_where_they_are_mounted() {
        assert!(unfit_by_cgroups_in(Path::new("/proc")).unwrap().unwrap().contains("neither"));
        assert!(unfit_by_cgroups_in(Path::new("/no/such")).unwrap_err().contains("/no/such"));
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        assert_eq!(unfit_by_cgroups_in(directory.path()), Ok(None), "v1 alone");
    }
}
