//! Runs docker's credential helpers, `docker-credential-<name>`, to get the credentials of a registry. One of the few
//! modules of the plugin that start processes.
//!
//! A helper gets the agent's PATH and HOME, the variables of its environment that the operator lists and nothing more,
//! the registry on its stdin, and pipes of its own; its process group is killed at the deadline, and when the pull is
//! cancelled.
//!
//! Source of the facts: docker-credential-helpers' README and `credentials/error.go`.
#![allow(clippy::disallowed_methods, reason = "helpers are programs by design; their stdio is set here")]

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::{Child, Command};

use super::credentials::Credentials;
use crate::image::{ImageError, Retry};
use crate::secret::Secret;
use crate::sys::process_group;

/// Timeout of a helper's answer.
const ANSWERS: Duration = Duration::from_secs(30);
/// Maximum size of a helper's answer, on each of stdout and stderr.
const ANSWER_LIMIT_BYTES: u64 = 64 * 1024;
/// Maximum length, in characters, of a helper's error message that is passed on.
const WORDS_LIMIT: usize = 300;
/// Output of a helper that has no credentials for the registry.
const HAS_NONE: &str = "credentials not found in native keychain";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: Secret,
}

/// Asks a helper for the credentials of a registry.
///
/// # Errors
/// Names the helper, with its own message where that can't have a secret in it.
pub(super) async fn ask(name: &str, server: &str, env: &[String]) -> Result<Option<Credentials>, ImageError> {
    let program = format!("docker-credential-{name}");
    let failed = |reason: String| ImageError::Credentials {
        reason: format!("{program} get, asked for {server}, {reason}"),
        retry: Retry::Soon,
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(is_plain) {
        return Err(failed("is not the name of a helper".to_owned()));
    }
    let started = process_group::spawn(command(&program, env)).await;
    let (mut group, mut child) = started.map_err(|error| failed(format!("can't be run: {error}")))?;
    let answer = tokio::time::timeout(ANSWERS, exchange(&mut child, server)).await;
    if let Ok(Ok(_)) = answer {
        group.ended();
    }
    match answer {
        Ok(Ok((is_success, out, err))) => interpret(is_success, &out, &err).map_err(failed),
        Ok(Err(error)) => Err(failed(format!("was interrupted: {error}"))),
        Err(_) => Err(failed(format!("did not answer within {} s", ANSWERS.as_secs()))),
    }
}

fn command(program: &str, env: &[String]) -> Command {
    let mut command = Command::new(program);
    command.arg("get").env_clear().current_dir("/").process_group(0).kill_on_drop(true);
    for name in ["PATH", "HOME"].into_iter().chain(env.iter().map(String::as_str)) {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Returns whether the helper succeeded, and its stdout and stderr.
async fn exchange(child: &mut Child, server: &str) -> std::io::Result<(bool, String, String)> {
    let (status, out, err) = process_group::exchange(child, server.as_bytes(), ANSWER_LIMIT_BYTES).await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((status.success(), text(&out), text(&err)))
}

/// Interprets what a helper has printed. One that fails may just have no credentials for the registry.
fn interpret(is_success: bool, out: &str, err: &str) -> Result<Option<Credentials>, String> {
    if is_success {
        read(out)
    } else if out.trim() == HAS_NONE {
        Ok(None)
    } else {
        Err(format!("failed: {}", error_message(out, err)))
    }
}

fn read(answer: &str) -> Result<Option<Credentials>, String> {
    // The parser's own message may quote the secret.
    let Answer { username, secret } = serde_json::from_str(answer)
        .map_err(|_| "did not answer in the form of docker's credential helpers".to_owned())?;
    let is_empty = username.is_empty() && secret.reveal().is_empty();
    Ok((!is_empty).then_some(Credentials { username, password: secret }))
}

/// Returns a helper's error message: helpers write it to stdout, scripts to stderr. Output that looks like an answer is
/// left out, since it may have a secret in it.
fn error_message(out: &str, err: &str) -> String {
    let out = if out.contains('{') { "" } else { out };
    let error_message = format!("{} {}", out.trim(), err.trim()).replace(char::is_control, " ");
    let error_message: String = error_message.trim().chars().take(WORDS_LIMIT).collect();
    if error_message.is_empty() { "it printed nothing".to_owned() } else { error_message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helper_answers_are_parsed_and_errors_show_no_secret() {
        let whole = r#"{"ServerURL": "a", "Username": "me", "Secret": "hunter2"}"#;
        let credentials =
            Credentials { username: "me".to_owned(), password: Secret::new("hunter2".to_owned()) };
        assert_eq!(read(whole), Ok(Some(credentials)));
        assert_eq!(read(r#"{"Username": "", "Secret": ""}"#), Ok(None));
        let token = read(r#"{"Username": "<token>", "Secret": "hunter2"}"#).unwrap().unwrap();
        assert_eq!(token.identity_token().map(Secret::reveal), Some("hunter2"));
        for answer in ["hunter2", r#"{"Username": 2, "Secret": "hunter2"}"#] {
            let error = read(answer).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert_eq!(error_message("not\nlogged in\n", ""), "not logged in");
        assert_eq!(error_message(whole, "oops"), "oops");
    }

    #[tokio::test]
    async fn a_helper_is_told_the_server_and_its_output_is_read() {
        // Shows the lines of its stdin that have `get`, the word that helpers are run with.
        let mut helper = command("grep", &[]).spawn().unwrap();
        let answer = exchange(&mut helper, "get.test").await.unwrap();
        assert_eq!(answer, (true, "get.test\n".to_owned(), String::new()));
        let mut helper = command("cat", &[]).spawn().unwrap();
        let (is_success, out, err) = exchange(&mut helper, "get.test").await.unwrap();
        assert!(!is_success && out.is_empty() && err.contains("get"), "{out} {err}");
    }

    #[test]
    fn a_helper_without_credentials_is_no_failed_one() {
        let whole = r#"{"ServerURL": "a", "Username": "me", "Secret": "hunter2"}"#;
        assert!(interpret(true, whole, "").unwrap().is_some());
        assert_eq!(interpret(false, "credentials not found in native keychain\n", "x"), Ok(None));
        assert_eq!(interpret(false, "locked", "see the log"), Err("failed: locked see the log".to_owned()));
        assert_eq!(interpret(false, whole, ""), Err("failed: it printed nothing".to_owned()));
        assert!(interpret(true, HAS_NONE, "").is_err());
    }

    #[tokio::test]
    async fn a_missing_or_broken_helper_is_named() {
        for name in ["no-such-helper", "../../bin/sh", ""] {
            let error = ask(name, "ghcr.io", &[]).await.unwrap_err().to_string();
            assert!(error.contains(&format!("docker-credential-{name}")), "{error}");
        }
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn answers() {
        crate::fuzz::pairs("credential-helper", |out, err| {
            let [out, err] = [out, err].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
            match read(&out) {
                Ok(Some(Credentials { username, password })) => {
                    assert!(!(username.is_empty() && password.reveal().is_empty()));
                }
                Ok(None) => {}
                Err(error) => assert_eq!(error, "did not answer in the form of docker's credential helpers"),
            }
            let shown = error_message(&out, &err);
            assert!(shown.chars().count() <= WORDS_LIMIT && !shown.contains(char::is_control), "{shown}");
        });
    }
}
