//! A node changes from Nomad's own docker driver to this one and back, by the file `docker` in the agent's `plugin_dir`
//! and the options that only one of them has. Each case has a node of its own, with a dockerd.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, ensure};
use harness::agent::config::DEBUG;
use harness::agent::{Allocation, SOON, poll};
use harness::context::agent::{AgentContext, eventually};
use harness::context::{DockerCluster, DockerDriver, DockerNode, DockerNodeSetup};
use harness::environment::TestEnvironment;
use harness::leaks::inspect::find_processes;

use super::named_cases;
use super::support::page_is;

/// The binaries that a case starts a node with.
#[derive(Debug, Clone)]
pub struct Binaries {
    pub nomad: PathBuf,
    pub plugin: PathBuf,
    pub dockerd: PathBuf,
}

type Case = fn(&mut AgentContext, &Binaries) -> Result<()>;

pub const CASES: &[(&str, Case)] = named_cases![
    there_without_a_drain_and_back_and_there_with_one,
    there_after_dockerd_has_ended_its_containers,
    there_beside_a_container_that_dockerd_has_left,
    back_without_a_drain_is_made_good,
];

const JOB: &str = include_str!("../../../hack/jobs/docker/moved.nomad.hcl");
const NAME: &str = "moved";
/// Number of characters of a container's id that docker shows.
const SHOWN: usize = 12;

/// How a node begins: who answers as `docker`, and whether containers outlive its dockerd.
#[derive(Clone, Copy)]
struct Beginning {
    driver: DockerDriver,
    live_restore: bool,
}

const WITH_NOMADS: Beginning = Beginning { driver: DockerDriver::Nomads, live_restore: false };
const WITH_LIVE_RESTORE: Beginning = Beginning { driver: DockerDriver::Nomads, live_restore: true };
const WITH_OURS: Beginning = Beginning { driver: DockerDriver::Ours, live_restore: false };

fn there_without_a_drain_and_back_and_there_with_one(
    context: &mut AgentContext,
    binaries: &Binaries,
) -> Result<()> {
    on_a_node(context, binaries, WITH_NOMADS, |node, image| {
        node.agent.submit_as(NAME, JOB, &[("image", image)])?;
        let first = next_allocation(node, &[])?;
        serves(node, &first, 1)?;
        let container = the_only_container(node, DockerDriver::Nomads)?;

        node.change_driver(DockerDriver::Ours)?;
        is_refused(node, &first, &container)?;
        remove_container(node, &container)?;
        serves(node, &first, 2).context("the task that dockerd has ended")?;
        the_only_container(node, DockerDriver::Ours)?;
        has_none(node, DockerDriver::Nomads)?;
        let loggers = node.agent.end_docker_loggers()?;
        ensure!(loggers == 1, "{loggers} processes of docker's driver were left");

        drain(node, &first)?;
        is_clean(node, &[&first])?;
        node.change_driver(DockerDriver::Nomads)?;
        end_drain(node)?;
        let second = next_allocation(node, &[&first])?;
        serves(node, &second, 1).context("back")?;
        the_only_container(node, DockerDriver::Nomads)?;
        is_clean(node, &[&first])?;

        drain(node, &second)?;
        has_none(node, DockerDriver::Nomads)?;
        node.change_driver(DockerDriver::Ours)?;
        end_drain(node)?;
        let third = next_allocation(node, &[&first, &second])?;
        serves(node, &third, 1).context("there with a drain")?;
        the_only_container(node, DockerDriver::Ours)?;
        let task = node.agent.allocation(&third)?.task("main");
        ensure!(task.count("Driver Failure") == 0 && task.restarts == 0, "it was refused at first");

        node.agent.end_jobs(&[NAME.to_owned()])?;
        is_clean(node, &[&first, &third])?;
        node.assert_no_links()
    })
}

fn there_after_dockerd_has_ended_its_containers(
    context: &mut AgentContext,
    binaries: &Binaries,
) -> Result<()> {
    on_a_node(context, binaries, WITH_NOMADS, |node, image| {
        let (id, _) = runs_until_dockerd_stops(node, image)?;
        has_none(node, DockerDriver::Nomads).context("dockerd has left its container")?;
        node.change_driver(DockerDriver::Ours)?;
        serves(node, &id, 2)?;
        the_only_container(node, DockerDriver::Ours)?;
        let task = node.agent.allocation(&id)?.task("main");
        ensure!(task.count("Driver Failure") == 0, "it was refused at first");
        end(node, &id)?;
        node.assert_no_links()
    })
}

/// dockerd is gone, and its container runs on: it is ended by containerd's own tool.
fn there_beside_a_container_that_dockerd_has_left(
    context: &mut AgentContext,
    binaries: &Binaries,
) -> Result<()> {
    on_a_node(context, binaries, WITH_LIVE_RESTORE, |node, image| {
        let (id, container) = runs_until_dockerd_stops(node, image)?;
        node.change_driver(DockerDriver::Ours)?;
        is_refused(node, &id, &container)?;
        node.ctr_of_dockerd(&["tasks", "kill", "-s", "SIGKILL", &container])?;
        node.remove_dockerds_ports()?;
        serves(node, &id, 2).context("the task that was ended without dockerd")?;
        the_only_container(node, DockerDriver::Ours)?;
        // The shim stays until it is asked for the end.
        node.ctr_of_dockerd(&["tasks", "delete", &container])?;
        node.ctr_of_dockerd(&["containers", "delete", &container])?;
        end(node, &id)
    })
}

/// Has the job run under docker's driver, stops the agent and then dockerd, and returns the allocation and its container.
fn runs_until_dockerd_stops(node: &mut DockerNode<'_>, image: &str) -> Result<(String, String)> {
    node.agent.submit_as(NAME, JOB, &[("image", image)])?;
    let id = next_allocation(node, &[])?;
    serves(node, &id, 1)?;
    let container = the_only_container(node, DockerDriver::Nomads)?;
    node.stop_dockerd()?;
    Ok((id, container))
}

/// Ends the job, and asserts that nothing is left of it.
fn end(node: &DockerNode<'_>, id: &str) -> Result<()> {
    node.agent.end_docker_loggers()?;
    node.agent.end_jobs(&[NAME.to_owned()])?;
    is_clean(node, &[id])
}

/// Goes back as one must not, so that a task runs twice, and then out of it by the steps of `docs/from-docker.md`.
fn back_without_a_drain_is_made_good(context: &mut AgentContext, binaries: &Binaries) -> Result<()> {
    on_a_node(context, binaries, WITH_OURS, |node, image| {
        node.agent.submit_as(NAME, JOB, &[("image", image)])?;
        let first = next_allocation(node, &[])?;
        serves(node, &first, 1)?;
        let container = the_only_container(node, DockerDriver::Ours)?;

        node.change_driver(DockerDriver::Nomads)?;
        let is_second = |allocation: &Allocation| allocation.task("main").count("Started") == 2;
        node.agent.allocation_until(&first, "second start", SOON, is_second)?;
        the_only_container(node, DockerDriver::Nomads)?;
        ensure!(
            the_only_container(node, DockerDriver::Ours)? == container,
            "it was ended by docker's driver"
        );

        drain(node, &first)?;
        has_none(node, DockerDriver::Nomads)?;
        node.change_driver(DockerDriver::Ours)?;
        has_none(node, DockerDriver::Ours)?;
        is_clean(node, &[&first])?;
        node.assert_no_links()?;

        node.change_driver(DockerDriver::Nomads)?;
        end_drain(node)?;
        let second = next_allocation(node, &[&first])?;
        serves(node, &second, 1).context("back")?;
        the_only_container(node, DockerDriver::Nomads)?;
        node.agent.end_jobs(&[NAME.to_owned()])?;
        has_none(node, DockerDriver::Nomads)
    })
}

/// Plays a case on a node of its own, and asserts that nothing is left of it.
fn on_a_node(
    context: &AgentContext,
    binaries: &Binaries,
    beginning: Beginning,
    case: impl FnOnce(&mut DockerNode<'_>, &str) -> Result<()>,
) -> Result<()> {
    let environment = TestEnvironment::start_of(context.environment.containerd().programs().clone())?;
    let played = play(&environment, binaries, beginning, case);
    let directory = environment.directory().to_owned();
    drop(environment);
    played?;
    ensure!(!directory.exists(), "{} is still there", directory.display());
    eventually("end of the processes", || Ok(find_processes(&directory).is_empty()))
}

fn play(
    environment: &TestEnvironment,
    binaries: &Binaries,
    beginning: Beginning,
    case: impl FnOnce(&mut DockerNode<'_>, &str) -> Result<()>,
) -> Result<()> {
    let cluster = DockerCluster::start(environment, &binaries.nomad)?;
    let mut node = cluster.start_node(DockerNodeSetup {
        number: 1,
        name: "changing",
        plugin: &binaries.plugin,
        dockerd: Some(&binaries.dockerd),
        live_restore: beginning.live_restore,
        driver: beginning.driver,
        bridge: environment.networks().docker(),
        options: "",
        // Containers that Nomad doesn't know are soon removed.
        dangling_containers: "period = \"1s\"\n        creation_grace = \"3s\"",
        log_level: DEBUG,
        programs: None,
        adjust: &|_| {},
    })?;
    let image = format!("{}/busybox:latest", cluster.registry().address());
    case(&mut node, &image).map_err(|error| anyhow!("{}\n{error:#}", node.last_words()))?;
    node.stop()
}

/// Waits until the job has an allocation that isn't among those known, and returns it.
fn next_allocation(node: &DockerNode<'_>, known: &[&str]) -> Result<String> {
    let all = node.agent.placed(NAME, known.len() + 1)?;
    all.into_iter().find(|id| !known.contains(&&**id)).context("no further allocation")
}

/// Waits until the allocation's task runs, and the start of this number serves its page.
fn serves(node: &DockerNode<'_>, id: &str, start: usize) -> Result<()> {
    node.agent.running(id, "main")?;
    page_is(&node.agent.allocation(id)?.port("http")?.address(), &start.to_string())
}

fn starts(node: &DockerNode<'_>, id: &str) -> Result<usize> {
    let file = node.agent.allocation_directory(id).join("alloc/data/starts");
    Ok(fs::read_to_string(file)?.lines().count())
}

fn the_only_container(node: &DockerNode<'_>, driver: DockerDriver) -> Result<String> {
    let containers = node.containers_of(driver)?;
    ensure!(containers.len() == 1, "{driver:?} has the containers {containers:?}");
    Ok(containers.concat())
}

/// Waits until a driver has no container. A plugin that stood still gives the agent all of its grace again.
fn has_none(node: &DockerNode<'_>, driver: DockerDriver) -> Result<()> {
    let is_so = || Ok(node.containers_of(driver)?.is_empty());
    poll(&format!("end of the containers of {driver:?}"), 4 * SOON, is_so)
}

fn remove_container(node: &DockerNode<'_>, container: &str) -> Result<()> {
    node.dockerd.as_ref().context("no dockerd runs")?.remove_container(container)
}

/// Asserts that nothing is left of this driver's tasks `main` of these allocations.
fn is_clean(node: &DockerNode<'_>, allocations: &[&str]) -> Result<()> {
    let tasks: Vec<_> = allocations.iter().map(|id| format!("{id}.main")).collect();
    node.assert_clean(&tasks)
}

/// Asserts that a task which runs as a container of dockerd's is neither taken over nor started a second time, and that
/// both are told with the container's name.
fn is_refused(node: &DockerNode<'_>, id: &str, container: &str) -> Result<()> {
    let shown = &container[..SHOWN];
    let tried = |times: usize| {
        move |allocation: &Allocation| allocation.task("main").count("Driver Failure") >= times
    };
    let allocation = node.agent.allocation_until(id, "refusal", SOON, tried(1))?;
    let task = allocation.task("main");
    ensure!(task.count("Failed Restoring Task") == 1, "it was taken over: {}", allocation.summary());
    let said = &task.event("Driver Failure")?.display_message;
    let by_ctr = format!("\"ctr -n moby tasks kill -s SIGKILL {container}\"");
    for words in [format!("main-{id} ({shown})"), format!("\"docker rm -f {shown}\""), by_ctr] {
        ensure!(said.contains(&words), "the error doesn't have {words:?}: {said}");
    }
    let words = format!("Nomad's own docker driver, for dockerd's container {shown}");
    eventually("refusal in the agent's log", || Ok(log_of(node)?.contains(&words)))?;
    node.agent.allocation_until(id, "another try", SOON, tried(2))?;
    has_none(node, DockerDriver::Ours)?;
    ensure!(starts(node, id)? == 1, "it was started beside itself");
    ensure!(the_only_container(node, DockerDriver::Nomads)? == container, "dockerd's container is gone");
    page_is(&node.agent.allocation(id)?.port("http")?.address(), "1")
}

fn log_of(node: &DockerNode<'_>) -> Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(node.agent.log())?).into_owned())
}

/// Drains the node, and waits until this allocation has ended.
fn drain(node: &DockerNode<'_>, id: &str) -> Result<()> {
    // By force: the only node has no other one to wait for.
    node.agent.tell(&["node", "drain", "-enable", "-force", "-detach", "-yes", node.agent.node()])?;
    node.agent.allocation_until(id, "drained allocation", SOON, Allocation::is_terminal).map(drop)
}

fn end_drain(node: &DockerNode<'_>) -> Result<()> {
    node.agent.tell(&["node", "drain", "-disable", "-yes", node.agent.node()]).map(drop)
}
