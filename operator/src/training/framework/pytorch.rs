//! The environment of PyTorchJobs: torch.distributed's variables and torchrun's (`PET_*`).

use super::{Environment, Replica};
use crate::training::address::Addresses;
use muster_api::training::{ElasticPolicy, Job};

const MASTER: &str = "Master";
const WORKER: &str = "Worker";

pub(super) fn environment(job: &Job, addresses: &Addresses<'_>, replica: Replica<'_>) -> Environment {
    let mut variables = vec![("PYTHONUNBUFFERED", "1".to_owned())];
    let total = job.total_replicas();
    if job.has_role(MASTER) {
        let master = addresses.short(MASTER, 0);
        // The rank is that of the node: torchrun numbers the processes itself.
        let rank = if replica.role == WORKER { replica.index + 1 } else { replica.index }.to_string();
        let processes = job.spec.nproc_per_node.as_deref().and_then(|text| text.parse::<i64>().ok()).unwrap_or(1);
        variables.extend([
            ("MASTER_PORT", master.port.to_string()),
            ("PET_MASTER_PORT", master.port.to_string()),
            ("MASTER_ADDR", master.host.clone()),
            ("PET_MASTER_ADDR", master.host),
            ("WORLD_SIZE", i64::from(total).saturating_mul(processes).to_string()),
            ("RANK", rank.clone()),
            ("PET_NODE_RANK", rank),
        ]);
    }
    if let Some(processes) = &job.spec.nproc_per_node {
        variables.push(("PET_NPROC_PER_NODE", processes.clone()));
    }
    match &job.spec.elastic_policy {
        Some(policy) => elastic(job, policy, addresses, &mut variables),
        None => variables.push(("PET_NNODES", total.to_string())),
    }
    Environment { variables, main_container_only: false }
}

fn elastic(job: &Job, policy: &ElasticPolicy, addresses: &Addresses<'_>, variables: &mut Vec<(&'static str, String)>) {
    let first = addresses.short(WORKER, 0);
    let host = policy.rdzv_host.clone().unwrap_or(first.host);
    let port = policy.rdzv_port.unwrap_or(first.port);
    variables.push(("PET_RDZV_ENDPOINT", format!("{host}:{port}")));
    variables.push(("PET_RDZV_BACKEND", policy.rdzv_backend.clone().unwrap_or_else(|| "c10d".to_owned())));
    let nodes = match (policy.min_replicas, policy.max_replicas) {
        (Some(min), Some(max)) => format!("{min}:{max}"),
        _ => job.total_replicas().to_string(),
    };
    variables.push(("PET_NNODES", nodes));
    if let Some(restarts) = policy.max_restarts {
        variables.push(("PET_MAX_RESTARTS", restarts.to_string()));
    }
    if let Some(processes) = policy.n_proc_per_node {
        variables.push(("PET_NPROC_PER_NODE", processes.to_string()));
    }
    if let Some(id) = &policy.rdzv_id {
        variables.push(("PET_RDZV_ID", id.clone()));
    }
    if !policy.rdzv_conf.is_empty() {
        let settings: Vec<_> = policy.rdzv_conf.iter().map(|conf| format!("{}={}", conf.key, conf.value)).collect();
        variables.push(("PET_RDZV_CONF", settings.join(",")));
    }
    if policy.standalone == Some(true) {
        variables.push(("PET_STANDALONE", String::new()));
    }
}
