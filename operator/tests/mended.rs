//! What ours does where upstream is defective, and what upstream does not have: one test for each rule, over the same
//! cluster of maps that the recorded scenarios use.

mod world;

use muster_operator::training::observe::RendezvousAccess;
use muster_operator::training::{Addressing, Policy};
use serde_json::{Value, json};
use world::{AUTOSCALER, JOB, POD, POD_GROUP, SECRET, SERVICE, World, pod_status};

const PYTORCH: (&str, &str, &str) = ("PyTorchJob", "pytorchReplicaSpecs", "pytorch");
const TENSORFLOW: (&str, &str, &str) = ("TFJob", "tfReplicaSpecs", "tensorflow");
const MXNET: (&str, &str, &str) = ("MXJob", "mxReplicaSpecs", "mxnet");

type Kind = (&'static str, &'static str, &'static str);

/// A job called `demo`: role, replicas, restart policy.
fn job((kind, specs, container): Kind, roles: &[(&str, i32, &str)], run_policy: Value) -> Value {
    let roles: serde_json::Map<String, Value> = roles
        .iter()
        .map(|(role, replicas, restart_policy)| {
            let template = json!({"spec": {"containers": [{"name": container, "image": "image"}]}});
            let spec = json!({"replicas": replicas, "restartPolicy": restart_policy, "template": template});
            ((*role).to_owned(), spec)
        })
        .collect();
    let mut job = json!({
        "apiVersion": "kubeflow.org/v1",
        "kind": kind,
        "metadata": {"name": "demo"},
        "spec": {specs: roles, "runPolicy": run_policy},
    });
    if kind == "MXJob" {
        job["spec"]["jobMode"] = json!("MXTrain");
    }
    job
}

fn started(policy: Policy, job: &Value) -> World {
    let mut world = World::new(policy);
    world.create_job("ns", job).expect("a valid job");
    world.settle();
    world
}

fn run(world: &mut World, container: &str) {
    for name in world.pod_names() {
        world.report(&name, &pod_status("Running", container, None, 0));
    }
    world.settle();
}

fn fail(world: &mut World, name: &str, container: &str, code: i64) {
    world.report(name, &pod_status("Failed", container, Some(code), 0));
    world.settle();
}

fn status<'a>(world: &'a World, key: &str) -> &'a Value {
    &world.get(JOB, key).expect("the job")["status"]
}

#[test]
fn a_deadline_is_noticed_when_it_passes() {
    for kind in [PYTORCH, TENSORFLOW, MXNET] {
        let policy = json!({"activeDeadlineSeconds": 7, "cleanPodPolicy": "Running"});
        let mut world = started(Policy::default(), &job(kind, &[("Worker", 2, "Never")], policy));
        run(&mut world, kind.2);
        let key = format!("{}/demo", kind.0);
        let requeue = world.decide(&key).expect("a plan").requeue_after.expect("a time");
        assert_eq!(requeue.as_secs(), 7);
        world.advance(6);
        world.settle();
        assert!(!world.is(&key, "Failed"));
        world.advance(1);
        world.settle();
        let failed = world.condition(&key, "Failed").expect("failure");
        assert_eq!(failed["message"], "Job demo has failed because it was active longer than specified deadline");
        assert!(status(&world, &key)["completionTime"].is_string());
        assert!(world.pod_names().is_empty(), "running pods are cleaned up");
        assert!(world.objects[SERVICE].is_empty());
    }
}

#[test]
fn limits_keep_to_the_clean_pod_policy() {
    for kind in [PYTORCH, TENSORFLOW, MXNET] {
        for (policy, left) in [("None", 3), ("Running", 1), ("All", 0)] {
            let run_policy = json!({"backoffLimit": 1, "cleanPodPolicy": policy});
            let roles = [("Worker", 3, "OnFailure")];
            let mut world = started(Policy::default(), &job(kind, &roles, run_policy));
            world.report("demo-worker-2", &pod_status("Succeeded", kind.2, Some(0), 0));
            world.report("demo-worker-1", &pod_status("Running", kind.2, None, 1));
            world.settle();
            let key = format!("{}/demo", kind.0);
            let failed = world.condition(&key, "Failed").expect("failure");
            assert_eq!(failed["message"], "Job demo has failed because it has reached the specified backoff limit");
            assert_eq!(world.pod_names().len(), left, "{key} with cleanPodPolicy {policy}");
            assert_eq!(world.objects[SERVICE].len(), left, "{key} with cleanPodPolicy {policy}");
        }
    }
}

#[test]
fn replaced_pods_count_towards_the_backoff_limit_once() {
    let roles = [("Master", 1, "ExitCode"), ("Worker", 2, "ExitCode")];
    let key = "PyTorchJob/demo";
    let mut world = started(Policy::default(), &job(PYTORCH, &roles, json!({"backoffLimit": 3})));
    run(&mut world, "pytorch");
    for count in 1..3 {
        let before = world.get(POD, "demo-worker-1").expect("the pod")["metadata"]["uid"].clone();
        fail(&mut world, "demo-worker-1", "pytorch", 137);
        assert!(!world.is(key, "Failed"));
        assert_eq!(status(&world, key)["replicaStatuses"]["Worker"]["restarts"], count);
        assert_ne!(world.get(POD, "demo-worker-1").expect("a new pod")["metadata"]["uid"], before);
        run(&mut world, "pytorch");
    }
    fail(&mut world, "demo-worker-0", "pytorch", 137);
    assert!(world.is(key, "Failed"), "the third is one too many");
    assert_eq!(world.get(POD, "demo-worker-0").expect("the failed pod")["status"]["phase"], "Failed");
}

#[test]
fn a_failure_is_counted_once_however_often_it_is_seen() {
    let roles = [("Worker", 1, "OnFailure")];
    let key = "PyTorchJob/demo";
    let mut world = started(Policy::default(), &job(PYTORCH, &roles, json!({"backoffLimit": 5})));
    run(&mut world, "pytorch");
    world.report("demo-worker-0", &pod_status("Failed", "pytorch", Some(1), 0));
    for _ in 0..4 {
        // The status is stored, but the operator stops before it deletes the pod.
        let mut plan = world.decide(key).expect("a plan");
        plan.deletes.clear();
        world.apply(key, plan);
    }
    assert_eq!(status(&world, key)["replicaStatuses"]["Worker"]["restarts"], 1);
    world.settle();
    assert_eq!(status(&world, key)["replicaStatuses"]["Worker"]["restarts"], 1);
    assert!(status(&world, key)["replicaStatuses"]["Worker"]["replacing"].is_null(), "nothing is left to remember");
}

#[test]
fn without_a_backoff_limit_the_status_has_no_counts() {
    let roles = [("Worker", 1, "OnFailure")];
    let mut world = started(Policy::default(), &job(PYTORCH, &roles, json!({})));
    run(&mut world, "pytorch");
    fail(&mut world, "demo-worker-0", "pytorch", 1);
    let worker = &status(&world, "PyTorchJob/demo")["replicaStatuses"]["Worker"];
    assert!(worker["restarts"].is_null() && worker["replacing"].is_null(), "{worker}");
}

#[test]
fn an_exit_code_that_is_not_retryable_ends_the_job_for_good() {
    for (kind, role) in [(PYTORCH, "Worker"), (TENSORFLOW, "Worker"), (MXNET, "Scheduler"), (MXNET, "Worker")] {
        let roles = [(role, 1, "ExitCode")];
        let mut world = started(Policy::default(), &job(kind, &roles, json!({"ttlSecondsAfterFinished": 3})));
        run(&mut world, kind.2);
        let pod = format!("demo-{}-0", role.to_lowercase());
        fail(&mut world, &pod, kind.2, 1);
        let key = format!("{}/demo", kind.0);
        let failed = world.condition(&key, "Failed").expect("failure");
        assert_eq!(failed["message"], format!("job \"demo\" is failing because \"{role}\" replica(s) failed."));
        assert!(status(&world, &key)["completionTime"].is_string());
        assert!(world.condition(&key, "Restarting").is_none());
        let restarting = format!("{}Restarting", kind.0);
        assert!(world.events.iter().all(|(_, _, reason, _)| *reason != restarting), "{:?}", world.events);
        world.advance(3);
        world.settle();
        assert!(world.get(JOB, &key).is_none(), "the job outlives its ttl");
    }
}

#[test]
fn a_job_that_failed_without_a_completion_time_expires_too() {
    let mut world =
        started(Policy::default(), &job(PYTORCH, &[("Worker", 1, "Never")], json!({"ttlSecondsAfterFinished": 60})));
    run(&mut world, "pytorch");
    fail(&mut world, "demo-worker-0", "pytorch", 1);
    let mut object = world.get(JOB, "PyTorchJob/demo").expect("the job").clone();
    object["status"].as_object_mut().expect("a status").remove("completionTime");
    world.objects.get_mut(JOB).expect("jobs").insert("PyTorchJob/demo".to_owned(), object);
    world.advance(60);
    world.settle();
    assert!(world.get(JOB, "PyTorchJob/demo").is_none());
}

#[test]
fn an_mxjob_without_a_scheduler_gets_somewhere() {
    for roles in [
        &[("Worker", 2, "Never")][..],
        &[("TunerTracker", 1, "Never"), ("TunerServer", 2, "Never"), ("Tuner", 1, "Never")][..],
    ] {
        let mut world = started(Policy::default(), &job(MXNET, roles, json!({})));
        run(&mut world, "mxnet");
        assert!(world.is("MXJob/demo", "Running"));
        let (decisive, replicas, _) = roles[roles.len() - 1];
        for index in 0..replicas {
            let name = format!("demo-{}-{index}", decisive.to_lowercase());
            world.report(&name, &pod_status("Succeeded", "mxnet", Some(0), 0));
        }
        world.settle();
        assert!(world.is("MXJob/demo", "Succeeded"));
    }
}

#[test]
fn a_job_is_acknowledged_before_its_pods_can_be_made() {
    let mut world = World::new(Policy::default());
    world.refused_pods.insert("demo-worker-0".to_owned(), "Error creating: exceeded quota".to_owned());
    world.create_job("ns", &job(PYTORCH, &[("Worker", 1, "Never")], json!({}))).expect("a valid job");
    world.settle();
    assert!(world.is("PyTorchJob/demo", "Created"));
    assert!(world.events.iter().any(|(_, _, reason, _)| reason == "FailedCreatePod"));

    for kind in [PYTORCH, TENSORFLOW, MXNET] {
        let world = started(Policy::default(), &job(kind, &[], json!({})));
        let key = format!("{}/demo", kind.0);
        assert!(world.is(&key, "Created"), "{key} without roles");
        let reason = format!("{}FailedValidation", kind.0);
        assert!(world.events.iter().any(|event| event.2 == reason), "{key} says that it has no roles");
    }
}

#[test]
fn no_pod_is_made_for_no_replica() {
    let roles = [("Chief", 1, "Never"), ("Worker", 0, "Never")];
    let world = started(Policy::default(), &job(TENSORFLOW, &roles, json!({})));
    assert_eq!(world.pod_names(), ["demo-chief-0"]);
    let world = started(Policy::default(), &job(TENSORFLOW, &[("Chief", 0, "Never")], json!({})));
    assert!(world.pod_names().is_empty());
    assert!(world.is("TFJob/demo", "Succeeded"));
}

#[test]
fn the_autoscaler_goes_with_its_metrics() {
    let mut elastic = job(PYTORCH, &[("Worker", 2, "OnFailure")], json!({}));
    elastic["spec"]["elasticPolicy"] = json!({"minReplicas": 1, "maxReplicas": 3, "metrics": [{"type": "Resource"}]});
    let mut world = started(Policy::default(), &elastic);
    assert_eq!(world.get(AUTOSCALER, "demo").expect("an autoscaler")["spec"]["maxReplicas"], 3);
    world.patch_job("PyTorchJob/demo", &json!({"spec": {"elasticPolicy": {"metrics": null}}})).expect("a change");
    world.settle();
    assert!(world.get(AUTOSCALER, "demo").is_none());
}

#[test]
fn host_ports_are_on_record_before_pods_and_outlive_them() {
    for (kind, lead, env) in [(PYTORCH, "Master", "MASTER_PORT"), (MXNET, "Scheduler", "DMLC_PS_ROOT_PORT")] {
        let policy = Policy { addressing: Addressing::HostPorts, ..Policy::default() };
        let mut world = World::new(policy);
        world.free_ports = vec![20001, 20002, 20003];
        let roles = [(lead, 1, "OnFailure"), ("Worker", 2, "OnFailure")];
        world.create_job("ns", &job(kind, &roles, json!({}))).expect("a valid job");
        let key = format!("{}/demo", kind.0);
        let plan = world.decide(&key).expect("a plan");
        assert_eq!(plan.creates.len(), 3, "services alone come first: {:?}", plan.creates);
        world.settle();
        world.free_ports = vec![25000, 25001, 25002];
        assert_eq!(world.pod_names().len(), 3);
        let port = |world: &World, pod: &str| {
            let pod = &world.get(POD, pod).expect("the pod")["spec"];
            assert_eq!(pod["hostNetwork"], true);
            pod["containers"][0]["ports"][0]["containerPort"].as_i64().expect("a port")
        };
        let lead_pod = format!("demo-{}-0", lead.to_lowercase());
        let held = port(&world, &lead_pod);
        assert_eq!(world.env("Worker", 0, env), Some(held.to_string()));
        assert_eq!(world.get(SERVICE, &lead_pod).expect("the service")["spec"]["ports"][0]["port"], held);

        run(&mut world, kind.2);
        world.delete(POD, &lead_pod, true);
        world.settle();
        assert_eq!(port(&world, &lead_pod), held, "a new pod takes the port over");
        world.delete(SERVICE, &lead_pod, true);
        world.settle();
        assert_eq!(world.get(SERVICE, &lead_pod).expect("the service")["spec"]["ports"][0]["port"], held);
    }
    let policy = Policy { addressing: Addressing::HostPorts, ..Policy::default() };
    let mut world = World::new(policy);
    world.free_ports = vec![20001];
    world.create_job("ns", &job(TENSORFLOW, &[("Worker", 2, "Never")], json!({}))).expect("a valid job");
    world.settle();
    assert!(world.pod_names().is_empty(), "no pod starts before every port is found");
    world.free_ports = vec![20001, 20002];
    world.settle();
    let config: Value = serde_json::from_str(&world.env("Worker", 0, "TF_CONFIG").expect("TF_CONFIG")).expect("JSON");
    assert_eq!(config["cluster"]["worker"], json!(["127.0.0.1:20001", "127.0.0.1:20002"]));
}

#[test]
fn only_those_who_use_the_rendezvous_get_its_address_and_token() {
    let mut asking = job(PYTORCH, &[("Master", 1, "Never"), ("Worker", 1, "Never")], json!({}));
    let plain = asking.clone();
    asking["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["metadata"] =
        json!({"annotations": {"muster.dev/rendezvous": "true"}});
    asking["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]["image"] =
        json!("muster-worker");
    for (job, given) in [(asking, true), (plain, false)] {
        let mut world = World::new(Policy::default());
        world.rendezvous = Some(RendezvousAccess { address: "127.0.0.1:4444".to_owned(), token: "secret".to_owned() });
        world.create_job("ns", &job).expect("a valid job");
        world.settle();
        for role in ["Master", "Worker"] {
            let address = world.env(role, 0, "MUSTER_RENDEZVOUS");
            assert_eq!(address, given.then(|| "127.0.0.1:4444".to_owned()), "{role}");
            let pod = world.get(POD, &format!("demo-{}-0", role.to_lowercase())).expect("the pod").to_string();
            assert!(!pod.contains("secret\""), "the token is not in the pod");
        }
        let secret = world.get(SECRET, "demo-rendezvous");
        assert_eq!(secret.map(|secret| secret["stringData"]["token"].clone()), given.then(|| json!("secret")));
    }
}

#[test]
fn pod_groups_of_scheduler_plugins() {
    let policy = Policy { gang_scheduler: Some("muster".to_owned()), ..Policy::default() };
    let mut object = job(PYTORCH, &[("Master", 1, "Never"), ("Worker", 3, "Never")], json!({}));
    object["metadata"]["annotations"] = json!({"own": "note"});
    object["spec"]["runPolicy"]["schedulingPolicy"] = json!({"minAvailable": 2, "scheduleTimeoutSeconds": 9});
    let specs = &mut object["spec"]["pytorchReplicaSpecs"];
    specs["Master"]["template"]["spec"]["containers"][0]["resources"] =
        json!({"requests": {"cpu": "1", "memory": "1Gi"}});
    specs["Worker"]["template"]["spec"]["containers"][0]["resources"] =
        json!({"limits": {"cpu": "1500m", "nvidia.com/gpu": 1}});
    let mut world = started(policy, &object);
    let group = world.get(POD_GROUP, "demo").expect("a pod group");
    assert_eq!(group["metadata"]["annotations"], json!({"own": "note"}));
    let resources = json!({"cpu": "2500m", "memory": "1Gi", "nvidia.com/gpu": "1"});
    let spec = json!({"minMember": 2, "minResources": resources, "scheduleTimeoutSeconds": 9});
    assert_eq!(group["spec"], spec, "the master and the first worker");
    let pod = world.get(POD, "demo-worker-2").expect("a pod");
    assert_eq!(pod["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"], "demo");
    assert_eq!(pod["spec"]["schedulerName"], "muster");

    let patch =
        json!({"spec": {"runPolicy": {"schedulingPolicy": {"minAvailable": 1, "scheduleTimeoutSeconds": null}}}});
    world.patch_job("PyTorchJob/demo", &patch).expect("a change");
    world.settle();
    let spec = json!({"minMember": 1, "minResources": {"cpu": "1", "memory": "1Gi"}});
    assert_eq!(world.get(POD_GROUP, "demo").expect("a pod group")["spec"], spec);

    world.patch_job("PyTorchJob/demo", &json!({"spec": {"runPolicy": {"suspend": true}}})).expect("a change");
    world.settle();
    assert!(world.get(POD_GROUP, "demo").is_none());
    assert!(world.pod_names().is_empty());
}

#[test]
fn volcano_lets_pods_wait_for_their_group() {
    let policy = Policy { gang_scheduler: Some("volcano".to_owned()), ..Policy::default() };
    let mut world = started(policy, &job(PYTORCH, &[("Worker", 2, "Never")], json!({})));
    let group = json!({"minMember": 2, "queue": "default", "minResources": {}});
    assert_eq!(world.get(POD_GROUP, "demo").expect("a pod group")["spec"], group);
    assert!(world.pod_names().is_empty());
    let waiting = status(&world, "PyTorchJob/demo");
    assert!(waiting["lastReconcileTime"].is_string() && waiting["startTime"].is_null());
    let mut object = world.get(POD_GROUP, "demo").expect("a pod group").clone();
    object["status"] = json!({"phase": "Inqueue"});
    world.objects.get_mut(POD_GROUP).expect("groups").insert("demo".to_owned(), object);
    world.settle();
    assert_eq!(world.pod_names(), ["demo-worker-0", "demo-worker-1"]);
    let pod = world.get(POD, "demo-worker-0").expect("a pod");
    assert_eq!(pod["metadata"]["annotations"]["scheduling.k8s.io/group-name"], "demo");
    assert_eq!(pod["metadata"]["annotations"]["volcano.sh/task-spec"], "worker");
}

#[test]
fn large_jobs_are_made_in_several_passes_and_absurd_ones_not_at_all() {
    let world = started(Policy::default(), &job(PYTORCH, &[("Worker", 700, "Never")], json!({})));
    assert_eq!((world.pod_names().len(), world.objects[SERVICE].len()), (700, 700));
    let world = started(Policy::default(), &job(TENSORFLOW, &[("Worker", i32::MAX, "Never")], json!({})));
    assert!(world.pod_names().is_empty());
    assert!(world.is("TFJob/demo", "Created"));
    assert!(world.events.iter().any(|event| event.2 == "TFJobFailedValidation"), "{:?}", world.events);
}
