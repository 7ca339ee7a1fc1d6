//! `nomad alloc exec` without the command line: one request to the agent's HTTP API, which becomes a websocket. The
//! start of a process in Go isn't measured with it.
//!
//! Source of the facts: Nomad 1.11.3 `command/agent/alloc_endpoint.go`, `plugins/drivers/proto/driver.proto`; RFC 6455.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use harness::interrupt::check;
use serde_json::Value;

/// Timeout of an exec, from the connection to the end.
const LIMIT: Duration = Duration::from_secs(60);
/// Time between two looks whether that is over, or whether there was an interrupt.
const LOOK: Duration = Duration::from_millis(200);
/// Most bytes that an agent may send for an exec: more than twice what the longest output takes.
const MOST: u64 = 256 << 20;
/// Length of a message from which on it is only stored, and read once the exec has ended.
const LARGE: usize = 1024;
/// Length of the longest message that an agent sends.
const LONGEST: u64 = 16 << 20;
/// The only thing that is sent: there is no input.
const NO_INPUT: &str = r#"{"stdin":{"close":true}}"#;

/// A command that has ended with exit code 0.
#[derive(Debug)]
pub(crate) struct Executed {
    /// From the connection to the agent to the message of the command's exit.
    pub(crate) took: Duration,
    pub(crate) stdout: Vec<u8>,
    /// From the connection to the agent to the message with the last of stdout.
    pub(crate) printed: Duration,
}

/// Runs a command in the task `main` of an allocation.
///
/// # Errors
/// Fails with the agent's reason, or with the command's output if it ends with another exit code than 0.
pub(crate) fn run(agent: &str, allocation: &str, words: &[&str]) -> Result<Executed> {
    let command = serde_json::to_string(words)?;
    let path = format!(
        "/v1/client/allocation/{allocation}/exec?task=main&tty=false&command={}",
        percent_encoded(&command)
    );
    let begun = Instant::now();
    let mut stream =
        open(agent, &path, LIMIT).with_context(|| format!("exec of {command} in {allocation}"))?;
    let mut messages = Vec::new();
    let code = loop {
        let message = next_message(&mut stream)?;
        let exit = (message.len() < LARGE).then(|| exit_of(&message)).transpose()?.flatten();
        messages.push((begun.elapsed(), message));
        if let Some(code) = exit {
            break code;
        }
    };
    let took = begun.elapsed();
    let ([stdout, stderr], printed) = output_of(&messages)?;
    ensure!(code == 0, "{command} ends with {code}: {}", String::from_utf8_lossy(&stderr));
    Ok(Executed { took, stdout, printed })
}

/// Opens a websocket, over which the input's end is sent.
fn open(agent: &str, path: &str, limit: Duration) -> Result<BufReader<Bounded>> {
    let address: SocketAddr = agent.parse().with_context(|| format!("the agent's address {agent}"))?;
    let mut connection =
        TcpStream::connect_timeout(&address, limit).with_context(|| format!("connect to {agent}"))?;
    connection.set_read_timeout(Some(LOOK))?;
    connection.set_write_timeout(Some(limit))?;
    connection.set_nodelay(true)?;
    let key = BASE64_STANDARD.encode([0; 16]);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {agent}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    );
    connection.write_all(request.as_bytes())?;
    let mut stream = BufReader::with_capacity(
        1 << 16,
        Bounded { connection, deadline: Instant::now() + limit, left: MOST },
    );
    let status = line(&mut stream)?;
    if !status.contains(" 101 ") {
        let mut rest = String::new();
        let _ = stream.take(4096).read_to_string(&mut rest);
        bail!("the agent answers {status}: {}", rest.trim());
    }
    while !line(&mut stream)?.is_empty() {}
    stream.get_mut().connection.write_all(&text_frame(NO_INPUT))?;
    Ok(stream)
}

/// A connection that is read until a deadline, and no more than so many bytes.
struct Bounded {
    connection: TcpStream,
    deadline: Instant,
    left: u64,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            check().map_err(io::Error::other)?;
            if Instant::now() >= self.deadline {
                return Err(io::Error::other("the exec takes too long"));
            }
            match self.connection.read(buffer) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Ok(count) => {
                    let left = self.left.checked_sub(count as u64);
                    self.left = left.ok_or_else(|| io::Error::other("the agent sends too much"))?;
                    return Ok(count);
                }
                error => return error,
            }
        }
    }
}

fn line(stream: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line).context("read the agent's answer")?;
    Ok(line.trim_end().to_owned())
}

/// Returns a client's message of less than 126 bytes as a frame. Its mask is 0, by which nothing changes.
fn text_frame(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX) | 0x80;
    [&[0x81, length, 0, 0, 0, 0], text.as_bytes()].concat()
}

/// Reads the agent's next message.
///
/// # Errors
/// Fails with the reason for which the agent closes the stream.
fn next_message(stream: &mut impl Read) -> Result<Vec<u8>> {
    const CLOSE: u8 = 8;
    let mut message = Vec::new();
    loop {
        let [first, second] = bytes(stream)?;
        let length = match second & 0x7f {
            126 => u64::from(u16::from_be_bytes(bytes(stream)?)),
            127 => u64::from_be_bytes(bytes(stream)?),
            short => u64::from(short),
        };
        ensure!(length <= LONGEST && second & 0x80 == 0, "the agent sends what is no frame of a server");
        let begin = message.len();
        message.resize(begin + usize::try_from(length)?, 0);
        stream.read_exact(&mut message[begin..]).context("read the agent's message")?;
        let is_last = first & 0x80 != 0;
        match first & 0x0f {
            // A continuation, text or bytes.
            0..=2 if is_last => return Ok(message),
            0..=2 => {}
            CLOSE => {
                let reason = message.get(begin + 2..).unwrap_or_default();
                bail!("the agent ends the exec: {}", String::from_utf8_lossy(reason));
            }
            // A ping or pong.
            _ => message.truncate(begin),
        }
    }
}

fn bytes<const COUNT: usize>(stream: &mut impl Read) -> Result<[u8; COUNT]> {
    let mut bytes = [0; COUNT];
    stream.read_exact(&mut bytes).context("read the agent's message")?;
    Ok(bytes)
}

/// Returns the exit code, if a message has one.
fn exit_of(message: &[u8]) -> Result<Option<i64>> {
    let message: Value = serde_json::from_slice(message).context("a message of the agent")?;
    Ok((message["exited"] == true).then(|| message["result"]["exit_code"].as_i64().unwrap_or(0)))
}

/// Returns all stdout and stderr of some messages, and when the last one with stdout came.
fn output_of(messages: &[(Duration, Vec<u8>)]) -> Result<([Vec<u8>; 2], Duration)> {
    let (mut output, mut printed) = ([Vec::new(), Vec::new()], Duration::ZERO);
    for (at, message) in messages {
        let message: Value = serde_json::from_slice(message).context("a message of the agent")?;
        if message["stdout"]["data"].is_string() {
            printed = *at;
        }
        for (name, all) in ["stdout", "stderr"].into_iter().zip(&mut output) {
            if let Some(data) = message[name]["data"].as_str() {
                BASE64_STANDARD.decode_vec(data, all).context("a message of the agent")?;
            }
        }
    }
    Ok((output, printed))
}

/// Returns a text as a value in a URL's query.
fn percent_encoded(text: &str) -> String {
    let encoded = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encoded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_all_lengths_and_in_parts_are_read() {
        let long = vec![b'x'; 300];
        let mut sent = vec![0x81, 2, b'{', b'}', 0x81, 126, 1, 44];
        sent.extend(&long);
        // A ping between the two parts of a message.
        sent.extend([0x01, 1, b'a', 0x89, 1, b'p', 0x80, 1, b'b']);
        sent.extend([0x88, 7, 3, 243, b'w', b'h', b'y', b'?', b'!']);
        let stream = &mut &*sent;
        assert_eq!(next_message(stream).unwrap(), b"{}");
        assert_eq!(next_message(stream).unwrap(), long);
        assert_eq!(next_message(stream).unwrap(), b"ab");
        assert!(next_message(stream).unwrap_err().to_string().contains("why?!"));
    }

    #[test]
    fn an_exec_that_goes_on_or_sends_too_much_comes_to_an_end() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let bounded = |limit: Duration, left| {
            let connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            connection.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            (Bounded { connection, deadline: Instant::now() + limit, left }, listener.accept().unwrap().0)
        };
        let (mut silent, _agent) = bounded(Duration::from_millis(5), MOST);
        assert!(silent.read(&mut [0; 8]).unwrap_err().to_string().contains("too long"));
        let (mut flooded, mut agent) = bounded(LIMIT, 3);
        agent.write_all(b"four").unwrap();
        let mut read = Vec::new();
        assert!(flooded.read_to_end(&mut read).unwrap_err().to_string().contains("too much"));
    }

    #[test]
    fn output_is_put_together_and_an_exit_is_found() {
        let at = Duration::from_millis;
        let messages = [
            (at(1), br#"{"stdout":{"data":"aGVs"}}"#.to_vec()),
            (at(2), br#"{"stdout":{"data":"bG8="}}"#.to_vec()),
            (at(3), br#"{"stderr":{"data":"IQ=="}}"#.to_vec()),
            (at(4), br#"{"stdout":{"close":true}}"#.to_vec()),
        ];
        assert_eq!(output_of(&messages).unwrap(), ([b"hello".to_vec(), b"!".to_vec()], at(2)));
        assert_eq!(exit_of(&messages[3].1).unwrap(), None);
        assert_eq!(exit_of(br#"{"exited":true,"result":{"exit_code":7}}"#).unwrap(), Some(7));
        assert_eq!(exit_of(br#"{"exited":true,"result":{}}"#).unwrap(), Some(0));
    }

    #[test]
    fn a_command_is_a_value_of_a_query() {
        assert_eq!(percent_encoded(r#"["cat","/a b"]"#), "%5B%22cat%22%2C%22%2Fa%20b%22%5D");
        assert_eq!(text_frame("{}"), [0x81, 0x82, 0, 0, 0, 0, b'{', b'}']);
    }
}
