//! The log receiver of a task: the options of its job, or the plugin's, and what the receiver is told of the container.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::SystemTime;

use nomad_proto::driver as pb;
use oci_spec::runtime::Spec;
use regex_lite::Regex;

use super::error::{Error, Result};
use super::mounts::directory_of;
use crate::config::{
    GelfCompression, LogAttributes, LogEndpoint, LogProtocol, LogReceiver, PluginConfig, SyslogFormat,
    TagField, TagPart, TlsPaths, compile_pattern,
};
use crate::logs::{
    self, ContainerFields, Endpoint, Fluentd, Forwarding, Gelf, HostPath, Protocol, Reach, Syslog, TlsFiles,
};
use crate::shim::Bundle;
use crate::sys::blocking;

/// Length of a short id in docker.
const SHORT_ID_LENGTH: usize = 12;
const DAEMON_NAME: &str = "docker";
/// Name of the bundle's file with what is kept of the receiver.
const FILE: &str = "log-receiver.json";
/// Maximum length of the name of a label or variable that is sent, and maximum number of those that a pattern is tried
/// on: a job chooses both, and the pattern.
const MAX_KEY_BYTES: usize = 256;
const MAX_TRIED_KEYS: usize = 1024;
/// Maximum number of names that are told of, and length of each, where there is no room for all.
const MAX_TOLD: usize = 20;
const MAX_TOLD_CHARS: usize = 64;
/// Maximum length of a name, a tag and a command that are sent with each line. What is longer is cut.
const MAX_TEXT_CHARS: usize = 4096;
/// Maximum size of all labels and variables that are sent with each line.
const MAX_ATTRIBUTE_BYTES: usize = 16 << 10;

/// A task's log receiver, before the container is made.
pub(super) struct Receiver {
    protocol: Protocol,
    reach: Reach,
    options: LogReceiver,
}

/// What is known of the container once its specification is.
pub(super) struct Container<'a> {
    pub(super) id: &'a str,
    pub(super) config: &'a pb::TaskConfig,
    pub(super) image_name: &'a str,
    pub(super) image_digest: &'a str,
    pub(super) spec: &'a Spec,
    pub(super) labels: HashMap<String, String>,
}

impl Receiver {
    /// Returns the receiver of a task. The paths that a `job` names follow the rules of its mounts.
    ///
    /// # Errors
    /// Names a path that the operator does not allow.
    pub(super) fn of(
        options: &LogReceiver,
        is_jobs: bool,
        plugin: &PluginConfig,
        config: &pb::TaskConfig,
    ) -> Result<Self> {
        let place = |path: &Path, is_socket: bool| {
            if !is_jobs {
                return Ok(HostPath::of_host(path));
            }
            let resolved = options.place(path, is_socket, &plugin.volumes, directory_of(config))?;
            Ok::<_, Error>(match resolved {
                None => HostPath::of_host(path),
                Some(resolved) => {
                    HostPath { root: resolved.root, plain: resolved.plain, path: resolved.path }
                }
            })
        };
        let protocol = match &options.protocol {
            LogProtocol::Journald => Protocol::Journald,
            LogProtocol::Syslog(syslog) => Protocol::Syslog(Syslog {
                endpoint: match &syslog.endpoint {
                    None => Endpoint::LocalSyslog,
                    Some(at) => endpoint(at, place)?,
                },
                facility: syslog.facility,
                format: match syslog.format {
                    SyslogFormat::Local => logs::SyslogFormat::Local,
                    SyslogFormat::Rfc3164 => logs::SyslogFormat::Rfc3164,
                    SyslogFormat::Rfc5424 => logs::SyslogFormat::Rfc5424,
                    SyslogFormat::Rfc5424Micro => logs::SyslogFormat::Rfc5424Micro,
                },
            }),
            LogProtocol::Fluentd(fluentd) => Protocol::Fluentd(Fluentd {
                endpoint: endpoint(&fluentd.endpoint, place)?,
                retry_wait: fluentd.retry_wait,
                max_retries: fluentd.max_retries,
                sub_second_precision: fluentd.sub_second_precision,
                request_ack: fluentd.request_ack,
                connects_later: fluentd.connects_later,
                write_timeout: fluentd.write_timeout,
            }),
            LogProtocol::Gelf(gelf) => Protocol::Gelf(Gelf {
                endpoint: endpoint(&gelf.endpoint, place)?,
                compression: match gelf.compression {
                    GelfCompression::Nothing => logs::Compression::Nothing,
                    GelfCompression::Gzip(level) => logs::Compression::Gzip(level),
                    GelfCompression::Zlib(level) => logs::Compression::Zlib(level),
                },
                max_reconnect: gelf.max_reconnect,
                reconnect_delay: gelf.reconnect_delay,
            }),
        };
        let reach = match plugin.log_receivers.host_addresses.clone() {
            _ if !is_jobs => Reach::Operators,
            Some(excepted) => Reach::Beyond(excepted),
            None => Reach::Anywhere,
        };
        Ok(Self { protocol, reach, options: options.clone() })
    }

    /// Checks that the receiver can be reached, so that a task doesn't start without its logs.
    ///
    /// # Errors
    /// Names the receiver. A later start may find it.
    pub(super) async fn check(&self) -> Result<()> {
        self.protocol.check(&self.reach).await.map_err(|error| {
            let is_forbidden = error.is_forbidden();
            let doing = if is_forbidden { "can't be used" } else { "does not answer" };
            Error::refused(error, !is_forbidden)
                .context(format_args!("the log receiver of the task's logging block {doing}"))
        })
    }

    /// Returns whether the output goes to Nomad's logs as well.
    pub(super) fn feeds_nomad(&self) -> bool {
        self.options.feeds_nomad
    }

    /// Returns what is kept of the receiver for as long as the task is there, and the names of the labels and variables
    /// that there is no room for.
    pub(super) async fn forwarding(self, container: Container<'_>) -> (Forwarding, Vec<String>) {
        let Self { protocol, reach, options } = self;
        let LogReceiver { protocol: _, tag, attributes, buffer_bytes, feeds_nomad: _ } = options;
        let Container { id, config, image_name, image_digest, spec, labels } = container;
        let process = spec.process().as_ref();
        let words = process.and_then(|process| process.args().as_ref());
        // The words of a command may be secrets. Only GELF has a place for them.
        let command = words.filter(|_| matches!(protocol, Protocol::Gelf(_)));
        let command = command.map(|words| words.join(" ")).unwrap_or_default();
        let command = command.chars().take(MAX_TEXT_CHARS).collect();
        let env = process.and_then(|process| process.env().clone()).unwrap_or_default();
        let chosen = blocking::run(move || chosen(&attributes, &labels, &env)).await;
        let Chosen { attributes, left_out } = chosen;
        let own = id.rsplit('-').next().unwrap_or(id);
        let mut fields = ContainerFields {
            id: id.to_owned(),
            short_id: short(own),
            name: plain(&format!("{}-{}", config.name, config.alloc_id)),
            image_id: image_digest.to_owned(),
            image_name: plain(image_name),
            command,
            created_at: SystemTime::now(),
            tag: String::new(),
            attributes,
        };
        let tag: String = tag.iter().map(|part| text(part, &fields)).collect();
        fields.tag = plain(&tag);
        (Forwarding { protocol, reach, container: fields, buffer_bytes }, left_out)
    }
}

/// Writes what is kept of a receiver. The bundle, and not Nomad's state, has it: it has values of the task's
/// environment. Blocking: not for an async thread.
///
/// # Errors
/// Names the file.
pub(super) fn write(bundle: &Bundle, forwarding: &Forwarding) -> Result<()> {
    let json = serde_json::to_vec(forwarding)
        .map_err(|error| Error::failed(error).context("record the task's log receiver"))?;
    Ok(bundle.write(FILE, &json)?)
}

/// Reads what [`write`] wrote. `None` if somebody has removed it. Blocking: not for an async thread.
///
/// # Errors
/// Names the file that can't be read.
pub(super) fn read(bundle: &Bundle) -> Result<Option<Forwarding>> {
    Ok(bundle.read_json(FILE)?)
}

/// Replaces control characters, so that a name ends no message and begins no other, and cuts what is too long.
fn plain(text: &str) -> String {
    text.chars().take(MAX_TEXT_CHARS).map(|c| if c.is_control() { '_' } else { c }).collect()
}

fn endpoint(at: &LogEndpoint, place: impl Fn(&Path, bool) -> Result<HostPath>) -> Result<Endpoint> {
    let file = |path: &Option<std::path::PathBuf>| path.as_deref().map(|path| place(path, false)).transpose();
    Ok(match at {
        LogEndpoint::Udp(address) => Endpoint::Udp(address.clone()),
        LogEndpoint::Tcp(address) => Endpoint::Tcp(address.clone()),
        LogEndpoint::Unix(path) => Endpoint::Unix(place(path, true)?),
        LogEndpoint::UnixDatagram(path) => Endpoint::UnixDatagram(place(path, true)?),
        LogEndpoint::Tls(address, TlsPaths { ca, certificate, key, skips_verification }) => Endpoint::Tls {
            address: address.clone(),
            files: TlsFiles {
                ca: file(ca)?,
                certificate: file(certificate)?,
                key: file(key)?,
                skips_verification: *skips_verification,
            },
        },
    })
}

fn short(id: &str) -> String {
    id.chars().take(SHORT_ID_LENGTH).collect()
}

/// Returns the part of a tag for a container.
fn text(part: &TagPart, container: &ContainerFields) -> String {
    match part {
        TagPart::Text(text) => text.clone(),
        TagPart::Field(TagField::ShortId) => container.short_id.clone(),
        TagPart::Field(TagField::Id) => container.id.clone(),
        TagPart::Field(TagField::Name) => container.name.clone(),
        TagPart::Field(TagField::SlashedName) => format!("/{}", container.name),
        TagPart::Field(TagField::ShortImageId) => short(&container.image_id),
        TagPart::Field(TagField::ImageId) => container.image_id.clone(),
        TagPart::Field(TagField::ImageName) => container.image_name.clone(),
        TagPart::Field(TagField::DaemonName) => DAEMON_NAME.to_owned(),
    }
}

/// The labels and variables that are sent with each line, and the names of those that there is no room for.
struct Chosen {
    attributes: BTreeMap<String, String>,
    left_out: Vec<String>,
}

/// Returns the labels and environment variables that a job chose. A variable takes the place of a label of its name, as
/// in docker. Takes long with a pattern that was made for that: not for an async thread.
fn chosen(attributes: &LogAttributes, labels: &HashMap<String, String>, env: &[String]) -> Chosen {
    let LogAttributes { labels: named_labels, labels_regex, env: named_env, env_regex } = attributes;
    let mut left_out = Vec::new();
    let mut pick = |mut pairs: Vec<(&str, &str)>, named: &[String], pattern: &Option<String>| {
        // The patterns were checked with the options.
        let pattern = pattern.as_deref().and_then(|pattern| compile_pattern(pattern).ok());
        let (mut tried, mut chosen) = (0, BTreeMap::new());
        // Labels have no order of their own.
        pairs.sort_unstable();
        for (key, value) in pairs {
            let is_named = named.iter().any(|name| name == key);
            let is_asked = is_named || pattern.is_some();
            if key.len() > MAX_KEY_BYTES || (!is_named && pattern.is_some() && tried == MAX_TRIED_KEYS) {
                left_out.extend(is_asked.then(|| key.to_owned()));
                continue;
            }
            let matches = |pattern: &Regex| pattern.is_match(key);
            tried += usize::from(!is_named);
            if is_named || pattern.as_ref().is_some_and(matches) {
                chosen.insert(key.to_owned(), value.to_owned());
            }
        }
        chosen
    };
    let labels = labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let env = env.iter().filter_map(|pair| pair.split_once('=')).collect();
    let mut all = pick(labels, named_labels, labels_regex);
    all.extend(pick(env, named_env, env_regex));
    let (mut attributes, mut room) = (BTreeMap::new(), MAX_ATTRIBUTE_BYTES);
    for (key, value) in all {
        match room.checked_sub(key.len() + value.len()) {
            Some(rest) => {
                room = rest;
                attributes.insert(key, value);
            }
            None => left_out.push(key),
        }
    }
    Chosen { attributes, left_out: told(left_out) }
}

/// Returns names in a form that is short enough for an event.
fn told(mut names: Vec<String>) -> Vec<String> {
    let more = names.len().saturating_sub(MAX_TOLD);
    names.truncate(MAX_TOLD);
    for name in &mut names {
        if let Some((end, _)) = name.char_indices().nth(MAX_TOLD_CHARS) {
            name.truncate(end);
            name.push_str("..");
        }
    }
    names.extend((more > 0).then(|| format!("{more} more")));
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ip_network::IpNetwork;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn attributes_are_the_chosen_labels_and_variables() {
        let labels = HashMap::from([("team".to_owned(), "web".to_owned()), ("x".to_owned(), "1".to_owned())]);
        let env = words("APP_A=1 APP_B=2=3 SECRET=s team=env");
        let of = |attributes: &LogAttributes| {
            let all = chosen(attributes, &labels, &env).attributes;
            all.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of(&LogAttributes::default()), "");
        let attributes = LogAttributes {
            labels: words("team none"),
            env_regex: Some("^APP_".to_owned()),
            ..LogAttributes::default()
        };
        assert_eq!(of(&attributes), "APP_A=1 APP_B=2=3 team=web");
        let both = LogAttributes { env: words("team"), ..attributes };
        assert_eq!(of(&both), "APP_A=1 APP_B=2=3 team=env");
    }

    #[test]
    fn attributes_are_bounded() {
        let env = [
            format!("{}=1", "X".repeat(MAX_KEY_BYTES + 1)),
            format!("A={}", "x".repeat(10 << 10)),
            format!("B={}", "x".repeat(10 << 10)),
            "C=1".to_owned(),
        ];
        let attributes = LogAttributes { env_regex: Some(".".to_owned()), ..LogAttributes::default() };
        let long = format!("{}..", "X".repeat(MAX_TOLD_CHARS));
        let by_pattern = chosen(&attributes, &HashMap::new(), &env);
        assert_eq!(by_pattern.attributes.keys().collect::<Vec<_>>(), ["A", "C"]);
        assert_eq!(by_pattern.left_out, [long.as_str(), "B"]);
        let named = LogAttributes { env: words("A"), ..LogAttributes::default() };
        assert!(chosen(&named, &HashMap::new(), &env).left_out.is_empty(), "the others are not asked for");
    }

    #[test]
    fn a_pattern_is_tried_on_the_first_names() {
        let label = |number: usize| (format!("l{number:04}"), String::new());
        let labels: HashMap<_, _> = (0..MAX_TRIED_KEYS + 30).map(label).collect();
        let attributes = LogAttributes {
            labels: words("l1050"),
            labels_regex: Some("[02468]$".to_owned()),
            ..LogAttributes::default()
        };
        let chosen = chosen(&attributes, &labels, &[]);
        assert_eq!(chosen.attributes.len(), MAX_TRIED_KEYS / 2 + 1);
        assert!(chosen.attributes.contains_key("l1022") && chosen.attributes.contains_key("l1050"));
        assert_eq!((chosen.left_out.len(), chosen.left_out[0].as_str()), (MAX_TOLD + 1, "l1024"));
        assert_eq!(chosen.left_out[MAX_TOLD], "9 more");
    }

    #[test]
    fn what_is_kept_of_a_receiver_is_in_the_bundle() {
        use std::os::unix::fs::PermissionsExt;
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "web-1");
        bundle.create(Path::new("/bin/shim")).unwrap();
        assert_eq!(read(&bundle).unwrap(), None);
        let forwarding = Forwarding {
            protocol: Protocol::Syslog(Syslog {
                endpoint: Endpoint::Unix(HostPath::of_host("/dev/log")),
                facility: 3,
                format: logs::SyslogFormat::Rfc5424Micro,
            }),
            reach: Reach::Beyond(vec![IpNetwork::parse("127.0.0.0/8").unwrap()]),
            container: fields(),
            buffer_bytes: Some(1000),
        };
        write(&bundle, &forwarding).unwrap();
        assert_eq!(read(&bundle).unwrap(), Some(forwarding));
        let mode = std::fs::metadata(bundle.directory().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_name_has_no_control_character() {
        assert_eq!(plain("web\n<0>forged\u{7f}\u{85}é"), "web_<0>forged__é");
        assert_eq!(plain(&"é".repeat(5000)), "é".repeat(MAX_TEXT_CHARS));
    }

    fn fields() -> ContainerFields {
        ContainerFields {
            id: "web-0123456789abcdef0123".to_owned(),
            short_id: short("0123456789abcdef0123"),
            name: "web-5f1b".to_owned(),
            image_id: "sha256:0011223344".to_owned(),
            image_name: "redis:7".to_owned(),
            command: String::new(),
            created_at: SystemTime::UNIX_EPOCH,
            tag: String::new(),
            attributes: BTreeMap::new(),
        }
    }

    #[test]
    fn a_tag_is_made_for_the_container() {
        let container = fields();
        let of = |field| text(&TagPart::Field(field), &container);
        assert_eq!(of(TagField::ShortId), "0123456789ab");
        assert_eq!((of(TagField::Id), of(TagField::Name)), (container.id.clone(), "web-5f1b".to_owned()));
        assert_eq!(
            (of(TagField::SlashedName), of(TagField::ShortImageId)),
            ("/web-5f1b".to_owned(), "sha256:00112".to_owned())
        );
        assert_eq!(
            (of(TagField::ImageName), of(TagField::DaemonName)),
            ("redis:7".to_owned(), "docker".to_owned())
        );
    }
}
