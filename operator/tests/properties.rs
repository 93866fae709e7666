//! What holds whatever happens to a job: random pods, users and times against the decider.

mod world;

use muster_operator::training::{Addressing, Policy};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use world::{JOB, POD, SERVICE, World, pod_status};

#[derive(Clone, Debug)]
enum Step {
    Report { pod: usize, phase: &'static str, code: Option<i64>, restarts: i64 },
    DeletePod(usize),
    DeleteService(usize),
    Bind(usize),
    Reap,
    Suspend(bool),
    Replicas(i64),
    Wait(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let report = |phase: &'static str, codes: &'static [i64]| {
        (0usize..6, proptest::sample::select(codes), 0i64..2).prop_map(move |(pod, code, restarts)| Step::Report {
            pod,
            phase,
            code: (phase != "Running").then_some(code),
            restarts,
        })
    };
    prop_oneof![
        6 => report("Running", &[0]),
        3 => report("Failed", &[1, 137, 143]),
        3 => report("Succeeded", &[0]),
        1 => (0usize..6).prop_map(Step::DeletePod),
        1 => (0usize..6).prop_map(Step::DeleteService),
        1 => (0usize..6).prop_map(Step::Bind),
        1 => Just(Step::Reap),
        1 => any::<bool>().prop_map(Step::Suspend),
        1 => (0i64..5).prop_map(Step::Replicas),
        1 => (1i64..30).prop_map(Step::Wait),
    ]
}

#[derive(Clone, Debug)]
struct Setting {
    kind: usize,
    lead: bool,
    restart_policy: &'static str,
    clean: &'static str,
    backoff: Option<i64>,
    deadline: Option<i64>,
    ttl: Option<i64>,
    gang: bool,
    host_ports: bool,
}

fn setting() -> impl Strategy<Value = Setting> {
    let policies = proptest::sample::select(&["Always", "OnFailure", "Never", "ExitCode"][..]);
    let cleaning = proptest::sample::select(&["None", "Running", "All"][..]);
    (
        (0usize..3, any::<bool>(), policies, cleaning),
        proptest::option::of(0i64..4),
        proptest::option::of(1i64..60),
        proptest::option::of(0i64..60),
        (any::<bool>(), any::<bool>()),
    )
        .prop_map(|((kind, lead, restart_policy, clean), backoff, deadline, ttl, (gang, host_ports))| Setting {
            kind,
            lead,
            restart_policy,
            clean,
            backoff,
            deadline,
            ttl,
            gang,
            host_ports,
        })
}

const KINDS: [(&str, &str, &str, &str); 3] = [
    ("PyTorchJob", "pytorchReplicaSpecs", "pytorch", "Master"),
    ("TFJob", "tfReplicaSpecs", "tensorflow", "Chief"),
    ("MXJob", "mxReplicaSpecs", "mxnet", "Scheduler"),
];

fn world(setting: &Setting) -> (World, String) {
    let (kind, specs, container, lead) = KINDS[setting.kind];
    let role = |replicas: i64| {
        let template = json!({"spec": {"containers": [{"name": container, "image": "i"}]}});
        json!({"replicas": replicas, "restartPolicy": setting.restart_policy, "template": template})
    };
    let mut roles = json!({"Worker": role(2)});
    if setting.lead {
        roles[lead] = role(1);
    }
    let policy = Policy {
        gang_scheduler: setting.gang.then(|| "muster".to_owned()),
        addressing: if setting.host_ports { Addressing::HostPorts } else { Addressing::Dns },
        ..Policy::default()
    };
    let mut world = World::new(policy);
    world.free_ports = (20000..20020).collect();
    let object = json!({
        "apiVersion": "kubeflow.org/v1",
        "kind": kind,
        "metadata": {"name": "demo"},
        "spec": {
            specs: roles,
            "jobMode": "MXTrain",
            "runPolicy": {
                "cleanPodPolicy": setting.clean,
                "backoffLimit": setting.backoff,
                "activeDeadlineSeconds": setting.deadline,
                "ttlSecondsAfterFinished": setting.ttl,
            },
        },
    });
    world.create_job("ns", &object).expect("a valid job");
    (world, format!("{kind}/demo"))
}

fn act(world: &mut World, key: &str, setting: &Setting, step: &Step) {
    let (_, specs, container, _) = KINDS[setting.kind];
    let names = world.pod_names();
    let pod = |index: usize| names.get(index).cloned();
    let phase = |world: &World, name: &str| world.get(POD, name).map(|pod| pod["status"]["phase"].clone());
    match step {
        Step::Report { pod: index, phase: new, code, restarts } => {
            if let Some(name) = pod(*index) {
                // An end is final, and what runs does not become pending again.
                let ended = phase(world, &name).is_some_and(|phase| phase == "Failed" || phase == "Succeeded");
                if !ended {
                    world.report(&name, &pod_status(new, container, *code, *restarts));
                }
            }
        }
        Step::DeletePod(index) => {
            if let Some(name) = pod(*index) {
                world.delete_by_hand(POD, &name);
            }
        }
        Step::DeleteService(index) => {
            if let Some(name) = pod(*index) {
                world.delete_by_hand(SERVICE, &name);
            }
        }
        Step::Bind(index) => {
            if let Some(name) = pod(*index) {
                world.bind(&name);
            }
        }
        Step::Reap => {
            for name in names {
                if world.get(POD, &name).is_some_and(|pod| !pod["metadata"]["deletionTimestamp"].is_null()) {
                    world.delete(POD, &name, true);
                }
            }
        }
        Step::Suspend(suspend) => {
            if world.get(JOB, key).is_some() {
                let _ = world.patch_job(key, &json!({"spec": {"runPolicy": {"suspend": suspend}}}));
            }
        }
        Step::Replicas(replicas) => {
            if world.get(JOB, key).is_some() {
                let _ = world.patch_job(key, &json!({"spec": {specs: {"Worker": {"replicas": replicas}}}}));
            }
        }
        Step::Wait(seconds) => world.advance(*seconds),
    }
}

fn ended(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.clone().any(|c| (c["type"] == "Succeeded" || c["type"] == "Failed") && c["status"] == "True")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// The operator comes to rest, deciding again changes nothing, an end is final, and there is never a pod or a
    /// service too many.
    #[test]
    fn whatever_happens(setting in setting(), steps in proptest::collection::vec(step(), 0..25)) {
        let (mut world, key) = world(&setting);
        world.settle();
        let mut end: Option<(Value, BTreeMap<String, Value>)> = None;
        for step in &steps {
            world.advance(1);
            act(&mut world, &key, &setting, step);
            world.settle();
            let Some(job) = world.get(JOB, &key) else { break };
            let status = job["status"].clone();

            let again = world.decide(&key).expect("a plan");
            prop_assert!(again.is_settled(), "deciding again: {again:?}");

            let uids = |world: &World| -> BTreeMap<String, Value> {
                let pods = world.objects.get(POD).into_iter().flatten();
                pods.map(|(name, pod)| (name.clone(), pod["metadata"]["uid"].clone())).collect()
            };
            if let Some((final_status, pods)) = &end {
                prop_assert_eq!(&status["conditions"], &final_status["conditions"], "an end is final");
                prop_assert_eq!(&status["completionTime"], &final_status["completionTime"]);
                for (name, uid) in uids(&world) {
                    prop_assert_eq!(pods.get(&name), Some(&uid), "no pod is made after the end");
                }
            } else if ended(&status) {
                prop_assert!(status["completionTime"].is_string(), "an end has a time");
                end = Some((status.clone(), uids(&world)));
            }

            let suspended = world.is(&key, "Suspended") && end.is_none();
            if suspended {
                let left = world.objects.get(POD).into_iter().flatten();
                let left = left.filter(|(_, pod)| pod["metadata"]["deletionTimestamp"].is_null()).count();
                prop_assert_eq!(left, 0, "a suspended job has no pods");
            } else if end.is_none() {
                let (_, specs, _, _) = KINDS[setting.kind];
                let roles = world.get(JOB, &key).expect("the job")["spec"][specs].as_object().expect("roles").clone();
                let wanted: i64 = roles.values().map(|role| role["replicas"].as_i64().unwrap_or(1)).sum();
                let pods = world.objects.get(POD).into_iter().flatten();
                let leaving = pods.clone().filter(|(_, pod)| !pod["metadata"]["deletionTimestamp"].is_null()).count();
                let count = i64::try_from(pods.count()).expect("few pods");
                prop_assert!(count - i64::try_from(leaving).expect("few") <= wanted, "{count} pods of {wanted}");
                prop_assert!(count >= wanted, "{count} pods of {wanted}");
                let services = i64::try_from(world.objects.get(SERVICE).map_or(0, BTreeMap::len)).expect("few");
                prop_assert_eq!(services, wanted);
            }
        }
    }
}
