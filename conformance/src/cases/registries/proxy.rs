//! Proxies, by the agent's environment, between the plugin and a registry.

use anyhow::{Result, ensure};
use harness::context::CaseContext;
use harness::fixture::{CertificateAuthority, HttpStub, RegistrySettings, Reply};
use serde_json::json;

use crate::cases::support::cases;
use crate::cases::support::registry_hosts::{HostsConfig, REGISTRY};

cases!["registries behind proxies":
    plain_http_goes_through_its_proxy,
    https_goes_through_a_tunnel,
    no_proxy_hosts_are_reached_directly,
];

/// A server whose name only the proxy knows.
const SERVER: &str = "server = \"http://registry.test:5000\"\n";

async fn plain_http_goes_through_its_proxy(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    configured.write(REGISTRY, SERVER)?;
    for name in ["HTTP_PROXY", "http_proxy"] {
        let proxy = configured.host(|_| Reply::Forward).await?;
        let address = format!("http://{}", proxy.address());
        let mut plugin = configured.plugin_with(json!(null), &[(name, &address)]).await?;
        configured.pulls(&plugin, REGISTRY).await?;
        let seen = proxy.seen();
        let is_meant = |target: &str| target.starts_with("http://registry.test:5000/v2/");
        ensure!(!seen.is_empty() && seen.iter().all(|seen| is_meant(&seen.target)), "{seen:?}");
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn https_goes_through_a_tunnel(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let authority = CertificateAuthority::new(&case.directory().join("pki"), "ours")?;
    let shown = authority.certify("registry.test")?;
    let settings =
        RegistrySettings { tls: Some((shown.certificate, shown.key)), ..RegistrySettings::default() };
    let registry = case.environment().registry().beside(&case.directory().join("reg"), settings)?;
    let hosts = format!("server = \"https://registry.test:8443\"\nca = {:?}\n", authority.certificate());
    configured.write(REGISTRY, &hosts)?;
    for name in ["HTTPS_PROXY", "https_proxy"] {
        let proxy = HttpStub::before(registry.address(), |_| Reply::Forward).await?;
        let address = format!("http://{}", proxy.address());
        let mut plugin = configured.plugin_with(json!(null), &[(name, &address)]).await?;
        configured.pulls(&plugin, REGISTRY).await?;
        let seen = proxy.seen();
        let is_tunnel = |seen: &harness::fixture::RecordedRequest| {
            (seen.method.as_str(), seen.target.as_str()) == ("CONNECT", "registry.test:8443")
        };
        ensure!(!seen.is_empty() && seen.iter().all(is_tunnel), "{seen:?}");
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn no_proxy_hosts_are_reached_directly(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    configured.write(REGISTRY, SERVER)?;
    let proxy = configured.host(|_| Reply::Forward).await?;
    let address = format!("http://{}", proxy.address());
    for name in ["NO_PROXY", "no_proxy"] {
        let environment =
            [("HTTP_PROXY", address.as_str()), (name, "other.test,.registry.test,registry.test")];
        let mut plugin = configured.plugin_with(json!(null), &environment).await?;
        configured.fails(&plugin, &configured.job(REGISTRY), &["registry.test", "can't be reached"]).await?;
        // Requests to the loopback never go through a proxy.
        configured.pulls(&plugin, case.environment().registry().address()).await?;
        ensure!(proxy.seen().is_empty(), "{:?}", proxy.seen());
        plugin.shut_down().await?;
    }
    Ok(())
}
