//! The running operator against a small API of its own: what a pure decider cannot show. Watches lag, writes conflict,
//! the operator is killed and started again.

mod fake_api;

use fake_api::FakeApi;
use muster_operator::training::{Config, Metrics, run};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

struct Running {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    metrics: Metrics,
}

async fn start(api: &FakeApi) -> Running {
    start_with(api, Config::default()).await
}

async fn start_with(api: &FakeApi, config: Config) -> Running {
    let (ready, is_ready) = oneshot::channel();
    let stop = CancellationToken::new();
    let metrics = Metrics::default();
    let config = Config { metrics: metrics.clone(), ..config };
    let (client, token) = (api.client(), stop.clone());
    let task = tokio::spawn(async move { run(client, config, ready, token).await.expect("the operator runs") });
    is_ready.await.expect("the operator is ready");
    Running { stop, task, metrics }
}

impl Running {
    async fn end(self) {
        self.stop.cancel();
        self.task.await.expect("the operator ends");
    }

    /// As a process dies: nothing is finished.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

fn job(name: &str, replicas: i32, restart_policy: &str, run_policy: Value) -> Value {
    json!({
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name, "namespace": "ns"},
        "spec": {
            "runPolicy": run_policy,
            "pytorchReplicaSpecs": {"Worker": {
                "replicas": replicas,
                "restartPolicy": restart_policy,
                "template": {"spec": {"containers": [{"name": "pytorch", "image": "i"}]}},
            }},
        },
    })
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn has_condition(api: &FakeApi, name: &str, kind: &str) -> bool {
    let job = api.get("pytorchjobs", "ns", name).unwrap_or_default();
    let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == kind && condition["status"] == "True")
}

fn status(phase: &str, code: Option<i64>) -> Value {
    let state = code.map_or(json!({"running": {}}), |code| json!({"terminated": {"exitCode": code}}));
    json!({"status": {"phase": phase, "containerStatuses": [{"name": "pytorch", "restartCount": 0, "state": state}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_runs_to_its_end_and_tells_of_it() {
    let api = FakeApi::default();
    let operator = start(&api).await;
    api.create("pytorchjobs", job("demo", 2, "Never", json!({"cleanPodPolicy": "All"})));
    eventually("pods are made", || api.count("pods") == 2 && api.count("services") == 2).await;
    eventually("the job is acknowledged", || has_condition(&api, "demo", "Created")).await;
    for index in 0..2 {
        api.patch("pods", "ns", &format!("demo-worker-{index}"), &status("Running", None));
    }
    eventually("the job runs", || has_condition(&api, "demo", "Running")).await;
    for index in 0..2 {
        api.patch("pods", "ns", &format!("demo-worker-{index}"), &status("Succeeded", Some(0)));
    }
    eventually("the job succeeds", || has_condition(&api, "demo", "Succeeded")).await;
    eventually("pods are cleaned up", || api.count("pods") == 0 && api.count("services") == 0).await;
    eventually("events are recorded", || {
        let reasons = api.event_reasons();
        [
            "SuccessfulCreatePod",
            "SuccessfulCreateService",
            "ExitedWithCode",
            "PyTorchJobSucceeded",
            "SuccessfulDeletePod",
        ]
        .iter()
        .all(|reason| reasons.contains(&(*reason).to_owned()))
    })
    .await;
    let metrics = operator.metrics.render();
    for line in ["successful_total{framework=\"pytorch\",job_namespace=\"ns\"} 1", "created_pods_total 2"] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lagging_watches_lead_to_no_second_pod_and_no_second_count() {
    let api = FakeApi::default();
    api.lag(Duration::from_millis(150));
    let operator = start(&api).await;
    api.create("pytorchjobs", job("demo", 3, "OnFailure", json!({"backoffLimit": 100})));
    eventually("pods are made", || api.count("pods") == 3).await;
    for round in 1..=3 {
        for index in 0..3 {
            let name = format!("demo-worker-{index}");
            let uid = api.get("pods", "ns", &name).expect("the pod")["metadata"]["uid"].clone();
            api.patch("pods", "ns", &name, &status("Failed", Some(1)));
            eventually("the pod is replaced", || {
                api.get("pods", "ns", &name).is_some_and(|pod| pod["metadata"]["uid"] != uid)
            })
            .await;
        }
        let replaced = i64::from(round * 3);
        eventually("every failure is counted once", || {
            let job = api.get("pytorchjobs", "ns", "demo").expect("the job");
            job["status"]["replicaStatuses"]["Worker"]["restarts"] == replaced
        })
        .await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let created = api.requests("POST", "pods");
    assert_eq!(created, 12, "three pods, each replaced three times");
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_drops_the_plan_and_nothing_is_deleted_for_it() {
    let api = FakeApi::default();
    let operator = start(&api).await;
    api.create("pytorchjobs", job("demo", 1, "OnFailure", json!({"backoffLimit": 9})));
    eventually("the pod is made", || api.count("pods") == 1).await;
    eventually("the job is acknowledged", || has_condition(&api, "demo", "Created")).await;
    api.refuse_status_updates(3);
    api.patch("pods", "ns", "demo-worker-0", &status("Failed", Some(137)));
    eventually("the failure is counted", || {
        let job = api.get("pytorchjobs", "ns", "demo").expect("the job");
        job["status"]["replicaStatuses"]["Worker"]["restarts"] == 1
    })
    .await;
    eventually("the pod is replaced", || {
        api.get("pods", "ns", "demo-worker-0").is_some_and(|pod| pod["status"]["phase"].is_null())
    })
    .await;
    assert_eq!(api.requests("DELETE", "pods"), 1);
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_conflicts_is_tried_again_and_its_reason_told_once() {
    let api = FakeApi::default();
    let config = Config { gang_scheduler: Some("muster".to_owned()), ..Config::default() };
    let operator = start_with(&api, config).await;
    api.create("pytorchjobs", job("demo", 1, "Never", json!({"cleanPodPolicy": "All"})));
    eventually("the pod is made", || api.count("pods") == 1 && api.count("podgroups") == 1).await;
    // Of the pod, its service and the pod group, and each of them again.
    api.refuse_deletions(6);
    api.patch("pods", "ns", "demo-worker-0", &status("Succeeded", Some(0)));
    let left = || api.count("pods") + api.count("services") + api.count("podgroups");
    eventually("all of them go", || left() == 0).await;
    let told = || api.event_reasons().iter().filter(|reason| *reason == "JobTerminated").count();
    eventually("the reason is told", || told() == 1).await;
    operator.end().await;
    assert_eq!(told(), 1);
    let counts = |event: &Value| event["reason"] == "JobTerminated" && event["count"] == 1;
    assert!(api.names("events").iter().any(|name| api.get("events", "ns", name).is_some_and(|event| counts(&event))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_operator_goes_on_where_it_was() {
    let api = FakeApi::default();
    for round in 0..10 {
        let name = format!("demo-{round}");
        let operator = start(&api).await;
        api.create("pytorchjobs", job(&name, 4, "Never", json!({})));
        // Killed at another moment each time.
        tokio::time::sleep(Duration::from_millis(round)).await;
        operator.kill().await;
        let operator = start(&api).await;
        let own = || api.names("pods").iter().filter(|pod| pod.starts_with(&format!("{name}-"))).count();
        eventually("every pod is there", || own() == 4).await;
        for index in 0..4 {
            api.patch("pods", "ns", &format!("{name}-worker-{index}"), &status("Succeeded", Some(0)));
        }
        operator.kill().await;
        let operator = start(&api).await;
        eventually("the job succeeds", || has_condition(&api, &name, "Succeeded")).await;
        operator.end().await;
    }
    assert_eq!(api.count("pods"), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_pod_that_vanishes_at_once_is_noticed() {
    let api = FakeApi::default();
    let operator = start(&api).await;
    api.create("pytorchjobs", job("demo", 1, "OnFailure", json!({})));
    eventually("the pod is made", || api.count("pods") == 1).await;
    api.patch("pods", "ns", "demo-worker-0", &status("Running", None));
    eventually("the job runs", || has_condition(&api, "demo", "Running")).await;
    api.delete("pods", "ns", "demo-worker-0");
    eventually("the job restarts", || has_condition(&api, "demo", "Restarting")).await;
    eventually("the pod comes back", || api.count("pods") == 1).await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_another_owner_are_left_alone() {
    let api = FakeApi::default();
    api.create("pods", json!({"metadata": {"name": "demo-worker-0", "namespace": "ns"}}));
    let operator = start(&api).await;
    api.create("pytorchjobs", job("demo", 1, "Never", json!({})));
    eventually("the job is acknowledged", || has_condition(&api, "demo", "Created")).await;
    eventually("the failure is told", || api.event_reasons().contains(&"FailedCreatePod".to_owned())).await;
    assert!(api.get("pods", "ns", "demo-worker-0").expect("the pod")["metadata"]["ownerReferences"].is_null());
    api.delete("pods", "ns", "demo-worker-0");
    eventually("the name is taken once it is free", || {
        api.get("pods", "ns", "demo-worker-0").is_some_and(|pod| pod["metadata"]["ownerReferences"].is_array())
    })
    .await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_jobs_at_once() {
    const JOBS: usize = 1000;
    let api = FakeApi::default();
    let operator = start(&api).await;
    let began = Instant::now();
    for number in 0..JOBS {
        api.create("pytorchjobs", job(&format!("job-{number}"), 1, "Never", json!({})));
    }
    let mut done = std::collections::BTreeSet::new();
    while done.len() < JOBS {
        for name in api.names("pods") {
            if done.insert(name.clone()) {
                api.patch("pods", "ns", &name, &status("Succeeded", Some(0)));
            }
        }
        assert!(began.elapsed() < Duration::from_secs(120), "{} of {JOBS} jobs got a pod", done.len());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    eventually("every job succeeds", || (0..JOBS).all(|n| has_condition(&api, &format!("job-{n}"), "Succeeded"))).await;
    let seconds = began.elapsed().as_secs_f64();
    println!("{JOBS} one-pod jobs through the operator alone: {:.0} a second", JOBS as f64 / seconds);
    assert_eq!(api.count("pods"), JOBS);
    operator.end().await;
}
