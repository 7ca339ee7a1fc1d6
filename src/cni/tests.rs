//! The runtime with plugins that write down what they are told, and do what a test wants of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::*;

/// A directory with plugins, one with networks, a record's place and what the plugins have written down.
struct Place {
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

impl Place {
    fn new(versions: &str, plugins: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["bin", "net.d"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let default = DefaultNetwork {
            name: "own".to_owned(),
            bridge: "own0".to_owned(),
            subnets: vec!["10.9.0.0/24".to_owned()],
            hairpin: true,
            leases: directory.path().join("leases"),
        };
        let cni =
            Cni::new(vec![directory.path().join("bin")], directory.path().join("net.d"), default, DEADLINE);
        let place = Self { directory, cni };
        for (name, script) in plugins {
            place.plugin(name, script);
        }
        let types: Vec<Value> = plugins
            .iter()
            .map(|(name, _)| json!({"type": name, "capabilities": {"portMappings": true}}))
            .collect();
        let mut list = json!({"name": "net", "plugins": types});
        let key = if versions.contains(',') { "cniVersions" } else { "cniVersion" };
        let all: Vec<&str> = versions.split(',').collect();
        list[key] = if all.len() > 1 { json!(all) } else { json!(all[0]) };
        fs::write(place.path("net.d/net.conflist"), list.to_string()).unwrap();
        place
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

    fn told(&self, plugin: &str, command: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(&format!("{plugin}.{command}.in"))).unwrap()).unwrap()
    }

    async fn network(&self) -> Network {
        self.cni.network(Some("net")).await.unwrap()
    }

    async fn add(&self) -> Result<Added, Error> {
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
async fn plugins_get_the_environment_of_the_specification_and_path_alone() {
    let place = Place::new("1.0.0", &[("one", ANSWER)]);
    let added = place.add().await.unwrap();
    assert_eq!(added.addresses, ["10.9.0.2".parse::<std::net::IpAddr>().unwrap()]);
    let environment = fs::read_to_string(place.path("one.ADD.env")).unwrap();
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
            &format!("CNI_CONTAINERID={}", place.id()),
            "CNI_IFNAME=eth0",
            &format!("CNI_NETNS={}", place.path("netns").display()),
            &format!("CNI_PATH={}", place.path("bin").display()),
        ]
    );
    assert!(environment.contains("PATH=/"));
}

#[tokio::test]
async fn each_plugin_is_told_the_result_before_it_and_a_delete_the_last() {
    let second = ANSWER.replace("10.9.0.2", "10.9.0.3");
    let place = Place::new("1.0.0", &[("one", ANSWER), ("two", &second)]);
    place.add().await.unwrap();
    let address = |told: Value| told["prevResult"]["ips"][0]["address"].clone();
    assert_eq!(address(place.told("one", "ADD")), Value::Null);
    assert_eq!(address(place.told("two", "ADD")), "10.9.0.2/24");
    place.cni.check(&place.record()).await.unwrap();
    place.cni.delete(&place.record()).await.unwrap();
    for told in ["CHECK", "DEL"].map(|command| place.told("one", command)) {
        assert_eq!((&told["name"], &told["cniVersion"]), (&json!("net"), &json!("1.0.0")));
        assert_eq!(address(told), "10.9.0.3/24");
    }
    assert_eq!(place.order(), ["one ADD", "two ADD", "one CHECK", "two CHECK", "two DEL", "one DEL"]);
    assert!(!place.record().exists());
    place.cni.delete(&place.record()).await.unwrap();
    assert_eq!(place.order().len(), 6);
}

#[tokio::test]
async fn a_namespace_that_is_gone_is_no_longer_named() {
    let place = Place::new("1.0.0", &[("one", ANSWER)]);
    place.add().await.unwrap();
    place.cni.delete(&place.record()).await.unwrap();
    let environment = fs::read_to_string(place.path("one.DEL.env")).unwrap();
    assert!(environment.lines().any(|line| line == "CNI_NETNS="), "{environment}");
}

#[tokio::test]
async fn what_failed_half_way_is_undone_by_all_plugins_though_some_fail_again() {
    let complaint = r#"echo '{"cniVersion": "1.0.0", "code": 7, "msg": "bad", "details": "no room"}'; echo aside >&2; exit 1"#;
    let place = Place::new("1.0.0", &[("one", ANSWER), ("two", complaint), ("three", ANSWER)]);
    let error = place.add().await.unwrap_err();
    assert!(!error.is_transient());
    let text = error.to_string();
    for word in ["bin/two", "ADD", "network net", "bad: no room", "code 7", "aside"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let error = place.cni.delete(&place.record()).await.unwrap_err().to_string();
    assert!(error.contains("bin/two failed to DEL"), "{error}");
    assert_eq!(place.order()[2..], ["three DEL", "two DEL", "one DEL"]);
    assert_eq!(place.told("two", "DEL")["prevResult"]["ips"][0]["address"], "10.9.0.2/24");
    assert!(place.record().exists());
    place.plugin("two", ANSWER);
    place.cni.delete(&place.record()).await.unwrap();
    assert!(!place.record().exists());
}

#[tokio::test]
async fn a_plugin_that_has_done_nothing_holds_no_removal_up() {
    let other_version = "echo '{\"code\": 1, \"msg\": \"incompatible CNI versions\"}'; exit 1";
    let place = Place::new("0.3.1", &[("one", ANSWER), ("two", other_version), ("three", "exit 1")]);
    assert!(place.add().await.is_err());
    place.cni.delete(&place.record()).await.unwrap();
    assert_eq!(place.order()[2..], ["three DEL", "two DEL", "one DEL"]);
    // A plugin that was updated since its ADD can't undo what it did.
    let place = Place::new("0.3.1", &[("one", ANSWER)]);
    place.add().await.unwrap();
    place.plugin("one", other_version);
    assert!(place.cni.delete(&place.record()).await.is_err());
}

#[tokio::test]
async fn a_plugin_that_is_not_ready_yet_is_worth_another_try() {
    for (code, transient) in [(11, true), (50, true), (51, true), (3, false), (100, false)] {
        let script = format!("echo '{{\"code\": {code}, \"msg\": \"later\"}}'; exit 1");
        let place = Place::new("1.0.0", &[("one", &script)]);
        assert_eq!(place.add().await.unwrap_err().is_transient(), transient, "{code}");
    }
}

#[tokio::test]
async fn a_container_that_a_plugin_does_not_know_is_detached_from_it() {
    let script =
        format!("[ $CNI_COMMAND = DEL ] && {{ echo '{{\"code\": 3, \"msg\": \"x\"}}'; exit 1; }}\n{ANSWER}");
    let place = Place::new("1.0.0", &[("one", &script)]);
    place.add().await.unwrap();
    place.cni.delete(&place.record()).await.unwrap();
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_its_children_at_the_deadline() {
    let script = "[ $CNI_COMMAND = DEL ] && exit 0\nsleep 1000 & echo $! > $here/child; sleep 1000";
    let mut place = Place::new("1.0.0", &[("one", script)]);
    place.cni.deadline = Duration::from_millis(1500);
    let error = place.add().await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("1.5 s"), "{error}");
    let child = fs::read_to_string(place.path("child")).unwrap();
    place.cni.delete(&place.record()).await.unwrap();
    let is_running = |stat: String| !stat.contains(") Z ");
    assert!(!fs::read_to_string(format!("/proc/{}/stat", child.trim())).is_ok_and(is_running));
}

#[tokio::test]
async fn a_plugin_whose_starter_is_gone_is_ended_before_its_work_is_undone() {
    let script = "[ $CNI_COMMAND = DEL ] && exit 0\necho $$ > $here/pid; exec sleep 1000";
    let place = Place::new("1.0.0", &[("one", script)]);
    let (network, attachment, record) = (place.network().await, place.attachment(), place.record());
    // Run without the guard of its process group, as after a crash.
    let kept = Record {
        phase: Phase::Adding,
        attached: attachment.settle(&network).unwrap(),
        directories: vec![place.path("bin")],
        network,
        answered: 0,
        result: None,
    };
    kept.write(&record).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "stands for a plugin that a dead driver has started")]
    let mut orphan = std::process::Command::new(place.path("bin/one"))
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", &attachment.container_id)
        .stdin(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let reaped = std::thread::spawn(move || orphan.wait());
    place.cni.delete(&record).await.unwrap();
    assert!(!reaped.join().unwrap().unwrap().success());
    assert_eq!(place.order().last().unwrap(), "one DEL");
}

#[tokio::test]
async fn what_is_no_answer_is_an_error_that_shows_it() {
    for (script, words) in [
        ("echo rubbish", &["printed no result", "rubbish"][..]),
        ("exit 0", &["printed no result"]),
        ("echo '[1]'", &["printed no result", "[1]"]),
        ("echo out; echo err >&2; exit 3", &["exit status: 3", "stdout: out", "stderr: err"]),
        ("kill -9 $$", &["signal: 9"]),
        ("echo '{\"ips\": [{\"address\": \"x\"}]}'", &["\"x\" is no address"]),
        ("echo '{\"ips\": [{\"address\": \"10.0.0.1\", \"interface\": 4}]}'", &["interface 4"]),
        ("echo '{\"cniVersion\": \"9.0.0\"}'", &["9.0.0"]),
        ("yes", &["more than"]),
    ] {
        let place = Place::new("1.0.0", &[("one", script)]);
        let error = place.add().await.unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word) && error.len() < 5000, "{script}: {error}");
        }
    }
}

#[tokio::test]
async fn a_child_that_keeps_the_plugins_output_holds_nothing_up() {
    let script = format!("sleep 3 & {ANSWER}");
    let place = Place::new("1.0.0", &[("one", &script)]);
    assert_eq!(place.add().await.unwrap().addresses.len(), 1);
}

#[tokio::test]
async fn of_several_versions_the_newest_is_spoken_that_all_plugins_know() {
    let speaks = |versions: &str| {
        format!(
            "[ $CNI_COMMAND = VERSION ] && {{ echo '{{\"supportedVersions\": [{versions}]}}'; exit 0; }}\n{ANSWER}"
        )
    };
    let (new, old) = (speaks(r#""0.4.0", "1.0.0", "1.1.0""#), speaks(r#""0.3.1", "0.4.0", "1.0.0""#));
    let place = Place::new("0.4.0,1.0.0,1.1.0", &[("one", &new), ("two", &old)]);
    place.add().await.unwrap();
    assert_eq!(place.told("one", "ADD")["cniVersion"], "1.0.0");
    let before = place.order().len();
    place.network().await;
    assert_eq!(place.order().len(), before, "what a plugin speaks is asked once");
    let place = Place::new("1.0.0,1.1.0", &[("one", &new), ("two", &speaks("\"0.4.0\""))]);
    let error = place.cni.network(Some("net")).await.unwrap_err().to_string();
    assert!(error.contains("1.0.0, 1.1.0") && error.contains("two speaks 0.4.0"), "{error}");
}

#[tokio::test]
async fn an_older_network_is_told_results_in_its_own_form() {
    let place = Place::new("0.3.1", &[("one", ANSWER), ("two", ANSWER)]);
    place.add().await.unwrap();
    let previous = place.told("two", "ADD")["prevResult"].clone();
    assert_eq!((&previous["cniVersion"], &previous["ips"][0]["version"]), (&json!("0.3.1"), &json!("4")));
    place.cni.check(&place.record()).await.unwrap();
    place.cni.delete(&place.record()).await.unwrap();
    assert_eq!(place.told("one", "DEL").get("prevResult"), None);
    assert!(!place.order().iter().any(|line| line.contains("CHECK")));
}

#[tokio::test]
async fn what_a_job_gives_and_no_plugin_takes_is_refused() {
    let place = Place::new("1.0.0", &[("one", ANSWER)]);
    let network = place.network().await;
    let mut attachment = place.attachment();
    let (host_port, container_port, protocol) = (80, 8080, Protocol::Tcp);
    attachment.capabilities.port_mappings =
        vec![PortMapping { host_port, container_port, protocol, host_ip: None }];
    attachment.capabilities.dns = Some(Dns::default());
    place.cni.add(&network, &attachment, &place.record()).await.unwrap();
    assert_eq!(
        place.told("one", "ADD")["runtimeConfig"],
        json!({"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]})
    );
    attachment.capabilities.aliases = vec!["db".to_owned()];
    let error = place.cni.add(&network, &attachment, &place.record()).await.unwrap_err();
    assert!(error.is_invalid());
    for word in ["aliases", "network net", "net.conflist"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    for (id, interface) in
        [("../c", "eth0"), ("", "eth0"), ("c", "a/b"), ("c", ""), ("c", "sixteen-or-more.")]
    {
        let attachment =
            Attachment { container_id: id.to_owned(), if_name: interface.to_owned(), ..place.attachment() };
        assert!(place.cni.add(&network, &attachment, &place.record()).await.unwrap_err().is_invalid());
    }
}

#[tokio::test]
async fn an_argument_that_the_syntax_can_not_have_is_left_out() {
    let place = Place::new("1.0.0", &[("one", ANSWER)]);
    let argument = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let args = [("A", "b;C=d"), ("B", "a=b"), ("C", "\0"), ("", "x"), ("D", "d e"), ("F", "")];
    let attachment = Attachment { args: args.map(argument).to_vec(), ..place.attachment() };
    place.cni.add(&place.network().await, &attachment, &place.record()).await.unwrap();
    let environment = fs::read_to_string(place.path("one.ADD.env")).unwrap();
    assert!(environment.lines().any(|line| line == "CNI_ARGS=D=d e;F="), "{environment}");
}

/// Lets a plugin's script wait until a file is there.
fn waits_for(place: &Place, command: &str, file: &str) -> String {
    let file = place.path(file);
    format!(
        "[ $CNI_COMMAND = VERSION ] && {{ echo '{{\"supportedVersions\": [\"1.0.0\"]}}'; exit 0; }}\n\
         [ $CNI_COMMAND = {command} ] && while ! [ -e {} ]; do sleep 0.05; done\n{ANSWER}",
        file.display()
    )
}

#[tokio::test]
async fn a_collection_neither_waits_in_line_nor_holds_up_other_networks() {
    let place = Place::new("1.0.0", &[("one", ANSWER)]);
    place.built_in("\"1.0.0\"");
    fs::create_dir_all(place.path("leases/own")).unwrap();
    fs::write(place.path("leases/own/10.9.0.3"), "gone\r\neth0").unwrap();
    let own = place.cni.network(None).await.unwrap();
    // One task's plugin hangs. A collection that comes meanwhile holds up no other task.
    place.plugin("firewall", &waits_for(&place, "ADD", "goes"));
    let (first, second) = (place.path("first.json"), place.path("second.json"));
    let attachment = place.attachment();
    let hangs = place.cni.add(&own, &attachment, &first);
    let others = async {
        while !place.order().contains(&"firewall ADD".to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let collects = place.cni.gc(|| Some(Vec::new()));
        let meanwhile = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let other = Attachment { container_id: format!("{}-2", place.id()), ..place.attachment() };
            let added = place.cni.add(&own, &other, &second);
            let ended = async {
                while place.order().iter().filter(|line| *line == "firewall ADD").count() < 2 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                fs::write(place.path("goes"), "").unwrap();
            };
            let (added, ()) = tokio::join!(added, ended);
            added.unwrap();
        };
        tokio::join!(collects, meanwhile).0.unwrap();
    };
    let (added, ()) = tokio::join!(hangs, others);
    added.unwrap();
    assert!(place.order().contains(&"bridge DEL".to_owned()), "it was not collected: {:?}", place.order());
    // A collection whose plugin hangs holds up no task of another network, and its own not for ever.
    let Place { mut cni, directory } = place;
    cni.deadline = Duration::from_secs(2);
    let place = Place { cni, directory };
    place.plugin("firewall", &waits_for(&place, "DEL", "never"));
    fs::remove_file(place.path("order")).unwrap();
    let record = place.path("third.json");
    let collects = place.cni.gc(|| Some(Vec::new()));
    let meanwhile = async {
        while !place.order().contains(&"firewall DEL".to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let other = Attachment { container_id: format!("{}-3", place.id()), ..place.attachment() };
        place.cni.add(&place.network().await, &other, &record).await.unwrap();
        assert!(!place.order().contains(&"bridge DEL".to_owned()), "{:?}", place.order());
        place.cni.add(&own, &place.attachment(), &place.path("fourth.json")).await.unwrap();
    };
    let limited = tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(collects, meanwhile) });
    assert!(limited.await.unwrap().0.is_err(), "that it could not collect is told");
}

#[tokio::test]
async fn no_more_checks_run_at_once_than_a_machine_bears() {
    let place = Place::new("1.0.0", &[("one", ANSWER)]);
    place.add().await.unwrap();
    let script = "[ $CNI_COMMAND = CHECK ] || exit 0\n: > $here/now.$$; ls $here/now.* | wc -l >> $here/at_once\n\
                  sleep 0.1; rm $here/now.$$";
    place.plugin("one", script);
    let record = place.record();
    let checks = (0..20).map(|_| place.cni.check(&record));
    futures::future::join_all(checks).await.into_iter().for_each(|checked| checked.unwrap());
    let at_once = fs::read_to_string(place.path("at_once")).unwrap();
    let most = at_once.lines().map(|line| line.trim().parse::<usize>().unwrap()).max().unwrap();
    assert!(most <= CHECKS_AT_ONCE && at_once.lines().count() == 20, "{at_once}");
}

#[tokio::test]
async fn a_missing_plugin_is_named_before_any_other_runs() {
    let place = Place::new("1.0.0", &[("one", ANSWER), ("two", ANSWER)]);
    let network = place.network().await;
    fs::remove_file(place.path("bin/two")).unwrap();
    for error in [
        place.cni.network(Some("net")).await.unwrap_err(),
        place.cni.add(&network, &place.attachment(), &place.record()).await.unwrap_err(),
    ] {
        let error = error.to_string();
        assert!(error.contains("\"two\"") && error.contains("containernetworking-plugins"), "{error}");
    }
    assert!(place.order().is_empty() && !place.record().exists());
    let error = place.cni.network(None).await.unwrap_err().to_string();
    assert!(error.contains("\"bridge\"") && error.contains("network own"), "{error}");
}

#[tokio::test]
async fn the_built_in_network_is_ready_by_the_word_of_its_plugins() {
    let place = Place::new("1.0.0", &[("one", ANSWER)]);
    assert!(!place.cni.is_ready().await, "there are no plugins");
    let statuses = |place: &Place| place.order().iter().filter(|line| line.ends_with("STATUS")).count();
    for (speaks, asked) in [("\"1.0.0\"", 0), ("\"1.0.0\", \"1.1.0\"", 4)] {
        let place = Place::new("1.0.0", &[("one", ANSWER)]);
        place.built_in(speaks);
        assert!(place.cni.is_ready().await && place.cni.is_ready().await);
        assert_eq!(statuses(&place), asked);
    }
    let place = Place::new("1.0.0", &[("one", ANSWER)]);
    place.built_in("\"1.1.0\"");
    let full = "[ $CNI_COMMAND = VERSION ] && { echo '{\"supportedVersions\": [\"1.1.0\"]}'; exit 0; }
        echo '{\"code\": 50, \"msg\": \"full\"}'; exit 1";
    place.plugin("firewall", full);
    assert!(!place.cni.is_ready().await);
    assert_eq!(statuses(&place), 2);
    let environment = fs::read_to_string(place.path("bridge.STATUS.env")).unwrap();
    assert!(!environment.contains("CNI_CONTAINERID"), "{environment}");
}

#[tokio::test]
async fn the_built_in_network_gives_up_what_no_task_has() {
    for (speaks, with_gc) in [("\"1.0.0\"", false), ("\"1.0.0\", \"1.1.0\"", true)] {
        let place = Place::new("1.0.0", &[("one", ANSWER)]);
        place.built_in(speaks);
        // Before any address was given there is nothing to ask for.
        place.cni.gc(|| Some(Vec::new())).await.unwrap();
        assert!(place.order().is_empty());
        fs::create_dir_all(place.path("leases/own")).unwrap();
        for (address, id) in [("10.9.0.2", "runs"), ("10.9.0.3", "gone")] {
            fs::write(place.path("leases/own").join(address), format!("{id}\r\neth0")).unwrap();
        }
        place.cni.gc(|| None).await.unwrap();
        fs::remove_file(place.path("order")).unwrap();
        let valid = Valid { container_id: "runs".to_owned(), if_name: "eth0".to_owned() };
        place.cni.gc(|| Some(vec![valid])).await.unwrap();
        let mut wanted = vec!["bandwidth DEL", "portmap DEL", "firewall DEL", "bridge DEL"];
        if with_gc {
            wanted.extend(["bridge GC", "firewall GC", "portmap GC", "bandwidth GC"]);
            let told = place.told("bridge", "GC");
            assert_eq!(told["cni.dev/valid-attachments"], json!([{"containerID": "runs", "ifname": "eth0"}]));
        }
        assert_eq!(place.order(), wanted);
        let environment = fs::read_to_string(place.path("bridge.DEL.env")).unwrap();
        assert!(environment.contains("CNI_CONTAINERID=gone\n"), "{environment}");
    }
}

#[tokio::test]
async fn a_network_that_is_not_to_be_checked_is_not() {
    let place = Place::new("1.1.0", &[("one", ANSWER)]);
    let list = Path::new("net.d/net.conflist");
    let text = fs::read_to_string(place.directory.path().join(list)).unwrap();
    let text = text.replacen('{', "{\"disableCheck\": true, ", 1);
    fs::write(place.directory.path().join(list), text).unwrap();
    place.add().await.unwrap();
    place.cni.check(&place.record()).await.unwrap();
    assert_eq!(place.order(), ["one ADD"]);
}

#[tokio::test]
async fn the_built_in_network_runs_what_has_something_to_do() {
    let place = Place::new("1.0.0", &[("one", ANSWER)]);
    place.built_in("\"1.0.0\"");
    let network = place.cni.network(None).await.unwrap();
    fs::remove_file(place.path("order")).unwrap();
    let mut attachment = place.attachment();
    place.cni.add(&network, &attachment, &place.record()).await.unwrap();
    place.cni.delete(&place.record()).await.unwrap();
    attachment.capabilities.bandwidth =
        Some(Bandwidth { ingress_rate: 8000, ingress_burst: 8000, ..Bandwidth::default() });
    place.cni.add(&network, &attachment, &place.record()).await.unwrap();
    assert_eq!(
        place.order(),
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
    let told = place.told("bridge", "ADD");
    assert_eq!((&told["bridge"], &told["cniVersion"]), (&json!("own0"), &json!("1.0.0")));
    assert_eq!(told["ipam"]["dataDir"], json!(place.path("leases")));
    assert_eq!(place.told("bandwidth", "ADD")["runtimeConfig"]["bandwidth"]["ingressRate"], 8000);
}
