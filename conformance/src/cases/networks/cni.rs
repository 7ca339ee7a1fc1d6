//! CNI plugins that misbehave or are of another version, between real ones that behave; and the environment, arguments
//! and requests that plugins get.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::fixture::process;
use harness::host::Plugin;
use harness::task::{LIMIT, Task};
use nomad_proto::structs::attribute::Value as Attribute;
use serde_json::{Value, json};

use crate::cases::support::web_server::{PORT, fetch_hostname, network_override, server, with};
use crate::cases::support::{cases, ensure_eq, is_recoverable, refused, until};

cases!["cni":
    a_failed_plugin_is_quoted_and_the_network_is_undone,
    a_plugin_that_hangs_is_killed_and_worth_another_try,
    plugins_have_an_environment_of_their_own,
    plugins_get_the_jobs_id_and_no_argument_that_cni_can_not_express,
    networks_of_each_version_that_the_plugins_speak_are_joined,
    a_file_that_is_no_network_is_named_with_its_line,
    the_fingerprint_reports_whether_the_bridges_plugins_are_there,
    an_address_of_a_container_whose_bundle_is_lost_is_given_up,
];

/// Beginning of the script `trouble`: notes its command. A script after it may exit; else [`PASS_ON`] answers.
const PRELUDE: &str = r#"#!/bin/sh
here=${0%/*}/..
request=$(cat)
echo "$CNI_COMMAND" >> "$here/commands"
"#;
/// End of the script `trouble`: answers an ADD with the request's `prevResult`, as a plugin that changes nothing. The
/// `sed` relies on the request's keys being in alphabetical order.
const PASS_ON: &str = r#"
[ "$CNI_COMMAND" = ADD ] && printf %s "$request" | sed 's/.*"prevResult"://; s/,"type":"trouble"}$//'
exit 0
"#;

/// The real CNI plugins and a script `trouble` in one directory, and a network that uses both.
struct CniFixture {
    directory: PathBuf,
}

impl CniFixture {
    fn create(case: &CaseContext, script: &str) -> Result<Self> {
        let fixture = Self { directory: case.directory().join("cni") };
        let _ = fs::remove_dir_all(&fixture.directory);
        for directory in [fixture.bin(), fixture.networks()] {
            fs::create_dir_all(directory)?;
        }
        for plugin in fs::read_dir(case.programs().cni())
            .context("the CNI plugins, Debian's containernetworking-plugins")?
        {
            let plugin = plugin?;
            symlink(plugin.path(), fixture.bin().join(plugin.file_name()))?;
        }
        let trouble = fixture.bin().join("trouble");
        fs::write(&trouble, format!("{PRELUDE}{script}{PASS_ON}"))?;
        fs::set_permissions(&trouble, fs::Permissions::from_mode(0o755))?;
        let plugins = [
            bridge(case),
            json!({"type": "firewall"}),
            json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}),
            json!({"type": "trouble"}),
        ];
        fixture.describe(
            "troubled.conflist",
            &json!({"cniVersion": "1.0.0", "name": "troubled", "plugins": plugins}),
        )?;
        Ok(fixture)
    }

    fn bin(&self) -> PathBuf {
        self.directory.join("bin")
    }

    fn networks(&self) -> PathBuf {
        self.directory.join("net.d")
    }

    fn describe(&self, file: &str, network: &Value) -> Result<()> {
        Ok(fs::write(self.networks().join(file), serde_json::to_vec_pretty(network)?)?)
    }

    fn options(&self, case: &CaseContext) -> Value {
        let mut options = case.options();
        options["cni_path"] = json!(self.bin().display().to_string());
        options["cni_config_dir"] = json!(self.networks().display().to_string());
        options
    }

    async fn plugin(&self, case: &CaseContext) -> Result<Plugin> {
        case.plugin_as(&case.launch(), &self.options(case)).await
    }

    /// Returns what the script has written to a file.
    fn recorded(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join(file)).unwrap_or_default()
    }
}

fn bridge(case: &CaseContext) -> Value {
    let bridge = case.environment().networks().described();
    json!({
        "type": "bridge", "bridge": bridge.name, "isGateway": true, "ipMasq": true,
        "ipam": {
            "type": "host-local", "ranges": [[{"subnet": bridge.subnet}]], "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": case.state_dir().join("leases").display().to_string(),
        },
    })
}

fn on(network: &str) -> [(&'static str, Value); 1] {
    [("network_mode", json!(format!("cni/{network}")))]
}

async fn prepared(case: &CaseContext, plugin: &Plugin) -> Result<Task> {
    case.prepare(plugin, &with(case, "sleep 600", &on("troubled"))).await
}

async fn a_failed_plugin_is_quoted_and_the_network_is_undone(case: &CaseContext) -> Result<()> {
    let complains = r#"[ $CNI_COMMAND = ADD ] && {
        echo '{"cniVersion": "1.0.0", "code": 107, "msg": "no luck", "details": "the moon is full"}'; exit 1; }"#;
    for (script, words) in [
        (complains, &["no luck", "the moon is full", "107"][..]),
        ("[ $CNI_COMMAND = ADD ] && { echo rubbish; exit 0; }", &["no result", "rubbish"]),
        ("[ $CNI_COMMAND = ADD ] && exit 0", &["no result"]),
        ("[ $CNI_COMMAND = ADD ] && { echo quite broken >&2; exit 4; }", &["exit status: 4", "quite broken"]),
        ("[ $CNI_COMMAND = ADD ] && kill -SEGV $$", &["signal: 11"]),
        ("[ $CNI_COMMAND = ADD ] && exec yes", &["printed more than"]),
    ] {
        let fixture = CniFixture::create(case, script)?;
        let mut plugin = fixture.plugin(case).await?;
        let task = prepared(case, &plugin).await?;
        let status = refused(plugin.start_task(task.config.clone()).await, words)?;
        refused::<()>(Err(status), &["bin/trouble", "ADD", "troubled"])?;
        ensure_eq!(fixture.recorded("commands"), "ADD\nDEL\n");
        case.nothing_left()?;
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn a_plugin_that_hangs_is_killed_and_worth_another_try(case: &CaseContext) -> Result<()> {
    let fixture =
        CniFixture::create(case, r#"[ $CNI_COMMAND = ADD ] && { echo $$ > "$here/pid"; sleep 600; }"#)?;
    let mut options = fixture.options(case);
    options["cni_timeout"] = json!("2s");
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = prepared(case, &plugin).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &["bin/trouble", "within 2 s"])?;
    ensure!(is_recoverable(&status)?, "the agent would give up");
    // A zombie has no command line any more.
    let command = fs::read(format!("/proc/{}/cmdline", fixture.recorded("pid").trim())).unwrap_or_default();
    ensure!(command.is_empty(), "the plugin runs on");
    case.nothing_left()?;
    // A plugin that says it is too early (code 11) doesn't make the agent give up either.
    let early = r#"[ $CNI_COMMAND = ADD ] && { echo '{"code": 11, "msg": "not yet"}'; exit 1; }"#;
    let fixture = CniFixture::create(case, early)?;
    let task = prepared(case, &plugin).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &["not yet", "code 11"])?;
    ensure!(is_recoverable(&status)?, "the agent would give up");
    ensure_eq!(fixture.recorded("commands"), "ADD\nDEL\n");
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn plugins_have_an_environment_of_their_own(case: &CaseContext) -> Result<()> {
    let fixture = CniFixture::create(
        case,
        r#"env > "$here/$CNI_COMMAND.env"; printf %s "$request" > "$here/$CNI_COMMAND.in""#,
    )?;
    let mut launch = case.launch();
    launch.environment.push(("VAULT_TOKEN".into(), "hunter2".into()));
    launch.environment.push(("CNI_ARGS".into(), "of=another".into()));
    let mut plugin = case.plugin_as(&launch, &fixture.options(case)).await?;
    let mut task = prepared(case, &plugin).await?;
    task.start(&plugin).await?;
    task.end(&plugin).await?;
    for command in ["ADD", "DEL"] {
        let environment = fixture.recorded(&format!("{command}.env"));
        let names = environment.lines().filter_map(|line| line.split('=').next());
        // The shell sets the last ones.
        let is_ours =
            |name: &str| name.starts_with("CNI_") || ["PATH", "PWD", "OLDPWD", "SHLVL", "_"].contains(&name);
        ensure!(names.clone().all(is_ours), "{command}: {environment}");
        ensure_eq!(names.filter(|name| name.starts_with("CNI_")).count(), 6);
        ensure!(!environment.contains("another"), "{command}: {environment}");
        let request: Value = serde_json::from_str(&fixture.recorded(&format!("{command}.in")))?;
        ensure_eq!(request["name"], json!("troubled"));
        let address = request["prevResult"]["ips"][0]["address"].as_str().unwrap_or_default();
        ensure!(address.starts_with("10."), "{command}: {request}");
    }
    case.nothing_left()?;
    plugin.shut_down().await
}

/// Nomad lets names of jobs and groups contain characters of the arguments' syntax, with which such a job did not start
/// once.
async fn plugins_get_the_jobs_id_and_no_argument_that_cni_can_not_express(case: &CaseContext) -> Result<()> {
    let fixture = CniFixture::create(case, r#"env > "$here/$CNI_COMMAND.env""#)?;
    let mut plugin = fixture.plugin(case).await?;
    for (round, mode) in [(1, "cni/troubled"), (2, "bridge")] {
        let config = with(case, "sleep 600", &[("network_mode", json!(mode))]);
        let mut task = case.prepare(&plugin, &config).await?;
        task.config.job_id = "shop/api-7".to_owned();
        task.config.job_name = "payments".to_owned();
        task.config.task_group_name = "a;NOMAD_NAMESPACE=other".to_owned();
        task.config.namespace = "x=y".to_owned();
        task.start(&plugin).await.context(mode)?;
        if mode != "bridge" {
            let environment = fixture.recorded("ADD.env");
            let arguments = environment.lines().find_map(|line| line.strip_prefix("CNI_ARGS="));
            let id = &task.alloc.id;
            let wanted =
                format!("IgnoreUnknown=true;NOMAD_ALLOC_ID={id};NOMAD_JOB_ID=shop/api-7;NOMAD_TASK_NAME=web");
            ensure_eq!(arguments, Some(wanted.as_str()));
        }
        let warned = plugin.log().all().into_iter().filter(|line| line.contains("CNI_ARGS can't have"));
        ensure!(warned.count() >= 2 * round, "nothing is said of what is left out in {mode}");
        task.end(&plugin).await?;
        case.nothing_left()?;
    }
    plugin.shut_down().await
}

/// Returns the versions of the specification that each of these plugins reports.
fn versions_spoken(case: &CaseContext, plugins: &[&'static str]) -> Result<Vec<(&'static str, Vec<String>)>> {
    let mut spoken = Vec::new();
    for &plugin in plugins {
        let mut command = Command::new(case.programs().cni().join(plugin));
        command.env("CNI_COMMAND", "VERSION");
        // Older plugins answer without reading their stdin, and may have exited while it is written.
        let answer = process::output_of(&mut command, br#"{"cniVersion": "1.0.0"}"#)?;
        let answer: Value = serde_json::from_str(&answer).with_context(|| format!("{plugin}: {answer}"))?;
        let versions = serde_json::from_value(answer["supportedVersions"].clone());
        spoken.push((plugin, versions.with_context(|| format!("{plugin}: {answer}"))?));
    }
    Ok(spoken)
}

async fn networks_of_each_version_that_the_plugins_speak_are_joined(case: &CaseContext) -> Result<()> {
    let fixture = CniFixture::create(case, "")?;
    let mut plugin = fixture.plugin(case).await?;
    let list = json!([bridge(case), {"type": "firewall"}, {"type": "tuning"}]);
    let oldest = json!([bridge(case), {"type": "tuning"}]);
    let mut described = vec![
        ("a.conflist", json!({"cniVersion": "0.3.1", "plugins": oldest})),
        ("a.conflist", json!({"cniVersions": ["0.4.0", "1.0.0", "1.1.0"]})),
        ("a.conf", json!({"cniVersion": "0.4.0"})),
    ];
    let mut refusals = Vec::new();
    let spoken = versions_spoken(case, &["bridge", "firewall", "tuning"])?;
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        match spoken.iter().find(|(_, versions)| !versions.iter().any(|spoken| spoken == version)) {
            Some((culprit, _)) => refusals.push((version, *culprit)),
            None => described.push(("a.conflist", json!({"cniVersion": version}))),
        }
    }
    for (file, versions) in described {
        let mut network = if file == "a.conf" { bridge(case) } else { json!({"plugins": list}) };
        network["name"] = json!("versioned");
        for (key, value) in versions.as_object().into_iter().flatten() {
            network[key] = value.clone();
        }
        fixture.describe(file, &network)?;
        let task = server(case, &plugin, &on("versioned")).await.with_context(|| network.to_string())?;
        let name = format!("web-{}", &task.alloc.id[..8]);
        ensure_eq!(fetch_hostname(&network_override(&plugin, &task).await?.addr, PORT)?, name);
        task.end(&plugin).await?;
        case.nothing_left()?;
        fs::remove_file(fixture.networks().join(file))?;
    }
    // No firewall plugin speaks the oldest version, and Debian 12's plugins don't speak the newest.
    for (version, culprit) in refusals {
        fixture
            .describe("a.conflist", &json!({"cniVersion": version, "name": "versioned", "plugins": list}))?;
        let task = case.prepare(&plugin, &with(case, "true", &on("versioned"))).await?;
        refused(
            plugin.start_task(task.config.clone()).await,
            &[culprit, "incompatible CNI version", version],
        )?;
        case.nothing_left()?;
    }
    plugin.shut_down().await
}

async fn a_file_that_is_no_network_is_named_with_its_line(case: &CaseContext) -> Result<()> {
    let fixture = CniFixture::create(case, "")?;
    let mut plugin = fixture.plugin(case).await?;
    let file = |name: &str| fixture.networks().join(name);
    fs::write(file("b.conflist"), "{\n  \"name\": \"broken\",\n  \"plugins\": [,]\n}")?;
    fixture.describe("c.conflist", &json!({"name": "bare", "cniVersion": "1.0.0", "plugins": [{}]}))?;
    for (name, words) in [
        ("broken", &["it has bare, troubled", "b.conflist", "line 3"][..]),
        ("bare", &["c.conflist", "plugin 1", "type"]),
        ("absent", &["\"absent\"", "troubled"]),
    ] {
        let task = case.prepare(&plugin, &with(case, "true", &on(name))).await?;
        refused(plugin.start_task(task.config.clone()).await, words)?;
        case.nothing_left()?;
    }
    plugin.shut_down().await
}

async fn the_fingerprint_reports_whether_the_bridges_plugins_are_there(case: &CaseContext) -> Result<()> {
    let fixture = CniFixture::create(case, "")?;
    for there in [true, false] {
        if !there {
            fs::remove_file(fixture.bin().join("portmap"))?;
        }
        let mut plugin = fixture.plugin(case).await?;
        let first = plugin.fingerprints().await?.message().await?.context("no fingerprint")?;
        let attribute = first.attributes.get("driver.containerd-driver.bridge_network");
        let reported = attribute.and_then(|attribute| attribute.value.clone());
        ensure_eq!(reported == Some(Attribute::BoolVal(true)), there);
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn an_address_of_a_container_whose_bundle_is_lost_is_given_up(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = server(case, &plugin, &[("network_mode", json!("bridge"))]).await?;
    let (address, bridge) =
        (network_override(&plugin, &task).await?.addr, case.environment().networks().tasks().name);
    let leases = case.state_dir().join("leases").join(bridge);
    ensure!(leases.join(&address).exists(), "the address is noted elsewhere");
    plugin.shut_down().await?;
    // The address of another container, whose bundle is nowhere.
    let lost = address.rsplit_once('.').map(|(network, _)| leases.join(format!("{network}.100")));
    let lost = lost.context("no address of version 4")?;
    fs::write(&lost, "web-of-nobody\r\neth0")?;
    let mut next = case.plugin().await?;
    let _fingerprints = next.fingerprints().await?;
    until(LIMIT, "the address is given up", || !lost.exists()).await?;
    task.recover(&next).await?;
    ensure_eq!(fetch_hostname(&address, PORT)?, format!("web-{}", &task.alloc.id[..8]));
    task.end(&next).await?;
    case.nothing_left()?;
    next.shut_down().await
}
