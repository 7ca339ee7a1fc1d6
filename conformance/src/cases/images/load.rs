//! Images that come from an archive, and images that another client has put into containerd.

use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::fixture::Form;
use harness::fixture::archive::{docker_archive_of, gzip};
use harness::fixture::image::Image;
use harness::host::Plugin;
use harness::leaks::inspect::listed;
use harness::processes::open_files;
use harness::task::Task;
use serde_json::{Value, json};

use crate::cases::support::{cases, ensure_eq, is_recoverable, refused, until};

cases!["load":
    an_image_is_loaded_from_an_archive_of_either_form,
    a_path_in_place_of_the_images_name_is_an_archive_with_one_image,
    an_archive_that_is_loaded_again_is_not_stored_again,
    a_loaded_image_is_nobody_elses_whatever_its_name,
    an_archive_leads_nowhere_out_of_the_allocation,
    an_archive_that_is_no_good_is_refused_and_leaves_nothing,
    an_image_that_another_client_has_put_there_is_run,
    a_file_that_was_loaded_is_not_read_again_until_it_changes,
    reading_an_archive_ends_when_nobody_waits_for_it,
    an_archive_is_held_to_the_operators_sizes,
];

/// Returns busybox with a command that prints this text.
fn saying(case: &CaseContext, text: &str) -> Result<Image> {
    let image = case.environment().catalog().with(|tree| tree.file("said", 0o644, text.as_bytes()))?;
    let twice = image.layers.last().cloned().context("it has a layer")?;
    // The last layer is there twice, as from builders that copy a file again.
    let layers = image.layers.into_iter().chain([twice]).collect();
    Ok(Image { settings: json!({"Env": ["PATH=/bin"], "Cmd": ["cat", "/said"]}), layers })
}

/// Prepares a task whose allocation has these files, by their paths in the task's own directory.
async fn with_files(
    case: &CaseContext,
    plugin: &Plugin,
    config: &Value,
    files: &[(&str, &[u8])],
) -> Result<Task> {
    let task = case.prepare(plugin, config).await?;
    for (path, bytes) in files {
        std::fs::write(task.alloc.task_path(path), bytes).with_context(|| format!("write {path}"))?;
    }
    Ok(task)
}

async fn says(plugin: &Plugin, mut task: Task, text: &str) -> Result<()> {
    task.start(plugin).await?;
    ensure_eq!(task.stdout(plugin).await?, text);
    task.destroy(plugin).await
}

async fn an_image_is_loaded_from_an_archive_of_either_form(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let (one, two, three) = (saying(case, "one")?, saying(case, "two")?, saying(case, "three")?);
    let several = docker_archive_of(&[(&one, "team/one:1"), (&two, "team/two:2")])?;
    let job = |image: &str| config! { image = image, load = "image.tar" };
    for (image, archive, text) in [
        ("team/two:2", &several, "two"),
        ("docker.io/team/one:1", &several, "one"),
        ("team/one:1", &gzip(&several)?, "one"),
        ("team/three", &three.docker_archive(&["team/three:latest"])?, "three"),
        ("team/three:oci", &three.oci_archive("oci")?, "three"),
        ("team/three:oci", &three.oci_archive("docker.io/team/three:oci")?, "three"),
        ("team/three:any", &gzip(&three.docker_archive(&[])?)?, "three"),
    ] {
        let task = with_files(case, plugin, &job(image), &[("local/image.tar", archive)]).await?;
        says(plugin, task, text).await.with_context(|| image.to_owned())?;
        // The image's record keeps all its content from garbage collection.
        case.environment().containerd().collect_garbage()?;
        let task = with_files(case, plugin, &job(image), &[("local/image.tar", archive)]).await?;
        says(plugin, task, text).await.with_context(|| format!("{image} again"))?;
    }
    Ok(())
}

async fn a_path_in_place_of_the_images_name_is_an_archive_with_one_image(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let archive = saying(case, "path")?.docker_archive(&["team/path:1"])?;
    let on_host = case.directory().join("host.tar");
    std::fs::write(&on_host, &archive)?;
    for path in ["./local/image.tar", "../alloc/data/image.tar", &on_host.display().to_string()] {
        let files = [("local/image.tar", &archive[..]), ("../alloc/data/image.tar", &archive)];
        let task = with_files(case, &plugin, &config! { image = path }, &files).await?;
        says(&plugin, task, "path").await?;
    }
    let (one, two) = (saying(case, "one")?, saying(case, "two")?);
    let several = docker_archive_of(&[(&one, "team/one:1"), (&two, "team/two:2")])?;
    let config = config! { image = "./local/image.tar" };
    let task = with_files(case, &plugin, &config, &[("local/image.tar", &several)]).await?;
    refused(plugin.start_task(task.config.clone()).await, &["team/one:1", "team/two:2", "load"])?;
    plugin.shut_down().await?;
    // An archive may be loaded from where the job may mount from, and from nowhere else.
    let mut options = case.options();
    options["volumes"] = json!({"enabled": false});
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = case.prepare(&plugin, &config! { image = on_host.display().to_string() }).await?;
    refused(plugin.start_task(task.config.clone()).await, &["image", "volumes.enabled"])?;
    plugin.shut_down().await
}

async fn an_archive_that_is_loaded_again_is_not_stored_again(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let archive = saying(case, "again")?.docker_archive(&["team/again:1"])?;
    let config = config! { image = "team/again:1", load = "image.tar" };
    let blobs = || listed(case.environment().containerd(), &["content", "ls", "-q"]);
    // Several tasks load it at once: each has a copy of its own.
    let start = || async {
        let task = with_files(case, plugin, &config, &[("local/image.tar", &archive)]).await?;
        says(plugin, task, "again").await
    };
    tokio::try_join!(start(), start(), start())?;
    let before = blobs()?;
    start().await?;
    ensure_eq!(blobs()?, before);
    Ok(())
}

async fn a_loaded_image_is_nobody_elses_whatever_its_name(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    saying(case, "the registry's")?.push(case.environment().registry(), "clash", "v1", Form::Oci)?;
    let name = case.image("clash:v1");
    let archive = saying(case, "the archive's")?.docker_archive(&[&name])?;
    let load = config! { image = name.as_str(), load = "image.tar" };
    let pull = config! { image = name.as_str() };
    for _ in 0..2 {
        let task = with_files(case, plugin, &load, &[("local/image.tar", &archive)]).await?;
        says(plugin, task, "the archive's").await?;
        says(plugin, case.prepare(plugin, &pull).await?, "the registry's").await?;
    }
    Ok(())
}

async fn an_archive_leads_nowhere_out_of_the_allocation(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let outside = case.directory().join("outside.tar");
    std::fs::write(&outside, saying(case, "secret")?.docker_archive(&["team/x:1"])?)?;
    for (image, load) in [("team/x:1", "link.tar"), ("./local/link.tar", "")] {
        let task = case.prepare(plugin, &config! { image = image, load = load }).await?;
        symlink(&outside, task.alloc.task_path("local/link.tar"))?;
        refused(plugin.start_task(task.config.clone()).await, &["link.tar", "leads out"])?;
    }
    let up = case.prepare(plugin, &config! { image = "team/x:1", load = "../../../outside.tar" }).await?;
    refused(plugin.start_task(up.config.clone()).await, &["outside.tar", "leads out"])?;
    // A task's directory that is a link is refused, too: the archive is read and decompressed in there.
    let elsewhere = case.directory().join("elsewhere");
    std::fs::create_dir_all(elsewhere.join("local"))?;
    std::fs::copy(&outside, elsewhere.join("local/x.tar"))?;
    for (image, load) in [("team/x:1", "x.tar"), ("./local/x.tar", "")] {
        for link in ["", "local"] {
            let task = case.prepare(plugin, &config! { image = image, load = load }).await?;
            let own = task.alloc.task_path(link);
            std::fs::remove_dir_all(&own)?;
            symlink(elsewhere.join(link), own.components().collect::<std::path::PathBuf>())?;
            refused(plugin.start_task(task.config.clone()).await, &["web", "symbolic link"])?;
            case.nothing_left()?;
            std::fs::remove_file(own.components().collect::<std::path::PathBuf>())?;
        }
    }
    // A pipe would block the start for good.
    let pipe = case.prepare(plugin, &config! { image = "team/x:1", load = "pipe" }).await?;
    nix::unistd::mkfifo(&pipe.alloc.task_path("local/pipe"), nix::sys::stat::Mode::S_IRUSR)?;
    refused(plugin.start_task(pipe.config.clone()).await, &["pipe", "regular file"])?;
    Ok(())
}

async fn an_archive_that_is_no_good_is_refused_and_leaves_nothing(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let containerd = case.environment().containerd();
    let blobs = || listed(containerd, &["content", "ls", "-q"]);
    let image = saying(case, "bad")?;
    let good = image.docker_archive(&["team/bad:1"])?;
    let mut lying = Image { layers: image.layers.clone(), ..image.clone() };
    // The layer of another image is under the digest of this one's.
    let other = saying(case, "another")?.layers.remove(1);
    lying.layers[1] = harness::fixture::layer::Layer::of_bytes(other.blob.clone(), &image.layers[1].diff_id);
    lying.layers.truncate(2);
    let before = blobs()?;
    for (archive, words) in [
        (b"not an archive at all".to_vec(), &["local/image.tar", "archive"][..]),
        (good[..good.len() / 2].to_vec(), &["local/image.tar"]),
        (gzip(&good)?[..200].to_vec(), &["local/image.tar", "decompressed"]),
        (lying.docker_archive(&["team/bad:1"])?, &["local/image.tar", "corrupt", "read layer"]),
        (image.docker_archive(&["team/good:1"])?, &["team/bad:1", "team/good:1", "image"]),
    ] {
        let config = config! { image = "team/bad:1", load = "image.tar" };
        let task = with_files(case, plugin, &config, &[("local/image.tar", &archive)]).await?;
        refused(plugin.start_task(task.config.clone()).await, words)?;
        case.nothing_left()?;
    }
    let missing = case.prepare(plugin, &config! { image = "team/bad:1", load = "none.tar" }).await?;
    refused(plugin.start_task(missing.config.clone()).await, &["load", "none.tar"])?;
    containerd.collect_garbage()?;
    let left: Vec<_> = blobs()?.into_iter().filter(|blob| !before.contains(blob)).collect();
    ensure!(left.is_empty(), "there are still {left:?}");
    case.still_works(plugin).await
}

async fn an_image_that_another_client_has_put_there_is_run(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let containerd = case.environment().containerd();
    let archive = case.directory().join("import.tar");
    std::fs::write(&archive, saying(case, "imported")?.docker_archive(&["team/imported:1"])?)?;
    // The image is of no registry: `docker.io` has nothing of the kind, and is not asked.
    containerd.ctr(&["images", "import", "--no-unpack", &archive.display().to_string()])?;
    ensure_eq!(listed(containerd, &["images", "ls", "-q", "name~=imported"])?, ["docker.io/team/imported:1"]);
    says(plugin, case.prepare(plugin, &config! { image = "team/imported:1" }).await?, "imported").await?;
    containerd.ctr(&["images", "delete", "--sync", "docker.io/team/imported:1"])?;
    Ok(())
}

async fn a_file_that_was_loaded_is_not_read_again_until_it_changes(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    let path = case.directory().join("image.tar");
    let archive = |text: &str| saying(case, text)?.docker_archive(&["team/once:1"]);
    std::fs::write(&path, archive("one")?)?;
    let config = config! { image = path.display().to_string() };
    says(plugin, case.prepare(plugin, &config).await?, "one").await?;
    let reads = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    reads.add_watch(&path, AddWatchFlags::IN_ACCESS)?;
    says(plugin, case.prepare(plugin, &config).await?, "one").await?;
    ensure!(reads.read_events().is_err(), "it was read again");
    // The new archive has the same length and time as the old one.
    let modified = std::fs::metadata(&path)?.modified()?;
    let other = archive("two")?;
    ensure_eq!(other.len() as u64, std::fs::metadata(&path)?.len());
    std::fs::write(&path, &other)?;
    std::fs::File::options().write(true).open(&path)?.set_modified(modified)?;
    says(plugin, case.prepare(plugin, &config).await?, "two").await?;
    ensure!(reads.read_events().is_ok(), "a read can't be seen: the case proves nothing");
    Ok(())
}

async fn reading_an_archive_ends_when_nobody_waits_for_it(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    // 48 GiB of zeros in 48 MiB.
    let gibibyte = gzip(&vec![0; 1 << 30])?;
    let path = case.directory().join("zeros.tar.gz");
    std::fs::create_dir_all(case.directory())?;
    std::fs::write(&path, gibibyte.repeat(48))?;
    let pid = plugin.pid();
    let scratch = move || open_files(pid).iter().any(|target| target.to_string_lossy().contains("/alloc/"));
    let config = config! { image = path.display().to_string(), image_pull_timeout = "2s" };
    let task = case.prepare(plugin, &config).await?;
    let (answer, begun) = tokio::join!(
        plugin.start_task(task.config.clone()),
        until(Duration::from_secs(5), "something is decompressed", scratch)
    );
    begun?;
    let status = refused(answer, &["zeros.tar.gz", "image_pull_timeout"])?;
    ensure!(is_recoverable(&status)?, "Nomad would not try again");
    until(Duration::from_secs(5), "what was decompressed is gone", || !scratch()).await?;
    // A load doesn't go on for a caller that has gone away.
    let config = config! { image = path.display().to_string() };
    let task = case.prepare(plugin, &config).await?;
    let start = plugin.start_task(task.config.clone());
    ensure!(tokio::time::timeout(Duration::from_secs(2), start).await.is_err(), "it has an answer");
    until(Duration::from_secs(5), "what was decompressed is gone", || !scratch()).await?;
    case.nothing_left_of_cut_off(&task, plugin).await?;
    case.still_works(plugin).await
}

async fn an_archive_is_held_to_the_operators_sizes(case: &CaseContext) -> Result<()> {
    let image = case.environment().catalog().large(3)?;
    let archive = image.docker_archive(&["team/large:1"])?;
    for (option, limit, words) in [
        ("max_image_size", "1m", ["max_image_size", "1048576"]),
        ("max_unpacked_size", "2m", ["max_unpacked_size", "2097152"]),
    ] {
        let mut options = case.options();
        options[option] = json!(limit);
        let mut plugin = case.plugin_as(&case.launch(), &options).await?;
        for archive in [&archive, &gzip(&archive)?] {
            let config = config! { image = "./local/image.tar" };
            let task = with_files(case, &plugin, &config, &[("local/image.tar", archive)]).await?;
            refused(plugin.start_task(task.config.clone()).await, &words)?;
            case.nothing_left()?;
        }
        plugin.shut_down().await?;
    }
    Ok(())
}
