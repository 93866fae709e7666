//! Starting, stopping and looking at a `muster up`.

use crate::process;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) const MUSTER: &str = env!("CARGO_BIN_EXE_muster");

/// A server with folders of its own. Dropped, it leaves no process behind, and fails the test if anything panicked.
pub(crate) struct Server {
    pub(crate) dir: TempDir,
    flags: Vec<String>,
    child: Option<Child>,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Server {
    pub(crate) fn start(flags: &[&str]) -> Server {
        let mut server = Server::prepare(flags);
        server.restart();
        server
    }

    /// The folders and flags, without a process.
    pub(crate) fn prepare(flags: &[&str]) -> Server {
        let dir = tempfile::Builder::new().prefix("muster-test-").tempdir().unwrap();
        Server { dir, flags: flags.iter().map(|f| f.to_string()).collect(), child: None }
    }

    /// Further flags, for the next start.
    pub(crate) fn flag(&mut self, flags: &[&str]) {
        self.flags.extend(flags.iter().map(|flag| flag.to_string()));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.as_ref().expect("a started server").id() as i32
    }

    /// The command that starts this server, without its streams.
    pub(crate) fn up(&self) -> Command {
        let mut command = muster(self.dir.path());
        command.args(["up", "--listen", "127.0.0.1:0", "--data-dir"]).arg(self.path("data"));
        command.arg("--kubeconfig").arg(self.path("kubeconfig")).args(&self.flags);
        command
    }

    /// Starts the process (again) and waits until it says that it is ready.
    pub(crate) fn restart(&mut self) {
        let command = self.up();
        self.start_by(command);
    }

    pub(crate) fn start_by(&mut self, mut command: Command) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.child = Some(child);
        assert!(line.contains("ready"), "muster up did not become ready: {line:?}\n{}", self.log());
    }

    /// SIGKILL, and the wait for it.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("a started server");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM: the ordered end.
    pub(crate) fn drain(&mut self) {
        let mut child = self.child.take().expect("a started server");
        process::signal(child.id() as i32, libc_sigterm());
        eventually("the server to end", || child.try_wait().unwrap().is_some().then_some(()));
        let status = child.wait().unwrap();
        assert!(status.success(), "drained with {status}\n{}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Ended {
        self.kubectl_with(arguments, "")
    }

    /// kubectl with something on its standard input.
    pub(crate) fn kubectl_with(&self, arguments: &[&str], input: &str) -> Ended {
        let mut command = Command::new("kubectl");
        command.args(arguments).env("KUBECONFIG", self.path("kubeconfig")).env("HOME", self.dir.path());
        finish(command, input)
    }

    /// A muster command against this server.
    pub(crate) fn muster(&self, arguments: &[&str]) -> Ended {
        let mut command = muster(self.dir.path());
        command.args(arguments).env("KUBECONFIG", self.path("kubeconfig"));
        finish(command, "")
    }

    pub(crate) fn apply(&self, manifest: &str) -> Ended {
        self.kubectl_with(&["apply", "-f", "-"], manifest).succeeded()
    }

    /// An object, or None where there is none.
    pub(crate) fn find(&self, what: &[&str]) -> Option<Value> {
        let arguments = [&["get", "-o", "json", "--ignore-not-found"], what].concat();
        let ended = self.kubectl(&arguments).succeeded();
        (!ended.stdout.trim().is_empty()).then(|| serde_json::from_str(&ended.stdout).unwrap())
    }

    pub(crate) fn get(&self, what: &[&str]) -> Value {
        self.find(what).unwrap_or_else(|| panic!("there is no {what:?}"))
    }

    pub(crate) fn items(&self, what: &[&str]) -> Vec<Value> {
        // An empty list is nothing at all to kubectl.
        self.find(what).map(|list| list["items"].as_array().unwrap().clone()).unwrap_or_default()
    }

    /// Waits until a job has a condition; a job that ended otherwise fails the test.
    pub(crate) fn wait_for(&self, what: &str, condition: &str, namespace: &str) -> Value {
        eventually(&format!("{what} to be {condition}"), || {
            let object = self.get(&[what, "-n", namespace]);
            for end in ["Failed", "Succeeded"] {
                assert!(
                    end == condition || !has_condition(&object, end),
                    "{what} is {end}: {object:#}\n{}",
                    self.log()
                );
            }
            has_condition(&object, condition).then_some(object)
        })
    }

    /// Waits until a PyTorchJob has succeeded and all of its pods have: its master decides alone, and another rank may
    /// end after it.
    pub(crate) fn succeeds_whole(&self, job: &str) -> Vec<Value> {
        self.wait_for(&format!("pytorchjob/{job}"), "Succeeded", "default");
        let label = format!("training.kubeflow.org/job-name={job}");
        eventually(&format!("all pods of {job} to succeed"), || {
            let pods = self.items(&["pods", "-l", &label]);
            pods.iter().all(|pod| pod["status"]["phase"] == "Succeeded").then_some(pods)
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        process::end_all_of(self.dir.path());
        if !std::thread::panicking() {
            let log = self.log();
            assert!(!log.contains("panicked"), "something panicked:\n{log}");
        }
    }
}

impl Ended {
    #[track_caller]
    pub(crate) fn succeeded(self) -> Ended {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub(crate) fn failed_with(self, parts: &[&str]) -> Ended {
        assert_ne!(self.code, 0, "stdout: {}", self.stdout);
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {:?}", self.stderr);
        }
        self
    }
}

/// `muster` with nothing of this machine's settings.
pub(crate) fn muster(home: &Path) -> Command {
    let mut command = Command::new(MUSTER);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("MUSTER_") || text.starts_with("XDG_") || text == "KUBECONFIG" {
            command.env_remove(&name);
        }
    }
    command.env("MUSTER_HOME", home).env("NO_COLOR", "1");
    command
}

/// Runs a command to its end.
pub(crate) fn finish(mut command: Command, input: &str) -> Ended {
    use std::io::Write;
    let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
    let mut child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).unwrap();
    }
    ended(child.wait_with_output().unwrap())
}

pub(crate) fn ended(output: Output) -> Ended {
    use std::os::unix::process::ExitStatusExt;
    Ended {
        code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Polls until there is an answer; gives up, loudly, after a time that only a broken server needs.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    within(Duration::from_secs(60), what, probe)
}

#[track_caller]
pub(crate) fn within<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(started.elapsed() < limit, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn has_condition(object: &Value, condition: &str) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|c| c["type"] == condition && c["status"] == "True")
}

fn libc_sigterm() -> i32 {
    nix::sys::signal::Signal::SIGTERM as i32
}

/// A PyTorchJob of shell commands, one for the master and one for each worker.
pub(crate) fn pytorch_job(name: &str, restart_policy: &str, workers: u32, script: &str) -> String {
    let replica = |replicas: u32| {
        serde_json::json!({
            "replicas": replicas, "restartPolicy": restart_policy,
            "template": {"spec": {"terminationGracePeriodSeconds": 2, "containers": [
                {"name": "pytorch", "image": "host", "command": ["sh", "-c", script]}]}},
        })
    };
    let mut replicas = serde_json::json!({"Master": replica(1)});
    if workers > 0 {
        replicas["Worker"] = replica(workers);
    }
    serde_json::json!({
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name},
        "spec": {"pytorchReplicaSpecs": replicas},
    })
    .to_string()
}
