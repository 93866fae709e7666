//! The node with real processes, against the API server in this process. Pods come bound: no scheduler runs here.

#![allow(clippy::panic, reason = "a test may fail")]

use futures::StreamExt;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use muster_api::clock::Clock;
use muster_apiserver::auth::Identity;
use muster_apiserver::{ApiServer, Options};
use muster_launcher::devices::Inventory;
use muster_launcher::node::{Config, Host, ImageTable, NodeHandle, OnShutdown, ProcessConfig, ProcessRuntime, run};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

fn supervisor() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    test.ancestors().nth(2).expect("target/PROFILE/deps/TEST").join("examples/supervise")
}

struct World {
    server: ApiServer,
    client: kube::Client,
    dir: tempfile::TempDir,
}

struct Running {
    handle: NodeHandle,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl World {
    async fn new() -> World {
        let server = ApiServer::open(Options::memory()).await.expect("a server");
        let client = kube::Client::new(server.service(Identity::admin()), "default");
        World { server, client, dir: tempfile::tempdir().expect("a folder") }
    }

    /// Starts the node and waits until it is ready.
    async fn node(&self, on_shutdown: OnShutdown, gpus: usize) -> Running {
        let runtime = ProcessRuntime::new(ProcessConfig {
            dir: self.dir.path().join("node"),
            muster_exe: supervisor(),
            clock: Clock::system(),
            log_max_bytes: 1 << 20,
            log_max_files: 3,
        })
        .expect("a runtime");
        let mut config = Config::new("here".to_owned(), Clock::system(), Arc::new(runtime));
        config.images = ImageTable::open(Some(self.dir.path().join("images.toml"))).expect("a table");
        config.host = Host {
            env: BTreeMap::from([("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())]),
            cwd: PathBuf::from("/"),
            ..Host::default()
        };
        config.devices = Inventory::simulated(gpus);
        config.root_ca = Some("the authority".to_owned());
        config.on_shutdown = on_shutdown;
        let (handle, stop) = (config.handle.clone(), CancellationToken::new());
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let client = kube::Client::new(self.server.service(Identity::component("node")), "default");
        let task = tokio::spawn({
            let stop = stop.clone();
            async move { run(client, config, ready, stop).await.expect("the node runs") }
        });
        tokio::time::timeout(Duration::from_secs(20), is_ready).await.expect("in time").expect("ready");
        Running { handle, stop, task }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create(&self, name: &str, spec: Value) -> Pod {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"nodeName": "here", "restartPolicy": "Never", "automountServiceAccountToken": false}});
        merge(&mut pod, json!({"spec": spec}));
        if let Some(labels) = pod["spec"].as_object_mut().and_then(|spec| spec.remove("labels")) {
            pod["metadata"]["labels"] = labels;
        }
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        self.pods().create(&PostParams::default(), &pod).await.expect("created")
    }

    /// The pod once it fits, looked at again and again.
    async fn until(&self, name: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..1500 {
            if let Some(pod) = self.pods().get_opt(name).await.expect("readable") {
                last = serde_json::to_value(pod).expect("JSON");
                if fits(&last) {
                    return last;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{name} is not {what}: {:#}", last["status"]);
    }

    async fn phase(&self, name: &str, phase: &str) -> Value {
        self.until(name, phase, |pod| pod["status"]["phase"] == phase).await
    }

    async fn events(&self, name: &str) -> Vec<String> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let list = events.list(&ListParams::default()).await.expect("events");
        let of = |event: &Event| event.involved_object.name.as_deref() == Some(name);
        let text = |e: &Event| {
            assert!(e.first_timestamp.is_some());
            format!("{} {}", e.reason.clone().unwrap_or_default(), e.message.clone().unwrap_or_default())
        };
        list.items.iter().filter(|e| of(e)).map(text).collect()
    }
}

impl Running {
    async fn logs(&self, path: &str) -> (u16, String) {
        let request = http::Request::get(format!("/containerLogs/default/{path}")).body(bytes::Bytes::new());
        let response = self.handle.http().oneshot(request.expect("a request")).await.expect("an answer");
        let code = response.status().as_u16();
        let body = tokio::time::timeout(Duration::from_secs(20), response.into_body().collect());
        let bytes = body.await.expect("it ends").expect("a body").to_bytes();
        if code >= 400 {
            let status: Value = serde_json::from_slice(&bytes).expect("a Status");
            return (code, status["message"].as_str().expect("a message").to_owned());
        }
        (code, String::from_utf8(bytes.to_vec()).expect("text"))
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(30), self.task).await.expect("in time").expect("it ends");
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn shell(script: &str) -> Value {
    json!({"containers": [{"name": "main", "image": "host", "command": ["sh", "-c", script]}]})
}

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a Value {
    let conditions = pod["status"]["conditions"].as_array().expect("conditions");
    conditions.iter().find(|c| c["type"] == kind).unwrap_or(&Value::Null)
}

fn alive(tag: &str) -> bool {
    let entries = std::fs::read_dir("/proc").expect("proc").flatten();
    { entries }.any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|word| word == tag.as_bytes())
    })
}

/// A number of seconds to sleep that names one test's processes.
fn tag(number: u32) -> String {
    format!("{}{:07}", number, std::process::id())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_life_shows_in_its_status() {
    let world = World::new().await;
    let node = world.node(OnShutdown::Drain, 0).await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let here = serde_json::to_value(nodes.get("here").await.expect("a node")).expect("JSON");
    assert_eq!(condition(&here, "Ready")["status"], "True");
    assert_eq!(here["status"]["allocatable"]["pods"], "110");
    assert!(here["spec"]["taints"].is_null(), "{}", here["spec"]);

    world.create("ok", shell("echo out; echo err >&2")).await;
    world.create("bad", shell("exit 3")).await;
    world.create("long", shell(&format!("echo up; exec sleep {}", tag(1)))).await;

    let ok = world.phase("ok", "Succeeded").await;
    let status = &ok["status"];
    let ended = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(0), &json!("Completed")));
    assert!(ended["startedAt"].is_string() && ended["finishedAt"].is_string() && ended["containerID"].is_string());
    assert_eq!((&status["podIP"], &status["hostIP"]), (&json!("127.0.0.1"), &json!("127.0.0.1")));
    assert_eq!(condition(&ok, "Ready")["reason"], "PodCompleted");
    assert_eq!(condition(&ok, "Initialized")["status"], "True");
    assert_eq!(node.logs("ok/main").await, (200, "out\nerr\n".to_owned()));

    let bad = world.phase("bad", "Failed").await;
    let ended = &bad["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(3), &json!("Error")));

    let long = world.phase("long", "Running").await;
    assert_eq!(condition(&long, "Ready")["status"], "True");
    assert_eq!(condition(&long, "ContainersReady")["status"], "True");
    assert!(long["status"]["containerStatuses"][0]["state"]["running"]["startedAt"].is_string());
    assert_eq!(long["status"]["containerStatuses"][0]["ready"], true);
    assert!(alive(&tag(1)));

    world.pods().delete("long", &DeleteParams::default()).await.expect("deleted");
    for _ in 0..500 {
        if world.pods().get_opt("long").await.expect("readable").is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(world.pods().get_opt("long").await.expect("readable").is_none());
    assert!(!alive(&tag(1)));
    world.pods().delete("ok", &DeleteParams::default()).await.expect("deleted");
    for _ in 0..500 {
        if node.logs("ok/main").await.0 == 404 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(node.logs("ok/main").await.0, 404, "the log goes with the object");
    node.end().await;
    let here = serde_json::to_value(nodes.get("here").await.expect("a node")).expect("JSON");
    assert_eq!(condition(&here, "Ready")["status"], "False");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn environment_volumes_and_init_containers() {
    let world = World::new().await;
    let node = world.node(OnShutdown::Drain, 0).await;
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "default");
    let late: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "late"}, "data": {"k": "v"}})).expect("one");
    world
        .create(
            "pod",
            json!({
                "initContainers": [
                    {"name": "one", "image": "host", "command": ["sh", "-c", "echo first > /muster-test/file"],
                     "volumeMounts": [{"name": "shared", "mountPath": "/muster-test"}]}],
                "containers": [{"name": "main", "image": "host", "workingDir": "/muster-test",
                    "command": ["sh", "-c", "cat file; echo $(NAME) $0 $A; cat /muster-settings/k"], "args": ["$(A)-x"],
                    "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                            {"name": "A", "value": "a$(NAME)"},
                            {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "k"}}}],
                    "volumeMounts": [{"name": "shared", "mountPath": "/muster-test"},
                                     {"name": "settings", "mountPath": "/muster-settings"}]}],
                "volumes": [{"name": "shared", "emptyDir": {}},
                            {"name": "settings", "configMap": {"name": "late", "optional": true}}]
            }),
        )
        .await;
    let held = world
        .until("pod", "held", |pod| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            let refused = &pod["status"]["initContainerStatuses"][0]["state"]["waiting"]["message"];
            waiting["reason"] == "CreateContainerConfigError" || refused.is_string()
        })
        .await;
    if held["status"]["initContainerStatuses"][0]["state"]["waiting"]["message"].is_string() {
        // A machine on which we may not mount.
        node.end().await;
        return;
    }
    let waiting = &held["status"]["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting["message"], "configmap \"late\" not found");
    assert_eq!(held["status"]["phase"], "Pending");
    assert_eq!(node.logs("pod/main").await.0, 400);
    maps.create(&PostParams::default(), &late).await.expect("created");
    world.phase("pod", "Succeeded").await;
    assert_eq!(node.logs("pod/main").await.1.lines().take(2).collect::<Vec<_>>(), ["first", "pod apod-x apod"]);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_that_are_not_known_say_what_to_type() {
    let world = World::new().await;
    let node = world.node(OnShutdown::Drain, 0).await;
    let container = json!({"containers": [{"name": "main", "image": "example.com/x:1", "command": ["true"]}]});
    world.create("pod", container).await;
    let pod = world
        .until("pod", "held", |pod| pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].is_string())
        .await;
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting["reason"], "ErrImagePull");
    let message = waiting["message"].as_str().expect("text");
    assert!(message.contains("images.toml") && message.contains("match = \"example.com/x\""), "{message}");
    assert!(world.events("pod").await.iter().any(|e| e.starts_with("Failed Failed to pull image")));
    let (code, text) = node.logs("pod/main").await;
    assert_eq!(code, 400);
    assert_eq!(text, "container \"main\" in pod \"pod\" is waiting to start: trying and failing to pull image");
    world
        .create("none", json!({"containers": [{"name": "main", "image": "host", "command": ["no-such-program"]}]}))
        .await;
    let none = world.phase("none", "Failed").await;
    let ended = &none["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(128), &json!("StartError")));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_in_place_and_logs_of_the_start_before() {
    let world = World::new().await;
    let node = world.node(OnShutdown::Drain, 0).await;
    let count = world.dir.path().join("count");
    let script = format!(
        "echo x >> {0}; n=$(wc -l < {0}); echo start $n; [ $n -ge 2 ] && exec sleep {1}; exit 9",
        count.display(),
        tag(2)
    );
    let mut spec = shell(&script);
    spec["restartPolicy"] = json!("OnFailure");
    world.create("pod", spec).await;
    let pod = world
        .until("pod", "restarted", |pod| {
            let status = &pod["status"]["containerStatuses"][0];
            status["restartCount"] == 1 && status["state"]["running"].is_object()
        })
        .await;
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 9);
    assert_eq!(node.logs("pod/main?previous=true").await, (200, "start 1\n".to_owned()));
    assert_eq!(node.logs("pod/main").await, (200, "start 2\n".to_owned()));

    // A reader that follows sees the end of the container as the end of the log.
    let request = http::Request::get("/containerLogs/default/pod/main?follow=true").body(bytes::Bytes::new());
    let response = node.handle.http().oneshot(request.expect("a request")).await.expect("an answer");
    let mut body = response.into_body().into_data_stream();
    assert_eq!(body.next().await.expect("a chunk").expect("data"), "start 2\n");
    world.pods().delete("pod", &DeleteParams::default()).await.expect("deleted");
    let end = tokio::time::timeout(Duration::from_secs(20), body.next()).await.expect("it ends");
    assert!(end.is_none());
    node.end().await;
    assert!(!alive(&tag(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_node_goes_on_with_what_runs() {
    let world = World::new().await;
    let node = world.node(OnShutdown::Leave, 2).await;
    let gate = world.dir.path().join("gate");
    let script = format!("echo $CUDA_VISIBLE_DEVICES; while [ ! -e {} ]; do sleep 0.05; done; exit 5", gate.display());
    let mut spec = shell(&script);
    spec["containers"][0]["resources"] = json!({"limits": {"nvidia.com/gpu": "1"}});
    let pod = world.create("pod", spec).await;
    world.create("orphan", shell(&format!("exec sleep {}", tag(3)))).await;
    let before = world.phase("pod", "Running").await;
    world.phase("orphan", "Running").await;
    node.end().await;
    assert!(alive(&tag(3)));
    let force = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    world.pods().delete("orphan", &force).await.expect("deleted");

    let node = world.node(OnShutdown::Drain, 2).await;
    for _ in 0..500 {
        if !alive(&tag(3)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!alive(&tag(3)), "a process without a pod is ended");
    // The device is still held: the second pod gets the other one, the third waits for one.
    let gpu = |name: &str, script: &str| {
        let mut spec = shell(script);
        spec["containers"][0]["resources"] = json!({"limits": {"nvidia.com/gpu": "1"}});
        (name.to_owned(), spec)
    };
    let (name, spec) = gpu("second", "echo $CUDA_VISIBLE_DEVICES; exec sleep 1000");
    world.create(&name, spec).await;
    world.phase("second", "Running").await;
    let (name, spec) = gpu("third", "echo $CUDA_VISIBLE_DEVICES");
    world.create(&name, spec).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(node.logs("third/main").await.0, 400);

    std::fs::write(&gate, "").expect("opened");
    let after = world.phase("pod", "Failed").await;
    assert_eq!(after["metadata"]["uid"], json!(pod.metadata.uid));
    let status = &after["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 0);
    assert_eq!(status["state"]["terminated"]["exitCode"], 5);
    let started = &before["status"]["containerStatuses"][0]["state"]["running"]["startedAt"];
    assert_eq!(&status["state"]["terminated"]["startedAt"], started);
    world.phase("third", "Succeeded").await;
    assert_eq!(node.logs("pod/main").await.1, "GPU-simulated-0\n");
    assert_eq!(node.logs("second/main").await.1, "GPU-simulated-1\n");
    assert_eq!(node.logs("third/main").await.1, "GPU-simulated-0\n");
    node.end().await;
    let second = world.until("second", "ended", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(second["status"]["containerStatuses"][0]["state"]["terminated"]["signal"], 15);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_pytorch_waits_for_the_master_and_runs_no_image() {
    let world = World::new().await;
    let node = world.node(OnShutdown::Drain, 0).await;
    let mut worker = shell("echo worker");
    worker["initContainers"] =
        json!([{"name": "init-pytorch", "image": "alpine:3.10", "command": ["sh", "-c", "nslookup x"]}]);
    worker["labels"] = json!({"training.kubeflow.org/job-name": "job", "training.kubeflow.org/job-role": "worker"});
    world.create("job-worker-0", worker).await;
    world
        .until("job-worker-0", "initialising", |pod| {
            pod["status"]["phase"] == "Pending" && pod["status"]["podIP"].is_string()
        })
        .await;
    let mut master = shell("echo master");
    master["labels"] = json!({"training.kubeflow.org/job-name": "job", "training.kubeflow.org/job-role": "master"});
    world.create("job-master-0", master).await;
    let pod = world.phase("job-worker-0", "Succeeded").await;
    assert_eq!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
    assert_eq!(pod["status"]["initContainerStatuses"][0]["ready"], true);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadline_grace_and_force() {
    let world = World::new().await;
    let node = world.node(OnShutdown::Drain, 0).await;
    let mut spec = shell("exec sleep 1000");
    spec["activeDeadlineSeconds"] = json!(1);
    world.create("late", spec).await;
    let late = world.phase("late", "Failed").await;
    assert_eq!(late["status"]["reason"], "DeadlineExceeded");

    let stubborn = format!("trap '' TERM; while :; do sleep 0.1; : {}; done", tag(4));
    world
        .create(
            "stubborn",
            json!({"containers": [{"name": "main", "image": "host",
        "command": ["sh", "-c", stubborn, tag(4)]}], "terminationGracePeriodSeconds": 1}),
        )
        .await;
    world.phase("stubborn", "Running").await;
    assert!(alive(&tag(4)));
    world.pods().delete("stubborn", &DeleteParams::default()).await.expect("deleted");
    for _ in 0..500 {
        if !alive(&tag(4)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!alive(&tag(4)), "it is killed after its grace period");
    assert!(Path::new("/proc").exists());
    node.end().await;
}
