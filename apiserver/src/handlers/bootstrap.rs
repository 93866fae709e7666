//! What every cluster has from the start.

use crate::options::WriteOptions;
use crate::server::{Api, OpenError};
use serde_json::{Value, json};
use std::sync::Arc;

impl Api {
    /// Installs namespaces, roles and definitions that are missing; can be repeated.
    pub(crate) async fn bootstrap(self: &Arc<Self>, crds: Vec<Value>) -> Result<(), OpenError> {
        let mut objects: Vec<(&str, &str, &str, Option<&str>, Value)> = Vec::new();
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            objects.push(("", "v1", "namespaces", None, json!({"metadata": {"name": name}})));
        }
        for (name, value, description) in [
            (
                "system-cluster-critical",
                2_000_000_000,
                "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
            ),
            (
                "system-node-critical",
                2_000_001_000,
                "Used for system critical pods that must not be moved from their current node.",
            ),
        ] {
            let class = json!({"metadata": {"name": name}, "value": value, "description": description});
            objects.push(("scheduling.k8s.io", "v1", "priorityclasses", None, class));
        }
        let rbac = "rbac.authorization.k8s.io";
        for role in super::roles::defaults() {
            objects.push((rbac, "v1", "clusterroles", None, role));
        }
        let binding = json!({"metadata": {"name": "cluster-admin"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"apiGroup": rbac, "kind": "Group", "name": "system:masters"}]});
        objects.push((rbac, "v1", "clusterrolebindings", None, binding));
        let options = WriteOptions::internal("muster");
        let fresh = self.store.revision() == 0;
        for (group, version, plural, namespace, object) in objects {
            let what = format!("{plural} {}", object["metadata"]["name"]);
            let Some(served) = self.registry.catalog().find(group, version, plural) else { continue };
            let name = crate::codec::name_of(&object).to_owned();
            if self.store.head(&self.key(&served, namespace, &name)).is_some() {
                continue;
            }
            let object = crate::codec::typed(&served, object);
            self.create_object(&served, namespace, object, &options, &mut Vec::new())
                .await
                .map_err(|error| OpenError::Bootstrap { what, error })?;
        }
        for crd in crds {
            let what = format!("definition {}", crd["metadata"]["name"]);
            self.install_definition(crd).await.map_err(|error| OpenError::Bootstrap { what, error })?;
        }
        self.settle_definitions()
            .await
            .map_err(|error| OpenError::Bootstrap { what: "custom kinds".to_owned(), error })?;
        if fresh {
            // What was made here is a server's beginning, not a history that anybody has followed.
            self.store.forget_history();
        }
        Ok(())
    }
}
