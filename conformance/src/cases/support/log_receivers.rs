//! Log receivers, for cases that send them output: Debian's rsyslog and journal, and small ones of GELF and fluentd,
//! which Debian hasn't.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use harness::context::CaseContext;
use harness::task::LIMIT;
use serde_json::Value;

use super::until;
use crate::case::skip;

const RSYSLOGD: &str = "/usr/sbin/rsyslogd";
const JOURNALD: &str = "/lib/systemd/systemd-journald";
const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// The messages that a receiver has got.
pub type Received<T> = Arc<Mutex<Vec<T>>>;

/// Returns what a receiver has got.
pub fn got<T: Clone>(received: &Received<T>) -> Vec<T> {
    received.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn add<T>(received: &Received<T>, message: T) {
    received.lock().unwrap_or_else(PoisonError::into_inner).push(message);
}

/// A process that is ended with its owner.
struct Daemon(Child);

impl Daemon {
    fn spawn(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let shown = format!("{command:?}");
        command.spawn().map(Self).with_context(|| format!("run {shown}"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An rsyslog that listens by TCP, by UDP and at a socket, and writes a line for each message.
pub struct Rsyslog {
    _daemon: Daemon,
    pub tcp: String,
    pub udp: String,
    pub socket: PathBuf,
    file: PathBuf,
}

impl Rsyslog {
    /// # Errors
    /// Skips the case where rsyslog is not installed.
    pub async fn start(case: &CaseContext) -> Result<Self> {
        if !Path::new(RSYSLOGD).exists() {
            return skip("rsyslog is not installed");
        }
        let directory = case.directory().join("rsyslog");
        fs::create_dir_all(&directory)?;
        let at = |name: &str| directory.join(name);
        let tcp = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let udp = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let (socket, file) = (at("socket"), at("messages"));
        let configuration = format!(
            r#"global(workDirectory="{work}" maxMessageSize="64k")
module(load="imtcp")
module(load="imudp")
module(load="imuxsock" SysSock.Use="off")
input(type="imtcp" address="127.0.0.1" port="{tcp}")
input(type="imudp" address="127.0.0.1" port="{udp}")
input(type="imuxsock" Socket="{socket}" RateLimit.Interval="0")
template(name="line" type="string" string="%syslogfacility-text%.%syslogseverity-text% %programname%|%msg:::drop-last-lf%\n")
action(type="omfile" file="{file}" template="line" asyncWriting="off")
"#,
            work = directory.display(),
            tcp = tcp.port(),
            udp = udp.port(),
            socket = socket.display(),
            file = file.display(),
        );
        fs::write(at("rsyslog.conf"), configuration)?;
        let mut command = Command::new(RSYSLOGD);
        command.arg("-n").arg("-f").arg(at("rsyslog.conf")).arg("-i").arg(at("pid"));
        let daemon = Daemon::spawn(&mut command)?;
        until(LIMIT, "rsyslog listens", || TcpStream::connect(tcp).is_ok() && socket.exists()).await?;
        Ok(Self { _daemon: daemon, tcp: tcp.to_string(), udp: udp.to_string(), socket, file })
    }

    /// Returns the messages as lines `facility.severity program|text`.
    pub fn messages(&self) -> Vec<String> {
        let text = fs::read(&self.file).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    }

    /// Waits for messages, whatever their order.
    ///
    /// # Errors
    /// Shows what came instead.
    pub async fn to_have(&self, expected: &[&str]) -> Result<()> {
        let came = || {
            let messages = self.messages();
            expected.iter().all(|line| messages.iter().any(|message| message == line))
        };
        let waited = until(LIMIT, "the messages", came).await;
        waited.with_context(|| format!("rsyslog has {:?}, not {expected:?}", self.messages()))
    }
}

/// The machine's journal, or one that is started where there is none.
pub struct Journal {
    _daemon: Option<Daemon>,
}

impl Journal {
    /// # Errors
    /// Skips the case where journald is not installed.
    pub async fn start() -> Result<Self> {
        let listens = || {
            let socket = UnixDatagram::unbound();
            socket.is_ok_and(|socket| socket.connect(JOURNAL_SOCKET).is_ok())
        };
        if listens() {
            return Ok(Self { _daemon: None });
        }
        if !Path::new(JOURNALD).exists() {
            return skip("systemd-journald is not installed");
        }
        let daemon = Daemon::spawn(&mut Command::new(JOURNALD))?;
        until(LIMIT, "the journal listens", listens).await?;
        Ok(Self { _daemon: Some(daemon) })
    }

    /// Returns the entries with this value of a field.
    ///
    /// # Errors
    /// If journalctl can't read them.
    pub fn entries(&self, field: &str, value: &str) -> Result<Vec<BTreeMap<String, Value>>> {
        let mut command = Command::new("journalctl");
        command.args(["--output=json", "--all", "--no-pager", &format!("{field}={value}")]);
        let output = command.output().context("run journalctl")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter(|line| line.starts_with('{'));
        lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

/// Starts a receiver of GELF by UDP, of messages compressed by gzip, and returns its address.
///
/// # Errors
/// If no port is to be had.
pub fn gelf_udp() -> Result<(String, Received<Value>)> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let (address, received) = (socket.local_addr()?.to_string(), Received::default());
    let into = Arc::clone(&received);
    std::thread::spawn(move || {
        let mut chunks: BTreeMap<Vec<u8>, BTreeMap<u8, Vec<u8>>> = BTreeMap::new();
        let mut datagram = vec![0; 65536];
        while let Ok(length) = socket.recv(&mut datagram) {
            let datagram = &datagram[..length];
            let whole = match datagram.strip_prefix(&[0x1e, 0x0f]) {
                None => datagram.to_owned(),
                Some(chunk) => {
                    let parts = chunks.entry(chunk[..8].to_owned()).or_default();
                    parts.insert(chunk[8], chunk[10..].to_owned());
                    if parts.len() < usize::from(chunk[9]) {
                        continue;
                    }
                    parts.values().flatten().copied().collect()
                }
            };
            let mut json = Vec::new();
            if GzDecoder::new(&whole[..]).read_to_end(&mut json).is_ok()
                && let Ok(message) = serde_json::from_slice(&json)
            {
                add(&into, message);
            }
        }
    });
    Ok((address, received))
}

/// Starts a receiver of GELF by TCP, and returns its address.
///
/// # Errors
/// If no port is to be had.
pub fn gelf_tcp() -> Result<(String, Received<Value>)> {
    serve(|stream, received| {
        for message in BufReader::new(stream).split(0) {
            let Ok(message) = message else { return };
            if let Ok(message) = serde_json::from_slice(&message) {
                add(received, message);
            }
        }
    })
}

/// A message as fluentd gets it: tag, time and record.
pub type FluentdMessage = (String, u64, BTreeMap<String, String>);

/// Starts a receiver of fluentd's protocol that answers each message, and returns its address.
///
/// # Errors
/// If no port is to be had.
pub fn fluentd() -> Result<(String, Received<FluentdMessage>)> {
    serve(|mut stream, received| {
        type Asking = (String, u64, BTreeMap<String, String>, BTreeMap<String, String>);
        let Ok(reader) = stream.try_clone() else { return };
        let mut reader = BufReader::new(reader);
        while let Ok((tag, at, record, options)) = rmp_serde::from_read::<_, Asking>(&mut reader) {
            let answer = BTreeMap::from([("ack", options["chunk"].clone())]);
            let Ok(answer) = rmp_serde::to_vec_named(&answer) else { return };
            add(received, (tag, at, record));
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    })
}

fn serve<T: Send + 'static>(
    each: impl Fn(TcpStream, &Received<T>) + Clone + Send + 'static,
) -> Result<(String, Received<T>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (address, received) = (listener.local_addr()?.to_string(), Received::default());
    let into = Arc::clone(&received);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (each, into) = (each.clone(), Arc::clone(&into));
            std::thread::spawn(move || each(stream, &into));
        }
    });
    Ok((address, received))
}

/// Asserts that a message has these fields.
pub fn has(message: &Value, fields: &[(&str, Value)]) -> Result<()> {
    for (name, value) in fields {
        ensure!(message.get(name) == Some(value), "{name} is not {value} in {message}");
    }
    Ok(())
}
