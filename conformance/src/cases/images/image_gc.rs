//! Garbage collection of images and containers that aren't used any more: the plugin's option `gc`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::fixture::Form;
use harness::fixture::containerd::NAMESPACE;
use harness::leaks::inspect::{active_snapshots, listed};
use harness::task::LIMIT;
use serde_json::{Value, json};

use crate::cases::support::stoppable_task::end_and_destroy;
use crate::cases::support::{cases, ensure_eq, until};

cases!["image_gc":
    an_image_goes_once_nothing_has_used_it_for_a_while,
    images_of_others_stay_unless_configured_and_pinned_ones_always,
    a_plugin_that_comes_back_knows_what_is_in_use_and_what_is_not,
    no_image_is_taken_away_from_a_start,
    a_full_disk_takes_images_before_their_time,
    a_container_is_kept_where_the_operator_says_so,
    content_of_an_unfinished_pull_goes_with_its_lease,
];

/// Returns options with this `gc` block, and the defaults for orphans.
fn options(case: &CaseContext, gc: &Value) -> Value {
    let mut options = case.options();
    options["gc"] = gc.clone();
    options
}

/// Pushes an image with files of its own under the registry's `<repository>:v1`, and returns its name.
fn new_image(case: &CaseContext, repository: &str) -> Result<String> {
    let image = case.environment().catalog().large(1)?;
    image.push(case.environment().registry(), repository, "v1", Form::OciIndex)?;
    Ok(case.image(&format!("{repository}:v1")))
}

fn images(case: &CaseContext) -> Result<Vec<String>> {
    listed(case.environment().containerd(), &["images", "list", "--quiet"])
}

fn is_there(case: &CaseContext, name: &str) -> bool {
    images(case).is_ok_and(|images| images.iter().any(|image| image == name))
}

async fn is_removed(case: &CaseContext, name: &str) -> Result<()> {
    until(LIMIT, &format!("{name} is gone"), || !is_there(case, name)).await
}

/// Returns the line in which `ctr` shows an image, with its labels.
fn shown(case: &CaseContext, name: &str) -> Result<String> {
    let listing = case.environment().containerd().ctr(&["images", "list"])?;
    let line = listing.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    line.with_context(|| format!("{name} is not in {listing}"))
}

/// A job whose task ends once `tell_to_end` is called.
fn start_stoppable(image: &str) -> Value {
    config! { image = image, command = "/bin/sh", args = ["-c", "until test -e /local/end; do sleep 0.05; done; exit 11"] }
}

async fn an_image_goes_once_nothing_has_used_it_for_a_while(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin_as(&case.launch(), &options(case, &json!({"image_delay": "1s"}))).await?;
    let containerd = case.environment().containerd();
    let blobs = || listed(containerd, &["content", "ls", "-q"]);
    let name = new_image(case, "gone")?;
    let task = case.run(&plugin, &start_stoppable(&name)).await?;
    let while_there = blobs()?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(is_there(case, &name), "it went while it was in use");
    containerd.collect_garbage()?;
    ensure_eq!(task.exec(&plugin, "wc -c < /large").await?, (0, "1048576\n".to_owned()));
    end_and_destroy(&task, &plugin).await?;
    is_removed(case, &name).await?;
    let left = blobs()?;
    ensure!(while_there.iter().any(|blob| !left.contains(blob)), "its layers are still there");
    // The image is pulled again when it is asked for.
    let task = case.run(&plugin, &config! { image = name.as_str(), command = "true" }).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
    task.destroy(&plugin).await?;
    plugin.shut_down().await?;
    // With `image = false` the plugin leaves images alone.
    let never = options(case, &json!({"image": false, "image_delay": "1ms"}));
    let mut plugin = case.plugin_as(&case.launch(), &never).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(is_there(case, &name), "it went although gc.image is false");
    plugin.shut_down().await
}

async fn images_of_others_stay_unless_configured_and_pinned_ones_always(case: &CaseContext) -> Result<()> {
    let containerd = case.environment().containerd();
    let bring = |repository: &str| {
        let name = new_image(case, repository)?;
        containerd.ctr(&["images", "pull", "--plain-http", &name])?;
        anyhow::Ok(name)
    };
    let (theirs, pinned) = (bring("theirs")?, bring("pinned")?);
    containerd.ctr(&["images", "label", &pinned, "io.cri-containerd.pinned=pinned"])?;
    let ours = new_image(case, "ours")?;
    let soon = json!({"image_delay": "1ms"});
    let mut plugin = case.plugin_as(&case.launch(), &options(case, &soon)).await?;
    for name in [&theirs, &ours] {
        let task = case.run(&plugin, &config! { image = name.as_str(), command = "true" }).await?;
        ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
        task.destroy(&plugin).await?;
    }
    is_removed(case, &ours).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(is_there(case, &theirs) && is_there(case, &pinned), "another's image went");
    plugin.shut_down().await?;
    let all = json!({"image_delay": "1ms", "foreign_images": true});
    let mut plugin = case.plugin_as(&case.launch(), &options(case, &all)).await?;
    is_removed(case, &theirs).await?;
    ensure!(is_there(case, &pinned), "a pinned image went");
    plugin.shut_down().await?;
    containerd.ctr(&["images", "delete", "--sync", &pinned]).map(drop)
}

async fn a_plugin_that_comes_back_knows_what_is_in_use_and_what_is_not(case: &CaseContext) -> Result<()> {
    let (used, unused) = (new_image(case, "used")?, new_image(case, "unused")?);
    let later = options(case, &json!({"image_delay": "2s"}));
    let mut plugin = case.plugin_as(&case.launch(), &options(case, &json!({"image_delay": "800ms"}))).await?;
    let task = case.run(&plugin, &start_stoppable(&used)).await?;
    let mut plugin = case.next_plugin_with(&mut plugin, &later).await?;
    let other = case.run(&plugin, &config! { image = unused.as_str(), command = "true" }).await?;
    ensure_eq!(other.wait(&plugin).await?.exit_code, 0);
    other.destroy(&plugin).await?;
    let noted = || shown(case, &unused).is_ok_and(|line| line.contains("unused-since"));
    until(LIMIT, "it is noted as unused", noted).await?;
    let line = shown(case, &unused)?;
    plugin.kill().await?;
    // The time since when it is unused isn't counted anew.
    let patient = options(case, &json!({"image_delay": "1h"}));
    let mut plugin = case.plugin_as(&case.launch(), &patient).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure_eq!(shown(case, &unused)?, line);
    let mut plugin = case.next_plugin_with(&mut plugin, &later).await?;
    is_removed(case, &unused).await?;
    ensure!(is_there(case, &used), "it went while a task used it that is yet to be recovered");
    task.recover(&plugin).await?;
    end_and_destroy(&task, &plugin).await?;
    is_removed(case, &used).await?;
    plugin.shut_down().await
}

/// Starts tasks, several at once, from two images that share a layer while these images come and go.
async fn no_image_is_taken_away_from_a_start(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin_as(&case.launch(), &options(case, &json!({"image_delay": "1ms"}))).await?;
    let names = [new_image(case, "churn-a")?, new_image(case, "churn-b")?];
    let removals = || {
        let log = plugin.log().all();
        log.iter().filter(|line| line.contains("it has not been used for image_delay")).count()
    };
    let starts = async |name: &str, pause: Duration| {
        for round in 0..100 {
            let config = config! { image = name, command = "wc", args = ["-c", "/large"] };
            let task = case.run(&plugin, &config).await.with_context(|| format!("round {round}"))?;
            ensure!(task.stdout(&plugin).await?.starts_with("1048576 "), "a file of its image is not whole");
            task.destroy(&plugin).await?;
            if removals() >= 8 {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
        }
        anyhow::bail!("only {} images were removed meanwhile", removals())
    };
    let pause = Duration::from_millis;
    tokio::try_join!(
        starts(&names[0], pause(190)),
        starts(&names[0], pause(410)),
        starts(&names[1], pause(230)),
        starts(&names[1], pause(570)),
    )?;
    plugin.shut_down().await
}

async fn a_full_disk_takes_images_before_their_time(case: &CaseContext) -> Result<()> {
    let name = new_image(case, "high-water")?;
    let mut plugin = case.plugin().await?;
    let task = case.run(&plugin, &start_stoppable(&name)).await?;
    plugin.kill().await?;
    // More than 1 % of the disk is always in use, and hardly ever all of it.
    for (mark, is_used, goes_then) in [("100%", true, false), ("100%", false, false), ("1%", false, true)] {
        let gc = json!({"image_delay": "1h", "disk_high_water": mark});
        let mut plugin = case.plugin_as(&case.launch(), &options(case, &gc)).await?;
        if goes_then {
            is_removed(case, &name).await?;
        } else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            ensure!(is_there(case, &name), "it went although it is in use, or the disk has room");
        }
        if is_used {
            task.recover(&plugin).await?;
            end_and_destroy(&task, &plugin).await?;
        }
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn a_container_is_kept_where_the_operator_says_so(case: &CaseContext) -> Result<()> {
    let gc = json!({"container": false, "image_delay": "1ms"});
    let mut plugin = case.plugin_as(&case.launch(), &options(case, &gc)).await?;
    let containerd = case.environment().containerd();
    let name = new_image(case, "kept")?;
    let config = config! { image = name.as_str(), command = "/bin/sh", args = ["-c", "echo evidence > /root-file; exit 3"] };
    let task = case.run(&plugin, &config).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 3);
    task.destroy(&plugin).await?;
    let kept = listed(containerd, &["containers", "list", "--quiet"])?;
    ensure_eq!(kept.len(), 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    containerd.collect_garbage()?;
    ensure!(is_there(case, &name), "its image went");
    // The image's files are there to be looked at, and nothing else of it.
    let place = case.directory().join("look");
    std::fs::create_dir_all(&place)?;
    let mount = containerd.ctr(&["snapshots", "mounts", &place.display().to_string(), &kept[0]])?;
    let words: Vec<&str> = mount.split_whitespace().collect();
    harness::fixture::process::output(std::process::Command::new(words[0]).args(&words[1..]))?;
    let read = std::fs::read_to_string(place.join("root-file"));
    harness::fixture::process::output(std::process::Command::new("umount").arg(&place))?;
    ensure_eq!(read?, "evidence\n");
    let census = case.census();
    // A spare shim that is being launched looks like the rest of something.
    let is_known = |line: &String| line.ends_with(&kept[0]) || line.contains("spare-");
    ensure!(census.iter().all(is_known), "there is more: {census:?}");
    // A start that fails leaves no container in this case either.
    let config = config! { image = name.as_str(), command = "/nowhere" };
    let failed = case.prepare(&plugin, &config).await?;
    ensure!(plugin.start_task(failed.config.clone()).await.is_err(), "it started");
    ensure_eq!(listed(containerd, &["containers", "list", "--quiet"])?, kept);
    containerd.ctr(&["containers", "delete", &kept[0]])?;
    containerd.collect_garbage()?;
    ensure_eq!(active_snapshots(containerd, NAMESPACE)?, Vec::<String>::new());
    is_removed(case, &name).await?;
    plugin.shut_down().await
}

async fn content_of_an_unfinished_pull_goes_with_its_lease(case: &CaseContext) -> Result<()> {
    let containerd = case.environment().containerd();
    let lease = |id: &str, expires: &str| {
        containerd.ctr(&["leases", "create", "--id", id, "--expires", expires, "containerd-driver/pull=x"])
    };
    lease("left-behind", "1s")?;
    lease("under-way", "1h")?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut plugin = case.plugin().await?;
    let logged = || plugin.log().all().iter().any(|line| line.contains("left-behind"));
    until(LIMIT, "the lease is ended", logged).await?;
    let there = || listed(containerd, &["leases", "list", "--quiet"]);
    until(LIMIT, "the lease is gone", || there().is_ok_and(|leases| leases == ["under-way"])).await?;
    containerd.ctr(&["leases", "delete", "under-way"])?;
    plugin.shut_down().await
}
