//! The OCI specification of the containers that paths without a driver create: one for all of them, like that of a
//! small task on the host's network. It has no seccomp, whose profile runc would compile anew for each exec.

use serde_json::{Value, json};

/// The script of the container's process. It writes one line, and exits at once on SIGTERM.
pub(crate) const SCRIPT: &str = "trap 'exit 0' TERM; echo up; sleep 1000000 & wait";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const MEMORY_BYTES: i64 = 128 << 20;
pub(crate) const SHARES: u64 = 512;
const CAPABILITIES: [&str; 8] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Returns the specification of a container in this control group.
pub(crate) fn container(cgroup: &str, terminal: bool) -> Value {
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.0.2",
        "process": process(&["/bin/sh", "-c", SCRIPT], terminal),
        "root": {"path": "rootfs"},
        "hostname": "bench",
        "mounts": mounts(),
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces,
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "memory": {"limit": MEMORY_BYTES},
                "cpu": {"shares": SHARES},
            },
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

fn process(args: &[&str], terminal: bool) -> Value {
    json!({
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": [PATH],
        "cwd": "/",
        "capabilities": {
            "bounding": CAPABILITIES,
            "effective": CAPABILITIES,
            "permitted": CAPABILITIES,
        },
        "oomScoreAdj": 0,
        "noNewPrivileges": true,
    })
}

fn mounts() -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    json!([
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ])
}

/// Returns the command of an exec: it prints one word, or copies its stdin to its stdout if there is a payload.
pub(crate) fn exec_command(payload: usize) -> &'static [&'static str] {
    if payload == 0 { &["/bin/echo", "up"] } else { &["/bin/cat"] }
}

/// Returns the number of bytes that the command of an exec prints.
pub(crate) fn exec_output(payload: usize) -> usize {
    if payload == 0 { "up\n".len() } else { payload }
}

/// Returns the process specification of an exec.
pub(crate) fn exec(payload: usize) -> Value {
    process(exec_command(payload), false)
}

/// Returns the resources that an update sets.
pub(crate) fn update() -> Value {
    json!({"cpu": {"shares": SHARES + 1}})
}
