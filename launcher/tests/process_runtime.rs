//! The process runtime with real processes: starts, ends, signals, mounts, adoption, and nothing left behind.

#![allow(clippy::panic, reason = "a test may fail")]

use jiff::Timestamp;
use muster_api::clock::Clock;
use muster_launcher::node::supervisor::Mount;
use muster_launcher::node::{
    Command, ContainerId, ContainerStart, Executing, Exit, PodRecord, PodRuntime, ProcessConfig, ProcessRuntime,
    Recovered, Signal, StartError, Started, Volume, VolumeFile,
};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncReadExt;

fn supervisor() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    test.ancestors().nth(2).expect("target/PROFILE/deps/TEST").join("examples/supervise")
}

fn runtime(dir: &Path) -> ProcessRuntime {
    ProcessRuntime::new(ProcessConfig {
        dir: dir.to_owned(),
        muster_exe: supervisor(),
        clock: Clock::system(),
        log_max_bytes: 1 << 20,
        log_max_files: 3,
    })
    .expect("a runtime")
}

fn record() -> PodRecord {
    PodRecord {
        version: 1,
        uid: "uid-1".to_owned(),
        namespace: "default".to_owned(),
        name: "pod".to_owned(),
        devices: BTreeMap::new(),
    }
}

fn id(attempt: u32) -> ContainerId {
    ContainerId { pod_uid: "uid-1".to_owned(), container: "main".to_owned(), attempt }
}

fn shell(script: &str) -> ContainerStart {
    ContainerStart {
        id: id(0),
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec![
            ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
            ("GREETING".to_owned(), "hi".to_owned()),
        ],
        cwd: PathBuf::from("/"),
        mounts: Vec::new(),
        rootfs: None,
        pid_namespace: true,
    }
}

async fn prepared(dir: &Path) -> ProcessRuntime {
    let runtime = runtime(dir);
    runtime.prepare(record(), BTreeMap::new()).await.expect("prepared");
    runtime
}

async fn ended(runtime: &ProcessRuntime) -> Exit {
    tokio::time::timeout(Duration::from_secs(20), runtime.wait(id(0))).await.expect("it ends")
}

/// The text of the log, without times.
fn log(runtime: &ProcessRuntime) -> Vec<String> {
    let text = fs::read_to_string(runtime.log_dir(&id(0)).join("0.log")).expect("a log");
    text.lines()
        .map(|line| {
            let (time, rest) = line.split_once(' ').expect("a time");
            time.parse::<Timestamp>().expect("a timestamp");
            rest.to_owned()
        })
        .collect()
}

fn alive(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    for _ in 0..400 {
        if check() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{what}");
}

#[tokio::test]
async fn output_and_exit_code_are_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let runtime = prepared(dir.path()).await;
    runtime.start(shell("echo $GREETING; echo bad >&2; printf end; exit 3")).await.expect("started");
    let exit = ended(&runtime).await;
    assert_eq!((exit.exit_code, exit.signal, exit.lost), (3, None, false));
    assert!(exit.started_at.is_some_and(|started| started <= exit.finished_at));
    let mut lines = log(&runtime);
    lines.sort();
    assert_eq!(lines, ["stderr F bad", "stdout F hi", "stdout P end"]);
}

#[tokio::test]
async fn signals_reach_the_process_and_show_in_the_exit() {
    for pid_namespace in [true, false] {
        let dir = tempfile::tempdir().expect("a folder");
        let runtime = prepared(dir.path()).await;
        let start = ContainerStart { pid_namespace, ..shell("sleep 1000 & wait") };
        runtime.start(start).await.expect("started");
        runtime.signal(&id(0), Signal::Terminate);
        let exit = ended(&runtime).await;
        assert_eq!((exit.exit_code, exit.signal), (143, Some(15)), "namespace: {pid_namespace}");

        let dir = tempfile::tempdir().expect("a folder");
        let runtime = prepared(dir.path()).await;
        let start = ContainerStart { pid_namespace, ..shell("trap '' TERM; echo ready; while :; do sleep 0.1; done") };
        runtime.start(start).await.expect("started");
        eventually("the trap is set", || !log(&runtime).is_empty()).await;
        runtime.signal(&id(0), Signal::Terminate);
        tokio::time::sleep(Duration::from_millis(100)).await;
        runtime.signal(&id(0), Signal::Kill);
        let exit = ended(&runtime).await;
        assert_eq!((exit.exit_code, exit.signal), (137, Some(9)), "namespace: {pid_namespace}");
    }
}

#[tokio::test]
async fn nothing_outlives_the_containers_process() {
    for pid_namespace in [true, false] {
        let dir = tempfile::tempdir().expect("a folder");
        let runtime = prepared(dir.path()).await;
        let tag = format!("7{:06}", std::process::id() + u32::from(pid_namespace));
        let start = ContainerStart {
            pid_namespace,
            ..shell(&format!("setsid sleep {tag} >/dev/null 2>&1 & (setsid sh -c 'sleep {tag} & wait' &) ; sleep 0.2"))
        };
        runtime.start(start).await.expect("started");
        assert_eq!(ended(&runtime).await.exit_code, 0);
        let left = processes_with(&tag);
        assert!(left.is_empty(), "namespace: {pid_namespace}, left: {left:?}");
    }
}

/// Pids of processes that have `argument` on their command line.
fn processes_with(argument: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.split(|b| *b == 0).any(|word| word == argument.as_bytes()) && alive(pid) {
            found.push(pid);
        }
    }
    found
}

#[tokio::test]
async fn commands_that_cannot_run_say_why() {
    let dir = tempfile::tempdir().expect("a folder");
    let script = dir.path().join("script");
    fs::write(&script, "not a program").expect("written");
    let folder = dir.path().join("node");
    for (argv, want) in [
        ("no-such-program".to_owned(), "exec: \"no-such-program\": executable file not found in $PATH".to_owned()),
        ("/no/such".to_owned(), "exec: \"/no/such\": no such file or directory".to_owned()),
        (script.display().to_string(), format!("exec: {script:?}: permission denied")),
    ] {
        let runtime = prepared(&folder).await;
        let start = ContainerStart { argv: vec![argv], ..shell("") };
        assert_eq!(runtime.start(start).await, Err(StartError::Failed(want)));
    }
    let runtime = prepared(&folder).await;
    let start = ContainerStart { cwd: PathBuf::from("/no/such"), ..shell("true") };
    let Err(StartError::Failed(message)) = runtime.start(start).await else { panic!("it cannot start there") };
    assert!(message.contains("working directory /no/such"), "{message}");
}

#[tokio::test]
async fn volumes_are_seen_at_their_paths_and_nowhere_else() {
    let dir = tempfile::tempdir().expect("a folder");
    let runtime = runtime(dir.path());
    let file = |path: &str, content: &str| VolumeFile {
        path: PathBuf::from(path),
        mode: 0o444,
        content: content.as_bytes().to_vec(),
    };
    let volumes = BTreeMap::from([
        ("work".to_owned(), Volume::Empty),
        ("settings".to_owned(), Volume::Files(vec![file("a.yaml", "alpha"), file("sub/b", "beta")])),
        ("data".to_owned(), Volume::Claim { namespace: "default".to_owned(), name: "big".to_owned() }),
    ]);
    let places = runtime.prepare(record(), volumes).await.expect("prepared");
    let mount = |volume: &str, target: &str, read_only| Mount {
        source: places[volume].clone(),
        target: PathBuf::from(target),
        read_only,
    };
    let start = ContainerStart {
        mounts: vec![
            mount("work", "/muster-test-work/deep", false),
            mount("settings", "/etc/muster-test", true),
            mount("data", "/muster-test-data", false),
            Mount {
                source: places["settings"].join("a.yaml"),
                target: PathBuf::from("/var/run/muster-test/one"),
                read_only: true,
            },
        ],
        ..shell(
            "cat /etc/muster-test/a.yaml /etc/muster-test/sub/b /var/run/muster-test/one; echo; \
             echo x > /muster-test-work/deep/x; echo kept > /muster-test-data/kept; \
             touch /etc/muster-test/y 2>/dev/null || echo read-only; ls -d /etc/passwd /usr/bin /tmp; echo $$",
        )
    };
    match runtime.start(start).await {
        Ok(_) => {}
        // A machine without namespaces for us says so.
        Err(StartError::Refused(message)) => {
            assert!(message.contains("does not let the container have its mounts"), "{message}");
            return;
        }
        Err(error) => panic!("{error}"),
    }
    let exit = ended(&runtime).await;
    let lines = log(&runtime);
    assert_eq!(exit.exit_code, 0, "{lines:?}");
    assert_eq!(
        lines[..5],
        ["stdout F alphabetaalpha", "stdout F read-only", "stdout F /etc/passwd", "stdout F /tmp", "stdout F /usr/bin"]
    );
    assert!(places["work"].join("x").exists());
    assert!(dir.path().join("claims/default/big/kept").exists());
    for path in ["/muster-test-work", "/muster-test-data", "/etc/muster-test", "/run/muster-test", "/.muster-host"] {
        assert!(!Path::new(path).exists(), "{path} is left on the host");
    }
    runtime.remove("uid-1".to_owned()).await;
    assert!(!dir.path().join("pods/uid-1").exists());
    assert!(dir.path().join("claims/default/big/kept").exists());
}

#[tokio::test]
async fn a_later_node_adopts_what_runs_and_learns_how_it_ended() {
    let dir = tempfile::tempdir().expect("a folder");
    let first = prepared(dir.path()).await;
    let started = first.start(shell("echo once; sleep 0.5; exit 7")).await.expect("started");
    let quick = ContainerStart { id: ContainerId { container: "quick".to_owned(), ..id(0) }, ..shell("exit 4") };
    first.start(quick).await.expect("started");
    drop(first);
    tokio::time::sleep(Duration::from_millis(200)).await;

    let second = runtime(dir.path());
    let pods = second.recover().await.expect("recovered");
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0].record, record());
    let Recovered::Running(Started { pid, .. }) = &pods[0].containers[0].1 else { panic!("it runs: {pods:?}") };
    assert_eq!(*pid, started.pid);
    let Recovered::Exited(exit) = &pods[0].containers[1].1 else { panic!("it has ended: {pods:?}") };
    assert_eq!(exit.exit_code, 4);
    assert_eq!(ended(&second).await.exit_code, 7);
    assert_eq!(log(&second), ["stdout F once"], "it was started once");
}

/// Runs a command in the container, for as long as `limit` allows.
async fn entered(runtime: &ProcessRuntime, script: &str, limit: Duration) -> Option<(i32, String)> {
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    let ran = async {
        let command = Command { argv, ..Command::default() };
        let Executing { mut stdout, exit, .. } = runtime.exec(&id(0), command).await.expect("it is entered");
        let code = exit.await.expect("a code");
        // All that it has said waits by now, also where the output is held open.
        let mut output = vec![0; 4096];
        let count = stdout.read(&mut output).await.expect("read");
        (code, String::from_utf8_lossy(&output[..count]).into_owned())
    };
    tokio::time::timeout(limit, ran).await.ok()
}

#[tokio::test]
async fn a_command_that_times_out_leaves_nothing_that_it_has_started() {
    for pid_namespace in [true, false] {
        let dir = tempfile::tempdir().expect("a folder");
        let runtime = prepared(dir.path()).await;
        let start = ContainerStart { pid_namespace, ..shell("sleep 1000") };
        let started = runtime.start(start).await.expect("started");
        let (tag, mark) = (format!("8{:06}", std::process::id() + u32::from(pid_namespace)), dir.path().join("mark"));
        let script = format!(
            "sleep {tag} & (setsid sh -c 'sleep {tag} & wait' &) ; (setsid sleep {tag} &) ; touch {}; sleep {tag}",
            mark.display()
        );
        let going = tokio::spawn({
            let runtime = runtime.clone();
            async move { entered(&runtime, &script, Duration::from_secs(600)).await }
        });
        eventually("the command runs", || mark.exists() && processes_with(&tag).len() >= 4).await;
        going.abort();
        eventually("all that it has started is gone", || processes_with(&tag).is_empty()).await;
        assert!(alive(started.pid), "the container goes on");
        assert_eq!(entered(&runtime, "exit 3", Duration::from_secs(20)).await, Some((3, String::new())));
        runtime.remove("uid-1".to_owned()).await;
    }
}

#[tokio::test]
async fn a_command_ends_though_what_it_has_started_holds_its_output_open() {
    for pid_namespace in [true, false] {
        let dir = tempfile::tempdir().expect("a folder");
        let runtime = prepared(dir.path()).await;
        let start = ContainerStart { pid_namespace, ..shell("sleep 1000") };
        runtime.start(start).await.expect("started");
        let tag = format!("9{:06}", std::process::id() + u32::from(pid_namespace));
        let script = format!("echo asked; (setsid sleep {tag} &); exit 4");
        let ran = entered(&runtime, &script, Duration::from_secs(60)).await;
        assert_eq!(ran, Some((4, "asked\n".to_owned())), "namespace: {pid_namespace}");
        // It belongs to the container, and ends with it; where nothing would end it then, with the command.
        if pid_namespace {
            eventually("it goes on, once it has begun", || processes_with(&tag).len() == 1).await;
        } else {
            assert_eq!(processes_with(&tag), Vec::<i32>::new());
        }
        runtime.remove("uid-1".to_owned()).await;
        assert_eq!(processes_with(&tag), Vec::<i32>::new());
    }
}

#[tokio::test]
async fn a_command_has_the_containers_environment_though_its_process_has_written_over_its_own() {
    let overwrite = r#"exec python3 -uc '
import time
fields = open("/proc/self/stat").read().rsplit(")", 1)[1].split()
start, end = int(fields[47]), int(fields[48])
with open("/proc/self/mem", "r+b", 0) as memory:
    memory.seek(start)
    memory.write(b"GREETING=gone".ljust(end - start, b"\0"))
print(open("/proc/self/environ").read().strip("\0"))
time.sleep(1000)'"#;
    for pid_namespace in [true, false] {
        let dir = tempfile::tempdir().expect("a folder");
        let runtime = prepared(dir.path()).await;
        runtime.start(ContainerStart { pid_namespace, ..shell(overwrite) }).await.expect("started");
        eventually("it has written", || log(&runtime) == ["stdout F GREETING=gone"]).await;
        let ran = entered(&runtime, "echo $GREETING $PATH", Duration::from_secs(20)).await;
        assert_eq!(ran, Some((0, "hi /usr/local/bin:/usr/bin:/bin\n".to_owned())));
        runtime.remove("uid-1".to_owned()).await;
    }
}

/// From the record of the container's start.
fn supervisor_of(runtime: &ProcessRuntime) -> i32 {
    let record = fs::read_to_string(runtime.log_dir(&id(0)).join("record")).expect("a record");
    let lines = record.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let run = { lines }.find_map(|line| line.get("run").cloned()).expect("the start");
    i32::try_from(run["supervisor"].as_i64().expect("a pid")).expect("a pid")
}

fn parent_of(pid: i32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
    rest.split_whitespace().nth(1).and_then(|parent| parent.parse().ok()).unwrap_or(0)
}

/// The child of this test that forks the supervisors of `dir`.
fn forking(dir: &Path) -> nix::unistd::Pid {
    let named = processes_with(&dir.display().to_string());
    let own = { named }.into_iter().find(|pid| parent_of(*pid) == std::process::id()).expect("it runs");
    nix::unistd::Pid::from_raw(own)
}

#[tokio::test]
async fn the_process_that_supervisors_are_forked_from_may_die() {
    use nix::sys::signal::{Signal as Unix, kill};
    let dir = tempfile::tempdir().expect("a folder");
    let runtime = prepared(dir.path()).await;
    let first = runtime.start(shell("sleep 1000")).await.expect("started");
    let quick = |name: &str| ContainerId { container: name.to_owned(), ..id(0) };
    let exit = |name: &str| ContainerStart { id: quick(name), ..shell("exit 4") };

    kill(forking(dir.path()), Unix::SIGKILL).expect("killed");
    runtime.start(exit("after")).await.expect("started");
    assert_eq!(runtime.wait(quick("after")).await.exit_code, 4);

    // Killed with messages on their way, which nobody will ever read.
    let pid = forking(dir.path());
    kill(pid, Unix::SIGSTOP).expect("stopped");
    let killed = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        kill(pid, Unix::SIGKILL).expect("killed");
    };
    let (one, other, ()) = tokio::join!(runtime.start(exit("one")), runtime.start(exit("other")), killed);
    one.and(other).expect("started");
    assert_eq!(runtime.wait(quick("one")).await.exit_code, 4);
    assert_eq!(runtime.wait(quick("other")).await.exit_code, 4);

    assert!(alive(first.pid), "what was forked before goes on");
    runtime.signal(&id(0), Signal::Kill);
    assert_eq!(ended(&runtime).await.exit_code, 137);
}

#[tokio::test]
async fn a_killed_supervisor_takes_its_container_along() {
    let dir = tempfile::tempdir().expect("a folder");
    let runtime = prepared(dir.path()).await;
    let started = runtime.start(shell("sleep 1000 & sleep 1000")).await.expect("started");
    let supervisor = supervisor_of(&runtime);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(supervisor), nix::sys::signal::Signal::SIGKILL).expect("killed");
    let exit = ended(&runtime).await;
    assert_eq!((exit.exit_code, exit.lost), (137, true));
    eventually("the container's process is gone", || !alive(started.pid)).await;
}

#[tokio::test]
async fn removing_the_folder_ends_the_container() {
    for pid_namespace in [true, false] {
        let dir = tempfile::tempdir().expect("a folder");
        let runtime = prepared(dir.path()).await;
        let start = ContainerStart { pid_namespace, ..shell("sleep 1000 & sleep 1000") };
        let started = runtime.start(start).await.expect("started");
        fs::remove_dir_all(dir.path().join("pods")).expect("removed");
        eventually("the container's process is gone", || !alive(started.pid)).await;
    }
}

#[tokio::test]
async fn removing_a_pod_ends_what_runs() {
    let dir = tempfile::tempdir().expect("a folder");
    let runtime = prepared(dir.path()).await;
    let started = runtime.start(shell("trap '' TERM; sleep 1000")).await.expect("started");
    runtime.remove("uid-1".to_owned()).await;
    assert!(!alive(started.pid));
    assert!(!dir.path().join("pods/uid-1").exists());
}

#[tokio::test]
async fn a_supervisor_is_small() {
    let dir = tempfile::tempdir().expect("a folder");
    let runtime = prepared(dir.path()).await;
    runtime.start(shell("sleep 1000")).await.expect("started");
    let status = fs::read_to_string(format!("/proc/{}/status", supervisor_of(&runtime))).expect("a status");
    let rss = status.lines().find(|l| l.starts_with("VmRSS")).expect("a size");
    let anonymous = status.lines().find(|l| l.starts_with("RssAnon")).expect("a size");
    println!("{rss}, {anonymous}");
    let kib: u64 = anonymous.split_whitespace().nth(1).expect("a number").parse().expect("a number");
    assert!(kib < 1024, "{anonymous}");
    runtime.remove("uid-1".to_owned()).await;
}

#[tokio::test]
async fn trouble_of_the_supervisor_is_no_failure_of_the_container() {
    let dir = tempfile::tempdir().expect("a folder");
    let runtime = prepared(dir.path()).await;
    let log = runtime.log_dir(&id(0)).join("0.log");
    fs::create_dir_all(&log).expect("made");
    let error = runtime.start(shell("true")).await.expect_err("there is no log to write to");
    assert!(matches!(error, StartError::Machine(_)), "{error:?}");
    fs::remove_dir(&log).expect("removed");
    runtime.start(shell("exit 5")).await.expect("started");
    assert_eq!(ended(&runtime).await.exit_code, 5);
}

#[tokio::test]
async fn a_new_file_of_a_volume_follows_no_link_that_a_container_left() {
    let dir = tempfile::tempdir().expect("a folder");
    let runtime = runtime(dir.path());
    let volume = |names: &[&str]| {
        let file = |name: &&str| VolumeFile { path: PathBuf::from(name), mode: 0o644, content: b"new".to_vec() };
        BTreeMap::from([("v".to_owned(), Volume::Files(names.iter().map(file).collect()))])
    };
    let places = runtime.prepare(record(), volume(&["a"])).await.expect("prepared");
    let outside = dir.path().join("outside");
    std::os::unix::fs::symlink(&outside, places["v"].join("b")).expect("linked");
    runtime.prepare(record(), volume(&["a", "b"])).await.expect("prepared");
    assert!(!outside.exists());
    assert_eq!(fs::read(places["v"].join("b")).expect("a file"), b"new");
}
