//! Tokens of service accounts: JSON Web Tokens (ES256), signed and checked with one key.

use crate::auth::Identity;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use muster_api::random::Random;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use std::sync::Arc;

pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the signing key cannot be used: {0}")]
    Rejected(String),
}

/// The key of service account tokens.
#[derive(Clone)]
pub struct SigningKey {
    pair: Arc<EcdsaKeyPair>,
}

impl SigningKey {
    /// A new key, as PKCS#8.
    pub fn generate() -> Result<Vec<u8>, KeyError> {
        EcdsaKeyPair::generate_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map(|document| document.as_ref().to_vec())
            .map_err(|e| KeyError::Rejected(e.to_string()))
    }

    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, der, &SystemRandom::new())
            .map(|pair| SigningKey { pair: Arc::new(pair) })
            .map_err(|e| KeyError::Rejected(e.to_string()))
    }

    /// Signs the claims.
    pub fn sign(&self, claims: &Value) -> Result<String, KeyError> {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": "ES256", "typ": "JWT"}).to_string());
        let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes());
        let signature = signature.map_err(|e| KeyError::Rejected(e.to_string()))?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }

    /// The claims of a token that this key has signed and that is valid at `now` (seconds since the epoch).
    pub fn verify(&self, token: &str, now: i64) -> Option<Value> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref())
            .verify(message.as_bytes(), &signature)
            .ok()?;
        let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        let valid = header["alg"] == "ES256"
            && claims["iss"] == ISSUER
            && claims["exp"].as_i64().is_some_and(|end| now < end)
            && claims["nbf"].as_i64().is_none_or(|start| start <= now + 60);
        valid.then_some(claims)
    }
}

/// What a token is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The pod that the token is bound to: name and uid.
    pub pod: Option<(String, String)>,
}

impl Subject {
    pub fn claims(&self, audiences: &[String], now: i64, seconds: i64, random: &Random) -> Value {
        let mut about = json!({
            "namespace": self.namespace,
            "serviceaccount": {"name": self.name, "uid": self.uid},
        });
        if let Some((name, uid)) = &self.pod {
            about["pod"] = json!({"name": name, "uid": uid});
        }
        json!({
            "iss": ISSUER,
            "sub": format!("system:serviceaccount:{}:{}", self.namespace, self.name),
            "aud": audiences,
            "iat": now,
            "nbf": now,
            "exp": now + seconds,
            "jti": random.uuid(),
            "kubernetes.io": about,
        })
    }

    pub fn from_claims(claims: &Value) -> Option<Subject> {
        let about = &claims["kubernetes.io"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Some(Subject {
            namespace: text(&about["namespace"])?,
            name: text(&about["serviceaccount"]["name"])?,
            uid: text(&about["serviceaccount"]["uid"])?,
            pod: text(&about["pod"]["name"]).zip(text(&about["pod"]["uid"])),
        })
    }

    pub fn identity(&self) -> Identity {
        let mut identity = Identity::service_account(&self.namespace, &self.name, &self.uid);
        if let Some((name, uid)) = &self.pod {
            identity.extra.insert("authentication.kubernetes.io/pod-name".to_owned(), vec![name.clone()]);
            identity.extra.insert("authentication.kubernetes.io/pod-uid".to_owned(), vec![uid.clone()]);
        }
        identity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_valid_for_its_time_and_its_key() {
        let key = SigningKey::from_pkcs8(&SigningKey::generate().expect("a key")).expect("is usable");
        let other = SigningKey::from_pkcs8(&SigningKey::generate().expect("a key")).expect("is usable");
        let subject = Subject { namespace: "n".into(), name: "a".into(), uid: "u".into(), pod: None };
        let token = key.sign(&subject.claims(&["api".into()], 1000, 600, &Random::seeded(1))).expect("signs");
        let claims = key.verify(&token, 1500).expect("is valid");
        assert_eq!(Subject::from_claims(&claims), Some(subject));
        assert_eq!(key.verify(&token, 1600), None);
        assert_eq!(other.verify(&token, 1500), None);
        for broken in ["", "a", "a.b", "a.b.c", &token[1..], &format!("{token}x")] {
            assert_eq!(key.verify(broken, 1500), None);
        }
    }
}
