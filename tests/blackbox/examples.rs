//! The examples, as their users run them, and what a killed rank does to a result: nothing. Training sets are cut short,
//! paths of outputs lead into the test's folder; all else is as the files have it.

use crate::harness::{Server, finish, has_condition, muster, within};
use crate::process;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Enough for several ranks that load PyTorch on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(300);

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn example(file: &str) -> String {
    std::fs::read_to_string(repository().join("examples").join(file)).unwrap()
}

/// What `make` puts there before it runs the tests.
fn needed(path: PathBuf, target: &str) -> PathBuf {
    assert!(path.exists(), "{} is missing: run make {target}", path.display());
    path
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map_or_else(home, PathBuf::from)
}

fn data() -> PathBuf {
    needed(cache().join("muster/fashion-mnist/complete"), "data").parent().unwrap().to_owned()
}

/// Puts something else in place of what an example says, as often as it says it.
fn with(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in the example:\n{text}");
    text.replace(from, to)
}

/// The environment that the README of the plain PyTorch example asks for: Python's first in PATH.
fn with_python(command: &mut Command) {
    let python = needed(repository().join(".venv/bin/python"), "python");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(python.parent().unwrap().to_owned()).chain(std::env::split_paths(&path));
    command.env("PATH", std::env::join_paths(folders).unwrap()).env("XDG_CACHE_HOME", cache());
}

/// What follows a mark in a log, to the end of the word.
fn after<'a>(log: &'a str, mark: &str) -> Vec<&'a str> {
    let word = |at: usize| log[at + mark.len()..].split_whitespace().next().unwrap_or_default();
    log.match_indices(mark).map(|(at, _)| word(at)).collect()
}

/// With all of its pods: the master decides, and another rank may end after it.
fn succeeds(server: &Server, job: &str) {
    within(LIMIT, &format!("{job} to succeed"), || {
        let object = server.get(&[job]);
        assert!(!has_condition(&object, "Failed"), "{object:#}\n{}", logs(server, job));
        has_condition(&object, "Succeeded").then_some(())
    });
    server.succeeds_whole(job.trim_start_matches("pytorchjob/"));
}

/// The logs of all ranks, with those of runs that were ended.
fn logs(server: &Server, job: &str) -> String {
    let name = job.rsplit('/').next().unwrap();
    let pods = server.items(&["pods", "-l", &format!("training.kubeflow.org/job-name={name}")]);
    let mut text = String::new();
    for pod in &pods {
        let pod = pod["metadata"]["name"].as_str().unwrap();
        text += &server.kubectl(&["logs", pod, "--previous"]).stdout;
        text += &server.kubectl(&["logs", pod]).stdout;
    }
    text
}

/// The example that `muster-worker` trains, with a short training and its files in the test's folder.
fn worker_job(name: &str, folder: &Path, arguments: &[&str]) -> String {
    needed(crate::harness::MUSTER.into(), "build");
    needed(Path::new(crate::harness::MUSTER).with_file_name("muster-worker"), "build");
    let job = example("fashion-mnist/pytorchjob.yaml");
    let job = with(&job, "/tmp/muster/fashion-mnist", folder.to_str().unwrap());
    let job = with(&job, "name: fashion-mnist\n", &format!("name: {name}\n"));
    let arguments: Vec<String> = arguments.iter().map(|argument| format!("                - {argument}\n")).collect();
    let data = format!("                - --data={}\n", data().display());
    let dataset = "                - --dataset=fashion-mnist\n";
    with(&job, dataset, &format!("{dataset}{data}{}", arguments.concat()))
}

/// How a training of `muster-worker` ended: the accuracy, and the hash of the parameters that all ranks hold.
#[derive(Debug, PartialEq)]
struct Trained {
    accuracy: f64,
    parameters: String,
}

fn trained(server: &Server, job: &str, folder: &Path) -> Trained {
    let metrics = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let records: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let finish = records.iter().rfind(|record| record["event"] == "finish").unwrap();
    let parameters = finish["parameters"].as_str().unwrap().to_owned();
    let logs = logs(server, job);
    assert_eq!(after(&logs, "parameters sha256:"), [&parameters, &parameters], "both ranks hold the same\n{logs}");
    Trained { accuracy: finish["accuracy"].as_f64().unwrap(), parameters }
}

#[test]
fn the_worker_example_trains() {
    let server = Server::start(&[]);
    let folder = server.path("work");
    let job = worker_job("fashion-mnist", &folder, &["--train-samples=4000", "--threads=1"]);
    server.apply(&with(&job, "--epochs=4", "--epochs=2"));
    succeeds(&server, "pytorchjob/fashion-mnist");
    let trained = trained(&server, "pytorchjob/fashion-mnist", &folder);
    assert!(trained.accuracy > 0.65, "{trained:?}");

    // What was saved is what was trained, measured by a process of its own.
    let mut eval = Command::new(Path::new(crate::harness::MUSTER).with_file_name("muster-worker"));
    eval.arg("eval").arg("--checkpoint").arg(folder.join("checkpoints")).arg("--data").arg(data());
    let libtorch = std::env::var_os("LIBTORCH").map_or_else(|| cache().join("muster/libtorch-2.11.0"), PathBuf::from);
    eval.env("LD_LIBRARY_PATH", libtorch.join("lib"));
    let measured: Value = serde_json::from_str(&finish(eval, "").succeeded().stdout).unwrap();
    assert_eq!(measured["parameters"], trained.parameters);
    assert_eq!(measured["accuracy"], trained.accuracy);
}

/// The process of a pod's rank, as the host sees it.
fn process_of(server: &Server, pod: &str) -> Option<i32> {
    let host = format!("HOSTNAME={pod}");
    let of_pod = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).split('\0').any(|variable| variable == host)
    };
    let found = process::all_of(server.dir.path()).into_iter();
    found.filter(|(_, command)| command.contains("muster-worker train")).map(|(pid, _)| pid).find(of_pod)
}

/// Trains, kills ranks as soon as there is a checkpoint to go on from, and waits for the end.
fn with_killed_ranks(server: &Server, name: &str, policy: &str, victims: &[&str]) -> Trained {
    let folder = server.path(name);
    let job = with(&recoverable(name, &folder), "restartPolicy: OnFailure", &format!("restartPolicy: {policy}"));
    server.apply(&job);
    within(LIMIT, "a checkpoint", || {
        let mut saved = std::fs::read_dir(folder.join("checkpoints")).ok()?.flatten();
        saved.any(|file| file.file_name().to_string_lossy().ends_with(".json")).then_some(())
    });
    let pods: Vec<String> = victims.iter().map(|victim| format!("{name}-{victim}")).collect();
    let pids: Vec<Option<i32>> = pods.iter().map(|pod| process_of(server, pod)).collect();
    for pid in pids {
        process::kill_hard(pid.expect("a rank is at work when its first checkpoint is there"));
    }
    let job = format!("pytorchjob/{name}");
    succeeds(server, &job);
    for pod in &pods {
        let pod = server.get(&["pod", pod]);
        let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap();
        // Either the node started the container again, in the same pod, or the operator made another pod.
        assert_eq!(restarts, i64::from(policy == "OnFailure"), "{pod:#}");
    }
    let metrics = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let starts = metrics.lines().filter(|line| line.contains("\"event\":\"start\""));
    let steps: Vec<u64> =
        starts.map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap()).collect();
    assert!(steps.len() > 1 && steps[steps.len() - 1] > 0, "nothing was taken over: {steps:?}");
    trained(server, &job, &folder)
}

fn recoverable(name: &str, folder: &Path) -> String {
    let job = worker_job(name, folder, &["--train-samples=2560", "--threads=1", "--checkpoint-every=4"]);
    with(&job, "--epochs=4", "--epochs=3")
}

#[test]
fn a_job_whose_rank_was_killed_ends_with_the_same_parameters() {
    let server = Server::start(&[]);
    let folder = server.path("calm");
    server.apply(&recoverable("calm", &folder));
    succeeds(&server, "pytorchjob/calm");
    let calm = trained(&server, "pytorchjob/calm", &folder);
    assert!(calm.accuracy > 0.55, "{calm:?}");
    assert_eq!(with_killed_ranks(&server, "worker", "OnFailure", &["worker-0"]), calm);
    assert_eq!(with_killed_ranks(&server, "master", "ExitCode", &["master-0"]), calm);
    // Nobody is left who knows the state: it comes from the checkpoint.
    assert_eq!(with_killed_ranks(&server, "both", "OnFailure", &["master-0", "worker-0"]), calm);
}

#[test]
fn the_plain_pytorch_example_trains_as_a_job() {
    let mut server = Server::prepare(&[]);
    let mut command = server.up();
    with_python(command.current_dir(repository()));
    server.start_by(command);
    let job = example("fashion-mnist-pytorch/pytorchjob.yaml");
    server.apply(&with(&job, "args: [--epochs=2]", "args: [--epochs=1, --samples=6000]"));
    succeeds(&server, "pytorchjob/fashion-mnist-pytorch");
    check_plain(&logs(&server, "pytorchjob/fashion-mnist-pytorch"));
}

#[test]
fn the_plain_pytorch_example_trains_by_muster_run() {
    let home = tempfile::Builder::new().prefix("muster-test-").tempdir().unwrap();
    let mut command = muster(home.path());
    command.args(["run", "--workers", "2", "--", "python", "train.py", "--epochs", "1", "--samples", "6000"]);
    with_python(command.current_dir(repository().join("examples/fashion-mnist-pytorch")));
    let ended = finish(command, "").succeeded();
    assert_eq!(process::all_of(home.path()), [], "something is left");
    check_plain(&ended.stdout);
}

/// Both ranks ended with the same parameters, which are good for something.
fn check_plain(log: &str) {
    let hashes = after(log, "parameters sha256:");
    assert!(hashes.len() == 2 && hashes[0] == hashes[1] && hashes[0].len() == 64, "{log}");
    let accuracies = after(log, "accuracy=");
    let accuracy: f64 = accuracies[0].parse().unwrap();
    assert!(accuracies.len() == 1 && accuracy > 0.6, "{log}");
}
