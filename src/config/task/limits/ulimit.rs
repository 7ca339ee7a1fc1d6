//! The options `ulimit { nofile = "2048:4096" }` and `file_limit`, its short form for the number of open files.
//!
//! Source of the facts: getrlimit(2); docker's command line for the names and for -1.

use oci_spec::runtime::PosixRlimitType;
use serde_json::Value;

use crate::config::number::Number;
use crate::config::{ConfigError, string_map, value};

const FILES: &str = "nofile";
const KINDS: [(&str, PosixRlimitType); 16] = [
    ("as", PosixRlimitType::RlimitAs),
    ("core", PosixRlimitType::RlimitCore),
    ("cpu", PosixRlimitType::RlimitCpu),
    ("data", PosixRlimitType::RlimitData),
    ("fsize", PosixRlimitType::RlimitFsize),
    ("locks", PosixRlimitType::RlimitLocks),
    ("memlock", PosixRlimitType::RlimitMemlock),
    ("msgqueue", PosixRlimitType::RlimitMsgqueue),
    ("nice", PosixRlimitType::RlimitNice),
    (FILES, PosixRlimitType::RlimitNofile),
    ("nproc", PosixRlimitType::RlimitNproc),
    ("rss", PosixRlimitType::RlimitRss),
    ("rtprio", PosixRlimitType::RlimitRtprio),
    ("rttime", PosixRlimitType::RlimitRttime),
    ("sigpending", PosixRlimitType::RlimitSigpending),
    ("stack", PosixRlimitType::RlimitStack),
];

/// A resource limit of a process (getrlimit(2)), in the kernel's units. `u64::MAX` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rlimit {
    pub kind: PosixRlimitType,
    pub soft: u64,
    pub hard: u64,
}

/// Decodes the limits of both options.
///
/// # Errors
/// Names the option, and the limit that is unknown or has an invalid value.
pub(super) fn decode(ulimit: Option<Value>, file_limit: Option<Number>) -> Result<Vec<Rlimit>, ConfigError> {
    let mut ulimit = string_map::decode("ulimit", ulimit)?;
    if let Some(number) = file_limit {
        let files = number.within("file_limit", 1, i64::MAX)?;
        if ulimit.contains_key(FILES) {
            let why = "ulimit has nofile, which is the same limit: leave one of them out";
            return Err(value("file_limit", files.to_string(), why));
        }
        ulimit.insert(FILES.to_owned(), Some(files.to_string()));
    }
    ulimit.into_iter().map(|(name, text)| rlimit(&name, &text.unwrap_or_default())).collect()
}

fn rlimit(name: &str, text: &str) -> Result<Rlimit, ConfigError> {
    let refused = |why: String| value("ulimit", format!("{name} = {text:?}"), why);
    let kind = KINDS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind).ok_or_else(|| {
        refused(format!("unknown limit; known limits are {}", KINDS.map(|(known, _)| known).join(", ")))
    })?;
    let (soft, hard) = text.split_once(':').unwrap_or((text, text));
    let (Some(soft), Some(hard)) = (number(soft), number(hard)) else {
        return Err(refused("it must be \"soft:hard\" or one number for both; -1 is no limit".to_owned()));
    };
    if soft > hard {
        return Err(refused("the soft limit, before the colon, is higher than the hard one".to_owned()));
    }
    Ok(Rlimit { kind, soft, hard })
}

fn number(text: &str) -> Option<u64> {
    if text == "-1" { Some(u64::MAX) } else { text.parse().ok() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::task::tests::{decode, refusal};

    #[test]
    fn a_ulimit_is_one_number_or_two() {
        let options = json!({"image": "x", "ulimit": {"nproc": "5", "core": "-1", "nofile": "2048:4096"}});
        let of = |kind, soft, hard| Rlimit { kind, soft, hard };
        let wanted = [
            of(PosixRlimitType::RlimitCore, u64::MAX, u64::MAX),
            of(PosixRlimitType::RlimitNofile, 2048, 4096),
            of(PosixRlimitType::RlimitNproc, 5, 5),
        ];
        assert_eq!(decode(&options).unwrap().limits.rlimits, wanted);
        let options = json!({"image": "x", "ulimit": [{"nproc": 5}, {"core": "-1", "nofile": "2048:4096"}]});
        assert_eq!(decode(&options).unwrap().limits.rlimits, wanted);
    }

    #[test]
    fn an_invalid_ulimit_is_refused() {
        for (name, text) in [
            ("files", "5"),
            ("NOFILE", "5"),
            ("nofile", ""),
            ("nofile", "many"),
            ("nofile", "1:2:3"),
            ("nofile", ":5"),
            ("nofile", "-2"),
            ("nofile", "4096:2048"),
            ("nofile", "-1:2048"),
        ] {
            let error = refusal("ulimit", json!({name: text}));
            assert!(error.contains(name), "{error}");
        }
        refusal("ulimit", json!({"nofile": null}));
    }

    #[test]
    fn nofile_has_an_option_of_its_own() {
        let options = json!({"image": "x", "file_limit": 4096});
        let wanted = [Rlimit { kind: PosixRlimitType::RlimitNofile, soft: 4096, hard: 4096 }];
        assert_eq!(decode(&options).unwrap().limits.rlimits, wanted);
        refusal("file_limit", json!(0));
        let both = decode(&json!({"image": "x", "file_limit": 1, "ulimit": {"nofile": "1"}})).unwrap_err();
        assert!(both.to_string().contains("file_limit") && both.to_string().contains("ulimit"), "{both}");
    }
}
