//! Certificates: an authority of our own, what it signs, and the TLS configuration of the server.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::net::IpAddr;
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("failed to make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("the PEM text cannot be read: {0}")]
    Pem(String),
    #[error("TLS cannot use the certificate: {0}")]
    Rejected(String),
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// A certificate authority.
pub struct Authority {
    pub pair: Pair,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn generate() -> Result<Self, TlsError> {
        let key = KeyPair::generate()?;
        let params = Self::params()?;
        let pair = Pair { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() };
        Self::load(pair)
    }

    pub fn load(pair: Pair) -> Result<Self, TlsError> {
        let key = KeyPair::from_pem(&pair.key)?;
        // A file that is no certificate is refused here, not by the first client.
        CertificateDer::from_pem_slice(pair.certificate.as_bytes()).map_err(|e| TlsError::Pem(e.to_string()))?;
        Ok(Authority { issuer: Issuer::new(Self::params()?, key), pair })
    }

    fn params() -> Result<CertificateParams, TlsError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "muster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        Ok(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Result<Pair, TlsError> {
        let key = KeyPair::generate()?;
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// A certificate for a server under these names and addresses.
    pub fn server(&self, names: &[&str], addresses: &[IpAddr]) -> Result<Pair, TlsError> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
        params.distinguished_name.push(DnType::CommonName, "muster-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    /// A certificate for a user and the user's groups.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Pair, TlsError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, user);
        for (place, group) in groups.iter().enumerate() {
            let kind = if place == 0 {
                DnType::OrganizationName
            } else {
                // rcgen keeps one value a kind; the same OID spelt out counts as another.
                DnType::CustomDnType(vec![2, 5, 4, 10])
            };
            params.distinguished_name.push(kind, *group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }
}

/// The server's TLS: its own certificate, and client certificates of `client_ca` if they are offered.
pub fn server_config(pair: &Pair, client_ca: &str) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let pem = |e: rustls_pki_types::pem::Error| TlsError::Pem(e.to_string());
    let rejected = |e: String| TlsError::Rejected(e);
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).collect::<Result<_, _>>().map_err(pem)?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).map_err(pem)?;
    let mut roots = rustls::RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(client_ca.as_bytes()) {
        roots.add(ca.map_err(pem)?).map_err(|e| rejected(e.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| rejected(e.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| rejected(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|e| rejected(e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
