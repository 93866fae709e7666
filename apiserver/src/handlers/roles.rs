//! The cluster roles that every cluster has, for the kinds that are served: what Kubernetes 1.34 grants by them, and
//! the jobs. Kubernetes puts `admin`, `edit` and `view` together from parts by aggregation; here each is whole.

use serde_json::{Value, json};

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

type Rule = (&'static str, &'static [&'static str], &'static [&'static str]);

/// Everything of a namespace but what gives power over it: no secrets, no roles.
const VIEW: &[Rule] = &[
    (
        "",
        &[
            "bindings",
            "configmaps",
            "endpoints",
            "events",
            "limitranges",
            "namespaces",
            "namespaces/status",
            "persistentvolumeclaims",
            "persistentvolumeclaims/status",
            "pods",
            "pods/log",
            "pods/status",
            "replicationcontrollers",
            "replicationcontrollers/scale",
            "replicationcontrollers/status",
            "resourcequotas",
            "resourcequotas/status",
            "serviceaccounts",
            "services",
            "services/status",
        ],
        READ,
    ),
    ("discovery.k8s.io", &["endpointslices"], READ),
    (
        "apps",
        &[
            "controllerrevisions",
            "daemonsets",
            "daemonsets/status",
            "deployments",
            "deployments/scale",
            "deployments/status",
            "replicasets",
            "replicasets/scale",
            "replicasets/status",
            "statefulsets",
            "statefulsets/scale",
            "statefulsets/status",
        ],
        READ,
    ),
    ("autoscaling", &["horizontalpodautoscalers", "horizontalpodautoscalers/status"], READ),
    ("batch", &["cronjobs", "cronjobs/status", "jobs", "jobs/status"], READ),
    ("policy", &["poddisruptionbudgets", "poddisruptionbudgets/status"], READ),
    ("networking.k8s.io", &["ingresses", "ingresses/status", "networkpolicies"], READ),
    ("kubeflow.org", &["*"], READ),
    ("scheduling.x-k8s.io", &["podgroups", "podgroups/status"], READ),
];

const EDIT: &[Rule] = &[
    ("", &["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"], READ),
    ("", &["serviceaccounts"], &["impersonate"]),
    ("", &["pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy"], WRITE),
    ("", &["pods/eviction", "serviceaccounts/token"], &["create"]),
    (
        "",
        &[
            "configmaps",
            "events",
            "persistentvolumeclaims",
            "replicationcontrollers",
            "replicationcontrollers/scale",
            "secrets",
            "serviceaccounts",
            "services",
            "services/proxy",
        ],
        WRITE,
    ),
    (
        "apps",
        &[
            "daemonsets",
            "deployments",
            "deployments/rollback",
            "deployments/scale",
            "replicasets",
            "replicasets/scale",
            "statefulsets",
            "statefulsets/scale",
        ],
        WRITE,
    ),
    ("autoscaling", &["horizontalpodautoscalers"], WRITE),
    ("batch", &["cronjobs", "jobs"], WRITE),
    ("policy", &["poddisruptionbudgets"], WRITE),
    ("networking.k8s.io", &["ingresses", "networkpolicies"], WRITE),
    ("coordination.k8s.io", &["leases"], ALL),
    ("kubeflow.org", &["mxjobs", "mxjobs/scale", "pytorchjobs", "pytorchjobs/scale", "tfjobs", "tfjobs/scale"], WRITE),
];

const ADMIN: &[Rule] = &[
    ("authorization.k8s.io", &["localsubjectaccessreviews"], &["create"]),
    ("rbac.authorization.k8s.io", &["rolebindings", "roles"], ALL),
];

pub(super) fn defaults() -> Vec<Value> {
    let role = |name: &str, rules: Vec<Value>| {
        let labels = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
        json!({"metadata": {"name": name, "labels": labels}, "rules": rules})
    };
    let rules = |parts: &[&[Rule]]| -> Vec<Value> {
        let each = parts.iter().copied().flatten();
        each.map(|(group, resources, verbs)| json!({"apiGroups": [group], "resources": resources, "verbs": verbs}))
            .collect()
    };
    let everything = vec![
        json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}),
        json!({"verbs": ["*"], "nonResourceURLs": ["*"]}),
    ];
    vec![
        role("cluster-admin", everything),
        role("admin", rules(&[ADMIN, EDIT, VIEW])),
        role("edit", rules(&[EDIT, VIEW])),
        role("view", rules(&[VIEW])),
    ]
}
