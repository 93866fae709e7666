//! A cluster as maps: enough of an API server to replay recorded scenarios against the pure decider.
//!
//! It knows what changes the objects that the operator sees: merge patches, CRD defaults, admission, graceful
//! deletion of bound pods. It knows no garbage collection, as the recordings were made without.

// Each test binary uses a part of this.
#![allow(dead_code, unreachable_pub, clippy::panic)]

use jiff::{SignedDuration, Timestamp};
use kube::core::DynamicObject;
use muster_api::training::{Job, JobKind, defaults, types::replica_name};
use muster_operator::training::framework::Framework;
use muster_operator::training::observe::{
    Observed, ObservedAutoscaler, ObservedPod, ObservedPodGroup, ObservedService, RendezvousAccess,
};
use muster_operator::training::plan::{Create, Delete, Event, Plan, Reason, Resource, Severity};
use muster_operator::training::{Policy, decide};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Objects by section and name, as a snapshot has them.
pub type Objects = BTreeMap<&'static str, BTreeMap<String, Value>>;

pub const POD: &str = "pods";
pub const SERVICE: &str = "services";
pub const JOB: &str = "jobs";
pub const AUTOSCALER: &str = "horizontalpodautoscalers";
pub const POD_GROUP: &str = "podgroups";
pub const SECRET: &str = "secrets";

fn section(resource: Resource) -> &'static str {
    match resource {
        Resource::Secret => SECRET,
        Resource::PodGroup | Resource::VolcanoPodGroup => POD_GROUP,
        Resource::HorizontalPodAutoscaler => AUTOSCALER,
        Resource::Service => SERVICE,
        Resource::Pod => POD,
    }
}

/// An event as scenarios compare it: object, type, reason, message.
pub type EventKey = (String, String, String, String);

pub struct World {
    pub policy: Policy,
    pub now: Timestamp,
    pub objects: Objects,
    pub events: Vec<EventKey>,
    pub free_ports: Vec<u16>,
    pub rendezvous: Option<RendezvousAccess>,
    /// Names of pods whose creation the API server refuses.
    pub refused_pods: BTreeMap<String, String>,
    /// Running pods without a node that a user has deleted: the operator sees them go before they are gone.
    vanishing: Vec<String>,
    next: u64,
}

/// The schemas of the kinds, by kind.
static SCHEMAS: LazyLock<BTreeMap<String, Value>> = LazyLock::new(|| {
    let schema = |crd: Value| {
        let kind = crd["spec"]["names"]["kind"].as_str()?.to_owned();
        Some((kind, crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()))
    };
    muster_api::crds().into_iter().filter_map(schema).collect()
});

pub fn start() -> Timestamp {
    "2030-01-01T00:00:00Z".parse().expect("a valid time")
}

impl World {
    pub fn new(policy: Policy) -> World {
        World {
            policy,
            now: start(),
            objects: Objects::new(),
            events: Vec::new(),
            free_ports: Vec::new(),
            rendezvous: None,
            refused_pods: BTreeMap::new(),
            vanishing: Vec::new(),
            next: 0,
        }
    }

    pub fn advance(&mut self, seconds: i64) {
        self.now = self.now.checked_add(SignedDuration::from_secs(seconds)).expect("a valid time");
    }

    fn unique(&mut self) -> String {
        self.next += 1;
        format!("00000000-0000-0000-0000-{:012}", self.next)
    }

    pub fn get(&self, section: &'static str, name: &str) -> Option<&Value> {
        self.objects.get(section)?.get(name)
    }

    fn get_mut(&mut self, section: &'static str, name: &str) -> Option<&mut Value> {
        self.objects.get_mut(section)?.get_mut(name)
    }

    fn put(&mut self, section: &'static str, key: &str, mut object: Value) {
        self.next += 1;
        object["metadata"]["resourceVersion"] = json!(self.next.to_string());
        self.objects.entry(section).or_default().insert(key.to_owned(), object);
    }

    fn remove(&mut self, section: &'static str, key: &str) {
        if let Some(objects) = self.objects.get_mut(section) {
            objects.remove(key);
        }
    }

    // ---- what users do

    /// Creates a job, or says why it is refused.
    pub fn create_job(&mut self, namespace: &str, object: &Value) -> Result<Vec<String>, String> {
        let kind = object["kind"].as_str().expect("a kind").to_owned();
        let mut object = object.clone();
        self.default(&kind, &mut object);
        let warnings = muster_api::admission::review(&kind, None, &object)?;
        object["metadata"]["namespace"] = json!(namespace);
        object["metadata"]["uid"] = json!(self.unique());
        let key = format!("{kind}/{}", object["metadata"]["name"].as_str().expect("a name"));
        self.put(JOB, &key, object);
        Ok(warnings)
    }

    /// Merge-patches a job as a user does, or says why that is refused.
    pub fn patch_job(&mut self, key: &str, patch: &Value) -> Result<Vec<String>, String> {
        let kind = key.split('/').next().expect("Kind/name").to_owned();
        let old = self.get(JOB, key).expect("the job").clone();
        let mut new = old.clone();
        merge(&mut new, patch);
        self.default(&kind, &mut new);
        let warnings = muster_api::admission::review(&kind, Some(&old), &new)?;
        self.put(JOB, key, new);
        Ok(warnings)
    }

    pub fn scale(&mut self, key: &str, replicas: i64) {
        let kind = JobKind::by_kind(key.split('/').next().expect("Kind/name")).expect("a job kind");
        let role = kind.scale_role.expect("a scale subresource");
        let mut job = self.get(JOB, key).expect("the job").clone();
        job["spec"][kind.replica_specs][role]["replicas"] = json!(replicas);
        self.put(JOB, key, job);
    }

    /// A user deletes something.
    pub fn delete_by_hand(&mut self, section: &'static str, name: &str) {
        let running = self.get(section, name).is_some_and(|object| object["status"]["phase"] == "Running");
        if section == POD && running {
            let stamp = muster_api::clock::rfc3339(self.now);
            let mut pod = self.get(section, name).expect("the pod").clone();
            if !pod["spec"]["nodeName"].is_string() {
                pod["metadata"]["deletionTimestamp"] = json!(stamp);
                self.put(section, name, pod);
                self.vanishing.push(name.to_owned());
                return;
            }
        }
        self.delete(section, name, false);
    }

    /// Deletes anything; a bound pod that has not ended stays until it is reaped.
    pub fn delete(&mut self, section: &'static str, name: &str, now: bool) {
        let Some(object) = self.get(section, name) else { return };
        let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let graceful = section == POD && object["spec"]["nodeName"].is_string() && !ended && !now;
        if graceful {
            let stamp = muster_api::clock::rfc3339(self.now);
            let mut object = object.clone();
            object["metadata"]["deletionTimestamp"] = json!(stamp);
            object["metadata"]["deletionGracePeriodSeconds"] = json!(30);
            self.put(section, name, object);
        } else {
            self.remove(section, name);
        }
    }

    pub fn bind(&mut self, name: &str) {
        let mut pod = self.get(POD, name).expect("the pod").clone();
        pod["spec"]["nodeName"] = json!("node-0");
        self.put(POD, name, pod);
    }

    /// What a kubelet reports.
    pub fn report(&mut self, name: &str, status: &Value) {
        let mut pod = self.get(POD, name).expect("the pod").clone();
        merge(&mut pod, &json!({ "status": status }));
        self.put(POD, name, pod);
    }

    fn default(&self, kind: &str, object: &mut Value) {
        if let Some(schema) = SCHEMAS.get(kind) {
            fill_defaults(schema, object);
        }
    }

    // ---- what the operator does

    pub fn observe(&self, key: &str) -> Option<(Observed, &'static Framework)> {
        let framework = Framework::by_kind(key.split('/').next()?)?;
        let mut job = Job::parse(framework.kind, self.get(JOB, key)?).expect("a job");
        defaults::apply(&mut job);
        let owned = |section: &'static str| {
            let uid = job.uid.clone();
            self.objects.get(section).into_iter().flatten().filter_map(move |(name, object)| {
                let owner = &object["metadata"]["ownerReferences"][0]["uid"];
                let object: DynamicObject = serde_json::from_value(object.clone()).expect("an object");
                (owner == uid.as_str()).then(|| (name.clone(), object))
            })
        };
        let observed = Observed {
            pods: owned(POD).map(|(name, object)| (name, ObservedPod::read(&object))).collect(),
            services: owned(SERVICE).map(|(name, object)| (name, ObservedService::read(&object))).collect(),
            pod_group: owned(POD_GROUP).map(|(_, object)| ObservedPodGroup::read(&object)).next(),
            autoscaler: owned(AUTOSCALER).map(|(_, object)| ObservedAutoscaler::read(&object)).next(),
            free_ports: self.free_ports.clone(),
            rendezvous: self.rendezvous.clone(),
            job,
        };
        Some((observed, framework))
    }

    pub fn decide(&self, key: &str) -> Option<Plan> {
        let (observed, framework) = self.observe(key)?;
        Some(decide(self.now, &observed, framework, &self.policy))
    }

    /// Lets the operator work until nothing is left to be done.
    pub fn settle(&mut self) {
        for _ in 0..50 {
            let settled = self.round();
            let vanishing = std::mem::take(&mut self.vanishing);
            if settled && vanishing.is_empty() {
                return;
            }
            vanishing.iter().for_each(|name| self.remove(POD, name));
        }
        panic!("the operator does not come to rest");
    }

    /// One pass over every job. True where nothing was to be done but what fails every time.
    fn round(&mut self) -> bool {
        let jobs: Vec<String> = self.objects.get(JOB).into_iter().flatten().map(|(key, _)| key.clone()).collect();
        let mut settled = true;
        for key in jobs {
            let Some(mut plan) = self.decide(&key) else { continue };
            let all = plan.clone();
            plan.creates.retain(|create| !self.refused_pods.contains_key(&create.name));
            settled &= plan.is_settled();
            self.apply(&key, all);
        }
        settled
    }

    pub fn apply(&mut self, key: &str, plan: Plan) {
        for event in plan.events {
            self.record(key, event);
        }
        for create in plan.creates {
            self.create(key, create);
        }
        for update in plan.updates {
            let mut object = self.get(section(update.resource), &update.name).expect("an object").clone();
            merge(&mut object, &update.patch);
            self.put(section(update.resource), &update.name, object);
        }
        if let Some(status) = plan.status {
            let mut job = self.get(JOB, key).expect("the job").clone();
            job["status"] = serde_json::to_value(status).expect("a status");
            self.put(JOB, key, job);
        }
        for delete in plan.deletes {
            self.delete_owned(key, delete);
        }
        if plan.delete_job {
            let framework = Framework::by_kind(key.split('/').next().expect("a kind")).expect("a framework");
            let reason =
                if framework.expired_as_job { Reason::SuccessfulDeleteJob } else { Reason::SuccessfulDeletePod };
            let name = key.split('/').nth(1).expect("a name");
            self.record(key, Event { severity: Severity::Normal, reason, message: format!("Deleted job: {name}") });
            self.remove(JOB, key);
        }
    }

    fn record(&mut self, key: &str, event: Event) {
        let (severity, reason) = (event.severity.to_string(), event.reason.to_string());
        self.events.push((key.to_owned(), severity, reason, event.message));
    }

    fn create(&mut self, key: &str, create: Create) {
        let event = |reason, message| Event { severity: Severity::Normal, reason, message };
        if let Some(message) = self.refused_pods.get(&create.name).cloned().filter(|_| create.resource == Resource::Pod)
        {
            let reason = Reason::FailedCreatePod;
            self.record(key, Event { severity: Severity::Warning, reason, message });
            return;
        }
        assert!(self.get(section(create.resource), &create.name).is_none(), "{} exists already", create.name);
        let mut object = create.object;
        object["metadata"]["uid"] = json!(self.unique());
        match create.resource {
            Resource::Pod => {
                object["status"] = json!({"phase": "Pending"});
                self.record(key, event(Reason::SuccessfulCreatePod, format!("Created pod: {}", create.name)));
            }
            Resource::Service => {
                self.record(key, event(Reason::SuccessfulCreateService, format!("Created service: {}", create.name)));
            }
            _ => {}
        }
        self.put(section(create.resource), &create.name, object);
    }

    fn delete_owned(&mut self, key: &str, delete: Delete) {
        let Some(object) = self.get(section(delete.resource), &delete.name) else { return };
        if object["metadata"]["uid"] != delete.uid.as_str() {
            return;
        }
        self.delete(section(delete.resource), &delete.name, false);
        let (reason, what) = match delete.resource {
            Resource::Pod => (Reason::SuccessfulDeletePod, "pod"),
            Resource::Service => (Reason::SuccessfulDeleteService, "service"),
            Resource::PodGroup | Resource::VolcanoPodGroup => (Reason::SuccessfulDeletePodGroup, "PodGroup"),
            _ => return,
        };
        let message = format!("Deleted {what}: {}", delete.name);
        self.record(key, Event { severity: Severity::Normal, reason, message });
    }

    // ---- what tests ask

    pub fn pod_names(&self) -> Vec<String> {
        self.objects.get(POD).into_iter().flatten().map(|(name, _)| name.clone()).collect()
    }

    pub fn condition(&self, key: &str, kind: &str) -> Option<Value> {
        let conditions = self.get(JOB, key)?["status"]["conditions"].as_array()?;
        conditions.iter().find(|condition| condition["type"] == kind).cloned()
    }

    pub fn is(&self, key: &str, kind: &str) -> bool {
        self.condition(key, kind).is_some_and(|condition| condition["status"] == "True")
    }

    /// The value of an environment variable of a pod's first container; the last one of a name counts.
    pub fn env(&self, role: &str, index: i32, name: &str) -> Option<String> {
        let pod = self.get(POD, &replica_name("demo", role, index))?;
        let list = pod["spec"]["containers"][0]["env"].as_array()?;
        let found = list.iter().rfind(|variable| variable["name"] == name)?;
        Some(found["value"].as_str().unwrap_or_default().to_owned())
    }
}

/// RFC 7386.
pub fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// The defaults of a structural schema.
fn fill_defaults(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (name, child) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(default) = child.get("default").filter(|_| !object.contains_key(name)) {
                    object.insert(name.clone(), default.clone());
                }
                if let Some(value) = object.get_mut(name) {
                    fill_defaults(child, value);
                }
            }
            if schema["additionalProperties"].is_object() {
                object.values_mut().for_each(|value| fill_defaults(&schema["additionalProperties"], value));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill_defaults(&schema["items"], item)),
        _ => {}
    }
}

/// A status as a kubelet writes it.
pub fn pod_status(phase: &str, container: &str, exit_code: Option<i64>, restarts: i64) -> Value {
    let state = match exit_code {
        Some(code) => json!({"terminated": {"exitCode": code, "reason": "Error"}}),
        None => json!({"running": {}}),
    };
    json!({
        "phase": phase,
        "containerStatuses": [{"name": container, "restartCount": restarts, "state": state}],
    })
}
