//! Upstream's own manifests, as they are: examples of the training operator's Go module, on programs of this machine
//! that stand for the images and check what they are given.

use crate::harness::{Ended, Server, finish, has_condition, within};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The release whose PyTorchJob and TFJob are followed, and the last one with MXJob.
const CURRENT: &str = "v1.9.3";
const WITH_MXNET: &str = "v1.7.0";

/// The folder of examples of a release. Go keeps the module in its cache and checks its sum.
fn examples(version: &str) -> PathBuf {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("go");
    let module = format!("github.com/kubeflow/training-operator@{version}");
    // Outside of any module, so that none is changed.
    command.args(["mod", "download", "-json", &module]).current_dir(folder.path());
    let ended = finish(command, "");
    assert_eq!(ended.code, 0, "the module {module} could not be fetched: {} {}", ended.stdout, ended.stderr);
    let answer: Value = serde_json::from_str(&ended.stdout).unwrap();
    Path::new(answer["Dir"].as_str().unwrap()).join("examples")
}

/// The files of a folder that hold objects.
fn manifests(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(manifests(&path));
        } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Folders that stand for the images of upstream's examples, and the table that says so.
fn image_table(dir: &Path) -> PathBuf {
    let write = |path: &str, content: &str| {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let (pytorch, tensorflow, mxnet) = (
        include_str!("upstream/mnist.py"),
        include_str!("upstream/mnist_with_summaries.py"),
        include_str!("upstream/train_mnist.py"),
    );
    // Not every machine calls its Python so.
    let python = "#!/bin/sh\nexec python3 \"$@\"\n";
    for image in ["pytorch", "tensorflow", "mxnet", "byteps"] {
        write(&format!("{image}/bin/python"), python);
    }
    for (path, program) in [
        ("pytorch/opt/pytorch-mnist/mnist.py", pytorch),
        ("pytorch/var/mnist.py", pytorch),
        ("tensorflow/var/tf_mnist/mnist_with_summaries.py", tensorflow),
        ("mxnet/incubator-mxnet/example/image-classification/train_mnist.py", mxnet),
        ("byteps/usr/local/byteps/example/mxnet/train_imagenet_byteps.py", mxnet),
    ] {
        write(path, program);
        write(
            &Path::new(path).with_file_name("environment.py").to_string_lossy(),
            include_str!("upstream/environment.py"),
        );
    }
    write(
        "byteps/bin/bpslaunch",
        "#!/bin/sh\ntest -w /dev/shm || exit 3\n[ $# -gt 0 ] || set -- python3 \
         /usr/local/byteps/example/mxnet/train_imagenet_byteps.py\nexec \"$@\"\n",
    );
    write(
        "images.toml",
        r#"
[[image]]
match = "docker.io/kubeflowkatib/pytorch-mnist"
folder = "pytorch"

[[image]]
match = "ghcr.io/kubeflow/training-v1/pytorch-dist-*"
folder = "pytorch"
command = ["python", "/var/mnist.py"]

[[image]]
match = "ghcr.io/kubeflow/training-v1/tf-*"
folder = "tensorflow"
command = ["python", "/var/tf_mnist/mnist_with_summaries.py"]

[[image]]
match = "mxjob/mxnet:gpu"
folder = "mxnet"
command = ["python", "/incubator-mxnet/example/image-classification/train_mnist.py"]

[[image]]
match = "bytepsimage/*"
folder = "byteps"
"#,
    );
    dir.join("images.toml")
}

/// A server that has the images of upstream's examples, GPUs of no substance, and the namespace they are made for.
fn server(gpus: &str) -> Server {
    let mut server = Server::prepare(&[]);
    let table = image_table(&server.path("images"));
    server.flag(&["--images", table.to_str().unwrap(), "--simulated-gpus", gpus]);
    server.restart();
    server.kubectl(&["create", "namespace", "kubeflow"]).succeeded();
    server
}

/// A program that does not find what it should ends with an error; it would be started again, and again.
fn nothing_failed(server: &Server, namespace: &str) {
    for pod in server.items(&["pods", "-n", namespace]) {
        for container in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            let failed = container["restartCount"] != 0
                || container["state"]["terminated"]["exitCode"].as_i64().is_some_and(|code| code != 0)
                || container["state"]["waiting"]["message"].is_string();
            let name = pod["metadata"]["name"].as_str().unwrap();
            let log = || server.kubectl(&["logs", "-n", namespace, name]).stdout;
            assert!(!failed, "{name}: {container:#}\n{}", log());
        }
    }
}

/// Applies a manifest as it is and waits until the job has succeeded; the logs of its pods, by their names.
fn runs(
    server: &Server,
    file: &Path,
    kind: &str,
    name: &str,
    namespace: &str,
    replicas: Value,
) -> BTreeMap<String, String> {
    server.kubectl(&["apply", "-f", file.to_str().unwrap()]).succeeded();
    let job = format!("{kind}/{name}");
    let what = format!("{job} of {} to succeed and count its replicas", file.display());
    within(Duration::from_secs(180), &what, || {
        let job = server.get(&[&job, "-n", namespace]);
        assert!(!has_condition(&job, "Failed"), "{job:#}\n{}", server.log());
        nothing_failed(server, namespace);
        (has_condition(&job, "Succeeded") && counts(&job["status"]["replicaStatuses"]) == replicas).then_some(())
    });
    let label = format!("training.kubeflow.org/job-name={name}");
    // A job can succeed before all of its pods have ended; those that still run are deleted where its policy says so.
    let pods = within(Duration::from_secs(60), "the job's pods to end", || {
        let pods = server.items(&["pods", "-n", namespace, "-l", &label]);
        nothing_failed(server, namespace);
        let ended =
            |pod: &Value| pod["status"]["phase"] == "Succeeded" && pod["metadata"]["deletionTimestamp"] == Value::Null;
        pods.iter().all(ended).then_some(pods)
    });
    let log = |pod: &Value| {
        let pod = pod["metadata"]["name"].as_str().unwrap().to_owned();
        let log = server.kubectl(&["logs", "-n", namespace, &pod]).succeeded().stdout;
        (pod, log.trim().to_owned())
    };
    pods.iter().map(log).collect()
}

/// The numbers of `replicaStatuses`, without zeros and selectors.
fn counts(statuses: &Value) -> Value {
    let of_role = |status: &Value| -> Value {
        let numbers = status.as_object().unwrap().iter().filter(|(_, v)| v.as_i64().is_some_and(|n| n != 0));
        numbers.map(|(k, v)| (k.clone(), v.clone())).collect::<serde_json::Map<_, _>>().into()
    };
    let roles = statuses.as_object().into_iter().flatten();
    roles.map(|(role, status)| (role.clone(), of_role(status))).collect::<serde_json::Map<_, _>>().into()
}

fn said(lines: &[(&str, &str)]) -> BTreeMap<String, String> {
    lines.iter().map(|(pod, line)| (pod.to_string(), line.to_string())).collect()
}

#[test]
fn upstreams_pytorch_jobs_run_as_they_are() {
    let (server, examples) = (server("0"), examples(CURRENT).join("pytorch"));
    let replicas = json!({"Master": {"succeeded": 1}, "Worker": {"succeeded": 1}});
    let logs = runs(&server, &examples.join("simple.yaml"), "pytorchjob", "pytorch-simple", "kubeflow", replicas);
    assert_eq!(
        logs,
        said(&[
            ("pytorch-simple-master-0", "rank 0 of 2 met all, arguments ['--epochs=1']"),
            ("pytorch-simple-worker-0", "rank 1 of 2 met all, arguments ['--epochs=1']"),
        ])
    );
    let file = examples.join("smoke-dist/pytorch_job_sendrecv.yaml");
    let replicas = json!({"Master": {"succeeded": 1}, "Worker": {"succeeded": 3}});
    let logs = runs(&server, &file, "pytorchjob", "pytorch-dist-basic-sendrecv", "default", replicas);
    let last = &logs["pytorch-dist-basic-sendrecv-worker-2"];
    assert_eq!((logs.len(), last.as_str()), (4, "rank 3 of 4 met all, arguments []"));
}

#[test]
fn upstreams_tf_jobs_run_as_they_are() {
    let (server, examples) = (server("0"), examples(CURRENT).join("tensorflow"));
    let replicas = json!({"Worker": {"succeeded": 2}});
    let logs = runs(&server, &examples.join("simple.yaml"), "tfjob", "tfjob-simple", "kubeflow", replicas);
    assert_eq!(
        logs,
        said(&[
            ("tfjob-simple-worker-0", "worker 0 of 2 met all, arguments []"),
            ("tfjob-simple-worker-1", "worker 1 of 2 met all, arguments []"),
        ])
    );
    let file = examples.join("dist-mnist/tf_job_mnist.yaml");
    let replicas = json!({"Chief": {"succeeded": 1}, "PS": {"succeeded": 1}, "Worker": {"succeeded": 2}});
    let logs = runs(&server, &file, "tfjob", "dist-mnist-for-e2e-test", "default", replicas);
    let chief = &logs["dist-mnist-for-e2e-test-chief-0"];
    assert_eq!((logs.len(), chief.as_str()), (4, "chief 0 of 4 met all, arguments []"));
}

#[test]
fn upstreams_mxnet_jobs_run_as_they_are() {
    let (server, examples) = (server("16"), examples(WITH_MXNET).join("mxnet"));
    let roles = |servers, workers| json!({"Scheduler": {"succeeded": 1}, "Server": {"succeeded": servers}, "Worker": {"succeeded": workers}});
    let arguments =
        "['--num-epochs', '10', '--num-layers', '2', '--kv-store', 'dist_device_sync', '--gpus', '0']".to_owned();
    let worker = format!("worker 0 met all, arguments {arguments}");
    let expected = said(&[
        ("mxnet-job-scheduler-0", "GPUs: server 0: 0 worker 0: 1\nscheduler 0 met all, arguments []"),
        ("mxnet-job-server-0", "server 0 met all, arguments []"),
        ("mxnet-job-worker-0", &worker),
    ]);
    for file in ["train/mx_job_dist_gpu_v1.yaml", "mxjob_dist_v1.yaml"] {
        let logs = runs(&server, &examples.join(file), "mxjob", "mxnet-job", "default", roles(1, 1));
        assert_eq!(logs, expected, "{file}");
        server.kubectl(&["delete", "mxjob", "mxnet-job", "--wait", "--cascade=foreground"]).succeeded();
    }
    // 8 GPUs for each of two workers, and shared memory. The scheduler's end is the job's, and what then still runs may
    // be deleted.
    let file = examples.join("train/byteps_dist_gpu_v1.yaml");
    let logs = runs(&server, &file, "mxjob", "byteps-mxnet-job", "default", roles(2, 2));
    let scheduler = &logs["byteps-mxnet-job-scheduler-0"];
    assert!(scheduler.starts_with("GPUs: server 0: 0 server 1: 0 worker 0: 8 worker 1: 8\n"), "{scheduler}");
}

/// What stands for the images would notice: each variable, taken away or changed, is named.
#[test]
fn the_programs_that_stand_for_images_refuse_a_wrong_environment() {
    let folder = tempfile::tempdir().unwrap();
    image_table(folder.path());
    let run = |program: &str, env: &[(&str, &str)], change: (&str, &str)| -> Ended {
        let mut command = Command::new("python3");
        command.arg(folder.path().join(program)).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.envs(env.iter().copied()).env(change.0, change.1);
        finish(command, "")
    };
    let pytorch = [
        ("PYTHONUNBUFFERED", "1"),
        ("HOSTNAME", "a-master-0"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "1"),
        ("PET_MASTER_ADDR", "127.0.0.1"),
        ("PET_MASTER_PORT", "1"),
        ("WORLD_SIZE", "2"),
        ("RANK", "0"),
        ("PET_NODE_RANK", "0"),
        ("PET_NNODES", "2"),
    ];
    for (name, _) in pytorch {
        let changed = run("pytorch/var/mnist.py", &pytorch, (name, "7"));
        assert!(changed.code != 0 && changed.stderr.contains("wrong environment"), "{name}: {changed:?}");
    }
    let config = r#"{"cluster":{"worker":["127.0.0.1:1","127.0.0.1:2"]},"task":{"type":"worker","index":0},"environment":"cloud"}"#;
    let tensorflow = [("HOSTNAME", "a-worker-0"), ("TF_CONFIG", config)];
    for (from, to) in [("\"index\":0", "\"index\":2"), ("1:2", "1:1"), ("cloud", "edge"), ("\"task\"", "\"tusk\"")] {
        let changed = run(
            "tensorflow/var/tf_mnist/mnist_with_summaries.py",
            &tensorflow,
            ("TF_CONFIG", &config.replacen(from, to, 1)),
        );
        assert!(changed.code != 0 && changed.stderr.contains("wrong environment"), "{from}: {changed:?}");
    }
    let config = r#"{"cluster":{"scheduler":[{"url":"127.0.0.1","port":1}],"server":[{"url":"127.0.0.1","port":2}],"worker":[{"url":"127.0.0.1","port":3}]},"labels":{"scheduler":"","server":"","worker":""},"task":{"type":"worker","index":0}}"#;
    let mxnet = [
        ("HOSTNAME", "a-worker-0"),
        ("DMLC_ROLE", "worker"),
        ("DMLC_PS_ROOT_URI", "127.0.0.1"),
        ("DMLC_PS_ROOT_PORT", "1"),
        ("DMLC_NUM_SERVER", "1"),
        ("DMLC_NUM_WORKER", "1"),
        ("DMLC_USE_KUBERNETES", "1"),
        ("DMLC_WORKER_ID", "0"),
        ("MX_CONFIG", config),
        ("CUDA_VISIBLE_DEVICES", ""),
    ];
    for (name, _) in mxnet.iter().filter(|(name, _)| !["MX_CONFIG", "CUDA_VISIBLE_DEVICES"].contains(name)) {
        let changed = run("mxnet/incubator-mxnet/example/image-classification/train_mnist.py", &mxnet, (name, "7"));
        assert!(changed.code != 0 && changed.stderr.contains("wrong environment"), "{name}: {changed:?}");
    }
}

/// What upstream itself would refuse, and why: its schema of MXJob has no such field either.
const REFUSED: [(&str, &str); 1] =
    [("mxnet/tune/mx_job_tune_gpu_v1.yaml", "unknown field \"spec.mxReplicaSpecs.TunerServer.label\"")];

#[test]
fn all_of_upstreams_manifests_are_accepted() {
    let server = Server::start(&["--roles", "apiserver,controllers,operator"]);
    server.kubectl(&["create", "namespace", "kubeflow"]).succeeded();
    let mut seen = BTreeSet::new();
    for (version, kinds) in
        [(CURRENT, &["pytorch", "tensorflow"][..]), (WITH_MXNET, &["pytorch", "tensorflow", "mxnet"])]
    {
        let examples = examples(version);
        for file in kinds.iter().flat_map(|kind| manifests(&examples.join(kind))) {
            let name = file.strip_prefix(&examples).unwrap().to_str().unwrap().to_owned();
            let ended = server.kubectl(&["apply", "--dry-run=server", "-f", file.to_str().unwrap()]);
            match REFUSED.iter().find(|(refused, _)| *refused == name) {
                Some((_, reason)) => drop(ended.failed_with(&[reason])),
                None => assert_eq!(ended.code, 0, "{version} {name}: {}", ended.stderr),
            }
            // Without strictness an unknown field is dropped, as upstream drops it.
            let ended =
                server.kubectl(&["apply", "--dry-run=server", "--validate=ignore", "-f", file.to_str().unwrap()]);
            assert_eq!(ended.code, 0, "{version} {name}: {}", ended.stderr);
            seen.insert(name);
        }
    }
    assert!(seen.len() > 20, "{seen:?}");
}
