//! A task's process, where its options differ from the image: entrypoint, groups, terminal, init.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::host::{Exec, Plugin};
use harness::task::LIMIT;
use serde_json::json;

use crate::cases::support::{NO_DIRECTORY, cases, ensure_eq, not_by_youki, refused};

cases!["process":
    an_entrypoint_takes_the_place_of_the_images_and_of_its_command,
    an_entrypoint_that_is_one_program_is_refused_beside_a_command,
    groups_are_added_by_the_images_names_and_by_number,
    a_group_that_the_image_does_not_know_is_refused_by_name,
    a_dynamic_user_of_nomads_is_its_number,
    stdin_is_at_its_end_unless_the_task_is_interactive,
    the_stdin_of_an_interactive_task_stays_open_without_the_plugin,
    a_task_with_a_terminal_has_all_its_output_in_one,
    a_terminals_last_words_are_all_there,
    a_command_that_is_not_there_is_named_with_a_terminal_too,
    a_task_with_a_terminal_is_recovered_and_stopped_like_any_other,
    an_init_is_the_first_process_and_reaps_what_is_left,
    an_init_passes_on_signals_and_codes,
    an_init_that_can_not_run_in_an_image_is_refused,
];

async fn an_entrypoint_takes_the_place_of_the_images_and_of_its_command(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    not_by_youki(case, NO_DIRECTORY)?;
    let (styled, busybox) = (case.image("styled:latest"), case.image("busybox:latest"));
    for (config, expected) in [
        (config! { image = styled, entrypoint = ["/bin/echo", "mine"] }, "mine\n"),
        (config! { image = styled, entrypoint = ["/bin/echo", "mine"], args = ["a"] }, "mine a\n"),
        (config! { image = styled, entrypoint = ["/bin/echo"], command = "b", args = ["c"] }, "b c\n"),
        (config! { image = styled, entrypoint = "pwd" }, "/home/app/work\n"),
        // Without an entrypoint, the command is all.
        (config! { image = styled, entrypoint = json!([]), command = "echo", args = ["d e"] }, "d e\n"),
        // As under docker, an entrypoint of one empty word clears the image's.
        (config! { image = styled, entrypoint = [""], command = "echo", args = ["f"] }, "f\n"),
        (config! { image = busybox, entrypoint = "", command = "echo", args = ["g"] }, "g\n"),
    ] {
        let task = case.run(plugin, &config).await?;
        ensure_eq!(task.stdout(plugin).await?, expected);
        task.destroy(plugin).await?;
    }
    Ok(())
}

async fn an_entrypoint_that_is_one_program_is_refused_beside_a_command(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let config = config! { image = case.image("busybox:latest"), entrypoint = "sh", command = "true" };
    let task = case.prepare(plugin, &config).await?;
    refused(plugin.start_task(task.config.clone()).await, &["entrypoint", "command", "[\"sh\"]"])?;
    case.nothing_left()
}

async fn groups_are_added_by_the_images_names_and_by_number(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let mut config = case.shell("id -G; sleep 600");
    config["group_add"] = json!(["extra", "4242"]);
    for (user, groups) in [("1000:1000", "1000 2000 4242"), ("", "0 2000 4242")] {
        let mut task = case.prepare(plugin, &config).await?;
        task.config.user = user.to_owned();
        task.start(plugin).await?;
        task.alloc.stdout.to_contain(&format!("{groups}\n"), LIMIT).await?;
        ensure_eq!(task.exec(plugin, "id -G").await?, (0, format!("{groups}\n")));
        task.end(plugin).await?;
    }
    Ok(())
}

async fn a_group_that_the_image_does_not_know_is_refused_by_name(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let mut config = case.shell("true");
    config["group_add"] = json!(["docker"]);
    let task = case.prepare(plugin, &config).await?;
    refused(plugin.start_task(task.config.clone()).await, &["group \"docker\"", "/etc/group"])?;
    case.nothing_left()
}

async fn a_dynamic_user_of_nomads_is_its_number(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut task = case.prepare(plugin, &case.shell("echo $(id -u) $(id -G) $HOME")).await?;
    task.config.user = "nomad-80123".to_owned();
    task.start(plugin).await?;
    ensure_eq!(task.stdout(plugin).await?, "80123 80123 /nonexistent\n");
    task.destroy(plugin).await
}

async fn stdin_is_at_its_end_unless_the_task_is_interactive(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let script = "test -p /proc/self/fd/0 && echo pipe || { cat; echo over; }";
    for (interactive, expected) in
        [(json!(null), "over\n"), (json!(false), "over\n"), (json!(true), "pipe\n")]
    {
        let mut config = case.shell(script);
        config["interactive"] = interactive;
        let task = case.run(plugin, &config).await?;
        ensure_eq!(task.stdout(plugin).await?, expected);
        task.destroy(plugin).await?;
    }
    Ok(())
}

/// The writing end is the shim's: no end of the plugin's is an end of the task's input.
async fn the_stdin_of_an_interactive_task_stays_open_without_the_plugin(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let mut config = case.shell("echo ready; cat; echo over");
    config["interactive"] = json!(true);
    let task = case.run(&plugin, &config).await?;
    task.alloc.stdout.to_contain("ready\n", LIMIT).await?;
    let mut plugin = case.next_plugin(&mut plugin).await?;
    task.recover(&plugin).await?;
    // With its input at its end, the task would be over by the time that a command in it has run.
    ensure_eq!(task.exec(&plugin, "test -p /proc/1/fd/0 && echo open").await?, (0, "open\n".to_owned()));
    ensure_eq!(task.alloc.stdout.text(), "ready\n");
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn a_task_with_a_terminal_has_all_its_output_in_one(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let script = "tty | cut -c1-9; for f in 0 1 2; do test -t $f || exit 9; done; echo $TERM; echo worse >&2; \
                  read line; sleep 600";
    let mut config = case.shell(script);
    config["tty"] = json!(true);
    for init in [false, true] {
        config["init"] = json!(init);
        let task = case.run(plugin, &config).await?;
        task.alloc.stdout.to_contain("/dev/pts/\r\nxterm\r\nworse\r\n", LIMIT).await?;
        // An exec has a terminal if its own caller wants one.
        ensure_eq!(task.exec(plugin, "test -t 0 || test -t 1 || echo none").await?, (0, "none\n".to_owned()));
        let exec = Exec::open(plugin, task.id(), &["sh", "-c", "test -t 1 && exit 4"], true).await?;
        ensure_eq!(exec.finish(LIMIT).await?.code()?, 4);
        ensure_eq!(task.alloc.stderr.text(), "");
        task.end(plugin).await?;
    }
    Ok(())
}

async fn a_terminals_last_words_are_all_there(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut config = case.shell("seq 1 30000; exit 5");
    config["tty"] = json!(true);
    let task = case.run(plugin, &config).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 5);
    let output = String::from_utf8(task.alloc.stdout.to_end(LIMIT).await?)?;
    let all: String = (1..=30_000).map(|number| format!("{number}\r\n")).collect();
    ensure!(
        output == all,
        "{} of {} bytes came, the last {:?}",
        output.len(),
        all.len(),
        output.lines().last()
    );
    task.destroy(plugin).await?;
    // Nobody reads the output.
    let mut task = case.prepare(plugin, &config).await?;
    task.config.stdout_path = "/dev/null".to_owned();
    task.config.stderr_path = "/dev/null".to_owned();
    if case.programs().is_rust_shim() {
        refused(plugin.start_task(task.config.clone()).await, &["tty", "containerd_runtime"])?;
    } else {
        task.start(plugin).await?;
        ensure_eq!(task.wait(plugin).await?.exit_code, 5);
        task.destroy(plugin).await?;
    }
    Ok(())
}

async fn a_command_that_is_not_there_is_named_with_a_terminal_too(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let config = config! { image = case.image("busybox:latest"), command = "no-such-command", tty = true };
    let task = case.prepare(plugin, &config).await?;
    refused(plugin.start_task(task.config.clone()).await, &["no-such-command"])?;
    case.nothing_left()
}

async fn a_task_with_a_terminal_is_recovered_and_stopped_like_any_other(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let mut config = case.shell("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done");
    config["tty"] = json!(true);
    let task = case.run(&plugin, &config).await?;
    task.alloc.stdout.to_contain("ready\r\n", LIMIT).await?;
    let mut plugin = case.next_plugin(&mut plugin).await?;
    task.recover(&plugin).await?;
    task.stop(&plugin, LIMIT).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 3);
    ensure_eq!(String::from_utf8(task.alloc.stdout.to_end(LIMIT).await?)?, "ready\r\nbye\r\n");
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn an_init_is_the_first_process_and_reaps_what_is_left(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let mut config = config! { image = case.image("busybox:latest"), command = "sleep", args = ["600"] };
    config["init"] = json!(true);
    let mut task = case.prepare(plugin, &config).await?;
    // Any user may run the host's init program in the container.
    task.config.user = "app".to_owned();
    task.start(plugin).await?;
    let (code, first) =
        task.exec(plugin, "cat /proc/1/comm; ls -l /proc/1/exe | grep -c docker-init").await?;
    ensure_eq!((code, first.as_str()), (0, "docker-init\n1\n"));
    let (_, orphan) = task.exec(plugin, "sh -c 'sleep 0.2 & echo $!'").await?;
    let gone = format!("until [ ! -e /proc/{} ]; do sleep 0.1; done; echo gone", orphan.trim());
    ensure_eq!(task.exec(plugin, &gone).await?, (0, "gone\n".to_owned()));
    let (code, _) = task.exec(plugin, "echo x >/sbin/docker-init").await?;
    ensure!(code != 0, "the host's program can be written to");
    task.end(plugin).await
}

async fn an_init_passes_on_signals_and_codes(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let with_init = |script: &str| {
        let mut config = case.shell(script);
        config["init"] = json!(true);
        config
    };
    let task = case.run(plugin, &with_init("exit 7")).await?;
    let exit = task.wait(plugin).await?;
    ensure_eq!((exit.exit_code, exit.signal), (7, 0));
    task.destroy(plugin).await?;
    let script = "trap 'echo hup' HUP; trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let task = case.run(plugin, &with_init(script)).await?;
    task.alloc.stdout.to_contain("ready\n", LIMIT).await?;
    plugin.signal_task(task.id(), "SIGHUP").await?;
    task.alloc.stdout.to_contain("hup\n", LIMIT).await?;
    task.stop(plugin, LIMIT).await?;
    let exit = task.wait(plugin).await?;
    ensure_eq!((exit.exit_code, exit.signal), (3, 0));
    task.destroy(plugin).await?;
    let task = case.run(plugin, &with_init("trap '' TERM; echo ready; while :; do sleep 0.1; done")).await?;
    task.alloc.stdout.to_contain("ready\n", LIMIT).await?;
    task.stop(plugin, Duration::from_millis(200)).await?;
    ensure_eq!(task.wait(plugin).await?.signal, 9);
    task.destroy(plugin).await
}

async fn an_init_that_can_not_run_in_an_image_is_refused(case: &CaseContext) -> Result<()> {
    let mut config = case.shell("true");
    config["init"] = json!(true);
    // `/bin/bash` is refused since it loads libraries that an image may lack.
    for (path, word) in [("/bin/bash", "statically"), ("/no/such/init", "No such file"), ("/etc", "execute")]
    {
        let mut options = case.options();
        options["init_path"] = json!(path);
        let mut plugin = case.plugin_as(&case.launch(), &options).await?;
        let task = case.prepare(&plugin, &config).await?;
        refused(plugin.start_task(task.config.clone()).await, &["init_path", path, word])?;
        case.nothing_left()?;
        plugin.shut_down().await?;
    }
    Ok(())
}
