//! What other objects decide about a pod: its service account, its priority, its tolerations.

use crate::builtin::metadata::name_suffix;
use crate::builtin::value::{child, field, fields, fill, int, items, items_mut, text};
use crate::builtin::{Context, limit_range};
use crate::error::{ApiError, ApiResult};
use serde_json::{Value, json};

const TOKEN_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN_VOLUME: &str = "kube-api-access-";
/// A bit over an hour, so that a token that lives an hour can be told from one asked for by the user.
const TOKEN_SECONDS: i64 = 3607;
const SCHEDULING: &str = "scheduling.k8s.io";

pub(super) fn admit(pod: &mut Value, old: Option<&Value>, context: &Context<'_>) -> ApiResult<()> {
    if !context.subresource.is_empty() {
        return Ok(());
    }
    match old {
        None => {
            limit_range::pod(pod, context)?;
            service_account(pod, context)?;
            priority(pod, context)?;
        }
        Some(old) => {
            // What admission computed stays, though the client may have sent the object without it.
            for key in ["priority", "preemptionPolicy"] {
                if let Some(value) = old.pointer(&format!("/spec/{key}")) {
                    fill(child(pod, "spec"), key, value.clone());
                }
            }
        }
    }
    tolerations(child(pod, "spec"));
    Ok(())
}

fn forbidden(pod: &Value, why: &str) -> ApiError {
    ApiError::forbidden("", "pods", text(pod, "/metadata/name"), why)
}

fn service_account(pod: &mut Value, context: &Context<'_>) -> ApiResult<()> {
    let namespace = context.namespace.unwrap_or_default();
    let name = match text(pod, "/spec/serviceAccountName") {
        "" => "default".to_owned(),
        name => name.to_owned(),
    };
    let account = match context.objects.get("", "serviceaccounts", namespace, &name) {
        Some(account) => account,
        // Every namespace gets this one in a moment; a pod need not wait for it.
        None if name == "default" => Value::Null.into(),
        None => {
            let why =
                format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found");
            return Err(forbidden(pod, &why));
        }
    };
    let spec = child(pod, "spec");
    fields(spec).insert("serviceAccountName".into(), name.clone().into());
    fields(spec).insert("serviceAccount".into(), name.into());
    let wants = |object: &Value| object.get("automountServiceAccountToken").and_then(Value::as_bool);
    if wants(spec).or(wants(&account)).unwrap_or(true) {
        mount_token(spec, (context.random)());
    }
    if items(spec, "imagePullSecrets").is_empty()
        && let Some(secrets) = account.get("imagePullSecrets")
    {
        fields(spec).insert("imagePullSecrets".into(), secrets.clone());
    }
    Ok(())
}

/// Mounts the service account's token into every container that has nothing mounted at its place.
fn mount_token(spec: &mut Value, random: u64) {
    let existing = items(spec, "volumes").iter().map(|v| field(v, "name")).find(|n| n.starts_with(TOKEN_VOLUME));
    let is_new = existing.is_none();
    let volume = existing.map_or_else(|| format!("{TOKEN_VOLUME}{}", name_suffix(random)), str::to_owned);
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in items_mut(spec, list) {
            if items(container, "volumeMounts").iter().any(|m| field(m, "mountPath") == TOKEN_FOLDER) {
                continue;
            }
            let mount = json!({"name": volume, "readOnly": true, "mountPath": TOKEN_FOLDER});
            push(container, "volumeMounts", mount);
            mounted = true;
        }
    }
    if mounted && is_new {
        let sources = json!([
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
            ]}},
        ]);
        push(spec, "volumes", json!({"name": volume, "projected": {"sources": sources, "defaultMode": 0o644}}));
    }
}

fn push(object: &mut Value, key: &str, item: Value) {
    fill(object, key, Value::Array(Vec::new()));
    if let Some(items) = object.get_mut(key).and_then(Value::as_array_mut) {
        items.push(item);
    }
}

fn priority(pod: &mut Value, context: &Context<'_>) -> ApiResult<()> {
    let wanted = text(pod, "/spec/priorityClassName").to_owned();
    let class = if wanted.is_empty() {
        let classes = context.objects.list(SCHEDULING, "priorityclasses", "");
        let defaults = classes.into_iter().filter(|c| c.get("globalDefault").and_then(Value::as_bool) == Some(true));
        defaults.min_by_key(|c| int(c, "/value"))
    } else {
        let class = context.objects.get(SCHEDULING, "priorityclasses", "", &wanted);
        if class.is_none() {
            return Err(forbidden(pod, &format!("no PriorityClass with name {wanted} was found")));
        }
        class
    };
    let (value, preemption) = match &class {
        Some(class) => (int(class, "/value").unwrap_or(0), field(class, "preemptionPolicy").to_owned()),
        None => (0, String::new()),
    };
    if let Some(given) = int(pod, "/spec/priority").filter(|given| *given != value) {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {value} from the given PriorityClass name"
        );
        return Err(forbidden(pod, &why));
    }
    let preemption = if preemption.is_empty() { "PreemptLowerPriority".to_owned() } else { preemption };
    let spec = child(pod, "spec");
    if let Some(class) = class.filter(|_| wanted.is_empty()) {
        fields(spec).insert("priorityClassName".into(), text(&class, "/metadata/name").into());
    }
    fields(spec).insert("priority".into(), value.into());
    fill(spec, "preemptionPolicy", preemption);
    Ok(())
}

/// A pod stays on a node that is not ready or not reachable for five minutes, unless it says otherwise.
fn tolerations(spec: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covered = items(spec, "tolerations").iter().any(|t| {
            let matches = |field_name: &str, wanted: &str| matches!(field(t, field_name), text if text.is_empty() || text == wanted);
            matches("key", key) && matches("effect", "NoExecute")
        });
        if !covered {
            let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
            push(spec, "tolerations", toleration);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::Objects;
    use std::sync::Arc;

    struct Stored(Vec<(&'static str, Value)>);

    impl Objects for Stored {
        fn get(&self, _: &str, plural: &str, _: &str, name: &str) -> Option<Arc<Value>> {
            self.list("", plural, "").into_iter().find(|o| text(o, "/metadata/name") == name)
        }

        fn list(&self, _: &str, plural: &str, _: &str) -> Vec<Arc<Value>> {
            self.0.iter().filter(|(p, _)| *p == plural).map(|(_, o)| Arc::new(o.clone())).collect()
        }
    }

    fn admitted(spec: Value, stored: Vec<(&'static str, Value)>) -> ApiResult<Value> {
        let stored = Stored(stored);
        let context = Context {
            now: "2020-01-01T00:00:00Z",
            namespace: Some("n"),
            subresource: "",
            objects: &stored,
            random: &|| 0,
        };
        let mut pod = json!({"metadata": {"name": "p"}, "spec": spec});
        admit(&mut pod, None, &context)?;
        Ok(pod)
    }

    #[test]
    fn tokens_are_mounted_unless_refused() {
        let account =
            |auto: bool| ("serviceaccounts", json!({"metadata": {"name": "a"}, "automountServiceAccountToken": auto}));
        let spec = json!({"serviceAccountName": "a", "containers": [{"name": "c"}]});
        let pod = admitted(spec.clone(), vec![account(true)]).unwrap();
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"], TOKEN_FOLDER);
        assert_eq!(pod["spec"]["volumes"][0]["projected"]["defaultMode"], 420);
        let pod = admitted(spec.clone(), vec![account(false)]).unwrap();
        assert_eq!(pod["spec"].get("volumes"), None);
        let refused = admitted(spec, vec![]).unwrap_err();
        assert_eq!(refused.code, 403);
    }

    #[test]
    fn priorities_come_from_classes() {
        let class = |name: &str, value: i64, default: bool| {
            ("priorityclasses", json!({"metadata": {"name": name}, "value": value, "globalDefault": default}))
        };
        let spec = json!({"containers": []});
        assert_eq!(admitted(spec.clone(), vec![]).unwrap()["spec"]["priority"], 0);
        let stored = vec![class("low", 5, true), class("high", 10, false)];
        let pod = admitted(spec, stored.clone()).unwrap();
        assert_eq!((&pod["spec"]["priority"], &pod["spec"]["priorityClassName"]), (&json!(5), &json!("low")));
        let named = json!({"priorityClassName": "high", "containers": []});
        assert_eq!(admitted(named, stored.clone()).unwrap()["spec"]["priority"], 10);
        assert_eq!(admitted(json!({"priorityClassName": "none"}), stored.clone()).unwrap_err().code, 403);
        assert_eq!(admitted(json!({"priority": 3}), stored).unwrap_err().code, 403);
    }

    #[test]
    fn tolerations_are_not_doubled() {
        let mut spec = json!({"tolerations": [{"operator": "Exists"}]});
        tolerations(&mut spec);
        assert_eq!(spec["tolerations"].as_array().unwrap().len(), 1);
        let mut spec = json!({"tolerations": [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]});
        tolerations(&mut spec);
        assert_eq!(spec["tolerations"].as_array().unwrap().len(), 3);
    }
}
