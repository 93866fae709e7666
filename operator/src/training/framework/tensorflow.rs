//! The environment of TFJobs: `TF_CONFIG`.

use super::{Environment, Replica};
use crate::training::address::Addresses;
use muster_api::training::Job;
use serde::Serialize;
use std::collections::BTreeMap;

const PS: &str = "PS";
const WORKER: &str = "Worker";

#[derive(Serialize)]
struct Config {
    cluster: BTreeMap<String, Vec<String>>,
    task: Task,
    environment: &'static str,
}

/// Dynamic workers know themselves and the parameter servers, so that workers can come and go.
#[derive(Serialize)]
struct SparseConfig {
    cluster: SparseCluster,
    task: Task,
}

#[derive(Serialize)]
struct SparseCluster {
    worker: BTreeMap<i32, String>,
    ps: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Task {
    #[serde(rename = "type")]
    role: String,
    index: i32,
}

pub(super) fn environment(job: &Job, addresses: &Addresses<'_>, replica: Replica<'_>) -> Environment {
    // A job of one pod is no cluster.
    let known = job.kind.roles.iter().filter_map(|role| job.replica_specs().get(role.name));
    if known.map(|spec| spec.count()).sum::<i32>() == 1 {
        return Environment::default();
    }
    let cluster: BTreeMap<String, Vec<String>> = job
        .replica_specs()
        .iter()
        .map(|(role, spec)| {
            let members = (0..spec.count()).map(|index| addresses.qualified(role, index).to_string());
            (role.to_lowercase(), members.collect())
        })
        .collect();
    let task = Task { role: replica.role.to_lowercase(), index: replica.index };
    let config = if job.spec.enable_dynamic_worker {
        let own = addresses.qualified(replica.role, replica.index).to_string();
        let sparse = match replica.role {
            PS => SparseCluster { worker: BTreeMap::new(), ps: Some(vec![own]) },
            WORKER => SparseCluster { worker: [(replica.index, own)].into(), ps: cluster.get("ps").cloned() },
            _ => SparseCluster { worker: BTreeMap::new(), ps: Some(Vec::new()) },
        };
        serde_json::to_string(&SparseConfig { cluster: sparse, task })
    } else {
        serde_json::to_string(&Config { cluster, task, environment: "cloud" })
    };
    let config = config.expect("strings and numbers serialize");
    Environment { variables: vec![("TF_CONFIG", config)], main_container_only: true }
}
