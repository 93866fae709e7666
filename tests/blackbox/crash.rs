//! SIGKILL at the worst moments: of a worker, of the server again and again, of everything.

use crate::harness::{Server, eventually, has_condition, pytorch_job, within};
use crate::process;
use http::{Request, header};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[test]
fn a_killed_worker_comes_back_and_the_job_succeeds() {
    let mut server = Server::start(&[]);
    let (mark, done) = (server.path("mark"), server.path("done"));
    // The worker hangs in its first life and finishes in its second.
    let script = format!(
        "if [ $RANK = 1 ]; then if [ -e {mark} ]; then touch {done}; exit 0; fi; touch {mark}; exec sleep 601; fi; while [ ! -e {done} ]; do sleep 0.05; done",
        mark = mark.display(),
        done = done.display(),
    );
    server.apply(&pytorch_job("restarted", "OnFailure", 1, &script));
    let victim = eventually("the worker to run", || {
        process::all_of(server.dir.path()).into_iter().find(|(_, command)| command.starts_with("sleep 601"))
    });
    let uid = server.get(&["pod", "restarted-worker-0"])["metadata"]["uid"].clone();
    process::kill_hard(victim.0);
    server.succeeds_whole("restarted");
    let pod = server.get(&["pod", "restarted-worker-0"]);
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(pod["metadata"]["uid"], uid, "restarted in place");
    assert_eq!(status["restartCount"], 1);
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 137, "{status:#}");
    server.drain();
    assert_eq!(process::all_of(server.dir.path()), []);
}

/// Creates objects one after another for as long as the server comes and goes; keeps what was answered.
struct Writer {
    answered: Arc<Mutex<BTreeMap<String, String>>>,
    count: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Writer {
    fn start(kubeconfig: &Path, threads: usize) -> Writer {
        let mut writer = Writer {
            answered: Default::default(),
            count: Default::default(),
            stop: Default::default(),
            threads: Vec::new(),
        };
        for thread in 0..threads {
            let (answered, count, stop) = (writer.answered.clone(), writer.count.clone(), writer.stop.clone());
            let kubeconfig = kubeconfig.to_owned();
            writer.threads.push(std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(write(&kubeconfig, thread, &answered, &count, &stop));
            }));
        }
        writer
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    fn stop(self) -> BTreeMap<String, String> {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        std::mem::take(&mut self.answered.lock().unwrap())
    }
}

async fn write(
    kubeconfig: &Path,
    thread: usize,
    answered: &Mutex<BTreeMap<String, String>>,
    count: &AtomicUsize,
    stop: &AtomicBool,
) {
    let connect = || async {
        let file = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await.unwrap();
        kube::Client::try_from(config).unwrap()
    };
    let mut client = connect().await;
    for i in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let name = format!("w-{thread}-{i}");
        let body =
            serde_json::to_vec(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})).unwrap();
        let request = Request::post("/api/v1/namespaces/default/configmaps")
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .unwrap();
        match tokio::time::timeout(Duration::from_secs(5), client.request::<Value>(request)).await {
            Ok(Ok(object)) => {
                let uid = object["metadata"]["uid"].as_str().unwrap().to_owned();
                answered.lock().unwrap().insert(name, uid);
                count.fetch_add(1, Ordering::SeqCst);
            }
            // Unknown: it may be there or not. The next has another name.
            _ => {
                tokio::time::sleep(Duration::from_millis(10)).await;
                client = connect().await;
            }
        }
    }
}

fn assert_all_there(server: &Server, answered: &BTreeMap<String, String>) {
    let stored: BTreeMap<String, String> = server
        .items(&["configmaps"])
        .iter()
        .map(|o| {
            (o["metadata"]["name"].as_str().unwrap().to_owned(), o["metadata"]["uid"].as_str().unwrap().to_owned())
        })
        .collect();
    let lost: Vec<&String> =
        answered.iter().filter(|(name, uid)| stored.get(*name) != Some(uid)).map(|(name, _)| name).collect();
    assert!(lost.is_empty(), "{} of {} answered writes are lost: {lost:?}", lost.len(), answered.len());
}

#[test]
fn the_server_dies_twenty_times_under_a_running_job_and_a_thousand_writes() {
    const DEATHS: usize = 20;
    const WRITES: usize = 1_000;
    let shared_memory = process::shared_memory();
    let mut server = Server::start(&[]);
    let (starts, go) = (server.path("starts"), server.path("go"));
    let script = format!(
        "echo $RANK >> {}; while [ ! -e {} ]; do sleep 0.1; done; echo finished",
        starts.display(),
        go.display()
    );
    server.apply(&pytorch_job("survivor", "OnFailure", 1, &script));
    server.wait_for("pytorchjob/survivor", "Running", "default");
    let pods = || -> Vec<(Value, Value)> {
        let pods = server.items(&["pods", "-l", "training.kubeflow.org/job-name=survivor"]);
        pods.iter().map(|pod| (pod["metadata"]["name"].clone(), pod["metadata"]["uid"].clone())).collect()
    };
    let count_starts = || std::fs::read_to_string(&starts).map(|text| text.lines().count()).unwrap_or(0);
    eventually("both ranks to run", || (count_starts() == 2).then_some(()));
    let before = pods();

    let writer = Writer::start(&server.path("kubeconfig"), 4);
    for death in 0..DEATHS {
        let goal = (death + 1) * WRITES / DEATHS;
        within(Duration::from_secs(120), "the writes to go on", || (writer.count() >= goal).then_some(()));
        server.kill();
        server.restart();
    }
    let answered = writer.stop();
    assert!(answered.len() >= WRITES);
    assert_all_there(&server, &answered);

    std::fs::write(&go, "").unwrap();
    let after = server.succeeds_whole("survivor");
    let identities: Vec<(Value, Value)> =
        after.iter().map(|pod| (pod["metadata"]["name"].clone(), pod["metadata"]["uid"].clone())).collect();
    assert_eq!(identities, before, "the pods are the same ones");
    for pod in &after {
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{pod:#}");
    }
    assert_eq!(count_starts(), 2, "each process was started once");
    let log = server.kubectl(&["logs", "survivor-worker-0"]).succeeded().stdout;
    assert_eq!(log, "finished\n");
    server.drain();
    assert_eq!(process::all_of(server.dir.path()), []);
    assert_eq!(process::shared_memory(), shared_memory);
}

#[test]
fn everything_dies_at_once_and_the_job_recovers() {
    let mut server = Server::start(&[]);
    let starts = server.path("starts");
    // The first life of each rank never ends; later ones succeed.
    let script = format!(
        "n=$(grep -c \"^$RANK$\" {starts} 2>/dev/null); echo $RANK >> {starts}; [ \"${{n:-0}}\" -ge 1 ] || exec sleep 602",
        starts = starts.display()
    );
    server.apply(&pytorch_job("phoenix", "OnFailure", 1, &script));
    let ranks = || process::all_of(server.dir.path()).into_iter().filter(|(_, c)| c.starts_with("sleep 602")).count();
    eventually("both ranks to run", || (ranks() == 2).then_some(()));
    let writer = Writer::start(&server.path("kubeconfig"), 2);
    within(Duration::from_secs(60), "some writes", || (writer.count() >= 50).then_some(()));
    for (pid, _) in process::all_of(server.dir.path()) {
        process::kill_hard(pid);
    }
    let answered = writer.stop();
    server.kill();
    eventually("everything to be dead", || process::all_of(server.dir.path()).is_empty().then_some(()));
    server.restart();
    assert_all_there(&server, &answered);
    eventually("the job to succeed", || {
        has_condition(&server.get(&["pytorchjob", "phoenix"]), "Succeeded").then_some(())
    });
    server.drain();
    assert_eq!(process::all_of(server.dir.path()), []);
}
