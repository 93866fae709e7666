//! Who makes a request, and what they may do. There is no anonymous access.

pub mod rbac;
pub mod token;
pub mod x509;

use crate::error::{ApiError, ApiResult};
use http::HeaderMap;
use ring::digest;
use std::collections::BTreeMap;

pub const AUTHENTICATED: &str = "system:authenticated";
/// Members may do everything.
pub const MASTERS: &str = "system:masters";

/// An authenticated user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    pub fn new(user: impl Into<String>, groups: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().map(Into::into).collect();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Identity { user: user.into(), groups, ..Identity::default() }
    }

    /// The administrator of the kubeconfig.
    pub fn admin() -> Self {
        Identity::new("kubernetes-admin", [MASTERS])
    }

    /// A component of Muster itself, e.g. `muster:operator`; it may do everything.
    pub fn component(name: &str) -> Self {
        Identity::new(format!("system:muster:{name}"), [MASTERS])
    }

    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        let mut identity = Identity::new(format!("system:serviceaccount:{namespace}:{name}"), groups);
        identity.uid = uid.to_owned();
        identity
    }

    pub fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == MASTERS)
    }
}

/// What requests are authenticated with.
#[derive(Clone, Default)]
pub struct Keys {
    /// By the digest of the token, so that looking one up takes no time that depends on its text.
    tokens: BTreeMap<[u8; 32], Identity>,
    /// Signs the tokens of service accounts; without it none are given out.
    pub service_accounts: Option<token::SigningKey>,
}

impl Keys {
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets whoever bears `token` in as `identity`.
    pub fn with_token(mut self, token: &str, identity: Identity) -> Self {
        self.tokens.insert(digest(token), identity);
        self
    }

    pub fn with_service_accounts(mut self, key: token::SigningKey) -> Self {
        self.service_accounts = Some(key);
        self
    }

    pub(crate) fn by_token(&self, token: &str) -> Option<&Identity> {
        self.tokens.get(&digest(token))
    }
}

fn digest(token: &str) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    out
}

/// The bearer token of a request.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// What an `Impersonate-*` request wants to be: the identity, and the things that the caller must be allowed to
/// impersonate, as (resource, name).
pub fn impersonation(headers: &HeaderMap) -> ApiResult<Option<(Identity, Vec<(&'static str, String)>)>> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).filter(|v| !v.is_empty());
    let groups: Vec<String> =
        headers.get_all("impersonate-group").iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect();
    let extra: Vec<(String, String)> = headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str().strip_prefix("impersonate-extra-")?, value.to_str().ok()?)))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let Some(user) = text("impersonate-user") else {
        if groups.is_empty() && extra.is_empty() && text("impersonate-uid").is_none() {
            return Ok(None);
        }
        return Err(ApiError::new(400, "BadRequest", "requested impersonation without impersonating a user"));
    };
    let mut wanted = Vec::new();
    let mut identity = match user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        Some((namespace, name)) => {
            wanted.push(("serviceaccounts", format!("{namespace}/{name}")));
            Identity::service_account(namespace, name, "")
        }
        None => {
            wanted.push(("users", user.to_owned()));
            Identity { user: user.to_owned(), ..Identity::default() }
        }
    };
    wanted.extend(groups.iter().map(|group| ("groups", group.clone())));
    if !groups.is_empty() {
        identity.groups = groups;
    }
    let anonymous = identity.user == "system:anonymous";
    if !anonymous && !identity.groups.iter().any(|group| group == AUTHENTICATED) {
        identity.groups.push(AUTHENTICATED.to_owned());
    }
    if let Some(uid) = text("impersonate-uid") {
        wanted.push(("uids", uid.to_owned()));
        identity.uid = uid.to_owned();
    }
    for (key, value) in extra {
        wanted.push(("userextras", format!("{key}={value}")));
        identity.extra.entry(key).or_default().push(value);
    }
    Ok(Some((identity, wanted)))
}
