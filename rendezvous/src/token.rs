//! Job tokens: what lets a process speak for one job, and for no other.
//!
//! A token names its job and carries a keyed hash over that name. The server keeps no list of tokens: it
//! verifies one from the key alone, so a token outlives a restart of the server.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

const VERSION: &str = "v1";
const MAX_TOKEN_BYTES: usize = 2048;

/// The job that a token speaks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobIdentity {
    pub namespace: String,
    pub name: String,
    /// The uid of the job object: a job deleted and made again under its old name is another job.
    pub uid: String,
}

impl JobIdentity {
    fn read(claims: Vec<u8>) -> Option<JobIdentity> {
        let claims = String::from_utf8(claims).ok()?;
        let mut claims = claims.split('\n').map(str::to_owned);
        match (claims.next(), claims.next(), claims.next(), claims.next()) {
            (Some(namespace), Some(name), Some(uid), None) => Some(JobIdentity { namespace, name, uid }),
            _ => None,
        }
    }
}

impl fmt::Display for JobIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} ({})", self.namespace, self.name, self.uid)
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    #[error("the job token is malformed")]
    Malformed,
    #[error("the job token was not issued by this server")]
    Forged,
}

/// The server's secret. Its bytes are kept in a file of the data folder, readable by the owner only.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(..)")
    }
}

impl TokenKey {
    /// A new key from the operating system's source of randomness.
    pub fn generate() -> std::io::Result<TokenKey> {
        let mut bytes = [0; 32];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
        Ok(TokenKey(bytes))
    }

    pub fn from_bytes(bytes: [u8; 32]) -> TokenKey {
        TokenKey(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The token of a job. The same arguments always give the same token.
    pub fn job_token(&self, namespace: &str, job: &str, uid: &str) -> String {
        let claims = format!("{namespace}\n{job}\n{uid}");
        let mac = self.mac(claims.as_bytes()).finalize().into_bytes();
        format!("{VERSION}.{}.{}", URL_SAFE_NO_PAD.encode(claims), URL_SAFE_NO_PAD.encode(mac))
    }

    /// The job that a token speaks for, if this key issued it.
    pub fn verify(&self, token: &str) -> Result<JobIdentity, TokenError> {
        let (claims, mac) = parts(token).ok_or(TokenError::Malformed)?;
        self.mac(&claims).verify_slice(&mac).map_err(|_| TokenError::Forged)?;
        JobIdentity::read(claims).ok_or(TokenError::Malformed)
    }

    fn mac(&self, claims: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(b"muster job token\n");
        mac.update(claims);
        mac
    }
}

/// The claims of a token and the hash over them, whoever issued it.
fn parts(token: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    if token.len() > MAX_TOKEN_BYTES {
        return None;
    }
    let mut parts = token.split('.');
    let (Some(VERSION), Some(claims), Some(mac), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    Some((URL_SAFE_NO_PAD.decode(claims).ok()?, URL_SAFE_NO_PAD.decode(mac).ok()?))
}

/// The job that a token names, unverified: for a process that tells people which job its own token is of.
pub fn job_of(token: &str) -> Option<JobIdentity> {
    JobIdentity::read(parts(token)?.0)
}

/// The secret by which the members of a job know each other when they connect directly. All of them
/// hold the job's token, so nobody needs to hand it out.
pub fn peer_secret(job_token: &str) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(b"muster collectives\n");
    digest.update(job_token.as_bytes());
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> TokenKey {
        TokenKey::from_bytes([7; 32])
    }

    #[test]
    fn a_token_names_its_job_and_outlives_its_server() {
        let token = key().job_token("team", "mnist", "1-2-3");
        let job = key().verify(&token).expect("issued by an equal key");
        assert_eq!(job, JobIdentity { namespace: "team".into(), name: "mnist".into(), uid: "1-2-3".into() });
    }

    #[test]
    fn tokens_of_strangers_are_refused() {
        let token = key().job_token("team", "mnist", "1-2-3");
        assert_eq!(TokenKey::from_bytes([8; 32]).verify(&token), Err(TokenError::Forged));
        let other = key().job_token("team", "other", "1-2-3");
        let spliced = {
            let a: Vec<&str> = token.split('.').collect();
            let b: Vec<&str> = other.split('.').collect();
            format!("v1.{}.{}", a[1], b[2])
        };
        assert_eq!(key().verify(&spliced), Err(TokenError::Forged));
    }

    #[test]
    fn garbage_is_malformed_not_a_panic() {
        for garbage in ["", "v1", "v1..", "v2.YQ.YQ", "v1.%%.YQ", "v1.YQ.YQ.YQ", &"x".repeat(5000)] {
            assert!(key().verify(garbage).is_err(), "{garbage}");
            assert_eq!(job_of(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn a_token_says_of_which_job_it_is_to_who_has_no_key() {
        let job = job_of(&key().job_token("team", "mnist", "uid-1"));
        assert_eq!(job.map(|job| job.to_string()), Some("team/mnist (uid-1)".to_owned()));
    }

    #[test]
    fn the_secret_of_the_peers_differs_by_job() {
        assert_ne!(peer_secret(&key().job_token("a", "b", "c")), peer_secret(&key().job_token("a", "b", "d")));
    }
}
