//! Carries out a plan: the only place of the training operator that changes anything.

use super::metrics::{self, Metrics};
use super::plan::{Create, Delete, Event, Plan, Reason, Resource, Update};
use super::state::{JobKey, Look, State};
use crate::shell::cache::Identity;
use crate::shell::resource::{Deleted, Objects, RequestError};
use futures::stream::{self, StreamExt};
use kube::Client;
use kube::core::{ApiResource, DynamicObject};
use muster_api::training::JobStatus;
use muster_api::training::kind::{API_VERSION, GROUP, VERSION};
use muster_events::{Recorder, Severity, Subject};

/// How many requests of one plan are under way at once.
const WIDTH: usize = 64;

/// Something did not work, or the job has changed meanwhile: look again later, or when a watch shows the change.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure;

/// Carries out the plans of one job.
pub(super) struct Applier<'a> {
    pub client: &'a Client,
    pub state: &'a State,
    pub recorder: &'a Recorder,
    pub metrics: &'a Metrics,
    pub key: &'a JobKey,
    pub subject: Subject,
}

impl<'a> Applier<'a> {
    pub(super) fn subject(key: &JobKey, uid: &str) -> Subject {
        let kind = key.framework().kind;
        Subject {
            api_version: API_VERSION.to_owned(),
            kind: kind.kind.to_owned(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            uid: uid.to_owned(),
            field_path: None,
        }
    }

    fn record(&self, severity: Severity, reason: &Reason, message: &str) {
        let component = self.key.framework().kind.operator_name;
        self.recorder.record(&self.subject, component, severity, &reason.to_string(), message);
    }

    fn objects(&self, resource: &ApiResource) -> Objects {
        Objects::new(self.client, resource, &self.key.namespace)
    }

    /// Secrets first; then everything else that is made or changed, and the status; then the deletions.
    pub(super) async fn apply(&self, look: &Look, plan: Plan) -> Result<(), Failure> {
        let (secrets, others): (Vec<_>, Vec<_>) =
            plan.creates.into_iter().partition(|create| create.resource == Resource::Secret);
        for secret in secrets {
            self.create(secret).await?;
        }
        let creations = stream::iter(others).map(|create| self.create(create)).buffer_unordered(WIDTH);
        let updates = stream::iter(plan.updates).map(|update| self.update(update)).buffer_unordered(WIDTH);
        let (created, updated, status) = futures::join!(
            creations.collect::<Vec<_>>(),
            updates.collect::<Vec<_>>(),
            self.store_status(look, plan.status),
        );
        status?;
        for Event { severity, reason, message } in &plan.events {
            self.record(*severity, reason, message);
        }
        for count in plan.counts {
            self.metrics.count(count, &self.key.namespace, self.key.framework().kind.framework);
        }
        let deletions = stream::iter(plan.deletes).map(|delete| self.delete(delete)).buffer_unordered(WIDTH);
        let deleted = deletions.collect::<Vec<_>>().await;
        if plan.delete_job {
            self.delete_job().await?;
        }
        created.into_iter().chain(updated).chain(deleted).collect()
    }

    async fn store_status(&self, look: &Look, status: Option<JobStatus>) -> Result<(), Failure> {
        let Some(status) = status else { return Ok(()) };
        let mut object = look.object.clone();
        let status = serde_json::to_value(status).expect("a status serializes");
        if !object.data.is_object() {
            object.data = serde_json::json!({});
        }
        object.data["status"] = status;
        object.metadata.managed_fields = None;
        match self.objects(&self.job_resource()).replace_status(&self.key.name, &object).await {
            Ok(object) => {
                self.state.wrote_job(self.key.framework, object);
                Ok(())
            }
            Err(RequestError::Conflict(_) | RequestError::NotFound(_)) => Err(Failure),
            Err(error) => {
                tracing::warn!(job = %self.key.name, namespace = %self.key.namespace, %error, "status not stored");
                Err(Failure)
            }
        }
    }

    fn job_resource(&self) -> ApiResource {
        let kind = self.key.framework().kind;
        crate::shell::resource::resource(GROUP, VERSION, kind.kind, kind.plural)
    }

    async fn create(&self, create: Create) -> Result<(), Failure> {
        let Create { resource, name, object } = create;
        let objects = self.objects(&resource.resource());
        match objects.create(object).await {
            Ok(object) => {
                self.state.created(resource, &object);
                self.created(resource, &name);
                Ok(())
            }
            Err(RequestError::AlreadyExists(message)) => match objects.get(&name).await {
                // It was made before, and the watch has not shown it yet.
                Ok(existing) if self.owns(&existing) => {
                    self.state.created(resource, &existing);
                    if resource == Resource::Secret { Ok(()) } else { Err(Failure) }
                }
                Ok(_) => self.not_created(resource, &message),
                Err(_) => Err(Failure),
            },
            Err(error) => self.not_created(resource, &error.to_string()),
        }
    }

    fn owns(&self, object: &DynamicObject) -> bool {
        Identity::of(object).owner.is_some_and(|owner| owner.uid == self.subject.uid)
    }

    fn created(&self, resource: Resource, name: &str) {
        match resource {
            Resource::Pod => {
                self.metrics.total(metrics::CREATED_PODS);
                self.record(Severity::Normal, &Reason::SuccessfulCreatePod, &format!("Created pod: {name}"));
            }
            Resource::Service => {
                self.metrics.total(metrics::CREATED_SERVICES);
                self.record(Severity::Normal, &Reason::SuccessfulCreateService, &format!("Created service: {name}"));
            }
            Resource::PodGroup | Resource::VolcanoPodGroup => self.metrics.total(metrics::CREATED_POD_GROUPS),
            Resource::Secret | Resource::HorizontalPodAutoscaler => {}
        }
    }

    fn not_created(&self, resource: Resource, error: &str) -> Result<(), Failure> {
        let reason = match resource {
            Resource::Pod => Reason::FailedCreatePod,
            Resource::Service => {
                self.metrics.total(metrics::FAILED_SERVICES);
                Reason::FailedCreateService
            }
            _ => Reason::FailedCreate,
        };
        self.record(Severity::Warning, &reason, &format!("Error creating: {error}"));
        Err(Failure)
    }

    async fn update(&self, update: Update) -> Result<(), Failure> {
        match self.objects(&update.resource.resource()).merge(&update.name, &update.patch).await {
            Ok(object) => {
                self.state.updated(update.resource, &object);
                Ok(())
            }
            Err(error) => {
                tracing::debug!(name = %update.name, %error, "not updated");
                Err(Failure)
            }
        }
    }

    async fn delete(&self, delete: Delete) -> Result<(), Failure> {
        let Delete { resource, name, uid } = delete;
        let key = (self.key.namespace.clone(), name.clone());
        let outcome = self.objects(&resource.resource()).delete(&name, &uid).await;
        // Told once, when it has come true: passes before have failed, and passes after see no group.
        if matches!(resource, Resource::PodGroup | Resource::VolcanoPodGroup)
            && matches!(outcome, Ok(_) | Err(RequestError::NotFound(_)))
        {
            self.record(Severity::Normal, &Reason::JobTerminated, "Job has been terminated. Deleting PodGroup");
        }
        match outcome {
            Ok(outcome) => {
                self.state.deleted(resource, &key, &uid, &outcome);
                let (reason, what) = match resource {
                    Resource::Pod => {
                        self.metrics.total(metrics::DELETED_PODS);
                        (Reason::SuccessfulDeletePod, "pod")
                    }
                    Resource::Service => (Reason::SuccessfulDeleteService, "service"),
                    Resource::PodGroup | Resource::VolcanoPodGroup => {
                        self.metrics.total(metrics::DELETED_POD_GROUPS);
                        (Reason::SuccessfulDeletePodGroup, "PodGroup")
                    }
                    Resource::Secret | Resource::HorizontalPodAutoscaler => return Ok(()),
                };
                self.record(Severity::Normal, &reason, &format!("Deleted {what}: {name}"));
                Ok(())
            }
            Err(RequestError::NotFound(_)) => {
                self.state.deleted(resource, &key, &uid, &Deleted::Gone);
                Ok(())
            }
            Err(RequestError::Conflict(_)) => Err(Failure),
            Err(error) => {
                let reason = match resource {
                    Resource::Pod => Reason::FailedDeletePod,
                    Resource::Service => Reason::FailedDeleteService,
                    _ => Reason::FailedDeletePodGroup,
                };
                self.record(Severity::Warning, &reason, &format!("Error deleting: {error}"));
                Err(Failure)
            }
        }
    }

    async fn delete_job(&self) -> Result<(), Failure> {
        let framework = self.key.framework();
        match self.objects(&self.job_resource()).delete(&self.key.name, &self.subject.uid).await {
            Ok(outcome) => {
                self.state.deleted_job(self.key, &self.subject.uid, outcome);
                self.metrics.job(metrics::DELETED_JOBS, &self.key.namespace, framework.kind.framework);
                let reason =
                    if framework.expired_as_job { Reason::SuccessfulDeleteJob } else { Reason::SuccessfulDeletePod };
                self.record(Severity::Normal, &reason, &format!("Deleted job: {}", self.key.name));
                Ok(())
            }
            Err(RequestError::Conflict(_)) => Err(Failure),
            Err(RequestError::NotFound(_)) => {
                self.state.deleted_job(self.key, &self.subject.uid, Deleted::Gone);
                Ok(())
            }
            Err(error) => {
                let reason = if framework.expired_as_job { Reason::FailedDeleteJob } else { Reason::FailedDeletePod };
                self.record(Severity::Warning, &reason, &format!("Error deleting: {error}"));
                Err(Failure)
            }
        }
    }
}
