//! Seccomp profiles in docker's format, and their translation into the filter of a task, by its capabilities and by the
//! host's kernel and architecture.
//!
//! Source of the facts: moby/profiles `seccomp/seccomp_linux.go` for the format and its meaning. The built-in profile,
//! `default_profile.json`, allows what containerd's does: containerd/containerd v2.3.4,
//! `contrib/seccomp/seccomp_default.go`.

use std::collections::HashSet;
use std::iter;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompBuilder,
    LinuxSeccompFilterFlag, LinuxSyscall, LinuxSyscallBuilder,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::host::version;
use crate::config::capability_name;

const BUILT_IN: &str = include_str!("default_profile.json");
/// Maximum number of arguments of a system call.
const MOST_ARGUMENTS: usize = 6;

/// A profile as it is written in the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<Arch>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

/// An architecture, with the others whose programs it can run as well.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    /// A single name: the older form of `names`.
    name: Option<String>,
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    includes: Option<Filter>,
    excludes: Option<Filter>,
}

/// A condition of a rule.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// The facts that the conditions of rules are compared with.
struct Task {
    capabilities: HashSet<String>,
    kernel: (u32, u32),
    arch: &'static str,
}

impl Profile {
    /// Parses and checks a profile.
    ///
    /// # Errors
    /// Says what is wrong with the text, and where.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        // A file of another kind could be secret, so the error must not quote it to the job's author.
        if !text.trim_start().starts_with('{') {
            return Err("the file is not a JSON object, as a profile in docker's format is".to_owned());
        }
        let profile: Self = serde_json::from_str(text)
            .map_err(|error| format!("the file is not a seccomp profile in docker's format: {error}"))?;
        profile.check()?;
        Ok(profile)
    }

    /// Returns the built-in profile, which is parsed once.
    ///
    /// # Errors
    /// If the built-in profile is invalid.
    pub(super) fn built_in() -> Result<&'static Self, String> {
        static PROFILE: LazyLock<Result<Profile, String>> = LazyLock::new(|| Profile::read(BUILT_IN));
        PROFILE.as_ref().map_err(Clone::clone)
    }

    fn check(&self) -> Result<(), String> {
        let Self { default_action, architectures, arch_map, syscalls, .. } = self;
        let given = |list: usize| list > 0;
        if given(architectures.iter().flatten().count()) && given(arch_map.iter().flatten().count()) {
            return Err("the profile has both architectures and archMap; keep one of them".to_owned());
        }
        let mut rules = syscalls.iter().flatten();
        let actions = rules.clone().map(|rule| rule.action).chain([*default_action]);
        if actions.into_iter().any(|action| action == LinuxSeccompAction::ScmpActNotify) {
            return Err(
                "the action SCMP_ACT_NOTIFY needs a listener, which this driver does not have".to_owned()
            );
        }
        rules.try_for_each(Rule::check)
    }

    /// Translates this profile into an OCI seccomp filter for a task with these capabilities, on a kernel of this
    /// version and on an architecture by Rust's name for it.
    pub(super) fn for_task(
        &self,
        capabilities: &HashSet<Capability>,
        kernel: (u32, u32),
        processor: &str,
    ) -> Result<LinuxSeccomp, OciSpecError> {
        let (arch, native) = arch(processor);
        let capabilities = capabilities.iter().map(|one| capability_name(*one)).collect();
        let task = Task { capabilities, kernel, arch };
        let Self { default_action, default_errno_ret, architectures, arch_map, flags, syscalls } = self;
        let mapped = arch_map.iter().flatten().find(|map| Some(map.architecture) == native);
        let mapped =
            mapped.map(|map| iter::once(&map.architecture).chain(map.sub_architectures.iter().flatten()));
        let rules = syscalls.iter().flatten().filter(|rule| rule.holds_for(&task));
        let mut seccomp = LinuxSeccompBuilder::default()
            .default_action(*default_action)
            .syscalls(rules.map(Rule::syscall).collect::<Result<Vec<_>, _>>()?);
        if let Some(errno) = default_errno_ret {
            seccomp = seccomp.default_errno_ret(*errno);
        }
        let mapped = mapped.map(|mapped| mapped.copied().collect());
        if let Some(architectures) = mapped.or_else(|| architectures.clone()) {
            seccomp = seccomp.architectures(architectures);
        }
        if let Some(flags) = flags {
            seccomp = seccomp.flags(flags.clone());
        }
        seccomp.build()
    }
}

/// Translates the built-in seccomp profile. Caches the last translation, since consecutive tasks usually have the same
/// capabilities.
pub(super) fn shared(
    built_in: &'static Profile,
    capabilities: &HashSet<Capability>,
    kernel: (u32, u32),
) -> Result<Arc<LinuxSeccomp>, OciSpecError> {
    struct CachedTranslation {
        capabilities: HashSet<Capability>,
        kernel: (u32, u32),
        seccomp: Arc<LinuxSeccomp>,
    }
    static CACHE: Mutex<Option<CachedTranslation>> = Mutex::new(None);
    let mut cached = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cached) = &*cached
        && (&cached.capabilities, cached.kernel) == (capabilities, kernel)
    {
        return Ok(Arc::clone(&cached.seccomp));
    }
    let mut seccomp = built_in.for_task(capabilities, kernel, std::env::consts::ARCH)?;
    tell_apart(&mut seccomp)?;
    let seccomp = Arc::new(seccomp);
    *cached =
        Some(CachedTranslation { capabilities: capabilities.clone(), kernel, seccomp: Arc::clone(&seccomp) });
    Ok(seccomp)
}

impl Rule {
    fn check(&self) -> Result<(), String> {
        let Self { name, names, args, includes, excludes, .. } = self;
        match (name, names.as_deref().unwrap_or_default()) {
            (Some(name), [_, ..]) => {
                return Err(format!("the rule of {name} has both name and names; keep names"));
            }
            (None, []) => return Err("a rule has no names".to_owned()),
            _ => {}
        }
        if let Some(arg) = args.iter().flatten().find(|arg| arg.index() >= MOST_ARGUMENTS) {
            return Err(format!("a system call has no argument with the index {}", arg.index()));
        }
        let kernels =
            [includes, excludes].into_iter().flatten().filter_map(|filter| filter.min_kernel.as_deref());
        match kernels.into_iter().find(|kernel| version(kernel).is_none()) {
            Some(kernel) => Err(format!("the minKernel {kernel:?} is not a version such as \"4.8\"")),
            None => Ok(()),
        }
    }

    /// Returns true if the rule applies: all conditions of `includes` hold, and none of `excludes`.
    fn holds_for(&self, task: &Task) -> bool {
        let none = Filter::default();
        let includes = self.includes.as_ref().unwrap_or(&none);
        let excludes = self.excludes.as_ref().unwrap_or(&none);
        let has = |capability: &String| task.capabilities.contains(capability);
        let runs_on = |arch: &String| *arch == task.arch;
        let is_new_enough = |kernel: &String| version(kernel).is_some_and(|least| task.kernel >= least);
        let excluded = excludes.caps.iter().flatten().any(has)
            || excludes.arches.iter().flatten().any(runs_on)
            || excludes.min_kernel.as_ref().is_some_and(is_new_enough);
        let arches = includes.arches.as_deref().unwrap_or_default();
        !excluded
            && includes.caps.iter().flatten().all(has)
            && (arches.is_empty() || arches.iter().any(runs_on))
            && includes.min_kernel.as_ref().is_none_or(is_new_enough)
    }

    fn syscall(&self) -> Result<LinuxSyscall, OciSpecError> {
        let Self { name, names, action, errno_ret, args, includes: _, excludes: _ } = self;
        let names: Vec<String> = name.iter().chain(names.iter().flatten()).cloned().collect();
        let mut syscall = LinuxSyscallBuilder::default().names(names).action(*action);
        if let Some(errno) = errno_ret {
            syscall = syscall.errno_ret(*errno);
        }
        if let Some(args) = args {
            syscall = syscall.args(args.clone());
        }
        syscall.build()
    }
}

/// Restricts a filter to the programs of this host's own architecture, by Rust's name for it, and to those of the
/// image's, by its name in images, which is Go's. The runtime itself is a program of the host's. libseccomp has the
/// kernel end a thread with SIGSYS that calls it by an architecture that the filter lacks.
///
/// Source of the facts: libseccomp `SCMP_FLTATR_ACT_BADARCH`, whose default neither runc nor crun changes.
pub(super) fn narrow(filter: &mut LinuxSeccomp, processor: &str, image: &str) {
    let (_, hosts) = arch(processor);
    let images = ARCHITECTURES.iter().find(|(_, name, _)| *name == image).map(|(_, _, arch)| *arch);
    // On an architecture that is unknown here, the list is left to whoever wrote it.
    if let (Some(hosts), Some(listed)) = (hosts, filter.architectures().clone()) {
        let kept = listed.into_iter().filter(|arch| *arch == hosts || Some(*arch) == images).collect();
        filter.set_architectures(Some(kept));
    }
}

/// Makes a filter one that no other is taken for. crun caches filters by a hash of the words in them, which it joins
/// without anything between them, and which lacks the rules' errno: a job could have its profile's filter be that of
/// another job, or of the built-in profile. The rule that is added names no system call, and does what is done without
/// it, so that runtimes skip it.
///
/// Source of the facts: containers/crun `src/libcrun/seccomp.c` (1.21, tried): `calculate_seccomp_checksum`,
/// `libcrun_generate_seccomp`.
pub(super) fn tell_apart(filter: &mut LinuxSeccomp) -> Result<(), OciSpecError> {
    let json = serde_json::to_vec(filter)?;
    let digest = Sha256::digest(json).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut rule = LinuxSyscallBuilder::default()
        .names(vec![format!("profile:{digest}")])
        .action(filter.default_action());
    if let Some(errno) = filter.default_errno_ret() {
        rule = rule.errno_ret(errno);
    }
    let mut rules = filter.syscalls().clone().unwrap_or_default();
    rules.push(rule.build()?);
    filter.set_syscalls(Some(rules));
    Ok(())
}

/// Architectures by Rust's name, by that in profiles and images (which is Go's), and by seccomp's.
const ARCHITECTURES: [(&str, &str, Arch); 9] = [
    ("x86_64", "amd64", Arch::ScmpArchX86_64),
    ("x86", "386", Arch::ScmpArchX86),
    ("aarch64", "arm64", Arch::ScmpArchAarch64),
    ("arm", "arm", Arch::ScmpArchArm),
    ("riscv64", "riscv64", Arch::ScmpArchRiscv64),
    ("s390x", "s390x", Arch::ScmpArchS390x),
    ("powerpc64", "ppc64le", Arch::ScmpArchPpc64le),
    ("loongarch64", "loong64", Arch::ScmpArchLoongarch64),
    ("mips64", "mips64", Arch::ScmpArchMips64),
];

/// Returns an architecture's names in profiles (which are Go's) and in seccomp.
fn arch(processor: &str) -> (&'static str, Option<Arch>) {
    let known = ARCHITECTURES.iter().find(|(name, _, _)| *name == processor);
    known.map_or(("", None), |(_, in_profiles, in_seccomp)| (in_profiles, Some(*in_seccomp)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn allowed(seccomp: &LinuxSeccomp) -> HashSet<&str> {
        let rules = seccomp.syscalls().as_ref().unwrap().iter();
        let allowing = rules.filter(|rule| rule.action() == LinuxSeccompAction::ScmpActAllow);
        allowing.flat_map(|rule| rule.names().iter().map(String::as_str)).collect()
    }

    fn built_in(capabilities: &[Capability], kernel: (u32, u32), processor: &str) -> LinuxSeccomp {
        let capabilities = capabilities.iter().copied().collect();
        Profile::built_in().unwrap().for_task(&capabilities, kernel, processor).unwrap()
    }

    #[test]
    fn translations_are_shared_by_equal_capabilities() {
        let profile = Profile::built_in().unwrap();
        let of = |capabilities: &[Capability], kernel| {
            shared(profile, &capabilities.iter().copied().collect(), kernel).unwrap()
        };
        let first = of(&[Capability::Chown], (6, 1));
        assert!(Arc::ptr_eq(&first, &of(&[Capability::Chown], (6, 1))));
        let more = of(&[Capability::Chown, Capability::SysAdmin], (6, 1));
        assert!(allowed(&more).contains("mount") && !allowed(&first).contains("mount"));
        let older = of(&[Capability::Chown, Capability::SysAdmin], (4, 4));
        assert!(!Arc::ptr_eq(&more, &older));
    }

    #[test]
    fn the_built_in_profile_gives_what_a_tasks_capabilities_are_for() {
        let none = built_in(&[], (6, 1), "x86_64");
        let none = allowed(&none);
        assert!(
            none.len() > 350 && none.contains("openat") && none.contains("ptrace") && none.contains("clone")
        );
        for denied in
            ["mount", "bpf", "keyctl", "add_key", "reboot", "unshare", "setns", "init_module", "clone3"]
        {
            assert!(!none.contains(denied), "{denied}");
        }
        let admin = built_in(&[Capability::SysAdmin], (6, 1), "x86_64");
        assert!(["mount", "bpf", "unshare", "clone3"].iter().all(|name| allowed(&admin).contains(name)));
        assert!(!allowed(&admin).contains("reboot"));
        let boot = built_in(&[Capability::SysBoot], (6, 1), "x86_64");
        assert!(allowed(&boot).contains("reboot") && !allowed(&boot).contains("mount"));
    }

    #[test]
    fn rules_depend_on_the_kernel_and_the_architecture() {
        let old = built_in(&[], (4, 4), "x86_64");
        assert!(!allowed(&old).contains("ptrace"));
        let arm = built_in(&[], (6, 1), "aarch64");
        assert!(allowed(&arm).contains("cacheflush") && !allowed(&arm).contains("arch_prctl"));
        assert_eq!(arm.architectures().clone().unwrap(), [Arch::ScmpArchAarch64, Arch::ScmpArchArm]);
        let unmapped = built_in(&[], (6, 1), "riscv64");
        assert_eq!(*unmapped.architectures(), None, "the runtime takes its own");
        let clone_argument = |seccomp: &LinuxSeccomp| {
            let rules = seccomp.syscalls().as_ref().unwrap();
            let clone = rules.iter().filter(|rule| rule.names() == &["clone"]);
            clone.map(|rule| rule.args().as_ref().unwrap()[0].index()).collect::<Vec<_>>()
        };
        assert_eq!(clone_argument(&arm), [0]);
        assert_eq!(clone_argument(&built_in(&[], (6, 1), "s390x")), [1]);
    }

    #[test]
    fn a_rule_holds_where_all_of_includes_and_none_of_excludes_does() {
        let rule = |includes: Value, excludes: Value| {
            let text = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [
                {"name": "read", "action": "SCMP_ACT_ALLOW", "includes": includes, "excludes": excludes}]});
            let profile = Profile::read(&text.to_string()).unwrap();
            let capabilities = [Capability::SysAdmin, Capability::Chown].into();
            let seccomp = profile.for_task(&capabilities, (5, 10), "x86_64").unwrap();
            assert_eq!(seccomp.default_errno_ret(), Some(38));
            !seccomp.syscalls().clone().unwrap().is_empty()
        };
        assert!(rule(json!({"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}), json!(null)));
        assert!(!rule(json!({"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}), json!(null)));
        assert!(!rule(json!({}), json!({"caps": ["CAP_BPF", "CAP_CHOWN"]})));
        assert!(rule(json!({"arches": ["arm64", "amd64"]}), json!({"arches": ["s390x"]})));
        assert!(!rule(json!({"arches": ["arm64"]}), json!({})));
        assert!(!rule(json!({}), json!({"arches": ["amd64"]})));
        assert!(rule(json!({"minKernel": "5.10"}), json!({"minKernel": "5.11"})));
        assert!(!rule(json!({"minKernel": "6.0"}), json!({})));
        assert!(!rule(json!({}), json!({"minKernel": "4.8"})));
    }

    #[test]
    fn a_rules_arguments_and_errno_are_taken_over() {
        let text = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"], "syscalls": [{"names": ["personality"],
            "action": "SCMP_ACT_ERRNO", "errnoRet": 13, "args": [
                {"index": 0, "value": 4_294_967_295_u64, "valueTwo": 8, "op": "SCMP_CMP_MASKED_EQ"}]}]});
        let seccomp =
            Profile::read(&text.to_string()).unwrap().for_task(&HashSet::new(), (6, 1), "x86_64").unwrap();
        assert_eq!(seccomp.architectures().clone().unwrap(), [Arch::ScmpArchX86_64]);
        assert_eq!(seccomp.flags().clone().unwrap(), [LinuxSeccompFilterFlag::SeccompFilterFlagLog]);
        let rule = &seccomp.syscalls().as_ref().unwrap()[0];
        assert_eq!(rule.errno_ret(), Some(13));
        let arg = rule.args().as_ref().unwrap()[0];
        assert_eq!((arg.value(), arg.value_two()), (0xffff_ffff, Some(8)));
    }

    #[test]
    fn an_invalid_profile_is_refused_with_the_reason() {
        let with = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}).to_string();
        let refused = |text: String, word: &str| {
            let error = Profile::read(&text).unwrap_err();
            assert!(error.contains(word), "{error}");
            error
        };
        let secret = refused("\"a secret\"".to_owned(), "JSON");
        assert!(!secret.contains("a secret"), "{secret}");
        refused("{".to_owned(), "EOF");
        refused("{}".to_owned(), "defaultAction");
        refused(json!({"defaultAction": "SCMP_ACT_DENY"}).to_string(), "SCMP_ACT_DENY");
        refused(json!({"defaultAction": "SCMP_ACT_NOTIFY"}).to_string(), "SCMP_ACT_NOTIFY");
        let both = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"],
            "archMap": [{"architecture": "SCMP_ARCH_X86"}]});
        refused(both.to_string(), "archMap");
        refused(with(json!({"names": ["read"], "action": "ALLOW"})), "ALLOW");
        refused(with(json!({"names": [], "action": "SCMP_ACT_ALLOW"})), "no names");
        refused(
            with(json!({"name": "a", "names": ["b"], "action": "SCMP_ACT_ALLOW"})),
            "both name and names",
        );
        let arg = |index: u64, op: &str| {
            with(
                json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": index, "value": 1, "op": op}]}),
            )
        };
        refused(arg(0, "SCMP_CMP_LIKE"), "SCMP_CMP_LIKE");
        refused(arg(6, "SCMP_CMP_EQ"), "index 6");
        let kernel = json!({"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "new"}});
        refused(with(kernel), "minKernel");
    }

    /// Asserts that a text is either refused, or a profile that can be translated for every architecture.
    fn is_read_or_refused(text: &str) {
        for processor in ["x86_64", "aarch64", "riscv64", "another"] {
            let Ok(profile) = Profile::read(text) else { return };
            let _ = profile.for_task(&HashSet::from([Capability::SysAdmin]), (6, 1), processor);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in ".{0,200}") {
            is_read_or_refused(&text);
            is_read_or_refused(&format!("{{{text}"));
        }

        #[test]
        fn no_change_of_a_profile_breaks_the_reader(
            at in 0..BUILT_IN.len(),
            cut in 0..40_usize,
            put in r#"([\[\]{}",:0-9a-zA-Z_-]|null|-1|1e400|"SCMP_ACT_ERRNO"){0,6}"#,
        ) {
            let mut bytes = BUILT_IN.as_bytes().to_vec();
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, put.bytes());
            is_read_or_refused(&String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn a_narrow_filter_has_the_hosts_architecture_and_the_images() {
        use Arch::{ScmpArchAarch64 as Arm64, ScmpArchArm as Arm, ScmpArchX86 as X86, ScmpArchX86_64 as X64};
        for (processor, image, expected) in [
            ("x86_64", "amd64", vec![X64]),
            ("x86_64", "386", vec![X64, X86]),
            // Programs of another machine's are run by one of the host's.
            ("x86_64", "arm64", vec![X64]),
            ("x86_64", "", vec![X64]),
            ("aarch64", "arm64", vec![Arm64]),
            ("aarch64", "arm", vec![Arm64, Arm]),
        ] {
            let mut filter = built_in(&[], (6, 1), processor);
            let rules = filter.syscalls().clone();
            narrow(&mut filter, processor, image);
            assert_eq!(*filter.architectures(), Some(expected), "{processor} {image}");
            assert_eq!(*filter.syscalls(), rules);
        }
        for processor in ["riscv64", "another"] {
            let mut filter = built_in(&[], (6, 1), processor);
            narrow(&mut filter, processor, "riscv64");
            assert_eq!(*filter.architectures(), None);
        }
    }

    #[test]
    fn filters_of_profiles_differ_in_a_name_that_is_no_system_calls() {
        let filter = |default: Value, names: &[&str], errno: u32| {
            let rule = json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno});
            let mut profile = json!({"syscalls": [rule]});
            profile.as_object_mut().unwrap().extend(default.as_object().unwrap().clone());
            let profile = Profile::read(&profile.to_string()).unwrap();
            let mut filter = profile.for_task(&HashSet::new(), (6, 1), "x86_64").unwrap();
            tell_apart(&mut filter).unwrap();
            filter
        };
        let added = |filter: &LinuxSeccomp| {
            let rules = filter.syscalls().clone().unwrap();
            let rule = rules.last().unwrap();
            assert_eq!((rules.len(), rule.action()), (2, filter.default_action()));
            assert_eq!((rule.errno_ret(), rule.args()), (filter.default_errno_ret(), &None));
            rule.names().join("")
        };
        let allow = || json!({"defaultAction": "SCMP_ACT_ALLOW"});
        let joined = added(&filter(allow(), &["getpid"], 1));
        assert!(joined.starts_with("profile:") && joined.len() == 72, "{joined}");
        assert_eq!(joined, added(&filter(allow(), &["getpid"], 1)));
        assert_ne!(joined, added(&filter(allow(), &["get", "pid"], 1)));
        assert_ne!(joined, added(&filter(allow(), &["getpid"], 2)));
        let errno = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38});
        added(&filter(errno, &["getpid"], 1));
        // Filters that were cached before under a built-in one's words are not met any more.
        let built_in = shared(Profile::built_in().unwrap(), &HashSet::new(), (6, 1)).unwrap();
        assert!(allowed(&built_in).iter().all(|name| !name.contains(':')));
        let last = built_in.syscalls().as_ref().unwrap().last().unwrap().clone();
        assert!(last.names()[0].starts_with("profile:") && last.action() == built_in.default_action());
    }

    #[test]
    fn every_architecture_has_its_name_in_profiles_and_in_seccomp() {
        for (processor, in_profiles, in_seccomp) in [
            ("x86_64", "amd64", "SCMP_ARCH_X86_64"),
            ("x86", "386", "SCMP_ARCH_X86"),
            ("aarch64", "arm64", "SCMP_ARCH_AARCH64"),
            ("arm", "arm", "SCMP_ARCH_ARM"),
            ("riscv64", "riscv64", "SCMP_ARCH_RISCV64"),
            ("s390x", "s390x", "SCMP_ARCH_S390X"),
            ("powerpc64", "ppc64le", "SCMP_ARCH_PPC64LE"),
            ("loongarch64", "loong64", "SCMP_ARCH_LOONGARCH64"),
            ("mips64", "mips64", "SCMP_ARCH_MIPS64"),
        ] {
            let (name, arch) = arch(processor);
            assert_eq!((name, json!(arch)), (in_profiles, json!(in_seccomp)), "{processor}");
        }
        assert_eq!(arch("another"), ("", None));
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;
    use crate::security::host;

    #[test]
    fn profiles() {
        let all: HashSet<Capability> =
            ["SYS_ADMIN", "SYS_PTRACE"].iter().map(|name| name.parse().unwrap()).collect();
        crate::fuzz::text("seccomp", |text| {
            let Ok(profile) = Profile::read(text) else { return };
            for (capabilities, kernel, processor) in [
                (&HashSet::new(), (3, 0), "x86_64"),
                (&all, (6, 12), "aarch64"),
                (&all, (u32::MAX, 0), "other"),
            ] {
                let filter = profile.for_task(capabilities, kernel, processor).unwrap();
                let rules = filter.syscalls().as_deref().unwrap_or_default();
                assert!(rules.iter().all(|rule| !rule.names().is_empty()));
                assert!(rules.iter().all(|rule| rule.action() != LinuxSeccompAction::ScmpActNotify));
                let arguments = rules.iter().filter_map(|rule| rule.args().as_ref()).flatten();
                assert!(arguments.map(LinuxSeccompArg::index).all(|index| index < MOST_ARGUMENTS));
                let json = serde_json::to_string(&filter).unwrap();
                assert_eq!(serde_json::from_str::<LinuxSeccomp>(&json).unwrap(), filter, "{json}");
            }
        });
    }

    /// The version in `uname`, and the files of the kernel that say what the plugin itself may do.
    #[test]
    fn kernel_files() {
        crate::fuzz::text("kernel-files", |text| {
            if let Some((major, minor)) = version(text) {
                assert_eq!(version(&format!("{major}.{minor}")), Some((major, minor)));
            }
            host::check_parsers(text);
        });
    }
}
