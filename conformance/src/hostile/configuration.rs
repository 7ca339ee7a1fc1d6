//! The part of a hostile job that is its configuration: oddities, each of which changes some options at random. What
//! would give a task the host by the operator's own word is left out: `pid_mode = "host"` for one, in which the acts
//! would hit the machine.

use serde_json::{Map, Value, json};

use crate::random::Random;

/// A hostile job, before it has an allocation.
#[derive(Debug, Default)]
pub struct Job {
    /// Options of the job's `config` block.
    pub options: Map<String, Value>,
    pub env: Vec<(String, String)>,
    /// Arguments behind those of the program.
    pub args: Vec<String>,
    pub user: Option<String>,
    /// Sources of mounts. The allocation's name is put in for `{alloc}`, its task's cgroup for `{cgroup}`, and a
    /// directory that jobs may mount for `{open}`.
    pub volumes: Vec<String>,
    /// Whether the program may not get to run, or not by its own rules.
    pub is_unsure: bool,
}

impl Job {
    fn set(&mut self, name: &str, value: Value) {
        self.options.insert(name.to_owned(), value);
    }

    /// Sets an option after which the program may not get to run.
    fn risk(&mut self, name: &str, value: Value) {
        self.is_unsure = true;
        self.set(name, value);
    }

    fn push(&mut self, name: &str, value: Value) {
        let list = self.options.entry(name).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(value);
        }
    }
}

/// An oddity of a job's configuration.
pub struct Oddity {
    pub name: &'static str,
    pub what: &'static str,
    apply: fn(&mut Random, &mut Job),
}

impl Oddity {
    pub fn apply(&self, random: &mut Random, job: &mut Job) {
        (self.apply)(random, job);
    }
}

const fn odd(name: &'static str, what: &'static str, apply: fn(&mut Random, &mut Job)) -> Oddity {
    Oddity { name, what, apply }
}

/// All oddities.
pub const ODDITIES: [Oddity; 22] = [
    odd("env", "variables with any name and content", env),
    odd("args", "arguments with any content", args),
    odd("command", "any command", |random, job| {
        let command = if random.chance(50) { random.text() } else { random.path(&roots()) };
        job.risk("command", json!(command));
    }),
    odd("entrypoint", "any entrypoint", |random, job| {
        job.risk("entrypoint", json!([random.text(), random.text()]));
    }),
    odd("cwd", "any working directory, also a descriptor of the runtime's", |random, job| {
        let known =
            ["/proc/self/fd/7", "/proc/self/fd/8", "/proc/1/cwd", "/local/x/y", "/dev/fd/9", "/alloc/logs/a"];
        let path = if random.chance(50) { (*random.pick(&known)).to_owned() } else { random.path(&roots()) };
        job.risk("cwd", json!(path));
    }),
    odd("user", "any user and groups", user),
    odd("labels", "labels of any name and content", |random, job| {
        let label = |random: &mut Random| (random.text(), json!(random.text()));
        let labels: Map<_, _> = (0..=random.below(5)).map(|_| label(random)).collect();
        job.set("labels", json!(labels));
    }),
    odd("names", "any hostname, names of hosts and aliases", |random, job| {
        if random.chance(50) {
            job.set("hostname", json!(random.text()));
        }
        for _ in 0..random.below(3) {
            let text = random.text();
            job.push(
                "extra_hosts",
                json!(*random.pick(&[&format!("{text}:127.0.0.1"), &format!("a:{text}"), &text])),
            );
        }
    }),
    odd("dns", "any name servers, domains and options of the resolver", |random, job| {
        let option = *random.pick(&["dns_servers", "dns_search_domains", "dns_options"]);
        for _ in 0..=random.below(4) {
            let text = if random.chance(30) { "192.0.2.1\nsearch evil".to_owned() } else { random.text() };
            job.push(option, json!(text));
        }
    }),
    odd("volumes", "mounts of any path of the allocation and the host", volumes),
    odd("mounts", "mounts in the long form, with any options", mounts),
    odd("tmpfs", "memory file systems anywhere", |random, job| {
        let path = target(random);
        let size =
            random.pick(&["", ":size=1", ":size=99999999999999", ":mode=0", ":nosuid,x=y", ":size=4k"]);
        job.risk("tmpfs", json!([format!("{path}{size}")]));
    }),
    odd("devices", "devices that are none, in odd places", |random, job| {
        let known = [
            "/dev/null",
            "/dev/zero",
            "/dev/fd/0",
            "/proc/self/mem",
            "/dev",
            "/dev/pts",
            "local/x",
            "../../dev",
        ];
        let source = if random.chance(70) { (*random.pick(&known)).to_owned() } else { random.text() };
        let place = if random.chance(50) { target(random) } else { "/dev/odd".to_owned() };
        let rights = random.pick(&["", ":r", ":rwm", ":x"]);
        job.risk("devices", json!([format!("{source}:{place}{rights}")]));
    }),
    odd("sysctl", "parameters of the kernel, allowed or not", sysctl),
    odd("capabilities", "capabilities that are added and dropped", |random, job| {
        let known =
            ["SYS_ADMIN", "NET_ADMIN", "SYS_RESOURCE", "SYS_PTRACE", "DAC_READ_SEARCH", "SYS_CHROOT", "BPF"];
        for name in random.some(&known, 0, 3) {
            job.push("cap_add", json!(name));
        }
        if random.chance(50) {
            let dropped = random.some(&["ALL", "CHOWN", "KILL", "SETUID", "NO_SUCH", "cap_fowner", ""], 1, 2);
            job.risk("cap_drop", json!(dropped));
        }
    }),
    odd("security", "fewer barriers, and profiles that are none", |random, job| match random.below(6) {
        0 => job.set("seccomp", json!(false)),
        1 => job.set("no_new_privileges", json!(true)),
        2 => job.risk("apparmor_profile", json!(random.text())),
        3 => job.risk("seccomp_profile", json!(random.path(&roots()))),
        4 => job.risk("privileged", json!(true)),
        _ => job.risk("security_opt", json!([random.text(), "seccomp=unconfined"])),
    }),
    odd("limits", "limits from nothing to the largest number", limits),
    odd("logging", "sizes of log files", |random, job| {
        let sizes = ["0", "1", "-1", "64k", "99999g", "1e9", "10m\n"];
        job.set(
            "logging",
            json!({"max_files": *random.pick(&[1, 2, 10_000]), "max_file_size": random.pick(&sizes)}),
        );
    }),
    odd("terminal", "a terminal, or an init program", |random, job| {
        job.set(random.word(&["tty", "init"]), json!(true));
        // The program is not the first process then, and its output not what it writes.
        job.is_unsure = true;
    }),
    odd("readonly", "a root file system that can't be written", |_, job| {
        job.set("readonly_rootfs", json!(true));
    }),
    odd("network", "any network mode, addresses and hardware address", |random, job| match random.below(4) {
        0 => job.set("network_mode", json!("bridge")),
        1 => job.risk("network_mode", json!(random.text())),
        2 => job.risk("mac_address", json!(random.text())),
        _ => {
            job.set("network_mode", json!("bridge"));
            job.risk(
                "ipv4_address",
                json!(random.pick(&["0.0.0.0", "255.255.255.255", "127.0.0.1", "::1", "x"])),
            );
        }
    }),
    odd("sharing", "namespaces of the host, but for its processes", |random, job| {
        let word = random.text();
        match random.below(4) {
            0 => job.set("ipc_mode", json!("host")),
            1 => job.set("uts_mode", json!("host")),
            2 => job.set("cgroupns", json!("private")),
            _ => job.risk(random.word(&["pid_mode", "ipc_mode", "userns_mode"]), json!(format!("x{word}"))),
        }
    }),
];

/// Beginnings of paths.
fn roots() -> Vec<String> {
    [
        "{alloc}",
        "{alloc}/web",
        "{alloc}/alloc",
        "{open}",
        "{open}/out",
        "/proc/self",
        "/",
        "..",
        "local",
        "../alloc",
    ]
    .map(str::to_owned)
    .into()
}

/// Returns a place in the container.
fn target(random: &mut Random) -> String {
    let known = [
        "/t",
        "/t",
        "/t",
        "/local",
        "/alloc",
        "/alloc/logs",
        "/alloc/data",
        "/secrets",
        "/",
        "/proc",
        "/proc/self",
        "/sys/fs/cgroup",
        "/dev",
        "/dev/shm",
        "/dev/null",
        "/etc/hosts",
        "/usr/bin",
        "/local/x",
        "/local/a b",
        "/t/../u",
        "t",
        "",
    ];
    if random.chance(85) { (*random.pick(&known)).to_owned() } else { format!("/{}", random.text()) }
}

fn env(random: &mut Random, job: &mut Job) {
    for _ in 0..=random.below(8) {
        let name = if random.chance(70) {
            random.text()
        } else {
            (*random.pick(&["PATH", "NOMAD_ALLOC_DIR", "HOME"])).to_owned()
        };
        job.is_unsure |= name == "PATH";
        job.env.push((name, random.text()));
    }
}

fn args(random: &mut Random, job: &mut Job) {
    for _ in 0..=random.below(6) {
        job.args.push(random.text());
    }
}

fn user(random: &mut Random, job: &mut Job) {
    let known = [
        "app",
        "1000",
        "0:0",
        "4294967295",
        "-1",
        "app:staff",
        "1000:99999",
        ":",
        "nobody",
        "root:",
        "nomad-80000",
        "../x",
    ];
    job.is_unsure = true;
    job.user = Some(if random.chance(75) { (*random.pick(&known)).to_owned() } else { random.text() });
    if random.chance(40) {
        job.set("group_add", json!([random.text(), *random.pick(&["extra", "0", "4294967296"])]));
    }
}

fn volumes(random: &mut Random, job: &mut Job) {
    for _ in 0..=random.below(3) {
        let known = [
            "local/x",
            "local/y",
            "local/sub",
            "local/a/x",
            "../alloc/data/x",
            "../alloc/data",
            "secrets/x",
            "{open}/x",
            "{open}/out",
            "{open}",
        ];
        let source =
            if random.chance(60) { (*random.pick(&known)).to_owned() } else { random.path(&roots()) };
        let options = random.pick(&["", "", ":ro", ":rw,rslave", ":ro,ro", ":z", ":x y"]);
        let target = if random.chance(70) { format!("/t{}", random.below(3)) } else { target(random) };
        job.is_unsure |= !target.starts_with("/t");
        job.volumes.push(format!("{source}:{target}{options}"));
    }
}

fn mounts(random: &mut Random, job: &mut Job) {
    for _ in 0..=random.below(3) {
        let options: Vec<&str> = random.some(
            &["rbind", "bind", "ro", "rw", "nosuid", "noexec", "size=1k", "x", "", "rshared"],
            0,
            3,
        );
        let (kind, source) = (*random.pick(&["bind", "bind", "volume", "tmpfs", "x"]), random.path(&roots()));
        let mut mount = json!({"type": kind, "source": source, "target": target(random), "options": options});
        if random.chance(20) {
            mount["bind_options"] =
                json!({"propagation": *random.pick(&["rshared", "rslave", "private", "x"])});
        }
        if random.chance(20) {
            mount["tmpfs_options"] =
                json!({"size": random.text(), "mode": *random.pick(&[0, -1, 1_000_000])});
        }
        job.is_unsure = true;
        job.push("mount", mount);
    }
}

fn sysctl(random: &mut Random, job: &mut Job) {
    let known = [
        "net.ipv4.ip_forward",
        "net.core.somaxconn",
        "kernel.shmmax",
        "kernel.msgmax",
        "kernel.sem",
        "fs.mqueue.msg_max",
        "kernel.hostname",
        "kernel.core_pattern",
        "vm.overcommit_memory",
        "net/../kernel/panic",
        "net.ipv4./../../x",
    ];
    let name = if random.chance(80) { (*random.pick(&known)).to_owned() } else { random.text() };
    let value = if random.chance(60) {
        (*random.pick(&["0", "1", "-1", "65536", "1 1 1 1"])).to_owned()
    } else {
        random.text()
    };
    job.risk("sysctl", json!({name: value}));
}

fn limits(random: &mut Random, job: &mut Job) {
    let size = *random.pick(&["0", "1", "4k", "16m", "-1", "999999t", "x"]);
    match random.below(9) {
        0 => job.risk("pids_limit", json!(*random.pick(&[0, 1, 2, 5, 11_999, 1_000_000, -1]))),
        1 => {
            let name = *random.pick(&["nofile", "nproc", "as", "stack", "core", "data", "memlock", "x"]);
            job.risk(
                "ulimit",
                json!({name: *random.pick(&["0", "1", "64:128", "128:64", "-1", "x", "1048576"])}),
            );
        }
        2 => job.risk("file_limit", json!(*random.pick(&[0, 3, 20, 1_048_576, 1_048_577, -1]))),
        3 => {
            job.set("cpu_hard_limit", json!(true));
            job.risk("cpu_cfs_period", json!(*random.pick(&[1000, 999, 1_000_000, 0])));
        }
        4 => job.risk("cpuset_cpus", json!(*random.pick(&["0", "0-1", "99", "", "0-", "0,0", "-1"]))),
        5 => job.risk(random.word(&["memory_swap", "memory_reservation"]), json!(size)),
        6 => job.risk("shm_size", json!(size)),
        7 => job.risk("oom_score_adj", json!(*random.pick(&[-1000, 0, 1000, 1001]))),
        _ => job.risk("memory_swappiness", json!(*random.pick(&[-1, 0, 100, 101]))),
    }
}
