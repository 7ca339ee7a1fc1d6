//! What is mounted into a container: the kernel's file systems, the directories that Nomad shares with a task, and the
//! host volumes that the job mounts.

use std::path::Path;

use nomad_proto::driver as pb;
use oci_spec::OciSpecError;
use oci_spec::runtime::{Mount, MountBuilder};

use super::SpecError;

pub(super) fn mounts(task: &pb::TaskConfig) -> Result<Vec<Mount>, SpecError> {
    let mut mounts = kernel_mounts()?;
    mounts.extend(nomad_mounts(task)?);
    for mount in &task.mounts {
        mounts.push(volume(mount)?);
    }
    Ok(mounts)
}

fn kernel_mounts() -> Result<Vec<Mount>, OciSpecError> {
    [
        ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"][..]),
        ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ]
    .into_iter()
    .map(|(at, kind, source, options)| mount(at, kind, source, options))
    .collect()
}

/// The alloc directory is shared by the tasks of a group; the logs in it are Nomad's to write.
fn nomad_mounts(task: &pb::TaskConfig) -> Result<Vec<Mount>, OciSpecError> {
    let alloc = Path::new(&task.alloc_dir);
    let own = alloc.join(&task.name);
    [
        ("/alloc", alloc.join("alloc"), "rw"),
        ("/alloc/logs", alloc.join("alloc/logs"), "ro"),
        ("/local", own.join("local"), "rw"),
        ("/secrets", own.join("secrets"), "rw"),
    ]
    .into_iter()
    .map(|(at, source, access)| {
        mount(at, "bind", &source.display().to_string(), &["rbind", "rprivate", access])
    })
    .collect()
}

fn volume(asked: &pb::Mount) -> Result<Mount, SpecError> {
    let propagation = match asked.propagation_mode.as_str() {
        "" | "private" => "rprivate",
        "host-to-task" => "rslave",
        "bidirectional" => "rshared",
        other => {
            return Err(SpecError::Propagation {
                host_path: asked.host_path.clone(),
                task_path: asked.task_path.clone(),
                mode: other.to_owned(),
            });
        }
    };
    let access = if asked.readonly { "ro" } else { "rw" };
    Ok(mount(&asked.task_path, "bind", &asked.host_path, &["rbind", propagation, access])?)
}

fn mount(at: &str, kind: &str, source: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    MountBuilder::default().destination(at).typ(kind).source(source).options(options).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_mounted_as_nomad_asks() {
        let asked = pb::Mount {
            task_path: "/data".to_owned(),
            host_path: "/srv/data".to_owned(),
            readonly: true,
            propagation_mode: "host-to-task".to_owned(),
            ..Default::default()
        };
        let made = volume(&asked).unwrap();
        assert_eq!(made.options().clone().unwrap(), ["rbind", "rslave", "ro"]);
        assert_eq!(made.source().as_deref(), Some(Path::new("/srv/data")));
        let wrong = pb::Mount { propagation_mode: "sideways".to_owned(), ..asked };
        let error = volume(&wrong).unwrap_err().to_string();
        assert!(error.contains("/srv/data") && error.contains("sideways"), "{error}");
    }

    #[test]
    fn the_tasks_directories_come_before_its_volumes_and_its_logs_are_read_only() {
        let task = pb::TaskConfig {
            name: "web".to_owned(),
            alloc_dir: "/nomad/alloc/1".to_owned(),
            mounts: vec![pb::Mount {
                task_path: "/alloc/x".to_owned(),
                host_path: "/x".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let made = mounts(&task).unwrap();
        let at = |path: &str| made.iter().position(|mount| mount.destination() == Path::new(path)).unwrap();
        assert!(at("/alloc") < at("/alloc/logs") && at("/alloc/logs") < at("/alloc/x"));
        assert!(made[at("/alloc/logs")].options().clone().unwrap().contains(&"ro".to_owned()));
        assert_eq!(made[at("/secrets")].source().as_deref(), Some(Path::new("/nomad/alloc/1/web/secrets")));
    }
}
