//! What `init-pytorch` waits for: the job's master has an address. The node knows that of its own pods at once, and
//! asks the API server for the others.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

pub(super) const JOB_NAME_LABEL: &str = "training.kubeflow.org/job-name";
const JOB_ROLE_LABEL: &str = "training.kubeflow.org/job-role";
/// How often masters on other nodes are looked for.
const ELSEWHERE: Duration = Duration::from_secs(1);

/// The masters among this node's pods, as (namespace, job, uid).
#[derive(Default)]
pub(super) struct Peers {
    masters: Mutex<BTreeSet<(String, String, String)>>,
    changed: Notify,
}

fn labels(pod: &Pod) -> Option<(String, String, Option<String>)> {
    let labels = pod.metadata.labels.as_ref()?;
    let job = labels.get(JOB_NAME_LABEL)?.clone();
    Some((pod.metadata.namespace.clone().unwrap_or_default(), job, labels.get(JOB_ROLE_LABEL).cloned()))
}

impl Peers {
    /// A pod is on this node, so it has the node's address.
    pub(super) fn insert(&self, pod: &Pod) {
        if let Some((namespace, job, Some(role))) = labels(pod)
            && role == "master"
        {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            self.masters.lock().unwrap_or_else(PoisonError::into_inner).insert((namespace, job, uid));
            self.changed.notify_waiters();
        }
    }

    pub(super) fn remove(&self, uid: &str) {
        self.masters.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, _, known)| known != uid);
    }

    fn is_here(&self, namespace: &str, job: &str) -> bool {
        let masters = self.masters.lock().unwrap_or_else(PoisonError::into_inner);
        masters.iter().any(|(of, known, _)| of == namespace && known == job)
    }

    /// Answers once the master of the pod's job has an address.
    pub(super) async fn master_has_address(&self, client: &kube::Client, pod: &Pod) {
        let Some((namespace, job, _)) = labels(pod) else { return };
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        let selector = format!("{JOB_NAME_LABEL}={job},{JOB_ROLE_LABEL}=master");
        let params = ListParams::default().labels(&selector);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_here(&namespace, &job) {
                return;
            }
            if tokio::time::timeout(ELSEWHERE, changed).await.is_ok() {
                continue;
            }
            match pods.list(&params).await {
                Ok(list) => {
                    let has_address = |pod: &Pod| pod.status.as_ref().is_some_and(|s| s.pod_ip.is_some());
                    if list.items.iter().any(has_address) {
                        return;
                    }
                }
                Err(error) => tracing::debug!(%error, job, "failed to look for the job's master"),
            }
        }
    }
}
