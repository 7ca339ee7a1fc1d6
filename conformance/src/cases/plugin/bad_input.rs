//! Input that no honest agent would send, and jobs that ask for what can't be.

use anyhow::{Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::LIMIT;
use serde_json::json;
use tonic::Code;

use crate::cases::support::{cases, ensure_eq, refused};

cases!["bad input":
    a_task_configuration_that_is_no_msgpack_is_refused,
    an_option_of_another_type_is_refused,
    a_task_without_an_image_is_refused,
    an_image_reference_that_is_none_is_refused_by_name,
    requests_that_lack_their_parts_are_refused,
    an_id_that_is_taken_is_refused_and_the_first_task_lives_on,
    an_id_with_strange_characters_can_not_leave_the_state_directory,
    an_allocation_directory_that_is_not_there_is_refused_by_name,
    a_megabyte_of_environment_and_arguments_is_no_trouble_to_the_plugin,
    a_nul_byte_in_an_argument_or_variable_is_refused_by_name,
    an_exec_without_its_first_message_or_command_is_an_error,
];

async fn a_task_configuration_that_is_no_msgpack_is_refused(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let mut task = case.prepare(plugin, &case.shell("true")).await?;
    let whole = task.config.msgpack_driver_config.clone();
    for garbage in
        [b"\xc1\xff\x00".to_vec(), vec![0x90], vec![0xc0], whole[..whole.len() / 2].to_vec(), Vec::new()]
    {
        task.config.msgpack_driver_config = garbage;
        let status =
            refused(plugin.start_task(task.config.clone()).await, &[task.id(), "task configuration"])?;
        ensure_eq!(status.code(), Code::InvalidArgument);
        case.nothing_left()?;
    }
    case.still_works(plugin).await
}

async fn an_option_of_another_type_is_refused(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut task = case.prepare(plugin, &case.shell("true")).await?;
    let image = case.image("busybox:latest");
    for config in [
        json!({"args": null, "command": null, "image": 5}),
        json!({"args": "not a list", "command": null, "image": image}),
        json!({"args": [5], "command": null, "image": image}),
        json!({"args": null, "command": ["a"], "image": image}),
    ] {
        task.config.msgpack_driver_config = rmp_serde::to_vec(&config)?;
        let status = refused(plugin.start_task(task.config.clone()).await, &["task configuration"])?;
        ensure_eq!(status.code(), Code::InvalidArgument);
    }
    Ok(())
}

async fn a_task_without_an_image_is_refused(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut task = case.prepare(plugin, &case.shell("true")).await?;
    for config in [json!({"args": null, "command": null, "image": null}), json!({"image": ""}), json!({})] {
        task.config.msgpack_driver_config = rmp_serde::to_vec(&config)?;
        refused(plugin.start_task(task.config.clone()).await, &["image"])?;
    }
    Ok(())
}

async fn an_image_reference_that_is_none_is_refused_by_name(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let registry = case.environment().registry().address().to_owned();
    for name in [
        "Upper/Case",
        "a b",
        "redis:",
        "redis@sha256:abc",
        "ftp://x/y",
        &format!("{registry}/x/../y"),
        "/",
        ":",
    ] {
        let task = case.prepare(plugin, &config! { image = name }).await?;
        let status = refused(plugin.start_task(task.config.clone()).await, &[name])?;
        ensure!(status.code() == Code::InvalidArgument, "{name}: {status:?}");
    }
    Ok(())
}

async fn requests_that_lack_their_parts_are_refused(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    use nomad_proto::driver as pb;
    let none = plugin.driver().start_task(pb::StartTaskRequest::default()).await;
    refused(none, &["task"])?;
    refused(plugin.driver().recover_task(pb::RecoverTaskRequest::default()).await, &["handle"])?;
    // A task with nothing but an id and an image.
    let mut task = case.prepare(plugin, &case.shell("true")).await?;
    task.config = pb::TaskConfig {
        id: task.id().to_owned(),
        msgpack_driver_config: task.config.msgpack_driver_config,
        ..pb::TaskConfig::default()
    };
    refused(plugin.start_task(task.config.clone()).await, &[])?;
    task.config.id = String::new();
    refused(plugin.start_task(task.config.clone()).await, &[])?;
    case.nothing_left()?;
    case.still_works(plugin).await
}

async fn an_id_that_is_taken_is_refused_and_the_first_task_lives_on(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    let pid = task.pid()?;
    refused(plugin.start_task(task.config.clone()).await, &[task.id()])?;
    ensure_eq!(task.pid()?, pid);
    ensure_eq!(task.exec(plugin, "exit 5").await?.0, 5);
    task.end(plugin).await
}

async fn an_id_with_strange_characters_can_not_leave_the_state_directory(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for id in ["../../../outside", "a/../../b/c", "/etc/x/y", "ü nicode/t\u{7}sk/\"x", &"long".repeat(100)] {
        let mut task = case.prepare(plugin, &case.shell("exit 2")).await?;
        task.config.id = id.to_owned();
        if task.start(plugin).await.is_ok() {
            ensure_eq!(task.wait(plugin).await?.exit_code, 2);
            task.destroy(plugin).await?;
        }
        case.nothing_left()?;
        ensure!(!case.directory().join("outside").exists(), "{id} left the state directory");
    }
    Ok(())
}

async fn an_allocation_directory_that_is_not_there_is_refused_by_name(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = case.prepare(plugin, &case.shell("true")).await?;
    let secrets = task.alloc.task_path("secrets");
    std::fs::remove_dir_all(&secrets)?;
    refused(plugin.start_task(task.config.clone()).await, &[&secrets.display().to_string()])?;
    case.nothing_left()
}

async fn a_megabyte_of_environment_and_arguments_is_no_trouble_to_the_plugin(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let mut task = case.prepare(plugin, &case.shell("env | wc -c")).await?;
    for number in 0..16 {
        task.config.env.insert(format!("LARGE_{number}"), "x".repeat(64 * 1024));
    }
    task.start(plugin).await?;
    ensure!(task.stdout(plugin).await?.trim().parse::<usize>()? > 1 << 20, "the environment is cut");
    task.destroy(plugin).await?;
    // A variable larger than the kernel lets a process have: the runtime reports it as an exit, or not at all.
    let mut task = case.prepare(plugin, &case.shell("true")).await?;
    task.config.env.insert("TOO_LARGE".to_owned(), "x".repeat(6 << 20));
    match task.start(plugin).await {
        Ok(()) => {
            ensure!(task.wait(plugin).await?.exit_code != 0, "it ran");
            task.destroy(plugin).await?;
        }
        Err(_) => case.nothing_left()?,
    }
    case.still_works(plugin).await
}

/// runc and crun find it out only in place of the task's program, and exit with 1.
async fn a_nul_byte_in_an_argument_or_variable_is_refused_by_name(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let mut config = case.shell("true");
    config["args"] = json!(["-c", "true", "a\0b"]);
    let task = case.prepare(plugin, &config).await?;
    refused(plugin.start_task(task.config.clone()).await, &["word 3 of the option args", "NUL"])?;
    case.nothing_left()?;
    for (name, value) in [("A\0B", "x"), ("TOKEN", "x\0y")] {
        let mut task = case.prepare(plugin, &case.shell("true")).await?;
        task.config.env.insert(name.to_owned(), value.to_owned());
        let name = format!("{name:?}");
        refused(plugin.start_task(task.config.clone()).await, &["variable", &name, "NUL"])?;
        case.nothing_left()?;
    }
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    let answer = plugin.exec_task(task.id(), &["/bin/echo", "a\0b"], LIMIT).await?;
    ensure_eq!(answer.result.map(|exit| exit.exit_code), Some(126));
    ensure!(String::from_utf8_lossy(&answer.stderr).contains("argument 1"), "{answer:?}");
    task.end(plugin).await
}

async fn an_exec_without_its_first_message_or_command_is_an_error(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    use nomad_proto::driver as pb;
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    let only_stdin = pb::ExecTaskStreamingRequest {
        stdin: Some(pb::ExecTaskStreamingIoOperation { data: b"x".to_vec(), close: false }),
        ..pb::ExecTaskStreamingRequest::default()
    };
    let answer = plugin.driver().exec_task_streaming(tokio_stream::iter([only_stdin])).await;
    refused(answer, &["setup"])?;
    let no_command = plugin.exec_task(task.id(), &[], LIMIT).await;
    ensure!(
        no_command.is_err() || no_command.is_ok_and(|a| a.result.is_some_and(|r| r.exit_code != 0)),
        "it ran"
    );
    ensure_eq!(task.exec(plugin, "exit 5").await?.0, 5);
    task.end(plugin).await
}
