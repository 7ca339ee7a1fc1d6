//! A task from start to end: its process, user, working directory, and the files of its allocation.

use anyhow::{Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::LIMIT;
use serde_json::json;

use crate::cases::support::{NO_DIRECTORY, cases, ensure_eq, not_by_youki, refused};

cases!["run":
    a_task_that_ends_with_0_has_succeeded,
    a_task_that_ends_with_7_shows_7,
    a_task_that_is_killed_shows_the_signal,
    the_image_says_what_runs_and_as_whom_and_where,
    the_jobs_command_and_arguments_take_the_place_of_the_images,
    the_jobs_environment_wins_over_the_images,
    a_user_is_looked_up_in_the_images_own_files,
    a_user_that_the_image_does_not_know_is_refused_by_name,
    the_allocations_directories_are_there_and_writable,
    the_allocations_logs_can_not_be_written_from_inside,
    a_task_may_write_to_its_root_and_the_image_stays_as_it_is,
    many_tasks_run_side_by_side,
    redis_answers,
];

async fn a_task_that_ends_with_0_has_succeeded(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("echo well; echo done >&2")).await?;
    let exit = task.wait(plugin).await?;
    ensure_eq!((exit.exit_code, exit.signal, exit.oom_killed), (0, 0, false));
    ensure_eq!(task.alloc.stdout.to_end(LIMIT).await?, b"well\n");
    ensure_eq!(task.alloc.stderr.to_end(LIMIT).await?, b"done\n");
    task.destroy(plugin).await?;
    case.nothing_left()
}

async fn a_task_that_ends_with_7_shows_7(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("exit 7")).await?;
    let exit = task.wait(plugin).await?;
    ensure_eq!((exit.exit_code, exit.signal, exit.oom_killed), (7, 0, false));
    task.destroy(plugin).await
}

async fn a_task_that_is_killed_shows_the_signal(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(task.pid()?), nix::sys::signal::Signal::SIGKILL)?;
    let exit = task.wait(plugin).await?;
    ensure_eq!((exit.exit_code, exit.signal, exit.oom_killed), (137, 9, false));
    task.destroy(plugin).await
}

async fn the_image_says_what_runs_and_as_whom_and_where(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    not_by_youki(case, NO_DIRECTORY)?;
    let task = case.run(plugin, &config! { image = case.image("styled:latest") }).await?;
    ensure_eq!(task.stdout(plugin).await?, "image app /home/app/work /home/app\n");
    task.destroy(plugin).await
}

async fn the_jobs_command_and_arguments_take_the_place_of_the_images(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    not_by_youki(case, NO_DIRECTORY)?;
    let image = case.image("busybox:latest");
    for (config, expected) in [
        (
            config! { image = image, command = "/bin/echo", args = ["a", "b  c", "", "$PATH"] },
            "a b  c  $PATH\n",
        ),
        // The command is found by the image's PATH.
        (config! { image = image, command = "pwd" }, "/\n"),
        // The image's entrypoint stays, here `sh -c`.
        (config! { image = case.image("styled:latest"), args = ["echo other"] }, "other\n"),
    ] {
        let task = case.run(plugin, &config).await?;
        ensure_eq!(task.stdout(plugin).await?, expected);
        task.destroy(plugin).await?;
    }
    Ok(())
}

async fn the_jobs_environment_wins_over_the_images(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut task =
        case.prepare(plugin, &case.shell("echo $GREETING $JOB $NOMAD_TASK_DIR; echo $PATH")).await?;
    task.config.env.insert("GREETING".to_owned(), "from the job".to_owned());
    task.config.env.insert("JOB".to_owned(), "a=b".to_owned());
    task.start(plugin).await?;
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    ensure_eq!(task.stdout(plugin).await?, format!("from the job a=b /local\n{path}\n"));
    task.destroy(plugin).await
}

async fn a_user_is_looked_up_in_the_images_own_files(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    for (user, ids) in [
        ("", "uid=0(root) gid=0(root)"),
        ("app", "uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)"),
        ("app:extra", "uid=1000(app) gid=2000(extra)"),
        ("1000", "uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)"),
        ("1000:2000", "uid=1000(app) gid=2000(extra)"),
        ("4321", "uid=4321 gid=0(root)"),
    ] {
        let mut task = case.prepare(plugin, &case.shell("id")).await?;
        task.config.user = user.to_owned();
        task.start(plugin).await?;
        let output = task.stdout(plugin).await?;
        ensure!(output.starts_with(ids), "user {user:?} is {output}");
        if !ids.contains("extra") {
            ensure!(!output.contains("2000"), "user {user:?} is {output}");
        }
        task.destroy(plugin).await?;
    }
    Ok(())
}

async fn a_user_that_the_image_does_not_know_is_refused_by_name(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for user in ["ghost", "app:phantom", "99999999999", "-1"] {
        let mut task = case.prepare(plugin, &case.shell("true")).await?;
        task.config.user = user.to_owned();
        let name = user.rsplit(':').next().unwrap_or_default();
        refused(plugin.start_task(task.config.clone()).await, &[name])?;
        case.nothing_left()?;
    }
    case.still_works(plugin).await
}

async fn the_allocations_directories_are_there_and_writable(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let script = "cat /local/given && echo a > /alloc/data/a && echo l > /local/l && echo s > /secrets/s";
    let mut task = case.prepare(plugin, &case.shell(script)).await?;
    std::fs::write(task.alloc.task_path("local/given"), "from the agent\n")?;
    task.config.user = "app".to_owned();
    task.start(plugin).await?;
    ensure_eq!(task.stdout(plugin).await?, "from the agent\n");
    ensure_eq!(std::fs::read_to_string(task.alloc.directory.join("alloc/data/a"))?, "a\n");
    ensure_eq!(std::fs::read_to_string(task.alloc.task_path("local/l"))?, "l\n");
    ensure_eq!(std::fs::read_to_string(task.alloc.task_path("secrets/s"))?, "s\n");
    task.destroy(plugin).await
}

async fn the_allocations_logs_can_not_be_written_from_inside(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let script = "ls -a /alloc/logs; touch /alloc/logs/x || rm /alloc/logs/.web.stdout.fifo || echo kept";
    let task = case.run(plugin, &case.shell(script)).await?;
    let output = task.stdout(plugin).await?;
    ensure!(output.contains(".web.stdout.fifo") && output.ends_with("kept\n"), "{output}");
    task.destroy(plugin).await
}

async fn a_task_may_write_to_its_root_and_the_image_stays_as_it_is(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let script =
        "cat /etc/replaced; ls /etc/removed 2>/dev/null; echo mine > /etc/replaced; echo new > /etc/removed";
    for _ in 0..2 {
        let task =
            case.run(plugin, &case.shell(&format!("{script}; cat /etc/replaced /etc/removed"))).await?;
        ensure_eq!(task.stdout(plugin).await?, "upper\nmine\nnew\n");
        task.destroy(plugin).await?;
    }
    Ok(())
}

async fn many_tasks_run_side_by_side(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let run = |number: usize| {
        let (plugin, script) = (&plugin, format!("echo I am {number}; exit {number}"));
        async move {
            let task = case.run(plugin, &case.shell(&script)).await?;
            let exit = task.wait(plugin).await?;
            ensure_eq!(usize::try_from(exit.exit_code)?, number);
            ensure_eq!(task.alloc.stdout.to_end(LIMIT).await?, format!("I am {number}\n").into_bytes());
            task.destroy(plugin).await
        }
    };
    futures::future::try_join_all((1..=12).map(run)).await?;
    plugin.shut_down().await
}

async fn redis_answers(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut config = config! { image = case.image("library/redis:alpine") };
    // The documentation's job has redis' own port; two of these tasks run side by side.
    config["args"] = json!(["--port", "0", "--unixsocket", "/tmp/redis.sock"]);
    let task = case.run(plugin, &config).await?;
    task.alloc.stdout.to_contain("eady to accept connections", LIMIT).await?;
    let (code, output) = task.exec(plugin, "redis-cli -s /tmp/redis.sock ping; pwd").await?;
    ensure_eq!((code, output.as_str()), (0, "PONG\n/data\n"));
    task.stop(plugin, LIMIT).await?;
    let exit = task.wait(plugin).await?;
    ensure_eq!(exit.exit_code, 0);
    task.destroy(plugin).await
}
