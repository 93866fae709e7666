//! Kinds that are stored, but that no part of Muster acts on: what that means for who uses them, and what to do
//! instead. `None` where the object is acted on all the same.

use super::value::items;
use serde_json::Value;

pub(super) type Idle = fn(&Value) -> Option<&'static str>;

pub(super) const NOT_IDLE: Idle = |_| None;
pub(super) const WORKLOAD: Idle = |_| {
    Some(
        "no pods are made from it; run the same template as a PyTorchJob or another training job, or as a Pod of its own, \
         or use a Kubernetes cluster",
    )
};
pub(super) const SCALER: Idle =
    |_| Some("nothing scales its target; set the number of replicas yourself, with `kubectl scale` or `muster scale`");
pub(super) const BUDGET: Idle = |_| Some("evictions are carried out whatever it says");
pub(super) const ROUTE: Idle = |_| Some(NOT_ROUTED);
pub(super) const POLICY: Idle =
    |_| Some("connections are not limited; pods have the network of this machine, where its firewall can do that");
pub(super) const VOLUME: Idle = |_| {
    Some(
        "no claim is bound to it: each PersistentVolumeClaim has a folder of this machine; to use a folder of your own, \
         give the pod a hostPath volume",
    )
};
pub(super) const STORAGE_CLASS: Idle =
    |_| Some("each PersistentVolumeClaim has a folder of this machine, whatever its storage class");
pub(super) const WEBHOOK: Idle = |_| {
    Some("no webhook is called, so that nothing is refused or changed by it; check manifests before they are applied")
};
/// The services of jobs only give their pods a name on a cluster; here their pods are told addresses.
pub(super) const SERVICE: Idle = |service| {
    items(service.get("metadata").unwrap_or(&Value::Null), "ownerReferences").is_empty().then_some(NOT_ROUTED)
};

const NOT_ROUTED: &str = "nothing forwards connections to pods and no name leads to them; pods have the network of this \
                          machine, so connect to 127.0.0.1 and the pod's port";
