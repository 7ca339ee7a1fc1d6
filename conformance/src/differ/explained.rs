//! The differences that are explained: which facts, which values, and why it is so.

use super::compare::{Difference, fits};

/// A kind of difference with its reason.
#[derive(Debug)]
pub struct Explained {
    /// Patterns of the facts' names.
    facts: &'static [&'static str],
    /// Patterns of the values on either side.
    docker: &'static str,
    here: &'static str,
    /// What differs and how, in words, for the page.
    pub words: [&'static str; 3],
    pub reason: &'static str,
}

impl Explained {
    fn covers(&self, difference: &Difference) -> bool {
        // What a command has is explained as what the task has.
        let name = difference.fact.strip_prefix("exec: ").unwrap_or(&difference.fact);
        self.facts.iter().any(|pattern| fits(pattern, name))
            && fits(self.docker, &difference.docker)
            && fits(self.here, &difference.here)
    }
}

/// Returns the place in [`ALL`] of the explanation of a difference.
pub fn of(difference: &Difference) -> Option<usize> {
    ALL.iter().position(|explained| explained.covers(difference))
}

const fn explained(
    facts: &'static [&'static str],
    docker: &'static str,
    here: &'static str,
    words: [&'static str; 3],
    reason: &'static str,
) -> Explained {
    Explained { facts, docker, here, words, reason }
}

const ANY: &str = "*";

/// All explained differences.
pub const ALL: [Explained; 32] = [
    explained(
        // A cgroup namespace of the task's own is made before it gets there.
        &["groups/cpuset"],
        ANY,
        "/*",
        ["the cgroup of `cpuset`", "docker's", "the one that Nomad shares processors out by"],
        "Nomad's own layout, as for tasks of its other drivers",
    ),
    explained(
        &["cgroups/devices/devices.list c 5:1"],
        "rwm",
        "(none)",
        ["the device 5:1, the machine's console", "may be made and opened", "may not"],
        "the console that a task with a terminal has is another device",
    ),
    explained(
        &["end/message"],
        "Exit Code: *Exit Message: *",
        "Exit Code: *",
        ["the text of a failure's event", "has the cause in docker's words as well", "has the exit code"],
        "an external driver can't tell a text; the code, the signal and the kill for memory are the same",
    ),
    explained(
        &["end/oom_killed"],
        "false",
        "true",
        [
            "whether the kernel has killed for memory",
            "by an event that may come too late",
            "by the kernel's count",
        ],
        "it is told each time",
    ),
    explained(
        &["end/signal"],
        "0",
        ANY,
        [
            "the signal that ended a task",
            "never told, only the exit code 128 + signal",
            "told, with the same code",
        ],
        "Nomad shows it",
    ),
    explained(
        &["cgroups/cpu/cpu.cfs_quota_us"],
        ANY,
        ANY,
        ["`cpu_hard_limit`", "rounded down for each processor", "rounded for all together"],
        "one or two of a hundred thousand parts",
    ),
    explained(
        &["cgroups/cpuset/cpuset.cpus", "status/Cpus_allowed_list"],
        "0-1*",
        ANY,
        ["`cpuset_cpus`, and others' reserved cores", "no effect", "the task runs on what is left to it"],
        "the option does what its name says, and reserved cores are the others' alone",
    ),
    explained(
        &["start"],
        "*systempaths=unconfined*",
        "runs",
        [
            "`security_opt = [\"systempaths=unconfined\"]`",
            "known to docker's command line alone",
            "unmasks paths",
        ],
        "the option does what its name says",
    ),
    explained(
        // opencontainers/runc#4195.
        &["limits/Max open files"],
        "* 4096",
        "* 4096",
        [
            "the soft limit of open files that a job sets, in a command",
            "now and then the hard limit",
            "now and then the hard limit",
        ],
        "runc 1.1.5 sets it while Go's own start in the new process may raise it",
    ),
    explained(
        &["env/TERM"],
        "(none)",
        "xterm",
        ["a command without a terminal, in a task with one", "has no `TERM`", "has the task's"],
        "the environment of a command is the task's",
    ),
    explained(
        &["output/stdout is whole"],
        "false",
        "true",
        ["the output of a task that ends at once", "may be lost", "is whole"],
        "this driver reports no exit before its output is written",
    ),
    explained(
        &["start"],
        "*conflicting options: hostname and the network mode*",
        "runs",
        ["`hostname` of a task in a group's network", "refused by dockerd", "the task's name"],
        "each task has a name of its own",
    ),
    explained(
        &["start"],
        "*network-scoped alias is supported only for containers in user defined networks*",
        "runs",
        [
            "`network_aliases` on the default bridge",
            "refused by dockerd 28",
            "names in the task's `/etc/hosts`",
        ],
        "the task knows itself by them; dockerd 26 takes them, too",
    ),
    explained(
        &["start"],
        "*user specified IP address is supported on user defined networks only*",
        "runs",
        ["`ipv4_address` on the default bridge", "refused by dockerd 28", "the task has the address"],
        "the option does what its name says",
    ),
    explained(
        &["start"],
        "runs",
        "*the option image_pull_timeout can't be*",
        [
            "`image_pull_timeout` that is no duration",
            "refused by the first node that has to pull the image",
            "refused",
        ],
        "the mistake shows at the first start, and not on another node later",
    ),
    explained(
        &["start"],
        "runs",
        "*the option load is not the path of an archive*does not exist*",
        [
            "`load` of an archive that isn't there",
            "refused by the first node that has not the image yet",
            "refused",
        ],
        "the mistake shows at the first start, and not on another node later",
    ),
    explained(
        &["start"],
        "runs",
        "*the option mount can't be*a named volume would outlive the allocation*",
        ["a volume with a name in `mount`", "made on the node, and left there", "refused"],
        "nothing would ever remove it, and it stays where it is when the allocation moves: Nomad's `volume` is for that",
    ),
    explained(
        &["mounts// root"],
        "/",
        "*/snapshots/*",
        ["the root of an image without layers", "an overlay", "the directory of a snapshot"],
        "containerd mounts no overlay where there is but one directory",
    ),
    explained(
        &["mounts//proc/interrupts *", "readable//proc/interrupts"],
        ANY,
        ANY,
        ["`/proc/interrupts`", "masked by dockerd 28, not by 26", "masked"],
        "it tells of the keys that others press",
    ),
    explained(
        &["links/eth0 address"],
        "02:42:{mac}",
        "{mac}",
        [
            "the hardware address on a bridge",
            "made at random by dockerd 28, from the IP address by 26",
            "at random",
        ],
        "two nodes may have the same IP addresses on their bridges",
    ),
    explained(
        &["start"],
        "*is mounted on * but it is not a shared or slave mount*",
        "runs",
        [
            "propagation from a host directory that isn't shared",
            "refused by dockerd",
            "mounted, and nothing comes through",
        ],
        "as the kernel has it",
    ),
    explained(
        &["mounts//* root"],
        "*/dockerd/root/volumes/*",
        "*/snapshots/*",
        ["where volumes without a name are", "docker's directory of volumes", "a snapshot of containerd's"],
        "they are gone with the container, as docker's, and no tool lists them",
    ),
    explained(
        &["status/SigIgn"],
        ANY,
        "000000008000000*",
        ["signal 32, which thread libraries keep for themselves", "has its default", "is ignored at first"],
        "glibc leaves it so in what it starts (the shim); a library sets it before it uses it",
    ),
    explained(
        &["mounts//sbin/docker-init options"],
        ANY,
        "nodev,nosuid,*",
        ["the mount of the init program", "`ro`", "`ro,nosuid,nodev`"],
        "a mount of the host's gives no more than it must",
    ),
    explained(
        &["hosts/::1", "hosts/::1 #2", "hosts/ff02::3", "hosts/fe00::*", "hosts/ff00::*"],
        ANY,
        ANY,
        ["`/etc/hosts` in a group's network", "Nomad's list of IPv6 names", "docker's, as in other networks"],
        "the names are the same, but for `ip6-allhosts`; prefixes are written otherwise",
    ),
    explained(
        &["files//etc/mtab"],
        ANY,
        "(none)",
        ["`/etc/mtab`", "a link to `/proc/mounts`, made in each container", "as in the image"],
        "a link in a directory of the image's can't be made without mounting it; few programs read it",
    ),
    explained(
        &["addresses/eth0 inet6", "sysctl/net/ipv6/conf/eth0/disable_ipv6"],
        ANY,
        ANY,
        ["IPv6 in a network without a subnet of it", "is off", "has the address of the link alone"],
        "as in each other network of the kernel's; nothing beyond the bridge is reached by it",
    ),
    explained(
        &["mounts//* propagation"],
        "master",
        "",
        ["propagation of `/` and of volumes", "mounts that the host makes there come through", "none do"],
        "nobody but the driver mounts anything there",
    ),
    explained(
        &["mounts// file system"],
        "overlay overlay *",
        ANY,
        ["the file system of `/` and its options", "docker's overlay", "containerd's, with `uuid=on`"],
        "the file system of an image is containerd's snapshot, and without layers its directory",
    ),
    explained(
        &["mounts//alloc/logs *", "writable//alloc/logs"],
        ANY,
        ANY,
        ["`/alloc/logs`", "writable", "read-only"],
        "a task that puts a link there has Nomad write elsewhere as root",
    ),
    explained(
        &["mounts//etc/hosts *", "mounts//etc/hostname *", "mounts//etc/resolv.conf *"],
        ANY,
        ANY,
        [
            "mounts of `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`",
            "of docker's directory",
            "of memory, `nosuid,nodev`",
        ],
        "what a task writes there can't fill the host's disk",
    ),
    explained(
        &["mounts//sys/fs/cgroup options", "writable//sys/fs/cgroup"],
        ANY,
        ANY,
        ["`/sys/fs/cgroup` with cgroup v1", "a writable file system in memory", "read-only"],
        "as it is with cgroup v2",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_the_table_are_short() {
        for Explained { words, reason, .. } in &ALL {
            assert!(
                words.iter().chain([reason]).all(|cell| cell.len() <= 120 && !cell.contains('|')),
                "{words:?}"
            );
        }
    }
}
