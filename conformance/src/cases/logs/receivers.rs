//! A task's output, sent to a log receiver in docker's words (`logging.type`, `logging.config`), and to Nomad's logs.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::{LIMIT, Task};
use serde_json::{Value, json};

use crate::cases::support::driver_logs::output;
use crate::cases::support::log_receivers::{Journal, Rsyslog, fluentd, gelf_tcp, gelf_udp, got, has};
use crate::cases::support::output::{is_whole, numbered};
use crate::cases::support::{cases, ensure_eq, is_recoverable, refused, until};

cases!["receivers":
    syslog_has_each_line_of_a_task,
    the_journal_has_each_line_of_a_task,
    fluentd_has_each_line_of_a_task,
    gelf_has_each_line_of_a_task,
    the_plugin_s_log_type_is_that_of_tasks_without_one,
    a_line_is_in_the_driver_s_files_and_at_its_receiver,
    no_line_is_lost_when_the_plugin_is_killed,
    a_receiver_that_does_not_answer_fails_the_start_for_now,
    a_receiver_that_goes_away_stops_no_task,
    a_collector_of_nomad_s_that_ends_stops_no_task,
    a_buffer_lets_a_task_run_whose_receiver_takes_nothing,
    output_of_the_type_none_is_nowhere,
    a_log_type_of_others_is_refused,
    a_socket_of_the_host_needs_the_operator_s_permission,
    a_trusted_facility_is_the_operator_s_alone,
    an_address_of_the_host_needs_the_operator_s_permission,
    a_type_needs_the_operator_s_permission,
    nomad_s_handle_has_no_value_of_the_environment,
    an_earlier_plugin_writes_the_output_to_files,
];

fn logged(case: &CaseContext, script: &str, log_type: &str, config: Value) -> Value {
    let mut job = case.shell(script);
    job["logging"] = json!({"type": log_type, "config": Value::Array(vec![config])});
    job
}

/// Runs a task to its end, and returns what Nomad's collector has read of its stdout.
async fn run(case: &CaseContext, plugin: &Plugin, job: &Value) -> Result<(Task, Vec<u8>)> {
    let mut task = case.prepare(plugin, job).await?;
    task.start(plugin).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 0);
    task.destroy(plugin).await?;
    let stdout = task.alloc.stdout.to_end(LIMIT).await?;
    Ok((task, stdout))
}

const SCRIPT: &str = "echo one; echo two >&2; printf three";

async fn syslog_has_each_line_of_a_task(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let rsyslog = Rsyslog::start(case).await?;
    let addresses = [
        ("a", format!("tcp://{}", rsyslog.tcp), "rfc3164"),
        ("b", format!("udp://{}", rsyslog.udp), "rfc5424"),
        ("c", format!("unixgram://{}", rsyslog.socket.display()), ""),
        ("d", format!("unix://{}", rsyslog.socket.display()), ""),
        ("e", format!("tcp://{}", rsyslog.tcp), "rfc5424micro"),
    ];
    for (tag, address, format) in addresses {
        let config = json!({
            "syslog-address": address, "syslog-facility": "local3", "syslog-format": format, "tag": tag
        });
        let (_, stdout) = run(case, plugin, &logged(case, SCRIPT, "syslog", config)).await?;
        ensure_eq!(String::from_utf8_lossy(&stdout), "one\nthree");
        let line = |severity: &str, text: &str| format!("local3.{severity} {tag}| {text}");
        let lines = [line("info", "one"), line("err", "two"), line("info", "three")];
        // RFC 5424 has no space before the text.
        let lines =
            if format.starts_with("rfc5424") { lines.map(|line| line.replace("| ", "|")) } else { lines };
        rsyslog.to_have(&lines.each_ref().map(String::as_str)).await?;
    }
    Ok(())
}

async fn the_journal_has_each_line_of_a_task(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let journal = Journal::start().await?;
    let script = "echo one; echo two >&2; head -c 300000 /dev/zero | tr '\\0' x; echo";
    let mut job =
        logged(case, script, "journald", json!({"tag": "t/{{.Name}}", "labels": "team", "env": "NOMAD_DC"}));
    job["labels"] = json!({"team": "web"});
    let (task, _) = run(case, plugin, &job).await?;
    let name = format!("web-{}", task.config.alloc_id);
    let entries = || journal.entries("CONTAINER_NAME", &name).unwrap_or_default();
    until(LIMIT, "the entries", || entries().len() == 2 + 300_000_usize.div_ceil(16 << 10)).await?;
    let entries = entries();
    let of = |text: &str| entries.iter().find(|entry| entry.get("MESSAGE") == Some(&json!(text)));
    let (one, two) = (of("one").context("no entry")?, of("two").context("no entry")?);
    ensure_eq!((&one["PRIORITY"], &two["PRIORITY"]), (&json!("6"), &json!("3")));
    for (field, value) in [
        ("CONTAINER_TAG", json!(format!("t/{name}"))),
        ("SYSLOG_IDENTIFIER", json!(format!("t/{name}"))),
        ("TEAM", json!("web")),
    ] {
        ensure_eq!(one.get(field), Some(&value));
    }
    let parts = entries.iter().filter(|entry| entry.contains_key("CONTAINER_PARTIAL_ID")).count();
    ensure_eq!(parts, 300_000_usize.div_ceil(16 << 10));
    Ok(())
}

async fn fluentd_has_each_line_of_a_task(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let (address, received) = fluentd()?;
    for config in [
        json!({"fluentd-address": address, "tag": "web.{{.Name}}", "fluentd-request-ack": "true"}),
        json!({"fluentd-address": format!("tcp://{address}"), "fluentd-async": "true", "fluentd-request-ack": "true"}),
    ] {
        let before = got(&received).len();
        let (task, _) = run(case, plugin, &logged(case, SCRIPT, "fluentd", config)).await?;
        until(LIMIT, "the messages", || got(&received).len() == before + 3).await?;
        let mut lines = Vec::new();
        for (tag, _, record) in &got(&received)[before..] {
            ensure!(before > 0 || *tag == format!("web.web-{}", task.config.alloc_id), "the tag is {tag}");
            ensure!(record["container_name"].ends_with(&task.config.alloc_id), "{record:?}");
            lines.push(format!("{} {}", record["source"], record["log"]));
        }
        lines.sort();
        ensure_eq!(lines, ["stderr two", "stdout one", "stdout three"]);
    }
    Ok(())
}

async fn gelf_has_each_line_of_a_task(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let (udp, by_udp) = gelf_udp()?;
    let (tcp, by_tcp) = gelf_tcp()?;
    // Random text, so that a line needs several datagrams.
    let script = "echo one; head -c 6000 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; echo two >&2";
    for (address, received) in [(format!("udp://{udp}"), by_udp), (format!("tcp://{tcp}"), by_tcp)] {
        let (task, stdout) =
            run(case, plugin, &logged(case, script, "gelf", json!({"gelf-address": address, "tag": "t"})))
                .await?;
        until(LIMIT, "the messages", || got(&received).len() == 3).await?;
        let messages = got(&received);
        let of = |text: &str| messages.iter().find(|message| message["short_message"] == text);
        let name = json!(format!("web-{}", task.config.alloc_id));
        let fields = |level: u32| {
            [
                ("version", json!("1.1")),
                ("level", json!(level)),
                ("_tag", json!("t")),
                ("_container_name", name.clone()),
            ]
        };
        has(of("one").context("no message")?, &fields(6))?;
        has(of("two").context("no message")?, &fields(3))?;
        let stdout = String::from_utf8(stdout)?;
        of(stdout.lines().nth(1).context("no second line")?).context("the long line did not come")?;
    }
    Ok(())
}

async fn the_plugin_s_log_type_is_that_of_tasks_without_one(case: &CaseContext) -> Result<()> {
    let (address, received) = gelf_tcp()?;
    let mut options = case.options();
    options["logging"] = json!({"type": "gelf", "config": {"gelf-address": format!("tcp://{address}")}});
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    run(case, &plugin, &case.shell("echo sent")).await?;
    until(LIMIT, "the message", || got(&received).len() == 1).await?;
    let mut job = case.shell("echo not sent");
    job["logging"] = json!({"type": "json-file"});
    run(case, &plugin, &job).await?;
    ensure_eq!(got(&received).len(), 1);
    plugin.shut_down().await
}

async fn a_line_is_in_the_driver_s_files_and_at_its_receiver(case: &CaseContext) -> Result<()> {
    let (address, received) = gelf_tcp()?;
    let mut options = case.options();
    options["log_collection"] = json!("driver");
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let job = logged(case, "cat /local/some", "gelf", json!({"gelf-address": format!("tcp://{address}")}));
    let mut task = case.prepare_unread(&plugin, &job).await?;
    let some = &numbered()[..128 << 10];
    std::fs::write(task.alloc.task_path("local/some"), some)?;
    task.start(&plugin).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
    is_whole("stdout", &output(&task, "stdout")?, some)?;
    until(LIMIT, "the messages", || got(&received).len() == some.len() / 16).await?;
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn no_line_is_lost_when_the_plugin_is_killed(case: &CaseContext) -> Result<()> {
    let (address, received) = gelf_tcp()?;
    let mut plugin = case.plugin().await?;
    let script = "for i in 1 2 3 4 5 6; do cat /local/some; sleep 0.5; done";
    let job = logged(case, script, "gelf", json!({"gelf-address": format!("tcp://{address}")}));
    let mut task = case.prepare(&plugin, &job).await?;
    let some = &numbered()[..64 << 10];
    std::fs::write(task.alloc.task_path("local/some"), some)?;
    task.start(&plugin).await?;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        plugin = case.next_plugin(&mut plugin).await?;
        task.recover(&plugin).await?;
    }
    ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
    task.destroy(&plugin).await?;
    is_whole("stdout", &task.alloc.stdout.to_end(LIMIT).await?, &some.repeat(6))?;
    let lines = || std::str::from_utf8(some).unwrap_or_default().lines();
    let all_came = || {
        let mut counts = BTreeMap::new();
        for message in got(&received) {
            let line = message["short_message"].as_str().unwrap_or_default().to_owned();
            *counts.entry(line).or_insert(0) += 1;
        }
        lines().all(|line| counts.get(line).is_some_and(|count| *count >= 6))
    };
    until(LIMIT, "each line six times", all_came).await?;
    plugin.shut_down().await
}

async fn a_receiver_that_does_not_answer_fails_the_start_for_now(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let config = json!({"syslog-address": format!("tcp://{address}")});
    let task = case.prepare(plugin, &logged(case, "true", "syslog", config)).await?;
    let refusal = refused(plugin.start_task(task.config.clone()).await, &["logging", &address])?;
    ensure!(is_recoverable(&refusal)?, "the start is not tried again: {}", refusal.message());
    case.nothing_left()?;
    let config = json!({"fluentd-address": address, "fluentd-async": "true"});
    let (_, stdout) = run(case, plugin, &logged(case, "echo runs", "fluentd", config)).await?;
    ensure_eq!(String::from_utf8_lossy(&stdout), "runs\n");
    Ok(())
}

async fn a_receiver_that_goes_away_stops_no_task(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let config = json!({"syslog-address": format!("tcp://{}", listener.local_addr()?)});
    let job = logged(
        case,
        "echo first; while [ ! -e /local/go ]; do sleep 0.1; done; cat /local/big",
        "syslog",
        config,
    );
    let mut task = case.prepare(plugin, &job).await?;
    std::fs::write(task.alloc.task_path("local/big"), numbered())?;
    task.start(plugin).await?;
    task.alloc.stdout.to_contain("first\n", LIMIT).await?;
    drop(listener);
    std::fs::write(task.alloc.task_path("local/go"), "")?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 0);
    task.destroy(plugin).await?;
    is_whole("stdout", &task.alloc.stdout.to_end(LIMIT).await?, &[b"first\n", &numbered()[..]].concat())
}

async fn a_collector_of_nomad_s_that_ends_stops_no_task(case: &CaseContext) -> Result<()> {
    let (address, received) = gelf_tcp()?;
    let mut plugin = case.plugin().await?;
    let script = "for step in 1 2 3; do echo $step; until [ -e /local/go$step ]; do sleep 0.1; done; \
                  cat /local/some; done; echo end";
    let job = logged(case, script, "gelf", json!({"gelf-address": format!("tcp://{address}")}));
    let mut task = case.prepare(&plugin, &job).await?;
    // More than the pipes hold.
    let (lines, line) = (200, [&[b'x'; 8191][..], b"\n"].concat());
    std::fs::write(task.alloc.task_path("local/some"), line.repeat(lines))?;
    let go = |task: &Task, step: u32| std::fs::write(task.alloc.task_path(&format!("local/go{step}")), "");
    task.start(&plugin).await?;
    task.alloc.stdout.to_contain("1\n", LIMIT).await?;
    task.alloc.stdout.stop();
    let came = |step: u32| {
        let step = json!(step.to_string());
        got(&received).iter().any(|message| message["short_message"] == step)
    };
    go(&task, 1)?;
    until(LIMIT, "the second step", || came(2)).await?;
    // A later plugin has no collector either.
    plugin = case.next_plugin(&mut plugin).await?;
    task.recover(&plugin).await?;
    go(&task, 2)?;
    until(LIMIT, "the third step", || came(3)).await?;
    task.alloc.stdout.start(Duration::ZERO)?;
    go(&task, 3)?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
    task.destroy(&plugin).await?;
    let stdout = task.alloc.stdout.to_end(LIMIT).await?;
    ensure!(stdout.ends_with(b"end\n"), "a collector that is back has not got the end");
    until(LIMIT, "the messages", || got(&received).len() >= 3 * lines + 4).await?;
    plugin.shut_down().await
}

async fn a_buffer_lets_a_task_run_whose_receiver_takes_nothing(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    // Accepts connections, and reads nothing.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let config = json!({
        "syslog-address": format!("tcp://{}", listener.local_addr()?), "mode": "non-blocking", "max-buffer-size": "64k"
    });
    let job = logged(case, "for i in 1 2 3 4 5 6 7 8; do cat /local/big; done; echo end", "syslog", config);
    let mut task = case.prepare(plugin, &job).await?;
    std::fs::write(task.alloc.task_path("local/big"), numbered())?;
    task.start(plugin).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 0);
    task.destroy(plugin).await?;
    is_whole(
        "stdout",
        &task.alloc.stdout.to_end(LIMIT).await?,
        &[&numbered().repeat(8)[..], b"end\n"].concat(),
    )
}

async fn output_of_the_type_none_is_nowhere(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut job = case.shell(
        "echo over; echo and out >&2; touch /local/written; until [ -e /local/go ]; do sleep 0.1; done",
    );
    job["logging"] = json!({"driver": "none"});
    let mut task = case.prepare(plugin, &job).await?;
    task.start(plugin).await?;
    let (written, go) = (task.alloc.task_path("local/written"), task.alloc.task_path("local/go"));
    until(LIMIT, "the output", || written.exists()).await?;
    let ended = task.alloc.stdout.to_end(Duration::from_secs(1)).await;
    ensure!(ended.is_err(), "Nomad's collector has ended before the task");
    std::fs::write(go, "")?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 0);
    task.destroy(plugin).await?;
    ensure!(task.alloc.stdout.to_end(LIMIT).await?.is_empty());
    ensure!(task.alloc.stderr.to_end(LIMIT).await?.is_empty());
    Ok(())
}

async fn a_log_type_of_others_is_refused(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    for (log_type, config, words) in [
        ("splunk", json!({"splunk-token": "x"}), ["logging.type", "splunk"]),
        ("loki", json!({}), ["logging.type", "plugins"]),
        ("syslog", json!({"syslog-adress": "udp://a"}), ["logging.config", "syslog-adress"]),
        ("gelf", json!({}), ["logging.config", "gelf-address"]),
    ] {
        let task = case.prepare_unread(plugin, &logged(case, "true", log_type, config)).await?;
        let refusal = refused(plugin.start_task(task.config.clone()).await, &words)?;
        ensure!(!is_recoverable(&refusal)?, "{}", refusal.message());
    }
    Ok(())
}

async fn a_socket_of_the_host_needs_the_operator_s_permission(case: &CaseContext) -> Result<()> {
    let mut options = case.options();
    options["volumes"] = json!({"enabled": false});
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let config = json!({"syslog-address": "unix:///run/other.sock"});
    let task = case.prepare_unread(&plugin, &logged(case, "true", "syslog", config)).await?;
    refused(
        plugin.start_task(task.config.clone()).await,
        &["logging.config", "/run/other.sock", "volumes.enabled"],
    )?;
    plugin.shut_down().await
}

async fn a_trusted_facility_is_the_operator_s_alone(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let config = json!({"syslog-facility": "authpriv", "tag": "sshd"});
    let task = case.prepare_unread(plugin, &logged(case, "true", "syslog", config)).await?;
    let words = ["syslog-facility", "authpriv", "the plugin's logging block"];
    let refusal = refused(plugin.start_task(task.config.clone()).await, &words)?;
    ensure!(!is_recoverable(&refusal)?, "{}", refusal.message());
    Ok(())
}

async fn an_address_of_the_host_needs_the_operator_s_permission(case: &CaseContext) -> Result<()> {
    let (address, _received) = gelf_tcp()?;
    let mut options = case.options();
    options["logging"] = json!({});
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let localhost = address.replace("127.0.0.1", "localhost");
    for address in [address, localhost] {
        let job = logged(case, "true", "gelf", json!({"gelf-address": format!("tcp://{address}")}));
        let task = case.prepare_unread(&plugin, &job).await?;
        let words = ["logging.allowed_host_addresses", "an address of the host's own"];
        let refusal = refused(plugin.start_task(task.config.clone()).await, &words)?;
        ensure!(!is_recoverable(&refusal)?, "{}", refusal.message());
    }
    plugin.shut_down().await
}

async fn a_type_needs_the_operator_s_permission(case: &CaseContext) -> Result<()> {
    let mut options = case.options();
    options["logging"] = json!({"allowed_types": ["syslog"]});
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = case.prepare_unread(&plugin, &logged(case, "true", "journald", json!({}))).await?;
    refused(plugin.start_task(task.config.clone()).await, &["logging.type", "logging.allowed_types"])?;
    plugin.shut_down().await
}

async fn nomad_s_handle_has_no_value_of_the_environment(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let (address, received) = gelf_tcp()?;
    let config = json!({"gelf-address": format!("tcp://{address}"), "env": "SECRET"});
    let mut task = case.prepare(plugin, &logged(case, "echo one", "gelf", config)).await?;
    task.config.env.insert("SECRET".to_owned(), "a-word-of-its-own".to_owned());
    task.start(plugin).await?;
    until(LIMIT, "the message", || got(&received).len() == 1).await?;
    let messages = got(&received);
    ensure_eq!(messages[0].get("_SECRET"), Some(&json!("a-word-of-its-own")));
    let handle = task.handle.as_ref().context("the task has no handle")?;
    ensure!(!String::from_utf8_lossy(&handle.driver_state).contains("a-word-of-its-own"));
    task.wait(plugin).await?;
    task.destroy(plugin).await
}

/// An earlier plugin knows nothing of receivers: to it the handle is that of a task whose output the driver collects.
async fn an_earlier_plugin_writes_the_output_to_files(case: &CaseContext) -> Result<()> {
    let (address, received) = gelf_tcp()?;
    let mut plugin = case.plugin().await?;
    let script = "echo one; until [ -e /local/go ]; do sleep 0.1; done; cat /local/big /local/big /local/big";
    let job = logged(case, script, "gelf", json!({"gelf-address": format!("tcp://{address}")}));
    let mut task = case.prepare(&plugin, &job).await?;
    std::fs::write(task.alloc.task_path("local/big"), numbered())?;
    task.start(&plugin).await?;
    task.alloc.stdout.to_contain("one\n", LIMIT).await?;
    until(LIMIT, "the message", || got(&received).len() == 1).await?;
    let handle = task.handle.as_mut().context("the task has no handle")?;
    let mut state: Value = serde_json::from_slice(&handle.driver_state)?;
    let fields = state.as_object_mut().context("the driver state is no object")?;
    fields.remove("forwarded").context("the driver state does not say where the output goes")?;
    handle.driver_state = serde_json::to_vec(&state)?;
    plugin = case.next_plugin(&mut plugin).await?;
    task.recover(&plugin).await?;
    std::fs::write(task.alloc.task_path("local/go"), "")?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
    is_whole("stdout", &output(&task, "stdout")?, &numbered().repeat(3))?;
    ensure_eq!(got(&received).len(), 1);
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}
