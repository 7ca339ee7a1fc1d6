//! Parses `hosts.toml` as containerd does, except that a fault in it is an error. Pure. An error has the fault's line
//! and not its text, since a header may be a secret.

use std::ops::Range;
use std::path::{Path, PathBuf};

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Host, HostCapabilities, Settings, located};

/// The parsed content of a `hosts.toml`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct File {
    /// Hosts in the order of the file.
    pub hosts: Vec<Host>,
    /// URL of the server that is asked after the hosts, in the registry's own place.
    pub server: Option<Url>,
    /// Settings for requests to the server.
    pub own: Settings,
}

type Value<'t> = Spanned<DeValue<'t>>;

/// Parses a file, and returns it with a text for each unknown key in it. Relative paths are the directory's.
///
/// # Errors
/// The first fault, with its line.
pub(super) fn parse(text: &str, directory: &Path) -> Result<(File, Vec<String>), String> {
    let mut reader = Reader { text, directory, unknown: Vec::new() };
    let table = DeTable::parse(text).map_err(|error| match error.span() {
        Some(span) => reader.fault(&span, error.message()),
        None => error.message().to_owned(),
    })?;
    let file = reader.file(table.get_ref())?;
    Ok((file, reader.unknown))
}

struct Reader<'t> {
    text: &'t str,
    directory: &'t Path,
    unknown: Vec<String>,
}

impl Reader<'_> {
    fn fault(&self, at: &Range<usize>, why: &str) -> String {
        let before = self.text.get(..at.start).unwrap_or(self.text);
        format!("line {}: {why}", before.matches('\n').count() + 1)
    }

    fn file(&mut self, table: &DeTable<'_>) -> Result<File, String> {
        let mut file = File { own: self.settings(table, &["server", "host"])?, ..File::default() };
        if let Some(server) = table.get("server") {
            let address = self.text_of(server, "server")?;
            if !address.is_empty() {
                file.server = Some(self.address(address, &server.span(), table)?);
            }
        }
        let Some(hosts) = table.get("host") else { return Ok(file) };
        for (address, value) in self.table_of(hosts, "host")? {
            let table = self.table_of(value, "a host")?;
            let base = self.address(address.get_ref(), &address.span(), table)?;
            file.hosts.push(Host { base, settings: self.settings(table, &[])? });
        }
        Ok(file)
    }

    fn settings(&mut self, table: &DeTable<'_>, others: &[&str]) -> Result<Settings, String> {
        let mut settings = Settings::default();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            match name {
                "capabilities" => settings.capabilities = self.capabilities(value)?,
                "ca" => settings.tls.ca = self.paths(value)?,
                "client" => settings.tls.client = self.pairs(value)?,
                "skip_verify" => settings.tls.skip_verify = self.flag(table, name)?,
                "header" => settings.headers = self.headers(value)?,
                "dial_timeout" => settings.connect_timeout = self.duration(value)?,
                "override_path" => {}
                name if others.contains(&name) => {}
                name => {
                    let what = format!("the key {name} is not known, and has no effect");
                    self.unknown.push(self.fault(&key.span(), &what));
                }
            }
        }
        Ok(settings)
    }

    fn capabilities(&self, value: &Value<'_>) -> Result<HostCapabilities, String> {
        let mut capabilities = HostCapabilities { pull: false, resolve: false };
        let listed = self.list_of(value, "capabilities")?;
        for capability in listed {
            match self.text_of(capability, "a capability")?.to_ascii_lowercase().as_str() {
                "pull" => capabilities.pull = true,
                "resolve" => capabilities.resolve = true,
                "push" | "referrers" => {}
                _ => {
                    let why = "a capability must be pull, resolve, push or referrers";
                    return Err(self.fault(&capability.span(), why));
                }
            }
        }
        Ok(if listed.is_empty() { HostCapabilities::default() } else { capabilities })
    }

    /// Reads a path or a list of paths.
    fn paths(&self, value: &Value<'_>) -> Result<Vec<PathBuf>, String> {
        match value.get_ref() {
            DeValue::Array(paths) => paths.iter().map(|path| self.path(path)).collect(),
            _ => Ok(vec![self.path(value)?]),
        }
    }

    /// Reads a path, or a list of paths or of pairs of a certificate's path and its key's.
    fn pairs(&self, value: &Value<'_>) -> Result<Vec<(PathBuf, Option<PathBuf>)>, String> {
        let DeValue::Array(list) = value.get_ref() else { return Ok(vec![(self.path(value)?, None)]) };
        let pair = |value: &Value<'_>| match value.get_ref() {
            DeValue::Array(pair) => match &pair[..] {
                [certificate, key] if key.get_ref().as_str() == Some("") => {
                    Ok((self.path(certificate)?, None))
                }
                [certificate, key] => Ok((self.path(certificate)?, Some(self.path(key)?))),
                _ => Err(self
                    .fault(&value.span(), "a pair in client must be the paths of a certificate and its key")),
            },
            _ => Ok((self.path(value)?, None)),
        };
        list.iter().map(pair).collect()
    }

    fn path(&self, value: &Value<'_>) -> Result<PathBuf, String> {
        Ok(self.directory.join(self.text_of(value, "a path")?))
    }

    fn headers(&self, value: &Value<'_>) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in self.table_of(value, "header")? {
            let key = HeaderName::from_bytes(name.get_ref().as_bytes())
                .map_err(|_| self.fault(&name.span(), "this can't be the name of a header"))?;
            let single = std::slice::from_ref(value);
            let values = match value.get_ref() {
                DeValue::Array(values) => &values[..],
                _ => single,
            };
            for value in values {
                let mut text = HeaderValue::from_str(self.text_of(value, "a header's value")?)
                    .map_err(|_| self.fault(&value.span(), "this can't be the value of a header"))?;
                text.set_sensitive(true);
                headers.append(key.clone(), text);
            }
        }
        Ok(headers)
    }

    fn duration(&self, value: &Value<'_>) -> Result<Option<std::time::Duration>, String> {
        let text = self.text_of(value, "dial_timeout")?;
        if text.is_empty() {
            return Ok(None);
        }
        let why = "dial_timeout must be a time such as \"1s\" or \"500ms\"";
        humantime::parse_duration(text).map(Some).map_err(|_| self.fault(&value.span(), why))
    }

    /// Reads the address of a host. Its default scheme is https; `/v2` is appended to a path that doesn't end so,
    /// unless `override_path` is set.
    fn address(&self, address: &str, at: &Range<usize>, table: &DeTable<'_>) -> Result<Url, String> {
        let whole = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
        let why = "this is not the address of a host, such as \"https://mirror.example:5000\"";
        let mut url = Url::parse(&whole).map_err(|_| self.fault(at, why))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(self.fault(at, why));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            let why = "an address must not have a password or a query: set credentials by auth";
            return Err(self.fault(at, why));
        }
        let path = url.path().trim_end_matches('/').to_owned();
        let is_whole = self.flag(table, "override_path")?.unwrap_or(false) || path.ends_with("/v2");
        url.set_path(&if is_whole { path } else { format!("{path}/v2") });
        url.set_fragment(None);
        let host = url.host_str().map(|host| located(host).to_owned());
        url.set_host(host.as_deref()).map_err(|_| self.fault(at, why))?;
        Ok(url)
    }

    fn flag(&self, table: &DeTable<'_>, name: &str) -> Result<Option<bool>, String> {
        let Some(value) = table.get(name) else { return Ok(None) };
        let flag = value.get_ref().as_bool();
        flag.map(Some).ok_or_else(|| self.fault(&value.span(), &format!("{name} must be true or false")))
    }

    fn text_of<'v>(&self, value: &'v Value<'_>, what: &str) -> Result<&'v str, String> {
        let text = value.get_ref().as_str();
        text.ok_or_else(|| self.fault(&value.span(), &format!("{what} must be a string")))
    }

    fn list_of<'v, 't>(&self, value: &'v Value<'t>, what: &str) -> Result<&'v [Value<'t>], String> {
        let list = value.get_ref().as_array().map(|list| &list[..]);
        list.ok_or_else(|| self.fault(&value.span(), &format!("{what} must be a list")))
    }

    fn table_of<'v, 't>(&self, value: &'v Value<'t>, what: &str) -> Result<&'v DeTable<'t>, String> {
        let table = value.get_ref().as_table();
        table.ok_or_else(|| self.fault(&value.span(), &format!("{what} must be a table")))
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;
    use crate::registry::hosts::of_file;

    /// A password in the values of the corpus' headers.
    const SECRET: &str = "hunter2hunter2";

    #[test]
    fn files() {
        crate::fuzz::text("hosts-toml", |text| {
            let (file, unknown) = match parse(text, Path::new("/etc/hosts.d")) {
                Ok(parsed) => parsed,
                Err(fault) => return assert!(!fault.contains(SECRET), "{fault}"),
            };
            assert!(unknown.iter().all(|line| line.starts_with("line ")), "{unknown:?}");
            let hosts = of_file(file, "registry.example").unwrap();
            for Host { base, settings } in &hosts {
                assert!(matches!(base.scheme(), "http" | "https") && base.has_host(), "{base}");
                assert!(
                    base.username().is_empty() && base.password().is_none() && base.query().is_none(),
                    "{base}"
                );
                assert!(
                    base.fragment().is_none() && Url::parse(base.as_str()).as_ref() == Ok(base),
                    "{base}"
                );
                assert!(settings.headers.values().all(HeaderValue::is_sensitive));
                assert!(!format!("{settings:?}").contains(SECRET));
            }
        });
    }
}
