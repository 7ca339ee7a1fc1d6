//! Mount options, with the names that `/etc/fstab` and runtimes use.

use crate::config::{ConfigError, size, value};

/// Mount propagation modes, by docker's names.
pub(super) const PROPAGATION: [&str; 6] = ["private", "rprivate", "slave", "rslave", "shared", "rshared"];
/// Flags of any mount, each with its opposite.
const FLAGS: [(&str, &str); 9] = [
    ("ro", "rw"),
    ("nosuid", "suid"),
    ("nodev", "dev"),
    ("noexec", "exec"),
    ("sync", "async"),
    ("noatime", "atime"),
    ("nodiratime", "diratime"),
    ("relatime", "norelatime"),
    ("strictatime", "nostrictatime"),
];
const WITHOUT_OPPOSITE: [&str; 2] = ["defaults", "dirsync"];
/// Kinds of a bind: of one file system, or with all that is mounted below it.
const BINDS: [&str; 2] = ["bind", "rbind"];

/// The options of one mount, none of which contradicts another.
pub(super) struct Fstab {
    option: &'static str,
    target: String,
    list: Vec<String>,
}

impl Fstab {
    /// Checks that no option contradicts another.
    ///
    /// # Errors
    /// Names two that do.
    pub(super) fn new(option: &'static str, target: &str, list: Vec<String>) -> Result<Self, ConfigError> {
        let options = Self { option, target: target.to_owned(), list };
        for (one, other) in FLAGS.into_iter().chain([(BINDS[0], BINDS[1])]) {
            if options.has(one) && options.has(other) {
                return Err(options.refusal(&format!("{one},{other}"), "leave out one of them"));
            }
        }
        if options.list.iter().filter(|option| is_propagation(option)).count() > 1 {
            return Err(options.refusal(&options.list.join(","), "set one propagation only"));
        }
        Ok(options)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.list.iter().any(|option| option == name)
    }

    pub(super) fn is_bind(&self) -> bool {
        BINDS.iter().any(|name| self.has(name))
    }

    /// Adds an option, unless it or its opposite is set.
    fn default(&mut self, name: &str) {
        let opposite = FLAGS.iter().find_map(|(one, other)| match name {
            _ if name == *one => Some(*other),
            _ if name == *other => Some(*one),
            _ => None,
        });
        if !self.has(name) && !opposite.is_some_and(|opposite| self.has(opposite)) {
            self.list.insert(0, name.to_owned());
        }
    }

    /// Returns the options of a bind mount, checked and with their defaults.
    ///
    /// # Errors
    /// Names an option that a bind mount doesn't have.
    pub(super) fn of_bind(mut self) -> Result<Vec<String>, ConfigError> {
        let known = |name: &str| is_flag(name) || is_propagation(name) || BINDS.contains(&name);
        if let Some(unknown) = self.list.iter().find(|name| !known(name)) {
            let why = "it must be one of rbind, bind, ro, rw, a propagation such as rslave, or a flag such as nosuid";
            return Err(self.refusal(unknown, why));
        }
        if !self.is_bind() {
            self.list.insert(0, "rbind".to_owned());
        }
        if !self.list.iter().any(|option| is_propagation(option)) {
            self.list.push("rprivate".to_owned());
        }
        Ok(self.list)
    }

    /// Returns the options of a tmpfs, checked and with `defaults`.
    ///
    /// # Errors
    /// Names an option that a tmpfs doesn't have, or that has an invalid value.
    pub(super) fn of_tmpfs(mut self, defaults: &[&str]) -> Result<Vec<String>, ConfigError> {
        let checked: Result<Vec<String>, _> = self.list.iter().map(|option| self.tmpfs(option)).collect();
        self.list = checked?;
        for name in defaults {
            self.default(name);
        }
        Ok(self.list)
    }

    fn tmpfs(&self, option: &str) -> Result<String, ConfigError> {
        if is_flag(option) {
            return Ok(option.to_owned());
        }
        let is_number = |text: &str| text.parse::<u32>().is_ok();
        let is_mode = |text: &str| u32::from_str_radix(text, 8).is_ok_and(|mode| mode <= 0o7777);
        match option.split_once('=') {
            Some(("size", percent)) if percent.strip_suffix('%').is_some_and(is_number) => {
                Ok(option.to_owned())
            }
            Some((name @ ("size" | "nr_inodes" | "nr_blocks"), text)) => match size::bytes(text) {
                Some(bytes) => Ok(format!("{name}={bytes}")),
                None => {
                    Err(self.refusal(option, "it must be a number, or one with a unit, such as size=64m"))
                }
            },
            Some(("mode", mode)) if is_mode(mode) => Ok(option.to_owned()),
            Some(("mode", _)) => Err(self.refusal(option, "it must be an octal mode, such as mode=1777")),
            Some(("uid" | "gid", id)) if is_number(id) => Ok(option.to_owned()),
            Some(("uid" | "gid", _)) => Err(self.refusal(option, "it must be a number")),
            _ => {
                let why =
                    "a tmpfs has size=, mode=, uid=, gid=, nr_inodes=, nr_blocks= and flags such as noexec";
                Err(self.refusal(option, why))
            }
        }
    }

    pub(super) fn refusal(&self, what: &str, why: &str) -> ConfigError {
        value(self.option, what, format!("in the mount at {}: {why}", self.target))
    }
}

fn is_flag(name: &str) -> bool {
    FLAGS.iter().any(|(one, other)| name == *one || name == *other) || WITHOUT_OPPOSITE.contains(&name)
}

pub(super) fn is_propagation(name: &str) -> bool {
    PROPAGATION.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &str) -> Result<Fstab, ConfigError> {
        let list = list.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
        Fstab::new("mounts", "/t", list)
    }

    fn tmpfs(list: &str) -> Result<String, ConfigError> {
        options(list)?.of_tmpfs(&["nosuid", "noexec"]).map(|list| list.join(","))
    }

    fn bind(list: &str) -> Result<String, ConfigError> {
        options(list)?.of_bind().map(|list| list.join(","))
    }

    #[test]
    fn bind_propagation_defaults_to_rprivate() {
        assert_eq!(bind("rbind,ro").unwrap(), "rbind,ro,rprivate");
        assert_eq!(bind("bind,rw,nosuid,rslave").unwrap(), "bind,rw,nosuid,rslave");
        assert_eq!(bind("ro").unwrap(), "rbind,ro,rprivate");
    }

    #[test]
    fn tmpfs_defaults_can_be_overridden() {
        assert_eq!(tmpfs("").unwrap(), "noexec,nosuid");
        assert_eq!(
            tmpfs("exec,size=1m,mode=0700,uid=7").unwrap(),
            "nosuid,exec,size=1048576,mode=0700,uid=7"
        );
        assert_eq!(tmpfs("size=10%,suid").unwrap(), "noexec,size=10%,suid");
    }

    #[test]
    fn unsupported_mount_options_are_named() {
        for list in ["ro,rw", "noexec,exec", "bind,rbind", "rslave,rshared"] {
            let error = options(list).err().expect(list).to_string();
            assert!(error.contains("mounts") && error.contains("/t") && error.contains(list), "{error}");
        }
        for list in ["remount", "size=1m", "loop", "rbind ro", "upperdir=/x"] {
            assert!(bind(list).unwrap_err().to_string().contains(list));
        }
        for list in
            ["size=lots", "size=", "mode=9", "mode=70000", "uid=root", "gid=-1", "rbind", "rslave", "x=y"]
        {
            assert!(tmpfs(list).unwrap_err().to_string().contains(list));
        }
    }
}
