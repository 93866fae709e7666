//! The environment of MXJobs: `MX_CONFIG` and the `DMLC_*` variables of ps-lite.

use super::{Environment, Replica};
use crate::training::address::Addresses;
use muster_api::names::annotation;
use muster_api::training::Job;
use serde::Serialize;
use std::collections::BTreeMap;

const SCHEDULER: &str = "Scheduler";
const WORKER: &str = "Worker";

#[derive(Serialize)]
struct Config {
    cluster: BTreeMap<String, Vec<Member>>,
    labels: BTreeMap<String, String>,
    task: Task,
}

#[derive(Serialize)]
struct Member {
    url: String,
    port: i32,
}

#[derive(Serialize)]
struct Task {
    #[serde(rename = "type")]
    role: String,
    index: i32,
}

pub(super) fn environment(job: &Job, addresses: &Addresses<'_>, replica: Replica<'_>) -> Environment {
    let specs = job.replica_specs();
    let cluster: BTreeMap<String, Vec<Member>> = specs
        .iter()
        .map(|(role, spec)| {
            let members = (0..spec.count()).map(|index| {
                let address = addresses.short(role, index);
                Member { url: address.host, port: address.port }
            });
            (role.to_lowercase(), members.collect())
        })
        .collect();
    let tuner_key = format!("/metadata/annotations/{}", annotation::TUNER_SERVER_KEY);
    let labels = specs
        .iter()
        .map(|(role, spec)| {
            let key = spec.template.pointer(&tuner_key).and_then(|value| value.as_str()).unwrap_or_default();
            (role.to_lowercase(), key.to_owned())
        })
        .collect();
    let size = |role: &str| cluster.get(role).map_or(0, Vec::len).to_string();
    let (servers, workers) = (size("server"), size("worker"));
    let (host, port) = match cluster.get("scheduler").and_then(|members| members.first()) {
        Some(_) => {
            let scheduler = addresses.short(SCHEDULER, 0);
            (scheduler.host, scheduler.port)
        }
        None => (String::new(), 0),
    };
    let role = replica.role.to_lowercase();
    let config = Config { cluster, labels, task: Task { role: role.clone(), index: replica.index } };
    let config = serde_json::to_string(&config).expect("strings and numbers serialize");
    let mut variables = vec![
        ("MX_CONFIG", config),
        ("DMLC_PS_ROOT_PORT", port.to_string()),
        ("DMLC_PS_ROOT_URI", host),
        ("DMLC_NUM_SERVER", servers),
        ("DMLC_NUM_WORKER", workers),
        ("DMLC_ROLE", role),
        ("DMLC_USE_KUBERNETES", "1".to_owned()),
    ];
    if replica.role == WORKER {
        variables.push(("DMLC_WORKER_ID", replica.index.to_string()));
    }
    Environment { variables, main_container_only: false }
}
