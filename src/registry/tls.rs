//! TLS to a host with settings of the operator's: authorities besides the system's, client certificates, or no
//! verification at all. Knows no HTTP.
//!
//! Source of the facts: containerd `core/remotes/docker/config/hosts.go`, Go's `crypto/tls` (which of several
//! certificates is shown).

#![expect(
    clippy::disallowed_methods,
    reason = "opens the operator's files, which no job, image or task can shape"
)]

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_platform_verifier::Verifier;

use super::hosts::TlsFiles;

/// Builds the TLS configuration; reads the files, and blocks.
///
/// # Errors
/// Names the unusable file.
pub(super) fn config(files: &TlsFiles) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let own = files.ca.iter().map(|path| certificates(path)).collect::<Result<Vec<_>, _>>()?.concat();
    let keys = files.client.iter().map(|(certificate, key)| {
        let key_path = key.as_deref().unwrap_or(certificate);
        let key = PrivateKeyDer::from_pem_slice(&read(key_path)?)
            .map_err(|_| format!("{} has no private key without a passphrase", key_path.display()))?;
        CertifiedKey::from_der(certificates(certificate)?, key, &provider)
            .map(Arc::new)
            .map_err(|error| format!("the key of {} can't be used: {error}", certificate.display()))
    });
    let keys = keys.collect::<Result<Vec<_>, _>>()?;
    let known = if files.skip_verify == Some(true) {
        None
    } else {
        let unusable = |error| format!("a certificate of ca can't be used: {error}");
        Some(Verifier::new_with_extra_roots(own.clone(), Arc::clone(&provider)).map_err(unusable)?)
    };
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(CertificateVerifier { known, own, algorithms }));
    Ok(if keys.is_empty() {
        builder.with_no_client_auth()
    } else {
        builder.with_client_cert_resolver(Arc::new(ClientCertificates { keys }))
    })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{} can't be read: {error}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unusable = || format!("{} has no certificate in PEM form in it", path.display());
    let found = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, _>>();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(unusable)
}

/// The verification of a host's certificate.
#[derive(Debug)]
struct CertificateVerifier {
    /// The verifier; `None` accepts any certificate.
    known: Option<Verifier>,
    own: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for CertificateVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(known) = &self.known else { return Ok(ServerCertVerified::assertion()) };
        let outcome = known.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match outcome {
            // A certificate that a host has signed itself is an authority, too, as most tools make it. Its validity
            // period is checked before this error arises.
            Err(error) if is_ca_used_as_end_entity(&error) && self.own.contains(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            outcome => outcome,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn is_ca_used_as_end_entity(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) = error else {
        return false;
    };
    other.0.downcast_ref() == Some(&webpki::Error::CaUsedAsEndEntity)
}

/// The client certificates: a host that asks for one gets the first of which it knows an issuer.
#[derive(Debug)]
struct ClientCertificates {
    keys: Vec<Arc<CertifiedKey>>,
}

impl ResolvesClientCert for ClientCertificates {
    fn resolve(&self, issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let is_issued = |key: &CertifiedKey| {
            issuers.is_empty()
                || key.cert.iter().any(|one| issuer(one).is_some_and(|name| issuers.contains(&name.as_ref())))
        };
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some() && is_issued(key);
        self.keys.iter().find(fits).cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn issuer(certificate: &CertificateDer<'_>) -> Option<DistinguishedName> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    Some(DistinguishedName::in_sequence(certificate.issuer()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A self-signed certificate that is an authority, valid at `NOW`.
    const SELF_SIGNED: &[u8] = include_bytes!("tls/self_signed.pem");
    const NOW: UnixTime = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));

    /// The error is recognized by its type, which has to be that of the webpki which rustls is built with. Two versions
    /// of it in Cargo.lock would make it another one.
    #[test]
    fn webpki_has_the_version_of_rustls() {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let own: Vec<_> = CertificateDer::pem_slice_iter(SELF_SIGNED).collect::<Result<_, _>>().unwrap();
        let known = Verifier::new_with_extra_roots(own.clone(), Arc::clone(&provider)).unwrap();
        let algorithms = provider.signature_verification_algorithms;
        let check = |name: &'static str, own: Vec<CertificateDer<'static>>| {
            let known = Some(Verifier::new_with_extra_roots(own.clone(), Arc::clone(&provider)).unwrap());
            let name = ServerName::try_from(name).unwrap();
            let check = CertificateVerifier { known, own, algorithms };
            let shown = CertificateDer::pem_slice_iter(SELF_SIGNED).next().unwrap().unwrap();
            check.verify_server_cert(&shown, &[], &name, &[], NOW).map(drop)
        };
        let name = ServerName::try_from("itself.test").unwrap();
        let error = known.verify_server_cert(&own[0], &[], &name, &[], NOW).unwrap_err();
        assert!(is_ca_used_as_end_entity(&error), "{error:?}");
        assert!(check("itself.test", own.clone()).is_ok());
        assert!(check("other.test", own).is_err() && check("itself.test", Vec::new()).is_err());
    }

    /// A self-signed client certificate, and its key.
    const CLIENT: &[u8] = include_bytes!("tls/client.pem");

    #[test]
    fn an_unusable_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("ca.pem"), SELF_SIGNED).unwrap();
        std::fs::write(at("client.pem"), CLIENT).unwrap();
        std::fs::write(at("text"), "no certificate").unwrap();
        let files = |ca: &str, client: &str, key: Option<&str>| TlsFiles {
            ca: vec![at(ca)],
            client: vec![(at(client), key.map(at))],
            skip_verify: None,
        };
        for (name, why, files) in [
            ("absent", "can't be read", files("absent", "client.pem", None)),
            ("text", "no certificate", files("text", "client.pem", None)),
            ("absent", "can't be read", files("ca.pem", "absent", None)),
            ("text", "no certificate", files("ca.pem", "text", Some("client.pem"))),
            ("text", "no private key", files("ca.pem", "client.pem", Some("text"))),
            ("ca.pem", "no private key", files("ca.pem", "ca.pem", None)),
        ] {
            let error = config(&files).unwrap_err();
            assert!(error.contains(at(name).to_str().unwrap()) && error.contains(why), "{error}");
        }
        assert!(config(&files("ca.pem", "client.pem", None)).unwrap().client_auth_cert_resolver.has_certs());
        assert!(!config(&TlsFiles::default()).unwrap().client_auth_cert_resolver.has_certs());
    }

    #[test]
    fn a_host_is_shown_a_certificate_whose_issuer_it_knows() {
        let provider = rustls::crypto::ring::default_provider();
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(CLIENT).collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_slice(CLIENT).unwrap();
        let key = CertifiedKey::from_der(certificates, key, &provider).unwrap();
        let client = ClientCertificates { keys: vec![Arc::new(key)] };
        let own = issuer(&client.keys[0].cert[0]).unwrap();
        let other = CertificateDer::pem_slice_iter(SELF_SIGNED).next().unwrap().unwrap();
        let other = issuer(&other).unwrap();
        let is_shown = |issuers: &[&[u8]], scheme| client.resolve(issuers, &[scheme]).is_some();
        let scheme = SignatureScheme::ECDSA_NISTP256_SHA256;
        assert!(is_shown(&[], scheme) && is_shown(&[own.as_ref()], scheme));
        assert!(is_shown(&[other.as_ref(), own.as_ref()], scheme));
        assert!(!is_shown(&[other.as_ref()], scheme));
        assert!(!is_shown(&[own.as_ref()], SignatureScheme::ED25519), "a key of another kind");
    }
}
