//! What is stored and not acted on says so, once; claims are bound.

use crate::harness::{Server, eventually};
use serde_json::{Value, json};

/// Kind, what kubectl calls it, whether it has a namespace, and the rest of its object.
fn idle() -> Vec<(&'static str, &'static str, bool, Value)> {
    let template = json!({"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "host", "command": ["true"]}]}});
    let set = json!({"selector": {"matchLabels": {"a": "b"}}, "template": template});
    let mut job = json!({"template": template});
    job["template"]["spec"]["restartPolicy"] = "Never".into();
    let mut stateful = set.clone();
    stateful["serviceName"] = "s".into();
    let scaled = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"});
    let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
    let spec = |spec: Value| json!({"spec": spec});
    vec![
        ("Deployment", "deployments.apps", true, spec(set.clone())),
        ("ReplicaSet", "replicasets.apps", true, spec(set.clone())),
        ("DaemonSet", "daemonsets.apps", true, spec(set)),
        ("StatefulSet", "statefulsets.apps", true, spec(stateful)),
        (
            "ReplicationController",
            "replicationcontrollers",
            true,
            spec(json!({"selector": {"a": "b"}, "template": template})),
        ),
        ("Job", "jobs.batch", true, spec(job.clone())),
        ("CronJob", "cronjobs.batch", true, spec(json!({"schedule": "* * * * *", "jobTemplate": {"spec": job}}))),
        (
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers.autoscaling",
            true,
            spec(json!({"maxReplicas": 3, "scaleTargetRef": scaled})),
        ),
        (
            "PodDisruptionBudget",
            "poddisruptionbudgets.policy",
            true,
            spec(json!({"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}})),
        ),
        ("Service", "services", true, spec(json!({"selector": {"a": "b"}, "ports": [{"port": 80}]}))),
        (
            "Endpoints",
            "endpoints",
            true,
            json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]}),
        ),
        (
            "EndpointSlice",
            "endpointslices.discovery.k8s.io",
            true,
            json!({"addressType": "IPv4", "endpoints": [], "ports": []}),
        ),
        ("Ingress", "ingresses.networking.k8s.io", true, spec(json!({"defaultBackend": backend}))),
        (
            "IngressClass",
            "ingressclasses.networking.k8s.io",
            false,
            spec(json!({"controller": "example.com/controller"})),
        ),
        ("NetworkPolicy", "networkpolicies.networking.k8s.io", true, spec(json!({"podSelector": {}}))),
        (
            "PersistentVolume",
            "persistentvolumes",
            false,
            spec(
                json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/tmp"}}),
            ),
        ),
        ("StorageClass", "storageclasses.storage.k8s.io", false, json!({"provisioner": "example.com/fast"})),
        (
            "MutatingWebhookConfiguration",
            "mutatingwebhookconfigurations.admissionregistration.k8s.io",
            false,
            json!({"webhooks": []}),
        ),
        (
            "ValidatingWebhookConfiguration",
            "validatingwebhookconfigurations.admissionregistration.k8s.io",
            false,
            json!({"webhooks": []}),
        ),
    ]
}

fn api_version(resource: &str) -> String {
    match resource.split_once('.') {
        None => "v1".to_owned(),
        Some(("horizontalpodautoscalers", group)) => format!("{group}/v2"),
        Some((_, group)) => format!("{group}/v1"),
    }
}

#[test]
fn what_nothing_acts_on_says_so_once_and_what_to_do() {
    let mut server = Server::start(&[]);
    let list = |round: usize| {
        let object = |(kind, resource, _, mut object): (&str, &str, bool, Value)| {
            object["apiVersion"] = api_version(resource).into();
            object["kind"] = kind.into();
            object["metadata"] = json!({"name": "idle", "labels": {"round": round.to_string()}});
            object
        };
        json!({"apiVersion": "v1", "kind": "List", "items": idle().into_iter().map(object).collect::<Vec<_>>()})
    };
    server.apply(&list(1).to_string());
    server.apply(&list(2).to_string());
    server.drain();
    server.restart();
    server.apply(&list(3).to_string());
    for (kind, resource, namespaced, _) in idle() {
        let told: Vec<Value> = server
            .items(&["events", "-A"])
            .into_iter()
            .filter(|event| event["involvedObject"]["kind"] == kind && event["reason"] == "NotActedOn")
            .collect();
        assert_eq!(told.len(), 1, "{kind}: {told:#?}");
        assert_eq!(told[0]["count"], 1, "{kind}");
        let message = told[0]["message"].as_str().unwrap();
        assert!(
            message.starts_with(&format!("this {kind} is stored, but no part of Muster acts on it: ")),
            "{message}"
        );
        let namespace = if namespaced { &["-n", "default"][..] } else { &[] };
        // Of network policies kubectl describes no events.
        if kind != "NetworkPolicy" {
            let described = server.kubectl(&[&["describe", resource, "idle"], namespace].concat()).succeeded().stdout;
            assert!(described.contains("NotActedOn"), "{kind} is described as\n{described}");
        }
    }
    // What acts does not say so: a job's services, and everything that its server makes for itself.
    server.apply(&crate::harness::pytorch_job("busy", "Never", 1, "true"));
    server.wait_for("pytorchjob/busy", "Succeeded", "default");
    let told = server.items(&["events", "-A", "--field-selector", "reason=NotActedOn"]);
    let others: Vec<&Value> = told.iter().filter(|event| event["involvedObject"]["name"] != "idle").collect();
    assert!(others.is_empty(), "{others:#?}");
}

#[test]
fn a_claim_is_bound_to_a_folder_that_its_pods_share() {
    let mut server = Server::start(&[]);
    let claim = |name: &str, spec: Value| {
        let mut spec = spec;
        spec["accessModes"] = json!(["ReadWriteMany"]);
        spec["resources"] = json!({"requests": {"storage": "2Gi"}});
        let kind = "PersistentVolumeClaim";
        json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "spec": spec}).to_string()
    };
    server.apply(&claim("data", json!({})));
    server.apply(&claim("fast", json!({"storageClassName": "fast"})));
    server.apply(&claim("raw", json!({"volumeMode": "Block"})));
    let pod_of = |claim: &str, name: &str, script: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "main", "image": "host", "command": ["sh", "-c", script],
                "volumeMounts": [{"name": "v", "mountPath": "/claimed"}]}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}})
        .to_string()
    };
    let pod = |name: &str, script: &str| pod_of("data", name, script);
    // It waits for its claim, and does not get an empty folder.
    server.apply(&pod_of("later", "early", "echo found > /claimed/note"));
    let waits = eventually("the pod to say what it waits for", || {
        let events = server.items(&["events", "--field-selector", "involvedObject.name=early,reason=FailedMount"]);
        events.first().map(|event| event["message"].as_str().unwrap_or_default().to_owned())
    });
    assert!(waits.contains("persistentvolumeclaim \"later\" not found"), "{waits}");
    assert_eq!(server.get(&["pod", "early"])["status"]["phase"], "Pending");
    server.apply(&claim("later", json!({})));
    let ended = |name: &str| {
        eventually("the pod to end", || {
            let pod = server.get(&["pod", name]);
            matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")).then_some(pod)
        })
    };
    assert_eq!(ended("early")["status"]["phase"], "Succeeded");
    server.apply(&pod("writer", "echo kept > /claimed/note"));
    assert_eq!(ended("writer")["status"]["phase"], "Succeeded");
    server.apply(&pod("reader", "cat /claimed/note"));
    ended("reader");
    assert_eq!(server.kubectl(&["logs", "reader"]).succeeded().stdout, "kept\n");

    for name in ["data", "fast"] {
        let path = "jsonpath={.status.phase}=Bound";
        server.kubectl(&["wait", "--for", path, &format!("pvc/{name}"), "--timeout=20s"]).succeeded();
        let line = server.kubectl(&["get", "pvc", name, "--no-headers"]).succeeded().stdout;
        let words: Vec<&str> = line.split_whitespace().collect();
        assert!(["Bound", "2Gi", "RWX"].iter().all(|word| words.contains(word)), "{line}");
    }
    server.drain();
    server.restart();
    let told = |name: &str, reason: &str| {
        let selector = format!("involvedObject.name={name},reason={reason}");
        eventually("the event", || {
            let events = server.items(&["events", "--field-selector", &selector]);
            (!events.is_empty()).then_some(events)
        })
    };
    let bound = told("data", "ProvisioningSucceeded");
    assert_eq!((bound.len(), &bound[0]["count"]), (1, &json!(1)));
    let folder = server.path("data/node/claims/default/data");
    assert!(bound[0]["message"].as_str().unwrap().contains(&folder.display().to_string()), "{bound:#?}");
    assert_eq!(std::fs::read_to_string(folder.join("note")).unwrap(), "kept\n");
    let other = told("fast", "StorageClassNotUsed");
    assert_eq!((other.len(), &other[0]["count"], &other[0]["type"]), (1, &json!(1), &json!("Warning")));
    let described = server.kubectl(&["describe", "pvc", "fast"]).succeeded().stdout;
    assert!(described.contains("storage class \"fast\""), "{described}");
    told("raw", "ProvisioningFailed");
    assert_eq!(server.get(&["pvc", "raw"])["status"]["phase"], "Pending");
}
