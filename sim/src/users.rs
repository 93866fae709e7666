//! The users: they submit jobs, suspend and resume them, and delete them, whatever the controllers are up to.

use std::time::Duration;

use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::json;
use tokio::time::Instant;

use crate::history::Shared;
use crate::scenario::{JobPlan, NAMESPACES, Scenario};

enum Act<'a> {
    Submit,
    Suspend(&'a bool),
    Delete,
}

/// Does all that the scenario says, in order of time.
pub async fn run(scenario: &Scenario, client: kube::Client, history: Shared) -> Result<(), kube::Error> {
    let start = Instant::now();
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client.clone());
    for name in NAMESPACES.iter().filter(|name| **name != "default") {
        let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).expect("a namespace");
        namespaces.create(&PostParams::default(), &namespace).await?;
    }
    let mut acts: Vec<(Duration, &JobPlan, Act<'_>)> = Vec::new();
    for job in &scenario.jobs {
        acts.push((job.submit_at, job, Act::Submit));
        acts.extend(job.suspend.iter().map(|(at, to)| (*at, job, Act::Suspend(to))));
        acts.extend(job.delete_at.map(|at| (at, job, Act::Delete)));
    }
    acts.sort_by_key(|(at, job, _)| (*at, &job.name));
    for (at, job, act) in acts {
        tokio::time::sleep_until(start + at).await;
        let kind = job.manifest["kind"].as_str().unwrap_or_default();
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("kubeflow.org", "v1", kind), job.plural);
        let jobs: Api<DynamicObject> = Api::namespaced_with(client.clone(), job.namespace, &resource);
        let outcome = match act {
            Act::Submit => {
                let object = serde_json::from_value(job.manifest.clone()).expect("a job");
                jobs.create(&PostParams::default(), &object).await.map(drop)
            }
            Act::Suspend(to) => {
                let patch = json!({"spec": {"runPolicy": {"suspend": to}}});
                jobs.patch(&job.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
            }
            Act::Delete => jobs.delete(&job.name, &DeleteParams::background()).await.map(drop),
        };
        match outcome {
            Ok(()) => {}
            // It may have lived out its time already.
            Err(kube::Error::Api(status)) if status.code == 404 => history.note(format_args!("{} is gone", job.name)),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
