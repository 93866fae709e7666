//! Authorization by roles and their bindings, as rbac.authorization.k8s.io defines them.

use super::{AUTHENTICATED, Identity};
use serde_json::{Value, json};

/// What somebody wants to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    Resource { verb: &'a str, group: &'a str, resource: &'a str, namespace: Option<&'a str>, name: &'a str },
    Path { verb: &'a str, path: &'a str },
}

/// The rules that apply to a subject: those of the bindings that name it.
pub trait Roles {
    fn cluster_role_bindings(&self) -> Vec<Value>;
    fn role_bindings(&self, namespace: &str) -> Vec<Value>;
    fn cluster_role(&self, name: &str) -> Option<Value>;
    fn role(&self, namespace: &str, name: &str) -> Option<Value>;
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a str> + use<'a> {
    value[key].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Whether a rule covers a resource action.
fn covers(rule: &Value, action: &Action<'_>) -> bool {
    match action {
        Action::Resource { verb, group, resource, name, .. } => {
            let names: Vec<&str> = list(rule, "resourceNames").collect();
            list(rule, "verbs").any(|v| v == "*" || v == *verb)
                && list(rule, "apiGroups").any(|g| g == "*" || g == *group)
                && list(rule, "resources").any(|r| {
                    r == "*"
                        || r == *resource
                        || r.strip_prefix("*/")
                            .is_some_and(|sub| resource.split_once('/').is_some_and(|(_, s)| s == sub))
                })
                && (names.is_empty() || (!name.is_empty() && names.contains(name)))
        }
        Action::Path { verb, path } => {
            list(rule, "verbs").any(|v| v == "*" || v == *verb)
                && list(rule, "nonResourceURLs")
                    .any(|url| url == "*" || url == *path || url.strip_suffix('*').is_some_and(|p| path.starts_with(p)))
        }
    }
}

fn names_subject(binding: &Value, identity: &Identity, namespace: &str) -> bool {
    binding["subjects"].as_array().into_iter().flatten().any(|subject| {
        let name = subject["name"].as_str().unwrap_or_default();
        match subject["kind"].as_str().unwrap_or_default() {
            "User" => name == identity.user,
            "Group" => identity.groups.iter().any(|group| group == name),
            "ServiceAccount" => {
                let of = subject["namespace"].as_str().filter(|n| !n.is_empty()).unwrap_or(namespace);
                identity.user.strip_prefix("system:serviceaccount:") == Some(&format!("{of}:{name}"))
            }
            _ => false,
        }
    })
}

fn rules_of(roles: &dyn Roles, binding: &Value, namespace: Option<&str>) -> Vec<Value> {
    let name = binding["roleRef"]["name"].as_str().unwrap_or_default();
    let role = match (binding["roleRef"]["kind"].as_str().unwrap_or_default(), namespace) {
        ("ClusterRole", _) => roles.cluster_role(name),
        ("Role", Some(namespace)) => roles.role(namespace, name),
        _ => None,
    };
    role.and_then(|mut role| role["rules"].as_array_mut().map(std::mem::take)).unwrap_or_default()
}

/// Everything that an identity may do in a namespace, or in the cluster.
pub fn rules(roles: &dyn Roles, identity: &Identity, namespace: Option<&str>) -> Vec<Value> {
    let mut rules = own_rules(identity);
    for binding in roles.cluster_role_bindings() {
        if names_subject(&binding, identity, "") {
            rules.extend(rules_of(roles, &binding, None));
        }
    }
    if let Some(namespace) = namespace.filter(|n| !n.is_empty()) {
        for binding in roles.role_bindings(namespace) {
            if names_subject(&binding, identity, namespace) {
                rules.extend(rules_of(roles, &binding, Some(namespace)));
            }
        }
    }
    rules
}

/// What everybody who is authenticated may do (system:basic-user, system:discovery, system:public-info-viewer).
fn own_rules(identity: &Identity) -> Vec<Value> {
    if identity.is_master() {
        return vec![
            json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}),
            json!({"verbs": ["*"], "nonResourceURLs": ["*"]}),
        ];
    }
    if !identity.groups.iter().any(|group| group == AUTHENTICATED) {
        return Vec::new();
    }
    vec![
        json!({"verbs": ["create"], "apiGroups": ["authorization.k8s.io"],
               "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]}),
        json!({"verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"]}),
        json!({"verbs": ["get"], "nonResourceURLs": ["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez",
               "/openapi", "/openapi/*", "/readyz", "/version", "/version/"]}),
    ]
}

pub fn allowed(roles: &dyn Roles, identity: &Identity, action: &Action<'_>) -> bool {
    if identity.is_master() {
        return true;
    }
    let namespace = match action {
        Action::Resource { namespace, .. } => *namespace,
        Action::Path { .. } => None,
    };
    rules(roles, identity, namespace).iter().any(|rule| covers(rule, action))
}

/// Why an action is refused, as the API server words it.
pub fn denial(identity: &Identity, action: &Action<'_>) -> String {
    let user = &identity.user;
    match action {
        Action::Resource { verb, group, resource, namespace, .. } => {
            let place = match namespace {
                Some(namespace) => format!("in the namespace \"{namespace}\""),
                None => "at the cluster scope".to_owned(),
            };
            format!("User \"{user}\" cannot {verb} resource \"{resource}\" in API group \"{group}\" {place}")
        }
        Action::Path { verb, path } => format!("User \"{user}\" cannot {verb} path \"{path}\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World;

    impl Roles for World {
        fn cluster_role_bindings(&self) -> Vec<Value> {
            vec![
                json!({"subjects": [{"kind": "Group", "name": "readers"}], "roleRef": {"kind": "ClusterRole", "name": "view"}}),
            ]
        }
        fn role_bindings(&self, namespace: &str) -> Vec<Value> {
            if namespace != "a" {
                return Vec::new();
            }
            vec![
                json!({"subjects": [{"kind": "ServiceAccount", "name": "robot"}], "roleRef": {"kind": "Role", "name": "one"}}),
                json!({"subjects": [{"kind": "User", "name": "bob"}], "roleRef": {"kind": "ClusterRole", "name": "view"}}),
            ]
        }
        fn cluster_role(&self, name: &str) -> Option<Value> {
            (name == "view").then(|| {
                json!({"rules": [
                {"verbs": ["get", "list"], "apiGroups": ["", "apps"], "resources": ["pods", "*/status"]},
                {"verbs": ["get"], "nonResourceURLs": ["/metrics", "/logs/*"]}]})
            })
        }
        fn role(&self, namespace: &str, name: &str) -> Option<Value> {
            (namespace == "a" && name == "one").then(|| {
                json!({"rules": [
                {"verbs": ["*"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["s"]}]})
            })
        }
    }

    #[test]
    fn rules_reach_as_far_as_their_binding() {
        let reader = Identity::new("eve", ["readers"]);
        let bob = Identity::new("bob", [] as [&str; 0]);
        let robot = Identity::service_account("a", "robot", "u");
        let alice = Identity::new("alice", [] as [&str; 0]);
        let on = |verb, group, resource, namespace, name| Action::Resource { verb, group, resource, namespace, name };
        for (identity, action, expected) in [
            (&reader, on("get", "", "pods", Some("b"), "p"), true),
            (&reader, on("delete", "", "pods", Some("b"), "p"), false),
            (&reader, on("get", "apps", "deployments/status", None, "d"), true),
            (&reader, on("get", "batch", "pods", None, "d"), false),
            (&reader, Action::Path { verb: "get", path: "/logs/x" }, true),
            (&bob, on("list", "", "pods", Some("a"), ""), true),
            (&bob, on("list", "", "pods", Some("b"), ""), false),
            (&bob, on("list", "", "pods", None, ""), false),
            (&bob, Action::Path { verb: "get", path: "/metrics" }, false),
            (&robot, on("update", "", "secrets", Some("a"), "s"), true),
            (&robot, on("list", "", "secrets", Some("a"), ""), false),
            (&alice, Action::Path { verb: "get", path: "/apis/apps/v1" }, true),
            (&alice, on("create", "authorization.k8s.io", "selfsubjectaccessreviews", None, ""), true),
            (&alice, on("get", "", "pods", Some("a"), "p"), false),
            (&Identity::admin(), on("delete", "x", "y", None, "z"), true),
        ] {
            assert_eq!(allowed(&World, identity, &action), expected, "{} {action:?}", identity.user);
        }
    }
}
