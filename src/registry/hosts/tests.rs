//! The hosts that a directory of `hosts.toml` files gives, and the errors of faults in one.

use super::*;

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    directory
}

async fn hosts(directory: &tempfile::TempDir, registry: &str) -> Vec<Host> {
    Hosts::in_directory(Some(directory.path().to_owned())).of(registry).await.unwrap()
}

async fn addresses(directory: &tempfile::TempDir, registry: &str) -> Vec<String> {
    hosts(directory, registry).await.into_iter().map(|host| host.base.to_string()).collect()
}

#[tokio::test]
async fn a_registry_without_configuration_is_its_own_host() {
    let nowhere = Hosts::default();
    for (registry, base) in [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("ghcr.io", "https://ghcr.io/v2"),
        ("10.0.0.5:5000", "https://10.0.0.5:5000/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("Ghcr.io:443", "https://ghcr.io/v2"),
    ] {
        let found = nowhere.of(registry).await.unwrap();
        assert_eq!(found.iter().map(|host| host.base.as_str()).collect::<Vec<_>>(), [base]);
        let tries_tls = base.starts_with("http:");
        assert_eq!(found[0].settings, Settings { tries_tls, ..Settings::default() });
        assert!(found[0].is(registry) && !found[0].is("ghcr.io:5000"), "{registry}");
        assert_eq!(Hosts::in_directory(Some("/no/such".into())).of(registry).await.unwrap(), found);
    }
}

#[tokio::test]
async fn a_file_that_cant_be_read_is_not_skipped() {
    let place = directory(&[("a.example/hosts.toml/is", "a directory")]);
    let hosts = Hosts::in_directory(Some(place.path().to_owned()));
    let error = hosts.of("a.example").await.unwrap_err().to_string();
    assert!(error.contains("a.example/hosts.toml: it can't be read"), "{error}");
}

#[tokio::test]
async fn the_first_existing_hosts_directory_is_used() {
    let named = |name: &str| format!("server = \"https://{name}.example\"");
    let all = directory(&[
        ("a.example_5000_/hosts.toml", &named("underlined")),
        ("a.example:5000/hosts.toml", &named("plain")),
        ("b.example:5000/hosts.toml", &named("plain")),
        ("b.example/hosts.toml", &named("other-port")),
        ("c.example/empty", ""),
        ("_default/hosts.toml", &named("default")),
    ]);
    for (registry, base) in [
        ("a.example:5000", "https://underlined.example/v2"),
        ("b.example:5000", "https://plain.example/v2"),
        ("b.example:6000", "https://default.example/v2"),
        ("c.example", "https://c.example/v2"),
        ("docker.io", "https://default.example/v2"),
    ] {
        assert_eq!(addresses(&all, registry).await, [base], "{registry}");
    }
}

#[tokio::test]
async fn hosts_keep_the_files_order_with_the_registry_last() {
    let text = r#"
        [host."https://z.example"]
        [host."http://a.example:5000/sub/"]
        [host."https://m.example/v2".header]
        x-a = "b"
        [host."https://m.example/v2"]
        [host."https://whole.example/v2/upstream"]
        override_path = true
    "#;
    let place = directory(&[("docker.io/hosts.toml", text)]);
    let bases = [
        "https://z.example/v2",
        "http://a.example:5000/sub/v2",
        "https://m.example/v2",
        "https://whole.example/v2/upstream",
        "https://registry-1.docker.io/v2",
    ];
    assert_eq!(addresses(&place, "docker.io").await, bases);
    let nothing = directory(&[("ghcr.io/hosts.toml", "server = \"\"")]);
    assert_eq!(addresses(&nothing, "ghcr.io").await, ["https://ghcr.io/v2"]);
    let server = directory(&[("docker.io/hosts.toml", "server = \"docker.io\"\n[host.\"a.example\"]")]);
    let bases = ["https://a.example/v2", "https://registry-1.docker.io/v2"];
    assert_eq!(addresses(&server, "docker.io").await, bases);
}

#[tokio::test]
async fn host_settings_apply_to_that_host_only() {
    let text = r#"
        server = "https://a.example"
        capabilities = ["push", "Pull"]
        ca = "own.crt"
        dial_timeout = "1s"
        [host."https://b.example"]
        ca = ["/etc/b.crt", "c.crt"]
        client = [["a.cert", "a.key"], ["b.pem", ""], "c.pem"]
        skip_verify = true
        [host."https://b.example".header]
        Authorization = "hunter2"
        x-b = ["one", "two"]
    "#;
    let place = directory(&[("a.example/hosts.toml", text)]);
    let found = hosts(&place, "a.example").await;
    let [mirror, server] = &found[..] else { panic!("{found:?}") };
    let beside = |name: &str| place.path().join("a.example").join(name);
    assert_eq!(server.settings.capabilities, HostCapabilities { pull: true, resolve: false });
    assert_eq!(server.settings.tls.ca, [beside("own.crt")]);
    assert_eq!(server.settings.connect_timeout, Some(Duration::from_secs(1)));
    assert!(server.settings.headers.is_empty());
    assert_eq!(mirror.settings.capabilities, HostCapabilities::default());
    assert_eq!(mirror.settings.tls.ca, [PathBuf::from("/etc/b.crt"), beside("c.crt")]);
    let client =
        [(beside("a.cert"), Some(beside("a.key"))), (beside("b.pem"), None), (beside("c.pem"), None)];
    assert_eq!(mirror.settings.tls.client, client);
    assert_eq!(mirror.settings.tls.skip_verify, Some(true));
    assert_eq!(mirror.settings.headers.len(), 3);
    assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");
}

#[tokio::test]
async fn docker_certificates_are_used_without_a_hosts_file() {
    let place = directory(&[
        ("127.0.0.1:5000/ca.crt", ""),
        ("127.0.0.1:5000/a.cert", ""),
        ("127.0.0.1:5000/a.key", ""),
        ("127.0.0.1:5000/b.cert", ""),
        ("127.0.0.1:5000/hosts.toml", ""),
    ]);
    let found = hosts(&place, "127.0.0.1:5000").await;
    let beside = |name: &str| place.path().join("127.0.0.1:5000").join(name);
    assert_eq!(found[0].base.as_str(), "https://127.0.0.1:5000/v2");
    assert_eq!(found[0].settings.tls.ca, [beside("ca.crt")]);
    let client = [(beside("a.cert"), Some(beside("a.key"))), (beside("b.cert"), None)];
    assert_eq!(found[0].settings.tls.client, client);
}

#[tokio::test]
async fn hosts_file_errors_have_a_line_and_no_content() {
    for (text, expected) in [
        ("server = \"https://a\"\nserver = \"hunter2\"", "line 2"),
        ("\n\nhunter2", "line 3"),
        ("server = 2", "line 1: server must be a string"),
        ("server = \"ftp://hunter2\"", "line 1: this is not the address"),
        ("server = \"https://me:hunter2@a\"", "line 1: an address must not have"),
        ("host = 2", "line 1: host must be a table"),
        ("[host]\n\"https://a\" = 1", "line 2: a host must be a table"),
        ("capabilities = \"pull\"", "line 1: capabilities must be a list"),
        ("capabilities = [\"hunter2\"]", "line 1: a capability must be"),
        ("ca = 1", "line 1: a path must be a string"),
        ("client = [[\"a\"]]", "line 1: a pair in client"),
        ("skip_verify = \"hunter2\"", "line 1: skip_verify must be true or false"),
        ("override_path = 1\nserver = \"https://a\"", "line 1: override_path"),
        ("dial_timeout = \"hunter2\"", "line 1: dial_timeout"),
        ("[header]\nx = 1", "line 2: a header's value must be a string"),
        ("[header]\nx = \"hunter2\\n\"", "line 2: this can't be the value"),
        ("[header]\n\"x y\" = \"hunter2\"", "line 2: this can't be the name"),
    ] {
        let place = directory(&[("a.example/hosts.toml", text)]);
        let hosts = Hosts::in_directory(Some(place.path().to_owned()));
        let error = hosts.of("a.example").await.unwrap_err().to_string();
        let path = place.path().join("a.example/hosts.toml").display().to_string();
        assert!(error.contains(&format!("{path}: ")) && error.contains(expected), "{text}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn unknown_keys_are_named() {
    let text =
        "sevrer = \"https://a\"\n[host.\"https://a\"]\nskip_verfy = true\n[host.\"https://a\".host.\"b\"]\n";
    let (_, unknown) = file::parse(text, Path::new("/etc")).unwrap();
    let expected = [("line 1", "sevrer"), ("line 3", "skip_verfy"), ("line 4", "host")];
    assert_eq!(unknown.len(), expected.len(), "{unknown:?}");
    for (warning, (line, key)) in unknown.iter().zip(expected) {
        assert!(warning.contains(line) && warning.contains(key), "{warning}");
    }
}

#[tokio::test]
async fn an_image_name_without_a_host_that_there_can_be_is_an_error() {
    for registry in ["1.2.3.4.5", "999.999.999.999:5000", "xn--a.example"] {
        format!("{registry}/a").parse::<crate::image::Reference>().unwrap();
        let error = Hosts::in_directory(None).of(registry).await.unwrap_err();
        assert!(error.to_string().contains(registry) && !error.is_retryable(), "{error}");
    }
}

#[test]
fn plain_http_is_for_the_loopback_only() {
    for host in ["localhost", "localhost:5000", "127.0.0.1", "127.8.0.1:80", "[::1]", "[::1]:5000"] {
        assert!(is_loopback(host), "{host}");
    }
    for host in
        ["docker.io", "localhost.example", "128.0.0.1:5000", "[::2]:5000", "10.0.0.1", "127.0.0.1.example"]
    {
        assert!(!is_loopback(host), "{host}");
    }
}
