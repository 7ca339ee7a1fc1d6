//! Tasks with more or fewer privileges than the default: privileged ones, a read-only root, no new privileges, and
//! docker's words for these.

use std::os::unix::fs::FileTypeExt;

use anyhow::{Context, Result, bail, ensure};
use harness::apparmor;
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::host::cgroup::is_v2;
use nomad_proto::structs::attribute::Value as AttributeValue;
use serde_json::{Value, json};

use crate::cases::support::{cases, ensure_eq, refused};

cases!["privileged":
    a_privileged_task_can_do_what_root_can_on_the_host,
    a_job_is_privileged_only_where_the_operator_allows_it,
    a_root_that_is_read_only_leaves_nomads_directories_and_memory_writable,
    no_program_gains_rights_where_the_job_says_so,
    the_systems_paths_are_as_the_kernel_has_them_where_the_job_says_so,
    an_apparmor_profile_that_can_not_be_is_refused,
    a_task_has_the_drivers_apparmor_profile_where_the_host_can_load_it,
];

fn with(mut config: Value, option: &str, value: impl Into<Value>) -> Value {
    config[option] = value.into();
    config
}

async fn stdout_of(
    case: &CaseContext,
    script: &str,
    option: &str,
    value: impl Into<Value>,
) -> Result<String> {
    let mut plugin = case.plugin().await?;
    let task = case.run(&plugin, &with(case.shell(script), option, value)).await?;
    let output = task.stdout(&plugin).await?;
    task.destroy(&plugin).await?;
    plugin.shut_down().await?;
    Ok(output)
}

async fn a_privileged_task_can_do_what_root_can_on_the_host(case: &CaseContext) -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let all = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap_or_default();
    let group = if is_v2() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" };
    let script = format!(
        "set -e
         grep -E '^(CapPrm|CapEff|CapBnd|Seccomp):' /proc/self/status | cut -f2 | uniq
         mount -t tmpfs none /mnt 2>/dev/null || {{ mkdir /mnt && mount -t tmpfs none /mnt; }}
         mkdir {group}/of-a-privileged-task && rmdir {group}/of-a-privileged-task
         test -w /proc/sys/kernel/hostname && hostname elsewhere && cat /proc/sys/kernel/hostname
         grep ' /sys sysfs' /proc/mounts | cut -d' ' -f4 | cut -d, -f1
         mknod /tmp/kmsg c 1 11 && : < /tmp/kmsg && echo read
         ls /dev | sort | tr '\\n' ' '"
    );
    let output = stdout_of(case, &script, "privileged", true).await?;
    let (rights, devices) = output.trim_end().rsplit_once('\n').unwrap_or_default();
    ensure_eq!(rights, format!("{all}\n0\nelsewhere\nrw\nread"));
    let devices: Vec<&str> = devices.split(' ').collect();
    for entry in std::fs::read_dir("/dev")? {
        let entry = entry?;
        let (name, kind) = (entry.file_name().to_string_lossy().into_owned(), entry.file_type()?);
        let is_device = kind.is_char_device() || kind.is_block_device();
        ensure!(!is_device || name == "console" || devices.contains(&name.as_str()), "{name} is not there");
    }
    Ok(())
}

async fn a_job_is_privileged_only_where_the_operator_allows_it(case: &CaseContext) -> Result<()> {
    for (plugin_option, value) in [("allow_privileged", json!(false)), ("allow_caps", json!(["CHOWN"]))] {
        let mut plugin = case.plugin_as(&case.launch(), &with(case.options(), plugin_option, value)).await?;
        for (option, value, word) in [
            ("privileged", json!(true), "privileged"),
            ("security_opt", json!(["systempaths=unconfined"]), "systempaths=unconfined"),
        ] {
            let task = case.prepare(&plugin, &with(case.shell("true"), option, value)).await?;
            refused(plugin.start_task(task.config.clone()).await, &[option, word, plugin_option])?;
            case.nothing_left()?;
        }
        case.still_works(&plugin).await?;
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn a_root_that_is_read_only_leaves_nomads_directories_and_memory_writable(
    case: &CaseContext,
) -> Result<()> {
    let script =
        "for at in / /etc /tmp /bin; do touch $at/x 2>&1 | grep -c 'Read-only file system'; done | uniq
                  for at in /alloc /local /secrets /dev/shm; do touch $at/x && echo $at; done";
    let output = stdout_of(case, script, "readonly_rootfs", true).await?;
    ensure_eq!(output, "1\n/alloc\n/local\n/secrets\n/dev/shm\n");
    Ok(())
}

async fn no_program_gains_rights_where_the_job_says_so(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let look = "awk '/^NoNewPrivs:/ { print $2 }' /proc/self/status";
    for (option, value, wanted) in [
        ("args", json!(["-c", "exec sleep 600"]), "0\n"),
        ("no_new_privileges", json!(true), "1\n"),
        ("security_opt", json!(["no-new-privileges"]), "1\n"),
        ("security_opt", json!(["no-new-privileges:true"]), "1\n"),
    ] {
        let config = with(case.shell("exec sleep 600"), option, value);
        let task = case.run(plugin, &config).await?;
        ensure_eq!(task.exec(plugin, look).await?.1, wanted);
        ensure_eq!(task.exec(plugin, &look.replace("self", "1")).await?.1, wanted);
        task.end(plugin).await?;
    }
    Ok(())
}

async fn the_systems_paths_are_as_the_kernel_has_them_where_the_job_says_so(
    case: &CaseContext,
) -> Result<()> {
    let script = "test -w /proc/sys/kernel/hostname && echo writable; grep -c ' /proc/' /proc/mounts; true";
    let word = json!(["systempaths=unconfined"]);
    ensure_eq!(stdout_of(case, script, "security_opt", word).await?, "writable\n0\n");
    Ok(())
}

async fn an_apparmor_profile_that_can_not_be_is_refused(case: &CaseContext) -> Result<()> {
    let why = if apparmor::is_enabled() { "apparmor_parser" } else { "AppArmor is not enabled" };
    let mut plugin = case.plugin().await?;
    for (option, value) in [
        ("apparmor_profile", json!("no-such-profile")),
        ("security_opt", json!(["apparmor=no-such-profile"])),
    ] {
        let task = case.prepare(&plugin, &with(case.shell("true"), option, value)).await?;
        let answer = plugin.start_task(task.config.clone()).await;
        refused(answer, &["apparmor_profile", "no-such-profile", why])?;
        case.nothing_left()?;
    }
    for (option, value) in
        [("apparmor_profile", json!("unconfined")), ("security_opt", json!(["apparmor=unconfined"]))]
    {
        let task = case.run(&plugin, &with(case.shell("exit 0"), option, value)).await?;
        ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
        task.destroy(&plugin).await?;
    }
    for word in ["label=type:container_t", "writable-cgroups=true", "seccomp"] {
        let task = case.prepare(&plugin, &with(case.shell("true"), "security_opt", json!([word]))).await?;
        refused(plugin.start_task(task.config.clone()).await, &["security_opt", word])?;
    }
    plugin.shut_down().await
}

/// The guest of hack/guest has AppArmor, and tries what the profile denies.
async fn a_task_has_the_drivers_apparmor_profile_where_the_host_can_load_it(
    case: &CaseContext,
) -> Result<()> {
    const PROFILE: &str = "containerd-driver-default";
    let mut plugin = case.plugin_as(&case.launch(), &with(case.options(), "apparmor", true)).await?;
    let found = plugin.fingerprints().await?.message().await?.context("no fingerprint")?;
    let attribute = found.attributes.get("driver.containerd-driver.apparmor_profile");
    let shown = match attribute.and_then(|attribute| attribute.value.clone()) {
        // One that is gone, or has never been, is sent as an empty text.
        Some(AttributeValue::StringVal(text)) => Some(text).filter(|text| !text.is_empty()),
        None => None,
        other => bail!("the attribute is {other:?}"),
    };
    ensure!(shown.is_some() == apparmor::is_enabled(), "the node shows {shown:?}");
    let script = "cat /proc/self/attr/current 2>/dev/null; true";
    let task = case.run(&plugin, &case.shell(script)).await?;
    let output = task.stdout(&plugin).await?;
    let is_confined = output.trim() == format!("{PROFILE} (enforce)");
    ensure!(
        is_confined == (shown.as_deref() == Some(PROFILE)),
        "the node shows {shown:?}, the task {output:?}"
    );
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}
