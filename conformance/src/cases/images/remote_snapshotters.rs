//! Remote snapshotters: they have layers that are never fetched.

use anyhow::{Context, Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::fixture::remote_snapshotter::{BEHIND, NAME, asking};
use harness::fixture::{Containerd, Form};
use harness::leaks::inspect::listed;
use serde_json::{Value, json};

use crate::cases::support::{cases, ensure_eq};

cases!["remote_snapshotters":
    layers_that_a_remote_snapshotter_has_are_not_fetched,
];

/// Returns options for another containerd and a snapshotter of it.
fn options(case: &CaseContext, containerd: &Containerd, snapshotter: &str) -> Value {
    let mut options = case.options();
    options["containerd_socket"] = json!(containerd.socket().display().to_string());
    options["snapshotter"] = json!(snapshotter);
    options
}

async fn layers_that_a_remote_snapshotter_has_are_not_fetched(case: &CaseContext) -> Result<()> {
    let catalog = case.environment().catalog();
    let saying = |text: &str| catalog.with(|tree| tree.file("said", 0o644, text.as_bytes()));
    let (known, new) = (saying("known")?, saying("new")?);
    for (image, repository) in [(&known, "lazy/known"), (&new, "lazy/new")] {
        image.push(case.environment().registry(), repository, "v1", Form::Oci)?;
    }
    let remote = Containerd::start_in(&case.directory().join("far"), case.programs().clone())?;
    let near = asking(&case.directory().join("near"), &remote).await?;
    let runs = async |containerd: &Containerd, snapshotter: &str, repository: &str, text: &str| {
        let mut plugin = case.plugin_as(&case.launch(), &options(case, containerd, snapshotter)).await?;
        let image = case.image(&format!("{repository}:v1"));
        let config = config! { image = image, command = "/bin/cat", args = ["/said"] };
        let task = case.run(&plugin, &config).await?;
        ensure_eq!(task.stdout(&plugin).await?, text);
        task.destroy(&plugin).await?;
        plugin.shut_down().await
    };
    let blobs = || listed(&near, &["content", "ls", "-q"]);
    // The remote snapshotter has the image once that was unpacked there.
    runs(&remote, BEHIND, "lazy/known", "known").await?;
    for round in 0..2 {
        runs(&near, NAME, "lazy/known", "known").await.with_context(|| format!("round {round}"))?;
        let stored = blobs()?;
        let fetched = known.layers.iter().filter(|layer| stored.contains(&layer.digest)).count();
        ensure_eq!(fetched, 0);
        near.collect_garbage()?;
    }
    // The remote snapshotter has only the lower layer of the other image.
    runs(&near, NAME, "lazy/new", "new").await?;
    let stored = blobs()?;
    let is_stored = |place: usize| stored.contains(&new.layers[place].digest);
    ensure_eq!((is_stored(0), is_stored(1)), (false, true));
    let snapshots = listed(&near, &["snapshots", "--snapshotter", NAME, "list"])?;
    let names = snapshots.iter().filter_map(|line| line.split_whitespace().next());
    let infos: Vec<String> = names
        .filter(|name| name.starts_with("sha256:"))
        .map(|name| near.ctr(&["snapshots", "--snapshotter", NAME, "info", name]))
        .collect::<Result<_>>()?;
    let words = [
        ("cri.layer-digest", new.layers[1].digest.as_str()),
        ("cri.image-layers", new.layers[1].digest.as_str()),
        ("cri.image-ref", &*case.image("lazy/new:v1")),
        ("cri.manifest-digest", "sha256:"),
    ];
    let is_told = |info: &String| {
        words
            .iter()
            .all(|(key, value)| info.contains(&format!("\"containerd.io/snapshot/{key}\": \"{value}")))
    };
    ensure!(infos.iter().any(is_told), "no snapshot bears {words:?}: {infos:?}");
    Ok(())
}
