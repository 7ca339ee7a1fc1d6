//! A task with a web server, and requests to it, for cases about networks.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::{LIMIT, Task};
use nomad_proto::driver as pb;
use serde_json::Value;

/// Port of the web server.
pub const PORT: u16 = 8080;
/// Script of a web server that serves its hostname.
pub const SERVE: &str = "trap 'exit 3' TERM; httpd -p 8080 -h /etc; echo up; while :; do sleep 0.1; done";

/// Returns the job of a shell script with more options.
pub fn with(case: &CaseContext, script: &str, options: &[(&str, Value)]) -> Value {
    let mut config = case.shell(script);
    for (option, value) in options {
        config[*option] = value.clone();
    }
    config
}

/// Starts a web server in a network by these options.
pub async fn server(case: &CaseContext, plugin: &Plugin, options: &[(&str, Value)]) -> Result<Task> {
    let task = case.prepare(plugin, &with(case, SERVE, options)).await?;
    serving(task, plugin).await
}

/// Starts a prepared task of the script [`SERVE`], and waits until it serves.
pub async fn serving(mut task: Task, plugin: &Plugin) -> Result<Task> {
    task.start(plugin).await?;
    task.alloc.stdout.to_contain("up\n", LIMIT).await?;
    Ok(task)
}

/// Returns the network of a task as the plugin reports it to Nomad.
pub async fn network_override(plugin: &Plugin, task: &Task) -> Result<pb::NetworkOverride> {
    plugin.inspect_task(task.id()).await?.network_override.context("Nomad is told of no network")
}

/// Returns the hostname that the server at this address serves.
pub fn fetch_hostname(address: &str, port: u16) -> Result<String> {
    let address = SocketAddr::new(address.parse::<IpAddr>()?, port);
    let deadline = Instant::now() + LIMIT;
    let mut connection = loop {
        match TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
            Ok(connection) => break connection,
            Err(error) if Instant::now() > deadline => bail!("connect to {address}: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    connection.set_read_timeout(Some(LIMIT))?;
    connection.write_all(b"GET /hostname HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).with_context(|| format!("read from {address}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no answer in {answer:?}"))?;
    ensure!(head.contains(" 200 "), "{address} answered {head}");
    Ok(body.trim().to_owned())
}

/// Gives a task the ports that Nomad would have reserved for its group.
pub fn offer(task: &mut Task, ports: Vec<pb::PortMapping>) {
    if let Some(resources) = &mut task.config.resources {
        resources.ports = ports;
    }
}

/// Returns a reserved port: its label, the port on the host, the port in the task, and the host's address.
pub fn port(label: &str, value: u16, to: u16, host_ip: &str) -> pb::PortMapping {
    pb::PortMapping {
        label: label.to_owned(),
        value: value.into(),
        to: to.into(),
        host_ip: host_ip.to_owned(),
    }
}

/// Prepares another task of the same allocation.
pub async fn beside(case: &CaseContext, plugin: &Plugin, task: &Task, config: &Value) -> Result<Task> {
    let mut beside = case.prepare_named(plugin, "beside", config).await?;
    beside.alloc.read_logs()?;
    beside.config.alloc_id.clone_from(&task.config.alloc_id);
    Ok(beside)
}
