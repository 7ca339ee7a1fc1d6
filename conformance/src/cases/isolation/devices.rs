//! The host's devices in a task, by path, by CDI name, and from Nomad's device plugins. A node of the kernel's log in
//! the case's directory stands for hardware: opening it for writing needs no right but that of the device.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nomad_proto::driver as pb;
use serde_json::{Value, json};

use crate::cases::support::{cases, ensure_eq, refused};

cases!["devices":
    a_device_has_the_hosts_mode_and_the_permissions_asked_for,
    a_device_may_be_a_block_and_a_directory_all_below_it,
    devices_of_nomads_device_plugins_are_there,
    a_device_that_is_not_there_or_none_is_refused_before_anything_is_made,
    the_operator_says_which_devices_jobs_may_have,
    a_cdi_device_brings_all_that_its_file_says,
    a_cdi_device_that_no_file_describes_is_refused_by_name,
];

/// Shell function that prints whether the task may write to the device at a path.
const TRY: &str = "may() { (: > $1) 2> /dev/null && echo writes || echo no; }; ";

/// Makes a device node of the kernel's log in the case's directory.
fn device(case: &CaseContext, name: &str) -> Result<PathBuf> {
    let path = case.directory().join("dev").join(name);
    fs::create_dir_all(path.parent().context("below the directory")?)?;
    mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o640), makedev(1, 11))
        .with_context(|| format!("make the device {}", path.display()))?;
    nix::unistd::chown(&path, Some(1000.into()), Some(44.into()))?;
    Ok(path)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn with_devices(case: &CaseContext, script: &str, devices: Value) -> Value {
    let mut config = case.shell(&format!("{TRY}{script}"));
    config["devices"] = devices;
    config
}

async fn stdout_of(case: &CaseContext, options: &Value, config: &Value) -> Result<String> {
    let mut plugin = case.plugin_as(&case.launch(), options).await?;
    let task = case.run(&plugin, config).await?;
    let output = task.stdout(&plugin).await?;
    task.destroy(&plugin).await?;
    plugin.shut_down().await?;
    Ok(output)
}

/// Asserts that a start with these devices is refused with these words and leaves nothing.
async fn start_is_refused(case: &CaseContext, options: &Value, devices: Value, words: &[&str]) -> Result<()> {
    let mut plugin = case.plugin_as(&case.launch(), options).await?;
    let task = case.prepare(&plugin, &with_devices(case, "true", devices)).await?;
    refused(plugin.start_task(task.config.clone()).await, words)?;
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn a_device_has_the_hosts_mode_and_the_permissions_asked_for(case: &CaseContext) -> Result<()> {
    let path = shown(&device(case, "log")?);
    let script = "stat -c '%F %a %u %g %t:%T' /dev/log; may /dev/log";
    for (permissions, wanted) in [("", "writes\n"), (":w", "writes\n"), (":rm", "no\n")] {
        let devices = json!([format!("{path}:/dev/log{permissions}")]);
        let output = stdout_of(case, &case.options(), &with_devices(case, script, devices)).await?;
        ensure_eq!(output, format!("character special file 640 1000 44 1:b\n{wanted}"));
    }
    // A device without a path in the container has the host's path.
    let config = with_devices(case, &format!("may {path}"), json!([format!("{path}:w")]));
    ensure_eq!(stdout_of(case, &case.options(), &config).await?, "writes\n");
    Ok(())
}

async fn a_device_may_be_a_block_and_a_directory_all_below_it(case: &CaseContext) -> Result<()> {
    let path = device(case, "one/log")?;
    device(case, "one/more/log")?;
    fs::write(path.with_file_name("text"), "")?;
    let block = json!([
        {"host_path": shown(&path), "container_path": "/dev/log", "cgroup_permissions": "r"},
        {"host_path": shown(&path)},
    ]);
    let one = with_devices(case, "may /dev/log", json!([block[0]]));
    ensure_eq!(stdout_of(case, &case.options(), &one).await?, "no\n");
    let config = with_devices(case, &format!("may /dev/log; may {}", shown(&path)), block);
    // Device rules are by number, whatever the path: those for both nodes apply.
    ensure_eq!(stdout_of(case, &case.options(), &config).await?, "writes\nwrites\n");
    let directory = path.parent().context("below the directory")?;
    let config = with_devices(
        case,
        "cd /dev/all; find . -type c | sort; may more/log; ls",
        json!([format!("{}:/dev/all:w", shown(directory))]),
    );
    ensure_eq!(stdout_of(case, &case.options(), &config).await?, "./log\n./more/log\nwrites\nlog\nmore\n");
    Ok(())
}

async fn devices_of_nomads_device_plugins_are_there(case: &CaseContext) -> Result<()> {
    let path = shown(&device(case, "log")?);
    let mut plugin = case.plugin().await?;
    let mut task = case.prepare(&plugin, &case.shell(&format!("{TRY} may /dev/accelerator"))).await?;
    task.config.devices = vec![pb::Device {
        task_path: "/dev/accelerator".to_owned(),
        host_path: path,
        cgroup_permissions: "w".to_owned(),
    }];
    task.start(&plugin).await?;
    ensure_eq!(task.stdout(&plugin).await?, "writes\n");
    task.destroy(&plugin).await?;
    let mut lost = case.prepare(&plugin, &case.shell("true")).await?;
    lost.config.devices = vec![pb::Device {
        task_path: "/dev/accelerator".to_owned(),
        host_path: "/dev/no-such-accelerator".to_owned(),
        cgroup_permissions: String::new(),
    }];
    refused(plugin.start_task(lost.config.clone()).await, &["/dev/no-such-accelerator"])?;
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn a_device_that_is_not_there_or_none_is_refused_before_anything_is_made(
    case: &CaseContext,
) -> Result<()> {
    let path = shown(&device(case, "log")?);
    let file = case.directory().join("dev/file");
    fs::write(&file, "")?;
    for (devices, words) in [
        (json!(["/dev/no-such-device"]), ["/dev/no-such-device", "can't find it"]),
        (json!([shown(&file)]), ["dev/file", "not a device"]),
        (json!(["log"]), ["devices", "log"]),
        (json!([format!("{path}:/dev/log:rx")]), ["devices", "rx"]),
        (json!([{"host_path": path, "permissions": "r"}]), ["devices", "cgroup_permissions"]),
        (json!([format!("{path}:/dev/log"), "/dev/null:/dev/log"]), ["/dev/log", "two devices"]),
    ] {
        start_is_refused(case, &case.options(), devices, &words).await?;
    }
    Ok(())
}

async fn the_operator_says_which_devices_jobs_may_have(case: &CaseContext) -> Result<()> {
    let path = device(case, "allowed/log")?;
    let link = path.with_file_name("link");
    std::os::unix::fs::symlink("/dev/null", &link)?;
    let mut options = case.options();
    options["allow_devices"] =
        json!([shown(path.parent().context("below the directory")?), "vendor.com/log"]);
    let config = with_devices(case, "may /dev/log", json!([format!("{}:/dev/log:w", shown(&path))]));
    ensure_eq!(stdout_of(case, &options, &config).await?, "writes\n");
    for refused in ["/dev/null".to_owned(), shown(&link), "vendor.com/other=0".to_owned()] {
        start_is_refused(case, &options, json!([refused]), &[&refused, "allow_devices"]).await?;
    }
    Ok(())
}

/// Returns plugin options with the case's two directories of CDI files, the second of which takes precedence, and these
/// directories.
fn cdi(case: &CaseContext) -> Result<(Value, PathBuf, PathBuf)> {
    let [etc, run] = ["etc", "run"].map(|name| case.directory().join("cdi").join(name));
    fs::create_dir_all(&etc)?;
    fs::create_dir_all(&run)?;
    let mut options = case.options();
    options["cdi_spec_dirs"] = json!([shown(&etc), shown(&run)]);
    Ok((options, etc, run))
}

async fn a_cdi_device_brings_all_that_its_file_says(case: &CaseContext) -> Result<()> {
    let path = shown(&device(case, "log")?);
    let (options, etc, run) = cdi(case)?;
    let hooked = case.directory().join("hooked");
    fs::write(case.directory().join("library"), "from the library\n")?;
    let yaml = format!(
        r#"cdiVersion: "0.7.0"
kind: vendor.com/log
containerEdits:
  env:
    - KIND=log
devices:
  - name: "0"
    containerEdits:
      env:
        - GREETING=from the device
      deviceNodes:
        - path: /dev/log0
          hostPath: {path}
          permissions: w
      mounts:
        - hostPath: {directory}/library
          containerPath: /opt/library
          options: [ro, bind]
      hooks:
        - hookName: createRuntime
          path: /bin/touch
          args: [touch, {hooked}]
      additionalGids: [4444]
"#,
        directory = shown(&case.directory()),
        hooked = shown(&hooked),
    );
    fs::write(etc.join("vendor.yaml"), yaml)?;
    let script = "may /dev/log0; echo $KIND $GREETING; cat /opt/library; id -G | tr ' ' '\\n' | grep 4444; \
                  (: > /opt/library) 2> /dev/null || echo read-only";
    let config = with_devices(case, script, json!(["vendor.com/log=0"]));
    let wanted = "writes\nlog from the device\nfrom the library\n4444\nread-only\n";
    ensure_eq!(stdout_of(case, &options, &config).await?, wanted);
    ensure!(hooked.exists(), "its hook has not run");
    let other = json!({
        "cdiVersion": "0.5.0", "kind": "vendor.com/log",
        "devices": [{"name": "0", "containerEdits": {"env": ["GREETING=from elsewhere"]}}],
    });
    fs::write(run.join("vendor.json"), other.to_string())?;
    let config = with_devices(case, "echo $KIND $GREETING", json!(["vendor.com/log=0"]));
    ensure_eq!(stdout_of(case, &options, &config).await?, "from elsewhere\n");
    Ok(())
}

async fn a_cdi_device_that_no_file_describes_is_refused_by_name(case: &CaseContext) -> Result<()> {
    let (options, etc, _) = cdi(case)?;
    fs::write(etc.join("broken.json"), "{")?;
    let words = ["vendor.com/log=0", "cdi/etc", "broken.json"];
    start_is_refused(case, &options, json!(["vendor.com/log=0"]), &words).await
}
