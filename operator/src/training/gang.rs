//! Pod groups, for the schedulers that place all pods of a job or none.

use super::decide::{Pass, Policy, owner_reference};
use super::framework::Replica;
use super::plan::{Create, Resource, Update};
use super::pod::insert;
use muster_api::clock::rfc3339;
use muster_api::names::{annotation, label};
use muster_api::quantity::Quantity;
use muster_api::training::pod_group;
use muster_api::training::types::Job;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const VOLCANO: &str = "volcano";

/// The form of pod group that the chosen scheduler reads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Gang<'a> {
    Volcano,
    /// scheduler-plugins, and every scheduler that reads its pod groups, Muster's own among them.
    SchedulerPlugins(&'a str),
}

impl<'a> Gang<'a> {
    pub(super) fn of(policy: &'a Policy) -> Option<Gang<'a>> {
        policy.gang_scheduler.as_deref().map(|name| match name {
            VOLCANO => Gang::Volcano,
            name => Gang::SchedulerPlugins(name),
        })
    }

    fn scheduler(self) -> &'a str {
        match self {
            Gang::Volcano => VOLCANO,
            Gang::SchedulerPlugins(name) => name,
        }
    }

    fn resource(self) -> Resource {
        match self {
            Gang::Volcano => Resource::VolcanoPodGroup,
            Gang::SchedulerPlugins(_) => Resource::PodGroup,
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Gang::Volcano => "scheduling.volcano.sh/v1beta1",
            Gang::SchedulerPlugins(_) => pod_group::API_VERSION,
        }
    }

    /// Some role names another scheduler, which is left to it.
    pub(super) fn is_overruled(self, job: &Job) -> bool {
        job.replica_specs().values().any(|spec| {
            let name = spec.template["spec"]["schedulerName"].as_str().unwrap_or_default();
            !name.is_empty() && name != self.scheduler()
        })
    }

    /// Marks a pod as a member of its job's group.
    pub(super) fn decorate(
        self,
        job: &Job,
        replica: Replica<'_>,
        metadata: &mut Map<String, Value>,
        pod_spec: &mut Map<String, Value>,
    ) {
        if pod_spec.get("schedulerName").and_then(Value::as_str).is_none_or(str::is_empty) {
            pod_spec.insert("schedulerName".to_owned(), json!(self.scheduler()));
        }
        match self {
            Gang::Volcano => {
                insert(metadata, "annotations", annotation::VOLCANO_GROUP_NAME, job.name.clone());
                insert(metadata, "annotations", annotation::VOLCANO_TASK_SPEC, replica.role.to_lowercase());
            }
            Gang::SchedulerPlugins(_) => insert(metadata, "labels", label::POD_GROUP, job.name.clone()),
        }
    }

    fn spec(self, job: &Job, existing: Option<&Value>) -> Value {
        let policy = job.spec.run_policy.scheduling_policy.clone().unwrap_or_default();
        let members = policy.min_available.unwrap_or_else(|| job.total_replicas());
        let resources = policy
            .min_resources
            .map(|given| given.into_iter().collect())
            .unwrap_or_else(|| min_resources(job, members));
        let mut spec = Map::new();
        spec.insert("minMember".to_owned(), json!(members));
        match self {
            Gang::Volcano => {
                // The queue of a group is never changed once it is set.
                let kept = existing.and_then(|spec| spec["queue"].as_str()).filter(|queue| !queue.is_empty());
                let asked = Some(policy.queue.as_str()).filter(|queue| !queue.is_empty());
                spec.insert("queue".to_owned(), json!(kept.or(asked).unwrap_or("default")));
                if !policy.priority_class.is_empty() {
                    spec.insert("priorityClassName".to_owned(), json!(policy.priority_class));
                }
                spec.insert("minResources".to_owned(), Value::Object(resources));
            }
            Gang::SchedulerPlugins(_) => {
                if !resources.is_empty() {
                    spec.insert("minResources".to_owned(), Value::Object(resources));
                }
                if let Some(seconds) = policy.schedule_timeout_seconds {
                    spec.insert("scheduleTimeoutSeconds".to_owned(), json!(seconds));
                }
            }
        }
        Value::Object(spec)
    }
}

/// What the first `members` pods ask for, in the order of the roles: requests, or limits where there are none.
fn min_resources(job: &Job, members: i32) -> Map<String, Value> {
    let mut sum: BTreeMap<String, Quantity> = BTreeMap::new();
    let mut left = members.max(0);
    for (_, spec) in job.roles() {
        let pods = spec.count().min(left);
        left -= pods;
        if pods == 0 {
            continue;
        }
        for container in spec.containers() {
            let resources = &container["resources"];
            let wanted = resources["requests"].as_object().or_else(|| resources["limits"].as_object());
            for (name, amount) in wanted.into_iter().flatten() {
                let text = amount.as_str().map_or_else(|| amount.to_string(), str::to_owned);
                let Ok(amount) = text.parse::<Quantity>() else { continue };
                let amount = amount.times(i64::from(pods));
                sum.entry(name.clone()).and_modify(|total| *total = *total + amount).or_insert(amount);
            }
        }
    }
    sum.into_iter().map(|(name, amount)| (name, json!(amount.to_string()))).collect()
}

/// Keeps the job's pod group up to date. False where pods must wait for it.
pub(super) fn admit(pass: &mut Pass<'_>) -> bool {
    let Some(gang) = Gang::of(pass.policy) else { return true };
    let job = &pass.observed.job;
    let existing = pass.observed.pod_group.as_ref();
    let spec = gang.spec(job, existing.map(|group| &group.spec));
    match existing {
        None => {
            let mut metadata = json!({
                "name": job.name,
                "namespace": job.namespace,
                "ownerReferences": [owner_reference(job)],
            });
            if !job.annotations.is_empty() {
                metadata["annotations"] = json!(job.annotations);
            }
            let object =
                json!({"apiVersion": gang.api_version(), "kind": "PodGroup", "metadata": metadata, "spec": spec});
            pass.plan.creates.push(Create { resource: gang.resource(), name: job.name.clone(), object });
        }
        Some(group) if group.spec != spec && !group.deleting => {
            let mut changes = spec.as_object().cloned().unwrap_or_default();
            for key in group.spec.as_object().into_iter().flatten().map(|(key, _)| key) {
                changes.entry(key.clone()).or_insert(Value::Null);
            }
            if let (Some(old), Some(new)) = (group.spec["minResources"].as_object(), changes.get_mut("minResources"))
                && let Some(new) = new.as_object_mut()
            {
                for key in old.keys() {
                    new.entry(key.clone()).or_insert(Value::Null);
                }
            }
            let patch = json!({"metadata": {"resourceVersion": group.resource_version}, "spec": changes});
            pass.plan.updates.push(Update { resource: gang.resource(), name: job.name.clone(), patch });
        }
        Some(_) => {}
    }
    let waiting = match gang {
        Gang::Volcano => existing.is_none_or(|group| group.phase.is_empty() || group.phase == "Pending"),
        Gang::SchedulerPlugins(_) => false,
    };
    if waiting {
        pass.status.last_reconcile_time.get_or_insert_with(|| rfc3339(pass.now));
    }
    !waiting
}

/// Deletes the job's pod group, if there is one.
pub(super) fn release(pass: &mut Pass<'_>) {
    let Some(gang) = Gang::of(pass.policy) else { return };
    let Some(group) = pass.observed.pod_group.as_ref().filter(|group| !group.deleting) else { return };
    pass.delete(gang.resource(), &pass.observed.job.name, &group.uid);
}
