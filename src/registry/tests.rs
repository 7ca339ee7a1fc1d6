//! The registry client against a registry that gives the answers it is told to.

use futures::FutureExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::credentials::Credentials;
use super::*;
use crate::image::digest::digest_of;
use crate::image::manifest::MANIFEST_LIMIT_BYTES;
use crate::secret::Secret;

/// First byte of a TLS handshake.
const HANDSHAKE: u8 = 0x16;

/// Gives one answer to each connection, in order, and returns the requests. Speaks no TLS.
async fn answering(answers: Vec<String>) -> (Reference, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let mut requests = Vec::new();
        for answer in answers {
            let mut request = vec![0; 4096];
            let (mut stream, length) = loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let length = stream.read(&mut request).await.unwrap();
                if request[0] != HANDSHAKE {
                    break (stream, length);
                }
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            };
            requests.push(String::from_utf8_lossy(&request[..length]).to_lowercase());
            let answer = answer.replace("ADDRESS", &address.to_string());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        requests
    });
    (format!("{address}/a/b:c").parse().unwrap(), serving)
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
}

/// Maximum time without a byte.
const IDLE: Duration = Duration::from_secs(5);

/// Returns the client that pulls share where nothing is configured.
fn bare() -> RegistryClient {
    RegistryClient::new(None, IDLE)
}

/// Returns a repository of a registry, with a job's credentials for it.
fn at<'a>(client: &'a RegistryClient, reference: &Reference, own: Option<Credentials>) -> Registry<'a> {
    let own = own.map(|own| (reference.host().to_owned(), own));
    with(client, reference, PullCredentials { own, credential_store: None })
}

fn with<'a>(client: &'a RegistryClient, reference: &Reference, login: PullCredentials) -> Registry<'a> {
    let wait = Box::new(|_, wanted| tokio::time::sleep(wanted).map(Ok).boxed());
    Registry::new(client, reference, login, wait)
}

fn blob(content: &str) -> Descriptor {
    let digest = digest_of(content.as_bytes());
    serde_json::from_value(json!({"mediaType": "x", "digest": digest, "size": content.len()})).unwrap()
}

#[tokio::test]
async fn a_token_is_fetched_on_a_challenge() {
    let challenge = "WWW-Authenticate: Bearer realm=\"http://ADDRESS/token\",service=\"s\"\r\n";
    let (reference, serving) = answering(vec![
        answer("401 Unauthorized", challenge, ""),
        answer("200 OK", "", r#"{"access_token": "t0ken"}"#),
        answer("200 OK", "Content-Type: text/x; charset=utf-8\r\n", "{}"),
    ])
    .await;
    let client = bare();
    let fetched = at(&client, &reference, None).manifest("c").await.unwrap();
    assert_eq!((fetched.media_type.as_str(), fetched.bytes.as_slice()), ("text/x", &b"{}"[..]));
    let requests = serving.await.unwrap();
    assert!(
        requests[1].starts_with("get /token?scope=repository%3aa%2fb%3apull&service=s "),
        "{}",
        requests[1]
    );
    assert!(requests[2].contains("authorization: bearer t0ken"), "{}", requests[2]);
}

#[tokio::test]
async fn transient_registry_errors_are_retried() {
    let unknown = r#"{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no\nsuch"}]}"#;
    let answers = vec![answer("429 Too Many Requests", "", ""), answer("404 Not Found", "", unknown)];
    let (reference, _serving) = answering(answers).await;
    let client = bare();
    let error = at(&client, &reference, None).manifest("c").await.err().unwrap();
    let reason = "404 Not Found: MANIFEST_UNKNOWN: no such".to_owned();
    assert_eq!(error, ImageError::NotInRegistry { reason });
}

#[tokio::test]
async fn a_blob_resumes_with_and_without_range_support() {
    let content = "0123456789";
    let rest = "Content-Range: bytes 4-9/10\r\n";
    for (status, range, sent) in [("206 Partial Content", rest, "456789"), ("200 OK", "", content)] {
        let (reference, serving) = answering(vec![answer(status, range, sent)]).await;
        let client = bare();
        let registry = at(&client, &reference, None);
        let mut body = registry.blob(&blob(content), 4).await.unwrap();
        let mut rest = Vec::new();
        while body.append_to(&mut rest).await.unwrap() {}
        assert_eq!(rest, b"456789", "{status}");
        assert!(serving.await.unwrap()[0].contains("range: bytes=4-"));
    }
}

#[tokio::test]
async fn a_refused_or_wrong_range_is_fetched_as_a_whole() {
    let content = "0123456789";
    for (status, range, sent) in [
        ("416 Range Not Satisfiable", "Content-Range: bytes */10\r\n", ""),
        ("206 Partial Content", "Content-Range: bytes 0-5/10\r\n", "012345"),
        ("206 Partial Content", "", "456789"),
        ("206 Partial Content", "Content-Range: bytes 4-9/10\r\n", "4567"),
    ] {
        let answers = vec![answer(status, range, sent), answer("200 OK", "", content)];
        let (reference, serving) = answering(answers).await;
        let client = bare();
        let registry = at(&client, &reference, None);
        let mut body = registry.blob(&blob(content), 4).await.unwrap();
        let mut rest = Vec::new();
        while body.append_to(&mut rest).await.unwrap() {}
        assert_eq!(rest, b"456789", "{status} {range}");
        let requests = serving.await.unwrap();
        let ranges: Vec<_> = requests.iter().map(|request| request.contains("range: ")).collect();
        assert_eq!(ranges, [true, false], "{status} {range}");
    }
}

#[tokio::test]
async fn token_server_redirects_carry_no_password() {
    let (server, elsewhere) = answering(vec![answer("200 OK", "", r#"{"token": "t0ken"}"#)]).await;
    let challenge = "WWW-Authenticate: Bearer realm=\"http://ADDRESS/token\"\r\n";
    let away = format!("Location: http://{}/else\r\n", server.host());
    let (reference, serving) = answering(vec![
        answer("401 Unauthorized", challenge, ""),
        answer("301 Moved Permanently", "Location: /there?scope=x\r\n", ""),
        answer("302 Found", &away, ""),
        answer("200 OK", "", "{}"),
    ])
    .await;
    let client = bare();
    at(&client, &reference, as_user("hunter2")).manifest("c").await.unwrap();
    let requests = serving.await.unwrap();
    assert!(requests[1].contains(ME_HUNTER2) && requests[2].contains(ME_HUNTER2), "{requests:?}");
    assert!(requests[2].starts_with("get /there?scope=x "), "{requests:?}");
    assert!(requests[3].contains("authorization: bearer t0ken"), "{requests:?}");
    let request = &elsewhere.await.unwrap()[0];
    assert!(request.starts_with("get /else ") && !request.contains("authorization"), "{request}");
}

#[tokio::test]
async fn token_server_redirects_to_the_loopback_are_refused() {
    for (place, named) in
        [("http://192.0.2.1/latest/meta-data", "http://192.0.2.1"), ("ftp://ADDRESS/", "ftp")]
    {
        let challenge = "WWW-Authenticate: Bearer realm=\"http://ADDRESS/token\"\r\n";
        let away = format!("Location: {place}\r\n");
        let answers = vec![answer("401 Unauthorized", challenge, ""), answer("302 Found", &away, "")];
        let (reference, serving) = answering(answers).await;
        let client = bare();
        let error = at(&client, &reference, None).manifest("c").await.err().unwrap();
        assert!(error.to_string().contains("redirects") && error.to_string().contains(named), "{error}");
        assert_eq!(serving.await.unwrap().len(), 2, "{place}");
    }
}

#[tokio::test]
async fn bodies_over_the_limit_are_not_read() {
    let announced = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", MANIFEST_LIMIT_BYTES + 1);
    let (reference, _serving) = answering(vec![announced]).await;
    let client = bare();
    let error = at(&client, &reference, None).manifest("c").await.err().unwrap();
    assert!(matches!(error, ImageError::Unsupported { .. }), "{error}");
}

fn as_user(password: &str) -> Option<Credentials> {
    let password = Secret::new(password.to_owned());
    Some(Credentials { username: "me".to_owned(), password })
}

const ME_HUNTER2: &str = "authorization: basic bwu6ahvudgvymg==";

#[tokio::test]
async fn a_password_is_sent_on_a_basic_challenge_only() {
    let asks = answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"\r\n", "");
    let (reference, serving) =
        answering(vec![asks, answer("200 OK", "", "{}"), answer("200 OK", "", "{}")]).await;
    let client = bare();
    let registry = at(&client, &reference, as_user("hunter2"));
    registry.manifest("c").await.unwrap();
    registry.manifest("d").await.unwrap();
    let sent: Vec<_> = serving.await.unwrap().iter().map(|request| request.contains(ME_HUNTER2)).collect();
    assert_eq!(sent, [false, true, true]);
}

#[tokio::test]
async fn the_password_goes_to_the_token_server_and_the_token_to_the_registry() {
    let challenge = "WWW-Authenticate: Bearer realm=\"http://ADDRESS/token\",service=\"s\"\r\n";
    let (reference, serving) = answering(vec![
        answer("401 Unauthorized", challenge, ""),
        answer("200 OK", "", r#"{"token": "t0ken"}"#),
        answer("200 OK", "", "{}"),
    ])
    .await;
    let client = bare();
    at(&client, &reference, as_user("hunter2")).manifest("c").await.unwrap();
    let requests = serving.await.unwrap();
    let sent: Vec<_> = requests.iter().map(|request| request.contains(ME_HUNTER2)).collect();
    assert_eq!(sent, [false, true, false]);
    assert!(requests[2].contains("authorization: bearer t0ken"), "{}", requests[2]);
}

#[tokio::test]
async fn a_rejected_login_names_the_user_and_redacts_the_password() {
    let asks = |words: &str| answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"\r\n", words);
    let words = r#"{"errors": [{"code": "UNAUTHORIZED", "message": "hunter2 is wrong"}]}"#;
    for (credentials, expected) in [(as_user("hunter2"), "user \"me\""), (None, "without credentials")] {
        let (reference, _serving) = answering(vec![asks(words), asks(words)]).await;
        let client = bare();
        let has_some = credentials.is_some();
        let error = at(&client, &reference, credentials).manifest("c").await.err().unwrap();
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains("127.0.0.1:"), "{text}");
        assert!(!has_some || !text.contains("hunter2"), "{text}");
        // The operator's credentials may be better ones at the next try; the job's are not.
        assert_eq!((error.is_retryable(), error.is_transient()), (false, !has_some));
    }
}

#[tokio::test]
async fn blob_redirects_carry_no_password() {
    let (elsewhere, storage) = answering(vec![answer("200 OK", "", "0123456789")]).await;
    let moved = format!("Location: http://{}/blob?signed=1\r\n", elsewhere.host());
    let (reference, serving) = answering(vec![
        answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"\r\n", ""),
        answer("307 Temporary Redirect", &moved, ""),
    ])
    .await;
    let client = bare();
    let registry = at(&client, &reference, as_user("hunter2"));
    assert_eq!(registry.small_blob(&blob("0123456789")).await.unwrap(), b"0123456789");
    assert!(serving.await.unwrap()[1].contains(ME_HUNTER2));
    let request = &storage.await.unwrap()[0];
    assert!(request.starts_with("get /blob") && !request.contains("authorization"), "{request}");
}

#[tokio::test]
async fn more_bytes_than_a_blobs_size_are_damage_on_the_way() {
    let endless = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}", "x".repeat(11));
    let (reference, _serving) = answering(vec![endless]).await;
    let client = bare();
    let error = at(&client, &reference, None).small_blob(&blob("0123456789")).await.unwrap_err();
    assert!(error.is_damaged() && error.is_transient(), "{error}");
}

#[tokio::test]
async fn tags_are_resolved_by_head_where_possible() {
    let digest = digest_of(b"{}");
    let headers = format!("Docker-Content-Digest: {digest}\r\nContent-Type: text/x; charset=utf-8\r\n");
    let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n{headers}\r\n");
    let content = || answer("200 OK", "Content-Type: text/x\r\n", "{}");
    let of_another_kind = head.replace("sha256", "md5");
    for (answers, methods) in [
        (vec![head], &["head"][..]),
        (
            vec![answer("503 Service Unavailable", "", ""), answer("404 Not Found", "", ""), content()],
            &["head", "head", "get"],
        ),
        (vec![answer("501 Not Implemented", "", ""), content()], &["head", "get"]),
        (vec![answer("200 OK", "", ""), content()], &["head", "get"]),
        (vec![of_another_kind, content()], &["head", "get"]),
    ] {
        let (reference, serving) = answering(answers).await;
        let client = bare();
        let resolved = at(&client, &reference, None).resolve("c").await.unwrap();
        assert_eq!(resolved.digest().to_string(), digest);
        assert_eq!((resolved.media_type().to_string().as_str(), resolved.size()), ("text/x", 2));
        let requests = serving.await.unwrap();
        let sent: Vec<_> = requests.iter().map(|request| request.split(' ').next().unwrap()).collect();
        assert_eq!(sent, methods);
        assert!(requests.iter().all(|request| request.contains(" /v2/a/b/manifests/c ")), "{requests:?}");
    }
}

#[tokio::test]
async fn a_missing_tag_is_reported_in_the_registrys_words() {
    let unknown = r#"{"errors": [{"code": "MANIFEST_UNKNOWN"}]}"#;
    let answers = vec![answer("404 Not Found", "", ""), answer("404 Not Found", "", unknown)];
    let (reference, _serving) = answering(answers).await;
    let client = bare();
    let error = at(&client, &reference, None).resolve("c").await.err().unwrap();
    assert_eq!(error, ImageError::NotInRegistry { reason: "404 Not Found: MANIFEST_UNKNOWN: ".to_owned() });
}

#[tokio::test]
async fn endless_challenges_end() {
    let asks = || answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"\r\n", "");
    let (reference, serving) = answering(vec![asks(), asks()]).await;
    let client = bare();
    assert!(!at(&client, &reference, as_user("hunter2")).manifest("c").await.err().unwrap().is_transient());
    assert_eq!(serving.await.unwrap().len(), 2);
}

#[tokio::test]
async fn an_expired_token_is_renewed() {
    let challenge = "WWW-Authenticate: Bearer realm=\"http://ADDRESS/token\",error=\"invalid_token\"\r\n";
    let asks = || answer("401 Unauthorized", challenge, "");
    let (reference, serving) = answering(vec![
        asks(),
        answer("200 OK", "", r#"{"token": "first", "expires_in": 60}"#),
        answer("200 OK", "", "{}"),
        asks(),
        answer("200 OK", "", r#"{"token": "second"}"#),
        answer("200 OK", "", "{}"),
    ])
    .await;
    let client = bare();
    let registry = at(&client, &reference, None);
    registry.manifest("c").await.unwrap();
    registry.manifest("d").await.unwrap();
    let requests = serving.await.unwrap();
    assert!(requests[3].contains("bearer first") && requests[5].contains("bearer second"), "{requests:?}");
}

#[tokio::test]
async fn an_identity_token_goes_to_the_token_server_only() {
    let challenge = "WWW-Authenticate: Bearer realm=\"http://ADDRESS/token\",service=\"s\"\r\n";
    let identity = Credentials { username: "<token>".to_owned(), password: Secret::new("i d&1".to_owned()) };
    let asks = || answer("401 Unauthorized", challenge, "");
    let (reference, serving) = answering(vec![
        asks(),
        answer("200 OK", "", r#"{"access_token": "t0ken"}"#),
        answer("200 OK", "", "{}"),
    ])
    .await;
    let client = bare();
    at(&client, &reference, Some(identity.clone())).manifest("c").await.unwrap();
    let requests = serving.await.unwrap();
    assert!(requests[1].starts_with("post /token "), "{}", requests[1]);
    let form = "grant_type=refresh_token&service=s&client_id=containerd-driver\
                &scope=repository%3aa%2fb%3apull&refresh_token=i+d%261";
    assert!(requests[1].ends_with(form), "{}", requests[1]);
    assert!(requests[2].contains("authorization: bearer t0ken"), "{}", requests[2]);

    let refusal =
        answer("400 Bad Request", "", r#"{"error": "invalid_grant", "error_description": "i d&1 is void"}"#);
    for is_from_job in [true, false] {
        let (reference, _serving) = answering(vec![asks(), refusal.clone()]).await;
        let known = Some((reference.host().to_owned(), identity.clone()));
        let login = if is_from_job {
            PullCredentials { own: known, credential_store: None }
        } else {
            let credential_store = CredentialStore { inline: known, ..CredentialStore::default() };
            PullCredentials { own: None, credential_store: Some(credential_store.into()) }
        };
        let error = with(&client, &reference, login).manifest("c").await.err().unwrap();
        assert!(matches!(error, ImageError::Denied { own, .. } if own == is_from_job), "{error}");
        let text = error.to_string();
        assert!(text.contains("invalid_grant; *** is void") && text.contains("identity token"), "{text}");
    }
}

#[tokio::test]
async fn retry_after_is_honoured_up_to_its_limit() {
    let busy = |seconds: &str| answer("429 Too Many Requests", &format!("Retry-After: {seconds}\r\n"), "");
    let content = "0123456789";
    let (reference, serving) = answering(vec![busy("0"), answer("200 OK", "", content)]).await;
    let client = bare();
    at(&client, &reference, None).blob(&blob(content), 0).await.unwrap();
    assert_eq!(serving.await.unwrap().len(), 2);
    let (reference, serving) = answering(vec![busy("3600")]).await;
    let error = at(&client, &reference, None).blob(&blob(content), 0).await.err().unwrap();
    assert!(error.is_transient() && error.to_string().contains("in 1h"), "{error}");
    assert_eq!(serving.await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_registry_that_never_has_time_is_not_waited_for_without_end() {
    let busy = || answer("429 Too Many Requests", "Retry-After: 0\r\n", "");
    let content = "0123456789";
    let mut answers: Vec<_> = (0..=MAX_WAITS).map(|_| busy()).collect();
    answers.push(answer("200 OK", "", content));
    let (reference, _serving) = answering(answers).await;
    let error = at(&bare(), &reference, None).blob(&blob(content), 0).await.err().unwrap();
    assert!(error.to_string().contains("429"), "{error}");
}

mod mirrors;
