//! What a pull may wait for while no byte comes from the registry, and the waits of one pull. `waits.rs` has the only
//! way to wait.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// Duration of a wait after which it is reported. An agent keeps ten events of a task.
const TOLD_AFTER: Duration = Duration::from_secs(5);

/// The subject of a wait. Its text stands behind "waiting for".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wait {
    PullPermit {
        at_once: usize,
    },
    LayerPermit {
        at_once: usize,
    },
    /// Another pull makes the image of the same digest.
    SameImage,
    /// Another pull, or another client of containerd, writes the same blob.
    SameBlob,
    /// The same layer is being unpacked for another image.
    SameLayer,
    /// The same file is being loaded for another task.
    SameArchive,
    /// A host has asked for a pause, by `Retry-After`.
    RetryAfter {
        host: String,
        wanted: Duration,
    },
    /// containerd flushes a blob to its disk, or is slow to write a part of it.
    Store,
    /// containerd unpacks a layer, or is asked for one.
    Unpack,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PullPermit { at_once } => write!(f, "a pull slot (max_parallel_pulls = {at_once})"),
            Self::LayerPermit { at_once } => {
                write!(f, "a layer download slot (max_parallel_layers = {at_once})")
            }
            Self::SameImage => write!(f, "the same image, which is being pulled under another name"),
            Self::SameBlob => {
                write!(f, "the same content, which another pull or another client of containerd is writing")
            }
            Self::SameLayer => write!(f, "the same layer, which is being unpacked for another image"),
            Self::SameArchive => write!(f, "the same archive, which is being loaded for another task"),
            Self::RetryAfter { host, wanted } => {
                let wanted = humantime::format_duration(*wanted);
                write!(f, "{host}, which asks to retry after {wanted} (Retry-After)")
            }
            Self::Store => write!(f, "containerd to write a layer to its disk"),
            Self::Unpack => write!(f, "containerd to unpack a layer"),
        }
    }
}

impl Wait {
    /// Returns when a wait is reported; `None` for work that every pull has.
    pub(super) fn report_delay(&self) -> Option<Duration> {
        match self {
            Self::PullPermit { .. } => Some(Duration::ZERO),
            Self::Store | Self::Unpack => None,
            _ => Some(TOLD_AFTER),
        }
    }
}

/// The waits of a pull that are under way, and those that it was cut off in.
#[derive(Debug)]
pub(super) struct Waits {
    pub(super) current: Vec<Wait>,
    pub(super) cut_off: Vec<Wait>,
    /// The kinds of waits already reported: each is once.
    pub(super) reported: Vec<std::mem::Discriminant<Wait>>,
    pub(super) ended: Instant,
}

impl Default for Waits {
    fn default() -> Self {
        Self { current: Vec::new(), cut_off: Vec::new(), reported: Vec::new(), ended: Instant::now() }
    }
}

impl Waits {
    /// Returns when the last wait ended; `None` while one is under way.
    pub(super) fn ended(&self) -> Option<Instant> {
        self.current.is_empty().then_some(self.ended)
    }

    /// Returns the subjects of all waits, each once, as an error's text has them.
    pub(super) fn texts(&self) -> Vec<String> {
        self.subjects().iter().map(Wait::to_string).collect()
    }

    /// Returns the subjects of all waits, each once.
    pub(super) fn subjects(&self) -> Vec<Wait> {
        let mut subjects: Vec<Wait> = Vec::new();
        for wait in self.current.iter().chain(&self.cut_off) {
            if !subjects.contains(wait) {
                subjects.push(wait.clone());
            }
        }
        subjects
    }
}
