//! Gangs: whole or not at all, side by side, and a reason where they wait.

use crate::harness::{Server, eventually, pytorch_job};

#[test]
fn jobs_of_one_name_run_side_by_side_in_two_namespaces() {
    let server = Server::start(&[]);
    // Each master listens on its port until its worker has called: with one port for both, one would fail.
    let script = r#"
if [ "$RANK" = 0 ]; then
  exec python3 -c 'import os,socket
s=socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("", int(os.environ["MASTER_PORT"]))); s.listen(); c,_=s.accept(); print("called by", c.recv(100).decode())'
fi
exec python3 -c 'import os,socket,time
for _ in range(600):
  try: c=socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))); break
  except OSError: time.sleep(0.05)
c.sendall(os.environ["WHO"].encode()); print("sent")'"#;
    for namespace in ["one", "two"] {
        server.kubectl(&["create", "namespace", namespace]).succeeded();
    }
    for namespace in ["one", "two"] {
        let job = pytorch_job("twin", "Never", 1, &format!("WHO={namespace}; export WHO; {script}"));
        server.kubectl_with(&["apply", "-n", namespace, "-f", "-"], &job).succeeded();
    }
    for namespace in ["one", "two"] {
        server.wait_for("pytorchjob/twin", "Succeeded", namespace);
        let log = server.kubectl(&["logs", "-n", namespace, "twin-master-0"]).succeeded().stdout;
        assert_eq!(log.trim(), format!("called by {namespace}"));
    }
}

#[test]
fn a_gang_larger_than_the_machine_waits_whole_and_says_why() {
    let server = Server::start(&["--simulated-gpus", "2"]);
    let with_gpu = |name: &str, workers: u32| {
        pytorch_job(name, "Never", workers, "echo $CUDA_VISIBLE_DEVICES; sleep 1")
            .replace("\"name\":\"pytorch\"", "\"name\":\"pytorch\",\"resources\":{\"limits\":{\"nvidia.com/gpu\":1}}")
    };
    server.apply(&with_gpu("large", 2));
    let pods = || server.items(&["pods", "-l", "training.kubeflow.org/job-name=large"]);
    let message = eventually("a reason on every pod", || {
        let pods = pods();
        let reasons: Vec<String> = pods
            .iter()
            .filter_map(|pod| {
                pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "PodScheduled")?["message"]
                    .as_str()
                    .map(str::to_owned)
            })
            .collect();
        (pods.len() == 3 && reasons.len() == 3).then(|| reasons[0].clone())
    });
    assert!(message.contains("nvidia.com/gpu"), "{message}");
    let described = server.kubectl(&["describe", "pytorchjob", "large"]).succeeded().stdout;
    assert!(described.contains("nvidia.com/gpu"), "{described}");

    // What fits beside it runs; the large one is still whole and waiting.
    server.apply(&with_gpu("fits", 1));
    server.wait_for("pytorchjob/fits", "Succeeded", "default");
    for pod in pods() {
        assert_eq!(pod["spec"]["nodeName"], serde_json::Value::Null, "placed in part");
        assert_eq!(pod["status"]["phase"], "Pending");
    }
    let mut devices: Vec<String> = server
        .kubectl(&["logs", "-l", "training.kubeflow.org/job-name=fits"])
        .succeeded()
        .stdout
        .lines()
        .map(str::to_owned)
        .collect();
    devices.dedup();
    assert_eq!(devices.len(), 2, "each has a GPU of its own: {devices:?}");
}
