//! The escapes that benchmarks of container security look for: each is tried from inside a task with no options, and
//! again by an exec in it, and has to be denied for its own reason. The tries are bare system calls, since a tool that
//! fails may only be missing. They are repeated under the plugin options that docs/security.md has for a hardened node.

use anyhow::{Context, Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::fixture::Form;
use harness::fixture::images::libraries;
use harness::host::Plugin;
use harness::task::LIMIT;
use nix::errno::Errno::{self, EACCES, ENOENT, ENOSYS, EPERM, EROFS};
use nix::libc::{self, c_long};
use serde_json::{Value, json};

use crate::cases::support::{cases, ensure_eq, refused};

cases!["denied":
    what_is_the_hosts_is_denied_to_a_task_without_options_and_to_its_execs,
    on_a_hardened_node_more_is_denied_and_no_job_gets_around_it,
];

/// Flags of namespaces for `clone` and `unshare`, and the signal at a child's end.
const NEW_USER: c_long = 0x1000_0000;
const NEW_MOUNTS: c_long = 0x2_0000;
const CHILD_ENDS: c_long = 17;
/// Arguments of `reboot` that only define the effect of Ctrl-Alt-Del.
const REBOOT: [c_long; 3] = [0xfee1_dead, 672_274_793, 0];
const ATTACH: c_long = 16;
const AF_ALG: c_long = 38;
const AF_VSOCK: c_long = 40;
const NO_RANDOM_ADDRESSES: c_long = 0x004_0000;

/// Returns system calls with numeric arguments, and the error that each fails with.
fn calls() -> Vec<(&'static str, c_long, Vec<c_long>, Errno)> {
    let mut calls = vec![
        ("delete_module", libc::SYS_delete_module, vec![], EPERM),
        ("init_module", libc::SYS_init_module, vec![], EPERM),
        ("finit_module", libc::SYS_finit_module, vec![-1], EPERM),
        ("keyctl", libc::SYS_keyctl, vec![0, -3, 1], EPERM),
        ("add_key", libc::SYS_add_key, vec![], EPERM),
        ("request_key", libc::SYS_request_key, vec![], EPERM),
        ("bpf", libc::SYS_bpf, vec![], EPERM),
        ("perf_event_open", libc::SYS_perf_event_open, vec![], EPERM),
        ("userfaultfd", libc::SYS_userfaultfd, vec![0], EPERM),
        ("io_uring_setup", libc::SYS_io_uring_setup, vec![1, 0], EPERM),
        ("unshare users", libc::SYS_unshare, vec![NEW_USER], EPERM),
        ("unshare mounts", libc::SYS_unshare, vec![NEW_MOUNTS], EPERM),
        ("clone with new users", libc::SYS_clone, vec![NEW_USER | CHILD_ENDS], EPERM),
        // C libraries fall back to clone, whose flags a filter can see.
        ("clone3", libc::SYS_clone3, vec![], ENOSYS),
        ("setns", libc::SYS_setns, vec![0, 0], EPERM),
        ("clock_settime", libc::SYS_clock_settime, vec![0, 0], EPERM),
        ("settimeofday", libc::SYS_settimeofday, vec![0, 0], EPERM),
        ("reboot", libc::SYS_reboot, REBOOT.to_vec(), EPERM),
        ("kexec_load", libc::SYS_kexec_load, vec![], EPERM),
        ("swapoff", libc::SYS_swapoff, vec![], EPERM),
        ("acct", libc::SYS_acct, vec![0], EPERM),
        ("syslog", libc::SYS_syslog, vec![10, 0, 0], EPERM),
        ("quotactl", libc::SYS_quotactl, vec![], EPERM),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, vec![], EPERM),
        ("vhangup", libc::SYS_vhangup, vec![], EPERM),
        ("personality", libc::SYS_personality, vec![NO_RANDOM_ADDRESSES], EPERM),
        ("a socket of the kernel's ciphers", libc::SYS_socket, vec![AF_ALG, 5, 0], EPERM),
        ("a socket to the hypervisor", libc::SYS_socket, vec![AF_VSOCK, 1, 0], EPERM),
        ("a higher priority", libc::SYS_setpriority, vec![0, 0, -5], EACCES),
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend([
        ("iopl", libc::SYS_iopl, vec![3], EPERM),
        ("ioperm", libc::SYS_ioperm, vec![0x70, 1, 1], EPERM),
    ]);
    calls
}

/// Returns system calls with a text or a process among their arguments.
fn calls_with_words() -> Vec<(&'static str, String, Errno)> {
    vec![
        ("mount", format!("{}, 'none', '/tmp', 'tmpfs', 0, 0", libc::SYS_mount), EPERM),
        ("mount over /proc", format!("{}, '/', '/proc', 0, 0x1000, 0", libc::SYS_mount), EPERM),
        ("umount2", format!("{}, '/proc/kcore', 2", libc::SYS_umount2), EPERM),
        ("pivot_root", format!("{}, '/tmp', '/tmp'", libc::SYS_pivot_root), EPERM),
        ("swapon", format!("{}, '/tmp/x', 0", libc::SYS_swapon), EPERM),
        ("sethostname", format!("{}, 'elsewhere', 9", libc::SYS_sethostname), EPERM),
        ("setdomainname", format!("{}, 'elsewhere', 9", libc::SYS_setdomainname), EPERM),
        // The process is another user's, which root may not trace without the capability.
        ("ptrace another's", format!("{}, {ATTACH}, other(), 0, 0", libc::SYS_ptrace), EPERM),
    ]
}

/// Files with the mode in which each is opened, and the error that this fails with.
const FILES: [(&str, &str, Errno); 11] = [
    ("+<", "/proc/sys/kernel/core_pattern", EROFS),
    ("+<", "/proc/sys/kernel/modprobe", EROFS),
    ("+<", "/proc/sys/vm/overcommit_memory", EROFS),
    ("+<", "/proc/sysrq-trigger", EROFS),
    ("+<", "/proc/irq/default_smp_affinity", EROFS),
    ("+<", "/sys/kernel/uevent_helper", EROFS),
    ("+<", "/sys/kernel/mm/transparent_hugepage/enabled", EROFS),
    ("<", "/dev/mem", ENOENT),
    ("<", "/dev/kmsg", ENOENT),
    ("<", "/dev/fuse", ENOENT),
    ("<", "/dev/net/tun", ENOENT),
];

/// Devices of the host (memory, the kernel's log, a disk) with type, major and minor number.
const DEVICES: [(&str, &str, u64, u64); 3] =
    [("memory", "0020000", 1, 1), ("log", "0020000", 1, 11), ("disk", "0060000", 7, 0)];

/// Beginning of the Perl program. `other` returns the pid of another user's process, which ends with the program.
const PROLOGUE: &str = r#"
$| = 1;
sub other {
    pipe(my $ended, our $held);
    pipe(my $is_other, my $ready);
    my $pid = fork;
    if (!$pid) {
        close $held;
        $< = $> = 1000;
        syswrite $ready, 'x';
        sysread $ended, my $end, 1;
        exit;
    }
    sysread $is_other, my $word, 1;
    $pid
}
sub called { my ($number, @arguments) = @_; syscall($number, @arguments) != -1 }
sub tried { my ($name, $done) = @_; print $name, "\t", $done ? 'done' : $! + 0, "\n" }
"#;

/// A forbidden action as a Perl expression, which is true if the action succeeded, and the error that it has to fail
/// with.
struct ForbiddenAction {
    name: String,
    perl: String,
    errno: Errno,
}

fn call(name: &str, call: &str, errno: Errno) -> ForbiddenAction {
    ForbiddenAction { name: name.to_owned(), perl: format!("called({call})"), errno }
}

fn tries(may_make_nodes: bool) -> Vec<ForbiddenAction> {
    let mut tries = Vec::new();
    for (name, number, arguments, errno) in calls() {
        let words: Vec<_> = [number].iter().chain(&arguments).map(c_long::to_string).collect();
        tries.push(call(name, &words.join(", "), errno));
    }
    for (name, words, errno) in calls_with_words() {
        tries.push(call(name, &words, errno));
    }
    for (how, file, errno) in FILES {
        // A kernel may have been built without this file.
        let is_there = file.starts_with("/dev") || std::path::Path::new(file).exists();
        let errno = if is_there { errno } else { ENOENT };
        tries.push(ForbiddenAction {
            name: file.to_owned(),
            perl: format!("open(F, '{how}', '{file}')"),
            errno,
        });
    }
    for (name, kind, major, minor) in DEVICES {
        // A task may make the node, but not open it.
        let mknod = format!("{}, -100, '/{name}', {kind} | 0600, {}", libc::SYS_mknodat, major << 8 | minor);
        let made = if may_make_nodes { format!("(called({mknod}) && 0) || ") } else { String::new() };
        let perl = format!("{made}open(F, '<', '/{name}')");
        let errno = if may_make_nodes { EPERM } else { ENOENT };
        tries.push(ForbiddenAction { name: format!("the host's {name}"), perl, errno });
        if !may_make_nodes {
            tries.push(call(&format!("a node of {name}"), &mknod, EPERM));
        }
    }
    let group = "mkdir('/sys/fs/cgroup/of-a-task')".to_owned();
    tries.push(ForbiddenAction { name: "a control group".to_owned(), perl: group, errno: EROFS });
    tries
}

/// Tries these actions in a task and in an exec. The image has a name of its own, since other tries run at the same
/// time.
async fn are_denied(
    case: &CaseContext,
    plugin: &Plugin,
    name: &str,
    tries: &[ForbiddenAction],
) -> Result<()> {
    let lines =
        tries.iter().map(|ForbiddenAction { name, perl, .. }| format!("tried(\"{name}\", {perl});\n"));
    let program = PROLOGUE.to_owned() + &lines.collect::<String>();
    let image = case.environment().catalog().with(|tree| {
        let perl = std::path::Path::new("/usr/bin/perl");
        tree.host_file(perl, 0o755)?;
        libraries(perl)?.iter().try_for_each(|library| tree.host_file(library, 0o755))?;
        tree.file("try.pl", 0o644, program.as_bytes())
    })?;
    image.push(case.environment().registry(), name, "v1", Form::Oci)?;
    let run = "rm -f /memory /log /disk; perl /try.pl; echo over";
    let config = config! {
        image = case.image(&format!("{name}:v1")),
        command = "/bin/sh",
        args = ["-c", &format!("{run}; exec sleep 600")],
    };
    let task = case.run(plugin, &config).await?;
    task.alloc.stdout.to_contain("over\n", LIMIT).await?;
    let output = task.alloc.stdout.text();
    let (_, again) = task.exec(plugin, run).await?;
    for output in [output, again] {
        let lines: Vec<&str> = output.lines().collect();
        let wanted =
            |ForbiddenAction { name, errno, .. }: &ForbiddenAction| format!("{name}\t{}", *errno as i32);
        let other: Vec<_> = tries.iter().map(wanted).filter(|line| !lines.contains(&line.as_str())).collect();
        ensure!(other.is_empty(), "not denied, or for another reason: {other:#?}, of {output}");
        ensure_eq!(lines.len(), tries.len() + 1);
    }
    task.end(plugin).await
}

async fn what_is_the_hosts_is_denied_to_a_task_without_options_and_to_its_execs(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    are_denied(case, plugin, "tries", &tries(true)).await?;
    Ok(())
}

/// Returns the plugin options of the block in docs/security.md, on top of the case's own. Options that aren't in it
/// keep the case's values.
fn hardened(case: &CaseContext) -> Result<Value> {
    const PAGE: &str = include_str!("../../../../docs/security.md");
    let section = PAGE.split_once("## A hardened node").context("docs/security.md has no hardened node")?.1;
    let block = section.split("```").nth(1).context("there is no block")?;
    let mut options = case.options();
    options["allowed_modes"] = json!(null);
    // Two braces enclose the whole block; a third one opens a block within.
    let (mut depth, mut inner) = (0, None);
    for line in block.lines().map(str::trim) {
        if let Some((option, value)) = line.split_once(" = ") {
            let option = option.trim_end();
            let value: Value = serde_json::from_str(value).with_context(|| line.to_owned())?;
            match inner {
                Some(block) => options[block][option] = value,
                None => options[option] = value,
            }
        } else if let Some(block) = line.strip_suffix(" {") {
            depth += 1;
            inner = (depth > 2).then_some(block);
            inner.into_iter().for_each(|block| options[block] = json!({}));
        } else if line == "}" {
            depth -= 1;
            inner = None;
        }
    }
    ensure!(depth == 0, "the block's braces don't match");
    Ok(options)
}

async fn on_a_hardened_node_more_is_denied_and_no_job_gets_around_it(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin_as(&case.launch(), &hardened(case)?).await?;
    let mut tries = tries(false);
    tries.push(call("chroot", &format!("{}, '/tmp'", libc::SYS_chroot), EPERM));
    tries.push(call("a raw socket", &format!("{}, 2, 3, 1", libc::SYS_socket), EPERM));
    are_denied(case, &plugin, "hardened-tries", &tries).await?;
    for (option, value) in [
        ("privileged", json!(true)),
        ("cap_add", json!(["net_raw"])),
        ("cap_add", json!(["all"])),
        ("security_opt", json!(["systempaths=unconfined"])),
        ("pid_mode", json!("host")),
        ("host_network", json!(true)),
        ("network_mode", json!("host")),
        ("devices", json!(["/dev/fuse"])),
        ("devices", json!(["/dev/vda"])),
        ("volumes", json!(["/etc:/host:ro"])),
        ("mounts", json!([{"type": "bind", "source": "/", "target": "/host", "options": ["rbind", "ro"]}])),
    ] {
        let mut config = case.shell("true");
        config[option] = value;
        let task = case.prepare(&plugin, &config).await?;
        refused(plugin.start_task(task.config.clone()).await, &[option, "operator does not allow"])?;
        case.nothing_left()?;
    }
    // Each source leads to the host's root at the next start, or to something of Nomad's or of another task.
    for (source, options) in [
        ("..", ""),
        ("..", ":ro"),
        (".", ""),
        ("local/..", ":ro"),
        ("../web", ""),
        ("../alloc", ""),
        ("../alloc/logs", ""),
        ("../alloc/data/../logs", ""),
        ("../db/local", ":ro"),
        ("../db/secrets", ":ro"),
        ("private", ":ro"),
        ("../..", ":ro"),
    ] {
        let mut config = case.shell("true");
        config["volumes"] = json!([format!("{source}:/a{options}")]);
        let task = case.prepare(&plugin, &config).await?;
        refused(plugin.start_task(task.config.clone()).await, &["volumes", source, "can't be"])?;
        case.nothing_left()?;
    }
    plugin.shut_down().await
}
