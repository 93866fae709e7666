//! A server that is not root: its containers are isolated by user namespaces.

use crate::harness::{Server, eventually, pytorch_job};
use crate::process;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

const NOBODY: u32 = 65534;

/// A command of a user who may do nothing special.
fn as_nobody(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", dir).env("MUSTER_HOME", dir);
    command.current_dir(dir).uid(NOBODY).gid(NOBODY);
    command
}

/// Why this cannot be tried here.
fn obstacle(dir: &Path) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some(
            "only root can start a server as somebody else; all other tests run without privileges".to_owned(),
        );
    }
    let mut tried = as_nobody(Path::new("unshare"), dir);
    tried.args(["--user", "--map-current-user", "--mount", "--pid", "--fork", "--mount-proc", "true"]);
    match tried.stdin(Stdio::null()).output() {
        Err(error) => Some(format!("unshare cannot be run: {error}")),
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "the kernel gives this user no namespaces: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

#[test]
fn a_server_without_privileges_runs_a_job_and_leaves_no_process() {
    let mut server = Server::prepare(&[]);
    std::fs::set_permissions(server.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let home = server.path("home");
    std::fs::create_dir(&home).unwrap();
    if let Some(why) = obstacle(&home) {
        println!("skipped: {why}");
        return;
    }
    chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
    // Where it was built may be closed to others.
    let program = server.path("muster");
    std::fs::copy(crate::harness::MUSTER, &program).unwrap();
    let mut up = as_nobody(&program, &home);
    up.args(["up", "--listen", "127.0.0.1:0", "--data-dir"]).arg(home.join("data"));
    up.arg("--kubeconfig").arg(home.join("kubeconfig"));
    server.start_by(up);
    std::os::unix::fs::symlink(home.join("kubeconfig"), server.path("kubeconfig")).unwrap();

    let tag = format!("617.{:06}", std::process::id());
    let script = format!(
        "echo as $(id -u) is $$$$; sleep {tag} & (setsid sleep {tag} &); (setsid sh -c 'sleep {tag} & wait' &); sleep 0.3"
    );
    server.apply(&pytorch_job("plain", "Never", 1, &script));
    server.succeeds_whole("plain");
    let left = process::all_of(Path::new(&tag));
    assert!(left.is_empty(), "left after their pods: {left:?}");
    for pod in ["plain-master-0", "plain-worker-0"] {
        let log = server.kubectl(&["logs", pod]).succeeded().stdout;
        // Of a PID namespace of its own it is the first process but one.
        assert_eq!(log, format!("as {NOBODY} is 2\n"));
    }

    // Ended from outside, too, nothing is left.
    server.apply(&pytorch_job("endless", "Never", 0, &format!("(setsid sleep {tag} &); echo up; exec sleep {tag}")));
    server.wait_for("pytorchjob/endless", "Running", "default");
    eventually("its processes", || (process::all_of(Path::new(&tag)).len() >= 2).then_some(()));
    server.kubectl(&["delete", "pytorchjob", "endless", "--wait"]).succeeded();
    eventually("its pod to end", || {
        server.items(&["pods", "-l", "training.kubeflow.org/job-name=endless"]).is_empty().then_some(())
    });
    let left = process::all_of(Path::new(&tag));
    assert!(left.is_empty(), "left after their pod: {left:?}");
    server.drain();
    let left = process::all_of(&home);
    assert!(left.is_empty(), "left after the server: {left:?}");
}
