//! Finds seccomp filters that are cut off, and removes them from crun's cache. crun writes a filter as far as the disk has
//! room for it, and takes what it finds in its cache for whole: after a full disk no task with the same profile could be
//! started until the host's next boot. A filter that is cut off is refused by the kernel, or else does what the whole one
//! does, see [`is_whole`]: no task is confined less by it. Filters that are longer than the kernel takes leave the cache as
//! well, since nothing else bounds their size.
//!
//! The cache is root's, of mode 0700, below the state directory. crun's processes keep their descriptors of it from tasks
//! (they are not dumpable), and link a filter there only after it is written.
//!
//! Source of the facts: containers/crun `src/libcrun/seccomp.c` (1.21, tried: `store_seccomp_cache`, `find_in_cache`) and
//! `container.c` (`container_init`); libseccomp `seccomp_export_bpf`, which takes a short write for success; Linux
//! `net/core/filter.c` (`bpf_check_classic`).

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::SeccompProfile;
use crate::shim;
use crate::sys::blocking;
use crate::sys::error_chain::Chained;
use crate::task::container::ContainerHandles;
use crate::task::error::{Error, Result};

/// What crun says of a filter that the kernel refuses.
const REFUSED: &str = "SECCOMP_SET_MODE_FILTER";
/// Size of an instruction of a filter, and of the longest filter that the kernel takes.
const INSTRUCTION_BYTES: usize = 8;
const MAX_FILTER_BYTES: usize = 4096 * INSTRUCTION_BYTES;

/// Number of filters that were cut off and that this plugin has removed. Of starts that meet the same one, a single one
/// finds it.
static REMOVED: AtomicU64 = AtomicU64::new(0);

/// What a file of the cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    Whole,
    CutOff,
    TooLong,
}

/// What a look through the cache has done.
#[derive(Debug, Default)]
struct Cleaned {
    cut_off: usize,
    too_long: usize,
    /// The first failure, after which the look went on.
    error: Option<io::Error>,
}

/// Returns the number of filters that were removed so far, for [`after`]. To be asked for before a container is created.
pub(super) fn removed() -> u64 {
    REMOVED.load(Ordering::Relaxed)
}

/// Returns the error of a start, which is transient if the kernel refused a filter, and one that was cut off was removed
/// since `removed_before`, by this start or another one. A filter that the kernel refuses for another reason would be
/// refused again.
pub(super) async fn after(error: Error, container: &ContainerHandles, removed_before: u64) -> Error {
    if !error.chain().to_string().contains(REFUSED) {
        return error;
    }
    clean(container).await;
    if removed() == removed_before { error } else { error.with_new_filter() }
}

/// Checks the filter that crun has made for a container. For a task without new privileges crun gives it to the kernel only
/// when the task's program is due, and a refusal would look like the program's own end.
///
/// # Errors
/// If the filter is cut off: it is removed from the cache then, and the next start has a new one. If the filter of the job's
/// own profile is longer than the kernel takes.
pub(super) async fn check(container: &ContainerHandles, profile: Option<&SeccompProfile>) -> Result<()> {
    let own = container.runtime_state().join("seccomp.bpf");
    match blocking::run(move || read(&own)).await {
        Ok(filter) => match kind(&filter) {
            Filter::Whole => Ok(()),
            Filter::CutOff => {
                clean(container).await;
                Err(Error::failed("the kernel would refuse the task's filter").with_new_filter())
            }
            Filter::TooLong => {
                clean(container).await;
                Err(too_long(profile))
            }
        },
        // Other runtimes keep none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::system("read the task's seccomp filter", error)),
    }
}

fn too_long(profile: Option<&SeccompProfile>) -> Error {
    let named = match profile {
        Some(SeccompProfile { option, path }) => {
            format!("seccomp profile {} (option {option})", path.display())
        }
        None => "built-in seccomp profile".to_owned(),
    };
    let most = MAX_FILTER_BYTES / INSTRUCTION_BYTES;
    Error::invalid(format!(
        "the {named} makes a filter of more than {most} instructions, which the kernel refuses: give it fewer rules, or fewer \
         architectures"
    ))
}

/// Removes the filters that the kernel would refuse from the cache. What is done and a failure are logged.
async fn clean(container: &ContainerHandles) {
    let cache = container.filter_cache();
    let at = cache.clone();
    let Cleaned { cut_off, too_long, error } = blocking::run(move || clean_in(&at, &REMOVED)).await;
    let cache = cache.display();
    if cut_off + too_long > 0 {
        tracing::warn!(container = container.id, %cache, cut_off, too_long, "removed seccomp filters that the kernel refuses from crun's cache");
    }
    if let Some(error) = error {
        tracing::warn!(container = container.id, %cache, %error, "can't remove all seccomp filters that the kernel refuses from crun's cache");
    }
}

fn clean_in(cache: &Path, removed: &AtomicU64) -> Cleaned {
    let mut cleaned = Cleaned::default();
    let entries = match cache.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return cleaned,
        Err(error) => return Cleaned { error: Some(error), ..cleaned },
    };
    for entry in entries {
        match entry.and_then(|entry| clean_file(&entry.path(), removed)) {
            Ok(Filter::Whole) => {}
            Ok(Filter::CutOff) => cleaned.cut_off += 1,
            Ok(Filter::TooLong) => cleaned.too_long += 1,
            Err(error) => {
                cleaned.error.get_or_insert(error);
            }
        }
    }
    cleaned
}

/// Removes a file of the cache unless it is whole or gone, and returns what it was.
fn clean_file(path: &Path, removed: &AtomicU64) -> io::Result<Filter> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let kind = match read(path) {
        Ok(filter) => kind(&filter),
        // Another crun, or another start, may have removed it meanwhile.
        Err(error) if gone(&error) => Filter::Whole,
        Err(error) => return Err(error),
    };
    if kind == Filter::Whole {
        return Ok(kind);
    }
    // Counted first: a start that doesn't find it any more is to find it counted.
    let count = u64::from(kind == Filter::CutOff);
    removed.fetch_add(count, Ordering::Relaxed);
    match std::fs::remove_file(path) {
        Err(error) if !gone(&error) => {
            removed.fetch_sub(count, Ordering::Relaxed);
            Err(error)
        }
        _ => Ok(kind),
    }
}

fn kind(filter: &[u8]) -> Filter {
    match filter {
        _ if filter.len() > MAX_FILTER_BYTES => Filter::TooLong,
        _ if is_whole(filter) => Filter::Whole,
        _ => Filter::CutOff,
    }
}

/// Reads a filter, or as much of it as shows that it is longer than the kernel takes.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    shim::read_head(path, (MAX_FILTER_BYTES + INSTRUCTION_BYTES) as u64)
}

/// Returns whether the beginning of a filter is all of it, as far as the kernel can tell: each jump leads into it, and it
/// ends with a return. Jumps only lead forward, so nothing that runs in such a beginning ever leaves it, also not in the
/// whole filter: both decide alike.
fn is_whole(filter: &[u8]) -> bool {
    const CLASS: u16 = 0x07;
    const JUMP: u16 = 0x05;
    const RETURN: u16 = 0x06;
    const CONDITION: u16 = 0xf0;
    let (instructions, rest) = filter.as_chunks::<INSTRUCTION_BYTES>();
    let lands = |at: usize, offset: u32| {
        usize::try_from(offset).is_ok_and(|offset| offset < instructions.len() - at - 1)
    };
    let mut ends = false;
    let all_land = instructions.iter().enumerate().all(|(at, [a, b, if_true, if_false, value @ ..])| {
        let code = u16::from_ne_bytes([*a, *b]);
        ends = code & CLASS == RETURN;
        match code & CLASS {
            JUMP if code & CONDITION == 0 => lands(at, u32::from_ne_bytes(*value)),
            JUMP => lands(at, (*if_true).into()) && lands(at, (*if_false).into()),
            _ => true,
        }
    });
    rest.is_empty() && all_land && ends
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Instructions of a filter, as seccomp(2) has them.
    fn load() -> [u8; 8] {
        instruction(0x20, 0, 0, 0)
    }
    fn go_on(by: u32) -> [u8; 8] {
        instruction(0x05, 0, 0, by)
    }
    fn if_equal(value: u32, if_true: u8, if_false: u8) -> [u8; 8] {
        instruction(0x15, if_true, if_false, value)
    }
    fn end(action: u32) -> [u8; 8] {
        instruction(0x06, 0, 0, action)
    }
    fn instruction(code: u16, if_true: u8, if_false: u8, value: u32) -> [u8; 8] {
        let ([a, b], [c, d, e, f]) = (code.to_ne_bytes(), value.to_ne_bytes());
        [a, b, if_true, if_false, c, d, e, f]
    }

    /// Returns what a filter decides of a system call; `None` where it runs past its end.
    fn decide(filter: &[u8], call: u32) -> Option<u32> {
        let (instructions, _) = filter.as_chunks::<INSTRUCTION_BYTES>();
        let mut at = 0;
        loop {
            let [a, b, if_true, if_false, value @ ..] = instructions.get(at)?;
            let value = u32::from_ne_bytes(*value);
            at += 1 + match u16::from_ne_bytes([*a, *b]) {
                0x05 => value as usize,
                0x15 if call == value => (*if_true).into(),
                0x15 => (*if_false).into(),
                0x06 => return Some(value),
                _ => 0,
            };
        }
    }

    #[test]
    fn a_beginning_that_is_taken_for_whole_decides_as_the_whole_does() {
        let all: Vec<u8> = [
            load(),
            if_equal(1, 0, 1),
            go_on(3),
            if_equal(2, 1, 0),
            go_on(2),
            end(10),
            end(20),
            end(30),
            // Nothing leads here.
            if_equal(3, 0, 0),
            end(40),
        ]
        .concat();
        assert!(is_whole(&all));
        let whole = (0..all.len()).filter(|length| is_whole(&all[..*length])).collect::<Vec<_>>();
        assert_eq!(whole, [8 * INSTRUCTION_BYTES]);
        for call in 0..4 {
            assert_eq!(decide(&all[..whole[0]], call), decide(&all, call), "{call}");
        }
        // Others end before they have decided, which the kernel doesn't take.
        assert_eq!(decide(&all[..6 * INSTRUCTION_BYTES], 1), None);
    }

    #[test]
    fn filters_without_an_end_are_cut_off() {
        for (filter, whole) in [
            (vec![], false),
            (vec![load()], false),
            (vec![end(1)], true),
            (vec![if_equal(1, 0, 1), end(1)], false),
            (vec![if_equal(1, 1, 0), end(1)], false),
            (vec![go_on(1), end(1)], false),
            (vec![go_on(u32::MAX), end(1)], false),
            (vec![if_equal(1, 0, 0), end(1)], true),
            (vec![end(1), [0; 8]], false),
            ([vec![load(); 4095], vec![end(1)]].concat(), true),
        ] {
            let filter = filter.concat();
            assert_eq!(is_whole(&filter), whole, "{filter:?}");
            assert_eq!(kind(&filter), if whole { Filter::Whole } else { Filter::CutOff });
        }
        // Also if it is cut off.
        assert_eq!(kind(&vec![load(); 4097].concat()), Filter::TooLong);
        assert!(!is_whole(&end(1)[..7]));
        assert!(!is_whole(&[end(1).as_slice(), &[0]].concat()));
    }

    #[test]
    fn filters_that_the_kernel_refuses_leave_the_cache_and_those_that_were_cut_off_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join(".cache/seccomp");
        let removed = AtomicU64::new(0);
        let clean = || {
            let Cleaned { cut_off, too_long, error } = clean_in(&cache, &removed);
            (cut_off, too_long, error.is_some())
        };
        assert_eq!(clean(), (0, 0, false));
        std::fs::create_dir_all(&cache).unwrap();
        let long = vec![end(1); 4097].concat();
        let filters =
            [("36afb3b3", vec![]), ("ccb5ff99", load().to_vec()), ("1f", long), ("07", end(1).to_vec())];
        for (name, filter) in filters {
            std::fs::write(cache.join(name), filter).unwrap();
        }
        // What can't be read doesn't keep the others.
        for name in ["0", "9", "z"] {
            std::fs::create_dir(cache.join(name)).unwrap();
        }
        assert_eq!(clean(), (2, 1, true));
        assert_eq!(removed.load(Ordering::Relaxed), 2);
        assert_eq!(clean(), (0, 0, true));
        assert_eq!(removed.load(Ordering::Relaxed), 2);
        assert!(cache.join("07").exists());
    }

    #[test]
    fn a_profile_that_is_too_long_is_named() {
        let profile = SeccompProfile { option: "seccomp_profile", path: "/etc/long.json".into() };
        let error = too_long(Some(&profile));
        assert!(matches!(error, Error::Invalid(_)));
        for word in ["seccomp_profile", "/etc/long.json", "4096"] {
            assert!(error.to_string().contains(word), "{word} is not in {error}");
        }
        assert!(too_long(None).to_string().contains("built-in"));
    }
}
