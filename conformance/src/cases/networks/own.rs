//! Networks of tasks' own: the kinds of networks, who reaches whom in them, and what Nomad and the task are told of
//! them.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::fixture::process;
use harness::fixture::registry::free_port;
use harness::host::Plugin;
use harness::task::LIMIT;
use nomad_proto::driver as pb;
use serde_json::json;

use crate::cases::support::group_network::GroupNetwork;
use crate::cases::support::web_server::{
    PORT, SERVE, fetch_hostname, network_override, offer, port, server, serving, with,
};
use crate::cases::support::{cases, ensure_eq, refused};

cases!["networks":
    without_a_network_a_task_has_its_loopback_alone,
    a_task_on_the_bridge_is_reached_at_the_address_reported_to_nomad,
    a_published_port_is_reached_on_the_hosts_own_addresses,
    tasks_on_the_bridge_reach_each_other_under_addresses_of_their_own,
    a_task_gets_the_address_and_the_names_that_it_asks_for,
    a_network_is_described_by_a_file,
    conflicting_network_options_are_refused,
    any_user_listens_on_low_ports_and_pings_in_a_network_of_the_tasks_own,
];

fn is_open(address: &str, port: u16) -> bool {
    let address = SocketAddr::new(address.parse().expect("an address"), port);
    TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok()
}

/// Returns the host's first address of global scope.
fn address_of_host() -> Result<String> {
    let listed =
        process::output(Command::new("ip").args(["-4", "-o", "address", "show", "scope", "global"]))?;
    let word =
        listed.lines().find(|line| !line.contains(" cfm")).and_then(|line| line.split_whitespace().nth(3));
    Ok(word.and_then(|word| word.split('/').next()).context("the host has no address")?.to_owned())
}

async fn without_a_network_a_task_has_its_loopback_alone(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let script = "ls /sys/class/net; httpd -p 127.0.0.1:8080 -h /etc; httpd -p '[::1]:8081' -h /etc; \
                  wget -q -O - http://127.0.0.1:8080/hostname; wget -q -O - http://[::1]:8081/hostname";
    for mode in [json!(null), json!("none")] {
        let task = case.run(plugin, &with(case, script, &[("network_mode", mode)])).await?;
        let name = format!("web-{}", &task.alloc.id[..8]);
        ensure_eq!(task.stdout(plugin).await?, format!("lo\n{name}\n{name}\n"));
        ensure_eq!(plugin.inspect_task(task.id()).await?.network_override, None);
        task.destroy(plugin).await?;
    }
    Ok(())
}

async fn a_task_on_the_bridge_is_reached_at_the_address_reported_to_nomad(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = case.prepare(&plugin, &with(case, SERVE, &[("network_mode", json!("bridge"))])).await?;
    let answer = plugin.start_task(task.config.clone()).await?;
    let mut task = task;
    task.handle = answer.handle;
    let network = answer.network_override.context("StartTask tells of no network")?;
    let name = format!("web-{}", &task.alloc.id[..8]);
    task.alloc.stdout.to_contain("up\n", LIMIT).await?;
    ensure_eq!(fetch_hostname(&network.addr, PORT)?, name);
    ensure!(!network.auto_advertise, "the bridge's address is advertised to other nodes");
    // The task finds itself by its address, and execs are in the same network.
    let (code, output) = task
        .exec(&plugin, "wget -q -O - http://$(hostname):8080/hostname; grep -w $(hostname) /etc/hosts")
        .await?;
    ensure_eq!((code, output), (0, format!("{name}\n{} {name}\n", network.addr)));
    ensure_eq!(network_override(&plugin, &task).await?, network);
    // The agent keeps the network's override, and so does the driver.
    let mut next = case.next_plugin(&mut plugin).await?;
    task.recover(&next).await?;
    ensure_eq!(network_override(&next, &task).await?, network);
    ensure_eq!(fetch_hostname(&network.addr, PORT)?, name);
    task.stop(&next, LIMIT).await?;
    ensure_eq!(task.wait(&next).await?.exit_code, 3);
    task.destroy(&next).await?;
    case.nothing_left()?;
    next.shut_down().await
}

async fn a_published_port_is_reached_on_the_hosts_own_addresses(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let host = address_of_host()?;
    let options = [("network_mode", json!("bridge")), ("ports", json!(["near", "far", "all"]))];
    let mut task = case.prepare(plugin, &with(case, SERVE, &options)).await?;
    let [near, far, all, other] = [free_port()?, free_port()?, free_port()?, free_port()?];
    offer(
        &mut task,
        vec![
            port("near", near, PORT, "127.0.0.1"),
            port("far", far, PORT, &host),
            port("all", all, PORT, ""),
            port("other", other, PORT, "127.0.0.1"),
        ],
    );
    let task = serving(task, plugin).await?;
    let name = format!("web-{}", &task.alloc.id[..8]);
    for (address, port) in [("127.0.0.1", near), (&*host, far), ("127.0.0.1", all), (&*host, all)] {
        ensure_eq!(fetch_hostname(address, port)?, name);
    }
    ensure!(!is_open("127.0.0.1", other), "a port is published that the task doesn't list");
    ensure!(!is_open("127.0.0.1", far), "a port is published on another address");
    let network = network_override(plugin, &task).await?;
    let ports: std::collections::BTreeMap<_, _> = network.port_map.into_iter().collect();
    ensure_eq!(ports, ["all", "far", "near"].map(|label| (label.to_owned(), i32::from(PORT))).into());
    task.end(plugin).await?;
    case.nothing_left()?;
    ensure!(!is_open("127.0.0.1", near), "it is still published");
    Ok(())
}

async fn tasks_on_the_bridge_reach_each_other_under_addresses_of_their_own(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let bridge = [("network_mode", json!("bridge"))];
    let (one, other) = (server(case, plugin, &bridge).await?, server(case, plugin, &bridge).await?);
    let addresses =
        [network_override(plugin, &one).await?.addr, network_override(plugin, &other).await?.addr];
    ensure!(addresses[0] != addresses[1], "both have {}", addresses[0]);
    for (from, to, address) in [(&one, &other, &addresses[1]), (&other, &one, &addresses[0])] {
        let fetched = from.exec(plugin, &format!("wget -q -O - http://{address}:{PORT}/hostname")).await?;
        ensure_eq!(fetched, (0, format!("web-{}\n", &to.alloc.id[..8])));
    }
    // The end of one task takes nothing from the other.
    one.end(plugin).await?;
    ensure_eq!(fetch_hostname(&addresses[1], PORT)?, format!("web-{}", &other.alloc.id[..8]));
    other.end(plugin).await
}

async fn a_task_gets_the_address_and_the_names_that_it_asks_for(case: &CaseContext) -> Result<()> {
    let mut options = case.options();
    let ipv6 = case.environment().networks().tasks_ipv6();
    options["bridge_network_subnet_ipv6"] = json!(ipv6);
    let ipv6 = ipv6.replace("/64", "77");
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let subnet = case.environment().networks().tasks().subnet;
    let wanted = format!("{}77", subnet.split("0/").next().context("no subnet")?);
    let options = [
        ("network_mode", json!("bridge")),
        ("ipv4_address", json!(wanted)),
        ("ipv6_address", json!(ipv6)),
        ("advertise_ipv6_address", json!(true)),
        ("mac_address", json!("02:68:b3:29:da:98")),
        ("network_aliases", json!(["db", "www"])),
    ];
    let task = server(case, &plugin, &options).await?;
    let network = network_override(&plugin, &task).await?;
    ensure_eq!((&*network.addr, network.auto_advertise), (&*ipv6, true));
    let name = format!("web-{}", &task.alloc.id[..8]);
    ensure_eq!(fetch_hostname(&wanted, PORT)?, name);
    let script =
        "cat /sys/class/net/eth0/address; grep -w db /etc/hosts; wget -q -O - http://www:8080/hostname";
    let hosts = format!("{wanted} {name} db www\n{ipv6} {name} db www\n");
    ensure_eq!(task.exec(&plugin, script).await?, (0, format!("02:68:b3:29:da:98\n{hosts}{name}\n")));
    // No other task gets the address meanwhile.
    let second = case.prepare(&plugin, &with(case, "true", &options[..2])).await?;
    refused(plugin.start_task(second.config.clone()).await, &[&wanted])?;
    task.end(&plugin).await?;
    case.nothing_left()?;
    let outside = [("network_mode", json!("bridge")), ("ipv4_address", json!("192.0.2.7"))];
    let task = case.prepare(&plugin, &with(case, "true", &outside)).await?;
    refused(plugin.start_task(task.config.clone()).await, &["192.0.2.7"])?;
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn a_network_is_described_by_a_file(case: &CaseContext) -> Result<()> {
    let directory = case.directory().join("cni");
    std::fs::create_dir_all(&directory)?;
    let bridge = case.environment().networks().described();
    let described = json!({
        "cniVersion": "1.0.0",
        "name": "described",
        "plugins": [{
            "type": "bridge", "bridge": bridge.name, "isGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": case.state_dir().join("leases").display().to_string(),
                "ranges": [[{"subnet": bridge.subnet}]],
            },
            "dns": {"nameservers": ["192.0.2.53"], "search": ["plugins.example"]},
        }],
    });
    std::fs::write(directory.join("described.conflist"), serde_json::to_vec(&described)?)?;
    let mut options = case.options();
    options["cni_config_dir"] = json!(directory.display().to_string());
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let mode = ("network_mode", json!("cni/described"));
    let task = server(case, &plugin, std::slice::from_ref(&mode)).await?;
    let network = network_override(&plugin, &task).await?;
    ensure!(network.auto_advertise, "the address in a network of the operator's is not advertised");
    ensure_eq!(fetch_hostname(&network.addr, PORT)?, format!("web-{}", &task.alloc.id[..8]));
    let servers = "grep -E '^(nameserver|search)' /etc/resolv.conf";
    let of_plugins = "nameserver 192.0.2.53\nsearch plugins.example\n";
    ensure_eq!(task.exec(&plugin, servers).await?, (0, of_plugins.to_owned()));
    task.end(&plugin).await?;
    // The task's DNS servers take precedence over the network's, and the group's over all.
    let options = [mode.clone(), ("dns_servers", json!(["192.0.2.54"]))];
    let mut task = case.prepare(&plugin, &with(case, servers, &options)).await?;
    task.start(&plugin).await?;
    ensure_eq!(task.stdout(&plugin).await?, "nameserver 192.0.2.54\nsearch plugins.example\n");
    task.destroy(&plugin).await?;
    let mut task = case.prepare(&plugin, &with(case, "grep ^nameserver /etc/resolv.conf", &options)).await?;
    task.config.dns = Some(pb::DnsConfig { servers: vec!["192.0.2.55".to_owned()], ..Default::default() });
    task.start(&plugin).await?;
    ensure_eq!(task.stdout(&plugin).await?, "nameserver 192.0.2.55\n");
    task.destroy(&plugin).await?;
    // A network whose CNI plugins take no ports has none.
    let mut task = case.prepare(&plugin, &with(case, "true", &[mode, ("ports", json!(["http"]))])).await?;
    offer(&mut task, vec![port("http", free_port()?, PORT, "")]);
    refused(plugin.start_task(task.config.clone()).await, &["described", "portMappings"])?;
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn conflicting_network_options_are_refused(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let bridge = || ("network_mode", json!("bridge"));
    for (options, words) in [
        (vec![("network_mode", json!("nat"))], &["network_mode", "nat", "cni/<network>"][..]),
        (vec![bridge(), ("host_network", json!(true))], &["network_mode", "bridge", "host_network"]),
        (vec![("ports", json!(["http"]))], &["ports", "network_mode = \"bridge\""]),
        (vec![("network_mode", json!("task:db")), ("ports", json!(["http"]))], &["ports", "task:db"]),
        (
            vec![("network_mode", json!("host")), ("mac_address", json!("02:00:00:00:00:01"))],
            &["mac_address", "host"],
        ),
        (vec![bridge(), ("ports", json!(["http"]))], &["ports", "http", "https"]),
        (vec![bridge(), ("advertise_ipv6_address", json!(true))], &["advertise_ipv6_address", "IPv6"]),
        (vec![bridge(), ("bandwidth", json!({"egress_rate": "fast"}))], &["bandwidth", "fast"]),
        (vec![("dns_servers", json!(["dns.example"]))], &["dns_servers", "dns.example"]),
    ] {
        let mut task = case.prepare(&plugin, &with(case, "true", &options)).await?;
        offer(&mut task, vec![port("https", 14000, PORT, "")]);
        refused(plugin.start_task(task.config.clone()).await, words)?;
        case.nothing_left()?;
    }
    plugin.shut_down().await?;
    let mut options = case.options();
    options["allowed_modes"] = json!({"network": []});
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = case.prepare(&plugin, &with(case, "true", &[("network_mode", json!("host"))])).await?;
    refused(plugin.start_task(task.config.clone()).await, &["network_mode", "allowed_modes.network"])?;
    plugin.shut_down().await
}

async fn any_user_listens_on_low_ports_and_pings_in_a_network_of_the_tasks_own(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    const PORT_START: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    // Debian's busybox pings by raw sockets alone, so that the groups which may have others are looked at.
    let script = "id -u; httpd -p 127.0.0.1:80 -h /etc && wget -q -O - http://127.0.0.1/hostname; \
                  cat /proc/sys/net/ipv4/ping_group_range";
    for mode in [json!(null), json!("bridge")] {
        let mut task = case.prepare(plugin, &with(case, script, &[("network_mode", mode)])).await?;
        task.config.user = "1000".to_owned();
        task.start(plugin).await?;
        let name = format!("web-{}", &task.alloc.id[..8]);
        ensure_eq!(task.stdout(plugin).await?, format!("1000\n{name}\n0\t2147483647\n"));
        task.destroy(plugin).await?;
    }
    // The job's own word wins.
    let sysctl = ("sysctl", json!({"net.ipv4.ip_unprivileged_port_start": "1024"}));
    let mut task =
        case.prepare(plugin, &with(case, "httpd -p 127.0.0.1:80 -h /etc || exit 7", &[sysctl])).await?;
    task.config.user = "1000".to_owned();
    task.start(plugin).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 7);
    task.destroy(plugin).await?;
    let show = format!("cat {PORT_START}");
    // Nomad has made the group's network, and others of the group may have changed it.
    let group = GroupNetwork::make(&case.directory())?;
    let set = json!({"net.ipv4.ip_unprivileged_port_start": "80"});
    for (sysctl, start) in [(json!(null), "1024\n"), (set, "80\n"), (json!(null), "80\n")] {
        let mut task = case.prepare(plugin, &with(case, &show, &[("sysctl", sysctl)])).await?;
        task.config.network_isolation_spec = Some(group.spec());
        task.start(plugin).await?;
        ensure_eq!(task.stdout(plugin).await?, start);
        task.destroy(plugin).await?;
    }
    let of_host = std::fs::read_to_string(PORT_START)?;
    let task = case.run(plugin, &with(case, &show, &[("network_mode", json!("host"))])).await?;
    ensure_eq!(task.stdout(plugin).await?, of_host);
    task.destroy(plugin).await?;
    ensure_eq!(std::fs::read_to_string(PORT_START)?, of_host);
    case.nothing_left()?;
    drop(group);
    Ok(())
}
