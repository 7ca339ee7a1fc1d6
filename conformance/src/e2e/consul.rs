//! Jobs whose services are registered with Consul: their addresses, their checks, and a sidecar of its mesh.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use harness::agent::poll;
use harness::context::agent::{AgentContext, eventually};
use harness::fixture::Form;
use serde_json::{Value, json};

use super::support::{network_jobs, nomads_example, page_is};
use super::{Case, named_cases};

pub const CASES: &[(&str, Case)] = named_cases![
    a_script_check_looks_inside_the_task,
    a_service_is_at_the_tasks_own_address,
    a_sidecar_shares_its_services_network,
    the_mesh_example_of_nomad_runs_unedited_under_docker,
];

const REGISTERED: &str = include_str!("../../../examples/networks/registered.nomad.hcl");
const MESH: &str = include_str!("../../../examples/networks/mesh.nomad.hcl");
/// Stand-in for Envoy, with the arguments that Nomad gives to it. It looks at what an Envoy would start with, and serves
/// the page of its service, which it gets on the loopback interface.
const ENVOY: &str = r#"#!/bin/sh
set -eux
[ "$1" = -c ]
grep -qF alloc/tmp/consul_grpc.sock "$2"
test -S /alloc/tmp/consul_grpc.sock
service=$(sed -n 's/.*"id": "_nomad-task-[^"]*-\([0-9]*\)-sidecar-proxy".*/\1/p' "$2" | head -n 1)
until wget -qO /tmp/index.html "http://127.0.0.1:$service/"; do sleep 0.1; done
port=$(env | sed -n 's/^NOMAD_PORT_connect_proxy_[a-z_]*=//p')
trap 'exit 0' TERM
httpd -f -p "$port" -h /tmp & wait
"#;
/// The port of the host that Nomad's example names, which is that of its task as well.
const FIXED: u16 = 9002;
/// Time for another run on this machine to give the port back.
const FREED: Duration = Duration::from_secs(180);
/// Stand-in for the server of Nomad's example, and that for its client, which serves the address of the server.
const COUNTER: [&str; 2] = [
    "mkdir /p; echo one more > /p/index.html; trap 'exit 0' TERM; httpd -f -p 9001 -h /p & wait",
    "mkdir /p; echo $COUNTING_SERVICE_URL > /p/index.html; trap 'exit 0' TERM; httpd -f -p 9002 -h /p & wait",
];

/// Waits until a service has one instance that is as wanted, and returns it.
fn instance(context: &AgentContext, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    let consul = context.consul.as_ref().context("there is no Consul")?;
    let mut seen = Vec::new();
    eventually(&format!("{what} of {name}"), || {
        seen = consul.instances(name)?;
        Ok(seen.len() == 1 && is(&seen[0]))
    })
    .with_context(|| format!("Consul has {}", Value::from(seen.clone())))?;
    Ok(seen.remove(0))
}

/// Returns an instance's address and port in Consul.
fn place(instance: &Value) -> String {
    let service = &instance["Service"];
    format!("{}:{}", service["Address"].as_str().unwrap_or_default(), service["Port"])
}

fn check<'a>(instance: &'a Value, name: &str) -> Option<&'a Value> {
    instance["Checks"].as_array()?.iter().find(|check| check["Name"] == name)
}

fn has(instance: &Value, name: &str, status: &str) -> bool {
    check(instance, name).is_some_and(|check| check["Status"] == status)
}

fn a_script_check_looks_inside_the_task(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    let id = context.start("registered", REGISTERED, &[("image", &image)])?;
    context.running(&id, "server")?;
    let allocation = context.agent.allocation(&id)?;
    let well = |instance: &Value| has(instance, "page", "passing") && has(instance, "stock", "passing");
    let shop = instance(context, "shop", "healthy instance", well)?;
    ensure!(place(&shop) == allocation.port("http")?.address(), "it is at {}", place(&shop));
    page_is(&place(&shop), "hello from the shop")?;
    let output = check(&shop, "stock").and_then(|check| check["Output"].as_str()).unwrap_or_default();
    ensure!(output == "hello from the image\n", "the script said {output:?}");

    let inside = instance(context, "shop-inside", "instance", |_| true)?;
    ensure!(
        place(&inside) == format!("{}:8080", allocation.address()?),
        "inside it is at {}",
        place(&inside)
    );
    page_is(&place(&inside), "hello from the shop")?;

    let exec = |word: &str| {
        context.agent.tell(&[
            "alloc",
            "exec",
            "-i=false",
            "-t=false",
            "-task",
            "server",
            &id,
            word,
            "/local/sold-out",
        ])
    };
    exec("touch")?;
    instance(context, "shop", "failing check", |instance| has(instance, "stock", "critical"))?;
    exec("rm")?;
    instance(context, "shop", "recovery", well).map(drop)
}

fn a_service_is_at_the_tasks_own_address(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    context.start("own", network_jobs::OWN, &[("image", &image), ("provider", "consul")])?;
    let own = instance(context, "own", "healthy instance", |instance| has(instance, "port", "passing"))?;
    let (subnet, address) = (context.environment.networks().tasks(), own["Service"]["Address"].as_str());
    ensure!(address.is_some_and(|address| subnet.has(address)), "it is at {}", place(&own));
    page_is(&place(&own), "hello from the task")
}

fn a_sidecar_shares_its_services_network(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    let id = context.start("mesh", MESH, &[("image", &image)])?;
    context.running(&id, "connect-proxy-api").with_context(|| {
        let log = |stderr| context.log(&id, "connect-proxy-api", stderr).unwrap_or_default();
        format!("the sidecar said:\n{}", String::from_utf8_lossy(&log(true)))
    })?;
    let allocation = context.agent.allocation(&id)?;
    let well = |instance: &Value| has(instance, "Connect Sidecar Listening", "passing");
    let proxy = instance(context, "api-sidecar-proxy", "healthy instance", well)?;
    ensure!(proxy["Service"]["Kind"] == "connect-proxy", "it is a {}", proxy["Service"]["Kind"]);
    let port = allocation.port("connect-proxy-api")?;
    ensure!(place(&proxy) == port.address(), "the proxy is at {}, not {}", place(&proxy), port.address());
    page_is(&place(&proxy), "hello from the api")
}

/// Pushes the stand-ins for the images that Nomad's example names, and for Envoy in each version that Consul knows.
fn push_mesh(context: &AgentContext) -> Result<()> {
    let (catalog, registry) = (context.environment.catalog(), context.environment.registry());
    for (name, script) in ["counter-api", "counter-dashboard"].into_iter().zip(COUNTER) {
        let image = catalog.busybox(json!({"Cmd": ["/bin/sh", "-c", script]}))?;
        image.push(registry, &format!("hashicorpdev/{name}"), "v3", Form::Docker)?;
    }
    let mut envoy = catalog.with(|tree| tree.file("docker-entrypoint.sh", 0o755, ENVOY.as_bytes()))?;
    envoy.settings = json!({"Env": ["PATH=/bin"], "Entrypoint": ["/docker-entrypoint.sh"]});
    for version in context.consul.as_ref().context("there is no Consul")?.envoy_versions()? {
        envoy.push(registry, "envoyproxy/envoy", &format!("v{version}"), Form::OciIndex)?;
    }
    Ok(())
}

/// Waits until nobody else has the port that Nomad's example names: neither listens there, nor has it led into a network.
fn fixed_port_is_free() -> Result<()> {
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, FIXED));
    let free = poll("free port", FREED, || {
        let connection = TcpStream::connect_timeout(&here, Duration::from_secs(1));
        let is_refused = connection.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        Ok(is_refused && TcpListener::bind((Ipv4Addr::UNSPECIFIED, FIXED)).is_ok())
    });
    free.with_context(|| {
        format!(
            "port {FIXED} of this machine, which Nomad's example of a mesh names, is taken: by a service, by another run of \
             this case, or by packet filter rules that one has left. Free it, and run this case again"
        )
    })
}

fn the_mesh_example_of_nomad_runs_unedited_under_docker(context: &mut AgentContext) -> Result<()> {
    push_mesh(context)?;
    let job = nomads_example(context, &["-short", "-connect"])?;
    fixed_port_is_free()?;
    context.submit("mesh-example", &job, &[])?;
    let allocations = context.allocations("mesh-example", 2)?;
    let dashboard = "http://127.0.0.1:8080";
    for (service, page) in [("count-api", "one more"), ("count-dashboard", dashboard)] {
        let sidecar = format!("connect-proxy-{service}");
        for id in &allocations {
            let allocation = context.agent.allocation(id)?;
            if allocation.port(&sidecar).is_ok() {
                context.running(id, &sidecar).with_context(|| {
                    let said = context.log(id, &sidecar, true).unwrap_or_default();
                    format!("the sidecar said:\n{}", String::from_utf8_lossy(&said))
                })?;
            }
        }
        // Another case waits for its check, which Consul makes every ten seconds.
        let proxy = instance(context, &format!("{service}-sidecar-proxy"), "instance", |_| true)?;
        page_is(&place(&proxy), page)?;
    }
    for id in &allocations {
        let allocation = context.agent.allocation(id)?;
        if allocation.port("http").is_ok_and(|port| port.number == FIXED) {
            // At the node's own address another run on this machine could answer.
            return page_is(&format!("{}:{FIXED}", allocation.address()?), dashboard);
        }
    }
    bail!("no allocation has port {FIXED} of the node")
}
