//! Measures pulls of an image that isn't present, including its unpacking: by the driver, by `ctr images pull`, and,
//! without the unpacking, by `skopeo copy`. Also counts the requests of each to the registry, and the plugin's peak
//! memory.

use std::fs;
use std::path::Path as FilePath;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::environment::TestEnvironment;
use harness::fixture::Form;
use harness::fixture::fault_proxy::FaultProxy;
use harness::fixture::image::Image;
use harness::fixture::images::noise;
use harness::fixture::process::output;
use harness::host::Plugin;
use harness::interrupt::interrupted;
use serde_json::{Value, json};

use super::table::{Call, Path, Probe};
use super::{Findings, Session};

/// Maximum number of rounds. Each takes seconds.
const ROUNDS: u32 = 5;
const LIMIT: Duration = Duration::from_secs(120);
const LARGE: Shape = Shape { name: "measure/large", layers: 12, files: 40, file_bytes: 1 << 20 };
const SMALL: Shape = Shape { name: "measure/small", layers: 40, files: 4, file_bytes: 16 << 10 };

/// An image: busybox, and layers of files that don't compress.
struct Shape {
    name: &'static str,
    layers: usize,
    files: usize,
    file_bytes: usize,
}

impl Shape {
    fn push(&self, environment: &TestEnvironment) -> Result<()> {
        let mut image = environment.catalog().with(|_| Ok(()))?;
        for layer in 0..self.layers {
            let made = environment.catalog().with(|tree| {
                (0..self.files).try_for_each(|file| {
                    tree.file(&format!("data-{layer}-{file}"), 0o644, &noise(self.file_bytes)?)
                })
            })?;
            image.layers.extend(made.layers.into_iter().skip(1));
        }
        Image::push(&image, environment.registry(), self.name, "v1", Form::Oci)
    }

    fn at(&self, registry: &str) -> String {
        format!("{registry}/{}:v1", self.name)
    }
}

/// The traffic with the registry during a pull of the large image.
struct Wire {
    by: Path,
    requests: usize,
    bytes: u64,
}

pub(crate) struct Pulled {
    wire: Vec<Wire>,
    /// Number of requests of a start whose image is present.
    warm_requests: usize,
    peak_kb: u64,
}

/// Pulls an image and removes it again. Returns the time of the pull.
type Pulling<'a> = &'a dyn Fn(&str) -> Result<Duration>;

pub(crate) fn measure(session: &Session<'_>, findings: &mut Findings) -> Result<()> {
    let environment = session.environment;
    [LARGE, SMALL].iter().try_for_each(|shape| shape.push(environment))?;
    let context = CaseContext::new(Arc::clone(environment), session.plugin, "pulls".to_owned());
    let mut plugin = session.runtime.block_on(context.plugin())?;
    let has_skopeo = Command::new("skopeo").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !has_skopeo {
        findings.not_measured.push("skopeo copy: the package skopeo is not installed".to_owned());
    }
    let by_plugin = |image: &str| session.runtime.block_on(pull(&context, &plugin, image));
    let (by_ctr, by_skopeo) =
        (|image: &str| ctr(environment, image), |image: &str| skopeo(environment, image));
    let mut paths: Vec<(Path, Pulling<'_>)> = vec![(Path::Plugin, &by_plugin), (Path::Ctr, &by_ctr)];
    if has_skopeo {
        paths.push((Path::Skopeo, &by_skopeo));
    }
    let mut probes = Vec::new();
    for (call, shape) in [(Call::PullLarge, &LARGE), (Call::PullSmall, &SMALL)] {
        for (path, run) in &paths {
            let image = shape.at(environment.registry().address());
            probes.push(Probe::new(call, *path, move || run(&image)));
        }
    }
    findings.table.interleave(&mut probes, session.rounds.min(ROUNDS))?;
    drop(probes);
    let proxy = FaultProxy::before(environment.registry().address())?;
    let mut wire = Vec::new();
    for (by, run) in &paths {
        proxy.clear_requests();
        run(&LARGE.at(proxy.address()))?;
        wire.push(Wire { by: *by, requests: proxy.requests().len(), bytes: proxy.sent_bytes("") });
    }
    let warm_requests = session.runtime.block_on(warm(&context, &plugin, &proxy))?;
    let peak_kb = peak_kb(plugin.pid())?;
    findings.pulled = Some(Pulled { wire, warm_requests, peak_kb });
    session.runtime.block_on(plugin.shut_down())?;
    context.close()
}

/// Starts a task, and returns the time until its event of the finished pull. The image is removed again.
async fn pull(context: &CaseContext, plugin: &Plugin, image: &str) -> Result<Duration> {
    let mut events = plugin.events().await?;
    let mut task = context.prepare(plugin, &config! { image = image, command = "true" }).await?;
    let begun = Instant::now();
    let pulled = async {
        while let Some(event) = events.message().await? {
            if event.message.starts_with("Pulled") {
                return Ok(begun.elapsed());
            }
        }
        bail!("the stream of events ended")
    };
    let both = async { tokio::try_join!(task.start(plugin), pulled) };
    let ((), took) = tokio::select! {
        both = tokio::time::timeout(LIMIT, both) => both.context("the pull takes too long")??,
        () = interrupted() => bail!("interrupted"),
    };
    task.wait(plugin).await?;
    task.destroy(plugin).await?;
    remove(context.environment(), image)?;
    Ok(took)
}

fn remove(environment: &TestEnvironment, image: &str) -> Result<()> {
    environment.containerd().ctr(&["images", "delete", "--sync", image]).map(drop)
}

fn ctr(environment: &TestEnvironment, image: &str) -> Result<Duration> {
    let begun = Instant::now();
    environment.containerd().ctr(&["images", "pull", "--plain-http", image])?;
    let took = begun.elapsed();
    remove(environment, image)?;
    Ok(took)
}

fn skopeo(environment: &TestEnvironment, image: &str) -> Result<Duration> {
    let directory = environment.directory().join("skopeo");
    let begun = Instant::now();
    let to = format!("dir:{}", directory.display());
    output(
        Command::new("skopeo")
            .args(["copy", "--quiet", "--src-tls-verify=false", "--insecure-policy"])
            .args([&format!("docker://{image}"), &to]),
    )?;
    let took = begun.elapsed();
    fs::remove_dir_all(directory)?;
    Ok(took)
}

/// Returns the number of requests of a start whose image an earlier start has pulled.
async fn warm(context: &CaseContext, plugin: &Plugin, proxy: &FaultProxy) -> Result<usize> {
    let image = SMALL.at(proxy.address());
    for _ in 0..2 {
        proxy.clear_requests();
        let task = context.run(plugin, &config! { image = image, command = "true" }).await?;
        task.wait(plugin).await?;
        task.destroy(plugin).await?;
    }
    remove(context.environment(), &image)?;
    Ok(proxy.requests().len())
}

fn peak_kb(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(FilePath::new("/proc").join(pid.to_string()).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kb = line.split_whitespace().next().context("an empty VmHWM")?.parse()?;
    ensure!(kb > 0, "the plugin has no memory");
    Ok(kb)
}

impl Pulled {
    pub(crate) fn print(&self) {
        println!("\npulls of the image of {} layers", LARGE.layers);
        for Wire { by, requests, bytes } in &self.wire {
            println!("  {:<28} {requests} requests, {bytes} bytes of bodies", by.name());
        }
        println!("  a start with the image here: {} requests", self.warm_requests);
        println!("  the plugin's memory at its most: {} kB", self.peak_kb);
    }

    pub(crate) fn json(&self) -> Value {
        let wire = |Wire { by, requests, bytes }: &Wire| json!({"by": by.name(), "requests": requests, "bytes": bytes});
        json!({
            "wire": self.wire.iter().map(wire).collect::<Vec<_>>(),
            "warm_requests": self.warm_requests,
            "peak_kb": self.peak_kb,
        })
    }
}
