//! The option `security_opt`: a list in docker's format, of which the words that have an effect here are accepted.
//!
//! Source of the facts: moby/moby `daemon/daemon_unix.go` (`parseSecurityOpt`), docker/cli
//! `cli/command/container/opts.go`.

use crate::config::{ConfigError, reject_nulls, value};

const OPTION: &str = "security_opt";
const KNOWN: &str = "it is none of no-new-privileges, seccomp=unconfined|builtin|<path>, \
                     apparmor=unconfined|<profile>, systempaths=unconfined, label=disable";

/// The decoded settings of the list.
#[derive(Debug, Default)]
pub(super) struct SecurityOpt {
    pub no_new_privileges: Option<bool>,
    pub seccomp: Option<String>,
    pub apparmor: Option<String>,
    pub system_paths_unconfined: bool,
}

impl SecurityOpt {
    pub(super) fn decode(list: Option<Vec<Option<String>>>) -> Result<Self, ConfigError> {
        let (mut options, mut seen) = (Self::default(), Vec::new());
        for word in reject_nulls(OPTION, list)? {
            // Docker's older form has a colon.
            let (key, setting) = word.split_once('=').or_else(|| word.split_once(':')).unwrap_or((&word, ""));
            if seen.iter().any(|earlier| earlier == key) {
                return Err(value(OPTION, word, "the list has it twice"));
            }
            seen.push(key.to_owned());
            match (key, setting) {
                ("no-new-privileges", "" | "true") => options.no_new_privileges = Some(true),
                ("no-new-privileges", "false") => options.no_new_privileges = Some(false),
                ("seccomp", setting) if !setting.is_empty() => options.seccomp = Some(setting.to_owned()),
                ("apparmor", setting) if !setting.is_empty() => options.apparmor = Some(setting.to_owned()),
                ("systempaths", "unconfined") => options.system_paths_unconfined = true,
                // No task has a label, so there is nothing to disable.
                ("label", "disable") => {}
                ("label", _) => {
                    return Err(value(
                        OPTION,
                        word,
                        "this driver gives tasks no SELinux labels; leave it out",
                    ));
                }
                _ => return Err(value(OPTION, word, KNOWN)),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::task::tests::refusal;

    #[test]
    fn unsupported_security_opts_are_refused() {
        for word in [
            "seccomp",
            "seccomp=",
            "apparmor",
            "no-new-privileges=maybe",
            "systempaths",
            "writable-cgroups=true",
            "",
        ] {
            let error = refusal("security_opt", json!([word]));
            assert!(error.contains(&format!("{word:?}")) && error.contains("seccomp=unconfined"), "{error}");
        }
        assert!(refusal("security_opt", json!(["label=type:x"])).contains("SELinux"));
        assert!(refusal("security_opt", json!(["seccomp=builtin", "seccomp=/x"])).contains("twice"));
    }
}
