//! What the node does for a pod besides running it: probes, lifecycle hooks, and saying what it cannot do.

use crate::harness::{Server, eventually, has_condition};
use crate::process;
use serde_json::{Value, json};

/// A pod of one container, a shell script.
fn pod(name: &str, script: &str, container: Value, spec: Value) -> String {
    let mut main = json!({"name": "main", "image": "host", "command": ["sh", "-c", script]});
    main.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                         "spec": {"containers": [main], "terminationGracePeriodSeconds": 30}});
    pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    pod.to_string()
}

fn events(server: &Server, pod: &str, reason: &str) -> Vec<String> {
    let selector = format!("involvedObject.name={pod},reason={reason}");
    let found = server.items(&["events", "--field-selector", &selector]);
    found.iter().map(|event| event["message"].as_str().unwrap().to_owned()).collect()
}

fn event(server: &Server, pod: &str, reason: &str) -> String {
    eventually(&format!("an event {reason} on {pod}"), || events(server, pod, reason).into_iter().next())
}

fn container(server: &Server, name: &str) -> Value {
    server.get(&["pod", name])["status"]["containerStatuses"][0].clone()
}

#[test]
fn a_pod_is_ready_as_long_as_its_readiness_probe_says_so() {
    let server = Server::start(&[]);
    let gate = server.path("gate");
    // The probe runs where the container does: with its variables, its folder, its volumes.
    let asks = json!({"exec": {"command": ["sh", "-c",
        format!("test \"$PWD $GREETING\" = '/probed hi' && test -e from-container && test -e {}", gate.display())]},
        "periodSeconds": 1, "failureThreshold": 1});
    let more = json!({"readinessProbe": asks, "env": [{"name": "GREETING", "value": "hi"}], "workingDir": "/probed",
                      "volumeMounts": [{"name": "v", "mountPath": "/probed"}]});
    let volumes = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
    server.apply(&pod("asked", "touch from-container; exec sleep 600", more, volumes));
    assert!(event(&server, "asked", "Unhealthy").starts_with("Readiness probe failed: "));
    let before = server.get(&["pod", "asked"]);
    assert_eq!(before["status"]["phase"], "Running");
    assert!(!has_condition(&before, "Ready") && !has_condition(&before, "ContainersReady"), "{before:#}");
    assert_eq!(before["status"]["containerStatuses"][0]["ready"], false);
    assert_eq!(before["status"]["containerStatuses"][0]["started"], true);

    std::fs::write(&gate, "").unwrap();
    server.kubectl(&["wait", "pod/asked", "--for=condition=Ready", "--timeout=60s"]).succeeded();
    std::fs::remove_file(&gate).unwrap();
    server.kubectl(&["wait", "pod/asked", "--for=condition=Ready=false", "--timeout=60s"]).succeeded();
    assert_eq!(container(&server, "asked")["restartCount"], 0);
}

#[test]
fn nothing_is_left_of_a_probe_that_took_too_long() {
    // What its command had left running ended with its container.
    let server = Server::start(&[]);
    let mark = server.path("asked");
    let asks = json!({"exec": {"command": ["sh", "-c", format!("tail -f /dev/null {} & wait", mark.display())]},
                      "timeoutSeconds": 1, "periodSeconds": 600});
    server.apply(&pod("slow", "exec sleep 600", json!({"readinessProbe": asks}), json!({})));
    assert!(event(&server, "slow", "Unhealthy").contains("no answer within 1 s"));
    eventually("the probe's command to end", || {
        let left = process::all_of(server.dir.path());
        let left = left.iter().any(|(_, command)| command.starts_with("tail"));
        (!left).then_some(())
    });
}

#[test]
fn a_container_that_fails_its_liveness_probe_is_started_again() {
    let server = Server::start(&[]);
    let (port, sick) = (server.path("port"), server.path("sick"));
    let script = format!(
        r#"exec python3 -c '
import http.server, os
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500 if self.path == "/health?x=1" and os.path.exists("{}") else 200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(open("{}").read())), Answer).serve_forever()'"#,
        sick.display(),
        port.display()
    );
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    std::fs::write(&port, free.to_string()).unwrap();
    let more = json!({
        "ports": [{"name": "web", "containerPort": free}],
        "startupProbe": {"tcpSocket": {"port": "web"}, "periodSeconds": 1, "failureThreshold": 100},
        "livenessProbe": {"httpGet": {"port": "web", "path": "/health?x=1"}, "periodSeconds": 1, "failureThreshold": 2,
                          "timeoutSeconds": 20},
    });
    server.apply(&pod("alive", &script, more, json!({})));
    eventually("the start", || (container(&server, "alive")["started"] == true).then_some(()));
    server.kubectl(&["wait", "pod/alive", "--for=condition=Ready", "--timeout=60s"]).succeeded();
    assert_eq!(container(&server, "alive")["restartCount"], 0);
    std::fs::write(&sick, "").unwrap();
    assert!(event(&server, "alive", "Killing").contains("failed liveness probe"));
    std::fs::remove_file(&sick).unwrap();
    eventually("another start", || (container(&server, "alive")["restartCount"].as_i64()? >= 1).then_some(()));
    server.kubectl(&["wait", "pod/alive", "--for=condition=Ready", "--timeout=60s"]).succeeded();
    let messages = events(&server, "alive", "Unhealthy");
    assert!(messages.iter().any(|m| m.ends_with("HTTP probe failed with statuscode: 500")), "{messages:?}");
}

#[test]
fn hooks_run_after_the_start_and_before_the_end() {
    let server = Server::start(&[]);
    let (notes, gate) = (server.path("notes"), server.path("gate"));
    let (notes_path, gate_path) = (notes.display(), gate.display());
    let note = |what: &str| json!({"exec": {"command": ["sh", "-c", format!("echo {what} >> {notes_path}")]}});
    let wait = format!("until [ -e {gate_path} ]; do sleep 0.05; done; echo started >> {notes_path}");
    let hooks = json!({"postStart": {"exec": {"command": ["sh", "-c", wait]}}, "preStop": note("asked")});
    let script = format!("trap 'echo ended >> {notes_path}; exit 0' TERM; while :; do sleep 0.05; done");
    server.apply(&pod("hooked", &script, json!({"lifecycle": hooks}), json!({})));
    event(&server, "hooked", "Started");
    let before = server.get(&["pod", "hooked"]);
    assert!(!has_condition(&before, "Ready"), "ready before its hook has ended: {before:#}");
    std::fs::write(&gate, "").unwrap();
    server.kubectl(&["wait", "pod/hooked", "--for=condition=Ready", "--timeout=60s"]).succeeded();
    server.kubectl(&["delete", "pod", "hooked", "--wait"]).succeeded();
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "started\nasked\nended\n");

    let fails = json!({"lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo no luck; exit 3"]}}}});
    server.apply(&pod("unlucky", "exec sleep 600", fails, json!({"restartPolicy": "Never"})));
    assert_eq!(event(&server, "unlucky", "FailedPostStartHook"), "PostStartHook failed: no luck");
    server.kubectl(&["wait", "pod/unlucky", "--for=jsonpath={.status.phase}=Failed", "--timeout=60s"]).succeeded();
}

#[test]
fn what_a_pod_cannot_have_is_told() {
    let server = Server::start(&[]);
    let own = nix::unistd::geteuid().as_raw();
    let more = json!({"securityContext": {"runAsUser": own + 1, "readOnlyRootFilesystem": true},
                      "livenessProbe": {"grpc": {"port": 1}}});
    server.apply(&pod("wishes", "exec sleep 600", more, json!({"securityContext": {"fsGroup": 7}})));
    assert_eq!(
        event(&server, "wishes", "NotSupported"),
        "this node does not carry out: livenessProbe, securityContext.fsGroup, \
         securityContext.readOnlyRootFilesystem, securityContext.runAsUser"
    );
    let own = json!({"securityContext": {"runAsUser": own, "privileged": false}});
    server.apply(&pod("modest", "exec sleep 600", own, json!({})));
    event(&server, "modest", "Started");
    assert_eq!(events(&server, "modest", "NotSupported"), Vec::<String>::new());
}

#[test]
fn an_unpacked_image_is_the_root_of_its_containers() {
    let mut server = Server::prepare(&[]);
    let bundle = server.path("bundle");
    let write = |path: &str, text: &str| {
        let path = bundle.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let source = r#"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int count, char **argument) {
    char text[100] = "";
    FILE *marker = fopen("/etc/marker", "r");
    if (marker) fgets(text, sizeof text, marker);
    printf("%s FROM_IMAGE=%s, python3 is %s\n", text, getenv("FROM_IMAGE"), access("/usr/bin/python3", F_OK) ? "away" : "there");
    printf("in %s, written: %d, argument: %s\n", getcwd(text, sizeof text), fopen("out", "w") != 0, count > 1 ? argument[1] : "none");
}"#;
    write("program.c", source);
    write("rootfs/etc/marker", "of the image");
    write("rootfs/srv/readme", "");
    write("config.json", r#"{"process": {"args": ["/program"], "env": ["PATH=/", "FROM_IMAGE=yes"], "cwd": "/srv"}}"#);
    let mut compiler = std::process::Command::new("gcc");
    compiler.args(["-static", "-o"]).arg(bundle.join("rootfs/program")).arg(bundle.join("program.c"));
    crate::harness::finish(compiler, "").succeeded();
    let table = server.path("table.toml");
    std::fs::write(&table, "[[image]]\nmatch = \"example.com/unpacked\"\noci = \"bundle\"\n").unwrap();
    server.flag(&["--images", table.to_str().unwrap()]);
    server.restart();

    let run = ["run", "unpacked", "--image=example.com/unpacked:1", "--restart=Never", "--", "hello"];
    server.kubectl(&run).succeeded();
    server.kubectl(&["wait", "pod/unpacked", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s"]).succeeded();
    assert_eq!(
        server.kubectl(&["logs", "unpacked"]).succeeded().stdout,
        "of the image FROM_IMAGE=yes, python3 is away\nin /srv, written: 1, argument: hello\n"
    );
    // What a container writes is its own.
    assert!(!bundle.join("rootfs/srv/out").exists());
}

#[test]
fn environment_volumes_and_init_containers_reach_the_process() {
    let server = Server::start(&[]);
    let shared = json!({"name": "shared", "mountPath": "/muster-test"});
    let manifest = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "whole"},
        "spec": {
            "restartPolicy": "Never",
            "initContainers": [{"name": "one", "image": "host", "volumeMounts": [shared],
                                "command": ["sh", "-c", "echo first > /muster-test/file"]}],
            "containers": [{
                "name": "main", "image": "host", "workingDir": "/muster-test",
                "command": ["sh", "-c", "cat file; echo $(NAME) $0 $A $K; cat /muster-settings/k"], "args": ["$(A)-x"],
                "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "A", "value": "a$(NAME)"},
                        {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "k"}}}],
                "volumeMounts": [shared, {"name": "settings", "mountPath": "/muster-settings"}]}],
            "volumes": [{"name": "shared", "emptyDir": {}},
                        {"name": "settings", "secret": {"secretName": "settings"}}],
        },
    });
    server.kubectl(&["create", "secret", "generic", "settings", "--from-literal=k=secret"]).succeeded();
    server.apply(&manifest.to_string());
    // What is missing holds the container until it is there.
    let waiting = eventually("the missing map to be named", || {
        let waiting = container(&server, "whole")["state"]["waiting"].clone();
        (waiting["reason"] == "CreateContainerConfigError").then_some(waiting)
    });
    assert_eq!(waiting["message"], "configmap \"late\" not found");
    server.kubectl(&["create", "configmap", "late", "--from-literal=k=v"]).succeeded();
    server.kubectl(&["wait", "pod/whole", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s"]).succeeded();
    assert_eq!(server.kubectl(&["logs", "whole"]).succeeded().stdout, "first\nwhole awhole-x awhole v\nsecret");
    assert!(!std::path::Path::new("/muster-test").exists(), "a mount reached the machine");
}

#[test]
fn a_container_is_started_again_in_its_pod_and_its_first_log_is_kept() {
    let server = Server::start(&[]);
    let count = server.path("count");
    let script = format!(
        "echo x >> {0}; n=$(wc -l < {0}); echo start $n; [ $n -ge 2 ] && exec sleep 600; exit 9",
        count.display()
    );
    server.apply(&pod("again", &script, json!({}), json!({"restartPolicy": "OnFailure"})));
    let again = eventually("the second start", || {
        let status = container(&server, "again");
        (status["restartCount"] == 1 && status["state"]["running"].is_object()).then_some(status)
    });
    assert_eq!(again["lastState"]["terminated"]["exitCode"], 9);
    assert_eq!(server.kubectl(&["logs", "again", "--previous"]).succeeded().stdout, "start 1\n");
    eventually("the second log", || (server.kubectl(&["logs", "again"]).stdout == "start 2\n").then_some(()));

    let nothing = json!({"command": ["no-such-program"]});
    server.apply(&pod("nothing", "", nothing, json!({"restartPolicy": "Never"})));
    server.kubectl(&["wait", "pod/nothing", "--for=jsonpath={.status.phase}=Failed", "--timeout=60s"]).succeeded();
    let ended = container(&server, "nothing")["state"]["terminated"].clone();
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(128), &json!("StartError")));
    assert!(ended["message"].as_str().unwrap().contains("no-such-program"), "{ended}");
}

#[test]
fn deadlines_and_grace_end_what_does_not_end_itself() {
    let server = Server::start(&[]);
    server.apply(&pod("late", "exec sleep 600", json!({}), json!({"activeDeadlineSeconds": 1})));
    server.kubectl(&["wait", "pod/late", "--for=jsonpath={.status.phase}=Failed", "--timeout=60s"]).succeeded();
    assert_eq!(server.get(&["pod", "late"])["status"]["reason"], "DeadlineExceeded");
    let stubborn = "trap '' TERM; echo deaf; while :; do sleep 0.1; done";
    server.apply(&pod("stubborn", stubborn, json!({}), json!({"terminationGracePeriodSeconds": 1})));
    eventually("its trap to be set", || server.kubectl(&["logs", "stubborn"]).stdout.contains("deaf").then_some(()));
    server.kubectl(&["delete", "pod", "stubborn", "--wait", "--timeout=60s"]).succeeded();
    let left = crate::process::all_of(server.dir.path());
    assert!(!left.iter().any(|(_, command)| command.contains("deaf")), "{left:?}");
}
