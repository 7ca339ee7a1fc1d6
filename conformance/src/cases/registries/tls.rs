//! Registries with certificates: whose certificates are trusted, and which client certificates are shown, by hosts.toml
//! or docker's files.

use anyhow::Result;
use harness::context::CaseContext;
use harness::fixture::{
    CertificateAuthority, CertifiedKey, RecordedRequest, Registry, RegistrySettings, Reply,
};

use crate::cases::support::cases;
use crate::cases::support::registry_hosts::{HostsConfig, REGISTRY};

cases!["registries with certificates":
    an_authority_of_the_operators_counts_beside_the_systems,
    a_certificate_that_vouches_for_itself_may_be_the_authority,
    skip_verify_accepts_any_certificate,
    skip_verify_holds_for_the_host_alone_and_for_no_redirect,
    a_registry_that_requires_a_client_certificate_gets_the_right_one,
    dockers_files_count_where_there_is_no_other,
    with_skip_verify_plain_http_is_tried_after_tls,
    on_the_loopback_tls_needs_no_configuration,
];

/// Starts another registry with the same content, which serves by TLS.
fn registry(
    case: &CaseContext,
    shown: &CertifiedKey,
    clients: Option<&CertificateAuthority>,
) -> Result<Registry> {
    let settings = RegistrySettings {
        tls: Some((shown.certificate.clone(), shown.key.clone())),
        clients: clients.map(CertificateAuthority::certificate),
        ..RegistrySettings::default()
    };
    case.environment().registry().beside(&case.directory().join("reg"), settings)
}

/// Returns a hosts.toml with this registry as `server`, and more lines.
fn server(registry: &Registry, more: &str) -> String {
    format!("server = \"https://{}\"\n{more}\n", registry.address())
}

async fn an_authority_of_the_operators_counts_beside_the_systems(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let directory = configured.directory().join(REGISTRY);
    let authority = CertificateAuthority::new(&directory, "ours")?;
    CertificateAuthority::new(&directory, "theirs")?;
    let registry = registry(case, &authority.certify("server")?, None)?;
    let mut plugin = configured.plugin().await?;
    for (more, works) in [
        ("ca = \"ours.crt\"", true),
        (&format!("ca = [\"theirs.crt\", {:?}]", authority.certificate()), true),
        ("ca = \"theirs.crt\"", false),
        // Docker's files don't count beside a hosts.toml.
        ("", false),
    ] {
        configured.write(REGISTRY, &server(&registry, more))?;
        if works {
            configured.pulls(&plugin, REGISTRY).await?;
        } else {
            configured.fails(&plugin, &configured.job(REGISTRY), &["certificate", "UnknownIssuer"]).await?;
        }
    }
    plugin.shut_down().await
}

async fn a_certificate_that_vouches_for_itself_may_be_the_authority(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let directory = configured.directory().join(REGISTRY);
    let shown = CertifiedKey::by_itself(&directory, "itself", &["127.0.0.1"])?;
    CertifiedKey::by_itself(&directory, "another", &["127.0.0.1"])?;
    let registry = registry(case, &shown, None)?;
    let mut plugin = configured.plugin().await?;
    configured.write(REGISTRY, &server(&registry, "ca = \"itself.cert\""))?;
    configured.pulls(&plugin, REGISTRY).await?;
    configured.write(REGISTRY, &server(&registry, "ca = \"another.cert\""))?;
    configured.fails(&plugin, &configured.job(REGISTRY), &["certificate"]).await?;
    // The certificate is trusted under its own names only.
    drop(registry);
    let elsewhere = CertifiedKey::by_itself(&directory, "elsewhere", &["elsewhere.test"])?;
    let registry = self::registry(case, &elsewhere, None)?;
    configured.write(REGISTRY, &server(&registry, "ca = \"elsewhere.cert\""))?;
    configured.fails(&plugin, &configured.job(REGISTRY), &["certificate", "elsewhere.test"]).await?;
    plugin.shut_down().await
}

async fn skip_verify_accepts_any_certificate(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let authority = CertificateAuthority::new(&case.directory().join("pki"), "ours")?;
    let registry = registry(case, &authority.certify("server")?, None)?;
    let mut plugin = configured.plugin().await?;
    configured.write(REGISTRY, &server(&registry, "skip_verify = true"))?;
    configured.pulls(&plugin, REGISTRY).await?;
    configured.write(REGISTRY, &server(&registry, "skip_verify = false"))?;
    configured.fails(&plugin, &configured.job(REGISTRY), &["certificate"]).await?;
    plugin.shut_down().await
}

async fn skip_verify_holds_for_the_host_alone_and_for_no_redirect(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let authority = CertificateAuthority::new(&case.directory().join("pki"), "ours")?;
    let storage = registry(case, &authority.certify("localhost")?, None)?;
    // The same machine by another name counts as another host.
    let elsewhere = storage.address().replace("127.0.0.1", "localhost");
    let sends = move |seen: &RecordedRequest| match seen.target.contains("/blobs/") {
        true => {
            let place = format!("https://{elsewhere}{}", seen.target);
            Reply::Respond(307, vec![("Location", place)], String::new())
        }
        false => Reply::Forward,
    };
    let host = configured.host(sends).await?;
    let mut plugin = configured.plugin().await?;
    let hosts = format!("server = \"http://{}\"\nskip_verify = true\n", host.address());
    configured.write(REGISTRY, &hosts)?;
    configured.fails(&plugin, &configured.job(REGISTRY), &["certificate", "UnknownIssuer"]).await?;
    configured.write(REGISTRY, &format!("{hosts}ca = {:?}\n", authority.certificate()))?;
    configured.pulls(&plugin, REGISTRY).await?;
    plugin.shut_down().await
}

async fn a_registry_that_requires_a_client_certificate_gets_the_right_one(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let pki = case.directory().join("pki");
    let (authority, other) =
        (CertificateAuthority::new(&pki, "ours")?, CertificateAuthority::new(&pki, "theirs")?);
    let registry = registry(case, &authority.certify("server")?, Some(&authority))?;
    let (right, wrong) = (authority.certify("node")?, other.certify("stranger")?);
    let both = pki.join("both.pem");
    let text = [&right.certificate, &right.key].map(std::fs::read_to_string);
    let [certificate, key] = text;
    std::fs::write(&both, certificate? + &key?)?;
    let pair = |of: &CertifiedKey| format!("[{:?}, {:?}]", of.certificate, of.key);
    let ca = format!("ca = {:?}", authority.certificate());
    let mut plugin = configured.plugin().await?;
    for client in [
        format!("client = [{}]", pair(&right)),
        format!("client = [{}, {}]", pair(&wrong), pair(&right)),
        format!("client = {both:?}"),
        format!("client = [{both:?}]"),
        format!("client = [[{both:?}, \"\"]]"),
    ] {
        configured.write(REGISTRY, &server(&registry, &format!("{ca}\n{client}")))?;
        configured.pulls(&plugin, REGISTRY).await?;
    }
    for client in [String::new(), format!("client = [{}]", pair(&wrong))] {
        configured.write(REGISTRY, &server(&registry, &format!("{ca}\n{client}")))?;
        configured.fails(&plugin, &configured.job(REGISTRY), &["ertificate"]).await?;
    }
    let mixed = format!("{ca}\nclient = [[{:?}, {:?}]]", right.certificate, wrong.key);
    configured.write(REGISTRY, &server(&registry, &mixed))?;
    configured.fails(&plugin, &configured.job(REGISTRY), &["node.cert", "key"]).await?;
    plugin.shut_down().await
}

async fn dockers_files_count_where_there_is_no_other(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let authority = CertificateAuthority::new(&case.directory().join("pki"), "ours")?;
    let registry = registry(case, &authority.certify("server")?, Some(&authority))?;
    let node = authority.certify("node")?;
    let directory = configured.directory().join(registry.address());
    std::fs::create_dir_all(&directory)?;
    for (from, name) in
        [(&authority.certificate(), "ca.crt"), (&node.certificate, "client.cert"), (&node.key, "client.key")]
    {
        std::fs::copy(from, directory.join(name))?;
    }
    let mut plugin = configured.plugin().await?;
    configured.pulls(&plugin, registry.address()).await?;
    plugin.shut_down().await
}

async fn with_skip_verify_plain_http_is_tried_after_tls(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let authority = CertificateAuthority::new(&case.directory().join("pki"), "ours")?;
    let secured = registry(case, &authority.certify("server")?, None)?;
    let mut plugin = configured.plugin().await?;
    for address in [secured.address(), case.environment().registry().address()] {
        let hosts = format!("[host.\"http://{address}\"]\nskip_verify = true\n");
        configured.write(REGISTRY, &hosts)?;
        configured.pulls(&plugin, REGISTRY).await?;
    }
    plugin.shut_down().await
}

async fn on_the_loopback_tls_needs_no_configuration(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let authority = CertificateAuthority::new(&case.directory().join("pki"), "ours")?;
    let registry = registry(case, &authority.certify("server")?, None)?;
    let mut plugin = configured.plugin().await?;
    // Nobody vouches for its certificate, which docker doesn't ask for there.
    configured.pulls(&plugin, registry.address()).await?;
    // A file that says nothing of TLS changes nothing about that.
    configured.write(registry.address(), "dial_timeout = \"5s\"\n")?;
    configured.pulls(&plugin, registry.address()).await?;
    // What is configured counts: a hosts.toml without a server has its certificate verified.
    configured.write(registry.address(), "skip_verify = false\n")?;
    configured.fails(&plugin, &configured.job(registry.address()), &["certificate", "UnknownIssuer"]).await?;
    plugin.shut_down().await
}
