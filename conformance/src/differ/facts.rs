//! The facts of a job's run: what the probe printed, taken apart, with the values of the run itself taken out.

use std::collections::BTreeMap;

/// Each fact, as `<section>/<name>` and its value.
pub type Facts = BTreeMap<String, String>;

/// The texts that stand for something only in one run or on one side, and the words that replace them.
#[derive(Debug, Clone, Default)]
pub struct Names(Vec<(String, String)>);

impl Names {
    pub fn add(&mut self, text: impl Into<String>, word: &str) {
        let text = text.into();
        if !text.is_empty() {
            self.0.push((text, word.to_owned()));
            // A path is replaced before the one that it is below.
            self.0.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        }
    }

    /// Returns a text without what is only of this run: known names, ids, and addresses of tasks.
    pub fn without(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, word) in &self.0 {
            text = text.replace(name.as_str(), word);
        }
        let text = words(&text, masked);
        // The cgroup of the task, by either's layout.
        text.replace("/{cgroup}/{id}", "{its cgroup}").replace("/nomad/{alloc}.main", "{its cgroup}")
    }
}

/// Replaces each run of letters, digits, dots and colons.
fn words(text: &str, replace: impl Fn(&str) -> Option<&'static str>) -> String {
    let mut left = text;
    let mut out = String::new();
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '.' || letter == ':';
    while let Some(begin) = left.find(is_part) {
        let (before, rest) = left.split_at(begin);
        let (word, after) = rest.split_at(rest.find(|letter| !is_part(letter)).unwrap_or(rest.len()));
        out.push_str(before);
        out.push_str(replace(word).unwrap_or(word));
        left = after;
    }
    out + left
}

/// Returns what stands for an id or an address.
fn masked(word: &str) -> Option<&'static str> {
    let is_hex = !word.is_empty() && word.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match word.len() {
        64 if is_hex => return Some("{id}"),
        12 if is_hex => return Some("{short id}"),
        // The one that a job asks for, that of all, and none.
        17 if word == "02:42:ac:11:00:99" || word.ends_with("ff:ff:ff") || word.ends_with("00:00:00") => {
            return None;
        }
        17 if word.matches(':').count() == 5 && word.starts_with("02:42:") => return Some("02:42:{mac}"),
        17 if word.matches(':').count() == 5 => return Some("{mac}"),
        _ => {}
    }
    // Those of groups' networks.
    if word.starts_with("10.201.") {
        return Some("{address}");
    }
    let host = word.strip_prefix("172.17.0.")?;
    match host {
        "0" => None,
        "1" => Some("{gateway}"),
        // The one that a job asks for.
        "77" => None,
        _ => Some("{address}"),
    }
}

/// Adds the facts of a probe's output under a prefix. Returns whether the output is whole.
pub fn add_probed(facts: &mut Facts, prefix: &str, output: &str, names: &Names) -> bool {
    let mut section = String::new();
    let mut env: Option<String> = None;
    for line in output.lines() {
        let line = line.trim_end_matches('\r');
        if let Some(name) = line.strip_prefix("== ") {
            name.clone_into(&mut section);
            env = None;
            continue;
        }
        if section == "end" {
            add(facts, &format!("{prefix}after the end"), names.without(line));
        } else if section == "mounts" {
            add_mount(facts, prefix, line, names);
        } else if section == "env" {
            // The next line of a value has no name.
            match (line.split_once('='), &env) {
                (Some((name, value)), _) => {
                    // The server makes one for each allocation.
                    let value =
                        if name == "NOMAD_TOKEN" { "{token}".to_owned() } else { names.without(value) };
                    add(facts, &format!("{prefix}env/{name}"), value);
                    env = Some(name.to_owned());
                }
                (None, name) => {
                    let name = name.as_deref().unwrap_or_default();
                    add(facts, &format!("{prefix}env/{name} goes on"), names.without(line));
                }
            }
        } else if let Some(list) = line.strip_prefix("devices/devices.list ") {
            for (device, rights) in list.split(';').filter_map(|entry| entry.rsplit_once(' ')) {
                add(facts, &format!("{prefix}cgroups/devices/devices.list {device}"), rights.to_owned());
            }
        } else if let Some((name, value)) = taken_apart(&section, line).filter(|(name, _)| !is_others(name)) {
            let (name, mut value) = (names.without(&name), names.without(&value));
            if section == "namespaces" && value.contains('[') {
                // None of those that have names.
                "its own".clone_into(&mut value);
            }
            if section == "links" {
                let (rest, address) = without_address(&value);
                add(facts, &format!("{prefix}links/{name} address"), address);
                value = rest;
            }
            add(facts, &format!("{prefix}{section}/{name}"), value);
        }
    }
    section == "end"
}

/// Returns whether a fact is of the host's interfaces for other tasks, which a task in the host's network sees.
fn is_others(name: &str) -> bool {
    name.split(['/', ' ']).any(|word| word.starts_with("veth") || word == "docker0")
}

/// Takes the hardware address out of what is told of a link. Returns the rest, and the address.
fn without_address(link: &str) -> (String, String) {
    let kinds = ["link/ether ", "link/loopback "];
    let found = kinds.iter().find_map(|kind| Some((kind, link.split_once(kind)?)));
    let Some((kind, (before, after))) = found else { return (link.to_owned(), String::new()) };
    let (address, rest) = after.split_once(' ').unwrap_or((after, ""));
    (format!("{before}{kind}{rest}"), address.to_owned())
}

/// Adds a fact. A second one of the same name gets a number.
pub fn add(facts: &mut Facts, name: &str, value: String) {
    let mut place = name.to_owned();
    for number in 2.. {
        if !facts.contains_key(&place) {
            break;
        }
        place = format!("{name} #{number}");
    }
    facts.insert(place, value);
}

/// Takes a line of a section apart into a name and a value. `None` for a line that says nothing.
fn taken_apart(section: &str, line: &str) -> Option<(String, String)> {
    let owned = |(name, value): (&str, &str)| (name.trim().to_owned(), value.trim().to_owned());
    match section {
        "status" | "sysctl" => line.trim_start_matches("/proc/sys/").split_once(':').map(owned),
        "limits" => {
            let (name, rest) = line.split_at_checked(26)?;
            let values: Vec<_> = rest.split_whitespace().take(2).collect();
            Some((name.trim().to_owned(), values.join(" ")))
        }
        "cwd" => Some(("path".to_owned(), line.to_owned())),
        "hosts" | "resolv.conf" if line.starts_with('#') || line.trim().is_empty() => None,
        "hosts" => {
            let words: Vec<_> = line.split_whitespace().collect();
            Some((words[0].to_owned(), words[1..].join(" ")))
        }
        "groups" => {
            let mut parts = line.splitn(3, ':').skip(1);
            Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
        }
        "acts" => {
            let at =
                [" works", " fails"].iter().find_map(|word| line.find(word)).or(Some("port 80".len()))?;
            line.split_at_checked(at).map(owned)
        }
        "streams" => line.split_once(' ').map(|(name, to)| {
            let to = to.split('[').next().unwrap_or_default();
            (name.to_owned(), to.to_owned())
        }),
        "links" => {
            let mut parts = line.splitn(3, ": ").skip(1);
            let (name, rest) = (parts.next()?, parts.next()?);
            let rest: Vec<_> = rest.split(['\\', ' ']).filter(|word| !word.is_empty()).collect();
            let name = name.split('@').next().unwrap_or_default();
            Some((name.to_owned(), rest.join(" ")))
        }
        "addresses" => {
            let line = line.split('\\').next().unwrap_or_default();
            let words: Vec<_> = line.split_whitespace().skip(1).collect();
            let (name, family) = (words.first()?, words.get(1)?);
            // Of an IPv6 address of a link alone, the kernel makes the rest.
            let value = words[2..].join(" ");
            let value = if value.starts_with("fe80:") { "fe80:{link}".to_owned() } else { value };
            Some((format!("{name} {family}"), value))
        }
        _ => match line.split_once(' ') {
            Some(pair) => Some(owned(pair)),
            None => (!line.is_empty()).then(|| (line.to_owned(), String::new())),
        },
    }
}

/// Files that either driver makes for a task and mounts.
const DRIVERS_FILES: [&str; 3] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// Adds the facts of a line of /proc/self/mountinfo: options, propagation, the file system, and what of it is mounted.
fn add_mount(facts: &mut Facts, prefix: &str, line: &str, names: &Names) {
    let Some((mount, system)) = line.split_once(" - ") else { return };
    let mount: Vec<_> = mount.split(' ').collect();
    let system: Vec<_> = system.splitn(3, ' ').collect();
    let (&[_, _, _, root, point, options, ref tags @ ..], &[kind, source, more]) = (&mount[..], &system[..])
    else {
        return;
    };
    // Of two mounts at a place, a task sees the later one.
    let place = format!("{prefix}mounts/{}", names.without(point));
    let sorted = |options: &str| {
        let is_of_layers =
            |option: &&str| ["lowerdir", "upperdir", "workdir"].iter().any(|name| option.starts_with(name));
        let mut options: Vec<_> = options.split(',').filter(|option| !is_of_layers(option)).collect();
        options.sort_unstable();
        names.without(&options.join(","))
    };
    let tags: Vec<_> = tags.iter().filter_map(|tag| tag.split(':').next()).collect();
    let mut fact = |name: &str, value: String| facts.insert(format!("{place} {name}"), value);
    fact("options", sorted(options));
    fact("propagation", tags.join(","));
    fact("file system", format!("{kind} {} {}", names.without(source), sorted(more)));
    // Where either driver keeps a file of its own, as with cgroups.
    let own = DRIVERS_FILES.iter().find(|file| *file == &point && root.ends_with(&file["/etc".len()..]));
    fact("root", own.map_or_else(|| names.without(root), |_| "{the driver's file}".to_owned()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probed(output: &str) -> Facts {
        let mut names = Names::default();
        names.add("/tmp/x/alloc", "{allocations}");
        names.add("/tmp/x", "{agent}");
        names.add("5b02b4e7-0000-0000-0000-000000000000", "{alloc}");
        let mut facts = Facts::new();
        assert!(add_probed(&mut facts, "", &format!("{output}\n== end"), &names));
        facts
    }

    fn only(output: &str) -> (String, String) {
        let facts = probed(output);
        assert_eq!(facts.len(), 1, "{facts:?}");
        facts.into_iter().next().unwrap()
    }

    #[test]
    fn lines_of_sections_are_taken_apart() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        for (output, name, value) in [
            ("== cwd\n/home/app", "cwd/path", "/home/app"),
            ("== status\nCapEff:\t00ff", "status/CapEff", "00ff"),
            ("== sysctl\n/proc/sys/kernel/sem:32000\t32", "sysctl/kernel/sem", "32000\t32"),
            ("== groups\n5:cpu,cpuacct:/docker/x", "groups/cpu,cpuacct", "/docker/x"),
            ("== acts\nmount fails: Permission denied", "acts/mount", "fails: Permission denied"),
            ("== acts\nport 80 ", "acts/port 80", ""),
            ("== hosts\n172.17.0.5\t0123456789ab", "hosts/{address}", "{short id}"),
            ("== streams\n1 pipe:[77]", "streams/1", "pipe:"),
            ("== namespaces\nnet net:[77]", "namespaces/net", "its own"),
            (
                "== addresses\n2: eth0    inet 172.17.0.2/16 scope global eth0\\ x",
                "addresses/eth0 inet",
                "{address}/16 scope global eth0",
            ),
            ("== env\nNOMAD_TOKEN=eyJh.eyJu.x", "env/NOMAD_TOKEN", "{token}"),
            ("== env\nNOMAD_ALLOC_ID=5b02b4e7-0000-0000-0000-000000000000", "env/NOMAD_ALLOC_ID", "{alloc}"),
            (
                "== limits\nMax open files            1024                 1048576              files",
                "limits/Max open files",
                "1024 1048576",
            ),
        ] {
            assert_eq!(only(output), pair(name, value), "{output}");
        }
    }

    #[test]
    fn a_links_hardware_address_is_a_fact_of_its_own() {
        let facts = probed(
            "== links\n7: eth0@if8: <BROADCAST,UP> mtu 1500 qdisc noqueue \\    link/ether 02:42:ac:11:00:02 brd ff:ff:ff:ff:ff:ff",
        );
        assert_eq!(facts["links/eth0 address"], "02:42:{mac}");
        assert_eq!(
            facts["links/eth0"],
            "<BROADCAST,UP> mtu 1500 qdisc noqueue link/ether brd ff:ff:ff:ff:ff:ff"
        );
    }

    #[test]
    fn interfaces_of_other_tasks_are_no_facts() {
        let facts = probed(
            "== links\n7: veth881449ea@if2: <UP> mtu 1500\n8: docker0: <UP> mtu 1500\n9: eth0: <UP> mtu 1500\n\
             == addresses\n7: veth881449ea    inet6 fe80::1/64 scope link\n\
             == sysctl\n/proc/sys/net/ipv6/conf/veth881449ea/forwarding:0",
        );
        assert!(facts.keys().all(|name| name.starts_with("links/eth0")), "{facts:?}");
    }

    #[test]
    fn a_mount_is_several_facts() {
        let facts = probed(
            "== mounts\n9 8 0:5 /tmp/x/alloc/5b02b4e7-0000-0000-0000-000000000000/local /local rw,nosuid master:1 - ext4 /dev/a rw,x",
        );
        let value = |name: &str| facts[&format!("mounts//local {name}")].as_str();
        assert_eq!(
            (value("options"), value("propagation"), value("file system")),
            ("nosuid,rw", "master", "ext4 /dev/a rw,x")
        );
        assert_eq!(value("root"), "{allocations}/{alloc}/local");
    }

    #[test]
    fn where_a_driver_keeps_its_files_is_no_difference() {
        let root = |root: &str, point: &str| {
            let facts = probed(&format!("== mounts\n9 8 0:5 {root} {point} rw - ext4 /dev/a rw"));
            facts[&format!("mounts/{point} root")].clone()
        };
        for of in ["/var/lib/docker/containers/x/hosts", "/hosts"] {
            assert_eq!(root(of, "/etc/hosts"), "{the driver's file}");
        }
        assert_eq!(root("/home/a", "/etc/hosts"), "/home/a");
        assert_eq!(root("/hosts", "/etc/other"), "/hosts");
    }

    #[test]
    fn a_list_of_devices_is_a_fact_for_each() {
        let facts = probed("== cgroups\ndevices/devices.list c 1:3 rwm;c 5:1 r;");
        assert_eq!(facts["cgroups/devices/devices.list c 5:1"], "r");
        assert_eq!(facts.len(), 2);
    }

    #[test]
    fn a_second_fact_of_a_name_has_a_number() {
        let facts = probed("== resolv.conf\nnameserver 192.0.2.1\nnameserver 192.0.2.2");
        assert_eq!(facts["resolv.conf/nameserver #2"], "192.0.2.2");
    }
}
