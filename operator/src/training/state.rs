//! What the operator knows of the cluster: caches of jobs and of what belongs to them.

use super::address::Addressing;
use super::framework::{FRAMEWORKS, Framework};
use super::observe::{
    Observed, ObservedAutoscaler, ObservedPod, ObservedPodGroup, ObservedService, Phase, RendezvousAccess,
};
use super::plan::Resource;
use super::run::Config;
use crate::shell::cache::{Cache, Identity, Key, typed};
use crate::shell::resource::{Deleted, resource};
use kube::core::{ApiResource, DynamicObject};
use muster_api::training::kind::{API_VERSION, GROUP, VERSION};
use muster_api::training::{Job, defaults, pod_group};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a host port that was handed out stays with its job until a service must show it.
const RESERVED: Duration = Duration::from_secs(60);

/// A job, by the place of its framework, its namespace and its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct JobKey {
    pub framework: usize,
    pub namespace: String,
    pub name: String,
}

impl JobKey {
    pub(super) fn framework(&self) -> &'static Framework {
        FRAMEWORKS[self.framework]
    }

    fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }
}

/// What one watch is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    Jobs(usize),
    Children(Resource),
}

impl Watched {
    pub(super) fn resource(self) -> ApiResource {
        match self {
            Watched::Jobs(framework) => {
                let kind = FRAMEWORKS[framework].kind;
                resource(GROUP, VERSION, kind.kind, kind.plural)
            }
            Watched::Children(child) => child.resource(),
        }
    }
}

impl Resource {
    pub(super) fn resource(self) -> ApiResource {
        match self {
            Resource::Secret => resource("", "v1", "Secret", "secrets"),
            Resource::Service => resource("", "v1", "Service", "services"),
            Resource::Pod => resource("", "v1", "Pod", "pods"),
            Resource::PodGroup => resource(pod_group::GROUP, pod_group::VERSION, pod_group::KIND, pod_group::PLURAL),
            Resource::VolcanoPodGroup => resource("scheduling.volcano.sh", "v1beta1", "PodGroup", "podgroups"),
            Resource::HorizontalPodAutoscaler => {
                resource("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
            }
        }
    }
}

/// A job as it is stored, and as it is read.
#[derive(Clone, Debug)]
pub(super) struct CachedJob {
    pub object: DynamicObject,
    /// Why the object is no job, where it is none.
    pub job: Result<Job, String>,
}

impl CachedJob {
    fn read(framework: usize, object: DynamicObject) -> CachedJob {
        let kind = FRAMEWORKS[framework].kind;
        let object = typed(object, API_VERSION, kind.kind);
        let job = serde_json::to_value(&object).map_err(|error| error.to_string()).and_then(|value| {
            let mut job = Job::parse(kind, &value).map_err(|error| error.to_string())?;
            defaults::apply(&mut job);
            Ok(job)
        });
        CachedJob { object, job }
    }
}

#[derive(Debug, Default)]
struct Caches {
    jobs: [Cache<CachedJob>; FRAMEWORKS.len()],
    pods: Cache<ObservedPod>,
    services: Cache<ObservedService>,
    pod_groups: Cache<ObservedPodGroup>,
    autoscalers: Cache<ObservedAutoscaler>,
    /// Running pods that somebody else deleted, by the uid of their job: each is shown to one pass as it goes, so that
    /// a running pod does not get lost unnoticed, however fast it goes.
    vanished: HashMap<String, Vec<ObservedPod>>,
    /// Host ports that were handed out and no service shows yet.
    reserved: BTreeMap<u16, Instant>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    caches: Mutex<Caches>,
}

/// One look at a job.
pub(super) struct Look {
    pub object: DynamicObject,
    pub observed: Result<Observed, String>,
    /// How many pods are shown that are gone already.
    pub vanished: usize,
}

/// The job that an object belongs to.
fn owner_key(identity: &Identity) -> Option<JobKey> {
    let owner = identity.owner.as_ref().filter(|owner| owner.api_version.starts_with("kubeflow.org/"))?;
    let framework = FRAMEWORKS.iter().position(|framework| framework.kind.kind == owner.kind)?;
    Some(JobKey { framework, namespace: identity.key.0.clone(), name: owner.name.clone() })
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Caches> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A list of a watch begins.
    pub(super) fn begin_list(&self, watched: Watched) {
        let mut caches = self.lock();
        match watched {
            Watched::Jobs(framework) => caches.jobs[framework].begin_list(),
            Watched::Children(Resource::Pod) => caches.pods.begin_list(),
            Watched::Children(Resource::Service) => caches.services.begin_list(),
            Watched::Children(Resource::PodGroup | Resource::VolcanoPodGroup) => caches.pod_groups.begin_list(),
            Watched::Children(Resource::HorizontalPodAutoscaler) => caches.autoscalers.begin_list(),
            Watched::Children(Resource::Secret) => {}
        }
    }

    /// A list is complete. Returns the jobs that it concerns.
    pub(super) fn end_list(&self, watched: Watched) -> Vec<JobKey> {
        let mut caches = self.lock();
        let gone = match watched {
            Watched::Jobs(framework) => caches.jobs[framework].end_list(),
            Watched::Children(Resource::Pod) => caches.pods.end_list(),
            Watched::Children(Resource::Service) => caches.services.end_list(),
            Watched::Children(Resource::PodGroup | Resource::VolcanoPodGroup) => caches.pod_groups.end_list(),
            Watched::Children(Resource::HorizontalPodAutoscaler) => caches.autoscalers.end_list(),
            Watched::Children(Resource::Secret) => Vec::new(),
        };
        gone.iter().filter_map(owner_key).collect()
    }

    /// A watch shows an object. Returns the job that it concerns, if that is news.
    pub(super) fn observe(&self, watched: Watched, object: DynamicObject) -> Option<JobKey> {
        let identity = Identity::of(&object);
        let mut caches = self.lock();
        match watched {
            Watched::Jobs(framework) => {
                let (namespace, name) = identity.key.clone();
                let news = caches.jobs[framework].observe(identity, CachedJob::read(framework, object));
                news.then_some(JobKey { framework, namespace, name })
            }
            Watched::Children(child) => {
                let key = owner_key(&identity)?;
                let news = match child {
                    Resource::Pod => caches.pods.observe(identity, ObservedPod::read(&object)),
                    Resource::Service => caches.services.observe(identity, ObservedService::read(&object)),
                    Resource::PodGroup | Resource::VolcanoPodGroup => {
                        caches.pod_groups.observe(identity, ObservedPodGroup::read(&object))
                    }
                    Resource::HorizontalPodAutoscaler => {
                        caches.autoscalers.observe(identity, ObservedAutoscaler::read(&object))
                    }
                    Resource::Secret => false,
                };
                news.then_some(key)
            }
        }
    }

    /// A watch shows that an object is gone. Returns the job that it concerns.
    pub(super) fn observe_deletion(&self, watched: Watched, object: &DynamicObject) -> Option<JobKey> {
        let identity = Identity::of(object);
        let mut caches = self.lock();
        match watched {
            Watched::Jobs(framework) => {
                caches.jobs[framework].observe_deletion(&identity);
                caches.vanished.remove(&identity.uid);
                let (namespace, name) = identity.key;
                return Some(JobKey { framework, namespace, name });
            }
            Watched::Children(Resource::Pod) => {
                if let Some(pod) = caches.pods.observe_deletion(&identity)
                    && pod.phase == Phase::Running
                    && !pod.deleting
                    && let Some(owner) = &identity.owner
                {
                    let pod = ObservedPod { deleting: true, ..ObservedPod::clone(&pod) };
                    caches.vanished.entry(owner.uid.clone()).or_default().push(pod);
                }
            }
            Watched::Children(Resource::Service) => drop(caches.services.observe_deletion(&identity)),
            Watched::Children(Resource::PodGroup | Resource::VolcanoPodGroup) => {
                caches.pod_groups.observe_deletion(&identity);
            }
            Watched::Children(Resource::HorizontalPodAutoscaler) => {
                caches.autoscalers.observe_deletion(&identity);
            }
            Watched::Children(Resource::Secret) => {}
        }
        owner_key(&identity)
    }

    /// A status of ours was stored.
    pub(super) fn wrote_job(&self, framework: usize, object: DynamicObject) {
        self.lock().jobs[framework].updated(Identity::of(&object), CachedJob::read(framework, object));
    }

    /// A job's deletion by us was answered.
    pub(super) fn deleted_job(&self, key: &JobKey, uid: &str, outcome: Deleted) {
        match outcome {
            Deleted::Gone => self.lock().jobs[key.framework].deleted(&key.key(), uid),
            Deleted::Leaving(object) => self.wrote_job(key.framework, *object),
        }
    }

    /// A creation of ours was answered.
    pub(super) fn created(&self, child: Resource, object: &DynamicObject) {
        let identity = Identity::of(object);
        let mut caches = self.lock();
        match child {
            Resource::Pod => caches.pods.created(identity, ObservedPod::read(object)),
            Resource::Service => caches.services.created(identity, ObservedService::read(object)),
            Resource::PodGroup | Resource::VolcanoPodGroup => {
                caches.pod_groups.created(identity, ObservedPodGroup::read(object));
            }
            Resource::HorizontalPodAutoscaler => {
                caches.autoscalers.created(identity, ObservedAutoscaler::read(object));
            }
            Resource::Secret => {}
        }
    }

    /// An update of ours was answered, or a deletion that leaves the object for a while.
    pub(super) fn updated(&self, child: Resource, object: &DynamicObject) {
        let identity = Identity::of(object);
        let mut caches = self.lock();
        match child {
            Resource::Pod => caches.pods.updated(identity, ObservedPod::read(object)),
            Resource::Service => caches.services.updated(identity, ObservedService::read(object)),
            Resource::PodGroup | Resource::VolcanoPodGroup => {
                caches.pod_groups.updated(identity, ObservedPodGroup::read(object));
            }
            Resource::HorizontalPodAutoscaler => {
                caches.autoscalers.updated(identity, ObservedAutoscaler::read(object));
            }
            Resource::Secret => {}
        }
    }

    /// A deletion of ours was answered.
    pub(super) fn deleted(&self, child: Resource, key: &Key, uid: &str, outcome: &Deleted) {
        if let Deleted::Leaving(object) = outcome {
            return self.updated(child, object);
        }
        let mut caches = self.lock();
        match child {
            Resource::Pod => caches.pods.deleted(key, uid),
            Resource::Service => caches.services.deleted(key, uid),
            Resource::PodGroup | Resource::VolcanoPodGroup => caches.pod_groups.deleted(key, uid),
            Resource::HorizontalPodAutoscaler => caches.autoscalers.deleted(key, uid),
            Resource::Secret => {}
        }
    }

    /// What is known of a job now; `None` where there is none.
    pub(super) fn look(&self, key: &JobKey, config: &Config) -> Option<Look> {
        let mut caches = self.lock();
        let cached: Arc<CachedJob> = caches.jobs[key.framework].get(&key.key())?.clone();
        let object = cached.object.clone();
        let job = match &cached.job {
            Ok(job) => job.clone(),
            Err(error) => return Some(Look { object, observed: Err(error.clone()), vanished: 0 }),
        };
        let mut pods: BTreeMap<String, ObservedPod> =
            caches.pods.owned_by(&job.uid).map(|(key, pod)| (key.1.clone(), ObservedPod::clone(pod))).collect();
        let vanished = caches.vanished.get(&job.uid).map_or(&[][..], Vec::as_slice);
        for pod in vanished {
            pods.entry(pod.name.clone()).or_insert_with(|| pod.clone());
        }
        let vanished = vanished.len();
        let services: BTreeMap<String, ObservedService> = caches
            .services
            .owned_by(&job.uid)
            .map(|(key, service)| (key.1.clone(), ObservedService::clone(service)))
            .collect();
        let pod_group = caches.pod_groups.owned_by(&job.uid).map(|(_, group)| ObservedPodGroup::clone(group)).next();
        let autoscaler =
            caches.autoscalers.owned_by(&job.uid).map(|(_, scaler)| ObservedAutoscaler::clone(scaler)).next();
        let wanted = usize::try_from(job.total_replicas()).unwrap_or(0);
        let held = services.values().filter(|service| service.ports.contains_key(job.kind.port_name)).count();
        let free_ports = match config.addressing {
            Addressing::HostPorts if !job.is_finished() && !job.spec.run_policy.is_suspended() && held < wanted => {
                free_ports(&mut caches, wanted - held, config)
            }
            _ => Vec::new(),
        };
        let rendezvous = config.rendezvous.as_ref().map(|rendezvous| RendezvousAccess {
            address: rendezvous.address.clone(),
            token: (rendezvous.job_token)(&job.namespace, &job.name, &job.uid),
        });
        let observed = Observed { job, pods, services, pod_group, autoscaler, free_ports, rendezvous };
        Some(Look { object, observed: Ok(observed), vanished })
    }

    /// A pass has taken account of this many vanished pods of a job. True where that leaves something to be done.
    pub(super) fn forget_vanished(&self, uid: &str, count: usize) -> bool {
        let mut caches = self.lock();
        if let Some(pods) = caches.vanished.get_mut(uid) {
            pods.drain(..count.min(pods.len()));
            if pods.is_empty() {
                caches.vanished.remove(uid);
            }
        }
        count > 0
    }
}

/// Host ports that no service holds, that were not just handed out, and that nothing listens on.
fn free_ports(caches: &mut Caches, wanted: usize, config: &Config) -> Vec<u16> {
    let now = Instant::now();
    caches.reserved.retain(|_, since| now.duration_since(*since) < RESERVED);
    let ports = &config.host_ports;
    let size = u64::from(ports.end().saturating_sub(*ports.start())) + 1;
    let mut taken: std::collections::HashSet<i32> =
        caches.services.values().flat_map(|service| service.ports.values().copied()).collect();
    taken.extend(caches.reserved.keys().map(|port| i32::from(*port)));
    let first = config.random.below(size);
    let mut free = Vec::new();
    for step in 0..size {
        if free.len() == wanted {
            break;
        }
        let offset = u16::try_from((first + step) % size).unwrap_or(0);
        let port = ports.start().saturating_add(offset);
        if !taken.contains(&i32::from(port)) && (config.port_is_free)(port) {
            free.push(port);
        }
    }
    caches.reserved.extend(free.iter().map(|port| (*port, now)));
    free
}
