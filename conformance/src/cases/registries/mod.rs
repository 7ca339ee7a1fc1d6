//! Registries: hosts.toml, proxies, certificates, credentials.

pub mod credentials;
pub mod hosts;
pub mod proxy;
pub mod tls;
pub mod tokens;
