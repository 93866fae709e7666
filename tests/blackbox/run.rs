//! `muster run` and the other commands, as a person types them.

use crate::harness::{Ended, Server, ended, eventually, finish, muster, pytorch_job};
use crate::process;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

/// `muster run` in a folder of its own, with no server around.
fn run_alone(arguments: &[&str]) -> (tempfile::TempDir, Ended) {
    let home = tempfile::Builder::new().prefix("muster-test-").tempdir().unwrap();
    let mut command = muster(home.path());
    // kubectl's own configuration is no server to run on.
    command.arg("run").args(arguments).env("HOME", home.path());
    let ended = finish(command, "");
    assert_eq!(process::all_of(home.path()), [], "something is left");
    (home, ended)
}

#[test]
fn a_command_runs_as_a_gang_without_a_server() {
    let (_, ended) = run_alone(&["--workers", "3", "--", "sh", "-c", "echo rank $RANK of $WORLD_SIZE"]);
    let ended = ended.succeeded();
    for (name, rank) in [("master-0", 0), ("worker-0", 1), ("worker-1", 2)] {
        let line = ended.stdout.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{ended:?}"));
        assert!(line.ends_with(&format!("rank {rank} of 3")), "{line}");
    }
    assert!(ended.stderr.contains("Succeeded"), "{}", ended.stderr);
}

#[test]
fn the_exit_code_is_the_jobs() {
    let (_, ended) = run_alone(&["--workers", "2", "--", "sh", "-c", "[ $RANK = 0 ] && sleep 600; echo down; exit 7"]);
    assert_eq!(ended.code, 7, "{ended:?}");
    assert!(ended.stdout.contains("down"), "{ended:?}");
}

#[test]
fn a_file_is_run_to_its_end() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("job.json");
    std::fs::write(&file, pytorch_job("filed", "Never", 1, "echo hello from $RANK")).unwrap();
    let (_, ended) = run_alone(&[file.to_str().unwrap()]);
    assert!(ended.succeeded().stdout.contains("hello from 1"));
    let (_, ended) = run_alone(&["/nowhere/job.yaml"]);
    ended.failed_with(&["/nowhere/job.yaml"]);
}

#[test]
fn ctrl_c_cancels_and_leaves_nothing() {
    let home = tempfile::Builder::new().prefix("muster-test-").tempdir().unwrap();
    let mut command = muster(home.path());
    command.args(["run", "--workers", "2", "--", "sh", "-c", "echo up; exec sleep 600"]).env("HOME", home.path());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id() as i32;
    eventually("both ranks to run", || {
        (process::all_of(home.path()).iter().filter(|(_, command)| command.contains("sleep 600")).count() >= 2)
            .then_some(())
    });
    process::signal(pid, 2);
    let ended = ended(child.wait_with_output().unwrap());
    assert_eq!(ended.code, 130, "{ended:?}");
    assert_eq!(process::all_of(home.path()), []);
}

/// The second Ctrl-C was taken as word to stop waiting for the deletion; the drain after it waited as long again.
#[test]
fn a_second_ctrl_c_ends_at_once_what_does_not_want_to_end() {
    let home = tempfile::Builder::new().prefix("muster-test-").tempdir().unwrap();
    let mut command = muster(home.path());
    let stubborn = "trap '' TERM; echo up; while :; do sleep 0.2; done";
    command.args(["run", "--workers", "2", "--", "sh", "-c", stubborn]).env("HOME", home.path());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id() as i32;
    eventually("both ranks to run", || {
        (process::all_of(home.path()).iter().filter(|(_, command)| command.starts_with("sh -c trap")).count() >= 2)
            .then_some(())
    });
    let started = std::time::Instant::now();
    process::signal(pid, 2);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(!process::all_of(home.path()).is_empty(), "the first one leaves them their time");
    process::signal(pid, 2);
    let ended = ended(child.wait_with_output().unwrap());
    assert_eq!(ended.code, 130, "{ended:?}");
    assert!(started.elapsed().as_secs() < 20, "a pod's time to end is 30 seconds: {:?}", started.elapsed());
    assert_eq!(process::all_of(home.path()), []);
}

/// What ranks wrote after Ctrl-C was lost, as nobody read their logs any more.
#[test]
fn the_last_words_of_a_cancelled_job_are_shown() {
    let home = tempfile::Builder::new().prefix("muster-test-").tempdir().unwrap();
    let mut command = muster(home.path());
    let polite = "trap 'sleep 0.3; echo kept step 7; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    command.args(["run", "--workers", "2", "--", "sh", "-c", polite]).env("HOME", home.path());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    // Both have said that they run, so both are ready to be asked to end.
    assert_eq!(lines.by_ref().filter(|line| line.ends_with("up")).take(2).count(), 2);
    process::signal(child.id() as i32, 2);
    assert_eq!(lines.filter(|line| line.ends_with("kept step 7")).count(), 2);
    let ended = ended(child.wait_with_output().unwrap());
    assert_eq!(ended.code, 130, "{ended:?}");
}

/// It ended with nothing but the number of failed replicas, or waited without a word.
#[test]
fn what_keeps_a_command_from_starting_is_said() {
    let (_, ended) = run_alone(&["--", "no-such-command"]);
    assert_eq!(ended.code, 128, "{ended:?}");
    assert!(ended.stderr.contains("master-0: StartError: exec: \"no-such-command\""), "{}", ended.stderr);

    let home = tempfile::Builder::new().prefix("muster-test-").tempdir().unwrap();
    let mut command = muster(home.path());
    command.args(["run", "--image", "unheard/of:1", "--", "true"]).env("HOME", home.path());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(
        lines.any(|line| line.contains("master-0: ErrImagePull: no entry of the image table matches")),
        "it ended without a word"
    );
    process::signal(child.id() as i32, 2);
    assert_eq!(lines.filter(|line| line.contains("ErrImagePull")).count(), 0, "said once");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// Its log was not shown, and the job's message told no more than that a replica had failed.
#[test]
fn an_init_container_that_fails_is_shown() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("job.json");
    let init = r#""initContainers":[{"name":"prepare","image":"host","command":["sh","-c","echo no data; exit 5"]}],"#;
    let job = pytorch_job("unprepared", "Never", 0, "echo never");
    let with_init = job.replacen("\"containers\"", &format!("{init}\"containers\""), 1);
    assert_ne!(job, with_init);
    std::fs::write(&file, with_init).unwrap();
    let (_, ended) = run_alone(&[file.to_str().unwrap()]);
    assert_ne!(ended.code, 0);
    assert!(ended.stderr.contains("master-0: init container prepare failed with exit code 5"), "{ended:?}");
    assert!(ended.stdout.contains("no data") && !ended.stdout.contains("never"), "{ended:?}");
}

/// They were taken and changed nothing.
#[test]
fn flags_that_a_file_cannot_follow_are_refused() {
    for flag in [["--workers", "3"], ["--gpus-per-worker", "1"], ["--image", "x"], ["--env", "A=b"]] {
        let (_, ended) = run_alone(&[flag[0], flag[1], "/nowhere/job.yaml"]);
        ended.failed_with(&["cannot be used with", "FILE"]);
    }
}

/// `$$` and `$(...)` mean something in a pod's command, and a shell's script came out changed.
#[test]
fn a_command_and_its_variables_are_taken_as_they_are_written() {
    let script = "echo shell $$ date $(echo now) var $GREETING";
    let (_, ended) = run_alone(&["-e", "GREETING=a$$b$(RANK)", "--", "sh", "-c", script]);
    let line = ended.succeeded().stdout;
    assert!(line.contains(" date now var a$$b$(RANK)"), "{line}");
    assert!(!line.contains("shell $"), "{line}");
}

#[test]
fn a_running_server_is_used() {
    let server = Server::start(&[]);
    let arguments = ["run", "--name", "here", "--", "sh", "-c", "echo on $MASTER_ADDR"];
    assert!(server.muster(&arguments).succeeded().stdout.contains("on 127.0.0.1"));
    assert!(server.muster(&["get", "pytorchjobs"]).succeeded().stdout.contains("here"));
    server.muster(&arguments).failed_with(&["already exists"]);
    server.muster(&["delete", "pytorchjob/here"]).succeeded();
    server.muster(&["run", "--rm", "--name", "gone", "--", "true"]).succeeded();
    assert_eq!(server.find(&["pytorchjob", "gone"]), None);
}

#[test]
fn the_other_commands() {
    let server = Server::start(&[]);
    let file = server.path("job.json");
    std::fs::write(&file, pytorch_job("tour", "Never", 1, "echo rank $RANK; sleep 0.2")).unwrap();
    let file = file.to_str().unwrap();
    assert!(server.muster(&["apply", "-f", file]).succeeded().stdout.contains("pytorchjob.kubeflow.org/tour created"));
    server.muster(&["wait", "pytorchjob/tour", "--for", "Succeeded", "--timeout", "60s"]).succeeded();
    server.succeeds_whole("tour");
    assert!(server.muster(&["apply", "-f", file]).succeeded().stdout.contains("unchanged"));
    let logs = server.muster(&["logs", "tour"]).succeeded().stdout;
    assert_eq!(logs, "master-0 | rank 0\nworker-0 | rank 1\n");
    assert_eq!(server.muster(&["logs", "-f", "tour"]).succeeded().stdout.lines().count(), 2);
    assert_eq!(server.muster(&["logs", "pod/tour-worker-0"]).succeeded().stdout, "rank 1\n");
    let parts =
        ["Replicas:", "Conditions:", "PyTorchJobSucceeded", "Pods:", "tour-worker-0", "Events:", "SuccessfulCreatePod"];
    eventually("the job to be described with its events", || {
        let described = server.muster(&["describe", "pytorchjob", "tour"]).succeeded().stdout;
        parts.iter().all(|part| described.contains(part)).then_some(())
    });
    assert_eq!(
        server.muster(&["get", "pod", "-o", "name"]).succeeded().stdout,
        "pod/tour-master-0\npod/tour-worker-0\n"
    );
    let yaml = server.muster(&["get", "pytorchjob", "tour", "-o", "yaml"]).succeeded().stdout;
    assert!(yaml.contains("kind: PyTorchJob") && !yaml.contains("managedFields"), "{yaml}");
    assert!(server.muster(&["get", "po", "-A", "-o", "wide"]).succeeded().stdout.starts_with("NAMESPACE"));
    server.muster(&["delete", "-f", file]).succeeded();
    server.muster(&["get", "pytorchjob", "tour"]).failed_with(&["NotFound", "\"tour\" not found"]);
    server.muster(&["logs", "tour"]).failed_with(&["no job and no pod"]);
    server.muster(&["get", "cooks"]).failed_with(&["cooks", "api-resources"]);
    assert!(server.muster(&["version"]).succeeded().stdout.contains("server v1."));
}

#[test]
fn fields_of_others_are_taken_over_only_by_a_flag_that_the_refusal_names() {
    let server = Server::start(&["--roles", "apiserver"]);
    server.kubectl(&["create", "configmap", "shared", "--from-literal=a=1"]).succeeded();
    let file = server.path("shared.json");
    std::fs::write(&file, r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"shared"},"data":{"a":"2"}}"#)
        .unwrap();
    let file = file.to_str().unwrap();
    server.muster(&["apply", "-f", file]).failed_with(&["Apply failed with 1 conflict", "--force-conflicts"]);
    server.muster(&["apply", "-f", file, "--force-conflicts"]).succeeded();
}

#[test]
fn what_waits_says_why() {
    let server = Server::start(&["--simulated-gpus", "1"]);
    let usual = server.path("images.toml");
    let waiting = |job: &str| {
        eventually("a reason", || {
            let described = server.muster(&["describe", "pytorchjob", job]).succeeded().stdout;
            let (_, reasons) = described.split_once("\nWaiting:\n")?;
            Some(reasons.split("\n\n").next().unwrap().to_owned())
        })
    };
    let gpus = pytorch_job("large", "Never", 2, "true")
        .replace("\"name\":\"pytorch\"", "\"name\":\"pytorch\",\"resources\":{\"limits\":{\"nvidia.com/gpu\":1}}");
    server.apply(&gpus);
    let reasons = eventually("one reason for all three", || {
        Some(waiting("large")).filter(|reasons| reasons.contains("and 2 more"))
    });
    assert!(reasons.contains("Insufficient nvidia.com/gpu (asks for 3, 1 free, 2 short"), "{reasons}");

    // The table that is to be written is named, although nobody has made it yet.
    server.apply(&pytorch_job("unknown", "Never", 0, "true").replace("\"host\"", "\"nowhere/image:1\""));
    let reasons = waiting("unknown");
    for part in ["ErrImagePull", usual.to_str().unwrap(), "match = \"nowhere/image\""] {
        assert!(reasons.contains(part), "{part} is not in {reasons}");
    }
    server.muster(&["logs", "unknown"]).failed_with(&["waiting to start", "muster describe pytorchjob/unknown"]);
    let pod = server.muster(&["describe", "pod", "unknown-master-0"]).succeeded().stdout;
    assert!(pod.contains("nowhere/image") && !pod.contains("\n:"), "labels have one heading:\n{pod}");
    server.muster(&["scale", "pod/unknown-master-0", "--replicas", "2"]).failed_with(&["cannot be scaled"]);
    server.muster(&["scale", "pod/missing", "--replicas", "2"]).failed_with(&["\"missing\" not found"]);
}

#[test]
fn every_command_explains_itself_with_examples() {
    let home = tempfile::tempdir().unwrap();
    for command in ["up", "run", "apply", "get", "describe", "logs", "scale", "wait", "delete", "version", "completion"]
    {
        let mut help = muster(home.path());
        help.args([command, "--help"]);
        let help = finish(help, "").succeeded().stdout;
        assert!(help.contains("Examples:\n  ") && help.contains(&format!("muster {command}")), "{help}");
    }
    let mut nothing = muster(home.path());
    nothing.arg("run");
    finish(nothing, "").failed_with(&["muster run [OPTIONS] <FILE>", "muster run [OPTIONS] -- <COMMAND>"]);
}

#[test]
fn without_a_server_the_error_says_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let get = || {
        let mut command = muster(home.path());
        command.args(["get", "pods"]).env("HOME", home.path());
        finish(command, "")
    };
    get().failed_with(&["muster up"]);
    for shell in ["bash", "zsh", "fish"] {
        let mut command = muster(home.path());
        command.args(["completion", shell]);
        assert!(finish(command, "").succeeded().stdout.contains("muster"));
    }
}
