//! The bundle of an attempt in the model. What is decided by a bundle is asked of a real one with the same files, once
//! for each kind of bundle there is.

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use shim_protos::{ApiVersion, Bootstrap};

use crate::shim::{Bundle, Shim};
use crate::task::attempt::Attempt;
use crate::task::gc::Remains;

/// Grace period before a container counts as an orphan.
pub(super) const GRACE: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Spec {
    Removed,
    /// The specification that a shim is started with.
    Empty,
    Container,
}

/// The files of a bundle that decisions depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Disk {
    pub(super) is_marked: bool,
    /// Whether the rootfs and the log are there.
    pub(super) is_whole: bool,
    pub(super) shim: bool,
    pub(super) spec: Spec,
    pub(super) task: bool,
}

/// The driver's answers about a bundle.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is one function's answer")]
pub(super) struct Facts {
    pub(super) exists: bool,
    pub(super) is_marked: bool,
    pub(super) has_no_processes: bool,
    pub(super) may_have_container: bool,
    pub(super) has_shim: bool,
    pub(super) attempt: Option<Attempt>,
    pub(super) is_left_over: bool,
    pub(super) is_orphan: bool,
}

impl Disk {
    /// The bundle that a start makes.
    pub(super) const NEW: Self =
        Self { is_marked: true, is_whole: true, shim: false, spec: Spec::Empty, task: false };
    /// The bundle that a recovery makes where it finds none.
    pub(super) const RESTORED: Self =
        Self { is_marked: true, is_whole: true, shim: true, spec: Spec::Container, task: true };

    fn all() -> impl Iterator<Item = Self> {
        let specs = [Spec::Removed, Spec::Empty, Spec::Container];
        (0..16_u8).flat_map(move |bits| {
            let is = move |bit: u8| bits & (1 << bit) != 0;
            specs.map(move |spec| Self { is_marked: is(0), is_whole: is(1), shim: is(2), spec, task: is(3) })
        })
    }

    /// Returns the place of this bundle in [`Self::all`].
    fn number(self) -> usize {
        let bits = [self.is_marked, self.is_whole, self.shim, self.task].into_iter().enumerate();
        let bits: usize = bits.map(|(bit, is_set)| usize::from(is_set) << bit).sum();
        bits * 3 + self.spec as usize
    }

    fn make(self, bundle: &Bundle) {
        bundle.create(Path::new("/bin/shim")).unwrap();
        if self.task {
            let cgroup = "/nomad/a.web".into();
            Attempt { alloc_id: "a".to_owned(), task: "web".to_owned(), cgroup }.write(bundle).unwrap();
        }
        if self.shim {
            let bootstrap = Bootstrap { version: ApiVersion::V2, socket: "/run/s".into() };
            bundle.write_shim(&Shim { bootstrap, pid: 7, started_ticks: 6, shared: None }).unwrap();
        }
        match self.spec {
            Spec::Removed => bundle.remove_file("config.json").unwrap(),
            Spec::Empty => {}
            Spec::Container => {
                let spec = br#"{"ociVersion":"1.0.2","linux":{"cgroupsPath":"/nomad/a.web"}}"#;
                bundle.write("config.json", spec).unwrap();
            }
        }
        if !self.is_marked {
            bundle.clear_removal_mark().unwrap();
        }
        if !self.is_whole {
            std::fs::remove_dir(bundle.rootfs()).unwrap();
        }
    }
}

impl Facts {
    fn of(bundle: &Bundle) -> Self {
        let remains = Remains::look(bundle);
        Self {
            exists: bundle.exists(),
            is_marked: bundle.is_marked_for_removal(),
            has_no_processes: bundle.has_no_processes(),
            may_have_container: bundle.may_have_container(),
            has_shim: bundle.read_shim().is_some(),
            attempt: Attempt::read(bundle).unwrap(),
            is_left_over: remains.is_left_over(),
            is_orphan: remains.is_orphan(SystemTime::now() + GRACE, GRACE),
        }
    }

    /// Returns the facts about a bundle, or about one that doesn't exist.
    pub(super) fn about(disk: Option<Disk>) -> &'static Self {
        static FACTS: OnceLock<(Facts, Vec<Facts>)> = OnceLock::new();
        let (none, some) = FACTS.get_or_init(|| {
            let state = tempfile::tempdir().unwrap();
            let bundle = |number: usize| Bundle::at(state.path(), "nomad", &format!("web-{number}"));
            let made = Disk::all().enumerate().map(|(number, disk)| {
                assert_eq!(disk.number(), number);
                disk.make(&bundle(number));
                Self::of(&bundle(number))
            });
            (Self::of(&bundle(usize::MAX)), made.collect())
        });
        disk.map_or(none, |disk| &some[disk.number()])
    }
}

#[test]
fn a_bundle_changes_as_the_model_says() {
    let state = tempfile::tempdir().unwrap();
    for (number, disk) in Disk::all().enumerate() {
        let bundle = Bundle::at(state.path(), "nomad", &format!("web-{number}"));
        disk.make(&bundle);
        bundle.mark_for_removal().unwrap();
        let marked = Disk { is_marked: true, ..disk };
        assert_eq!(Facts::of(&bundle).is_marked, Facts::about(Some(marked)).is_marked);
        bundle.record_end_of_processes().unwrap();
        Attempt::forget(&bundle).unwrap();
        let over = Disk { shim: false, spec: Spec::Removed, task: false, ..marked };
        let (seen, said) = (Facts::of(&bundle), Facts::about(Some(over)));
        assert_eq!(
            (seen.has_no_processes, seen.may_have_container, &seen.attempt),
            (said.has_no_processes, said.may_have_container, &said.attempt)
        );
        bundle.remove().unwrap();
        assert!(!Facts::of(&bundle).exists);
    }
}
