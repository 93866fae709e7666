//! What people do with kubectl: look, apply, watch, read logs, scale, delete.

use crate::harness::{Server, eventually, pytorch_job};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

#[test]
fn the_tour_of_kubectl() {
    let server = Server::start(&[]);
    assert!(server.kubectl(&["get", "nodes"]).succeeded().stdout.contains("Ready"));
    let resources = server.kubectl(&["api-resources"]).succeeded().stdout;
    for kind in ["PyTorchJob", "TFJob", "MXJob", "Pod", "CustomResourceDefinition", "PodGroup"] {
        assert!(resources.contains(kind), "{kind} is not in\n{resources}");
    }
    let explained = server.kubectl(&["explain", "pytorchjob.spec"]).succeeded().stdout;
    assert!(explained.contains("pytorchReplicaSpecs"), "{explained}");
    assert!(server.kubectl(&["explain", "pod.spec.containers.image"]).succeeded().stdout.contains("string"));

    // Applied, seen, read, described.
    let mut watch = Command::new("kubectl")
        .args(["get", "pytorchjobs", "-w"])
        .env("KUBECONFIG", server.path("kubeconfig"))
        .env("HOME", server.dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let script = "echo rank $RANK of $WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT";
    let manifest = pytorch_job("tour", "Never", 1, script);
    assert!(server.apply(&manifest).stdout.contains("created"));
    assert!(server.apply(&manifest).stdout.contains("unchanged"));
    server.succeeds_whole("tour");
    let lines: Vec<String> = BufReader::new(watch.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.contains("Succeeded"))
        .collect();
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert!(lines.iter().any(|line| line.starts_with("NAME")), "{lines:?}");

    let selector = "training.kubeflow.org/job-name=tour";
    let logs = server.kubectl(&["logs", "-l", selector, "--prefix"]).succeeded().stdout;
    assert!(logs.contains("rank 0 of 2") && logs.contains("rank 1 of 2"), "{logs}");
    assert_eq!(server.kubectl(&["logs", "tour-worker-0", "--tail=1"]).succeeded().stdout.lines().count(), 1);
    eventually("the job's events to be described", || {
        let described = server.kubectl(&["describe", "pytorchjob", "tour"]).succeeded().stdout;
        ["PyTorchJobSucceeded", "SuccessfulCreatePod"].iter().all(|reason| described.contains(reason)).then_some(())
    });
    server.kubectl(&["delete", "pytorchjob", "tour", "--wait"]).succeeded();
    eventually("the pods to be collected", || server.items(&["pods"]).is_empty().then_some(()));
}

#[test]
fn logs_are_followed_to_their_end() {
    let server = Server::start(&[]);
    let gate = server.path("gate");
    let script = format!("echo first; while [ ! -e {} ]; do sleep 0.05; done; echo last", gate.display());
    server.apply(&pytorch_job("talker", "Never", 0, &script));
    server.wait_for("pytorchjob/talker", "Running", "default");
    let mut follow = Command::new("kubectl")
        .args(["logs", "-f", "-l", "training.kubeflow.org/job-name=talker"])
        .env("KUBECONFIG", server.path("kubeconfig"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "first");
    std::fs::write(&gate, "").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "last");
    assert!(lines.next().is_none(), "the log ends with the container");
    assert!(follow.wait().unwrap().success());
}

#[test]
fn server_side_apply_and_scale() {
    let server = Server::start(&[]);
    let manifest = pytorch_job("wide", "OnFailure", 1, "sleep 600");
    let elastic = manifest.replacen(
        "\"spec\":{",
        "\"spec\":{\"elasticPolicy\":{\"minReplicas\":1,\"maxReplicas\":3,\"rdzvBackend\":\"c10d\"},",
        1,
    );
    server.kubectl_with(&["apply", "--server-side", "-f", "-"], &elastic).succeeded();
    server.wait_for("pytorchjob/wide", "Running", "default");
    server.kubectl(&["scale", "pytorchjob/wide", "--replicas=3"]).succeeded();
    let workers = || {
        server
            .items(&["pods", "-l", "training.kubeflow.org/job-name=wide,training.kubeflow.org/replica-type=worker"])
            .len()
    };
    eventually("three workers", || (workers() == 3).then_some(()));
    server.kubectl(&["scale", "pytorchjob/wide", "--replicas=1"]).succeeded();
    eventually("one worker", || (workers() == 1).then_some(()));
    server.kubectl(&["delete", "pytorchjob", "wide", "--wait"]).succeeded();
}

#[test]
fn a_pod_of_arguments_alone_runs_them() {
    // That is how kubectl writes what stands behind `--`; the image `host` has no command of its own.
    let server = Server::start(&[]);
    server.kubectl(&["run", "hello", "--image=host", "--restart=Never", "--", "echo", "good day"]).succeeded();
    server.kubectl(&["wait", "pod/hello", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s"]).succeeded();
    assert_eq!(server.kubectl(&["logs", "hello"]).succeeded().stdout, "good day\n");
}

#[test]
fn a_token_is_made_for_a_service_account() {
    // kubectl asks for it in protobuf, which was refused here alone.
    let server = Server::start(&["--roles", "apiserver,controllers"]);
    let token = eventually("a token", || {
        let ended = server.kubectl(&["create", "token", "default"]);
        assert!(ended.code == 0 || ended.stderr.contains("not found"), "{}", ended.stderr);
        (ended.code == 0).then(|| ended.stdout.trim().to_owned())
    });
    let who = server.kubectl(&["auth", "whoami", "--token", &token, "-o", "jsonpath={.status.userInfo.username}"]);
    assert_eq!(who.succeeded().stdout, "system:serviceaccount:default:default");
}

#[test]
fn what_is_wrong_in_a_manifest_is_refused_with_its_path() {
    let server = Server::start(&["--roles", "apiserver,controllers,operator"]);
    let manifest = pytorch_job("bad", "Never", 0, "true");
    let unknown = manifest.replacen("\"replicas\":1", "\"replicas\":1,\"replicass\":2", 1);
    server
        .kubectl_with(&["apply", "-f", "-"], &unknown)
        .failed_with(&["unknown field", "spec.pytorchReplicaSpecs.Master.replicass"]);
    let wrong = manifest.replacen("\"replicas\":1", "\"replicas\":\"one\"", 1);
    server
        .kubectl_with(&["apply", "-f", "-"], &wrong)
        .failed_with(&["spec.pytorchReplicaSpecs.Master.replicas", "integer"]);
    let two_masters = manifest.replacen("\"replicas\":1", "\"replicas\":2", 1);
    server
        .kubectl_with(&["apply", "-f", "-"], &two_masters)
        .failed_with(&["validator.pytorchjob.training-operator.kubeflow.org"]);
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"host","comand":["x"]}]}}"#;
    server.kubectl_with(&["apply", "-f", "-"], pod).failed_with(&["spec.containers[0].comand"]);
}
