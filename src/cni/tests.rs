//! The runtime with plugins that write down what they are told, and do what a test wants of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::*;

/// A directory with plugins, one with networks, a path for a record, and what the plugins have written down.
struct Fixture {
    directory: TempDir,
    cni: Cni,
}

const DEADLINE: Duration = Duration::from_secs(60);
/// Writes down its command, environment and stdin, then goes on as the test says.
const PRELUDE: &str = r#"#!/bin/sh
me=${0##*/}
here=${0%/*}/..
echo "$me $CNI_COMMAND" >> "$here/order"
env > "$here/$me.$CNI_COMMAND.env"
cat > "$here/$me.$CNI_COMMAND.in"
"#;
const ANSWER: &str = r#"[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.2/24"}]}'
exit 0
"#;

/// The commands about chains and rules that the driver makes use of.
const IPTABLES: &str = r#"table=$4 verb=$5 chain=$6
shift 6
echo "$verb $table $chain $*" >> "$here/commands"
case $verb in
-N)
    grep -qFx "$table :$chain" "$here/rules" 2>/dev/null && { echo "iptables: Chain already exists." >&2; exit 1; }
    echo "$table :$chain" >> "$here/rules" ;;
-C) grep -qFx -e "$table $chain $*" "$here/rules" 2>/dev/null ;;
-A | -I) echo "$table $chain $*" >> "$here/rules" ;;
esac
"#;

impl Fixture {
    fn new(versions: &str, plugins: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["bin", "net.d"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let default = DefaultNetwork {
            name: "own".to_owned(),
            bridge: "own0".to_owned(),
            subnets: vec!["10.9.0.0/24".to_owned()],
            addresses: Vec::new(),
            hairpin: true,
            leases: directory.path().join("leases"),
        };
        let mut cni =
            Cni::new(vec![directory.path().join("bin")], directory.path().join("net.d"), default, DEADLINE);
        // Not the machine's.
        let [sbin, firewalld] = ["sbin", "firewalld"].map(|name| directory.path().join(name));
        cni.packet_filter = PacketFilter::new(vec![sbin], vec![firewalld], Duration::ZERO);
        let fixture = Self { directory, cni };
        for (name, script) in plugins {
            fixture.plugin(name, script);
        }
        let types: Vec<Value> = plugins
            .iter()
            .map(|(name, _)| json!({"type": name, "capabilities": {"portMappings": true}}))
            .collect();
        let mut list = json!({"name": "net", "plugins": types});
        let key = if versions.contains(',') { "cniVersions" } else { "cniVersion" };
        let all: Vec<&str> = versions.split(',').collect();
        list[key] = if all.len() > 1 { json!(all) } else { json!(all[0]) };
        fs::write(fixture.path("net.d/net.conflist"), list.to_string()).unwrap();
        fixture
    }

    /// The plugins of the built-in network.
    fn built_in(&self, speaks: &str) {
        let version = format!(
            "[ $CNI_COMMAND = VERSION ] && {{ echo '{{\"supportedVersions\": [{speaks}]}}'; exit 0; }}"
        );
        for name in ["bridge", "host-local", "firewall", "portmap", "bandwidth"] {
            self.plugin(name, &format!("{version}\n{ANSWER}"));
        }
    }

    /// An `iptables` that keeps its chains and rules in a file, after it has run `script`.
    fn iptables(&self, script: &str) {
        let path = self.path("sbin/iptables");
        fs::create_dir_all(self.path("sbin")).unwrap();
        fs::write(&path, format!("#!/bin/sh\nhere=${{0%/*}}/..\n{script}\n{IPTABLES}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn rules(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("rules")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn plugin(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("{PRELUDE}{script}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Returns a container id of the test's own, by which plugins that are left behind are told.
    fn id(&self) -> String {
        format!("c{}", self.directory.path().file_name().unwrap().display())
    }

    fn record(&self) -> PathBuf {
        self.path("record.json")
    }

    fn order(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("order")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn message(&self, plugin: &str, command: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(&format!("{plugin}.{command}.in"))).unwrap()).unwrap()
    }

    async fn network(&self) -> Network {
        self.cni.network(Some("net")).await.unwrap()
    }

    async fn add(&self) -> Result<AddResult, Error> {
        self.cni.add(&self.network().await, &self.attachment(), &self.record()).await
    }

    fn attachment(&self) -> Attachment {
        Attachment {
            container_id: self.id(),
            netns: self.path("netns"),
            if_name: "eth0".to_owned(),
            args: vec![("IgnoreUnknown".to_owned(), "1".to_owned()), ("A".to_owned(), "b".to_owned())],
            capabilities: Capabilities::default(),
        }
    }
}

#[tokio::test]
async fn plugins_get_the_environment_of_the_specification_and_path_only() {
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
    let added = fixture.add().await.unwrap();
    assert_eq!(added.addresses, ["10.9.0.2".parse::<std::net::IpAddr>().unwrap()]);
    let environment = fs::read_to_string(fixture.path("one.ADD.env")).unwrap();
    let mut lines: Vec<&str> = environment
        .lines()
        // Variables of the shell's own.
        .filter(|line| !["PWD=", "_=", "SHLVL=", "OLDPWD=", "PATH="].iter().any(|own| line.starts_with(own)))
        .collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "CNI_ARGS=IgnoreUnknown=1;A=b",
            "CNI_COMMAND=ADD",
            &format!("CNI_CONTAINERID={}", fixture.id()),
            "CNI_IFNAME=eth0",
            &format!("CNI_NETNS={}", fixture.path("netns").display()),
            &format!("CNI_PATH={}", fixture.path("bin").display()),
        ]
    );
    assert!(environment.contains("PATH=/"));
}

#[tokio::test]
async fn prev_result_is_passed_to_the_next_plugin_and_to_delete() {
    let second = ANSWER.replace("10.9.0.2", "10.9.0.3");
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER), ("two", &second)]);
    fixture.add().await.unwrap();
    let address = |message: Value| message["prevResult"]["ips"][0]["address"].clone();
    assert_eq!(address(fixture.message("one", "ADD")), Value::Null);
    assert_eq!(address(fixture.message("two", "ADD")), "10.9.0.2/24");
    fixture.cni.check(&fixture.record()).await.unwrap();
    fixture.cni.delete(&fixture.record()).await.unwrap();
    for message in ["CHECK", "DEL"].map(|command| fixture.message("one", command)) {
        assert_eq!((&message["name"], &message["cniVersion"]), (&json!("net"), &json!("1.0.0")));
        assert_eq!(address(message), "10.9.0.3/24");
    }
    assert_eq!(fixture.order(), ["one ADD", "two ADD", "one CHECK", "two CHECK", "two DEL", "one DEL"]);
    assert!(!fixture.record().exists());
    fixture.cni.delete(&fixture.record()).await.unwrap();
    assert_eq!(fixture.order().len(), 6);
}

#[tokio::test]
async fn delete_passes_no_netns_once_it_is_gone() {
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
    fixture.add().await.unwrap();
    fixture.cni.delete(&fixture.record()).await.unwrap();
    let environment = fs::read_to_string(fixture.path("one.DEL.env")).unwrap();
    assert!(environment.lines().any(|line| line == "CNI_NETNS="), "{environment}");
}

#[tokio::test]
async fn a_failed_add_is_undone_by_every_plugin() {
    let complaint = r#"echo '{"cniVersion": "1.0.0", "code": 7, "msg": "bad", "details": "no room"}'; echo aside >&2; exit 1"#;
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER), ("two", complaint), ("three", ANSWER)]);
    let error = fixture.add().await.unwrap_err();
    assert!(!error.is_transient());
    let text = error.to_string();
    for word in ["bin/two", "ADD", "network net", "bad: no room", "code 7", "aside"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let error = fixture.cni.delete(&fixture.record()).await.unwrap_err().to_string();
    assert!(error.contains("bin/two failed to DEL"), "{error}");
    assert_eq!(fixture.order()[2..], ["three DEL", "two DEL", "one DEL"]);
    assert_eq!(fixture.message("two", "DEL")["prevResult"]["ips"][0]["address"], "10.9.0.2/24");
    assert!(fixture.record().exists());
    fixture.plugin("two", ANSWER);
    fixture.cni.delete(&fixture.record()).await.unwrap();
    assert!(!fixture.record().exists());
}

#[tokio::test]
async fn errors_of_plugins_that_were_not_reached_do_not_fail_a_delete() {
    let other_version = "echo '{\"code\": 1, \"msg\": \"incompatible CNI versions\"}'; exit 1";
    let fixture = Fixture::new("0.3.1", &[("one", ANSWER), ("two", other_version), ("three", "exit 1")]);
    assert!(fixture.add().await.is_err());
    fixture.cni.delete(&fixture.record()).await.unwrap();
    assert_eq!(fixture.order()[2..], ["three DEL", "two DEL", "one DEL"]);
    // A plugin that was updated since its ADD can't undo what it did.
    let fixture = Fixture::new("0.3.1", &[("one", ANSWER)]);
    fixture.add().await.unwrap();
    fixture.plugin("one", other_version);
    assert!(fixture.cni.delete(&fixture.record()).await.is_err());
}

#[tokio::test]
async fn try_again_codes_are_transient() {
    for (code, transient) in [(11, true), (50, true), (51, true), (3, false), (100, false)] {
        let script = format!("echo '{{\"code\": {code}, \"msg\": \"later\"}}'; exit 1");
        let fixture = Fixture::new("1.0.0", &[("one", &script)]);
        assert_eq!(fixture.add().await.unwrap_err().is_transient(), transient, "{code}");
    }
}

#[tokio::test]
async fn delete_succeeds_for_an_unknown_container() {
    let script =
        format!("[ $CNI_COMMAND = DEL ] && {{ echo '{{\"code\": 3, \"msg\": \"x\"}}'; exit 1; }}\n{ANSWER}");
    let fixture = Fixture::new("1.0.0", &[("one", &script)]);
    fixture.add().await.unwrap();
    fixture.cni.delete(&fixture.record()).await.unwrap();
}

#[tokio::test]
async fn a_hanging_plugin_is_killed_with_its_children_at_the_deadline() {
    let script = "[ $CNI_COMMAND = DEL ] && exit 0\nsleep 1000 & echo $! > $here/child; sleep 1000";
    let mut fixture = Fixture::new("1.0.0", &[("one", script)]);
    fixture.cni.deadline = Duration::from_millis(1500);
    let error = fixture.add().await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("1.5 s"), "{error}");
    let child = fs::read_to_string(fixture.path("child")).unwrap();
    fixture.cni.delete(&fixture.record()).await.unwrap();
    let is_running = |stat: String| !stat.contains(") Z ");
    assert!(!fs::read_to_string(format!("/proc/{}/stat", child.trim())).is_ok_and(is_running));
}

#[tokio::test]
async fn stale_plugins_are_killed_before_delete() {
    let script = "[ $CNI_COMMAND = DEL ] && exit 0\necho $$ > $here/pid; exec sleep 1000";
    let fixture = Fixture::new("1.0.0", &[("one", script)]);
    let (network, attachment, record) = (fixture.network().await, fixture.attachment(), fixture.record());
    // Run without the guard of its process group, as after a crash.
    let stored = Record {
        phase: Phase::Adding,
        conf: attachment.runtime_conf(&network).unwrap(),
        directories: vec![fixture.path("bin")],
        network,
        completed: 0,
        result: None,
    };
    stored.write(&record).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "stands for a plugin that a dead driver has started")]
    let mut orphan = std::process::Command::new(fixture.path("bin/one"))
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", &attachment.container_id)
        .stdin(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid = i32::try_from(orphan.id()).unwrap();
    let reaped = std::thread::spawn(move || orphan.wait());
    fixture.cni.delete(&record).await.unwrap();
    // Or the wait would last as long as the plugin.
    assert!(!std::path::Path::new(&format!("/proc/{pid}/exe")).exists(), "it runs");
    assert!(!reaped.join().unwrap().unwrap().success());
    assert_eq!(fixture.order().last().unwrap(), "one DEL");
}

#[tokio::test]
async fn invalid_plugin_output_is_quoted_in_the_error() {
    for (script, words) in [
        ("echo rubbish", &["printed no result", "rubbish"][..]),
        ("exit 0", &["printed no result"]),
        ("echo '[1]'", &["printed no result", "[1]"]),
        ("echo out; echo err >&2; exit 3", &["exit status: 3", "stdout: out", "stderr: err"]),
        ("kill -9 $$", &["signal: 9"]),
        ("echo '{\"ips\": [{\"address\": \"x\"}]}'", &["\"x\" is not an IP address"]),
        ("echo '{\"ips\": [{\"address\": \"10.0.0.1\", \"interface\": 4}]}'", &["interface 4"]),
        ("echo '{\"cniVersion\": \"9.0.0\"}'", &["9.0.0"]),
        ("yes", &["more than"]),
    ] {
        let fixture = Fixture::new("1.0.0", &[("one", script)]);
        let error = fixture.add().await.unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word) && error.len() < 5000, "{script}: {error}");
        }
    }
}

#[tokio::test]
async fn a_child_that_keeps_the_pipes_open_does_not_delay_the_result() {
    let script = format!("sleep 3 & {ANSWER}");
    let fixture = Fixture::new("1.0.0", &[("one", &script)]);
    assert_eq!(fixture.add().await.unwrap().addresses.len(), 1);
}

#[tokio::test]
async fn the_newest_common_version_is_used() {
    let speaks = |versions: &str| {
        format!(
            "[ $CNI_COMMAND = VERSION ] && {{ echo '{{\"supportedVersions\": [{versions}]}}'; exit 0; }}\n{ANSWER}"
        )
    };
    let (new, old) = (speaks(r#""0.4.0", "1.0.0", "1.1.0""#), speaks(r#""0.3.1", "0.4.0", "1.0.0""#));
    let fixture = Fixture::new("0.4.0,1.0.0,1.1.0", &[("one", &new), ("two", &old)]);
    fixture.add().await.unwrap();
    assert_eq!(fixture.message("one", "ADD")["cniVersion"], "1.0.0");
    let before = fixture.order().len();
    fixture.network().await;
    assert_eq!(fixture.order().len(), before, "what a plugin speaks is asked once");
    let fixture = Fixture::new("1.0.0,1.1.0", &[("one", &new), ("two", &speaks("\"0.4.0\""))]);
    let error = fixture.cni.network(Some("net")).await.unwrap_err().to_string();
    assert!(error.contains("1.0.0, 1.1.0") && error.contains("two supports 0.4.0"), "{error}");
}

#[tokio::test]
async fn older_networks_get_results_in_their_version() {
    let fixture = Fixture::new("0.3.1", &[("one", ANSWER), ("two", ANSWER)]);
    fixture.add().await.unwrap();
    let previous = fixture.message("two", "ADD")["prevResult"].clone();
    assert_eq!((&previous["cniVersion"], &previous["ips"][0]["version"]), (&json!("0.3.1"), &json!("4")));
    fixture.cni.check(&fixture.record()).await.unwrap();
    fixture.cni.delete(&fixture.record()).await.unwrap();
    assert_eq!(fixture.message("one", "DEL").get("prevResult"), None);
    assert!(!fixture.order().iter().any(|line| line.contains("CHECK")));
}

#[tokio::test]
async fn capabilities_that_no_plugin_takes_are_refused() {
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
    let network = fixture.network().await;
    let mut attachment = fixture.attachment();
    let (host_port, container_port, protocol) = (80, 8080, Protocol::Tcp);
    attachment.capabilities.port_mappings =
        vec![PortMapping { host_port, container_port, protocol, host_ip: None }];
    attachment.capabilities.dns = Some(Dns::default());
    fixture.cni.add(&network, &attachment, &fixture.record()).await.unwrap();
    assert_eq!(
        fixture.message("one", "ADD")["runtimeConfig"],
        json!({"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]})
    );
    attachment.capabilities.aliases = vec!["db".to_owned()];
    let error = fixture.cni.add(&network, &attachment, &fixture.record()).await.unwrap_err();
    assert!(error.is_invalid());
    for word in ["aliases", "network net", "net.conflist"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    for (id, interface) in
        [("../c", "eth0"), ("", "eth0"), ("c", "a/b"), ("c", ""), ("c", "sixteen-or-more.")]
    {
        let attachment =
            Attachment { container_id: id.to_owned(), if_name: interface.to_owned(), ..fixture.attachment() };
        assert!(fixture.cni.add(&network, &attachment, &fixture.record()).await.unwrap_err().is_invalid());
    }
}

#[tokio::test]
async fn arguments_that_cni_args_can_not_express_are_left_out() {
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
    let argument = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let args = [("A", "b;C=d"), ("B", "a=b"), ("C", "\0"), ("", "x"), ("D", "d e"), ("F", "")];
    let attachment = Attachment { args: args.map(argument).to_vec(), ..fixture.attachment() };
    fixture.cni.add(&fixture.network().await, &attachment, &fixture.record()).await.unwrap();
    let environment = fs::read_to_string(fixture.path("one.ADD.env")).unwrap();
    assert!(environment.lines().any(|line| line == "CNI_ARGS=D=d e;F="), "{environment}");
}

/// Lets a plugin's script wait until a file is there.
fn script_that_waits_for(fixture: &Fixture, command: &str, file: &str) -> String {
    let file = fixture.path(file);
    format!(
        "[ $CNI_COMMAND = VERSION ] && {{ echo '{{\"supportedVersions\": [\"1.0.0\"]}}'; exit 0; }}\n\
         [ $CNI_COMMAND = {command} ] && while ! [ -e {} ]; do sleep 0.05; done\n{ANSWER}",
        file.display()
    )
}

#[tokio::test]
async fn gc_neither_queues_for_its_lock_nor_blocks_other_networks() {
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
    fixture.built_in("\"1.0.0\"");
    fs::create_dir_all(fixture.path("leases/own")).unwrap();
    fs::write(fixture.path("leases/own/10.9.0.3"), "gone\r\neth0").unwrap();
    let own = fixture.cni.network(None).await.unwrap();
    // One task's plugin hangs. A collection that comes meanwhile holds up no other task.
    fixture.plugin("firewall", &script_that_waits_for(&fixture, "ADD", "goes"));
    let (first, second) = (fixture.path("first.json"), fixture.path("second.json"));
    let attachment = fixture.attachment();
    let hangs = fixture.cni.add(&own, &attachment, &first);
    let others = async {
        while !fixture.order().contains(&"firewall ADD".to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let collects = fixture.cni.gc(|| Some(Vec::new()));
        let meanwhile = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let other = Attachment { container_id: format!("{}-2", fixture.id()), ..fixture.attachment() };
            let added = fixture.cni.add(&own, &other, &second);
            let ended = async {
                while fixture.order().iter().filter(|line| *line == "firewall ADD").count() < 2 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                fs::write(fixture.path("goes"), "").unwrap();
            };
            let (added, ()) = tokio::join!(added, ended);
            added.unwrap();
        };
        tokio::join!(collects, meanwhile).0.unwrap();
    };
    let (added, ()) = tokio::join!(hangs, others);
    added.unwrap();
    assert!(
        fixture.order().contains(&"bridge DEL".to_owned()),
        "it was not collected: {:?}",
        fixture.order()
    );
    // A collection whose plugin hangs holds up no task of another network, and its own not for ever.
    let Fixture { mut cni, directory } = fixture;
    cni.deadline = Duration::from_secs(2);
    let fixture = Fixture { cni, directory };
    fixture.plugin("firewall", &script_that_waits_for(&fixture, "DEL", "never"));
    fs::remove_file(fixture.path("order")).unwrap();
    let record = fixture.path("third.json");
    let collects = fixture.cni.gc(|| Some(Vec::new()));
    let meanwhile = async {
        while !fixture.order().contains(&"firewall DEL".to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let other = Attachment { container_id: format!("{}-3", fixture.id()), ..fixture.attachment() };
        fixture.cni.add(&fixture.network().await, &other, &record).await.unwrap();
        assert!(!fixture.order().contains(&"bridge DEL".to_owned()), "{:?}", fixture.order());
        fixture.cni.add(&own, &fixture.attachment(), &fixture.path("fourth.json")).await.unwrap();
    };
    let limited = tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(collects, meanwhile) });
    assert!(limited.await.unwrap().0.is_err(), "the failed collection is reported");
}

#[tokio::test]
async fn concurrent_checks_are_limited() {
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
    fixture.add().await.unwrap();
    let script = "[ $CNI_COMMAND = CHECK ] || exit 0\n: > $here/now.$$; ls $here/now.* | wc -l >> $here/at_once\n\
                  sleep 0.1; rm $here/now.$$";
    fixture.plugin("one", script);
    let record = fixture.record();
    let checks = (0..20).map(|_| fixture.cni.check(&record));
    futures::future::join_all(checks).await.into_iter().for_each(|checked| checked.unwrap());
    let at_once = fs::read_to_string(fixture.path("at_once")).unwrap();
    let most = at_once.lines().map(|line| line.trim().parse::<usize>().unwrap()).max().unwrap();
    assert!(most <= MAX_CONCURRENT_CHECKS && at_once.lines().count() == 20, "{at_once}");
}

#[tokio::test]
async fn a_missing_plugin_is_reported_before_any_plugin_runs() {
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER), ("two", ANSWER)]);
    let network = fixture.network().await;
    fs::remove_file(fixture.path("bin/two")).unwrap();
    for error in [
        fixture.cni.network(Some("net")).await.unwrap_err(),
        fixture.cni.add(&network, &fixture.attachment(), &fixture.record()).await.unwrap_err(),
    ] {
        let error = error.to_string();
        assert!(error.contains("\"two\"") && error.contains("containernetworking-plugins"), "{error}");
    }
    assert!(fixture.order().is_empty() && !fixture.record().exists());
    let error = fixture.cni.network(None).await.unwrap_err().to_string();
    assert!(error.contains("\"bridge\"") && error.contains("network own"), "{error}");
}

#[tokio::test]
async fn readiness_of_the_built_in_network_follows_the_status_command() {
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
    assert!(!fixture.cni.is_ready().await, "there are no plugins");
    let statuses = |fixture: &Fixture| fixture.order().iter().filter(|line| line.ends_with("STATUS")).count();
    for (speaks, count) in [("\"1.0.0\"", 0), ("\"1.0.0\", \"1.1.0\"", 4)] {
        let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
        fixture.built_in(speaks);
        assert!(fixture.cni.is_ready().await && fixture.cni.is_ready().await);
        assert_eq!(statuses(&fixture), count);
    }
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
    fixture.built_in("\"1.1.0\"");
    let full = "[ $CNI_COMMAND = VERSION ] && { echo '{\"supportedVersions\": [\"1.1.0\"]}'; exit 0; }
        echo '{\"code\": 50, \"msg\": \"full\"}'; exit 1";
    fixture.plugin("firewall", full);
    assert!(!fixture.cni.is_ready().await);
    assert_eq!(statuses(&fixture), 2);
    let environment = fs::read_to_string(fixture.path("bridge.STATUS.env")).unwrap();
    assert!(!environment.contains("CNI_CONTAINERID"), "{environment}");
}

#[tokio::test]
async fn gc_releases_addresses_that_no_task_has() {
    for (speaks, with_gc) in [("\"1.0.0\"", false), ("\"1.0.0\", \"1.1.0\"", true)] {
        let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
        fixture.built_in(speaks);
        // Before any address was given there is nothing to ask for.
        fixture.cni.gc(|| Some(Vec::new())).await.unwrap();
        assert!(fixture.order().is_empty());
        fs::create_dir_all(fixture.path("leases/own")).unwrap();
        for (address, id) in [("10.9.0.2", "runs"), ("10.9.0.3", "gone")] {
            fs::write(fixture.path("leases/own").join(address), format!("{id}\r\neth0")).unwrap();
        }
        fixture.cni.gc(|| None).await.unwrap();
        fs::remove_file(fixture.path("order")).unwrap();
        let valid = ValidAttachment { container_id: "runs".to_owned(), if_name: "eth0".to_owned() };
        fixture.cni.gc(|| Some(vec![valid])).await.unwrap();
        let mut wanted = vec!["bandwidth DEL", "portmap DEL", "firewall DEL", "bridge DEL"];
        if with_gc {
            wanted.extend(["bridge GC", "firewall GC", "portmap GC", "bandwidth GC"]);
            let message = fixture.message("bridge", "GC");
            assert_eq!(
                message["cni.dev/valid-attachments"],
                json!([{"containerID": "runs", "ifname": "eth0"}])
            );
        }
        assert_eq!(fixture.order(), wanted);
        let environment = fs::read_to_string(fixture.path("bridge.DEL.env")).unwrap();
        assert!(environment.contains("CNI_CONTAINERID=gone\n"), "{environment}");
    }
}

#[tokio::test]
async fn disable_check_skips_the_check() {
    let fixture = Fixture::new("1.1.0", &[("one", ANSWER)]);
    let list = Path::new("net.d/net.conflist");
    let text = fs::read_to_string(fixture.directory.path().join(list)).unwrap();
    let text = text.replacen('{', "{\"disableCheck\": true, ", 1);
    fs::write(fixture.directory.path().join(list), text).unwrap();
    fixture.add().await.unwrap();
    fixture.cni.check(&fixture.record()).await.unwrap();
    assert_eq!(fixture.order(), ["one ADD"]);
}

#[tokio::test]
async fn plugins_without_work_are_not_run() {
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
    fixture.built_in("\"1.0.0\"");
    let network = fixture.cni.network(None).await.unwrap();
    fs::remove_file(fixture.path("order")).unwrap();
    let mut attachment = fixture.attachment();
    fixture.cni.add(&network, &attachment, &fixture.record()).await.unwrap();
    fixture.cni.delete(&fixture.record()).await.unwrap();
    attachment.capabilities.bandwidth =
        Some(Bandwidth { ingress_rate: 8000, ingress_burst: 8000, ..Bandwidth::default() });
    fixture.cni.add(&network, &attachment, &fixture.record()).await.unwrap();
    assert_eq!(
        fixture.order(),
        [
            "bridge ADD",
            "firewall ADD",
            "firewall DEL",
            "bridge DEL",
            "bridge ADD",
            "firewall ADD",
            "bandwidth ADD",
        ]
    );
    let message = fixture.message("bridge", "ADD");
    assert_eq!((&message["bridge"], &message["cniVersion"]), (&json!("own0"), &json!("1.0.0")));
    assert_eq!(message["ipam"]["dataDir"], json!(fixture.path("leases")));
    assert_eq!(fixture.message("bandwidth", "ADD")["runtimeConfig"]["bandwidth"]["ingressRate"], 8000);
}

#[tokio::test]
async fn the_built_in_network_has_rules_of_its_own_where_it_can() {
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
    fixture.built_in("\"1.0.0\"");
    fixture.iptables("");
    let network = fixture.cni.network(None).await.unwrap();
    fs::remove_file(fixture.path("order")).unwrap();
    fixture.cni.add(&network, &fixture.attachment(), &fixture.record()).await.unwrap();
    assert_eq!(fixture.order(), ["bridge ADD"]);
    assert_eq!(fixture.message("bridge", "ADD")["ipMasq"], json!(false));
    let made = fixture.rules();
    assert!(made.iter().any(|rule| rule.starts_with("nat POSTROUTING ")), "{made:?}");
    assert!(made.iter().any(|rule| rule.starts_with("filter FORWARD ")), "{made:?}");
    // They are the subnet's, and not the container's.
    fixture.cni.delete(&fixture.record()).await.unwrap();
    assert_eq!(fixture.order(), ["bridge ADD", "bridge DEL"]);
    assert_eq!(fixture.rules(), made);
    // With firewalld, plugins make them; the record says which, whatever is there later.
    fs::write(fixture.path("firewalld"), "").unwrap();
    let network = fixture.cni.network(None).await.unwrap();
    fixture.cni.add(&network, &fixture.attachment(), &fixture.record()).await.unwrap();
    assert_eq!(fixture.message("bridge", "ADD")["ipMasq"], json!(true));
    fs::remove_file(fixture.path("firewalld")).unwrap();
    fs::remove_file(fixture.path("order")).unwrap();
    fixture.cni.delete(&fixture.record()).await.unwrap();
    assert_eq!(fixture.order(), ["firewall DEL", "bridge DEL"]);
}

#[tokio::test]
async fn rules_that_somebody_has_removed_are_made_anew() {
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
    fixture.iptables("");
    let sets = fixture.cni.default.rule_sets(&fixture.cni.packet_filter).await.unwrap();
    let ensure = async || fixture.cni.packet_filter.ensure(&sets, DEADLINE).await.unwrap();
    let in_order = || {
        let mut rules = fixture.rules();
        rules.sort();
        rules
    };
    ensure().await;
    let made = in_order();
    ensure().await;
    assert_eq!(in_order(), made, "they are not made twice");
    // As a flush leaves the chains, and as a rule of one table is removed.
    let chains: Vec<_> = made.iter().filter(|line| line.contains(" :")).cloned().collect();
    let without_nat: Vec<_> =
        made.iter().filter(|line| !line.starts_with("nat POSTROUTING")).cloned().collect();
    for left in [Vec::new(), chains, without_nat] {
        assert!(left.len() < made.len());
        fs::write(fixture.path("rules"), left.iter().map(|line| format!("{line}\n")).collect::<String>())
            .unwrap();
        ensure().await;
        assert_eq!(in_order(), made, "{left:?}");
    }
}

#[tokio::test]
async fn rules_are_mended_while_something_is_attached() {
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
    fixture.iptables("");
    fixture.cni.mend_rules().await.unwrap();
    assert_eq!(fixture.rules(), Vec::<String>::new(), "nothing is attached");
    let leases = fixture.path("leases/own");
    fs::create_dir_all(&leases).unwrap();
    fs::write(leases.join("10.9.0.2"), "c1\r\neth0").unwrap();
    fixture.cni.mend_rules().await.unwrap();
    let made = fixture.rules();
    assert!(made.iter().any(|rule| rule.starts_with("nat POSTROUTING ")), "{made:?}");
    fs::remove_file(fixture.path("rules")).unwrap();
    fixture.cni.mend_rules().await.unwrap();
    assert_eq!(fixture.rules(), made);
    // With firewalld, the rules are the plugins'.
    fs::write(fixture.path("firewalld"), "").unwrap();
    fs::remove_file(fixture.path("rules")).unwrap();
    fixture.cni.mend_rules().await.unwrap();
    assert_eq!(fixture.rules(), Vec::<String>::new());
}

#[tokio::test]
async fn rules_are_made_once_beside_others_that_change_them() {
    let once = |test: &str, script: &str| {
        format!("if [ ! -e $here/failed ] && {test}; then : > $here/failed; {script}; fi")
    };
    let passing = [
        // It can't be told whether a rule is there.
        once("[ $5-$6 = -C-POSTROUTING ] && [ -e $here/rules ]", "echo 'resource busy' >&2; exit 4"),
        once("[ $5 = -A ]", "echo 'No chain/target/match by that name' >&2; exit 1"),
        // Others make a chain at the same time.
        once(
            "[ $6 = CNI-ADMIN ]",
            "echo \"filter :CNI-ADMIN\" >> $here/rules; echo 'File exists' >&2; exit 4",
        ),
        // Others flush a table right before a rule leads to the set's own ones, of which it has some then.
        once("[ $5-$6 = -A-POSTROUTING ]", "sed -i '/^nat CNI-NET-/d' $here/rules"),
    ];
    let mut made = None;
    for script in [String::new()].iter().chain(&passing) {
        let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
        fixture.iptables(script);
        let sets = fixture.cni.default.rule_sets(&fixture.cni.packet_filter).await.unwrap();
        fixture.cni.packet_filter.ensure(&sets, DEADLINE).await.unwrap();
        assert_eq!(fixture.path("failed").exists(), !script.is_empty());
        let mut rules = fixture.rules();
        rules.sort();
        assert_eq!(&rules, made.get_or_insert_with(|| rules.clone()), "{script}");
    }
}

#[tokio::test]
async fn rules_are_looked_for_by_one_caller_at_a_time_and_not_by_each() {
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
    fixture.iptables("");
    let filter = PacketFilter::new(vec![fixture.path("sbin")], Vec::new(), Duration::from_secs(3600));
    let sets = fixture.cni.default.rule_sets(&filter).await.unwrap();
    let callers = (0..5).map(|_| filter.ensure(&sets, DEADLINE));
    futures::future::join_all(callers).await.into_iter().for_each(|ensured| ensured.unwrap());
    let commands = fs::read_to_string(fixture.path("commands")).unwrap();
    assert_eq!(commands.lines().filter(|line| line.starts_with("-N nat")).count(), 1, "{commands}");
    filter.ensure(&sets, DEADLINE).await.unwrap();
    assert_eq!(fs::read_to_string(fixture.path("commands")).unwrap(), commands);
}

#[tokio::test]
async fn rules_that_can_not_be_made_fail_an_add_that_is_undone() {
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
    fixture.built_in("\"1.0.0\"");
    fixture.iptables("echo 'iptables: Permission denied.' >&2; exit 4");
    let network = fixture.cni.network(None).await.unwrap();
    fs::remove_file(fixture.path("order")).unwrap();
    let error = fixture.cni.add(&network, &fixture.attachment(), &fixture.record()).await.unwrap_err();
    assert!(error.is_transient(), "whoever keeps it from that may stop");
    let text = error.to_string();
    for words in ["sbin/iptables failed to make the rules", "network own", "Permission denied"] {
        assert!(text.contains(words), "{text}");
    }
    fixture.cni.delete(&fixture.record()).await.unwrap();
    assert_eq!(fixture.order(), ["bridge ADD", "bridge DEL"]);
    fixture.iptables("sleep 1000");
    let error =
        fixture.cni.packet_filter.ensure(&network.rules, Duration::from_millis(500)).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
}

#[tokio::test]
async fn a_record_of_an_earlier_version_is_read() {
    let fixture = Fixture::new("1.0.0", &[("one", ANSWER)]);
    let attached = json!({
        "container_id": "c1", "netns": "/netns", "if_name": "eth0", "args": "A=b",
        "arguments": {"mac": "02:00:00:00:00:01"},
    });
    let network = json!({
        "name": "net", "origin": "/net.conflist", "versions": ["1.0.0"], "disable_check": false,
        "plugins": [{"type": "one", "config": {"type": "one"}, "idle_without": null}],
    });
    let record = json!({
        "phase": "adding", "network": network, "attached": attached, "directories": ["/bin"], "answered": 1,
        "result": {"ips": []},
    });
    fs::write(fixture.record(), record.to_string()).unwrap();
    let read = Record::read(&fixture.record()).await.unwrap().unwrap();
    assert_eq!((read.completed, read.phase), (1, Phase::Adding));
    assert_eq!(read.conf.capability_args["mac"], "02:00:00:00:00:01");
    assert_eq!(serde_json::to_value(&read).unwrap(), record);
}
