//! The fields that all training kinds share, and those of single kinds, as the operator reads them.
//!
//! Pod templates stay JSON values: what a user wrote reaches the pod whole, whatever version of Kubernetes knows it.

use super::kind::JobKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// When a replica's pods are started again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
    /// Exit codes from 128 on are retried by a new pod; 1 to 127 fail the job.
    ExitCode,
    /// The field is free text; the API server refuses such a pod.
    Other(String),
}

impl From<String> for RestartPolicy {
    fn from(text: String) -> Self {
        match text.as_str() {
            "Always" => RestartPolicy::Always,
            "OnFailure" => RestartPolicy::OnFailure,
            "Never" => RestartPolicy::Never,
            "ExitCode" => RestartPolicy::ExitCode,
            _ => RestartPolicy::Other(text),
        }
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.as_str().to_owned()
    }
}

impl RestartPolicy {
    pub fn as_str(&self) -> &str {
        match self {
            RestartPolicy::Always => "Always",
            RestartPolicy::OnFailure => "OnFailure",
            RestartPolicy::Never => "Never",
            RestartPolicy::ExitCode => "ExitCode",
            RestartPolicy::Other(text) => text,
        }
    }

    /// The restart policy of the pod itself.
    pub fn of_pod(&self) -> &str {
        match self {
            RestartPolicy::ExitCode => "Never",
            other => other.as_str(),
        }
    }
}

/// What happens to the pods of a finished job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum CleanPodPolicy {
    All,
    Running,
    None,
    /// The field is free text; what is neither `None` nor `Running` deletes all pods.
    Other(String),
}

impl From<String> for CleanPodPolicy {
    fn from(text: String) -> Self {
        match text.as_str() {
            "All" => CleanPodPolicy::All,
            "Running" => CleanPodPolicy::Running,
            "None" => CleanPodPolicy::None,
            _ => CleanPodPolicy::Other(text),
        }
    }
}

impl From<CleanPodPolicy> for String {
    fn from(policy: CleanPodPolicy) -> Self {
        match policy {
            CleanPodPolicy::All => "All".to_owned(),
            CleanPodPolicy::Running => "Running".to_owned(),
            CleanPodPolicy::None => "None".to_owned(),
            CleanPodPolicy::Other(text) => text,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RunPolicy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clean_pod_policy: Option<CleanPodPolicy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_deadline_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_limit: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduling_policy: Option<SchedulingPolicy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub managed_by: Option<String>,
}

impl RunPolicy {
    pub fn is_suspended(&self) -> bool {
        self.suspend == Some(true)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SchedulingPolicy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_available: Option<i32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub queue: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_resources: Option<BTreeMap<String, Value>>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub priority_class: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule_timeout_seconds: Option<i32>,
}

/// One role of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub template: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
}

impl ReplicaSpec {
    /// The containers of the template.
    pub fn containers(&self) -> &[Value] {
        self.template.pointer("/spec/containers").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// How many pods are wanted; 1 where the field is absent, never below 0.
    pub fn count(&self) -> i32 {
        self.replicas.unwrap_or(1).max(0)
    }

    /// The number of a named port of a named container.
    pub fn port(&self, container: &str, port: &str) -> Option<i32> {
        let container = self.containers().iter().find(|c| c["name"] == container)?;
        let port = container["ports"].as_array()?.iter().find(|p| p["name"] == port)?;
        port["containerPort"].as_i64().and_then(|n| i32::try_from(n).ok())
    }
}

/// How a PyTorchJob grows and shrinks, in torchrun's words.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ElasticPolicy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_replicas: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_replicas: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rdzv_backend: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rdzv_port: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rdzv_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rdzv_id: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rdzv_conf: Vec<KeyValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standalone: Option<bool>,
    /// Deprecated in favour of the job's own `nprocPerNode`.
    #[serde(rename = "nProcPerNode", skip_serializing_if = "Option::is_none")]
    pub n_proc_per_node: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_restarts: Option<i32>,
    /// Metric specifications of autoscaling/v2; with them the job gets a HorizontalPodAutoscaler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Vec<Value>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyValue {
    pub key: String,
    pub value: String,
}

/// The spec of any training kind: the shared fields, and those that only single kinds have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobSpec {
    pub run_policy: RunPolicy,
    /// `None` where the field is absent or null.
    pub replica_specs: Option<BTreeMap<String, ReplicaSpec>>,
    pub elastic_policy: Option<ElasticPolicy>,
    pub nproc_per_node: Option<String>,
    pub success_policy: Option<String>,
    pub enable_dynamic_worker: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ConditionType {
    Created,
    Running,
    Restarting,
    Succeeded,
    Suspended,
    Failed,
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One condition of a job. The times are RFC 3339 with whole seconds, as Kubernetes writes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: ConditionType,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_update_time: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaStatus {
    #[serde(skip_serializing_if = "is_zero")]
    pub active: i32,
    #[serde(skip_serializing_if = "is_zero")]
    pub succeeded: i32,
    #[serde(skip_serializing_if = "is_zero")]
    pub failed: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<Value>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// How many failed pods of this role the operator has replaced. Kept where `backoffLimit` is set, since only
    /// then does it decide anything.
    #[serde(skip_serializing_if = "is_zero")]
    pub restarts: i32,
    /// The uids of failed pods that are counted in `restarts` and not yet gone, so that none counts twice.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub replacing: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobStatus {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub replica_statuses: BTreeMap<String, ReplicaStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_reconcile_time: Option<String>,
}

/// A job of any training kind.
#[derive(Clone, Debug)]
pub struct Job {
    pub kind: &'static JobKind,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub resource_version: String,
    pub annotations: BTreeMap<String, String>,
    pub deleting: bool,
    pub spec: JobSpec,
    pub status: JobStatus,
}

/// Why an object could not be read as a job.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{field}: {source}")]
pub struct ParseError {
    pub field: String,
    source: std::sync::Arc<serde_json::Error>,
}

fn is_zero(n: &i32) -> bool {
    *n == 0
}

fn field<T: serde::de::DeserializeOwned + Default>(parent: &Value, path: &str, name: &str) -> Result<T, ParseError> {
    match parent.get(name) {
        None | Some(Value::Null) => Ok(T::default()),
        Some(value) => T::deserialize(value)
            .map_err(|source| ParseError { field: format!("{path}.{name}"), source: std::sync::Arc::new(source) }),
    }
}

impl Job {
    /// Reads a stored object. Nothing is defaulted.
    pub fn parse(kind: &'static JobKind, object: &Value) -> Result<Job, ParseError> {
        let metadata = &object["metadata"];
        let text = |name: &str| metadata[name].as_str().unwrap_or_default().to_owned();
        let status = match object.get("status") {
            Some(Value::Null) | None => JobStatus::default(),
            Some(status) => JobStatus::deserialize(status)
                .map_err(|source| ParseError { field: "status".to_owned(), source: std::sync::Arc::new(source) })?,
        };
        Ok(Job {
            kind,
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            annotations: field(metadata, "metadata", "annotations")?,
            deleting: metadata.get("deletionTimestamp").is_some_and(|t| !t.is_null()),
            spec: JobSpec::parse(kind, &object["spec"])?,
            status,
        })
    }

    /// The replica specs, empty where the field is absent.
    pub fn replica_specs(&self) -> &BTreeMap<String, ReplicaSpec> {
        static EMPTY: BTreeMap<String, ReplicaSpec> = BTreeMap::new();
        self.spec.replica_specs.as_ref().unwrap_or(&EMPTY)
    }

    /// The roles in the order of the kind.
    pub fn roles(&self) -> Vec<(&str, &ReplicaSpec)> {
        let mut roles: Vec<_> = self.replica_specs().iter().map(|(role, spec)| (role.as_str(), spec)).collect();
        roles.sort_by_key(|(role, _)| self.kind.role_order(role));
        roles
    }

    pub fn has_role(&self, role: &str) -> bool {
        self.replica_specs().contains_key(role)
    }

    /// The pods wanted, over all roles.
    pub fn total_replicas(&self) -> i32 {
        self.replica_specs().values().fold(0, |sum: i32, spec| sum.saturating_add(spec.count()))
    }

    /// The job has ended, in success or in failure.
    pub fn is_finished(&self) -> bool {
        super::conditions::is_true(&self.status, ConditionType::Succeeded)
            || super::conditions::is_true(&self.status, ConditionType::Failed)
    }
}

impl JobSpec {
    pub fn parse(kind: &JobKind, spec: &Value) -> Result<JobSpec, ParseError> {
        Ok(JobSpec {
            run_policy: field(spec, "spec", "runPolicy")?,
            replica_specs: field(spec, "spec", kind.replica_specs)?,
            elastic_policy: field(spec, "spec", "elasticPolicy")?,
            nproc_per_node: field(spec, "spec", "nprocPerNode")?,
            success_policy: field(spec, "spec", "successPolicy")?,
            enable_dynamic_worker: field(spec, "spec", "enableDynamicWorker")?,
        })
    }
}

/// The name of a pod and of its service.
pub fn replica_name(job: &str, role: &str, index: i32) -> String {
    format!("{job}-{}-{index}", role.to_lowercase()).replace('/', "-")
}
