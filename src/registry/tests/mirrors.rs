//! The registry client with several hosts for one registry, by a `hosts.toml`, each giving the answers it is told to.

use super::*;

type ServedRequests = tokio::task::JoinHandle<Vec<String>>;

/// A registry's name, and the hosts that its `hosts.toml` gives.
struct Mirrored {
    client: RegistryClient,
    reference: Reference,
    mirror: String,
    directory: tempfile::TempDir,
}

impl Mirrored {
    /// Starts a mirror with these settings and answers, and a host in the registry's own place.
    async fn new(
        settings: &str,
        first: Vec<String>,
        second: Vec<String>,
    ) -> (Self, ServedRequests, ServedRequests) {
        let (mirror, asked_first) = answering(first).await;
        let (server, asked_second) = answering(second).await;
        (Self::at(settings, mirror.host(), server.host(), IDLE), asked_first, asked_second)
    }

    /// Names a mirror with these settings and a host in the registry's own place.
    fn at(settings: &str, mirror: &str, server: &str, idle: Duration) -> Self {
        let text = format!("server = \"http://{server}\"\n[host.\"http://{mirror}\"]\n{settings}\n");
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("registry.example")).unwrap();
        std::fs::write(directory.path().join("registry.example/hosts.toml"), text).unwrap();
        let hosts = Some(directory.path().to_owned());
        Self {
            client: RegistryClient::new(hosts, idle),
            reference: "registry.example/a/b:c".parse().unwrap(),
            mirror: mirror.to_owned(),
            directory,
        }
    }

    fn registry(&self) -> Registry<'_> {
        at(&self.client, &self.reference, as_user("hunter2"))
    }
}

fn gone() -> String {
    answer("404 Not Found", "", "")
}

#[tokio::test]
async fn a_mirror_is_queried_first_and_gets_the_namespace() {
    let settings = "header = {x-of-it = [\"one\", \"two\"]}";
    let (mirrored, first, _) = Mirrored::new(settings, vec![answer("200 OK", "", "{}")], vec![]).await;
    let fetched = mirrored.registry().manifest("c").await.unwrap();
    assert_eq!(fetched.origin, mirrored.mirror);
    let request = &first.await.unwrap()[0];
    assert!(request.starts_with("get /v2/a/b/manifests/c?ns=registry.example "), "{request}");
    assert!(request.contains("x-of-it: one") && request.contains("x-of-it: two"), "{request}");
}

#[tokio::test]
async fn the_next_host_is_queried_and_all_failures_are_reported() {
    let (mirrored, _first, second) =
        Mirrored::new("", vec![gone(), gone()], vec![answer("200 OK", "", "{}"), gone()]).await;
    let registry = mirrored.registry();
    registry.manifest("c").await.unwrap();
    let error = registry.manifest("d").await.err().unwrap();
    assert!(!error.is_transient());
    let text = error.to_string();
    let reasons = text.matches("not in the registry: 404 Not Found").count();
    assert!(reasons == 2 && text.contains(&mirrored.mirror), "{text}");
    assert_eq!(second.await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_host_without_resolve_is_queried_by_digest_only() {
    let digest = digest_of(b"{}");
    let response = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\nDocker-Content-Digest: {digest}\r\n\r\n"
    );
    let (mirrored, first, second) =
        Mirrored::new("capabilities = [\"pull\"]", vec![answer("200 OK", "", "{}")], vec![response]).await;
    assert_eq!(mirrored.registry().manifest("c").await.unwrap().bytes, b"{}");
    assert!(second.await.unwrap()[0].starts_with("head /v2/a/b/manifests/c"));
    assert!(first.await.unwrap()[0].starts_with(&format!("get /v2/a/b/manifests/{digest}")));
}

#[tokio::test]
async fn bad_content_is_fetched_from_another_host() {
    let digest = digest_of(b"{}");
    let (mirrored, _first, _second) =
        Mirrored::new("", vec![answer("200 OK", "", "[]")], vec![answer("200 OK", "", "{}")]).await;
    assert_eq!(mirrored.registry().manifest(&digest).await.unwrap().bytes, b"{}");
    let content = blob("0123456789");
    let (mirrored, _first, _second) =
        Mirrored::new("", vec![answer("200 OK", "", "987654321x")], vec![answer("200 OK", "", "0123456789")])
            .await;
    assert_eq!(mirrored.registry().small_blob(&content).await.unwrap(), b"0123456789");
}

#[tokio::test]
async fn a_broken_blob_resumes_at_another_host() {
    let broken = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10\r\n\r\n0123".to_owned();
    let (mirrored, _first, second) = Mirrored::new(
        "",
        vec![broken],
        vec![answer("206 Partial Content", "Content-Range: bytes 4-9/10\r\n", "456789")],
    )
    .await;
    let registry = mirrored.registry();
    let content = blob("0123456789");
    let mut got = Vec::new();
    let mut body = registry.blob(&content, 0).await.unwrap();
    assert_eq!(body.origin(), mirrored.mirror);
    while body.append_to(&mut got).await.is_ok_and(|goes_on| goes_on) {}
    let mut body = registry.blob(&content, got.len() as u64).await.unwrap();
    assert_ne!(body.origin(), mirrored.mirror);
    while body.append_to(&mut got).await.unwrap() {}
    assert_eq!(got, b"0123456789");
    assert!(second.await.unwrap()[0].contains("range: bytes=4-"));
}

#[tokio::test]
async fn a_registrys_password_is_not_sent_to_its_mirror() {
    let asks = || answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"\r\n", "");
    let (mirrored, first, second) = Mirrored::new("", vec![asks()], vec![asks()]).await;
    let error = mirrored.registry().manifest("c").await.err().unwrap();
    let text = error.to_string();
    assert_eq!(text.matches("without credentials").count(), 2, "{text}");
    let requests = [first.await.unwrap(), second.await.unwrap()].concat();
    assert!(requests.iter().all(|request| !request.contains("authorization")), "{requests:?}");
}

#[tokio::test]
async fn operator_headers_follow_no_redirect_to_another_host() {
    let (storage, serving) = answering(vec![answer("200 OK", "", "0123456789")]).await;
    let moved = answer("307 Temporary Redirect", "Location: ../../elsewhere\r\n", "");
    let away = format!("Location: http://{}/blob\r\n", storage.host());
    let (mirrored, first, _) =
        Mirrored::new("header = {x-of-it = \"one\"}", vec![moved, answer("302 Found", &away, "")], vec![])
            .await;
    mirrored.registry().small_blob(&blob("0123456789")).await.unwrap();
    let requests = first.await.unwrap();
    assert!(requests[1].starts_with("get /v2/a/elsewhere "), "{requests:?}");
    assert!(requests.iter().all(|request| request.contains("x-of-it")), "{requests:?}");
    let request = &serving.await.unwrap()[0];
    assert!(request.starts_with("get /blob ") && !request.contains("x-of-it"), "{request}");
}

#[tokio::test]
async fn a_tag_needs_a_host_with_the_resolve_capability() {
    let (mirrored, ..) = Mirrored::new("capabilities = [\"pull\"]", vec![], vec![]).await;
    let path = mirrored.directory.path().join("registry.example/hosts.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("capabilities = [\"push\"]\n{text}")).unwrap();
    let text = mirrored.registry().manifest("c").await.err().unwrap().to_string();
    assert!(text.contains("registry.example") && text.contains("capabilities"), "{text}");
}

#[tokio::test]
async fn a_host_that_fails_by_itself_is_asked_after_the_others_from_then_on() {
    for status in ["503 Service Unavailable", "403 Forbidden"] {
        let good = || answer("200 OK", "", "{}");
        let (mirrored, _first, _second) =
            Mirrored::new("", vec![answer(status, "", ""), good()], vec![good(), good()]).await;
        let registry = mirrored.registry();
        registry.manifest("c").await.unwrap();
        assert_ne!(registry.manifest("d").await.unwrap().origin, mirrored.mirror, "{status}");
    }
    // One that only lacks the content is asked first again.
    let good = answer("200 OK", "", "{}");
    let (mirrored, _first, _second) = Mirrored::new("", vec![gone(), good.clone()], vec![good]).await;
    let registry = mirrored.registry();
    registry.manifest("c").await.unwrap();
    assert_eq!(registry.manifest("d").await.unwrap().origin, mirrored.mirror);
}

/// Answers one request after a while.
async fn answering_late(after: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await;
        tokio::time::sleep(after).await;
        let _ = stream.write_all(answer("200 OK", "", "{}").as_bytes()).await;
    });
    address.to_string()
}

#[tokio::test]
async fn only_the_last_host_may_take_its_time_to_answer() {
    let after = Duration::from_millis(600);
    let (mirror, server) = (answering_late(after).await, answering_late(after).await);
    let mirrored = Mirrored::at("", &mirror, &server, after / 3);
    assert_eq!(mirrored.registry().manifest("c").await.unwrap().origin, server);
}
