//! Keys and certificates of a server: an own CA, a server's and an administrator's certificate, the token, the keys
//! that sign tokens of service accounts and of jobs. Made once, kept in the data folder.

use crate::data_folder::DataFolder;
use anyhow::{Context, Result};
use base64::Engine;
use muster_apiserver::auth::{Identity, Keys, MASTERS, token::SigningKey};
use muster_apiserver::tls::{self, Authority, Pair};
use muster_rendezvous::TokenKey;
use ring::rand::SecureRandom;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// The user that token and client certificate stand for.
const ADMIN: &str = "kubernetes-admin";
const NAMES: [&str; 4] = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];

pub(crate) struct Pki {
    /// PEM; what clients trust.
    pub(crate) ca_certificate: String,
    /// The administrator's bearer token.
    pub(crate) token: String,
    server: Pair,
    service_accounts: SigningKey,
}

impl Pki {
    /// Reads what the folder has and makes what it lacks. `address` is where the server listens.
    pub(crate) fn load(folder: &DataFolder, address: IpAddr) -> Result<Pki> {
        let authority =
            Authority::load(pair(folder, "ca", || Ok(Authority::generate()?.pair))?).context("ca.crt, ca.key")?;
        let server = pair(folder, &server_file(address), || {
            let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
            addresses.extend((!addresses.contains(&address)).then_some(address));
            Ok(authority.server(&NAMES, &addresses)?)
        })?;
        pair(folder, "client", || Ok(authority.client(ADMIN, &[MASTERS])?))?;
        let key = folder.keep("sa.key", || Ok(SigningKey::generate()?))?;
        Ok(Pki {
            ca_certificate: authority.pair.certificate.clone(),
            token: text(folder.keep("token", || Ok(random_token()?.into_bytes()))?)?.trim().to_owned(),
            server,
            service_accounts: SigningKey::from_pkcs8(&key).context("sa.key")?,
        })
    }

    /// Who may come in, and with what.
    pub(crate) fn keys(&self) -> Keys {
        let admin = Identity::new(ADMIN, [MASTERS]);
        Keys::new().with_token(&self.token, admin).with_service_accounts(self.service_accounts.clone())
    }

    /// TLS of the server: client certificates of the CA are accepted and not asked of anyone.
    pub(crate) fn server_config(&self) -> Result<Arc<rustls::ServerConfig>> {
        tls::server_config(&self.server, &self.ca_certificate).context("server.crt, server.key")
    }
}

/// The key that signs the tokens of jobs for the rendezvous.
pub(crate) fn rendezvous_key(folder: &DataFolder) -> Result<TokenKey> {
    let bytes = folder.keep("rendezvous.key", || Ok(TokenKey::generate()?.as_bytes().to_vec()))?;
    let bytes: [u8; 32] =
        bytes.try_into().ok().context("rendezvous.key is not 32 bytes; delete it to have a new one made")?;
    Ok(TokenKey::from_bytes(bytes))
}

/// The usual addresses share a certificate; another one has its own.
fn server_file(address: IpAddr) -> String {
    let usual = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    if usual.contains(&address) { "server".to_owned() } else { format!("server-{address}") }
}

/// A certificate and its key, in `NAME.crt` and `NAME.key`. The key is written last: with it, both are there.
fn pair(folder: &DataFolder, name: &str, make: impl FnOnce() -> Result<Pair>) -> Result<Pair> {
    let (certificate_file, key_file) = (format!("{name}.crt"), format!("{name}.key"));
    let context = || format!("{certificate_file}, {key_file}");
    if !folder.file(&key_file).exists() {
        let made = make().with_context(context)?;
        folder.replace(&certificate_file, made.certificate.as_bytes())?;
        folder.replace(&key_file, made.key.as_bytes())?;
        return Ok(made);
    }
    let read = |file: &str| -> Result<String> {
        let path = folder.file(file);
        std::fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))
    };
    Ok(Pair { certificate: read(&certificate_file)?, key: read(&key_file)? })
}

fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).context("a file of the data folder is not text")
}

fn random_token() -> Result<String> {
    let mut bytes = [0u8; 32];
    ring::rand::SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow::anyhow!("no randomness from the system"))?;
    Ok(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_token_outlive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let load = |address: [u8; 4]| {
            let folder = DataFolder::open(dir.path(), String::new()).unwrap();
            let pki = Pki::load(&folder, address.into()).unwrap();
            pki.server_config().expect("the key fits the certificate");
            (pki.token, pki.ca_certificate, rendezvous_key(&folder).unwrap().as_bytes().to_vec())
        };
        assert_eq!(load([127, 0, 0, 1]), load([127, 0, 0, 1]));
        assert_eq!(load([127, 0, 0, 1]), load([127, 0, 0, 2]));
    }
}
