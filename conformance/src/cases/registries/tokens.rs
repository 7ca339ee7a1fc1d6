//! Registries that want a token from a token server: by password, by identity token, again when it has expired; and
//! credentials that go only to the host that they are for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use harness::context::CaseContext;
use harness::fixture::auth_registry::{self, PAIR, PASSWORD, USER};
use harness::fixture::registry::RegistryAuth;
use harness::fixture::{
    CertificateAuthority, CertifiedKey, HttpStub, RecordedRequest, Registry, RegistrySettings, Reply,
};
use serde_json::{Value, json};

use crate::cases::support::registry_hosts::{HostsConfig, REGISTRY};
use crate::cases::support::{cases, is_recoverable, secrets};

cases!["tokens":
    a_token_is_had_with_the_password_and_only_the_token_goes_to_the_registry,
    a_token_is_had_with_an_identity_token,
    a_token_that_expires_in_the_middle_is_renewed,
    a_registry_that_never_has_enough_is_given_up,
    a_mirror_gets_its_own_credentials_and_none_of_the_registrys,
];

const IDENTITY: &str = "1dentity-of-the-node";

/// A token server, and a registry that accepts its tokens.
struct TokenRegistry {
    server: HttpStub,
    registry: Registry,
}

impl TokenRegistry {
    async fn new(case: &CaseContext) -> Result<Self> {
        let authority = CertificateAuthority::new(&case.directory().join("pki"), "issuer")?;
        let signer = authority.certify("signer")?;
        let server = HttpStub::before("127.0.0.1:1", move |seen| serve(&signer, seen)).await?;
        // The token server has moved, and redirects.
        let realm = format!("http://{}/old/token", server.address());
        let auth = Some(RegistryAuth::Token { realm, authority: authority.certificate() });
        let settings = RegistrySettings { auth, ..RegistrySettings::default() };
        let registry = case.environment().registry().beside(&case.directory().join("reg"), settings)?;
        Ok(Self { server, registry })
    }

    /// Returns the number of token requests by GET and by POST, without redirected ones.
    fn token_requests(&self) -> (usize, usize) {
        let seen = self.server.seen();
        let is_new = |seen: &&RecordedRequest| seen.method == "POST" || !seen.target.starts_with("/old");
        let by = |method: &str| seen.iter().filter(is_new).filter(|seen| seen.method == method).count();
        (by("GET"), by("POST"))
    }
}

/// Answers a token request that has the password or the identity token. A request by password is redirected once first.
fn serve(signer: &CertifiedKey, seen: &RecordedRequest) -> Reply {
    if let Some(rest) = seen.target.strip_prefix("/old").filter(|_| seen.method == "GET") {
        return Reply::Respond(301, vec![("Location", rest.to_owned())], String::new());
    }
    let is_known = match seen.method.as_str() {
        "POST" => seen.body.contains("grant_type=refresh_token") && seen.body.contains(IDENTITY),
        _ => seen.header("authorization") == Some(&format!("Basic {PAIR}")),
    };
    if !is_known {
        let words = json!({"errors": [{"code": "UNAUTHORIZED", "message": "who are you"}]});
        return Reply::Respond(401, Vec::new(), words.to_string());
    }
    let request = format!("{}&{}", seen.target, seen.body).replace("%3A", ":").replace("%2F", "/");
    let repository = request.split("repository:").nth(1).and_then(|rest| rest.split(':').next());
    let field = if seen.method == "POST" { "access_token" } else { "token" };
    match repository.map(|repository| token(signer, repository)) {
        Some(Ok(token)) => {
            Reply::Respond(200, Vec::new(), json!({field: token, "expires_in": 300}).to_string())
        }
        other => Reply::Respond(500, Vec::new(), format!("{other:?}")),
    }
}

/// Returns a signed token for pulls from a repository, by distribution's specification of tokens.
fn token(signer: &CertifiedKey, repository: &str) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let head = json!({"typ": "JWT", "alg": "ES256", "x5c": [BASE64_STANDARD.encode(signer.der())]});
    let claims = json!({
        "iss": Registry::ISSUER, "sub": USER, "aud": Registry::SERVICE, "jti": repository,
        "iat": now, "nbf": now - 10, "exp": now + 300,
        "access": [{"type": "repository", "name": repository, "actions": ["pull"]}],
    });
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&head), part(&claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(signer.sign(signed.as_bytes())?);
    Ok(format!("{signed}.{signature}"))
}

async fn a_token_is_had_with_the_password_and_only_the_token_goes_to_the_registry(
    case: &CaseContext,
) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let token_registry = TokenRegistry::new(case).await?;
    let noting = HttpStub::before(token_registry.registry.address(), |_| Reply::Forward).await?;
    configured.write(REGISTRY, &format!("server = \"http://{}\"\n", noting.address()))?;
    let auth = json!({"username": USER, "password": PASSWORD, "server_address": noting.address()});
    let mut plugin = configured.plugin_with(auth, &[]).await?;
    configured.pulls(&plugin, REGISTRY).await?;
    same_token_for_all(&noting)?;
    ensure!(
        token_registry.token_requests() == (1, 0),
        "one token would have done: {:?}",
        token_registry.server.seen()
    );

    let address = noting.address();
    let mut wrong = configured.job(&address);
    wrong["auth"] = json!({"username": USER, "password": "wrong-horse"});
    let server = token_registry.server.address();
    let status = configured.fails(&plugin, &wrong, &[&server, USER, "who are you"]).await?;
    ensure!(!status.message().contains("wrong-horse"), "{}", status.message());
    let anonymous =
        token_registry.server.seen().iter().filter(|seen| seen.header("authorization").is_none()).count();
    ensure!(anonymous == 0, "it was tried without the password");
    plugin.shut_down().await
}

/// Asserts that the registry got no password, and the same token with all requests but the first.
fn same_token_for_all(registry: &HttpStub) -> Result<()> {
    let seen = registry.seen();
    let sent: Vec<_> = seen.iter().map(|seen| seen.header("authorization")).collect();
    let (first, rest) = sent.split_first().context("nobody asked the registry")?;
    let token = rest.first().copied().flatten().context("no token")?;
    ensure!(first.is_none() && token.starts_with("Bearer "), "{sent:?}");
    ensure!(rest.iter().all(|one| *one == Some(token)), "{sent:?}");
    Ok(())
}

async fn a_token_is_had_with_an_identity_token(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let token_registry = TokenRegistry::new(case).await?;
    let address = token_registry.registry.address().to_owned();
    let file = case.directory().join("config.json");
    let docker =
        json!({"auths": {&address: {"auth": BASE64_STANDARD.encode("0:"), "identitytoken": IDENTITY}}});
    std::fs::write(&file, docker.to_string())?;
    let answer = format!(r#"echo '{{"Username":"<token>","Secret":"{IDENTITY}"}}'"#);
    auth_registry::helper(&case.directory().join("bin"), "identified", &answer)?;
    for (posted, auth) in [json!({"config": file}), json!({"helper": "identified"})].into_iter().enumerate() {
        let mut plugin = configured.plugin_with(auth, &[]).await?;
        configured.pulls(&plugin, &address).await?;
        ensure!(token_registry.token_requests() == (0, posted + 1), "{:?}", token_registry.server.seen());
        plugin.shut_down().await?;
    }

    let mut plugin = configured.plugin().await?;
    let mut job = configured.job(&address);
    job["auth"] = json!({"username": "<token>", "password": IDENTITY});
    configured.runs(&plugin, &job).await?;
    job["args"] = json!(["-c", "sleep 600"]);
    let task = case.run(&plugin, &job).await?;
    secrets::assert_not_exposed(case, &plugin, &task, &[IDENTITY, "eyJ"])?;
    task.end(&plugin).await?;
    let mut wrong = configured.job(&address);
    wrong["image"] = json!(format!("{address}/busybox:docker"));
    wrong["auth"] = json!({"username": "<token>", "password": "wrong-1dentity"});
    let words = [token_registry.server.address(), "identity token".to_owned()];
    let status = configured.fails(&plugin, &wrong, &words.each_ref().map(String::as_str)).await?;
    ensure!(!status.message().contains("wrong-1dentity"), "{}", status.message());
    plugin.shut_down().await
}

async fn a_token_that_expires_in_the_middle_is_renewed(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let given = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&given);
    let own = Arc::new(std::sync::OnceLock::new());
    let address = Arc::clone(&own);
    let host = configured
        .host(move |seen| {
            if seen.target.starts_with("/token") {
                let token = format!("token-{}", count.fetch_add(1, Ordering::Relaxed));
                return Reply::Respond(200, Vec::new(), json!({"token": token}).to_string());
            }
            // The first token is good for documents only: it expires before the layers are fetched.
            let is_layer = seen.target.contains("/blobs/");
            match seen.header("authorization") {
                Some("Bearer token-0") if !is_layer => Reply::Forward,
                Some(token) if token != "Bearer token-0" => Reply::Forward,
                _ => {
                    let realm = format!("http://{}/token", address.get().map_or("", String::as_str));
                    let challenge = format!("Bearer realm=\"{realm}\",service=\"s\",error=\"invalid_token\"");
                    Reply::Respond(401, vec![("WWW-Authenticate", challenge)], String::new())
                }
            }
        })
        .await?;
    let _ = own.set(host.address());
    configured.write(REGISTRY, &format!("server = \"http://{}\"\n", host.address()))?;
    let mut plugin = configured.plugin().await?;
    configured.pulls(&plugin, REGISTRY).await?;
    let given = given.load(Ordering::Relaxed);
    ensure!((2..=4).contains(&given), "{given} tokens were asked for");
    plugin.shut_down().await
}

async fn a_registry_that_never_has_enough_is_given_up(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let asks = |_: &RecordedRequest| {
        let challenge = ("WWW-Authenticate", "Basic realm=\"r\"".to_owned());
        Reply::Respond(401, vec![challenge], String::new())
    };
    let host = configured.host(asks).await?;
    let mut plugin = configured.plugin().await?;
    let mut job = configured.job(&host.address());
    job["auth"] = json!({"username": USER, "password": PASSWORD});
    let status = configured.fails(&plugin, &job, &["401", USER]).await?;
    ensure!(!is_recoverable(&status)?, "it would be asked the same again: {status:?}");
    ensure!(host.seen().len() <= 4, "{} requests", host.seen().len());
    plugin.shut_down().await
}

/// Returns a host's behaviour: it passes on requests with these basic credentials, and answers 401 to others.
fn wants(pair: &'static str) -> impl Fn(&RecordedRequest) -> Reply + Send + Sync + 'static {
    move |seen| match seen.header("authorization") {
        Some(sent) if sent == format!("Basic {pair}") => Reply::Forward,
        _ => {
            let challenge = ("WWW-Authenticate", "Basic realm=\"r\"".to_owned());
            Reply::Respond(401, vec![challenge], String::new())
        }
    }
}

async fn a_mirror_gets_its_own_credentials_and_none_of_the_registrys(case: &CaseContext) -> Result<()> {
    const MIRRORS: &str = "bWlycm9yOmh1bnRlcjI=";
    let configured = HostsConfig::new(case)?;
    let (mirror, server) = (configured.host(wants(MIRRORS)).await?, configured.host(wants(PAIR)).await?);
    let (mirror_address, server_address) = (mirror.address(), server.address());
    let hosts = format!("[host.\"http://{mirror_address}\"]\n");
    configured.write(&server_address, &hosts)?;
    let file = case.directory().join("config.json");
    std::fs::write(&file, json!({"auths": {&mirror_address: {"auth": MIRRORS}}}).to_string())?;
    let mut plugin = configured.plugin_with(json!({"config": file}), &[]).await?;
    configured.pulls(&plugin, &server_address).await?;
    ensure!(server.seen().is_empty(), "{:?}", server.seen());

    std::fs::write(&file, "{}")?;
    let mut job = configured.job(&server_address);
    job["auth"] = json!({"username": USER, "password": PASSWORD});
    configured.runs(&plugin, &job).await?;
    let was_sent = |registry: &HttpStub, pair: &str| {
        let pair = format!("Basic {pair}");
        registry.seen().iter().any(|seen| seen.header("authorization") == Some(&pair))
    };
    ensure!(
        was_sent(&server, PAIR) && !was_sent(&mirror, PAIR) && !was_sent(&server, MIRRORS),
        "each has its own"
    );
    plugin.shut_down().await
}
