//! Malformed manifests, made from a table: each is refused with a 4xx that names the field, and nothing panics.

use crate::harness::Server;
use http::{Request, header};
use serde_json::{Value, json};

/// One wrong thing: where, what, and the path that the refusal must name.
type Wrong = (&'static str, Value, &'static str);

fn kinds() -> Vec<(&'static str, Value, Vec<Wrong>)> {
    let template =
        |container: &str| json!({"spec": {"containers": [{"name": container, "image": "host", "command": ["true"]}]}});
    let job = |kind: &str, field: &str, role: &str, container: &str| {
        json!({"apiVersion": "kubeflow.org/v1", "kind": kind, "metadata": {"name": "m"},
               "spec": {field: {role: {"replicas": 1, "template": template(container)}}, "runPolicy": {}}})
    };
    let mut mxjob = job("MXJob", "mxReplicaSpecs", "Scheduler", "mxnet");
    mxjob["spec"]["jobMode"] = "MXTrain".into();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "m"}, "spec": template("c")["spec"]});
    let batch = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "m"},
                       "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "host"}]}}}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "m"},
                         "spec": {"ports": [{"port": 80, "name": "http"}], "selector": {"a": "b"}}});
    vec![
        (
            "/apis/kubeflow.org/v1/namespaces/default/pytorchjobs",
            job("PyTorchJob", "pytorchReplicaSpecs", "Master", "pytorch"),
            [job_wrongs("pytorchReplicaSpecs", "Master"), pytorch_wrongs()].concat(),
        ),
        (
            "/apis/kubeflow.org/v1/namespaces/default/tfjobs",
            job("TFJob", "tfReplicaSpecs", "Worker", "tensorflow"),
            job_wrongs("tfReplicaSpecs", "Worker"),
        ),
        ("/apis/kubeflow.org/v1/namespaces/default/mxjobs", mxjob, job_wrongs("mxReplicaSpecs", "Scheduler")),
        ("/api/v1/namespaces/default/pods", pod, pod_wrongs()),
        ("/apis/batch/v1/namespaces/default/jobs", batch, batch_wrongs()),
        ("/api/v1/namespaces/default/services", service, service_wrongs()),
        (
            "/api/v1/namespaces/default/configmaps",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "b"}}),
            vec![
                ("/data", json!({"a/b": "c"}), "data[a/b]"),
                ("/data/a", json!(1), "data"),
                ("/data", json!([]), "data"),
                ("/binaryData", json!({"a": "b"}), "data"),
                ("/immutable", json!("yes"), "immutable"),
            ],
        ),
        (
            "/api/v1/namespaces/default/secrets",
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "m"}, "stringData": {"a": "b"}}),
            vec![
                ("/data", json!({"..": "YQ=="}), "data[..]"),
                ("/data", json!({"a": "not base64!"}), "data"),
                ("/type", json!(1), "type"),
                ("/type", json!("kubernetes.io/tls"), "data[tls.crt]"),
                ("/type", json!("kubernetes.io/dockerconfigjson"), "data[.dockerconfigjson]"),
            ],
        ),
    ]
}

/// What is wrong in any object's metadata.
fn metadata_wrongs() -> Vec<Wrong> {
    vec![
        ("/metadata/name", json!("Upper_Case"), "metadata.name"),
        ("/metadata/name", json!(""), "name"),
        ("/metadata/name", json!(7), "name"),
        ("/metadata/name", json!("a".repeat(300)), "metadata.name"),
        ("/metadata/namespace", json!("elsewhere"), "namespace"),
        ("/metadata/labels", json!({"a b": "c"}), "metadata.labels"),
        ("/metadata/labels", json!({"a": "b c"}), "metadata.labels"),
        ("/metadata/labels", json!({"a": 1}), "labels"),
        ("/metadata/labels", json!(["a"]), "labels"),
        ("/metadata/annotations", json!({"/": "y"}), "metadata.annotations"),
        ("/metadata/annotations", json!({"x": {}}), "annotations"),
        ("/metadata/finalizers", json!(["no domain!"]), "metadata.finalizers"),
        ("/metadata/finalizers", json!("x"), "finalizers"),
        ("/metadata/ownerReferences", json!([{"name": "x"}]), "metadata.ownerReferences"),
        ("/metadata/ownerReferences", json!({}), "ownerReferences"),
        ("/metadata/nonsense", json!(1), "metadata.nonsense"),
        ("/nonsense", json!(1), "nonsense"),
    ]
}

/// What is wrong in any training job.
fn job_wrongs(field: &'static str, role: &'static str) -> Vec<Wrong> {
    // Pointers live as long as the test; so few are made that leaking them is the simplest.
    let at = |rest: &str| -> &'static str { format!("/spec/{field}/{role}{rest}").leak() };
    let path = |rest: &str| -> &'static str { format!("spec.{field}.{role}{rest}").leak() };
    vec![
        (at("/replicas"), json!("one"), path(".replicas")),
        (at("/replicas"), json!(1.5), path(".replicas")),
        (at("/replicass"), json!(1), path(".replicass")),
        (at("/restartPolicy"), json!(3), path(".restartPolicy")),
        (at("/template"), json!("t"), path(".template")),
        (at("/template/spec/containers"), json!("c"), path(".template.spec.containers")),
        (at("/template/spec/containers/0/image"), json!(1), path(".template.spec.containers[0].image")),
        (at("/template/spec/containers/0/imagee"), json!("x"), path(".template.spec.containers[0].imagee")),
        (at("/template/spec/containers/0/command"), json!("true"), path(".template.spec.containers[0].command")),
        (
            at("/template/spec/containers/0/env"),
            json!([{"value": "x"}]),
            path(".template.spec.containers[0].env[0].name"),
        ),
        (
            at("/template/spec/containers/0/env"),
            json!([{"name": "A", "value": 1}]),
            path(".template.spec.containers[0].env[0].value"),
        ),
        (
            at("/template/spec/containers/0/ports"),
            json!([{"containerPort": "x"}]),
            path(".template.spec.containers[0].ports[0].containerPort"),
        ),
        (
            at("/template/spec/containers/0/resources"),
            json!({"limits": {"cpu": "1 potato"}}),
            path(".template.spec.containers[0].resources.limits"),
        ),
        (at("/template/spec/volumes"), json!([{}]), path(".template.spec.volumes[0].name")),
        (at("/template/spec/nodeSelector"), json!({"a": 1}), path(".template.spec.nodeSelector.a")),
        (at(""), json!([]), path("")),
        ("/spec/runPolicy", json!("x"), "spec.runPolicy"),
        ("/spec/runPolicy", json!({"backoffLimit": "x"}), "spec.runPolicy.backoffLimit"),
        ("/spec/runPolicy", json!({"cleanPodPolicy": 3}), "spec.runPolicy.cleanPodPolicy"),
        ("/spec/runPolicy", json!({"suspend": "no"}), "spec.runPolicy.suspend"),
        ("/spec/runPolicy", json!({"activeDeadlineSeconds": {}}), "spec.runPolicy.activeDeadlineSeconds"),
        ("/spec/runPolicy", json!({"ttlSecondsAfterFinished": true}), "spec.runPolicy.ttlSecondsAfterFinished"),
        (
            "/spec/runPolicy",
            json!({"schedulingPolicy": {"minAvailable": "x"}}),
            "spec.runPolicy.schedulingPolicy.minAvailable",
        ),
        ("/spec/runPolicy", json!({"patience": 1}), "spec.runPolicy.patience"),
        ("/spec", json!("x"), "spec"),
        ("/spec/nonsense", json!({}), "spec.nonsense"),
        (format!("/spec/{field}").leak(), json!([]), format!("spec.{field}").leak()),
    ]
}

fn pytorch_wrongs() -> Vec<Wrong> {
    vec![
        ("/spec/pytorchReplicaSpecs/Master/replicas", json!(2), "Master"),
        (
            "/spec/pytorchReplicaSpecs/Boss",
            json!({"replicas": 1, "template": {"spec": {"containers": [{"name": "pytorch", "image": "x"}]}}}),
            "Boss",
        ),
        ("/spec/pytorchReplicaSpecs/Master/template/spec/containers/0/name", json!("other"), "pytorch"),
        ("/spec/pytorchReplicaSpecs/Master/template/spec/containers/0/image", json!(""), "image"),
        ("/spec/pytorchReplicaSpecs/Master/template/spec/containers", json!([]), "containers"),
        ("/spec/elasticPolicy", json!({"minReplicas": "x"}), "spec.elasticPolicy.minReplicas"),
        ("/spec/elasticPolicy", json!({"minReplicas": 1}), "spec.pytorchReplicaSpecs[Worker]"),
        ("/spec/elasticPolicy", json!({"rdzvConf": [1]}), "spec.elasticPolicy.rdzvConf[0]"),
        ("/spec/nprocPerNode", json!(2), "spec.nprocPerNode"),
        ("/spec/runPolicy", json!({"managedBy": "somebody"}), "managedBy"),
        ("/metadata/name", json!("1abc"), "metadata.name"),
    ]
}

fn pod_wrongs() -> Vec<Wrong> {
    vec![
        ("/spec/containers", json!([]), "spec.containers"),
        ("/spec/containers/0/name", json!("A b"), "spec.containers[0].name"),
        ("/spec/containers/0/name", json!(""), "spec.containers[0].name"),
        ("/spec/containers/0/image", json!(1), "image"),
        ("/spec/containers/0/imagePullPolicy", json!("Perhaps"), "spec.containers[0].imagePullPolicy"),
        ("/spec/containers/0/env", json!([{"name": ""}]), "spec.containers[0].env[0].name"),
        ("/spec/containers/0/ports", json!([{"containerPort": 0}]), "spec.containers[0].ports[0].containerPort"),
        (
            "/spec/containers/0/ports",
            json!([{"containerPort": 80, "protocol": "X"}]),
            "spec.containers[0].ports[0].protocol",
        ),
        (
            "/spec/containers/0/resources",
            json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}),
            "spec.containers[0].resources.requests",
        ),
        ("/spec/containers/0/resources", json!({"limits": {"cpu": "-1"}}), "spec.containers[0].resources.limits"),
        (
            "/spec/containers/0/volumeMounts",
            json!([{"name": "no", "mountPath": "/x"}]),
            "spec.containers[0].volumeMounts[0].name",
        ),
        ("/spec/containers/0/comand", json!(["x"]), "spec.containers[0].comand"),
        ("/spec/restartPolicy", json!("Sometimes"), "spec.restartPolicy"),
        ("/spec/dnsPolicy", json!("Guess"), "spec.dnsPolicy"),
        (
            "/spec/volumes",
            json!([{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {}}]),
            "spec.volumes[1].name",
        ),
        ("/spec/activeDeadlineSeconds", json!(-1), "spec.activeDeadlineSeconds"),
        ("/spec/terminationGracePeriodSeconds", json!("x"), "terminationGracePeriodSeconds"),
        ("/spec/nodeSelector", json!({"a b": "c"}), "spec.nodeSelector"),
        ("/spec/hostname", json!("Not A Name"), "spec.hostname"),
        ("/spec", json!("x"), "spec"),
    ]
}

fn batch_wrongs() -> Vec<Wrong> {
    vec![
        ("/spec/parallelism", json!(-1), "spec.parallelism"),
        ("/spec/completions", json!("x"), "completions"),
        ("/spec/backoffLimit", json!(-1), "spec.backoffLimit"),
        ("/spec/template/spec/restartPolicy", json!("Always"), "spec.template.spec.restartPolicy"),
        ("/spec/template/spec/containers", json!([]), "spec.template.spec.containers"),
        ("/spec/nonsense", json!(1), "spec.nonsense"),
    ]
}

fn service_wrongs() -> Vec<Wrong> {
    vec![
        ("/spec/ports/0/port", json!(70_000), "spec.ports[0].port"),
        ("/spec/ports/0/protocol", json!("X"), "spec.ports[0].protocol"),
        ("/spec/ports/0/name", json!("Not_A_Name"), "spec.ports[0].name"),
        ("/spec/type", json!("Best"), "spec.type"),
        ("/spec/clusterIP", json!("x"), "spec.clusterIP"),
        ("/spec/selector", json!({"a": 1}), "selector"),
        ("/spec/sessionAffinity", json!("Y"), "spec.sessionAffinity"),
    ]
}

/// Sets the value at a pointer; the last member may be new.
fn with(base: &Value, pointer: &str, value: Value) -> Value {
    let mut object = base.clone();
    let (parent, member) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}"))[member] = value;
    object
}

#[tokio::test(flavor = "current_thread")]
async fn two_hundred_malformed_manifests_are_refused_with_their_path() {
    let server = Server::start(&["--roles", "apiserver,controllers,operator"]);
    let file = kube::config::Kubeconfig::read_from(server.path("kubeconfig")).unwrap();
    let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await.unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let (mut sent, mut faults) = (0, Vec::new());
    for (path, base, own) in kinds() {
        for (pointer, value, field) in metadata_wrongs().into_iter().chain(own) {
            let body = serde_json::to_vec(&with(&base, pointer, value.clone())).unwrap();
            let request = Request::post(format!("{path}?fieldValidation=Strict&dryRun=All"))
                .header(header::CONTENT_TYPE, "application/json")
                .body(body)
                .unwrap();
            sent += 1;
            let label =
                format!("{} {pointer} = {}", base["kind"], value.to_string().chars().take(60).collect::<String>());
            match client.request::<Value>(request).await {
                Ok(_) => faults.push(format!("{label}: accepted")),
                Err(kube::Error::Api(status)) => {
                    let causes = status.details.iter().flat_map(|d| &d.causes);
                    let named = status.message.contains(field) || causes.into_iter().any(|c| c.field.contains(field));
                    if !(400..500).contains(&status.code) || !named {
                        faults.push(format!("{label}: {} {}", status.code, status.message));
                    }
                }
                Err(error) => faults.push(format!("{label}: {error}")),
            }
        }
    }
    assert!(sent >= 200, "the table has {sent} manifests");
    assert!(faults.is_empty(), "{} of {sent}:\n{}", faults.len(), faults.join("\n"));
    // It still serves.
    server.kubectl(&["get", "namespaces"]).succeeded();
}
