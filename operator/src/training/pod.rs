//! The pod of one replica: the user's template, completed.

use super::address::Addresses;
use super::decide::{Pass, owner_reference};
use super::framework::{Environment, Replica};
use super::gang::Gang;
use super::plan::{Create, Reason, Resource, Severity};
use super::replicas::replica_labels;
use muster_api::names::{WORKER_IMAGE, annotation, env, label};
use muster_api::training::ReplicaSpec;
use muster_api::training::types::{Job, replica_name};
use muster_planted::{self as planted, Bug};
use serde_json::{Map, Value, json};

/// The key of the job's token in its secret.
const TOKEN_KEY: &str = "token";

/// The secret that holds a job's token for the rendezvous service.
fn token_secret_name(job: &Job) -> String {
    format!("{}-rendezvous", job.name)
}

/// Plans the pod of a replica, and what must exist before it.
pub(super) fn create(pass: &mut Pass<'_>, replica: Replica<'_>, spec: &ReplicaSpec, addresses: &Addresses<'_>) {
    let job = &pass.observed.job;
    let mut pod_spec = spec.template["spec"].as_object().cloned().unwrap_or_default();
    let mut metadata = Map::new();
    for key in ["labels", "annotations", "finalizers"] {
        if let Some(value) = spec.template["metadata"].get(key).filter(|value| !value.is_null()) {
            metadata.insert(key.to_owned(), value.clone());
        }
    }
    let mut name = replica_name(&job.name, replica.role, replica.index);
    if planted::is(Bug::HastySuccessor) && pass.observed.pods.contains_key(&name) {
        name.push_str("-next");
    }
    metadata.insert("name".to_owned(), json!(name));
    metadata.insert("namespace".to_owned(), json!(job.namespace));
    metadata.insert("ownerReferences".to_owned(), json!([owner_reference(job)]));
    let mut labels = replica_labels(job, replica);
    if pass.framework.leads(job, replica) {
        labels.insert(label::JOB_ROLE, label::JOB_ROLE_MASTER.to_owned());
    }
    for (key, value) in labels {
        insert(&mut metadata, "labels", key, value);
    }

    let environment = (pass.framework.environment)(job, addresses, replica);
    add_environment(&mut pod_spec, job.kind.container, &environment);
    add_rendezvous(pass, &metadata, &mut pod_spec);
    add_wait(pass, replica, &mut pod_spec);
    if let Some(port) = addresses.host_port(replica.role, replica.index) {
        use_host_network(&mut pod_spec, job, port);
    }

    if pod_spec.get("restartPolicy").and_then(Value::as_str).is_some_and(|policy| !policy.is_empty()) {
        let message = "Restart policy in pod template will be overwritten by restart policy in replica spec";
        pass.plan.event(Severity::Warning, Reason::SetPodTemplateRestartPolicy, message);
    }
    let restart_policy = spec.restart_policy.as_ref().unwrap_or(&job.kind.restart_policy);
    pod_spec.insert("restartPolicy".to_owned(), json!(restart_policy.of_pod()));
    if let Some(gang) = Gang::of(pass.policy) {
        if gang.is_overruled(job) {
            let message =
                "Another scheduler is specified when gang-scheduling is enabled and it will not be overwritten";
            pass.plan.event(Severity::Warning, Reason::SetPodTemplateSchedulerName, message);
        }
        gang.decorate(job, replica, &mut metadata, &mut pod_spec);
    }

    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec});
    pass.plan.creates.push(Create { resource: Resource::Pod, name, object });
}

/// Sets `parent[map][key]`, making the map where there is none.
pub(super) fn insert(parent: &mut Map<String, Value>, map: &str, key: &str, value: String) {
    let map = parent.entry(map).or_insert_with(|| json!({}));
    if let Some(map) = map.as_object_mut() {
        map.insert(key.to_owned(), json!(value));
    }
}

fn containers<'a>(pod_spec: &'a mut Map<String, Value>, key: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    pod_spec.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// Appends to a container's environment. What the user set under the same name stays, and is outdone by the later one.
fn append_env(container: &mut Map<String, Value>, variables: impl IntoIterator<Item = Value>) {
    let list = container.entry("env").or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        list.extend(variables);
    }
}

/// An environment variable. An empty value is left out, as it is the default.
fn variable(name: &str, value: &str) -> Value {
    if value.is_empty() { json!({"name": name}) } else { json!({"name": name, "value": value}) }
}

fn add_environment(pod_spec: &mut Map<String, Value>, main: &str, environment: &Environment) {
    if environment.variables.is_empty() {
        return;
    }
    let is_main = |container: &Map<String, Value>| container.get("name").is_some_and(|name| name == main);
    for container in containers(pod_spec, "containers") {
        let main = is_main(container);
        if main || !environment.main_container_only {
            append_env(container, environment.variables.iter().map(|(name, value)| variable(name, value)));
        }
        if main && environment.main_container_only {
            break;
        }
    }
}

/// Gives the rendezvous service's address and the job's token to Muster's own worker, and to pods that ask for it.
fn add_rendezvous(pass: &mut Pass<'_>, metadata: &Map<String, Value>, pod_spec: &mut Map<String, Value>) {
    let Some(access) = &pass.observed.rendezvous else { return };
    let job = &pass.observed.job;
    let asked = metadata.get("annotations").is_some_and(|all| all[annotation::RENDEZVOUS] == "true");
    let secret = token_secret_name(job);
    let mut given = false;
    for container in containers(pod_spec, "containers") {
        let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
        let own = image.split(':').next() == Some(WORKER_IMAGE);
        if asked || own {
            given = true;
            let token = json!({"secretKeyRef": {"name": secret, "key": TOKEN_KEY}});
            append_env(
                container,
                [variable(env::RENDEZVOUS, &access.address), json!({"name": env::JOB_TOKEN, "valueFrom": token})],
            );
        }
    }
    if given && !pass.plan.creates.iter().any(|create| create.resource == Resource::Secret) {
        let object = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": secret, "namespace": job.namespace, "ownerReferences": [owner_reference(job)]},
            "type": "Opaque",
            "stringData": {TOKEN_KEY: access.token},
        });
        pass.plan.creates.push(Create { resource: Resource::Secret, name: secret, object });
    }
}

/// Adds the init container that waits for the first pod of another role.
fn add_wait(pass: &Pass<'_>, replica: Replica<'_>, pod_spec: &mut Map<String, Value>) {
    let job = &pass.observed.job;
    let Some(wait) = pass.framework.wait else { return };
    if replica.role != wait.role || !job.has_role(wait.for_role) {
        return;
    }
    let target = replica_name(&job.name, wait.for_role, 0);
    let tries = pass.policy.init_container_tries;
    let script = format!(
        "err=1;for i in $(seq {tries}); do if nslookup {target}; then err=0 && break; fi;echo waiting for master; \
         sleep 2; done; exit $err"
    );
    let container = json!({
        "name": wait.container,
        "image": pass.policy.init_container_image,
        "imagePullPolicy": "IfNotPresent",
        "resources": {
            "limits": {"cpu": "100m", "memory": "20Mi"},
            "requests": {"cpu": "50m", "memory": "10Mi"},
        },
        "command": ["sh", "-c", script],
    });
    let list = pod_spec.entry("initContainers").or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        list.push(container);
    }
}

/// Puts the pod on the machine's own network, its main port being one that no other pod has.
fn use_host_network(pod_spec: &mut Map<String, Value>, job: &Job, port: i32) {
    pod_spec.insert("hostNetwork".to_owned(), json!(true));
    for container in containers(pod_spec, "containers") {
        let ports = container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten();
        for entry in ports.filter(|entry| entry["name"] == job.kind.port_name) {
            entry["containerPort"] = json!(port);
            entry["hostPort"] = json!(port);
        }
    }
}
