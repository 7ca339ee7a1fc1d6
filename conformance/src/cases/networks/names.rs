//! Names of a task, and how it finds others: its hostname, `/etc/hosts`, `/etc/resolv.conf`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::fixture::image::Form;
use harness::fixture::process;
use harness::host::Plugin;
use harness::task::LIMIT;
use nomad_proto::driver as pb;
use serde_json::json;

use crate::cases::support::group_network::GroupNetwork;
use crate::cases::support::{cases, ensure_eq, refused};

cases!["names":
    a_task_finds_itself_by_its_name,
    the_files_are_the_tasks_to_change_and_go_with_it,
    the_files_can_not_grow_on_the_host,
    files_that_are_links_in_the_image_lead_to_the_tasks_own,
    the_hosts_servers_are_queried_unless_the_job_wants_the_images,
    the_servers_of_a_dns_block_win,
    in_the_hosts_network_the_hosts_names_count,
    a_name_or_host_that_can_not_be_is_refused,
    the_host_gateway_is_the_host_as_the_task_reaches_it,
];

async fn a_task_finds_itself_by_its_name(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let script = "hostname; cat /etc/hostname; echo $HOSTNAME; grep -c localhost /etc/hosts; grep -w $(hostname) /etc/hosts; \
                  grep ' db' /etc/hosts";
    let mut config = case.shell(script);
    config["extra_hosts"] = json!(["db:10.0.0.5", "db6:[fd00::5]"]);
    let mut task = case.prepare(plugin, &config).await?;
    // Any user may resolve names.
    task.config.user = "app".to_owned();
    task.start(plugin).await?;
    let name = format!("web-{}", &task.alloc.id[..8]);
    let rest = "10.0.0.5 db\nfd00::5 db6\n";
    ensure_eq!(task.stdout(plugin).await?, format!("{name}\n{name}\n{name}\n2\n127.0.1.1 {name}\n{rest}"));
    task.destroy(plugin).await?;
    config["hostname"] = json!("web-1.example");
    let mut task = case.prepare(plugin, &config).await?;
    // The network's own address as Nomad reports it takes precedence.
    task.config.network_isolation_spec = Some(pb::NetworkIsolationSpec {
        mode: pb::network_isolation_spec::NetworkIsolationMode::None.into(),
        hosts_config: Some(pb::HostsConfig { address: "10.9.9.9".to_owned(), ..Default::default() }),
        ..Default::default()
    });
    task.start(plugin).await?;
    let name = "web-1.example";
    ensure_eq!(task.stdout(plugin).await?, format!("{name}\n{name}\n{name}\n2\n10.9.9.9 {name}\n{rest}"));
    task.destroy(plugin).await
}

async fn the_files_are_the_tasks_to_change_and_go_with_it(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let script = "for f in hosts hostname resolv.conf; do ! grep -q mine /etc/$f && echo mine >>/etc/$f || exit 9; done";
    let mut task = case.prepare(plugin, &case.shell(script)).await?;
    for attempt in 1..=2 {
        task.start(plugin).await?;
        let exit = task.wait(plugin).await?;
        ensure!(exit.exit_code == 0, "attempt {attempt} ended with {exit:?}");
        task.destroy(plugin).await?;
        case.nothing_left()?;
        task.next_attempt()?;
    }
    for file in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
        let content = std::fs::read_to_string(file).unwrap_or_default();
        ensure!(!content.contains("mine"), "the host's {file} was written to");
    }
    Ok(())
}

/// Returns the disk usage below a directory in bytes, without that of images.
fn used_bytes(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let used = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(_) if entry.file_name() == "rootfs" => 0,
        Ok(metadata) if metadata.is_dir() => used_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.map(used).sum()
}

async fn the_files_can_not_grow_on_the_host(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    const MIB: u64 = 1 << 20;
    let script = "for f in hosts hostname resolv.conf; do dd if=/dev/zero of=/etc/$f bs=1M count=100 2>/dev/null && echo no limit; \
                  done; cat /etc/hosts /etc/hostname /etc/resolv.conf | wc -c; echo full; \
                  until [ -e /local/go ]; do sleep 0.05; done; : >/etc/hosts; : >/etc/hostname; \
                  echo 10.0.0.7 db >/etc/hosts && cat /etc/hosts; sleep 600";
    let task = case.run(plugin, &case.shell(script)).await?;
    task.alloc.stdout.to_contain("full\n", LIMIT).await?;
    let used = used_bytes(&case.state_dir().join("nomad"));
    ensure!(used < MIB, "the state directory has {used} bytes");
    let output = task.alloc.stdout.text();
    let bytes: u64 = output.lines().next().unwrap_or_default().parse().with_context(|| output.clone())?;
    ensure!((1..=MIB).contains(&bytes), "{output}");
    std::fs::write(task.alloc.task_path("local/go"), "")?;
    task.alloc.stdout.to_contain("full\n10.0.0.7 db\n", LIMIT).await?;
    // The file system is mounted nowhere on the host while the task runs.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let held = format!("{}/nomad", case.state_dir().display());
    let files: Vec<_> =
        mounts.lines().filter(|line| line.contains(&held) && !line.contains("/rootfs ")).collect();
    ensure!(files.is_empty(), "{files:?}");
    task.end(plugin).await
}

/// The links are those of images of distributions with systemd, and of malicious images.
async fn files_that_are_links_in_the_image_lead_to_the_tasks_own(case: &CaseContext) -> Result<()> {
    let outside = case.directory().join("outside");
    std::fs::create_dir_all(&outside)?;
    std::fs::write(outside.join("hostname"), "untouched\n")?;
    let image = case.environment().catalog().with(|tree| {
        tree.link("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")?;
        for name in ["hosts", "hostname"] {
            tree.link(&format!("etc/{name}"), &format!("../../../../..{}/{name}", outside.display()))?;
        }
        tree.link("sbin", &format!("../../../../..{}", outside.display()))
    })?;
    image.push(case.environment().registry(), "linked", "v1", Form::Oci)?;
    let mut plugin = case.plugin().await?;
    let script = "grep -q localhost /etc/hosts && cat /etc/hostname && test -f /run/systemd/resolve/stub-resolv.conf && \
                  echo 10.0.0.5 db >>/etc/hosts && cat /proc/1/comm";
    let mut config = case.shell(script);
    config["image"] = json!(case.image("linked:v1"));
    config["hostname"] = json!("web-1");
    config["init"] = json!(true);
    let task = case.run(&plugin, &config).await?;
    ensure_eq!(task.stdout(&plugin).await?, "web-1\ndocker-init\n");
    task.destroy(&plugin).await?;
    ensure_eq!(std::fs::read_dir(&outside)?.count(), 1);
    ensure_eq!(std::fs::read_to_string(outside.join("hostname"))?, "untouched\n");
    plugin.shut_down().await
}

async fn the_hosts_servers_are_queried_unless_the_job_wants_the_images(case: &CaseContext) -> Result<()> {
    let own = "nameserver 192.0.2.77\n";
    let image =
        case.environment().catalog().with(|tree| tree.file("etc/resolv.conf", 0o644, own.as_bytes()))?;
    image.push(case.environment().registry(), "resolving", "v1", Form::Oci)?;
    let hosts = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut plugin = case.plugin().await?;
    let mut config = case.shell("cat /etc/resolv.conf");
    config["image"] = json!(case.image("resolving:v1"));
    for (host_dns, content) in
        [(json!(null), hosts.as_str()), (json!(true), hosts.as_str()), (json!(false), own)]
    {
        config["host_dns"] = host_dns;
        let task = case.run(&plugin, &config).await?;
        let output = task.stdout(&plugin).await?;
        // Name servers on the host's loopback are replaced where others are known.
        if content == own || !content.contains("nameserver 127.") {
            ensure_eq!(output, content);
        } else {
            ensure!(output != own, "the image's own is there");
        }
        task.destroy(&plugin).await?;
    }
    plugin.shut_down().await
}

async fn the_servers_of_a_dns_block_win(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut config = case.shell("grep -E '^(nameserver|search|options)' /etc/resolv.conf");
    for host_dns in [true, false] {
        config["host_dns"] = json!(host_dns);
        let mut task = case.prepare(plugin, &config).await?;
        let list = |words: &str| words.split(' ').map(str::to_owned).collect();
        task.config.dns = Some(pb::DnsConfig {
            servers: list("192.0.2.1 192.0.2.2"),
            searches: list("a.example b.example"),
            options: list("ndots:2"),
        });
        task.start(plugin).await?;
        ensure_eq!(
            task.stdout(plugin).await?,
            "nameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch a.example b.example\noptions ndots:2\n"
        );
        task.destroy(plugin).await?;
    }
    Ok(())
}

async fn in_the_hosts_network_the_hosts_names_count(case: &CaseContext) -> Result<()> {
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned();
    let known = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let mut plugin = case.plugin().await?;
    let mut config = case.shell("hostname; cat /etc/hosts; sleep 600");
    config["host_network"] = json!(true);
    config["extra_hosts"] = json!(["db:10.0.0.5"]);
    let task = case.run(&plugin, &config).await?;
    task.alloc.stdout.to_contain("10.0.0.5 db\n", LIMIT).await?;
    let output = task.alloc.stdout.text();
    ensure!(output.starts_with(&format!("{own}\n{known}")), "it says {output}");
    ensure!(output.contains(&own), "it does not know its host: {output}");
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn a_name_or_host_that_can_not_be_is_refused(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    for (option, value, word) in [
        ("hostname", json!("web-.1"), "web-.1"),
        ("extra_hosts", json!(["db"]), "db"),
        ("extra_hosts", json!(["db:elsewhere"]), "elsewhere"),
    ] {
        let mut config = case.shell("true");
        config[option] = value;
        let task = case.prepare(plugin, &config).await?;
        refused(plugin.start_task(task.config.clone()).await, &[option, word])?;
        case.nothing_left()?;
    }
    Ok(())
}

async fn the_host_gateway_is_the_host_as_the_task_reaches_it(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let group = GroupNetwork::make(&case.directory())?;
    let subnet = case.environment().networks().tasks().subnet;
    let bridge = format!("{}1", subnet.split("0/").next().context("no subnet")?);
    let interface = case.environment().networks().tasks().name;
    let set_address = |action: &str| {
        let address = format!("{}/32", GroupNetwork::GATEWAY);
        process::output(Command::new("ip").args(["address", action, &address, "dev", &interface]))
    };
    for (mode, spec, address) in [
        (json!("bridge"), None, bridge.as_str()),
        (json!("none"), None, &bridge),
        (json!("host"), None, "127.0.0.1"),
        // The gateway of the group's network is another machine, until the host has its address.
        (json!(null), Some(group.spec()), &bridge),
        (json!(null), Some(group.spec()), GroupNetwork::GATEWAY),
    ] {
        let is_gateway = address == GroupNetwork::GATEWAY;
        if is_gateway {
            set_address("add")?;
        }
        let mut config = case.shell("grep -w node /etc/hosts");
        config["network_mode"] = mode;
        config["extra_hosts"] = json!(["node:host-gateway"]);
        let mut task = case.prepare(plugin, &config).await?;
        task.config.network_isolation_spec = spec;
        let started = task.start(plugin).await;
        if is_gateway {
            set_address("delete")?;
        }
        started?;
        ensure_eq!(task.stdout(plugin).await?, format!("{address} node\n"));
        task.destroy(plugin).await?;
    }
    case.nothing_left()?;
    drop(group);
    Ok(())
}
