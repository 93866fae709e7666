//! `muster up` itself: settings, the lock, the kubeconfig, readiness, its end.

use crate::harness::{Server, eventually, finish, muster, pytorch_job};
use crate::process;
use std::os::unix::fs::PermissionsExt;

#[test]
fn the_kubeconfig_is_private_whole_and_of_namespace_default() {
    let server = Server::start(&["--roles", "apiserver"]);
    let path = server.path("kubeconfig");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let view = server.kubectl(&["config", "view", "--raw", "-o", "json"]).succeeded().stdout;
    let view: serde_json::Value = serde_json::from_str(&view).unwrap();
    assert!(view["clusters"][0]["cluster"]["server"].as_str().unwrap().starts_with("https://127.0.0.1:"));
    assert!(view["clusters"][0]["cluster"]["certificate-authority-data"].is_string());
    assert!(view["users"][0]["user"]["token"].is_string());
    assert_eq!(view["contexts"][0]["context"]["namespace"], "default");
}

/// The store was readable by all where the folder let them in: one that was there before, or that `muster run` had
/// made. A store of that time is closed at its next start.
#[test]
fn nothing_in_the_data_folder_is_for_others() {
    let private = |server: &Server| {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(server.path("data")).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode();
            found.push(entry.file_name().into_string().unwrap());
            assert_eq!(mode & 0o077, 0, "{:?} is open to others: {mode:o}", entry.file_name());
        }
        for file in ["store.db", "store.db-wal", "token", "ca.key", "server.key", "client.key", "sa.key"] {
            assert!(found.iter().any(|name| name == file), "{file} is not among {found:?}");
        }
    };
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let mut server = Server::prepare(&["--roles", "apiserver,node"]);
    let data = server.path("data");
    std::fs::create_dir(&data).unwrap();
    open(&data, 0o755);
    server.restart();
    private(&server);
    server.drain();
    open(&data.join("store.db"), 0o644);
    open(&data.join("store.db-wal"), 0o644);
    server.restart();
    private(&server);
}

#[test]
fn nobody_gets_in_without_a_token_or_certificate() {
    let server = Server::start(&["--roles", "apiserver"]);
    let data = server.path("data");
    let url = server.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]).stdout;
    let ca = data.join("ca.crt").display().to_string();
    let plain = |more: &[&str]| {
        let arguments =
            [&["--kubeconfig=/dev/null", "-s", &url, "--certificate-authority", &ca, "get", "namespaces"], more]
                .concat();
        server.kubectl(&arguments)
    };
    plain(&[]).failed_with(&[]);
    plain(&["--token", "guessed"]).failed_with(&["provide credentials"]);
    let (certificate, key) =
        (data.join("client.crt").display().to_string(), data.join("client.key").display().to_string());
    let by_certificate = plain(&["--client-certificate", &certificate, "--client-key", &key]).succeeded();
    assert!(by_certificate.stdout.contains("kube-system"), "{}", by_certificate.stdout);
}

#[test]
fn a_second_server_on_the_folder_says_who_holds_it() {
    let server = Server::start(&["--roles", "apiserver"]);
    let pid = server.pid().to_string();
    finish(server.up(), "").failed_with(&[&pid, "https://127.0.0.1:", "--data-dir"]);
    server.kubectl(&["get", "namespaces"]).succeeded();
}

#[test]
fn a_restart_keeps_port_token_and_objects() {
    let mut server = Server::start(&["--roles", "apiserver"]);
    let kubeconfig = || std::fs::read_to_string(server.path("kubeconfig")).unwrap();
    let before = kubeconfig();
    server.kubectl(&["create", "configmap", "kept", "--from-literal=a=1"]).succeeded();
    let uid = server.get(&["configmap", "kept"])["metadata"]["uid"].clone();
    server.drain();
    server.restart();
    assert_eq!(std::fs::read_to_string(server.path("kubeconfig")).unwrap(), before);
    assert_eq!(server.get(&["configmap", "kept"])["metadata"]["uid"], uid);
}

#[test]
fn ready_means_that_the_node_is_ready() {
    let server = Server::start(&[]);
    assert_eq!(server.kubectl(&["get", "--raw", "/readyz"]).succeeded().stdout, "ok");
    let nodes = server.items(&["nodes"]);
    assert_eq!(nodes.len(), 1);
    assert!(crate::harness::has_condition(&nodes[0], "Ready"), "{:#}", nodes[0]);
}

#[test]
fn settings_come_from_flags_variables_and_the_file_in_this_order() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(
        home.path().join("config.toml"),
        "simulated-gpus = 1\nlog-level = \"debug\"\nlog-format = \"json\"\n",
    )
    .unwrap();
    let mut command = muster(home.path());
    command.args(["up", "--dump-config", "--log-level", "warn"]).env("MUSTER_SIMULATED_GPUS", "2");
    let dumped = finish(command, "").succeeded().stdout;
    for line in ["log-level = \"warn\"", "simulated-gpus = 2", "log-format = \"json\""] {
        assert!(dumped.contains(line), "{line} is not in\n{dumped}");
    }
    let mut command = muster(home.path());
    finish(
        {
            command.args(["up", "--listen", "0.0.0.0:0"]);
            command
        },
        "",
    )
    .failed_with(&["loopback"]);
}

#[test]
fn a_drain_ends_every_process_and_a_second_signal_ends_at_once() {
    let mut server = Server::start(&[]);
    server.apply(&pytorch_job("sleeper", "Never", 1, "sleep 600 & sleep 600"));
    server.wait_for("pytorchjob/sleeper", "Running", "default");
    eventually("both ranks to run", || (process::all_of(&server.path("data")).len() >= 3).then_some(()));
    server.drain();
    assert_eq!(process::all_of(server.dir.path()), []);

    server.restart();
    server.apply(
        &pytorch_job("stubborn", "Never", 0, "trap '' TERM; while :; do sleep 1; done")
            .replace("\"terminationGracePeriodSeconds\":2", "\"terminationGracePeriodSeconds\":600"),
    );
    server.wait_for("pytorchjob/stubborn", "Running", "default");
    let pid = server.pid();
    process::signal(pid, 15);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(
        process::all_of(server.dir.path()).iter().any(|(p, _)| *p == pid),
        "the first signal drains, with patience"
    );
    process::signal(pid, 15);
    eventually("every process to end", || process::all_of(server.dir.path()).is_empty().then_some(()));
}

/// The node waited for the watch to tell that the pod's object is gone, and nobody watched any more: a drain that began
/// while a pod was on its way out took ten minutes.
#[test]
fn a_drain_waits_no_longer_for_a_pod_that_is_being_deleted_than_its_grace() {
    let mut server = Server::start(&[]);
    server.apply(
        &pytorch_job("leaving", "Never", 0, "trap '' TERM; while :; do sleep 0.1; done")
            .replace("\"terminationGracePeriodSeconds\":2", "\"terminationGracePeriodSeconds\":4"),
    );
    server.wait_for("pytorchjob/leaving", "Running", "default");
    server.kubectl(&["delete", "pytorchjob", "leaving", "--wait=false"]).succeeded();
    eventually("its pod to be on its way out", || {
        let pod = server.find(&["pod", "leaving-master-0"])?;
        (!pod["metadata"]["deletionTimestamp"].is_null()).then_some(())
    });
    server.drain();
    assert_eq!(process::all_of(server.dir.path()), []);
    server.restart();
    assert_eq!(server.find(&["pod", "leaving-master-0"]), None, "it has gone as it was asked to");
}

#[test]
fn logs_are_json_lines_where_that_is_asked_for() {
    let server = Server::start(&["--roles", "apiserver", "--log-format", "json", "--log-level", "debug"]);
    let log = server.log();
    assert!(!log.is_empty());
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    }
}
