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
    /// Options that the oddities have set: what a refusal may be about.
    pub odd: Vec<&'static str>,
    /// Whether the driver collects the output, which it has to for the option `logging`.
    pub is_collected: bool,
    /// Sources of mounts. The allocation's name is put in for `{alloc}`, its task's cgroup for `{cgroup}`, and a
    /// directory that jobs may mount for `{open}`.
    pub volumes: Vec<String>,
    /// Whether the program may not get to run, or not by its own rules.
    pub is_unsure: bool,
}

impl Job {
    fn set(&mut self, name: &'static str, value: Value) {
        self.odd.push(name);
        self.options.insert(name.to_owned(), value);
    }

    /// Sets an option after which the program may not get to run.
    fn risk(&mut self, name: &'static str, value: Value) {
        self.is_unsure = true;
        self.set(name, value);
    }

    fn push(&mut self, name: &'static str, value: Value) {
        self.odd.push(name);
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

/// How many of a hundred values of an option are odd, but such that the job runs. A job that is refused does nothing.
const USUAL: usize = 80;

/// All oddities.
pub const ODDITIES: [Oddity; 22] = [
    odd("env", "variables with any name and content", env),
    odd("args", "arguments with any content", args),
    odd("command", "any command, and the program's by other names", |random, job| {
        if random.chance(USUAL) {
            let same =
                ["perl", "//usr/bin/perl", "/usr/../bin/../usr/bin//perl", "/proc/self/root/usr/bin/perl"];
            return job.set("command", json!(random.pick(&same)));
        }
        let command = if random.chance(50) { random.text() } else { random.path(&roots()) };
        job.risk("command", json!(command));
    }),
    odd("entrypoint", "any entrypoint, and some that start the program", |random, job| {
        let same = [
            json!([]),
            json!(["env"]),
            json!(["//bin/./busybox", "env", "A B=\u{202e}\n"]),
            json!(["/bin/sh", "-c", "exec \"$0\" \"$@\""]),
        ];
        if random.chance(USUAL) {
            return job.set("entrypoint", random.pick(&same).clone());
        }
        job.risk("entrypoint", json!([random.text(), random.text()]));
    }),
    odd("cwd", "any working directory, also a descriptor of the runtime's", |random, job| {
        if random.chance(USUAL) {
            let good = ["//tmp/.", "/local", "/secrets//", "/new/a b/\u{e9}", "/usr/bin"];
            return job.set("cwd", json!(random.pick(&good)));
        }
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
            let good = ["0", "A-b.c", "xn--9ca"];
            let name = if random.chance(USUAL) { (*random.pick(&good)).to_owned() } else { random.text() };
            job.set("hostname", json!(name));
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
        if random.chance(USUAL) {
            let good = match option {
                "dns_servers" => ["192.0.2.1", "2001:db8::1"],
                "dns_search_domains" => ["a.b", "xn--9ca.example"],
                _ => ["ndots:15", "rotate"],
            };
            return job.push(option, json!(random.pick(&good)));
        }
        for _ in 0..=random.below(4) {
            let text = if random.chance(30) { "192.0.2.1\nsearch evil".to_owned() } else { random.text() };
            job.push(option, json!(text));
        }
    }),
    odd("volumes", "mounts of any path of the allocation and the host", volumes),
    odd("mounts", "mounts in the long form, with any options", mounts),
    odd("tmpfs", "memory file systems anywhere", |random, job| {
        if random.chance(USUAL) {
            let good = ["/t", "//t/./x:size=4k", "/new/\u{e9}:mode=0", "/local/x:size=1m,exec"];
            return job.risk("tmpfs", json!([random.pick(&good)]));
        }
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
            let known = ["ALL", "CHOWN", "KILL", "SETUID", "cap_fowner", "NO_SUCH", ""];
            let count = if random.chance(USUAL) { 5 } else { known.len() };
            let dropped = random.some(&known[..count], 1, 2);
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
        let good = ["64k", "65537", "1m", "99g"];
        let bad = ["0", "1", "-1", "99999g", "1e9", "10m\n"];
        let size = if random.chance(USUAL) { random.pick(&good) } else { random.pick(&bad) };
        let files = *random.pick(&[1, 2, 10_000]);
        job.risk("logging", json!({"max_files": files, "max_file_size": size}));
        job.is_collected = random.chance(90);
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
    job.odd.push("environment");
    let is_usual = random.chance(USUAL);
    for _ in 0..=random.below(8) {
        let name = if random.chance(70) {
            random.text()
        } else {
            (*random.pick(&["PATH", "NOMAD_ALLOC_DIR", "HOME"])).to_owned()
        };
        job.is_unsure |= name == "PATH";
        let text = random.text();
        job.env.push(if is_usual {
            let name = if name.is_empty() { "_" } else { &name };
            (name.replace(['\0', '='], "_"), text.replace('\0', ""))
        } else {
            (name, text)
        });
    }
}

fn args(random: &mut Random, job: &mut Job) {
    job.odd.push("args");
    let is_usual = random.chance(USUAL);
    for _ in 0..=random.below(6) {
        let text = random.text();
        job.args.push(if is_usual { text.replace('\0', "") } else { text });
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
    job.odd.push("user");
    if random.chance(USUAL) {
        let good = ["app", "1000", "root:0", "1000:99999", "app:extra"];
        job.user = Some((*random.pick(&good)).to_owned());
        return;
    }
    job.user = Some(if random.chance(75) { (*random.pick(&known)).to_owned() } else { random.text() });
    if random.chance(40) {
        job.set("group_add", json!([random.text(), *random.pick(&["extra", "0", "4294967296"])]));
    }
}

fn volumes(random: &mut Random, job: &mut Job) {
    job.odd.push("volumes");
    if random.chance(USUAL) {
        let sources = [
            "local/x",
            "local/a b",
            "local/-rf",
            "local/$(id)",
            "local/\u{e9}\u{202e}",
            "./local//./sub",
            "../alloc/data/x",
            "secrets/x",
            "{alloc}/alloc/tmp/y",
            "{open}/x",
            "{open}",
        ];
        for (number, source) in random.some(&sources, 1, 4).into_iter().enumerate() {
            let target = random.pick(&["/t", "//t/./", "/tmp/t ", "/new/\u{e9}/t"]);
            let options = random.pick(&["", "", ":ro", ":rw,private", ":ro,noexec", ":nosuid,bind"]);
            job.volumes.push(format!("{source}:{target}{number}{options}"));
        }
        return;
    }
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
    if random.chance(USUAL) {
        let good = [
            json!({"net.ipv4.ip_forward": "1"}),
            json!({"kernel.shmmax": "1"}),
            json!({"kernel.sem": "1 1 1 1"}),
            json!({"fs.mqueue.msg_max": "1"}),
        ];
        return job.risk("sysctl", random.pick(&good).clone());
    }
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
