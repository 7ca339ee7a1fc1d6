//! Garbage collection of images and containers that aren't used any more: the plugin's option `gc`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::config;
use harness::context::Scene;
use harness::fixture::Form;
use harness::leaks::inspect::{active_snapshots, listed};
use harness::task::LIMIT;
use serde_json::{Value, json};

use crate::cases::support::stoppable_task::ends_as_told;
use crate::cases::support::{cases, same, until};

cases!["image_gc":
    an_image_goes_once_nothing_has_used_it_for_a_while,
    what_others_brought_in_stays_unless_told_and_what_is_pinned_stays,
    a_plugin_that_comes_back_knows_what_is_in_use_and_what_is_not,
    no_image_is_taken_away_from_a_start,
    a_full_disk_takes_images_before_their_time,
    a_container_is_kept_where_the_operator_says_so,
    what_an_unfinished_pull_has_left_goes_with_its_lease,
];

/// Returns options with this `gc` block, and the defaults for orphans.
fn options(scene: &Scene, gc: &Value) -> Value {
    let mut options = scene.options();
    options["gc"] = gc.clone();
    options
}

/// Pushes an image with files of its own under the registry's `<repository>:v1`, and returns its name.
fn new_image(scene: &Scene, repository: &str) -> Result<String> {
    let image = scene.world().catalog().large(1)?;
    image.push(scene.world().registry(), repository, "v1", Form::OciIndex)?;
    Ok(scene.image(&format!("{repository}:v1")))
}

fn images(scene: &Scene) -> Result<Vec<String>> {
    listed(scene.world().containerd(), &["images", "list", "--quiet"])
}

fn is_there(scene: &Scene, name: &str) -> bool {
    images(scene).is_ok_and(|images| images.iter().any(|image| image == name))
}

async fn goes(scene: &Scene, name: &str) -> Result<()> {
    until(LIMIT, &format!("{name} is gone"), || !is_there(scene, name)).await
}

/// Returns the line in which `ctr` shows an image, with its labels.
fn shown(scene: &Scene, name: &str) -> Result<String> {
    let listing = scene.world().containerd().ctr(&["images", "list"])?;
    let line = listing.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    line.with_context(|| format!("{name} is not in {listing}"))
}

/// A job whose task ends once `tell_to_end` is called.
fn obedient(image: &str) -> Value {
    config! { image = image, command = "/bin/sh", args = ["-c", "until test -e /local/end; do sleep 0.05; done; exit 11"] }
}

async fn an_image_goes_once_nothing_has_used_it_for_a_while(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin_as(&scene.launch(), &options(scene, &json!({"image_delay": "1s"}))).await?;
    let containerd = scene.world().containerd();
    let blobs = || listed(containerd, &["content", "ls", "-q"]);
    let name = new_image(scene, "gone")?;
    let task = scene.run(&plugin, &obedient(&name)).await?;
    let while_there = blobs()?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(is_there(scene, &name), "it went while it was in use");
    containerd.collect_garbage()?;
    same!(task.exec(&plugin, "wc -c < /large").await?, (0, "1048576\n".to_owned()));
    ends_as_told(&task, &plugin).await?;
    goes(scene, &name).await?;
    let left = blobs()?;
    ensure!(while_there.iter().any(|blob| !left.contains(blob)), "its layers are still there");
    // The image is pulled again when it is asked for.
    let task = scene.run(&plugin, &config! { image = name.as_str(), command = "true" }).await?;
    same!(task.wait(&plugin).await?.exit_code, 0);
    task.destroy(&plugin).await?;
    plugin.shut_down().await?;
    // With `image = false` the plugin leaves images alone.
    let never = options(scene, &json!({"image": false, "image_delay": "1ms"}));
    let mut plugin = scene.plugin_as(&scene.launch(), &never).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(is_there(scene, &name), "it went although gc.image is false");
    plugin.shut_down().await
}

async fn what_others_brought_in_stays_unless_told_and_what_is_pinned_stays(scene: &Scene) -> Result<()> {
    let containerd = scene.world().containerd();
    let bring = |repository: &str| {
        let name = new_image(scene, repository)?;
        containerd.ctr(&["images", "pull", "--plain-http", &name])?;
        anyhow::Ok(name)
    };
    let (theirs, pinned) = (bring("theirs")?, bring("pinned")?);
    containerd.ctr(&["images", "label", &pinned, "io.cri-containerd.pinned=pinned"])?;
    let ours = new_image(scene, "ours")?;
    let soon = json!({"image_delay": "1ms"});
    let mut plugin = scene.plugin_as(&scene.launch(), &options(scene, &soon)).await?;
    for name in [&theirs, &ours] {
        let task = scene.run(&plugin, &config! { image = name.as_str(), command = "true" }).await?;
        same!(task.wait(&plugin).await?.exit_code, 0);
        task.destroy(&plugin).await?;
    }
    goes(scene, &ours).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(is_there(scene, &theirs) && is_there(scene, &pinned), "another's image went");
    plugin.shut_down().await?;
    let all = json!({"image_delay": "1ms", "foreign_images": true});
    let mut plugin = scene.plugin_as(&scene.launch(), &options(scene, &all)).await?;
    goes(scene, &theirs).await?;
    ensure!(is_there(scene, &pinned), "a pinned image went");
    plugin.shut_down().await?;
    containerd.ctr(&["images", "delete", "--sync", &pinned]).map(drop)
}

async fn a_plugin_that_comes_back_knows_what_is_in_use_and_what_is_not(scene: &Scene) -> Result<()> {
    let (used, unused) = (new_image(scene, "used")?, new_image(scene, "unused")?);
    let later = options(scene, &json!({"image_delay": "2s"}));
    let mut plugin =
        scene.plugin_as(&scene.launch(), &options(scene, &json!({"image_delay": "800ms"}))).await?;
    let task = scene.run(&plugin, &obedient(&used)).await?;
    let mut plugin = scene.next_plugin_with(&mut plugin, &later).await?;
    let other = scene.run(&plugin, &config! { image = unused.as_str(), command = "true" }).await?;
    same!(other.wait(&plugin).await?.exit_code, 0);
    other.destroy(&plugin).await?;
    let noted = || shown(scene, &unused).is_ok_and(|line| line.contains("unused-since"));
    until(LIMIT, "it is noted as unused", noted).await?;
    let line = shown(scene, &unused)?;
    plugin.kill().await?;
    // The time since when it is unused isn't counted anew.
    let patient = options(scene, &json!({"image_delay": "1h"}));
    let mut plugin = scene.plugin_as(&scene.launch(), &patient).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    same!(shown(scene, &unused)?, line);
    let mut plugin = scene.next_plugin_with(&mut plugin, &later).await?;
    goes(scene, &unused).await?;
    ensure!(is_there(scene, &used), "it went while a task used it that is yet to be recovered");
    task.recover(&plugin).await?;
    ends_as_told(&task, &plugin).await?;
    goes(scene, &used).await?;
    plugin.shut_down().await
}

/// Starts tasks, several at once, from two images that share a layer while these images come and go.
async fn no_image_is_taken_away_from_a_start(scene: &Scene) -> Result<()> {
    let mut plugin =
        scene.plugin_as(&scene.launch(), &options(scene, &json!({"image_delay": "1ms"}))).await?;
    let names = [new_image(scene, "churn-a")?, new_image(scene, "churn-b")?];
    let removals = || {
        let log = plugin.log().all();
        log.iter().filter(|line| line.contains("it has not been used for image_delay")).count()
    };
    let starts = async |name: &str, pause: Duration| {
        for round in 0..100 {
            let config = config! { image = name, command = "wc", args = ["-c", "/large"] };
            let task = scene.run(&plugin, &config).await.with_context(|| format!("round {round}"))?;
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

async fn a_full_disk_takes_images_before_their_time(scene: &Scene) -> Result<()> {
    let name = new_image(scene, "high-water")?;
    let mut plugin = scene.plugin().await?;
    let task = scene.run(&plugin, &obedient(&name)).await?;
    plugin.kill().await?;
    // More than 1 % of the disk is always in use.
    for (mark, goes_then) in [("100%", false), ("1%", true)] {
        let gc = json!({"image_delay": "1h", "disk_high_water": mark});
        let mut plugin = scene.plugin_as(&scene.launch(), &options(scene, &gc)).await?;
        if goes_then {
            goes(scene, &name).await?;
        } else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            ensure!(is_there(scene, &name), "it went although it is in use");
            task.recover(&plugin).await?;
            ends_as_told(&task, &plugin).await?;
        }
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn a_container_is_kept_where_the_operator_says_so(scene: &Scene) -> Result<()> {
    let gc = json!({"container": false, "image_delay": "1ms"});
    let mut plugin = scene.plugin_as(&scene.launch(), &options(scene, &gc)).await?;
    let containerd = scene.world().containerd();
    let name = new_image(scene, "kept")?;
    let config = config! { image = name.as_str(), command = "/bin/sh", args = ["-c", "echo evidence > /root-file; exit 3"] };
    let task = scene.run(&plugin, &config).await?;
    same!(task.wait(&plugin).await?.exit_code, 3);
    task.destroy(&plugin).await?;
    let kept = listed(containerd, &["containers", "list", "--quiet"])?;
    same!(kept.len(), 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    containerd.collect_garbage()?;
    ensure!(is_there(scene, &name), "its image went");
    // The image's files are there to be looked at, and nothing else of it.
    let place = scene.directory().join("look");
    std::fs::create_dir_all(&place)?;
    let mount = containerd.ctr(&["snapshots", "mounts", &place.display().to_string(), &kept[0]])?;
    let words: Vec<&str> = mount.split_whitespace().collect();
    harness::fixture::process::output(std::process::Command::new(words[0]).args(&words[1..]))?;
    let read = std::fs::read_to_string(place.join("root-file"));
    harness::fixture::process::output(std::process::Command::new("umount").arg(&place))?;
    same!(read?, "evidence\n");
    let census = scene.census();
    ensure!(census.iter().all(|line| line.ends_with(&kept[0])), "there is more: {census:?}");
    // A start that fails leaves no container in this case either.
    let config = config! { image = name.as_str(), command = "/nowhere" };
    let failed = scene.prepare(&plugin, &config).await?;
    ensure!(plugin.start_task(failed.config.clone()).await.is_err(), "it started");
    same!(listed(containerd, &["containers", "list", "--quiet"])?, kept);
    containerd.ctr(&["containers", "delete", &kept[0]])?;
    containerd.collect_garbage()?;
    same!(active_snapshots(containerd)?, Vec::<String>::new());
    goes(scene, &name).await?;
    plugin.shut_down().await
}

async fn what_an_unfinished_pull_has_left_goes_with_its_lease(scene: &Scene) -> Result<()> {
    let containerd = scene.world().containerd();
    let lease = |id: &str, expires: &str| {
        containerd.ctr(&["leases", "create", "--id", id, "--expires", expires, "containerd-driver/pull=x"])
    };
    lease("left-behind", "1s")?;
    lease("under-way", "1h")?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut plugin = scene.plugin().await?;
    let said = || plugin.log().all().iter().any(|line| line.contains("left-behind"));
    until(LIMIT, "the lease is ended", said).await?;
    let there = || listed(containerd, &["leases", "list", "--quiet"]);
    until(LIMIT, "the lease is gone", || there().is_ok_and(|leases| leases == ["under-way"])).await?;
    containerd.ctr(&["leases", "delete", "under-way"])?;
    plugin.shut_down().await
}
