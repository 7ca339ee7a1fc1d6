//! The log receivers that docker can send a task's output to, and their options.
//!
//! Source of the facts: moby `daemon/logger` (28.5): `journald`, `syslog`, `fluentd`, `gelf`, `factory.go`, `ring.go`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use regex_lite::{Regex, RegexBuilder};

use super::options::{Options, refused};
use super::tag::{self, TagPart};
use crate::config::ConfigError;
use crate::config::plugin::resolved_path::{Access, ResolvedPath, TaskDirectory};
use crate::config::plugin::volumes::Volumes;

/// Default and maximum size of the buffer of a task whose output doesn't wait for its receiver.
const DEFAULT_BUFFER_BYTES: u64 = 1_000_000;
const MAX_BUFFER_BYTES: u64 = 64 << 20;
const FLUENTD_BUFFER_BYTES: u64 = 1 << 20;
/// Least wait between attempts, and least time for a write: less would keep the driver busy.
const MIN_WAIT: Duration = Duration::from_millis(100);
const MIN_WRITE_TIMEOUT: Duration = Duration::from_secs(1);
const FLUENTD_PORT: u16 = 24224;
const SYSLOG_PORT: u16 = 514;
/// Names of syslog's facilities, by their numbers.
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "",
    "", "", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];
const DAEMON: u8 = 3;
/// Facilities whose messages tools trust to be those of the kernel, of logins or of syslog: kern, auth, syslog and
/// authpriv.
const TRUSTED_FACILITIES: [u8; 4] = [0, 4, 5, 10];
/// Maximum length of a regular expression, and size of what it is compiled into: a job writes it, and matching takes
/// time in proportion.
const MAX_PATTERN_BYTES: usize = 512;
const MAX_COMPILED_BYTES: usize = 64 << 10;
/// Sockets of the host's own logs, which any job may write syslog's messages to.
const LOG_SOCKETS: [&str; 5] = [
    "/dev/log",
    "/run/systemd/journal/dev-log",
    "/run/systemd/journal/syslog",
    "/var/run/log",
    "/var/run/syslog",
];

/// The options that choose labels and environment variables.
pub(super) const ATTRIBUTES: [&str; 4] = ["labels", "labels-regex", "env", "env-regex"];

/// A log receiver of a task's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogReceiver {
    pub protocol: Protocol,
    pub tag: Vec<TagPart>,
    pub attributes: Attributes,
    /// Size of the buffer of lines that are not sent yet. `None` makes the output wait for the receiver in its pipe.
    pub buffer_bytes: Option<u64>,
    /// Whether the output goes to Nomad's logs as well.
    pub feeds_nomad: bool,
}

/// The labels and environment variables that are sent with each line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub labels: Vec<String>,
    /// A valid regular expression.
    pub labels_regex: Option<String>,
    pub env: Vec<String>,
    /// A valid regular expression.
    pub env_regex: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Protocol {
    Journald,
    Syslog(Syslog),
    Fluentd(Fluentd),
    Gelf(Gelf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Syslog {
    /// `None` is the host's own syslog.
    pub endpoint: Option<LogEndpoint>,
    pub facility: u8,
    pub format: SyslogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SyslogFormat {
    /// Like RFC 3164, without the host's name.
    Local,
    Rfc3164,
    Rfc5424,
    /// RFC 5424, with microseconds.
    Rfc5424Micro,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fluentd {
    pub endpoint: LogEndpoint,
    pub retry_wait: Duration,
    pub max_retries: u32,
    pub sub_second_precision: bool,
    pub request_ack: bool,
    /// Whether a task starts without the receiver.
    pub connects_later: bool,
    pub write_timeout: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gelf {
    pub endpoint: LogEndpoint,
    pub compression: Compression,
    pub max_reconnect: u32,
    pub reconnect_delay: Duration,
}

/// Compression of GELF over UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Nothing,
    Gzip(u32),
    Zlib(u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogEndpoint {
    /// `<host>:<port>`, as that of the others.
    Udp(String),
    Tcp(String),
    Tls(String, TlsPaths),
    /// An absolute path.
    Unix(PathBuf),
    /// An absolute path.
    UnixDatagram(PathBuf),
}

/// The files of a connection with TLS, by absolute paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsPaths {
    pub ca: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub skips_verification: bool,
}

impl Protocol {
    /// Returns docker's name of the protocol.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Journald => "journald",
            Self::Syslog(_) => "syslog",
            Self::Fluentd(_) => "fluentd",
            Self::Gelf(_) => "gelf",
        }
    }
}

impl LogReceiver {
    /// # Errors
    /// Names the option of the log type that is invalid or unknown.
    pub(super) fn decode(mut options: Options<'_>) -> Result<Self, ConfigError> {
        let (protocol, default_buffer) = match options.log_type {
            "journald" => (Protocol::Journald, None),
            "syslog" => (Protocol::Syslog(syslog(&mut options)?), None),
            "fluentd" => {
                let (fluentd, buffer_bytes) = fluentd(&mut options)?;
                (Protocol::Fluentd(fluentd), buffer_bytes)
            }
            _ => (Protocol::Gelf(gelf(&mut options)?), None),
        };
        if options.log_type == "syslog" {
            options.warn_of(
                &ATTRIBUTES,
                "has no effect: syslog's messages have no place for it, in docker either",
            );
        }
        let tag = tag::parse(options.take("tag").as_deref())?;
        let mut attributes = attributes(&mut options)?;
        if options.log_type == "syslog" {
            attributes = Attributes::default();
        }
        let buffer_bytes = delivery(&mut options, default_buffer)?;
        let feeds_nomad = cache(&mut options)?;
        options.finish()?;
        Ok(Self { protocol, tag, attributes, buffer_bytes, feeds_nomad })
    }

    /// Checks that a job's messages don't get into the logs that the host's own tools trust, such as that of its logins,
    /// by a socket of the host.
    ///
    /// # Errors
    /// Names the option and what else can be done.
    pub(in crate::config) fn check_facility(&self) -> Result<(), ConfigError> {
        let Protocol::Syslog(Syslog { endpoint, facility, .. }) = &self.protocol else { return Ok(()) };
        let is_by_socket =
            matches!(endpoint, None | Some(LogEndpoint::Unix(_) | LogEndpoint::UnixDatagram(_)));
        if !is_by_socket || !TRUSTED_FACILITIES.contains(facility) {
            return Ok(());
        }
        let name = FACILITIES.get(usize::from(*facility)).copied().unwrap_or_default();
        let why = "the host's tools trust what is logged by it at a socket of the host; use another facility such as \
                   \"daemon\" or \"local0\", a syslog-address with udp://, tcp:// or tcp+tls://, or let the operator set \
                   this receiver in the plugin's logging block";
        Err(refused("syslog-facility", name, why))
    }

    /// Resolves a path that a job names, under the same rules as the source of a mount; `None` for a socket of the
    /// host's own logs.
    ///
    /// # Errors
    /// Names the operator's option that forbids the path, or says what of the allocation directory is refused, or that the
    /// protocol isn't that of the host's own logs.
    pub(crate) fn place(
        &self,
        path: &Path,
        is_socket: bool,
        volumes: &Volumes,
        task: TaskDirectory<'_>,
    ) -> Result<Option<ResolvedPath>, ConfigError> {
        if is_socket && LOG_SOCKETS.iter().any(|known| Path::new(known) == path) {
            return match self.protocol {
                Protocol::Syslog(_) => Ok(None),
                _ => Err(refused(
                    "fluentd-address",
                    &format!("unix://{}", path.display()),
                    "the host's own log is there, which takes syslog's messages; use the type \"syslog\"",
                )),
            };
        }
        let access = if is_socket { Access::Write } else { Access::Read };
        volumes.place("logging.config", path, access, task).map(Some)
    }
}

/// Compiles a regular expression of a job's, within bounds.
///
/// # Errors
/// Says what is wrong with it.
pub(crate) fn compile(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err(format!("a regular expression has at most {MAX_PATTERN_BYTES} bytes"));
    }
    RegexBuilder::new(pattern).size_limit(MAX_COMPILED_BYTES).build().map_err(|error| error.to_string())
}

/// Takes out the options that choose labels and environment variables.
pub(super) fn attributes(options: &mut Options<'_>) -> Result<Attributes, ConfigError> {
    let list = |text: Option<String>| {
        let text = text.unwrap_or_default();
        text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let mut regex = |key| {
        let Some(text) = options.take(key) else { return Ok(None) };
        match compile(&text) {
            Ok(_) => Ok(Some(text)),
            Err(why) => Err(refused(key, &text, &why)),
        }
    };
    let (labels_regex, env_regex) = (regex("labels-regex")?, regex("env-regex")?);
    Ok(Attributes {
        labels: list(options.take("labels")),
        labels_regex,
        env: list(options.take("env")),
        env_regex,
    })
}

/// Takes out the options of delivery, and returns the size of the buffer. `default` is that of a protocol which has one
/// without these options.
pub(super) fn delivery(options: &mut Options<'_>, default: Option<u64>) -> Result<Option<u64>, ConfigError> {
    let mode = options.take("mode");
    let size = options.take("max-buffer-size");
    let is_non_blocking = match mode.as_deref() {
        None | Some("blocking") => false,
        Some("non-blocking") => true,
        Some(other) => {
            return Err(refused("mode", other, "it must be \"blocking\" or \"non-blocking\""));
        }
    };
    match (size, is_non_blocking) {
        (Some(size), false) => Err(refused("max-buffer-size", &size, "it needs mode = \"non-blocking\"")),
        (Some(size), true) => buffer(options, "max-buffer-size", &size).map(Some),
        (None, true) => Ok(Some(default.unwrap_or(DEFAULT_BUFFER_BYTES))),
        (None, false) => Ok(default),
    }
}

fn buffer(options: &Options<'_>, key: &str, size: &str) -> Result<u64, ConfigError> {
    match options.size(key, size)? {
        bytes if bytes <= MAX_BUFFER_BYTES => Ok(bytes),
        _ => {
            let why = format!(
                "the buffer is memory of the driver's, and can't be larger than {}m",
                MAX_BUFFER_BYTES >> 20
            );
            Err(refused(key, size, &why))
        }
    }
}

/// Takes out the options of docker's cache, from which Nomad's docker driver reads the logs. Returns whether Nomad's
/// logs have the output. How much they keep is set in the task's `logs` block.
pub(super) fn cache(options: &mut Options<'_>) -> Result<bool, ConfigError> {
    let sizes = ["cache-max-file", "cache-max-size", "cache-compress"];
    options.warn_of(&sizes, "has no effect: the task's logs block has the sizes of Nomad's logs");
    let is_disabled = options.flag("cache-disabled")?.unwrap_or(false);
    options.number("cache-max-file", 1, i64::MAX)?;
    options.flag("cache-compress")?;
    if let Some(size) = options.take("cache-max-size") {
        options.size("cache-max-size", &size)?;
    }
    Ok(!is_disabled)
}

fn syslog(options: &mut Options<'_>) -> Result<Syslog, ConfigError> {
    let address = options.take("syslog-address");
    let tls = TlsPaths {
        ca: file(options, "syslog-tls-ca-cert")?,
        certificate: file(options, "syslog-tls-cert")?,
        key: file(options, "syslog-tls-key")?,
        skips_verification: options.is_given("syslog-tls-skip-verify"),
    };
    if tls.certificate.is_some() != tls.key.is_some() {
        let why = "syslog-tls-cert and syslog-tls-key need each other";
        return Err(refused("syslog-tls-cert", "", why));
    }
    let endpoint = address
        .as_ref()
        .map(|address| {
            let why = "it must be unix:///path, unixgram:///path, udp://host:port, tcp://host:port or tcp+tls://host:port";
            let wrong = || refused("syslog-address", address, why);
            let (scheme, rest) = address.split_once("://").ok_or_else(wrong)?;
            let host = || host_and_port(rest.trim_end_matches('/'), None, Some(SYSLOG_PORT)).ok_or_else(wrong);
            Ok(match scheme {
                "udp" => LogEndpoint::Udp(host()?),
                "tcp" => LogEndpoint::Tcp(host()?),
                "tcp+tls" => LogEndpoint::Tls(host()?, tls.clone()),
                "unix" => LogEndpoint::Unix(path(rest).ok_or_else(wrong)?),
                "unixgram" => LogEndpoint::UnixDatagram(path(rest).ok_or_else(wrong)?),
                _ => return Err(wrong()),
            })
        })
        .transpose()?;
    if tls != TlsPaths::default() && !matches!(endpoint, Some(LogEndpoint::Tls(_, _))) {
        let why = "syslog-tls-ca-cert, -cert, -key and -skip-verify need a syslog-address with tcp+tls://";
        return Err(refused("syslog-address", address.as_deref().unwrap_or(""), why));
    }
    let facility = options.take("syslog-facility").map(|name| {
        let named = FACILITIES.iter().position(|known| *known == name && !known.is_empty());
        let number = named.or_else(|| name.parse().ok().filter(|number: &usize| *number < FACILITIES.len()));
        let why = "it must be a facility of syslog's such as \"daemon\" or \"local0\", or a number up to 23";
        number
            .and_then(|number| u8::try_from(number).ok())
            .ok_or_else(|| refused("syslog-facility", &name, why))
    });
    let format = match options.take("syslog-format").as_deref() {
        None => SyslogFormat::Local,
        Some("rfc3164") => SyslogFormat::Rfc3164,
        Some("rfc5424") => SyslogFormat::Rfc5424,
        Some("rfc5424micro") => SyslogFormat::Rfc5424Micro,
        Some(other) => {
            let why = "it must be \"rfc3164\", \"rfc5424\" or \"rfc5424micro\"";
            return Err(refused("syslog-format", other, why));
        }
    };
    Ok(Syslog { endpoint, facility: facility.transpose()?.unwrap_or(DAEMON), format })
}

/// Decodes fluentd's options, and returns the size of its buffer too, if it has one.
fn fluentd(options: &mut Options<'_>) -> Result<(Fluentd, Option<u64>), ConfigError> {
    let endpoint = match options.take("fluentd-address") {
        None => LogEndpoint::Tcp(format!("127.0.0.1:{FLUENTD_PORT}")),
        Some(address) => {
            let why = "it must be host:port, tcp://host:port, tls://host:port or unix:///path";
            let wrong = || refused("fluentd-address", &address, why);
            let (scheme, rest) = address.split_once("://").unwrap_or(("tcp", &address));
            let host = || host_and_port(rest, Some("127.0.0.1"), Some(FLUENTD_PORT)).ok_or_else(wrong);
            match scheme {
                "tcp" => LogEndpoint::Tcp(host()?),
                "tls" => LogEndpoint::Tls(host()?, TlsPaths::default()),
                "unix" => LogEndpoint::Unix(path(rest).ok_or_else(wrong)?),
                _ => return Err(wrong()),
            }
        }
    };
    let is_async = options.flag("fluentd-async")?.unwrap_or(false);
    let renewed = "has no effect: the connection is renewed when it breaks";
    options.warn_of(&["fluentd-async-reconnect-interval"], renewed);
    options.time("fluentd-async-reconnect-interval")?;
    if !is_async {
        options.warn_of(&["fluentd-buffer-limit"], "has no effect without fluentd-async");
    }
    let size = options.take("fluentd-buffer-limit");
    let bytes = size.map(|size| buffer(options, "fluentd-buffer-limit", &size)).transpose()?;
    let max_retries = options.number("fluentd-max-retries", 0, i64::from(i32::MAX))?;
    let retry_wait = options.time("fluentd-retry-wait")?.unwrap_or(Duration::from_secs(1));
    let write_timeout = options.time("fluentd-write-timeout")?.filter(|time| !time.is_zero());
    let fluentd = Fluentd {
        endpoint,
        retry_wait: options.at_least("fluentd-retry-wait", retry_wait, MIN_WAIT),
        max_retries: max_retries.and_then(|retries| u32::try_from(retries).ok()).unwrap_or(u32::MAX),
        sub_second_precision: options.flag("fluentd-sub-second-precision")?.unwrap_or(false),
        request_ack: options.flag("fluentd-request-ack")?.unwrap_or(false),
        connects_later: is_async,
        write_timeout: write_timeout
            .map(|time| options.at_least("fluentd-write-timeout", time, MIN_WRITE_TIMEOUT)),
    };
    Ok((fluentd, is_async.then(|| bytes.unwrap_or(FLUENTD_BUFFER_BYTES))))
}

fn gelf(options: &mut Options<'_>) -> Result<Gelf, ConfigError> {
    let why = "it must be udp://host:port or tcp://host:port";
    let address = options.take("gelf-address").ok_or_else(|| refused("gelf-address", "", why))?;
    let wrong = || refused("gelf-address", &address, why);
    let (scheme, rest) = address.split_once("://").ok_or_else(wrong)?;
    let host = host_and_port(rest.trim_end_matches('/'), None, None).ok_or_else(wrong)?;
    let endpoint = match scheme {
        "udp" => LogEndpoint::Udp(host),
        "tcp" => LogEndpoint::Tcp(host),
        _ => return Err(wrong()),
    };
    let kind = options.take("gelf-compression-type");
    let level = options.number("gelf-compression-level", -1, 9)?;
    let max_reconnect = options.number("gelf-tcp-max-reconnect", 0, i64::from(i32::MAX))?;
    let delay = options.number("gelf-tcp-reconnect-delay", 0, 24 * 3600)?;
    let is_udp = matches!(endpoint, LogEndpoint::Udp(_));
    if !is_udp && (kind.is_some() || level.is_some()) {
        return Err(refused(
            "gelf-compression-type",
            kind.as_deref().unwrap_or(""),
            "only UDP is compressed",
        ));
    }
    if is_udp && (max_reconnect.is_some() || delay.is_some()) {
        return Err(refused("gelf-tcp-max-reconnect", "", "it needs an address with tcp://"));
    }
    if level.is_some() && kind.as_deref() == Some("none") {
        options.warn("gelf-compression-level has no effect without compression");
    }
    // flate2 has no number for its own default, which is 6.
    let level = match level {
        None => 1,
        Some(level) => u32::try_from(level).unwrap_or(6),
    };
    let compression = match kind.as_deref() {
        _ if !is_udp => Compression::Nothing,
        None | Some("gzip") => Compression::Gzip(level),
        Some("zlib") => Compression::Zlib(level),
        Some("none") => Compression::Nothing,
        Some(other) => {
            let why = "it must be \"gzip\", \"zlib\" or \"none\"";
            return Err(refused("gelf-compression-type", other, why));
        }
    };
    let seconds = delay.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(1);
    let reconnect_delay =
        options.at_least("gelf-tcp-reconnect-delay", Duration::from_secs(seconds), MIN_WAIT);
    Ok(Gelf {
        endpoint,
        compression,
        max_reconnect: max_reconnect.and_then(|times| u32::try_from(times).ok()).unwrap_or(3),
        reconnect_delay,
    })
}

/// Takes a file's path out.
fn file(options: &mut Options<'_>, key: &str) -> Result<Option<PathBuf>, ConfigError> {
    let Some(text) = options.take(key) else { return Ok(None) };
    path(&text).map(Some).ok_or_else(|| refused(key, &text, "it must be an absolute path"))
}

fn path(text: &str) -> Option<PathBuf> {
    (text.len() > 1 && text.starts_with('/') && !text.contains('\0')).then(|| text.into())
}

/// Parses `host:port`, and returns it in that form. An IPv6 address is in brackets.
fn host_and_port(text: &str, default_host: Option<&str>, default_port: Option<u16>) -> Option<String> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let host = if host.is_empty() { default_host? } else { host };
    let inner = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').filter(|address| address.contains(':'))?,
        None if host.contains(':') => return None,
        None => host,
    };
    let is_host = inner.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:%".contains(c));
    let port = match port {
        Some(port) => port.parse().ok().filter(|port: &u16| *port > 0)?,
        None => default_port?,
    };
    (is_host && !inner.is_empty()).then(|| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::decode;
    use super::super::{LogType, Logging};
    use super::*;

    fn receiver(log_type: &str, config: Value) -> Result<LogReceiver, String> {
        let decoded: Logging = decode(json!({"type": log_type, "config": Value::Array(vec![config])}))?;
        match decoded.log_type() {
            Some(LogType::Receiver(receiver)) => Ok((**receiver).clone()),
            other => panic!("{other:?}"),
        }
    }

    fn syslog_of(config: Value) -> Result<Syslog, String> {
        match receiver("syslog", config)?.protocol {
            Protocol::Syslog(syslog) => Ok(syslog),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn syslog_addresses_are_docker_s() {
        let of = |address: &str| {
            syslog_of(json!({"syslog-address": address})).map(|syslog| syslog.endpoint.unwrap())
        };
        assert_eq!(of("udp://10.0.0.1").unwrap(), LogEndpoint::Udp("10.0.0.1:514".to_owned()));
        assert_eq!(of("tcp://[fd00::1]:601/").unwrap(), LogEndpoint::Tcp("[fd00::1]:601".to_owned()));
        assert_eq!(of("unix:///dev/log").unwrap(), LogEndpoint::Unix("/dev/log".into()));
        assert_eq!(of("unixgram:///dev/log").unwrap(), LogEndpoint::UnixDatagram("/dev/log".into()));
        assert!(matches!(of("tcp+tls://logs.example:6514").unwrap(), LogEndpoint::Tls(_, _)));
        for address in [
            "10.0.0.1",
            "http://a",
            "udp://",
            "udp://a:0",
            "udp://a:x",
            "udp://fd00::1",
            "unix://dev/log",
            "udp://a b",
        ] {
            let error = of(address).unwrap_err();
            assert!(error.contains("syslog-address") && error.contains(address), "{error}");
        }
        let defaults = syslog_of(json!({})).unwrap();
        assert_eq!(defaults, Syslog { endpoint: None, facility: DAEMON, format: SyslogFormat::Local });
    }

    #[test]
    fn syslog_facilities_have_names_and_numbers() {
        let of =
            |facility: &str| syslog_of(json!({"syslog-facility": facility})).map(|syslog| syslog.facility);
        assert_eq!((of("kern"), of("local7"), of("13"), of("0")), (Ok(0), Ok(23), Ok(13), Ok(0)));
        for facility in ["24", "-1", "local8", "LOCAL0"] {
            assert!(of(facility).unwrap_err().contains("syslog-facility"));
        }
        assert!(syslog_of(json!({"syslog-format": "rfc1"})).unwrap_err().contains("syslog-format"));
        assert!(syslog_of(json!({"syslog-tls-cert": "/a"})).unwrap_err().contains("syslog-tls-key"));
        assert!(syslog_of(json!({"syslog-tls-ca-cert": "a"})).unwrap_err().contains("syslog-tls-ca-cert"));
    }

    #[test]
    fn a_job_has_no_trusted_facility_at_a_socket_of_the_host() {
        let of = |facility: &str, address: &str| {
            let config = json!({"syslog-facility": facility, "syslog-address": address});
            receiver("syslog", config).unwrap().check_facility().map_err(|error| error.to_string())
        };
        for facility in ["kern", "auth", "syslog", "authpriv", "10"] {
            for address in ["", "unix:///dev/log", "unixgram:///run/other"] {
                let error = of(facility, address).unwrap_err();
                assert!(error.contains("syslog-facility") && error.contains("local0"), "{error}");
            }
            of(facility, "udp://10.0.0.1").unwrap();
        }
        of("daemon", "").unwrap();
        of("local7", "unix:///dev/log").unwrap();
    }

    #[test]
    fn fluentd_options_are_docker_s() {
        let of = |config: Value| {
            let receiver = receiver("fluentd", config)?;
            match receiver.protocol {
                Protocol::Fluentd(fluentd) => Ok::<_, String>((fluentd, receiver.buffer_bytes)),
                other => panic!("{other:?}"),
            }
        };
        let (defaults, buffer_bytes) = of(json!({})).unwrap();
        assert_eq!(defaults.endpoint, LogEndpoint::Tcp("127.0.0.1:24224".to_owned()));
        assert_eq!((defaults.max_retries, defaults.retry_wait), (u32::MAX, Duration::from_secs(1)));
        assert_eq!(buffer_bytes, None);
        let all = json!({
            "fluentd-address": "logs:9", "fluentd-async": "true", "fluentd-buffer-limit": "2m",
            "fluentd-retry-wait": "500ms", "fluentd-max-retries": "3", "fluentd-sub-second-precision": "1",
            "fluentd-request-ack": "true", "fluentd-write-timeout": "2s", "fluentd-async-reconnect-interval": "1s"
        });
        let (all, buffer_bytes) = of(all).unwrap();
        assert_eq!(all.endpoint, LogEndpoint::Tcp("logs:9".to_owned()));
        assert!(all.sub_second_precision && all.request_ack && all.connects_later);
        assert_eq!(
            (all.max_retries, all.retry_wait, buffer_bytes),
            (3, Duration::from_millis(500), Some(2 << 20))
        );
        let unix = of(json!({"fluentd-address": "unix:///run/f.sock"})).unwrap().0;
        assert_eq!(unix.endpoint, LogEndpoint::Unix("/run/f.sock".into()));
        for (key, text) in [
            ("fluentd-address", "udp://a:1"),
            ("fluentd-address", "a:1/x"),
            ("fluentd-buffer-limit", "1g"),
            ("fluentd-retry-wait", "soon"),
            ("fluentd-max-retries", "-1"),
            ("fluentd-async", "maybe"),
        ] {
            assert!(of(json!({key: text})).unwrap_err().contains(key), "{key} = {text}");
        }
    }

    #[test]
    fn gelf_options_are_docker_s() {
        let of = |config: Value| match receiver("gelf", config)?.protocol {
            Protocol::Gelf(gelf) => Ok::<_, String>(gelf),
            other => panic!("{other:?}"),
        };
        let udp = of(json!({"gelf-address": "udp://a:12201"})).unwrap();
        assert_eq!(
            (udp.endpoint, udp.compression),
            (LogEndpoint::Udp("a:12201".to_owned()), Compression::Gzip(1))
        );
        let zlib = json!({"gelf-address": "udp://a:1", "gelf-compression-type": "zlib", "gelf-compression-level": "9"});
        assert_eq!(of(zlib).unwrap().compression, Compression::Zlib(9));
        let tcp = json!({"gelf-address": "tcp://a:1", "gelf-tcp-max-reconnect": "5", "gelf-tcp-reconnect-delay": "2"});
        let tcp = of(tcp).unwrap();
        assert_eq!((tcp.compression, tcp.max_reconnect), (Compression::Nothing, 5));
        assert_eq!(tcp.reconnect_delay, Duration::from_secs(2));
        for (config, named) in [
            (json!({}), "gelf-address"),
            (json!({"gelf-address": "udp://a"}), "gelf-address"),
            (json!({"gelf-address": "http://a:1"}), "gelf-address"),
            (json!({"gelf-address": "tcp://a:1", "gelf-compression-type": "gzip"}), "gelf-compression-type"),
            (json!({"gelf-address": "udp://a:1", "gelf-compression-level": "10"}), "gelf-compression-level"),
            (json!({"gelf-address": "udp://a:1", "gelf-tcp-max-reconnect": "1"}), "gelf-tcp-max-reconnect"),
        ] {
            assert!(of(config).unwrap_err().contains(named));
        }
    }

    #[test]
    fn a_buffer_needs_the_mode_and_has_a_limit() {
        let of = |config: Value| receiver("journald", config).map(|receiver| receiver.buffer_bytes);
        assert_eq!(of(json!({})), Ok(None));
        assert_eq!(of(json!({"mode": "blocking"})), Ok(None));
        assert_eq!(of(json!({"mode": "non-blocking"})), Ok(Some(DEFAULT_BUFFER_BYTES)));
        assert_eq!(of(json!({"mode": "non-blocking", "max-buffer-size": "4m"})), Ok(Some(4 << 20)));
        for config in [
            json!({"max-buffer-size": "4m"}),
            json!({"mode": "non-blocking", "max-buffer-size": "1g"}),
            json!({"mode": "non-blocking", "max-buffer-size": "0"}),
        ] {
            assert!(of(config).unwrap_err().contains("max-buffer-size"));
        }
    }

    #[test]
    fn a_job_s_sockets_are_the_host_s_logs_or_what_it_may_mount() {
        let task = TaskDirectory { alloc_dir: "/nomad/a1", task: "web" };
        let nothing = Volumes { enabled: false, allowed_paths: Vec::new() };
        let syslog = receiver("syslog", json!({})).unwrap();
        let place = |path: &str, is_socket| syslog.place(Path::new(path), is_socket, &nothing, task);
        assert_eq!(place("/dev/log", true).unwrap(), None);
        for (path, is_socket) in [("/run/docker.sock", true), ("/dev/log", false), ("/dev/../run/x", true)] {
            let error = place(path, is_socket).unwrap_err().to_string();
            assert!(error.contains("volumes.enabled") && error.contains(path), "{error}");
        }
        let everything = Volumes::default();
        assert!(syslog.place(Path::new("/run/x"), true, &everything, task).unwrap().is_some());
        let fluentd = receiver("fluentd", json!({})).unwrap();
        for volumes in [&nothing, &everything] {
            let error = fluentd.place(Path::new("/dev/log"), true, volumes, task).unwrap_err().to_string();
            assert!(error.contains("fluentd-address") && error.contains("unix:///dev/log"), "{error}");
        }
        assert!(fluentd.place(Path::new("/run/x"), true, &everything, task).unwrap().is_some());
    }

    #[test]
    fn files_of_tls_need_an_address_with_tls() {
        for config in [
            json!({"syslog-tls-ca-cert": "/a", "syslog-address": "tcp://a"}),
            json!({"syslog-tls-skip-verify": "", "syslog-address": "udp://a"}),
            json!({"syslog-tls-cert": "/a", "syslog-tls-key": "/b"}),
        ] {
            let error = syslog_of(config).unwrap_err();
            assert!(error.contains("syslog-tls-ca-cert") && error.contains("tcp+tls://"), "{error}");
        }
    }

    #[test]
    fn a_pattern_is_bounded() {
        for pattern in ["(", &"a".repeat(513), "((a{100}){100}){100}"] {
            let error = receiver("journald", json!({"env-regex": pattern})).unwrap_err();
            assert!(error.contains("env-regex"), "{error}");
        }
        assert!(receiver("journald", json!({"labels-regex": "^(com\\.example|team)$"})).is_ok());
    }

    #[test]
    fn attributes_are_lists_and_patterns() {
        let config =
            json!({"labels": "team,com.example", "env": "A", "env-regex": "^APP_", "cache-disabled": "true"});
        let receiver = receiver("journald", config).unwrap();
        assert_eq!(receiver.attributes.labels, ["team", "com.example"]);
        assert_eq!(
            (receiver.attributes.env.len(), receiver.attributes.env_regex.as_deref()),
            (1, Some("^APP_"))
        );
        assert!(!receiver.feeds_nomad);
    }
}
