//! Quotas at admission: a write that would take more than its namespace may have is refused.

use super::Stored;
use crate::builtin::Objects;
use crate::codec;
use crate::error::{ApiError, ApiResult};
use crate::registry::Served;
use crate::server::Api;
use muster_api::quantity::Quantity;
use muster_api::quota::{self, Amounts};
use serde_json::Value;
use tokio::sync::MutexGuard;

impl Api {
    /// Checks a write against the quotas of its namespace. What is handed back is held until the write is stored, so
    /// that no two writes take the same rest.
    pub(super) async fn admit_quota(
        &self,
        served: &Served,
        namespace: Option<&str>,
        object: &Value,
        old: Option<&Value>,
    ) -> ApiResult<Option<MutexGuard<'_, ()>>> {
        let Some(namespace) = namespace.filter(|_| served.namespaced) else { return Ok(None) };
        // Most namespaces have none.
        if self.store.count("/resourcequotas") == 0 {
            return Ok(None);
        }
        let stored = Stored(self);
        let quotas = || stored.list("", "resourcequotas", namespace);
        if quotas().is_empty() {
            return Ok(None);
        }
        let held = self.counting.lock().await;
        // A write whose client has left goes on without its turn; it counts as soon as it is stored.
        self.store.settled().await.map_err(|error| super::write::store_failed(&error))?;
        let quotas = quotas();
        let mut applies = false;
        for quota in &quotas {
            applies |= self.check_quota(served, namespace, quota, object, old)?;
        }
        Ok(applies.then_some(held))
    }

    /// Whether the quota counts the object at all; the error says what is exceeded.
    fn check_quota(
        &self,
        served: &Served,
        namespace: &str,
        quota: &Value,
        object: &Value,
        old: Option<&Value>,
    ) -> ApiResult<bool> {
        let spec = &quota["spec"];
        let Some(hard) = spec["hard"].as_object() else { return Ok(false) };
        let (group, plural) = (served.stored_group(), served.plural.as_str());
        let pods = group.is_empty() && plural == "pods";
        let counts = |object: &Value| !pods || quota::in_scope(object, spec);
        if !counts(object) {
            return Ok(false);
        }
        let mut wanted = quota::usage(group, plural, object);
        // What the quota was not about until now counts whole.
        if let Some(old) = old.filter(|old| counts(old)) {
            let before = quota::usage(group, plural, old);
            for (key, amount) in &mut wanted {
                let old = before.get(key).copied().unwrap_or(Quantity::ZERO);
                *amount = if *amount > old { *amount - old } else { Quantity::ZERO };
            }
        }
        let refused =
            |why: String| Err(ApiError::forbidden(&served.group, &served.plural, codec::name_of(object), &why));
        let name = codec::name_of(quota);
        if pods && old.is_none() {
            let unsaid = quota::unsaid(object, hard.keys().map(String::as_str));
            if !unsaid.is_empty() {
                return refused(format!("failed quota: {name}: must specify {}", unsaid.join("; ")));
            }
        }
        let taken = |key: &str| wanted.get(quota::canonical(key)).copied().filter(|amount| !amount.is_zero());
        if !hard.keys().any(|key| taken(key).is_some()) {
            return Ok(false);
        }
        let mut used = Amounts::new();
        for other in Stored(self).list(group, plural, namespace).iter().filter(|other| counts(other)) {
            quota::add(&mut used, quota::usage(group, plural, other));
        }
        let (mut requested, mut before, mut limited) = (Vec::new(), Vec::new(), Vec::new());
        for (key, limit) in hard {
            let Some(amount) = taken(key) else { continue };
            let limit = limit.as_str().and_then(|text| text.parse().ok()).unwrap_or(Quantity::ZERO);
            let so_far = used.get(quota::canonical(key)).copied().unwrap_or(Quantity::ZERO);
            if so_far + amount > limit {
                requested.push(format!("{key}={amount}"));
                before.push(format!("{key}={so_far}"));
                limited.push(format!("{key}={limit}"));
            }
        }
        if requested.is_empty() {
            return Ok(true);
        }
        refused(format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            requested.join(","),
            before.join(","),
            limited.join(",")
        ))
    }
}
