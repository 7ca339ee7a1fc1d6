//! The images of the jobs: busybox and the probe under settings of all kinds, also odd ones.

use std::path::Path;

use anyhow::{Context as _, Result};
use harness::fixture::image::Image;
use harness::fixture::layer::Tree;
use harness::fixture::{Catalog, Form, Registry};
use serde_json::Value;

/// The probe's program.
pub const PROBE: &str = include_str!("probe.sh");
/// Path of the program in the images.
pub const AT: &str = "/bin/probe";
/// Repository of the images, of which each is a tag.
pub const REPOSITORY: &str = "differ";

/// An image without layers, in which a job finds only what it mounts.
pub const BARE: &str = "bare";
/// The image of most jobs.
pub const PLAIN: &str = "plain";

/// The names of all images, the form in which the registry has each, and its settings.
const IMAGES: [(&str, Form, &str); 38] = [
    (PLAIN, Form::OciIndex, r#"{"Env": ["PATH=/bin:/usr/bin", "GREETING=hello"], "Cmd": ["/bin/probe"]}"#),
    ("docker", Form::Docker, r#"{"Env": ["PATH=/bin"], "Cmd": ["/bin/probe", "of docker's form"]}"#),
    ("docker-list", Form::DockerList, r#"{"Env": ["PATH=/bin"], "Cmd": ["/bin/probe"]}"#),
    ("entrypoint", Form::Oci, r#"{"Entrypoint": ["/bin/probe", "entry point"]}"#),
    ("both", Form::Oci, r#"{"Entrypoint": ["/bin/probe", "a"], "Cmd": ["b", "c d", ""]}"#),
    ("shell", Form::Oci, r#"{"Cmd": ["/bin/sh", "-c", "/bin/probe \"$HOME\" a  b"]}"#),
    ("shell-exec", Form::Oci, r#"{"Cmd": ["/bin/sh", "-c", "exec /bin/probe 'x y'"]}"#),
    (
        "shell-entrypoint",
        Form::Oci,
        r#"{"Entrypoint": ["/bin/sh", "-c", "exec /bin/probe \"$0\" \"$@\""], "Cmd": ["n"]}"#,
    ),
    ("by-path", Form::Oci, r#"{"Env": ["PATH=/sbin:/bin"], "Cmd": ["probe", "found in PATH"]}"#),
    ("relative", Form::Oci, r#"{"WorkingDir": "/bin", "Cmd": ["./probe"]}"#),
    ("user-name", Form::Oci, r#"{"User": "app", "Cmd": ["/bin/probe"]}"#),
    ("user-number", Form::Oci, r#"{"User": "1000", "Cmd": ["/bin/probe"]}"#),
    ("user-unknown-number", Form::Oci, r#"{"User": "4321", "Cmd": ["/bin/probe"]}"#),
    ("user-group", Form::Oci, r#"{"User": "app:extra", "Cmd": ["/bin/probe"]}"#),
    ("user-numbers", Form::Oci, r#"{"User": "1234:5678", "Cmd": ["/bin/probe"]}"#),
    ("user-mixed", Form::Docker, r#"{"User": "1000:extra", "Cmd": ["/bin/probe"]}"#),
    ("user-root-name", Form::Oci, r#"{"User": "root:root", "Cmd": ["/bin/probe"]}"#),
    ("user-missing", Form::Oci, r#"{"User": "nosuchuser", "Cmd": ["/bin/probe"]}"#),
    ("group-missing", Form::Oci, r#"{"User": "app:nosuchgroup", "Cmd": ["/bin/probe"]}"#),
    ("workdir", Form::Oci, r#"{"WorkingDir": "/home/app", "User": "app", "Cmd": ["/bin/probe"]}"#),
    ("workdir-missing", Form::Oci, r#"{"WorkingDir": "/missing/dir", "Cmd": ["/bin/probe"]}"#),
    (
        "workdir-missing-user",
        Form::Oci,
        r#"{"WorkingDir": "/missing/dir", "User": "app", "Cmd": ["/bin/probe"]}"#,
    ),
    ("workdir-odd", Form::Oci, r#"{"WorkingDir": "/home/../home//app/.", "Cmd": ["/bin/probe"]}"#),
    ("workdir-empty", Form::Oci, r#"{"WorkingDir": "", "Cmd": ["/bin/probe"]}"#),
    (
        "env",
        Form::Oci,
        r#"{"Env": ["EMPTY=", "SPACES=a  b ", "DOLLAR=$HOME ${PATH}", "EQUALS=a=b=c", "HOME=/tmp", "TERM=dumb", "HOSTNAME=x",
            "NOMAD_TASK_NAME=no", "TWICE=1", "TWICE=2", "lower=x", "DOT.TED=y", "UTF=\u00e9"], "Cmd": ["/bin/probe"]}"#,
    ),
    ("env-none", Form::Oci, r#"{"Cmd": ["/bin/probe"]}"#),
    (
        "env-null",
        Form::Oci,
        r#"{"Env": null, "Entrypoint": null, "Cmd": ["/bin/probe"], "Volumes": null, "Labels": null}"#,
    ),
    ("volume", Form::Oci, r#"{"Volumes": {"/data": {}, "/fresh/new": {}}, "Cmd": ["/bin/probe"]}"#),
    ("volume-filled", Form::Oci, r#"{"Volumes": {"/home/app": {}}, "User": "app", "Cmd": ["/bin/probe"]}"#),
    ("stop-int", Form::Oci, r#"{"StopSignal": "SIGINT", "Cmd": ["/bin/probe"]}"#),
    ("stop-usr1", Form::Docker, r#"{"StopSignal": "USR1", "Cmd": ["/bin/probe"]}"#),
    ("stop-number", Form::Oci, r#"{"StopSignal": "12", "Cmd": ["/bin/probe"]}"#),
    ("stop-realtime", Form::Oci, r#"{"StopSignal": "SIGRTMIN+3", "Cmd": ["/bin/probe"]}"#),
    (
        "labels",
        Form::Oci,
        r#"{"Labels": {"a": "b", "org.example.x": "y z"}, "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Cmd": ["/bin/probe"]}"#,
    ),
    (
        "odd-fields",
        Form::Docker,
        r#"{"Hostname": "img", "Domainname": "dom", "Tty": true, "OpenStdin": true, "AttachStdout": true, "ArgsEscaped": true,
            "OnBuild": ["RUN x"], "Shell": ["/bin/ash", "-c"], "Cmd": ["/bin/probe"]}"#,
    ),
    (
        "healthcheck",
        Form::Docker,
        r#"{"Healthcheck": {"Test": ["CMD", "false"], "Interval": 1000000000, "Retries": 1}, "Cmd": ["/bin/probe"]}"#,
    ),
    ("nothing-to-run", Form::Oci, "{}"),
    (BARE, Form::Oci, r#"{"Cmd": ["/bin/busybox", "sh", "/bin/probe"]}"#),
];

/// Returns the names of the images, in which the probe runs by itself.
pub fn names() -> impl Iterator<Item = &'static str> {
    IMAGES.iter().map(|(name, ..)| *name).filter(|name| *name != BARE)
}

/// Returns the image of a name.
///
/// # Errors
/// Fails if there is no such image.
pub fn image(catalog: &Catalog, name: &str) -> Result<(Image, Form)> {
    let (name, form, settings) =
        IMAGES.iter().find(|(known, ..)| *known == name).with_context(|| format!("no image {name:?}"))?;
    let settings: Value = serde_json::from_str(settings).with_context(|| format!("settings of {name}"))?;
    let fill = |tree: &mut Tree| {
        tree.directory("bin", 0o755, 0)?;
        tree.file("bin/probe", 0o755, PROBE.as_bytes())?;
        tree.directory("home", 0o755, 0)?;
        tree.directory("home/app", 0o755, 1000)?;
        tree.file("home/app/.profile", 0o600, b"a file of the image\n")
    };
    let layers = if *name == BARE { Vec::new() } else { catalog.with(fill)?.layers };
    Ok((Image { settings, layers }, *form))
}

/// Pushes the images.
///
/// # Errors
/// Fails with the registry's answer.
pub fn push(catalog: &Catalog, registry: &Registry) -> Result<()> {
    for (name, ..) in &IMAGES {
        let (image, form) = image(catalog, name)?;
        image.push(registry, REPOSITORY, name, form).with_context(|| format!("push {name}"))?;
    }
    Ok(())
}

/// Puts the probe and busybox into a directory of the host, for the image without layers.
///
/// # Errors
/// Fails if a file can't be written.
pub fn lay_out(directory: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::create_dir_all(directory)?;
    let probe = directory.join("probe");
    std::fs::write(&probe, PROBE)?;
    std::fs::set_permissions(&probe, std::fs::Permissions::from_mode(0o755))?;
    std::fs::copy("/bin/busybox", directory.join("busybox")).map(drop).context("busybox-static is needed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_json_objects() {
        for (name, _, settings) in IMAGES {
            let settings: Value =
                serde_json::from_str(settings).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(settings.is_object(), "{name}");
        }
    }
}
