//! A task's output: whole, whoever reads it and however slowly, and never by another way than the pipe.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::leaks::inspect::children;
use harness::task::LIMIT;

use crate::cases::support::output::{MEGABYTE, is_whole, numbered, prepare_unlogged};
use crate::cases::support::scripted::Scripted;
use crate::cases::support::{cases, driver_logs, ensure_eq, refused};

cases!["logs":
    a_megabyte_on_both_streams_arrives_whole,
    a_task_that_lives_for_a_moment_loses_nothing,
    a_slow_reader_gets_everything,
    a_reader_that_dies_and_comes_back_misses_nothing,
    a_pipe_that_nobody_reads_blocks_the_task_and_nobody_else,
    a_log_path_that_is_a_link_is_refused,
    a_log_path_that_is_a_file_is_refused,
    a_log_path_that_is_not_there_is_refused,
    a_log_directory_that_is_a_link_is_refused,
    a_checked_pipe_is_the_one_used_whatever_replaces_it,
    a_task_has_any_name_that_nomad_lets_it_have,
    logs_that_are_disabled_go_nowhere,
    an_operator_who_collects_no_logs_gets_none_and_needs_no_pipes,
];

async fn a_megabyte_on_both_streams_arrives_whole(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.prepare(plugin, &case.shell("cat /local/big & cat /local/big >&2; wait")).await?;
    let mut task = task;
    std::fs::write(task.alloc.task_path("local/big"), numbered())?;
    task.start(plugin).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 0);
    is_whole("stdout", &task.alloc.stdout.to_end(LIMIT).await?, &numbered())?;
    is_whole("stderr", &task.alloc.stderr.to_end(LIMIT).await?, &numbered())?;
    task.destroy(plugin).await
}

async fn a_task_that_lives_for_a_moment_loses_nothing(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    for _ in 0..5 {
        let config = harness::config! {
            image = case.image("busybox:latest"), command = "/bin/cat", args = ["/local/big"]
        };
        let mut task = case.prepare(plugin, &config).await?;
        std::fs::write(task.alloc.task_path("local/big"), numbered())?;
        task.start(plugin).await?;
        ensure_eq!(task.wait(plugin).await?.exit_code, 0);
        // The agent destroys the task at once.
        task.destroy(plugin).await?;
        is_whole("stdout", &task.alloc.stdout.to_end(LIMIT).await?, &numbered())?;
    }
    Ok(())
}

async fn a_slow_reader_gets_everything(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut task = case.prepare_unread(plugin, &case.shell("cat /local/some")).await?;
    let some = &numbered()[..MEGABYTE / 4];
    std::fs::write(task.alloc.task_path("local/some"), some)?;
    // This reader takes six seconds for what the pipes hold at the task's end, and a shim that deletes its task waits
    // two.
    task.alloc.stdout.start(Duration::from_millis(150))?;
    task.alloc.stderr.start(Duration::ZERO)?;
    task.start(plugin).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 0);
    task.destroy(plugin).await?;
    is_whole("stdout", &task.alloc.stdout.to_end(LIMIT).await?, some)?;
    Ok(())
}

async fn a_reader_that_dies_and_comes_back_misses_nothing(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut task = case.prepare(plugin, &case.shell("cat /local/big; sleep 1; cat /local/big")).await?;
    std::fs::write(task.alloc.task_path("local/big"), numbered())?;
    task.start(plugin).await?;
    task.alloc.stdout.to_hold(1, LIMIT).await?;
    task.alloc.stdout.stop();
    // The task fills the pipe and blocks.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let running = plugin.inspect_task(task.id()).await?.task.unwrap_or_default();
    ensure_eq!(running.state(), nomad_proto::driver::TaskState::Running);
    task.alloc.stdout.start(Duration::ZERO)?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 0);
    is_whole("stdout", &task.alloc.stdout.to_end(LIMIT).await?, &[numbered(), numbered()].concat())?;
    task.destroy(plugin).await
}

async fn a_pipe_that_nobody_reads_blocks_the_task_and_nobody_else(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let mut task = case.prepare_unread(plugin, &case.shell("yes; echo not reached")).await?;
    task.start(plugin).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let running = plugin.inspect_task(task.id()).await?.task.unwrap_or_default();
    ensure_eq!(running.state(), nomad_proto::driver::TaskState::Running);
    let (code, output) = task.exec(plugin, "echo exec works").await?;
    ensure_eq!((code, output.as_str()), (0, "exec works\n"));
    case.still_works(plugin).await?;
    let begun = Instant::now();
    task.stop(plugin, Duration::from_secs(1)).await?;
    ensure_eq!(task.wait(plugin).await?.signal, 9);
    ensure!(begun.elapsed() < Duration::from_secs(20), "its end took {:?}", begun.elapsed());
    task.destroy(plugin).await
}

async fn a_log_path_that_is_a_link_is_refused(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let precious = case.directory().join("precious");
    std::fs::create_dir_all(case.directory())?;
    std::fs::write(&precious, "data")?;
    for stream in ["stdout", "stderr"] {
        let mut task = case.prepare_unread(plugin, &case.shell("echo over")).await?;
        task.alloc.read_logs()?;
        let path = task.alloc.log_path(stream);
        std::fs::remove_file(&path)?;
        std::os::unix::fs::symlink(&precious, &path)?;
        refused(plugin.start_task(task.config.clone()).await, &[&path.display().to_string(), "link"])?;
        case.nothing_left()?;
        task.alloc.stdout.stop();
    }
    ensure_eq!(std::fs::read_to_string(&precious)?, "data");
    case.still_works(plugin).await
}

async fn a_log_path_that_is_a_file_is_refused(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.prepare_unread(plugin, &case.shell("echo over")).await?;
    let path = task.alloc.log_path("stderr");
    std::fs::remove_file(&path)?;
    std::fs::write(&path, "data")?;
    refused(plugin.start_task(task.config.clone()).await, &[&path.display().to_string(), "pipe"])?;
    case.nothing_left()?;
    ensure_eq!(std::fs::read_to_string(&path)?, "data");
    Ok(())
}

async fn a_log_path_that_is_not_there_is_refused(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.prepare_unread(plugin, &case.shell("true")).await?;
    let path = task.alloc.log_path("stdout");
    std::fs::remove_file(&path)?;
    refused(plugin.start_task(task.config.clone()).await, &[&path.display().to_string()])?;
    case.nothing_left()?;
    ensure!(!path.exists(), "it was made");
    Ok(())
}

async fn a_log_directory_that_is_a_link_is_refused(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.prepare_unread(plugin, &case.shell("echo over")).await?;
    let (logs, elsewhere) = (task.alloc.logs(), case.directory().join("elsewhere"));
    std::fs::rename(&logs, &elsewhere)?;
    std::os::unix::fs::symlink(&elsewhere, &logs)?;
    let path = task.alloc.log_path("stdout").display().to_string();
    refused(plugin.start_task(task.config.clone()).await, &[&path, "symbolic link"])?;
    case.nothing_left()
}

async fn a_checked_pipe_is_the_one_used_whatever_replaces_it(case: &CaseContext) -> Result<()> {
    let precious = case.directory().join("precious");
    for swap in [
        format!("ln -s {} \"$pipe\"", precious.display()),
        format!("ln {} \"$pipe\"", precious.display()),
        "echo data > \"$pipe\"".to_owned(),
        "mkfifo \"$pipe\"".to_owned(),
        "mkdir \"$pipe\"".to_owned(),
        "true".to_owned(),
    ] {
        // The shim is started after the driver has looked at the pipes, and replaces them.
        let scripted = Scripted::new(case)?;
        scripted.shim(&format!(
            "case \"$*\" in *start) for pipe in {}/*/alloc/logs/.*.fifo; do mv \"$pipe\" \"$pipe.was\"; {swap}; done;; esac",
            case.directory().join("alloc").display()
        ))?;
        let mut plugin = scripted.plugin(case).await?;
        std::fs::write(&precious, "data\n")?;
        for tty in [false, true] {
            let mut config = case.shell("echo said; exec 2>&1; sleep 1; echo more");
            config["tty"] = serde_json::json!(tty);
            let mut task = case.prepare(&plugin, &config).await?;
            task.start(&plugin).await?;
            ensure_eq!(
                (&swap, task.stdout(&plugin).await?.replace('\r', "")),
                (&swap, "said\nmore\n".to_owned())
            );
            let swapped = children(&task.alloc.logs())
                .into_iter()
                .filter(|path| path.extension() == Some("was".as_ref()));
            ensure_eq!((&swap, swapped.count()), (&swap, 2));
            task.destroy(&plugin).await?;
            case.nothing_left()?;
        }
        ensure_eq!(std::fs::read_to_string(&precious)?, "data\n");
        plugin.shut_down().await?;
    }
    Ok(())
}

/// Nomad refuses only a slash, a backslash and NUL in a name; a cgroup's name can't have a newline.
async fn a_task_has_any_name_that_nomad_lets_it_have(case: &CaseContext) -> Result<()> {
    let all = || (1_u8..128).filter(|byte| !b"/\\\n".contains(byte)).map(char::from);
    let names = [
        "100%cpu",
        "50%-job",
        "%2e%2e",
        "a\tb",
        "a b",
        "a?b#c",
        "fifo:x",
        "-rf",
        "\u{1f980}\u{fc}\u{65e5}",
        "$(x)`x`'\"",
        "a:b;c",
    ];
    let halves = [all().take(64).collect::<String>(), all().skip(64).collect()];
    let names: Vec<String> = names.map(str::to_owned).into_iter().chain(halves).collect();
    for collection in ["nomad", "driver"] {
        let mut options = case.options();
        options["log_collection"] = serde_json::json!(collection);
        let mut plugin = case.plugin_as(&case.launch(), &options).await?;
        for name in &names {
            let config =
                case.shell("echo out; echo err >&2; until [ -e /local/go ]; do sleep 0.05; done; echo over");
            let mut task = case.prepare_named(&plugin, name, &config).await?;
            if collection == "nomad" {
                task.alloc.read_logs()?;
            }
            task.start(&plugin).await.with_context(|| format!("{name:?}"))?;
            ensure_eq!(task.exec(&plugin, "echo exec").await?, (0, "exec\n".to_owned()));
            // The next plugin has to find the files by these names, too.
            if name.contains('%') {
                plugin.kill().await?;
                plugin = case.plugin_as(&case.launch(), &options).await?;
                task.recover(&plugin).await.with_context(|| format!("{name:?}"))?;
            }
            std::fs::write(task.alloc.task_path("local/go"), "")?;
            ensure_eq!((name, task.wait(&plugin).await?.exit_code), (name, 0));
            let output = if collection == "nomad" {
                task.alloc.stdout.to_end(LIMIT).await?
            } else {
                driver_logs::output(&task, "stdout")?
            };
            ensure_eq!((name, String::from_utf8_lossy(&output).as_ref()), (name, "out\nover\n"));
            task.destroy(&plugin).await?;
        }
        case.nothing_left()?;
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn logs_that_are_disabled_go_nowhere(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let script = "cat /local/big; cat /local/big >&2; exit 4";
    let mut task = prepare_unlogged(case, plugin, script).await?;
    std::fs::write(task.alloc.task_path("local/big"), numbered())?;
    task.start(plugin).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 4);
    task.destroy(plugin).await
}

async fn an_operator_who_collects_no_logs_gets_none_and_needs_no_pipes(case: &CaseContext) -> Result<()> {
    for disabled in [false, true] {
        let mut options = case.options();
        options["disable_log_collection"] = serde_json::json!(disabled);
        let mut plugin = case.plugin_as(&case.launch(), &options).await?;
        let capabilities = plugin.capabilities().await?;
        ensure_eq!(capabilities.disable_log_collection, disabled);
        let task = case.prepare_unread(&plugin, &case.shell("echo over; echo over >&2; exit 4")).await?;
        // The agent runs no collector then, which is what makes the pipes.
        let paths = ["stdout", "stderr"].map(|stream| task.alloc.log_path(stream));
        ensure_eq!(paths.each_ref().map(|path| path.exists()), [!disabled; 2]);
        for path in paths.iter().filter(|path| path.exists()) {
            std::fs::remove_file(path)?;
        }
        let mut task = task;
        if disabled {
            task.start(&plugin).await?;
            ensure_eq!(task.wait(&plugin).await?.exit_code, 4);
            task.destroy(&plugin).await?;
        } else {
            refused(plugin.start_task(task.config.clone()).await, &[&paths[0].display().to_string()])?;
        }
        ensure!(!paths.iter().any(|path| path.exists()), "a file was made in the pipes' place");
        plugin.shut_down().await?;
    }
    Ok(())
}
