//! Images whose documents are unusual, and which docker and containerd run all the same: indexes in indexes,
//! configurations under other types or without parts, images without layers, and layers that may not be pushed
//! everywhere.

use anyhow::{Context, Result};
use harness::config;
use harness::context::CaseContext;
use harness::fixture::image::Image;
use harness::fixture::layer::{Tree, sha256};
use harness::host::Plugin;
use serde_json::{Value, json};

use crate::cases::support::{cases, ensure_eq};

cases!["odd documents":
    an_index_in_an_index_is_followed,
    an_image_that_another_client_has_imported_may_be_an_index_in_an_index,
    a_configuration_may_be_of_a_type_that_says_nothing,
    an_indexs_word_about_the_platform_counts_more_than_the_configurations,
    an_image_without_layers_runs_what_is_mounted,
    a_layer_that_may_not_be_pushed_everywhere_is_taken_from_the_registry,
];

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Returns the descriptor of a document.
fn described(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": sha256(bytes), "size": bytes.len()})
}

fn on(mut entry: Value, architecture: &str) -> Value {
    entry["platform"] = json!({"os": "linux", "architecture": architecture});
    entry
}

fn index_of(entries: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
}

/// Pushes the documents of an image of busybox, one by one.
struct Pushing<'a> {
    case: &'a CaseContext,
    repository: &'static str,
    image: Image,
}

impl<'a> Pushing<'a> {
    fn new(case: &'a CaseContext, repository: &'static str) -> Result<Self> {
        let image = case.environment().catalog().busybox(json!({}))?;
        let registry = case.environment().registry();
        image.layers.iter().try_for_each(|layer| registry.put_blob(repository, &layer.blob))?;
        Ok(Self { case, repository, image })
    }

    fn config(&self) -> Value {
        let diff_ids: Vec<_> = self.image.layers.iter().map(|layer| &layer.diff_id).collect();
        let own = json!({"Env": ["PATH=/bin"], "Cmd": ["cat", "/app/greeting"]});
        let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
        json!({"os": "linux", "architecture": "amd64", "config": own, "rootfs": rootfs})
    }

    fn layers(&self, media_type: &str) -> Value {
        self.image.layers.iter().map(|layer| described(media_type, &layer.blob)).collect()
    }

    /// Pushes a manifest or an index; returns its descriptor.
    fn document(&self, media_type: &str, document: &Value) -> Result<Value> {
        let bytes = serde_json::to_vec(document)?;
        self.case.environment().registry().put_manifest(
            self.repository,
            &sha256(&bytes),
            media_type,
            &bytes,
        )?;
        Ok(described(media_type, &bytes))
    }

    fn manifest(&self, config: &Value, config_type: &str, layers: &Value) -> Result<Value> {
        let bytes = serde_json::to_vec(config)?;
        self.case.environment().registry().put_blob(self.repository, &bytes)?;
        let config = described(config_type, &bytes);
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.document(MANIFEST, &manifest)
    }

    /// Runs the image of a descriptor with no command of the job's.
    async fn runs(&self, plugin: &Plugin, pushed: &Value) -> Result<()> {
        let digest = pushed["digest"].as_str().context("no digest")?;
        let config = config! { image = self.case.image(&format!("{}@{digest}", self.repository)) };
        greets(self.case, plugin, &config).await
    }
}

/// Runs a task that prints the greeting of the image.
async fn greets(case: &CaseContext, plugin: &Plugin, config: &Value) -> Result<()> {
    let task = case.run(plugin, config).await?;
    ensure_eq!(task.stdout(plugin).await?, "hello from the image\n");
    task.destroy(plugin).await
}

async fn an_index_in_an_index_is_followed(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let pushing = Pushing::new(case, "nested")?;
    let manifest = pushing.manifest(&pushing.config(), CONFIG, &pushing.layers(LAYER))?;
    let elsewhere = pushing.document(INDEX, &index_of(&[on(manifest.clone(), "arm64")]))?;
    let inner = pushing.document(INDEX, &index_of(&[on(manifest, "amd64")]))?;
    let middle = pushing.document(INDEX, &index_of(&[inner]))?;
    let outer = index_of(&[elsewhere, middle]);
    let pushed = pushing.document(INDEX, &outer)?;
    let registry = case.environment().registry();
    registry.put_manifest("nested", "v1", INDEX, &serde_json::to_vec(&outer)?)?;
    let by_tag = config! { image = case.image("nested:v1") };
    greets(case, &plugin, &by_tag).await?;
    pushing.runs(&plugin, &pushed).await?;
    plugin.shut_down().await?;
    // Another plugin, which knows nothing of it yet, finds it without the registry.
    registry.stop();
    let mut another = case.plugin().await?;
    greets(case, &another, &by_tag).await?;
    another.shut_down().await
}

async fn an_image_that_another_client_has_imported_may_be_an_index_in_an_index(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let pushing = Pushing::new(case, "imported")?;
    let mut archive = Tree::new();
    let mut add = |media_type: &str, bytes: &[u8]| {
        let entry = described(media_type, bytes);
        let path = format!("blobs/{}", sha256(bytes).replace(':', "/"));
        archive.file(&path, 0o644, bytes).map(|()| entry)
    };
    for layer in &pushing.image.layers {
        add(LAYER, &layer.blob)?;
    }
    let config = add(CONFIG, &serde_json::to_vec(&pushing.config())?)?;
    let layers = pushing.layers(LAYER);
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
    let manifest = add(MANIFEST, &serde_json::to_vec(&manifest)?)?;
    let inner = add(INDEX, &serde_json::to_vec(&index_of(&[on(manifest, "amd64")]))?)?;
    let mut outer = add(INDEX, &serde_json::to_vec(&index_of(&[inner]))?)?;
    let name = "docker.io/library/imported:v1";
    outer["annotations"] = json!({"io.containerd.image.name": name});
    archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.file("index.json", 0o644, &serde_json::to_vec(&index_of(&[outer]))?)?;
    let path = case.directory().join("nested.tar");
    std::fs::write(&path, archive.into_tar()?)?;
    let containerd = case.environment().containerd();
    containerd.ctr(&["images", "import", "--no-unpack", &path.display().to_string()])?;
    greets(case, plugin, &config! { image = name, image_pull_policy = "never" }).await?;
    // The same archive, loaded by the driver itself.
    containerd.ctr(&["images", "delete", "--sync", name])?;
    let mut task = case.prepare(plugin, &config! { image = name, load = "nested.tar" }).await?;
    std::fs::copy(&path, task.alloc.task_path("local/nested.tar"))?;
    task.start(plugin).await?;
    ensure_eq!(task.stdout(plugin).await?, "hello from the image\n");
    task.destroy(plugin).await
}

async fn a_configuration_may_be_of_a_type_that_says_nothing(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let pushing = Pushing::new(case, "octets")?;
    for config_type in ["application/octet-stream", "application/json", "text/html"] {
        let pushed = pushing.manifest(&pushing.config(), config_type, &pushing.layers(LAYER))?;
        pushing.runs(plugin, &pushed).await.context(config_type)?;
    }
    Ok(())
}

async fn an_indexs_word_about_the_platform_counts_more_than_the_configurations(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let pushing = Pushing::new(case, "platforms")?;
    for architecture in [json!("arm64"), json!("x86_64"), json!(""), json!(null)] {
        let mut config = pushing.config();
        config["architecture"] = architecture.clone();
        let manifest = pushing.manifest(&config, CONFIG, &pushing.layers(LAYER))?;
        let pushed = pushing.document(INDEX, &index_of(&[on(manifest, "amd64")]))?;
        pushing.runs(plugin, &pushed).await.with_context(|| format!("architecture {architecture}"))?;
    }
    // Where nothing names a platform, it is this host's.
    let mut config = pushing.config();
    let nameless = config.as_object_mut().context("an object")?;
    nameless.retain(|field, _| field != "os" && field != "architecture");
    let pushed = pushing.manifest(&config, CONFIG, &pushing.layers(LAYER))?;
    pushing.runs(plugin, &pushed).await
}

async fn an_image_without_layers_runs_what_is_mounted(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let pushing = Pushing::new(case, "bare")?;
    for rootfs in [json!({"type": "layers"}), json!({"type": "layers", "diff_ids": null}), json!(null)] {
        for layers in [json!(null), json!([])] {
            let mut config = pushing.config();
            config["rootfs"] = rootfs.clone();
            let pushed = pushing.manifest(&config, CONFIG, &layers)?;
            let digest = pushed["digest"].as_str().context("no digest")?;
            let config = config! {
                image = case.image(&format!("bare@{digest}")), command = "/local/busybox", args = ["ls", "/"]
            };
            let mut task = case.prepare(plugin, &config).await?;
            std::fs::copy("/bin/busybox", task.alloc.task_path("local/busybox"))?;
            task.start(plugin).await.with_context(|| format!("rootfs {rootfs}, layers {layers}"))?;
            ensure_eq!(task.stdout(plugin).await?, "alloc\ndev\netc\nlocal\nproc\nsecrets\nsys\n");
            task.destroy(plugin).await?;
        }
    }
    Ok(())
}

async fn a_layer_that_may_not_be_pushed_everywhere_is_taken_from_the_registry(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let pushing = Pushing::new(case, "restricted")?;
    let layers = pushing.layers("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
    let pushed = pushing.manifest(&pushing.config(), CONFIG, &layers)?;
    pushing.runs(plugin, &pushed).await
}
