//! `make bench`: how fast the real `muster` starts, answers, places and runs, on this machine. Each figure is taken
//! with its raw values; results go to `benches/results/DATE-MACHINE/control-plane.json`.
//!
//! `cargo bench --bench control-plane -- [NAME]...` runs some of: ready gang jobs memory writes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a benchmark may fail, wait and start things"
)]

use futures::{AsyncBufReadExt, TryStreamExt};
use http::{Request, header};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

const JOBS: &str = "/apis/kubeflow.org/v1/namespaces/default/pytorchjobs";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

static LEFT: Mutex<Vec<TempDir>> = Mutex::new(Vec::new());

/// A `muster up` in a folder of its own.
struct Server {
    child: Child,
    dir: TempDir,
    ready: Duration,
}

impl Server {
    fn start(flags: &[&str]) -> Server {
        Server::start_in(tempfile::Builder::new().prefix("muster-bench-").tempdir().unwrap(), flags)
    }

    fn start_in(dir: TempDir, flags: &[&str]) -> Server {
        let started = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command
            .args(["up", "--listen", "127.0.0.1:0", "--log-level", "warn", "--data-dir"])
            .arg(dir.path().join("data"));
        command.arg("--kubeconfig").arg(dir.path().join("kubeconfig")).args(flags).env("MUSTER_HOME", dir.path());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("ready"), "not ready: {line:?}");
        Server { child, dir, ready: started.elapsed() }
    }

    async fn client(&self) -> kube::Client {
        let file = kube::config::Kubeconfig::read_from(self.dir.path().join("kubeconfig")).unwrap();
        let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await.unwrap();
        kube::Client::try_from(config).unwrap()
    }

    fn rss_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }

    /// What the server itself has used of the processors; its pods' processes are not in it.
    fn cpu_ms(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) * 10.0
    }

    /// Drains. The folder is kept until all is measured: file systems take their time over what was just deleted.
    fn end(self) {
        LEFT.lock().unwrap().push(self.stop());
    }

    /// Drains; gives the folder back.
    fn stop(mut self) -> TempDir {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), nix::sys::signal::Signal::SIGTERM)
            .unwrap();
        self.child.wait().unwrap();
        self.dir
    }
}

async fn post(client: &kube::Client, path: &str, object: &Value) -> Value {
    let body = serde_json::to_vec(object).unwrap();
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json").body(body).unwrap();
    client.request(request).await.unwrap()
}

fn job(name: &str, workers: u32, command: &[&str]) -> Value {
    let replica = |replicas: u32| {
        json!({"replicas": replicas, "restartPolicy": "Never",
               "template": {"spec": {"containers": [{"name": "pytorch", "image": "host", "command": command}]}}})
    };
    let mut replicas = json!({"Master": replica(1)});
    if workers > 0 {
        replicas["Worker"] = replica(workers);
    }
    json!({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name},
           "spec": {"pytorchReplicaSpecs": replicas}})
}

fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() * 1e3
}

/// Percentiles and the raw values behind them.
fn summary(unit: &str, mut values: Vec<f64>) -> Value {
    let raw: Vec<f64> = values.iter().map(|v| (v * 100.0).round() / 100.0).collect();
    values.sort_by(f64::total_cmp);
    let at = |share: f64| (values[((values.len() - 1) as f64 * share).round() as usize] * 100.0).round() / 100.0;
    json!({"unit": unit, "n": values.len(), "p10": at(0.1), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0), "raw": raw})
}

/// From the start of the process to the line that says it is ready: a new folder each time, then one that is there.
fn ready() -> Value {
    let fresh: Vec<f64> = (0..15)
        .map(|_| {
            let server = Server::start(&[]);
            let ready = server.ready;
            server.end();
            ready.as_secs_f64() * 1e3
        })
        .collect();
    let mut dir = Server::start(&[]).stop();
    let mut again = Vec::new();
    for _ in 0..15 {
        let server = Server::start_in(dir, &[]);
        again.push(server.ready.as_secs_f64() * 1e3);
        dir = server.stop();
    }
    json!({"fresh_folder": summary("ms", fresh), "restart": summary("ms", again)})
}

/// From the request that creates a job of two pods to its processes: the first one, and both.
async fn gang() -> Value {
    let server = Server::start(&[]);
    let client = server.client().await;
    let (mut first, mut both) = (Vec::new(), Vec::new());
    for i in 0..200 {
        let file = |rank: u32| server.dir.path().join(format!("started-{i}-{rank}"));
        let script = format!(
            "date +%s%N > {}/t-{i}-$RANK; mv {0}/t-{i}-$RANK {0}/started-{i}-$RANK",
            server.dir.path().display()
        );
        let submitted = now_ms();
        post(&client, JOBS, &job(&format!("gang-{i}"), 1, &["sh", "-c", &script])).await;
        let deadline = Instant::now() + Duration::from_secs(60);
        while !(file(0).exists() && file(1).exists()) {
            assert!(Instant::now() < deadline, "gang-{i} does not start");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let started =
            [0, 1].map(|rank| std::fs::read_to_string(file(rank)).unwrap().trim().parse::<f64>().unwrap() / 1e6);
        first.push(started[0].min(started[1]) - submitted);
        both.push(started[0].max(started[1]) - submitted);
    }
    server.end();
    json!({"first_process": summary("ms", first), "both_processes": summary("ms", both)})
}

/// Three times a thousand jobs, each thousand on a server of its own.
async fn jobs() -> Value {
    let mut rounds = Vec::new();
    for _ in 0..3 {
        rounds.push(thousand_jobs().await);
    }
    let rates = rounds.iter().map(|round| round["jobs_per_second"].as_f64().unwrap()).collect();
    json!({"jobs_per_second": summary("1/s", rates), "rounds": rounds})
}

/// A thousand jobs of one pod that runs `true`, from the first request to the last Succeeded; and the memory of it.
async fn thousand_jobs() -> Value {
    const COUNT: usize = 1_000;
    let server = Server::start(&[]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let idle = server.rss_mib();
    let watch = server.client().await;
    let request = Request::get(format!("{JOBS}?watch=true")).body(Vec::new()).unwrap();
    let mut lines = std::pin::pin!(watch.request_stream(request).await.unwrap().lines());
    let cpu_before = server.cpu_ms();
    let started = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut submitters = Vec::new();
    for _ in 0..8 {
        let (client, next) = (server.client().await, next.clone());
        submitters.push(tokio::spawn(async move {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= COUNT {
                    return;
                }
                post(&client, JOBS, &job(&format!("true-{i}"), 0, &["true"])).await;
            }
        }));
    }
    let mut peak: f64 = 0.0;
    let (mut succeeded, mut tick) = (BTreeSet::new(), tokio::time::interval(Duration::from_millis(250)));
    while succeeded.len() < COUNT {
        let line = tokio::select! {
            line = lines.try_next() => line.unwrap().expect("the watch goes on"),
            _ = tick.tick() => {
                peak = peak.max(server.rss_mib());
                assert!(started.elapsed() < Duration::from_secs(600), "only {} of {COUNT} ended", succeeded.len());
                continue;
            }
        };
        let event: Value = serde_json::from_str(&line).unwrap();
        let conditions = event.pointer("/object/status/conditions").and_then(Value::as_array);
        for condition in conditions.into_iter().flatten().filter(|c| c["status"] == "True") {
            assert_ne!(condition["type"], "Failed", "a job failed: {condition}");
            if condition["type"] == "Succeeded" {
                succeeded.insert(event["object"]["metadata"]["name"].as_str().unwrap().to_owned());
            }
        }
    }
    for submitter in submitters {
        submitter.await.unwrap();
    }
    let elapsed = started.elapsed().as_secs_f64();
    let loaded = server.rss_mib();
    let server_ms = (server.cpu_ms() - cpu_before) / COUNT as f64;
    server.end();
    json!({
        "jobs": COUNT, "seconds": round(elapsed), "jobs_per_second": round(COUNT as f64 / elapsed),
        "server_cpu_ms_per_job": round(server_ms),
        "rss_mib": {"idle": round(idle), "peak": round(peak), "after": round(loaded)},
    })
}

/// Answered creations a second, of one client and of 64, beside what the disk does alone in the same run.
async fn writes() -> Value {
    let server = Server::start(&["--roles", "apiserver"]);
    let mut rounds = Vec::new();
    for round_number in 0..3 {
        let disk = raw_fdatasync(server.dir.path());
        let one = write_rate(&server, 1, round_number).await;
        let many = write_rate(&server, 64, round_number).await;
        rounds.push(json!({
            "raw_fdatasync_per_second": round(disk), "clients_1_per_second": round(one), "clients_64_per_second": round(many),
            "clients_1_to_raw": round(one / disk), "clients_64_to_raw": round(many / disk),
        }));
    }
    server.end();
    json!({"object": "ConfigMap of 1 KiB", "rounds": rounds})
}

async fn write_rate(server: &Server, clients: usize, round_number: usize) -> f64 {
    let until = Duration::from_secs(5);
    let mut tasks = Vec::new();
    let connections: Vec<kube::Client> = futures::future::join_all((0..clients).map(|_| server.client())).await;
    let started = Instant::now();
    for (client_number, client) in connections.into_iter().enumerate() {
        tasks.push(tokio::spawn(async move {
            let mut answered = 0usize;
            while started.elapsed() < until {
                let name = format!("w-{round_number}-{clients}-{client_number}-{answered}");
                let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"x": "y".repeat(1024)}});
                post(&client, CONFIG_MAPS, &object).await;
                answered += 1;
            }
            answered
        }));
    }
    let mut total = 0;
    for task in tasks {
        total += task.await.unwrap();
    }
    total as f64 / started.elapsed().as_secs_f64()
}

/// Overwrites of one KiB in a preallocated file, each followed by fdatasync.
fn raw_fdatasync(dir: &Path) -> f64 {
    let path = dir.join("raw");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&vec![0; 4 << 20]).unwrap();
    file.sync_all().unwrap();
    let started = Instant::now();
    let mut n = 0u64;
    while started.elapsed() < Duration::from_secs(2) {
        file.write_at(&[1; 1024], (n * 1024) % (4 << 20)).unwrap();
        file.sync_data().unwrap();
        n += 1;
    }
    let rate = n as f64 / started.elapsed().as_secs_f64();
    std::fs::remove_file(path).unwrap();
    rate
}

/// Memory of a server that has nothing to do.
fn memory() -> Value {
    let values: Vec<f64> = (0..3)
        .map(|_| {
            let server = Server::start(&[]);
            std::thread::sleep(Duration::from_secs(5));
            let rss = server.rss_mib();
            server.end();
            rss
        })
        .collect();
    json!({"idle": summary("MiB", values)})
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn output(command: &str, arguments: &[&str]) -> String {
    let output = Command::new(command).args(arguments).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    json!({
        "cpu": field(&read("/proc/cpuinfo"), "model name"),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load_average_at_start": read("/proc/loadavg").trim(),
    })
}

fn main() {
    let names: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|n| n == name);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let machine = machine();
    let mut figures = serde_json::Map::new();
    let mut note = |name: &str, value: Value| {
        let mut short = value.clone();
        strip_raw(&mut short);
        println!("{name}: {short}");
        figures.insert(name.to_owned(), value);
    };
    if wanted("ready") {
        note("start_to_ready", ready());
    }
    if wanted("memory") {
        note("memory", memory());
    }
    if wanted("gang") {
        note("submit_to_gang_of_two", runtime.block_on(gang()));
    }
    if wanted("jobs") {
        note("jobs_of_true", runtime.block_on(jobs()));
    }
    if wanted("writes") {
        note("acknowledged_writes", runtime.block_on(writes()));
    }
    let date = output("date", &["-u", "+%Y-%m-%d"]);
    let slug: String = machine["cpu"]
        .as_str()
        .unwrap_or_default()
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let words: Vec<&str> = slug.split('-').filter(|word| !word.is_empty()).take(4).collect();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/results").join(format!(
        "{date}-{}-{}-cores",
        words.join("-"),
        machine["cores"]
    ));
    std::fs::create_dir_all(&folder).unwrap();
    let result = json!({
        "command": "make bench", "version": env!("CARGO_PKG_VERSION"),
        "commit": output("git", &["rev-parse", "--short", "HEAD"]), "date": date,
        "machine": machine, "figures": figures,
    });
    let path = folder.join("control-plane.json");
    std::fs::write(&path, serde_json::to_string_pretty(&result).unwrap() + "\n").unwrap();
    println!("written to {}", path.display());
    LEFT.lock().unwrap().clear();
}

fn strip_raw(value: &mut Value) {
    if let Some(object) = value.as_object_mut() {
        object.remove("raw");
        object.values_mut().for_each(strip_raw);
    }
}
