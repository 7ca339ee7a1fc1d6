//! The packet filter's rules of the built-in network: one set for each of its subnets, by which tasks reach other
//! networks. A set is made with the first task, stays, and is made anew once somebody has removed it: at a start, and
//! while a task is on the network. Where the driver can't make it, as where firewalld is, the CNI plugins make rules for
//! each task.
//!
//! A set has a chain of its own in two tables, by a name of its own: neither another plugin's network nor an earlier
//! subnet, on which tasks may still be, is touched by it. Its other rules are those that the `firewall` plugin makes for
//! all networks, in its words, so that it finds them.
//!
//! Source of the facts: CNI plugins 1.1.1 and 1.9.1, `plugins/meta/firewall/iptables.go`, `plugins/meta/portmap`,
//! `pkg/ip/ipmasq_linux.go`; iptables(8).

use std::env;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::error::{Error, PluginFailure, RunError, TRY_AGAIN};
use super::exec::{self, Run};
use crate::sys::host_files;

/// Time for which rules that were found are taken to be there still.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Pause before the second and last try after a failure: others change the rules at the same time, such as a firewall
/// that restarts.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Exit codes of `iptables` for a rule that isn't there: its chain has none such, or one of its chains isn't there.
const ABSENT: [i32; 2] = [1, 2];
/// Words of `iptables` for a chain that is there: it has seen it, or the kernel has.
const EXISTS: [&str; 2] = ["already exists", "File exists"];
const FILTER: &str = "filter";
const NAT: &str = "nat";
/// Chain of the `firewall` plugin with what all networks accept.
const CNI_FORWARD: &str = "CNI-FORWARD";
/// Chain of the operator's, which comes before the rules of all networks.
const CNI_ADMIN: &str = "CNI-ADMIN";
/// Beginning of the names of own chains. The kernel takes names of up to 28 bytes.
const CHAIN_PREFIX: &str = "CNI-NET-";
/// Version of a set's own rules. Chains are never filled anew, so that those of another version have other names.
const RULES_VERSION: u32 = 1;
const HASH_LENGTH: usize = 16;
/// Paths of which one exists while firewalld runs: the cgroup of its unit, by the hierarchies in use, or its pid file.
const FIREWALLD: [&str; 4] = [
    "/sys/fs/cgroup/system.slice/firewalld.service",
    "/sys/fs/cgroup/systemd/system.slice/firewalld.service",
    "/sys/fs/cgroup/unified/system.slice/firewalld.service",
    "/run/firewalld.pid",
];

/// The rules of a subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RuleSet {
    /// Program for rules of the subnet's IP version.
    program: PathBuf,
    /// Name of the network.
    network: String,
    bridge: String,
    subnet: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    table: &'static str,
    chain: String,
    words: Vec<String>,
    /// Whether the rule is put before the others of its chain.
    is_first: bool,
}

/// The host's packet filter, in which one caller at a time makes rules.
#[derive(Debug)]
pub(super) struct PacketFilter {
    /// Directories in which `iptables` is looked for.
    directories: Vec<PathBuf>,
    /// Paths of which one exists while firewalld runs.
    firewalld: Vec<PathBuf>,
    interval: Duration,
    /// Time at which all rules were last found, or made.
    checked: Mutex<Option<Instant>>,
}

impl PacketFilter {
    pub(super) fn new(directories: Vec<PathBuf>, firewalld: Vec<PathBuf>, interval: Duration) -> Self {
        Self { directories, firewalld, interval, checked: Mutex::default() }
    }

    /// Returns the packet filter with the `iptables` that CNI plugins find.
    pub(super) fn of_host() -> Self {
        let path = exec::search_path();
        let directories = env::split_paths(&path).filter(|directory| directory.is_absolute()).collect();
        Self::new(directories, FIREWALLD.map(PathBuf::from).into(), CHECK_INTERVAL)
    }

    /// Returns the rule sets of a network's subnets, or none where the plugins have to make the rules: where firewalld is,
    /// which keeps the zones of addresses itself, and where there is no `iptables` for one of the subnets. What the
    /// plugins then need for it, they say.
    ///
    /// # Errors
    /// If the directories of programs give no answer.
    pub(super) async fn sets(
        &self,
        network: &str,
        bridge: &str,
        subnets: &[String],
    ) -> Result<Vec<RuleSet>, Error> {
        let (network, bridge, subnets) = (network.to_owned(), bridge.to_owned(), subnets.to_vec());
        // In a rule, another name would be an option, or a pattern.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if bridge.starts_with('-') || !bridge.chars().all(is_plain) {
            return Ok(Vec::new());
        }
        let place = self.directories.first().cloned().unwrap_or_default();
        let (directories, firewalld) = (self.directories.clone(), self.firewalld.clone());
        let look = move || {
            if firewalld.iter().any(|path| path.exists()) {
                return Vec::new();
            }
            let set = |subnet: String| {
                let program = if subnet.contains(':') { "ip6tables" } else { "iptables" };
                let mut places = directories.iter().map(|directory| directory.join(program));
                let program = places.find(|path| path.is_file())?;
                Some(RuleSet { program, network: network.clone(), bridge: bridge.clone(), subnet })
            };
            subnets.into_iter().map(set).collect::<Option<Vec<_>>>().unwrap_or_default()
        };
        let found = host_files::look(&place, host_files::LIMIT, look).await;
        found.map_err(Error::io("look for iptables, by PATH, from", &place))
    }

    /// Makes the rules that are missing, unless all were there a moment ago. Waits for another caller's look at them.
    ///
    /// # Errors
    /// Quotes the words of `iptables`. The call can be repeated.
    pub(super) async fn ensure(&self, sets: &[RuleSet], deadline: Duration) -> Result<(), Error> {
        let Some(first) = sets.first() else { return Ok(()) };
        // Number of sets that were looked at so far; 0 while another caller makes rules.
        let looked_at = AtomicUsize::new(0);
        let ensured = async {
            let mut checked = self.checked.lock().await;
            if checked.is_some_and(|at| at.elapsed() < self.interval) {
                return Ok(());
            }
            for set in sets {
                looked_at.fetch_add(1, Ordering::Relaxed);
                let failed = match set.ensure(deadline).await {
                    Ok(()) => continue,
                    Err(error) if error.timed_out => return Err(set.failed(error)),
                    Err(error) => error,
                };
                tracing::debug!(
                    error = failed.reason,
                    "can't make the rules of the bridge's subnet; trying again"
                );
                tokio::time::sleep(RETRY_PAUSE).await;
                set.ensure(deadline).await.map_err(|error| set.failed(error))?;
            }
            *checked = Some(Instant::now());
            Ok::<_, Error>(())
        };
        tokio::time::timeout(deadline, ensured).await.unwrap_or_else(|_| {
            let number = looked_at.load(Ordering::Relaxed);
            let what = if number == 0 { "other starts have made rules for" } else { "it took" };
            let reason = format!("{what} more than {} s", deadline.as_secs_f64());
            let set = sets.get(number.saturating_sub(1)).unwrap_or(first);
            Err(set.failed(RunError { timed_out: true, ..RunError::new(reason) }))
        })
    }
}

impl RuleSet {
    /// Returns the name of the set's own chains.
    fn chain(&self) -> String {
        let Self { program: _, network, bridge, subnet } = self;
        let hash = Sha256::digest(format!("{RULES_VERSION}\n{network}\n{bridge}\n{subnet}"));
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{CHAIN_PREFIX}{}", &hash[..HASH_LENGTH])
    }

    /// Returns the rules in the set's own chains.
    fn own_rules(&self) -> Vec<Rule> {
        let (chain, subnet, bridge) = (self.chain(), &self.subnet[..], &self.bridge[..]);
        let multicast = if subnet.contains(':') { "ff00::/8" } else { "224.0.0.0/4" };
        let masquerade = ["-s", subnet, "!", "-d", multicast, "!", "-o", bridge, "-j", "MASQUERADE"];
        let answers = ["-d", subnet, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"];
        vec![
            // What comes back to the bridge by a port of the host is masqueraded by a rule of `portmap`.
            Rule::new(NAT, &chain, &masquerade),
            Rule::new(FILTER, &chain, &answers),
            Rule::new(FILTER, &chain, &["-i", bridge, "-s", subnet, "-j", "ACCEPT"]),
        ]
    }

    /// Returns the rules that lead to the set's own chains, in the order in which they are made.
    fn jumps(&self) -> Vec<Rule> {
        let chain = self.chain();
        let comment = format!("network {} on {}", self.network, self.bridge);
        let jump = |table, from, comment: &str, to: &str| {
            Rule::new(table, from, &["-m", "comment", "--comment", comment, "-j", to])
        };
        let first = |rule: Rule| Rule { is_first: true, ..rule };
        vec![
            first(jump(FILTER, CNI_FORWARD, "CNI firewall plugin admin overrides", CNI_ADMIN)),
            jump(FILTER, CNI_FORWARD, &comment, &chain),
            first(jump(FILTER, "FORWARD", "CNI firewall plugin rules", CNI_FORWARD)),
            jump(NAT, "POSTROUTING", &comment, &chain),
        ]
    }

    /// Makes the rules that are missing. Whatever removes rules removes those that lead to the set's own ones as well,
    /// so that only the former are looked for.
    async fn ensure(&self, deadline: Duration) -> Result<(), RunError> {
        let jumps = self.jumps();
        let mut is_complete = true;
        for jump in &jumps {
            is_complete = is_complete && self.has(jump, deadline).await?;
        }
        if is_complete {
            return Ok(());
        }
        let chain = self.chain();
        for (table, chain) in [(NAT, &*chain), (FILTER, &*chain), (FILTER, CNI_FORWARD), (FILTER, CNI_ADMIN)]
        {
            self.make_chain(table, chain, deadline).await?;
        }
        let own = self.own_rules();
        // Its own ones twice: until those that lead there are made, a flush of the table would take its own alone.
        for rule in own.iter().chain(&jumps).chain(&own) {
            if !self.has(rule, deadline).await? {
                let verb = if rule.is_first { "-I" } else { "-A" };
                self.run(&rule.arguments(verb, deadline), deadline).await?;
            }
        }
        tracing::info!(network = self.network, subnet = self.subnet, "made the rules of the bridge's subnet");
        Ok(())
    }

    /// Returns whether a rule is there.
    async fn has(&self, rule: &Rule, deadline: Duration) -> Result<bool, RunError> {
        match self.run(&rule.arguments("-C", deadline), deadline).await {
            Ok(()) => Ok(true),
            Err(error) if error.exit_code.is_some_and(|code| ABSENT.contains(&code)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn make_chain(&self, table: &str, chain: &str, deadline: Duration) -> Result<(), RunError> {
        match self.run(&command(table, "-N", chain, deadline), deadline).await {
            Err(error) if !EXISTS.iter().any(|words| error.reason.contains(words)) => Err(error),
            _ => Ok(()),
        }
    }

    async fn run(&self, arguments: &[String], deadline: Duration) -> Result<(), RunError> {
        let (environment, config) = (Vec::new(), Vec::new());
        let run = Run { program: &self.program, arguments, environment, config, deadline };
        run.output().await.map(drop)
    }

    /// Returns the error for rules that can't be made for now: whoever else changes them may be done later.
    fn failed(&self, error: RunError) -> Error {
        Error::Plugin(Box::new(PluginFailure {
            program: self.program.clone(),
            command: "make the rules",
            network: self.network.clone(),
            error: RunError { code: Some(TRY_AGAIN), ..error },
            hint: String::new(),
        }))
    }
}

impl Rule {
    fn new(table: &'static str, chain: &str, words: &[&str]) -> Self {
        let words = words.iter().map(|&word| word.to_owned()).collect();
        Self { table, chain: chain.to_owned(), words, is_first: false }
    }

    fn arguments(&self, verb: &str, deadline: Duration) -> Vec<String> {
        let mut arguments = command(self.table, verb, &self.chain, deadline);
        arguments.extend(self.words.iter().cloned());
        arguments
    }
}

/// Returns the arguments of a command about a chain. The lock of the tables is waited for until the command's deadline,
/// also by one that this process has left behind.
fn command(table: &str, verb: &str, chain: &str, deadline: Duration) -> Vec<String> {
    let seconds = deadline.as_secs().max(1).to_string();
    ["--wait", &seconds, "-t", table, verb, chain].map(str::to_owned).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(network: &str, bridge: &str, subnet: &str) -> RuleSet {
        let own = str::to_owned;
        RuleSet {
            program: "/sbin/iptables".into(),
            network: own(network),
            bridge: own(bridge),
            subnet: own(subnet),
        }
    }

    fn shown(rules: &[Rule]) -> Vec<String> {
        let shown = |rule: &Rule| {
            let verb = if rule.is_first { "-I" } else { "-A" };
            rule.arguments(verb, Duration::from_millis(30_500)).join(" ")
        };
        rules.iter().map(shown).collect()
    }

    #[test]
    fn each_subnet_of_each_network_has_chains_of_its_own() {
        let sets = [
            set("nomad-tasks", "nomad-tasks", "172.26.80.0/20"),
            set("nomad-docker", "nomad-tasks", "172.26.80.0/20"),
            set("nomad-tasks", "nomad-docker", "172.26.80.0/20"),
            set("nomad-tasks", "nomad-tasks", "172.26.96.0/20"),
        ];
        let chains: std::collections::BTreeSet<_> = sets.iter().map(RuleSet::chain).collect();
        assert_eq!(chains.len(), sets.len());
        assert!(
            chains.iter().all(|chain| chain.starts_with(CHAIN_PREFIX) && chain.len() <= 28),
            "{chains:?}"
        );
        assert_eq!(sets[0].chain(), set("nomad-tasks", "nomad-tasks", "172.26.80.0/20").chain());
    }

    #[test]
    fn rules_are_of_a_subnet_and_its_bridge_alone() {
        let set = set("nomad-tasks", "tasks0", "172.26.80.0/20");
        let chain = set.chain();
        assert_eq!(
            shown(&set.own_rules()),
            [
                format!(
                    "--wait 30 -t nat -A {chain} -s 172.26.80.0/20 ! -d 224.0.0.0/4 ! -o tasks0 -j MASQUERADE"
                ),
                format!(
                    "--wait 30 -t filter -A {chain} -d 172.26.80.0/20 -m conntrack --ctstate RELATED,ESTABLISHED \
                     -j ACCEPT"
                ),
                format!("--wait 30 -t filter -A {chain} -i tasks0 -s 172.26.80.0/20 -j ACCEPT"),
            ]
        );
        let comment = "-m comment --comment network nomad-tasks on tasks0";
        assert_eq!(
            shown(&set.jumps()),
            [
                "--wait 30 -t filter -I CNI-FORWARD -m comment --comment CNI firewall plugin admin overrides \
                 -j CNI-ADMIN"
                    .to_owned(),
                format!("--wait 30 -t filter -A CNI-FORWARD {comment} -j {chain}"),
                "--wait 30 -t filter -I FORWARD -m comment --comment CNI firewall plugin rules -j CNI-FORWARD"
                    .to_owned(),
                format!("--wait 30 -t nat -A POSTROUTING {comment} -j {chain}"),
            ]
        );
        let ipv6 = RuleSet { subnet: "fd00::/64".to_owned(), ..set };
        assert!(
            shown(&ipv6.own_rules())[0].ends_with("-s fd00::/64 ! -d ff00::/8 ! -o tasks0 -j MASQUERADE")
        );
    }

    #[tokio::test]
    async fn rule_sets_need_iptables_for_each_subnet_and_no_firewalld() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let filter =
            PacketFilter::new(vec![path("none"), path("sbin")], vec![path("firewalld")], Duration::ZERO);
        let sets = async |bridge: &str, subnets: &[&str]| {
            let subnets: Vec<_> = subnets.iter().map(|&subnet| subnet.to_owned()).collect();
            filter.sets("own", bridge, &subnets).await.unwrap()
        };
        let (one, two) = (&["10.9.0.0/24"][..], &["10.9.0.0/24", "fd00::/64"][..]);
        std::fs::create_dir(path("sbin")).unwrap();
        assert_eq!(sets("own0", one).await, []);
        std::fs::write(path("sbin/iptables"), "").unwrap();
        let program = path("sbin/iptables");
        assert_eq!(sets("own0", one).await, [RuleSet { program, ..set("own", "own0", "10.9.0.0/24") }]);
        assert_eq!(sets("own0", two).await, [], "there is no ip6tables");
        std::fs::write(path("sbin/ip6tables"), "").unwrap();
        let programs: Vec<_> = sets("own0", two).await.into_iter().map(|set| set.program).collect();
        assert_eq!(programs, [path("sbin/iptables"), path("sbin/ip6tables")]);
        for bridge in ["-x", "own+", "a b"] {
            assert_eq!(sets(bridge, one).await, [], "{bridge}");
        }
        std::fs::write(path("firewalld"), "").unwrap();
        assert_eq!(sets("own0", one).await, []);
    }
}
