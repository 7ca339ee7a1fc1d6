//! A directory of hosts.toml files, and pulls by them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use harness::config;
use harness::context::CaseContext;
use harness::fixture::image::Image;
use harness::fixture::{Form, HttpStub, RecordedRequest, Reply};
use harness::host::Plugin;
use serde_json::json;
use tonic::Status;

use crate::cases::support::{ensure_eq, refused};

/// A registry's name without an address: only hosts.toml leads anywhere.
pub const REGISTRY: &str = "registry.test";

/// A directory of hosts.toml files, and an image that no other case has.
pub struct HostsConfig<'s> {
    pub case: &'s CaseContext,
    pub repository: String,
}

impl<'s> HostsConfig<'s> {
    /// Pushes a new image to the test environment's registry; there are no hosts.toml files yet.
    pub fn new(case: &'s CaseContext) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let content = COUNT.fetch_add(1, Ordering::Relaxed).to_string();
        let image = case.environment().catalog().with(|tree| tree.file("own", 0o644, content.as_bytes()))?;
        Self::with(case, &image)
    }

    /// Pushes the given image under a name that no other case has.
    pub fn with(case: &'s CaseContext, image: &Image) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let repository = format!("own/image-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        image.push(case.environment().registry(), &repository, "v1", Form::OciIndex)?;
        Ok(Self { case, repository })
    }

    /// Returns the directory of hosts.toml files, the plugin option `registry_config_dir`.
    pub fn directory(&self) -> PathBuf {
        self.case.directory().join("certs.d")
    }

    /// Writes a registry's hosts.toml. Returns its path.
    pub fn write(&self, registry: &str, hosts: &str) -> Result<PathBuf> {
        let directory = self.directory().join(registry);
        std::fs::create_dir_all(&directory)?;
        let path = directory.join("hosts.toml");
        std::fs::write(&path, hosts)?;
        Ok(path)
    }

    /// Starts a plugin that uses the directory, without credentials.
    pub async fn plugin(&self) -> Result<Plugin> {
        self.plugin_with(json!(null), &[]).await
    }

    /// Starts a plugin that uses the directory, with the plugin option `auth` and with variables in its environment.
    pub async fn plugin_with(&self, auth: serde_json::Value, environment: &[(&str, &str)]) -> Result<Plugin> {
        let mut options = self.case.options();
        options["registry_config_dir"] = json!(self.directory());
        options["auth"] = auth;
        let mut launch = self.case.launch();
        launch.look_first_in(self.case.directory().join("bin"));
        let named = environment.iter().map(|(name, value)| (name.into(), value.into()));
        launch.environment.extend(named);
        self.case.plugin_as(&launch, &options).await
    }

    /// Returns a job that runs the image under this registry's name, and ends with code 3.
    pub fn job(&self, registry: &str) -> serde_json::Value {
        let image = format!("{registry}/{}:v1", self.repository);
        config! { image = image, command = "/bin/sh", args = ["-c", "exit 3"] }
    }

    /// Runs the image under this registry's name, and removes it again.
    pub async fn pulls(&self, plugin: &Plugin, registry: &str) -> Result<()> {
        self.runs(plugin, &self.job(registry)).await
    }

    /// Runs a job's task to its end, and removes its image from containerd.
    pub async fn runs(&self, plugin: &Plugin, job: &serde_json::Value) -> Result<()> {
        let task = self.case.run(plugin, job).await?;
        ensure_eq!(task.wait(plugin).await?.exit_code, 3);
        task.destroy(plugin).await?;
        let image = job["image"].as_str().unwrap_or_default();
        self.case.environment().containerd().ctr(&["images", "delete", "--sync", image]).map(drop)
    }

    /// Asserts that the start of a job is refused with all of `words` in the error and leaves nothing behind. Returns the
    /// refusal.
    pub async fn fails(&self, plugin: &Plugin, job: &serde_json::Value, words: &[&str]) -> Result<Status> {
        let task = self.case.prepare(plugin, job).await?;
        let status = refused(plugin.start_task(task.config.clone()).await, words)?;
        self.case.nothing_left()?;
        Ok(status)
    }

    /// Starts a host that records each request, and passes it on to the test environment's registry unless `decide`
    /// says otherwise.
    pub async fn host(
        &self,
        decide: impl Fn(&RecordedRequest) -> Reply + Send + Sync + 'static,
    ) -> Result<HttpStub> {
        HttpStub::before(self.case.environment().registry().address(), decide).await
    }
}
