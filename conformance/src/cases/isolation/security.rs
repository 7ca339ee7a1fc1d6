//! Actions and views that a task is denied.

use anyhow::{Result, ensure};
use harness::context::CaseContext;
use harness::host::cgroup::is_v2;

use crate::case::skip;
use crate::cases::support::{cases, ensure_eq};

cases!["security":
    a_task_has_dockers_default_capabilities,
    a_task_of_another_user_has_no_effective_capabilities,
    a_task_sees_its_own_processes_only,
    the_kernels_own_files_are_masked_or_read_only,
    a_task_is_as_likely_to_be_killed_for_memory_as_any_other_process,
    nothing_of_the_plugins_environment_or_files_gets_in,
];

/// Docker's default set of capabilities.
const DEFAULT_SET: &str = "00000000a80425fb";

async fn stdout_of(case: &CaseContext, script: &str, user: &str) -> Result<String> {
    let mut plugin = case.plugin().await?;
    let mut task = case.prepare(&plugin, &case.shell(script)).await?;
    task.config.user = user.to_owned();
    task.start(&plugin).await?;
    let output = task.stdout(&plugin).await?;
    task.destroy(&plugin).await?;
    plugin.shut_down().await?;
    Ok(output)
}

async fn a_task_has_dockers_default_capabilities(case: &CaseContext) -> Result<()> {
    let output = stdout_of(case, "grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status | cut -f2 | uniq", "").await?;
    ensure_eq!(output, format!("{DEFAULT_SET}\n"));
    Ok(())
}

async fn a_task_of_another_user_has_no_effective_capabilities(case: &CaseContext) -> Result<()> {
    let output = stdout_of(case, "grep -E 'Cap(Eff|Bnd)' /proc/self/status | cut -f2", "app").await?;
    ensure_eq!(output, format!("{:016x}\n{DEFAULT_SET}\n", 0));
    Ok(())
}

async fn a_task_sees_its_own_processes_only(case: &CaseContext) -> Result<()> {
    let output = stdout_of(case, "echo $$; ls -d /proc/[0-9]* | wc -l", "").await?;
    let mut words = output.split_whitespace();
    ensure_eq!(words.next(), Some("1"));
    let count: usize = words.next().unwrap_or_default().parse()?;
    ensure!(count <= 4, "it sees {count} processes");
    Ok(())
}

async fn the_kernels_own_files_are_masked_or_read_only(case: &CaseContext) -> Result<()> {
    let programs = case.programs();
    if (programs.is_crun() || programs.is_youki()) && !is_v2() {
        let name = programs.runtime_name();
        return skip(format!(
            "{name} mounts the task's own control groups of v1 so that it may write to them"
        ));
    }
    let script = "for f in kcore keys timer_list; do [ -e /proc/$f ] && head -c 1 /proc/$f | wc -c; done | sort -u; \
                  ls /sys/firmware /proc/scsi 2>/dev/null | grep -v : | wc -w";
    ensure_eq!(stdout_of(case, script, "").await?, "0\n0\n");
    let forbidden = [
        "echo x > /proc/sys/kernel/hostname",
        "echo h > /proc/sysrq-trigger",
        "echo 0 > /proc/irq/default_smp_affinity",
        "mkdir /sys/fs/cgroup/memory/x",
        "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk",
        "mount -t tmpfs none /tmp",
    ];
    let tries = forbidden.map(|command| format!("({command}) > /dev/null 2>&1 && echo 'it can: {command}'"));
    ensure_eq!(stdout_of(case, &format!("{}; true", tries.join("\n")), "").await?, "");
    Ok(())
}

async fn a_task_is_as_likely_to_be_killed_for_memory_as_any_other_process(case: &CaseContext) -> Result<()> {
    ensure_eq!(stdout_of(case, "cat /proc/self/oom_score_adj", "").await?, "0\n");
    Ok(())
}

async fn nothing_of_the_plugins_environment_or_files_gets_in(case: &CaseContext) -> Result<()> {
    // No pipeline: the shell would hold its ends for a moment.
    let output =
        stdout_of(case, "env; ls -l /proc/1/fd > /local/files; grep -c ' -> ' /local/files", "").await?;
    for name in ["NOMAD_PLUGIN_MAGIC_COOKIE", "PLUGIN_PROTOCOL_VERSIONS", "CARGO", "SSH_"] {
        ensure!(!output.contains(name), "{name} is in {output}");
    }
    // The script has stdin, stdout, stderr; busybox' shell may hold the script's descriptor too.
    let open: usize = output.lines().last().unwrap_or_default().parse()?;
    ensure!(open <= 4, "the task has {open} files open: {output}");
    Ok(())
}
